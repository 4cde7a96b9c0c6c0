#!/usr/bin/env bash
# cashews 7.6.0: two callers of one cached function at once, the first of which is cancelled.
# Installs pinned public packages in a temporary folder, runs them by themselves, and exits non-zero if what is seen has changed.
set -eu
python=${PYTHON:-python3.14}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > program.py <<'P'
import asyncio

from cashews import cache

cache.setup("mem://")


async def two_callers(name, **options):
    begun = []

    @cache(ttl="10s", key=name + ":{number}", **options)
    async def cached(number):
        begun.append(number)
        await asyncio.sleep(0.3)
        return "a value"

    first = asyncio.create_task(cached(1))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(cached(1))
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.wait({first, second})
    outcome = "CancelledError" if second.cancelled() else second.result()
    print(f"{name}: begun {len(begun)}, the second, asked {second.cancelling()} times to cancel: {outcome}")


async def main():
    await two_callers("plain")
    await two_callers("with a lock", lock=True)
    await two_callers("not protected", protected=False)


asyncio.run(main())
P
if command -v uv >/dev/null; then
    uv venv --quiet --python "$python" env
    uv pip install --python env/bin/python --quiet --only-binary :all: cashews==7.6.0
else
    "$python" -m venv env
    env/bin/python -m pip install --disable-pip-version-check --quiet --only-binary :all: cashews==7.6.0
fi
seen=$(env/bin/python program.py)
env/bin/python -VV; echo "cashews 7.6.0:"; echo "$seen"
[ "$seen" = "plain: begun 1, the second, asked 0 times to cancel: CancelledError
with a lock: begun 1, the second, asked 0 times to cancel: CancelledError
not protected: begun 2, the second, asked 0 times to cancel: a value" ]
echo "as stated: by default (protected=True) the callers share one task, which no shield protects: who cancels one caller cancels them all, with a lock too"
