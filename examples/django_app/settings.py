"""Django's settings: what the example needs, and no more."""

import os

SECRET_KEY = "only for the example"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "accounts.views"
INSTALLED_APPS = ["accounts"]
WSGI_APPLICATION = "wsgi.application"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", "accounts.sqlite"),
        # Several processes write: wait for each other, instead of failing when a read becomes a write.
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
