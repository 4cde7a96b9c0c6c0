"""Calls made in processes of a pool."""
