"""`omniloop.ext.prometheus` and `omniloop.ext.opentelemetry`, with the real libraries."""

import asyncio
from collections.abc import Iterator

import pytest

from omniloop import Runtime


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
