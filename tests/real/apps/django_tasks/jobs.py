"""The site's tasks: at the top level of a module, as Django wants them; and a view that enqueues one."""

import asyncio
import os
import threading

from django.db import connection
from django.http import HttpResponse
from django.tasks import task
from django.urls import path
from django.utils import timezone, translation

together = {"now": 0, "most": 0}


@task
async def add(a, b=1):
    return a + b


@task
async def meet(number):
    """Return when all of *number* are there: they run side by side or never end."""
    together["now"] += 1
    together["most"] = max(together["most"], together["now"])
    while together["now"] < number:
        await asyncio.sleep(0.001)
    return together["most"]


@task
async def count_together():
    together["now"] += 1
    together["most"] = max(together["most"], together["now"])
    await asyncio.sleep(0.002)
    together["now"] -= 1


barrier = threading.Barrier(3)


@task
def meet_in_threads():
    barrier.wait(timeout=30)
    return threading.current_thread() is not threading.main_thread()


@task(takes_context=True)
async def attempts(context, name):
    return [context.attempt, context.task_result.id, name]


@task
async def locale():
    return [translation.get_language(), timezone.get_current_timezone_name()]


@task
def plain_locale():
    return [translation.get_language(), timezone.get_current_timezone_name()]


@task
async def fail():
    raise LookupError("no such mailbox")


@task
def leave():
    raise SystemExit("left")


@task
async def wait_for_ever():
    await asyncio.Event().wait()


@task
async def echo(value):
    return value


@task
def write(name):
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO names VALUES (%s)", [name])
    return threading.get_ident()


@task
async def say(text):
    await asyncio.sleep(0.05)
    print("said", text)


@task
async def append(path, text):
    await asyncio.sleep(0.3)
    with open(path, "a") as file:
        print(text, file=file)


def view(request):
    append.enqueue(os.environ["ARRIVED"], request.GET["name"])
    return HttpResponse(str(os.getpid()))


async def async_view(request):
    await append.aenqueue(os.environ["ARRIVED"], request.GET["name"])
    return HttpResponse(str(os.getpid()))


urlpatterns = [path("pid", lambda request: HttpResponse(str(os.getpid()))), path("go", view), path("async", async_view)]
