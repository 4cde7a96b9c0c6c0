"""An SDK with one of everything, for the type checkers: written once, async, and the sync twin of it."""
