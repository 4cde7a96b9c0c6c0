"""Sync twins of async functions and classes, with their annotations, and the stubs that type them."""
