"""
What it costs a caller to hand a call over, beside the engines' own ways for sync code: `python tests/benchmarks/brokers.py [rounds]`.

Real servers on loopback, those of `tests/real/services.py`; what is not installed is left out. The cases take turns, so that a busy
machine is busy for all of them.
"""

import asyncio
import contextlib
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "real")]

import services

import omniloop
from omniloop import background

CALLS = 100
Case = Callable[[int], object]


def handed_over(engine: omniloop.Engine) -> tuple[Case, Callable[[], None]]:
    @background(broker=engine, name="work")
    async def work(number: int) -> None: ...

    work(0).accepted.result(30)
    return work, lambda: omniloop.flush(60)


def by_taskiq(make) -> omniloop.Engine:
    from omniloop.ext.taskiq import Taskiq

    return Taskiq(make, lossy=True)


def by_asyncio_run(make) -> Case:
    async def send(number: int) -> None:
        broker = make()

        async def work(number: int) -> None: ...

        task = broker.register_task(work, task_name="work")
        await broker.startup()
        await task.kiq(number)
        await broker.shutdown()

    return lambda number: asyncio.run(send(number))


def by_celery(url: str) -> Case:
    from celery import Celery

    app = Celery("bench", broker=url)

    @app.task(name="work", ignore_result=True)
    def work(number: int) -> None: ...

    work.delay(0)
    return work.delay


def by_dramatiq(broker) -> Case:
    import dramatiq

    @dramatiq.actor(broker=broker, actor_name="work")
    def work(number: int) -> None: ...

    work.send(0)
    return work.send


def cases(stack: contextlib.ExitStack, folder: Path) -> dict[str, tuple[Case, Callable[[], None]]]:
    """By name: the call, and what waits until the engine has them all."""
    found: dict[str, tuple[Case, Callable[[], None]]] = {}
    none = lambda: None  # noqa: E731
    urls = {kind: stack.enter_context(service(folder)).url for kind, service in services.KINDS.items()}

    from taskiq_aio_pika import AioPikaBroker
    from taskiq_nats import PullBasedJetStreamBroker
    from taskiq_redis import RedisStreamBroker

    makers = {
        "rabbitmq": lambda: AioPikaBroker(urls["rabbitmq"]),
        "nats": lambda: PullBasedJetStreamBroker(urls["nats"]),
        "redis": lambda: RedisStreamBroker(urls["redis"]),
    }
    for kind, make in makers.items():
        found[f"{kind}: omniloop"] = handed_over(by_taskiq(make))
        found[f"{kind}: asyncio.run(kiq()), a broker each"] = by_asyncio_run(make), none
    from omniloop.ext.outbox import Outbox

    found["rabbitmq: omniloop, outbox"] = handed_over(Outbox(folder / "rabbitmq.sqlite", by_taskiq(makers["rabbitmq"])))
    found["no server: omniloop, outbox"] = handed_over(Outbox(folder / "here.sqlite"))
    if importlib.util.find_spec("celery"):
        for kind in ("rabbitmq", "redis"):
            found[f"{kind}: celery .delay()"] = by_celery(urls[kind]), none
    if importlib.util.find_spec("dramatiq"):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker
        from dramatiq.brokers.redis import RedisBroker

        found["rabbitmq: dramatiq .send(), confirmed"] = (
            by_dramatiq(RabbitmqBroker(url=urls["rabbitmq"], confirm_delivery=True)),
            none,
        )
        found["redis: dramatiq .send()"] = by_dramatiq(RedisBroker(url=urls["redis"])), none
    if importlib.util.find_spec("rq"):
        import redis
        import rq

        queue = rq.Queue(connection=redis.Redis.from_url(urls["redis"]))
        found["redis: rq enqueue()"] = (lambda number: queue.enqueue("time.sleep", number)), none
    if importlib.util.find_spec("procrastinate"):
        from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

        from omniloop.ext.procrastinate import Procrastinate

        app = App(connector=SyncPsycopgConnector(conninfo=urls["postgres"]))
        app.open()
        app.schema_manager.apply_schema()
        task = app.task(name="work")(lambda number: None)
        found["postgres: procrastinate .defer()"] = (lambda number: task.defer(number=number)), none
        found["postgres: omniloop"] = handed_over(
            Procrastinate(lambda: App(connector=PsycopgConnector(conninfo=urls["postgres"])))
        )
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = cases(stack, folder)
        costs: dict[str, list[float]] = {name: [] for name in found}
        rates: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(rounds):
            for name, (call, wait) in found.items():
                calls = CALLS // 10 if "asyncio.run" in name else CALLS
                begun = time.perf_counter()
                for number in range(calls):
                    before = time.perf_counter()
                    call(number)
                    costs[name].append(time.perf_counter() - before)
                wait()
                rates[name].append(calls / (time.perf_counter() - begun))
        print("| who | a call costs the caller, median and p99 | calls a second, until the engine has them |")
        print("|---|---|---|")
        for name in sorted(found):
            ordered = sorted(costs[name])
            median, high = statistics.median(ordered) * 1e3, ordered[int(len(ordered) * 0.99)] * 1e3
            print(f"| {name} | {median:.2f}, {high:.1f} ms | {statistics.median(rates[name]):,.0f} |")
        omniloop.shutdown()


if __name__ == "__main__":
    main()
