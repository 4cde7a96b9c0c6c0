#!/usr/bin/env bash
# Django 6.0.10 and 6.1.3: whether a receiver of a signal sees the error in whose handler `asend` is awaited.
# Installs pinned public packages in a temporary folder, runs them by themselves, and exits non-zero if what is seen has changed.
set -eu
python=${PYTHON:-python3.14}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > program.py <<'P'
import asyncio
import logging

import django
from django.conf import settings

settings.configure(TASKS={"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}})
django.setup()

from django.tasks import TaskResultStatus, task
from django.tasks.signals import task_finished


@task
def job():
    pass


class Seen(logging.Handler):
    def emit(self, record):
        print(django.get_version(), record.levelname, record.exc_info and record.exc_info[1])


logging.getLogger("django.tasks").addHandler(Seen(logging.ERROR))


async def a_backend_whose_task_fails():
    result = job.enqueue()
    object.__setattr__(result, "status", TaskResultStatus.FAILED)
    try:
        raise LookupError("no such mailbox")
    except LookupError:
        # Django's own receiver, which logs, asks `sys.exc_info()` for the error.
        await task_finished.asend(object, task_result=result)


asyncio.run(a_backend_whose_task_fails())
P
seen=
for version in 6.0.10 6.1.3; do
    if command -v uv >/dev/null; then
        uv venv --quiet --python "$python" "env-$version"
        uv pip install --python "env-$version/bin/python" --quiet --only-binary :all: "django==$version"
    else
        "$python" -m venv "env-$version"
        "env-$version/bin/python" -m pip install --disable-pip-version-check --quiet --only-binary :all: "django==$version"
    fi
    seen+=$("env-$version/bin/python" program.py)$'\n'
done
"$python" -VV; echo "what the receiver that logs is given, by version:"; echo "$seen"
[ "$seen" = "6.0.10 ERROR None
6.1.3 ERROR no such mailbox
" ]
echo "as stated: 6.0 gathers plain and async receivers, so that the plain ones run in a task of their own, which handles no error; 6.1 awaits the plain ones first, in the sender's task"
