"""Exports `Runtime.stats` to prometheus_client: a collector, which reads the runtimes only when it is scraped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from omniloop import Runtime, shared_runtime
from omniloop.ext import needs

from .._stats import BOUNDS, Stats
from ._figures import COUNTERS, GAUGES, TO_FINISH, TO_START

with needs("prometheus"):
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric


class Collector:
    """
    The numbers of runtimes, as `omniloop_…` metrics with the label `runtime`: ``REGISTRY.register(Collector())``.

    Args:
        runtimes: The runtimes to export; by default the one that the whole process shares.
    """

    def __init__(self, *runtimes: Runtime) -> None:
        self._runtimes = runtimes or (shared_runtime(),)

    def collect(self) -> Iterator[Metric]:
        """Read the numbers of the runtimes. Called for each scrape."""
        # Only one look at each runtime, which takes a while where many tasks are pending.
        looks = [(runtime.name, runtime.stats()) for runtime in self._runtimes]
        for field, words in COUNTERS.items():
            yield _filled(CounterMetricFamily(f"omniloop_{field}", words, labels=["runtime"]), field, looks)
        for field, (unit, words) in GAUGES.items():
            name = f"omniloop_{field}" + ("_seconds" if unit == "s" else "")
            yield _filled(GaugeMetricFamily(name, words, labels=["runtime"]), field, looks)
        # How long work took, by its name, for runtimes with the setting `timings`.
        for field, words in (("to_start", TO_START), ("to_finish", TO_FINISH)):
            metric = HistogramMetricFamily(f"omniloop_time_{field}_seconds", words, labels=["runtime", "task"])
            for runtime_name, stats in looks:
                for name, timing in (stats.timings or {}).items():
                    histogram = getattr(timing, field)
                    up_to = zip([*map(str, BOUNDS), "+Inf"], accumulate(histogram.counts), strict=True)
                    metric.add_metric([runtime_name, name], list(up_to), histogram.sum)
            if metric.samples:
                yield metric


def _filled(
    metric: CounterMetricFamily | GaugeMetricFamily, field: str, looks: list[tuple[str, Stats]]
) -> CounterMetricFamily | GaugeMetricFamily:
    for runtime_name, stats in looks:
        metric.add_metric([runtime_name], getattr(stats, field))
    return metric
