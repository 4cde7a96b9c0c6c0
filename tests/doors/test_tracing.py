"""OpenTelemetry's spans across `go`, and its exit hook beside the drain; with the real SDK."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from children import run_child
from omniloop import Runtime

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[object]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test")
    provider.shutdown()


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime() as runtime:
        yield runtime


@pytest.mark.promise("A span that is open in a view is the parent of the spans in the tasks that it starts")
@pytest.mark.parametrize("submit", ["go", "go, later", "call_soon", "call_later", "call_later, async", "to_thread"])
def test_a_span_open_in_the_view_is_the_parent_of_the_span_in_the_task(runtime, tracer, exporter, submit):
    def function() -> None:
        with tracer.start_as_current_span("task"):
            pass

    async def coroutine(pause: float | None = None) -> None:
        if pause is not None:
            await asyncio.sleep(pause)
        with tracer.start_as_current_span("task"):
            await asyncio.sleep(0)

    submissions: dict[str, Callable[[], object]] = {
        "go": lambda: runtime.go(coroutine()),
        "go, later": lambda: runtime.go(coroutine(0.01)),
        "call_soon": lambda: runtime.call_soon(function),
        "call_later": lambda: runtime.call_later(0.01, function),
        "call_later, async": lambda: runtime.call_later(0.01, coroutine),
        "to_thread": lambda: runtime.to_thread(function),
    }

    with tracer.start_as_current_span("view"):
        task = submissions[submit]()
    # The view is over; the task goes on.
    task.result(timeout=5)

    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["task"].parent.span_id == spans["view"].context.span_id
    assert spans["task"].context.trace_id == spans["view"].context.trace_id


def test_spans_of_tasks_that_run_at_once_are_not_mixed_up(runtime, tracer, exporter):
    async def work(name: str) -> None:
        for step in range(3):
            with tracer.start_as_current_span(f"{name}{step}"):
                await asyncio.sleep(0)

    tasks = []
    for name in "abc":
        with tracer.start_as_current_span(name):
            tasks.append(runtime.go(work(name)))
    for task in tasks:
        task.result(timeout=5)

    spans = {span.name: span for span in exporter.get_finished_spans()}
    for name in "abc":
        for step in range(3):
            assert spans[f"{name}{step}"].parent.span_id == spans[name].context.span_id


def imports_omniloop():
    import omniloop  # noqa: F401


def imports_opentelemetry():
    import opentelemetry.sdk.trace  # noqa: F401


@pytest.mark.promise("Spans of work that is drained at exit are exported, whichever was imported first")
@pytest.mark.parametrize("first", [imports_omniloop, imports_opentelemetry])
def test_spans_of_draining_work_are_exported_at_exit(first):
    """Whichever was imported first: the early drain is before all atexit handlers."""

    def program():
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

        trace.set_tracer_provider(TracerProvider())
        # The batch is far from full and its time far off: only the exit hook, or a flush, exports it.
        trace.get_tracer_provider().add_span_processor(
            BatchSpanProcessor(
                ConsoleSpanExporter(formatter=lambda span: span.name + "\n"), schedule_delay_millis=60_000
            )
        )
        from omniloop import go

        async def work():
            await asyncio.sleep(0.2)
            with trace.get_tracer("test").start_as_current_span("at exit"):
                await asyncio.sleep(0.05)

        go(work())

    result = run_child(first, program)

    assert result[:3] == ("at exit\n", "", 0)
