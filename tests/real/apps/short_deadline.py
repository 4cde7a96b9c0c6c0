"""The Flask example, in a program that has chosen how long its workers drain."""

from app import app

import omniloop

__all__ = ["app"]

omniloop.configure(exit_timeout=0.5)
