#!/usr/bin/env bash
# aiojobs 1.4.0: what `wait(timeout=)` does to a job that still waits for its turn in a scheduler with a limit.
# Installs pinned public packages in a temporary folder, runs them by themselves, and exits non-zero if what is seen has changed.
set -eu
python=${PYTHON:-python3.14}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > program.py <<'P'
import asyncio

import aiojobs

runs = []


async def work(name):
    runs.append(name)
    print(name, "starts beside", runs[:-1])
    await asyncio.sleep(1)
    runs.remove(name)
    print(name, "is done")


async def main():
    async with aiojobs.Scheduler(limit=1) as scheduler:
        first = await scheduler.spawn(work("the first"))
        second = await scheduler.spawn(work("the second"))
        await asyncio.sleep(0.1)
        try:
            await second.wait(timeout=0.1)
        except Exception as error:
            print("wait(timeout=0.1):", type(error).__name__)
        print("the second is closed:", second.closed)
        await first.wait()
        await asyncio.sleep(0.5)


asyncio.run(main())
P
if command -v uv >/dev/null; then
    uv venv --quiet --python "$python" env
    uv pip install --python env/bin/python --quiet --only-binary :all: aiojobs==1.4.0
else
    "$python" -m venv env
    env/bin/python -m pip install --disable-pip-version-check --quiet --only-binary :all: aiojobs==1.4.0
fi
seen=$(env/bin/python program.py)
env/bin/python -VV; echo "aiojobs 1.4.0, a limit of one:"; echo "$seen"
[ "$seen" = "the first starts beside []
wait(timeout=0.1): InvalidStateError
the second is closed: True
the second starts beside ['the first']
the first is done
the second is done" ]
echo "as stated: a job that is given up before its turn is marked as closed, and its body runs all the same, at once, beside the limit: the timeout cancels the future that tells of the start, closing makes the job's task, cannot say so (InvalidStateError), and so does not cancel it"
