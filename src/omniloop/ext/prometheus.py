"""Exports `Runtime.stats` to prometheus_client: a collector, which looks only when it is scraped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from omniloop import Runtime, shared_runtime
from omniloop.ext import needs

from .._stats import BOUNDS, Stats

with needs("prometheus"):
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric


class Collector:
    """
    The numbers of runtimes, as `omniloop_…` metrics with the label `runtime`: ``REGISTRY.register(Collector())``.

    Args:
        runtimes: Which; by default the one that the whole process shares.
    """

    def __init__(self, *runtimes: Runtime) -> None:
        self._runtimes = runtimes or (shared_runtime(),)

    def collect(self) -> Iterator[Metric]:
        """Look at the runtimes now; called for each scrape."""
        labels = ["runtime"]
        # By field of `Stats`.
        counters = {
            "accepted": CounterMetricFamily("omniloop_accepted", "Submissions that were accepted.", labels=labels),
            "finished": CounterMetricFamily(
                "omniloop_finished", "Work that is done, whatever came of it.", labels=labels
            ),
            "failed": CounterMetricFamily("omniloop_failed", "Work that ended with an error.", labels=labels),
            "cancelled": CounterMetricFamily("omniloop_cancelled", "Work that ended by cancellation.", labels=labels),
            "handed_over": CounterMetricFamily(
                "omniloop_handed_over", "Calls that their engine has taken.", labels=labels
            ),
            "refused": CounterMetricFamily(
                "omniloop_refused",
                "Calls for an engine that were refused, because too many were on their way.",
                labels=labels,
            ),
            "dropped": CounterMetricFamily("omniloop_dropped", "Submissions that the bounds dropped.", labels=labels),
        }
        gauges = {
            "running": GaugeMetricFamily("omniloop_running", "Work that is started and not done.", labels=labels),
            "scheduled": GaugeMetricFamily("omniloop_scheduled", "Calls that are not due yet.", labels=labels),
            "queue_depth": GaugeMetricFamily(
                "omniloop_queue_depth", "Work that is accepted and not started.", labels=labels
            ),
            "loop_lag": GaugeMetricFamily(
                "omniloop_loop_lag_seconds", "How late the loop was when last asked.", labels=labels
            ),
            "handing_over": GaugeMetricFamily(
                "omniloop_handing_over", "Calls that are on their way to an engine.", labels=labels
            ),
            "drain_time": GaugeMetricFamily(
                "omniloop_drain_time_seconds", "How long the last drain took.", labels=labels
            ),
        }
        # One look at each: it takes its time where much is pending.
        looks = [(runtime.name, runtime.stats()) for runtime in self._runtimes]
        for runtime_name, stats in looks:
            for name, metric in (counters | gauges).items():
                metric.add_metric([runtime_name], getattr(stats, name))
        yield from counters.values()
        yield from gauges.values()
        yield from _histograms(looks)


def _histograms(looks: list[tuple[str, Stats]]) -> Iterator[Metric]:
    """How long work took, by name, of the runtimes whose setting `timings` is on."""
    labels = ["runtime", "task"]
    to_start = HistogramMetricFamily(
        "omniloop_time_to_start_seconds", "From the submission to the start.", labels=labels
    )
    to_finish = HistogramMetricFamily(
        "omniloop_time_to_finish_seconds", "From the submission to the end, whatever came of it.", labels=labels
    )
    for runtime_name, stats in looks:
        for name, timing in (stats.timings or {}).items():
            for metric, histogram in ((to_start, timing.to_start), (to_finish, timing.to_finish)):
                up_to = zip([*map(str, BOUNDS), "+Inf"], accumulate(histogram.counts), strict=True)
                metric.add_metric([runtime_name, name], list(up_to), histogram.sum)
    yield from (metric for metric in (to_start, to_finish) if metric.samples)
