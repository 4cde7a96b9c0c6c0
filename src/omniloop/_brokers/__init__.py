"""Calls handed to an engine that keeps them beyond this process."""
