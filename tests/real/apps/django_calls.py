"""A Django project in a file, whose view makes an account and a call in one transaction; with Procrastinate on PostgreSQL."""

import os
import sys

import django
from django.conf import settings

URL = os.environ["BROKER_URL"]
PORT = URL.rpartition(":")[2].partition("/")[0]

if not settings.configured:
    settings.configure(
        SECRET_KEY="tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="django_calls",
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "postgres",
                "USER": "postgres",
                "HOST": "127.0.0.1",
                "PORT": PORT,
            }
        },
        INSTALLED_APPS=["procrastinate.contrib.django"],
        PROCRASTINATE_WORKER_DEFAULTS={
            "update_heartbeat_interval": 0.5,
            "fetch_job_polling_interval": 0.5,
            "concurrency": 100,
        },
        PROCRASTINATE_IMPORT_PATHS=["django_calls"],
        USE_TZ=True,
    )
    django.setup()

import asyncio

from django.core.management import call_command, execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.db import connection, models, transaction
from django.http import HttpResponse
from django.urls import path

from omniloop import background, current_delivery
from omniloop.ext.procrastinate import Procrastinate

BOOK = os.open(os.environ["BOOK"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
jobs = Procrastinate(stalled_after=3)


class Account(models.Model):  # noqa: DJ008
    number = models.IntegerField(unique=True)
    welcomed = models.IntegerField(default=0)

    class Meta:
        app_label = "example"


def note(*words: object) -> None:
    os.write(BOOK, (" ".join(map(str, words)) + "\n").encode())


@background(broker=jobs, name="welcome")
async def welcome(number: int, seconds: float = 0) -> None:
    attempt = current_delivery().attempt
    note("started", number, attempt)
    await asyncio.sleep(seconds if attempt == 1 else 0)
    # Idempotent: a second delivery welcomes nobody again.
    await Account.objects.filter(number=number, welcomed=0).aupdate(welcomed=1)
    note("ended", number, attempt)


def register(request, number: int):
    with transaction.atomic():
        Account.objects.create(number=number)
        welcome(number, float(request.GET.get("seconds", 0)))
        if number % 3 == 2:
            # Decided against, after the call.
            transaction.set_rollback(True)
    return HttpResponse("ok")


async def register_async(request, number: int):
    await Account.objects.acreate(number=number)
    welcome(number)
    return HttpResponse("ok")


def accounts(request):
    rows = Account.objects.order_by("number").values_list("number", "welcomed")
    return HttpResponse(repr(list(rows)))


urlpatterns = [path("register/<int:number>", register), path("async/<int:number>", register_async), path("", accounts)]


application = get_wsgi_application()


def main() -> None:
    if sys.argv[1:] == ["create"]:
        call_command("migrate", verbosity=0)
        with connection.schema_editor() as editor:
            editor.create_model(Account)
    else:
        execute_from_command_line(sys.argv)
