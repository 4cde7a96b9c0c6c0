"""The Flask example, in a program that uses omniloop while it is imported: in the master, with --preload."""

import asyncio

from app import app

import omniloop

__all__ = ["app"]

# The loop runs, and one task is pending, when the workers are forked.
assert omniloop.run(asyncio.sleep(0, "used")) == "used"
omniloop.go(asyncio.sleep(3600), daemon=True)
