"""`omniloop.ext.taskiq`, in memory and with what its serialiser makes of arguments; with real brokers in `tests/real/test_brokers.py`."""

import asyncio
import dataclasses
import datetime as dt
import decimal
import enum
import logging
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import pytest

import omniloop
from children import run_child
from omniloop import background, current_delivery

pytest.importorskip("taskiq")

from taskiq import Context, InMemoryBroker, TaskiqDepends
from taskiq.middlewares import SimpleRetryMiddleware

from omniloop.ext import taskiq
from omniloop.ext.taskiq import Taskiq

# Errors of functions are on purpose here; taskiq logs them.
logging.getLogger("taskiq").setLevel(logging.CRITICAL)


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    __slots__ = ()


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int
    y: int


@pytest.fixture
def jobs():
    return Taskiq()


# --- brokers are made again and again ---------------------------------------------------------------------------------


async def renamed(): ...


@pytest.mark.promise("However often a broker is made, a function keeps its name, and its module gets no more of them")
def test_making_many_brokers_leaves_one_name_in_the_module():
    jobs = Taskiq(lambda: InMemoryBroker())
    background(broker=jobs, name="renamed")(renamed)

    for _ in range(50):
        jobs._fresh()

    assert [name for name in globals() if name.startswith("renamed_")] == ["renamed__taskiq_original"]


def test_one_broker_is_listened_on_though_two_threads_ask_first():
    both = threading.Barrier(2)

    def make():
        both.wait(timeout=5)
        return InMemoryBroker()

    jobs = Taskiq(make)
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: jobs.broker, range(2))

    assert one is other is jobs.broker


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (AttributeError("'NoneType' object has no attribute '_add_writer'"), ConnectionError),
        (AttributeError("'NoneType' object has no attribute 'send'"), None),
    ],
)
def test_a_lost_connection_is_known_by_what_asyncio_says(error, meaning):
    assert taskiq._named(error, str(error)) is meaning


# --- in memory --------------------------------------------------------------------------------------------------------


def test_without_a_broker_calls_run_in_this_process_and_values_come_back(jobs):
    @background(broker=jobs)
    async def double(number: int) -> int:
        return number * 2

    assert double(21).result(timeout=5) == 42


def test_the_body_runs_on_omniloops_loop_and_knows_its_id(jobs):
    @background(broker=jobs)
    async def where() -> list:
        delivery = current_delivery()
        return [threading.current_thread().name, delivery.id, delivery.attempt]

    sent = where()

    assert sent.result(timeout=5) == ["omniloop", sent.id, 1]


def test_a_plain_function_runs_in_a_worker_thread(jobs):
    @background(broker=jobs)
    def where() -> str:
        return threading.current_thread().name

    assert where().result(timeout=5).startswith("omniloop-worker")


def test_an_error_comes_out_as_itself(jobs):
    @background(broker=jobs)
    async def fails():
        raise LookupError("no such account")

    with pytest.raises(LookupError, match="no such account"):
        fails().result(timeout=5)


def test_a_value_can_be_awaited_on_any_loop(jobs):
    @background(broker=jobs)
    async def double(number: int) -> int:
        return number * 2

    async def main():
        return await asyncio.gather(double(1), double(2))

    assert asyncio.run(main()) == [2, 4]


def in_memory_at_exit():
    import asyncio

    from omniloop import background
    from omniloop.ext.taskiq import Taskiq

    jobs = Taskiq()
    done = []

    @background(broker=jobs)
    async def work(number: int) -> None:
        await asyncio.sleep(0.05)
        done.append(number)
        if len(done) == 1000:
            print("all", flush=True)

    for number in range(1000):
        work(number)


@pytest.mark.promise(
    "Without a broker, calls run in this process, and are done before it ends", section="Beyond the process"
)
def test_what_runs_in_memory_is_done_before_the_program_ends():
    result = run_child(in_memory_at_exit)

    assert (result.stdout, result.stderr, result.code) == ("all\n", "", 0)


def test_labels_are_what_middlewares_read():
    jobs = Taskiq(lambda: InMemoryBroker().with_middlewares(SimpleRetryMiddleware(default_retry_count=3)))
    tries = []

    @background(broker=jobs.with_labels(retry_on_error=True), name="flaky")
    async def flaky() -> str:
        tries.append(current_delivery().id)
        if len(tries) < 3:
            raise ConnectionError
        return "done"

    sent = flaky()

    assert sent.result(timeout=5) == "done"
    assert tries == [sent.id] * 3


def plain_at_exit():
    import time

    from omniloop import background
    from omniloop.ext.taskiq import Taskiq

    done = []

    @background(broker=Taskiq())
    def work(number: int) -> None:
        time.sleep(0.01)
        done.append(number)
        if len(done) == 200:
            print("all", flush=True)

    for number in range(200):
        work(number)


def test_plain_functions_in_memory_are_done_before_the_program_ends():
    result = run_child(plain_at_exit)

    assert (result.stdout, result.stderr, result.code) == ("all\n", "", 0)


@pytest.mark.promise(
    "A `timeout` label ends a call as failed in time, also that of a plain function, whose thread goes on"
)
def test_a_timeout_label_ends_a_call_as_failed(jobs):
    go_on = threading.Event()

    @background(broker=jobs.with_labels(timeout=0.05))
    def plain() -> bool:
        return go_on.wait(10)

    @background(broker=jobs.with_labels(timeout=0.05))
    async def waits() -> None:
        await asyncio.sleep(10)

    for work in (plain, waits):
        with pytest.raises(TimeoutError):
            work().result(timeout=8)
    assert not go_on.is_set()
    go_on.set()


@pytest.mark.promise("`attempt` counts the retries of taskiq's middlewares")
def test_attempt_counts_the_retries_of_a_middleware():
    jobs = Taskiq(lambda: InMemoryBroker().with_middlewares(SimpleRetryMiddleware(default_retry_count=4)))
    attempts = []

    @background(broker=jobs.with_labels(retry_on_error=True), name="flaky")
    async def flaky() -> str:
        attempts.append(current_delivery().attempt)
        if len(attempts) < 3:
            raise ConnectionError
        return "done"

    assert flaky().result(timeout=5) == "done"
    assert attempts == [1, 2, 3]


# --- dependencies -----------------------------------------------------------------------------------------------------


def tenant():
    return "acme"


class Settings:
    def __init__(self, tenant: str = TaskiqDepends(tenant)):
        self.tenant = tenant


@pytest.mark.promise("`TaskiqDepends` is resolved by taskiq, in the worker: as a default and in `Annotated`")
def test_what_taskiq_depends_fills_in_is_resolved_in_both_styles(jobs):
    @background(broker=jobs)
    async def by_default(
        number: int, *others: int, name: str = TaskiqDepends(tenant), settings: Settings = TaskiqDepends(), **more: int
    ) -> list:
        return [number, others, name, settings.tenant, more]

    @background(broker=jobs)
    def annotated(
        name: Annotated[str, TaskiqDepends(tenant)], settings: Annotated[Settings, TaskiqDepends()], number: int
    ) -> list:
        return [number, name, settings.tenant]

    assert by_default(1, 2, 3, x=4).result(timeout=5) == [1, (2, 3), "acme", "acme", {"x": 4}]
    # Those that taskiq fills in have no place among the others, in taskiq neither: there by name only.
    assert annotated(1).result(timeout=5) == [1, "acme", "acme"]
    assert annotated(number=1).result(timeout=5) == [1, "acme", "acme"]
    assert annotated(1, name="given").result(timeout=5) == [1, "given", "acme"]


def test_the_message_of_taskiq_can_be_asked_for(jobs):
    @background(broker=jobs)
    async def work(context: Annotated[Context, TaskiqDepends()]) -> str:
        return context.message.task_id

    sent = work()

    assert sent.result(timeout=5) == sent.id


def test_a_dependency_that_can_not_be_resolved_is_refused_where_the_function_is_decorated(jobs):
    async def unknown(it=TaskiqDepends()): ...

    names = {"TaskiqDepends": TaskiqDepends}
    exec("async def later(it: 'Unknown' = TaskiqDepends()): ...", names)
    for function in (unknown, names["later"]):
        with pytest.raises(
            ValueError, match="what taskiq is to inject can't be resolved where the function is decorated"
        ):
            background(broker=jobs, name="work")(function)


# --- what the serialiser makes of arguments -----------------------------------------------------------------------------

NOT_AS_THEY_ARE = [
    (1, 2),
    {1: "a"},
    {1, 2},
    dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    uuid.UUID(int=1),
    decimal.Decimal("1.5"),
    b"ab",
    float("nan"),
    Colour.RED,
    Point(1, 2),
]


@pytest.mark.promise("What JSON would change is refused where no annotation brings it back")
@pytest.mark.parametrize("value", NOT_AS_THEY_ARE, ids=repr)
def test_what_json_changes_is_refused_where_no_annotation_brings_it_back(jobs, value):
    @background(broker=jobs)
    async def work(value): ...

    with pytest.raises(TypeError, match=r"work\(value=.*would arrive as "):
        work(value)


@pytest.mark.promise("What an annotation brings back arrives as it was passed")
@pytest.mark.parametrize("value", [value for value in NOT_AS_THEY_ARE if value == value], ids=repr)
def test_what_an_annotation_brings_back_arrives_as_it_was_passed(jobs, value):
    annotation = dict[int, str] if isinstance(value, dict) else type(value)
    seen = []

    async def work(value):
        seen.append(value)

    work.__annotations__["value"] = annotation
    work = background(broker=jobs)(work)
    work(value).result(timeout=5)

    assert seen == [value]
    assert type(seen[0]) is type(value)


@pytest.mark.parametrize("value", [Text("a"), Level.HIGH, None, [1, [2]], {"a": {"b": None}}, 1.5, True], ids=repr)
def test_what_compares_equal_passes(jobs, value):
    @background(broker=jobs)
    async def work(value): ...

    work(value).result(timeout=5)


def test_what_can_not_be_serialised_is_refused(jobs):
    @background(broker=jobs)
    async def work(value): ...

    with pytest.raises(TypeError, match="Pass what JSON knows, such as an id"):
        work(object())


@pytest.mark.promise("Django's choices and lazy strings can be passed to a call that is handed over")
def test_djangos_choices_and_lazy_strings_pass(jobs):
    pytest.importorskip("django")
    from django.conf import settings

    if not settings.configured:
        settings.configure(USE_I18N=False)
    from django.db.models import TextChoices
    from django.utils.functional import lazystr

    class Kind(TextChoices):
        MAIL = "M", "Mail"

    @background(broker=jobs)
    async def work(kind, label, several) -> list:
        return [kind, label, several]

    sent = work(Kind.MAIL, lazystr("Label"), [lazystr("a"), {"b": lazystr("c")}])

    assert sent.result(timeout=5) == ["M", "Label", ["a", {"b": "c"}]]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_broker_is_refused_where_the_function_that_makes_it_is_meant():
    with pytest.raises(TypeError, match="give a function that makes the broker"):
        Taskiq(InMemoryBroker())


def test_a_function_of_main_needs_a_name_for_another_process():
    jobs = Taskiq(InMemoryBroker)

    async def work(): ...

    with pytest.raises(ValueError, match="Give it a name="):
        background(broker=jobs)(work)
    work.__qualname__, work.__module__ = "work", "__main__"
    with pytest.raises(ValueError, match="Give it a name="):
        background(broker=jobs)(work)
    assert callable(background(broker=jobs, name="work")(work))


@pytest.mark.promise("Where an engine keeps no results, asking for one is an error")
def test_without_a_result_back_end_asking_for_the_value_is_an_error():
    from taskiq.result_backends.dummy import DummyResultBackend

    jobs = Taskiq(lambda: InMemoryBroker().with_result_backend(DummyResultBackend()))

    @background(broker=jobs, name="work")
    async def work(): ...

    sent = work()
    with pytest.raises(omniloop.NoResultError, match="keeps no results: give it a result back end"):
        sent.result(timeout=5)
    assert sent.accepted.result(timeout=5) is None


def lossy_brokers():
    redis, nats = pytest.importorskip("taskiq_redis"), pytest.importorskip("taskiq_nats")
    return {
        "list": lambda: redis.ListQueueBroker("redis://127.0.0.1:1"),
        "pubsub": lambda: redis.PubSubBroker("redis://127.0.0.1:1"),
        "streams": lambda: redis.RedisStreamBroker("redis://127.0.0.1:1"),
        "nats": lambda: nats.NatsBroker("nats://127.0.0.1:1"),
    }


@pytest.mark.promise(
    "A broker of NATS whose requests for calls would wait for ever, past a restart of the server, gets a limit"
)
def test_a_pull_without_a_time_limit_gets_one():
    nats = pytest.importorskip("taskiq_nats")

    def broker(**options):
        return Taskiq(lambda: nats.PullBasedJetStreamBroker("nats://127.0.0.1:1", **options)).broker

    assert broker().pull_consume_timeout == 5
    assert broker(pull_consume_timeout=1).pull_consume_timeout == 1


@pytest.mark.promise("A broker that was seen to lose the calls of a killed worker is refused, and another named")
@pytest.mark.parametrize("kind", ["list", "pubsub", "streams", "nats"])
def test_a_broker_that_loses_calls_when_a_worker_is_killed_is_refused_and_another_named(kind):
    make = lossy_brokers()[kind]

    with pytest.raises(ValueError, match=r"Use RabbitMQ .* or NATS JetStream"):
        _ = Taskiq(make).broker
    assert Taskiq(make, lossy=True).broker is not None


def test_two_functions_of_one_name_are_refused(jobs):
    @background(broker=jobs, name="work")
    async def first(): ...

    with pytest.raises(ValueError, match="another function is called 'work' already"):

        @background(broker=jobs, name="work")
        async def second(): ...


def test_a_function_that_is_defined_anew_replaces_itself(jobs):
    for answer in ("old", "new"):

        @background(broker=jobs, name="work")
        async def work(answer=answer) -> str:
            return answer

        assert work().result(timeout=5) == answer


def test_a_function_that_is_defined_after_the_first_call_is_handed_over_too(jobs):
    @background(broker=jobs)
    async def first() -> int:
        return 1

    assert first().result(timeout=5) == 1

    @background(broker=jobs)
    async def second() -> int:
        return 2

    assert second().result(timeout=5) == 2


def test_what_the_annotation_does_not_fit_is_refused_in_one_error_and_no_log(jobs, caplog):
    @background(broker=jobs)
    async def work(number: int): ...

    with pytest.raises(TypeError, match="would arrive as"):
        work((1, 2))
    assert caplog.text == ""


# --- context ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("The span of the worker is the child of the caller's")
def test_the_span_of_the_worker_is_the_child_of_the_callers():
    pytest.importorskip("opentelemetry.sdk")
    pytest.importorskip("psutil")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware

    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    jobs = Taskiq(lambda: InMemoryBroker().with_middlewares(OpenTelemetryMiddleware(tracer_provider=provider)))
    tracer = provider.get_tracer("test")

    @background(broker=jobs, name="traced")
    async def traced() -> None:
        with tracer.start_as_current_span("body"):
            pass

    with tracer.start_as_current_span("view") as view:
        sent = traced()
    sent.result(timeout=5)
    omniloop.flush(timeout=5)

    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["body"].context.trace_id == view.get_span_context().trace_id
    by_id = {span.context.span_id: span for span in spans.values()}
    above, parent = [], spans["body"].parent
    while parent is not None:
        above.append(by_id[parent.span_id].name)
        parent = by_id[parent.span_id].parent
    assert above[-1] == "view"
    assert len(above) >= 2


def transactions():
    import django
    from django.conf import settings

    settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
    django.setup()
    from django.db import transaction
    from taskiq import InMemoryBroker
    from taskiq.result_backends.dummy import DummyResultBackend

    from omniloop import background
    from omniloop.ext.django import go_on_commit
    from omniloop.ext.taskiq import Taskiq

    # No results: nobody asks for any.
    jobs = Taskiq(lambda: InMemoryBroker().with_result_backend(DummyResultBackend()))

    @background(broker=jobs, name="work")
    async def work(what: str) -> None:
        print(what, flush=True)

    for outcome in ("committed", "rolled back"):
        with transaction.atomic():
            transaction.on_commit(lambda: work(f"on_commit, {outcome}"))
            go_on_commit(lambda: work(f"go_on_commit, {outcome}"))
            transaction.set_rollback(outcome == "rolled back")


@pytest.mark.promise(
    "In Django's `transaction.on_commit` and in `go_on_commit` a call is handed over after the commit, and never after a rollback"
)
def test_a_call_that_waits_for_the_commit_is_not_made_after_a_rollback():
    pytest.importorskip("django")

    result = run_child(transactions)

    assert (result.stderr, result.code) == ("", 0)
    assert sorted(result.stdout.splitlines()) == ["go_on_commit, committed", "on_commit, committed"]
