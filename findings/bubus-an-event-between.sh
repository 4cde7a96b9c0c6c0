#!/usr/bin/env bash
# bubus 1.5.6: what runs while a handler awaits the event that it dispatched, if another event was dispatched before.
# Installs pinned public packages in a temporary folder, runs them by themselves, and exits non-zero if what is seen has changed.
set -eu
python=${PYTHON:-python3.14}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > program.py <<'P'
import asyncio

from bubus import BaseEvent, EventBus


class Order(BaseEvent):
    pass


class Payment(BaseEvent):
    pass


class Report(BaseEvent):
    pass


seen = []


async def main():
    bus = EventBus()

    async def take_an_order(event):
        seen.append("order begins")
        await bus.dispatch(Payment())
        seen.append("order ends")

    async def report(event):
        seen.append("report begins")
        await asyncio.sleep(0.2)
        seen.append("report ends")

    bus.on(Order, take_an_order)
    bus.on(Payment, lambda event: seen.append("payment"))
    bus.on(Report, report)
    order = bus.dispatch(Order())
    bus.dispatch(Report())
    await order
    await bus.wait_until_idle()
    await bus.stop()


asyncio.run(main())
print(*seen, sep=", ")
P
if command -v uv >/dev/null; then
    uv venv --quiet --python "$python" env
    uv pip install --python env/bin/python --quiet --only-binary :all: bubus==1.5.6
else
    "$python" -m venv env
    env/bin/python -m pip install --disable-pip-version-check --quiet --only-binary :all: bubus==1.5.6
fi
seen=$(env/bin/python program.py 2>/dev/null)
env/bin/python -VV; echo "bubus 1.5.6:"; echo "$seen"
[ "$seen" = "order begins, report begins, report ends, payment, order ends" ]
echo "as stated: an awaited child does not go ahead of what is queued (its README says that it does): events are handled in the order of their dispatch, one at a time, and the handler of the unrelated report runs inside of the handler that waits"
