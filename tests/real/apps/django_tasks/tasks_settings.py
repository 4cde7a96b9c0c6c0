"""A site that has tasks, and nothing else; the test gives the options and the database."""

import json
import os

SECRET_KEY = "of the tests"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", ":memory:"),
        "OPTIONS": {"timeout": 30},
    }
}
ROOT_URLCONF = "jobs"
TASKS = {
    "default": {
        "BACKEND": "omniloop.ext.django.OmniloopBackend",
        "QUEUES": json.loads(os.environ.get("QUEUES", "[]")),
        "OPTIONS": json.loads(os.environ.get("OPTIONS", "{}")),
    }
}
