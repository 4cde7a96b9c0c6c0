"""Sync twins of async functions and classes, their annotations, and the stubs that type them."""
