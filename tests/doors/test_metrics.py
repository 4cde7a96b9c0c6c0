"""`omniloop.ext.prometheus` and `omniloop.ext.opentelemetry`, with the real libraries."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from omniloop import Runtime
from omniloop._stats import BOUNDS


@pytest.fixture
def busy() -> Iterator[Runtime]:
    """Three accepted: one done, one failed, one that runs."""

    async def work() -> None:
        pass

    with Runtime(name="busy", on_error=lambda failure: None) as runtime:
        runtime.go(work())
        runtime.call_soon(int, "x")
        runtime.flush(timeout=5)
        runtime.go(asyncio.sleep(60), daemon=True)
        runtime.run(work(), timeout=5)
        yield runtime


@pytest.mark.promise("Prometheus scrapes the numbers of now")
def test_prometheus_scrapes_the_numbers_of_now(busy):
    client = pytest.importorskip("prometheus_client")
    from omniloop.ext.prometheus import Collector

    registry = client.CollectorRegistry()
    registry.register(Collector(busy))

    text = client.generate_latest(registry).decode()
    for line in (
        'omniloop_accepted_total{runtime="busy"} 4.0',
        'omniloop_finished_total{runtime="busy"} 3.0',
        'omniloop_failed_total{runtime="busy"} 1.0',
        'omniloop_cancelled_total{runtime="busy"} 0.0',
        'omniloop_dropped_total{runtime="busy"} 0.0',
        'omniloop_running{runtime="busy"} 1.0',
        'omniloop_scheduled{runtime="busy"} 0.0',
        'omniloop_queue_depth{runtime="busy"} 0.0',
        'omniloop_drain_time_seconds{runtime="busy"} 0.0',
        "# TYPE omniloop_accepted_total counter",
        "# TYPE omniloop_running gauge",
    ):
        assert line in text.splitlines()
    assert 'omniloop_loop_lag_seconds{runtime="busy"}' in text

    busy.call_soon(int)
    busy.flush(timeout=5)
    assert registry.get_sample_value("omniloop_accepted_total", {"runtime": "busy"}) == 5


def test_prometheus_collects_several_runtimes_and_by_default_the_shared_one(busy):
    client = pytest.importorskip("prometheus_client")
    from omniloop.ext.prometheus import Collector

    with Runtime(name="other") as other:
        registry = client.CollectorRegistry()
        registry.register(Collector(busy, other))

        assert registry.get_sample_value("omniloop_accepted_total", {"runtime": "busy"}) == 4
        assert registry.get_sample_value("omniloop_accepted_total", {"runtime": "other"}) == 0
    registry = client.CollectorRegistry()
    registry.register(Collector())
    assert registry.get_sample_value("omniloop_accepted_total", {"runtime": "omniloop"}) is not None


@pytest.mark.promise("OpenTelemetry reads them")
def test_opentelemetry_reads_the_numbers_of_now(busy):
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from omniloop.ext.opentelemetry import instrument

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    instrument(busy, meter=provider.get_meter("test"))
    data = reader.get_metrics_data()
    provider.shutdown()

    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    values = {metric.name: metric.data.data_points[0].value for metric in metrics}
    lag = values.pop("omniloop.loop_lag")
    assert lag >= 0
    assert values == {
        "omniloop.accepted": 4,
        "omniloop.finished": 3,
        "omniloop.failed": 1,
        "omniloop.cancelled": 0,
        "omniloop.dropped": 0,
        "omniloop.running": 1,
        "omniloop.scheduled": 0,
        "omniloop.queue_depth": 0,
        "omniloop.drain_time": 0.0,
        "omniloop.handed_over": 0,
        "omniloop.handing_over": 0,
        "omniloop.refused": 0,
    }
    assert all(metric.data.data_points[0].attributes == {"runtime": "busy"} for metric in metrics)
    assert [type(metric.data).__name__ for metric in metrics if metric.name == "omniloop.accepted"] == ["Sum"]


@pytest.fixture
def measured():
    """Ten of one name: one that never starts, one that takes its time, and eight that are done at once."""

    async def work(seconds: float = 0) -> None:
        await asyncio.sleep(seconds)

    with Runtime(name="measured", timings=True) as runtime:
        for _ in range(8):
            runtime.run(work())
        runtime.run(work(0.06))
        blocked, go_on = threading.Event(), threading.Event()
        runtime.call_soon(lambda: (blocked.set(), go_on.wait(5)))
        assert blocked.wait(5)
        runtime.go(work()).cancel()
        go_on.set()
        runtime.flush(timeout=5)
        yield runtime


@pytest.mark.promise(
    "With `timings` on, it is measured how long work takes to start and to finish, by name",
    section="Metrics and tracing",
)
def test_stats_tells_how_long_work_took_to_start_and_to_finish(measured):
    timings = {name.rpartition(".")[2]: timing for name, timing in measured.stats().timings.items()}

    assert sorted(timings) == ["<lambda>", "work"]
    work = timings["work"]
    assert (sum(work.to_start.counts), sum(work.to_finish.counts)) == (9, 10)
    # None of the others may seem to have taken less than it slept.
    assert work.to_finish.sum > 0.06
    assert work.to_start.sum <= work.to_finish.sum
    assert sum(count for bound, count in zip(BOUNDS, work.to_finish.counts) if bound <= 0.05) <= 9


def test_nothing_is_measured_unless_it_is_switched_on_and_it_can_be_at_any_time(runtime):
    runtime.run(asyncio.sleep(0))
    assert runtime.stats().timings is None

    runtime.configure(timings=True)
    runtime.run(asyncio.sleep(0))
    runtime.to_thread(int).result(timeout=5)
    assert {name: sum(timing.to_start.counts) for name, timing in runtime.stats().timings.items()} == {
        "sleep": 1,
        "int": 1,
    }

    runtime.configure(timings=False)
    runtime.run(asyncio.sleep(0))
    assert sum(runtime.stats().timings["sleep"].to_start.counts) == 1


def test_names_without_number_are_one_after_the_hundredth():
    with Runtime(timings=True) as runtime:
        for number in range(150):
            runtime.go(asyncio.sleep(0), name=f"job {number}")
        runtime.flush(timeout=5)
        timings = runtime.stats().timings

    assert len(timings) == 101
    assert sum(timings["(other)"].to_finish.counts) == 50


def test_prometheus_scrapes_the_histograms(measured):
    client = pytest.importorskip("prometheus_client")
    from omniloop.ext.prometheus import Collector

    registry = client.CollectorRegistry()
    registry.register(Collector(measured))
    (name,) = [name for name in measured.stats().timings if name.endswith("work")]
    labels = {"runtime": "measured", "task": name}

    assert registry.get_sample_value("omniloop_time_to_start_seconds_count", labels) == 9
    assert registry.get_sample_value("omniloop_time_to_finish_seconds_count", labels) == 10
    assert registry.get_sample_value("omniloop_time_to_finish_seconds_bucket", {**labels, "le": "+Inf"}) == 10
    assert registry.get_sample_value("omniloop_time_to_finish_seconds_bucket", {**labels, "le": "0.05"}) <= 9
    assert registry.get_sample_value("omniloop_time_to_finish_seconds_sum", labels) > 0.06


def test_opentelemetry_records_the_histograms():
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from omniloop.ext.opentelemetry import instrument

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with Runtime(name="measured", timings=True) as runtime:
        instrument(runtime, meter=provider.get_meter("test"))
        for _ in range(3):
            runtime.run(asyncio.sleep(0))
        data = reader.get_metrics_data()
    provider.shutdown()

    metrics = {metric.name: metric.data for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    (point,) = metrics["omniloop.time_to_finish"].data_points
    assert (point.count, point.attributes) == (3, {"runtime": "measured", "task": "sleep"})
    assert metrics["omniloop.time_to_start"].data_points[0].count == 3


@pytest.mark.promise("A collection looks once at each runtime, and instrumenting twice is the same as once")
def test_opentelemetry_looks_once_a_collection_and_a_runtime_is_exported_once(busy, monkeypatch):
    """Each of 13 instruments looked for itself; and a second call exported all again."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from omniloop.ext.opentelemetry import instrument

    looks = []

    def stats(runtime, original=Runtime.stats):
        looks.append(runtime.name)
        return original(runtime)

    monkeypatch.setattr(Runtime, "stats", stats)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("test")
    busy.configure(timings=True)
    with Runtime(name="other") as other:
        instrument(busy, meter=meter)
        instrument(busy, other, busy, meter=meter)
        busy.call_soon(int)
        busy.flush(timeout=5)

        def read():
            metrics = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
            return [(metric.name, point) for metric in metrics for point in metric.data.data_points]

        first = read()
        assert sorted(looks) == ["busy", "other"]
        busy.call_soon(int)
        busy.flush(timeout=5)
        second = read()
        assert sorted(looks) == ["busy", "busy", "other", "other"]
    provider.shutdown()

    def accepted(points):
        return [point.value for name, point in points if name == "omniloop.accepted"]

    assert (accepted(first), accepted(second)) == ([5, 0], [6, 0])
    # By what was measured: one call each.
    assert [point.count for name, point in second if name == "omniloop.time_to_finish"] == [2]


def test_prometheus_looks_once_a_scrape(busy, monkeypatch):
    pytest.importorskip("prometheus_client")
    from omniloop.ext.prometheus import Collector

    looks = []

    def stats(runtime, original=Runtime.stats):
        looks.append(runtime.name)
        return original(runtime)

    monkeypatch.setattr(Runtime, "stats", stats)

    list(Collector(busy).collect())

    assert looks == ["busy"]
