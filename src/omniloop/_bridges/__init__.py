"""What async code offers and sync code wants, each over the calls of a runtime."""
