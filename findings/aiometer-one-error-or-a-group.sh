#!/usr/bin/env bash
# aiometer 1.0.0: the type of the error that leaves `amap` and `run_on_each`.
# Installs pinned public packages in a temporary folder, runs them by themselves, and exits non-zero if what is seen has changed.
set -eu
python=${PYTHON:-python3.14}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > program.py <<'P'
import asyncio

import aiometer


async def divided_by(number):
    await asyncio.sleep(0.01)
    return 1 // number


async def amap(numbers):
    async with aiometer.amap(divided_by, numbers, max_at_once=3) as results:
        async for _ in results:
            pass


async def run_on_each(numbers):
    await aiometer.run_on_each(divided_by, numbers, max_at_once=3)


for call in amap, run_on_each:
    for numbers in [0, 1, 2], [0, 0, 2]:
        try:
            asyncio.run(call(numbers))
        except Exception as error:
            print(call.__name__, numbers, type(error).__name__)
P
if command -v uv >/dev/null; then
    uv venv --quiet --python "$python" env
    uv pip install --python env/bin/python --quiet --only-binary :all: aiometer==1.0.0 anyio==4.16.0
else
    "$python" -m venv env
    env/bin/python -m pip install --disable-pip-version-check --quiet --only-binary :all: aiometer==1.0.0 anyio==4.16.0
fi
seen=$(env/bin/python program.py)
env/bin/python -VV; echo "aiometer 1.0.0, anyio 4.16.0, three calls at a time:"; echo "$seen"
[ "$seen" = "amap [0, 1, 2] ZeroDivisionError
amap [0, 0, 2] ExceptionGroup
run_on_each [0, 1, 2] ExceptionGroup
run_on_each [0, 0, 2] ExceptionGroup" ]
echo "as stated: both run their calls in a task group; \`run_on_each\` lets the group out, and \`amap\` takes a group of one error apart: 'except ZeroDivisionError' works there until two calls fail in the same moment"
