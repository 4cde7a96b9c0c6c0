"""
What it costs to hand a call over, beside the engines' own ways for sync code: `python tests/benchmarks/brokers.py [rounds [redis]]`.

Real servers on loopback, those of `tests/real/services.py`; what is not installed is left out. The cases take turns, so that a busy
machine is busy for all of them.
"""

import asyncio
import contextlib
import importlib.util
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "real")]

import services

import omniloop
from omniloop import background

CALLS = 1000
THREADS = (1, 16)
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


def by_celery(url: str, **transport: bool) -> Case:
    from celery import Celery

    app = Celery("bench", broker=url)
    app.conf.broker_transport_options = transport

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


def cases(stack: contextlib.ExitStack, folder: Path, only: str) -> dict[str, tuple[Case, Callable[[], None]]]:
    """By name: the call, and what waits until the engine has them all."""
    found: dict[str, tuple[Case, Callable[[], None]]] = {}
    none = lambda: None  # noqa: E731
    urls = {
        kind: stack.enter_context(service(folder)).url
        for kind, service in services.KINDS.items()
        if only in kind or (only == "outbox" and kind == "rabbitmq")
    }

    from taskiq_aio_pika import AioPikaBroker
    from taskiq_nats import PullBasedJetStreamBroker
    from taskiq_redis import ListQueueBroker

    makers = {
        "rabbitmq": lambda: AioPikaBroker(urls["rabbitmq"]),
        "nats": lambda: PullBasedJetStreamBroker(urls["nats"]),
        "redis": lambda: ListQueueBroker(urls["redis"]),
    }
    for kind, make in makers.items():
        if only in kind:
            found[f"{kind}: omniloop"] = handed_over(by_taskiq(make))
            found[f"{kind}: asyncio.run(kiq()), a broker each"] = by_asyncio_run(make), none
    if only in "outbox":
        from omniloop.ext.outbox import Outbox

        found["outbox: omniloop, then rabbitmq"] = handed_over(
            Outbox(folder / "rabbitmq.sqlite", by_taskiq(makers["rabbitmq"]))
        )
        found["outbox: omniloop, run here"] = handed_over(Outbox(folder / "here.sqlite"))
    if importlib.util.find_spec("celery"):
        if only in "redis":
            found["redis: celery .delay()"] = by_celery(urls["redis"]), none
        if only in "rabbitmq":
            found["rabbitmq: celery .delay(), not confirmed"] = by_celery(urls["rabbitmq"]), none
            found["rabbitmq: celery .delay(), confirmed"] = by_celery(urls["rabbitmq"], confirm_publish=True), none
    if importlib.util.find_spec("dramatiq"):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker
        from dramatiq.brokers.redis import RedisBroker

        if only in "rabbitmq":
            broker = RabbitmqBroker(url=urls["rabbitmq"], confirm_delivery=True)
            found["rabbitmq: dramatiq .send(), confirmed"] = by_dramatiq(broker), none
        if only in "redis":
            found["redis: dramatiq .send()"] = by_dramatiq(RedisBroker(url=urls["redis"])), none
    if importlib.util.find_spec("rq") and only in "redis":
        import redis
        import rq

        queue = rq.Queue(connection=redis.Redis.from_url(urls["redis"]))
        found["redis: rq enqueue()"] = (lambda number: queue.enqueue("time.sleep", number)), none
    if importlib.util.find_spec("procrastinate") and only in "postgres":
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


class Figures:
    """What one case came to, of all rounds."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.rates: dict[int, list[float]] = {threads: [] for threads in THREADS}
        self.processor: list[float] = []

    def measure(self, call: Case, wait: Callable[[], None], calls: int, threads: int) -> None:
        begin = threading.Barrier(threads + 1)

        def make_calls() -> None:
            begin.wait()
            for number in range(calls // threads):
                before = time.perf_counter()
                call(number)
                self.costs.append(time.perf_counter() - before)

        those = [threading.Thread(target=make_calls) for _ in range(threads)]
        for thread in those:
            thread.start()
        begin.wait()
        begun, used = time.perf_counter(), time.process_time()
        for thread in those:
            thread.join()
        wait()
        made = calls // threads * threads
        self.rates[threads].append(made / (time.perf_counter() - begun))
        if threads == 1:
            self.processor.append((time.process_time() - used) / made)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    only = sys.argv[2] if len(sys.argv) > 2 else ""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = cases(stack, folder, only)
        figures = {name: Figures() for name in found}
        for _ in range(rounds):
            for threads in THREADS:
                for name, (call, wait) in found.items():
                    figures[name].measure(call, wait, CALLS // 20 if "asyncio.run" in name else CALLS, threads)
        print(
            "| who | a call costs the caller, median and p99 | calls a second until the engine has them, from 1 thread | from 16 | processor time of a call |"
        )
        print("|---|---|---|---|---|")
        for name, it in sorted(figures.items()):
            ordered = sorted(it.costs)
            median, high = statistics.median(ordered) * 1e3, ordered[int(len(ordered) * 0.99)] * 1e3
            one, many = (statistics.median(it.rates[threads]) for threads in THREADS)
            print(
                f"| {name} | {median:.2f}, {high:.1f} ms | {one:,.0f} | {many:,.0f} | {statistics.median(it.processor) * 1e6:.0f} µs |"
            )
        omniloop.shutdown()


if __name__ == "__main__":
    main()
