# /// script
# requires-python = "==3.14.*"
# dependencies = ["django==6.1.3"]
# ///
"""
Sync and async views by Django's own test clients: `run` in one, `await go(…)` in the other; the ORM by its async methods inside `run`, in an `atomic()` that is rolled back.
"""

import asyncio

import django
from django.conf import settings

settings.configure(
    DEBUG=False,
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="__main__",
    SECRET_KEY="field",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "field.sqlite"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import transaction
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

import omniloop
from ending import right


async def users():
    await User.objects.acreate(username=f"user {await User.objects.acount()}")
    return [user.username async for user in User.objects.order_by("username")]


def sync_view(request):
    return HttpResponse(",".join(omniloop.run(users(), timeout=20)))


async def async_view(request):
    return HttpResponse(",".join(await omniloop.go(users())))


urlpatterns = [path("sync", sync_view), path("async", async_view)]
call_command("migrate", verbosity=0)
assert Client().get("/sync").content == b"user 0"


async def ask():
    return (await AsyncClient().get("/async")).content


assert asyncio.run(ask()) == b"user 0,user 1"
assert Client().get("/sync").content == b"user 0,user 1,user 2"
try:
    with transaction.atomic():
        omniloop.run(users(), timeout=20)
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
assert User.objects.count() == 3
right(
    "Both kinds of view, and the ORM's async methods in `run`, which are in the transaction of the thread that waits: rolled back with it."
)
