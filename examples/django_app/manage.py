"""
A Django project: a sync view registers an account in a transaction, and leaves mail, audit log and webhook to `go_on_commit`.

    python ../flask_app/collector.py 8001 &
    export SERVICE=http://127.0.0.1:8001 DATABASE=accounts.sqlite
    python manage.py migrate
    python manage.py runserver
    curl -d name=ada http://127.0.0.1:8000/accounts
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
    execute_from_command_line(sys.argv)
