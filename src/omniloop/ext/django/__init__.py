"""
For Django: `go_on_commit` and `database` for work that uses the ORM, and from Django 6 on a backend for its tasks.

`OmniloopBackend` is there where `django.tasks` is.
"""

from omniloop.ext import needs

with needs("django"):
    import django

from .orm import database as database
from .orm import go_on_commit as go_on_commit

if django.VERSION[0] >= 6:
    from .tasks import OmniloopBackend as OmniloopBackend
