"""
For Django: `go_on_commit` and `database` for work that uses the ORM, and `OmniloopBackend` for Django's tasks.

`OmniloopBackend` needs `django.tasks`, and so Django 6 or later.
"""

from omniloop.ext import needs

with needs("django"):
    import django

from .orm import database as database
from .orm import go_on_commit as go_on_commit

if django.VERSION[0] >= 6:
    from .tasks import OmniloopBackend as OmniloopBackend
