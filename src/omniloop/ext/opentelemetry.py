"""
Exports `Runtime.stats` as OpenTelemetry metrics: observable instruments, which look only when they are read.

Traces need nothing: a span that is current where work is submitted is the parent of the spans in it, as for all context variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter

from omniloop import Runtime, shared_runtime


def instrument(*runtimes: Runtime, meter: Meter | None = None) -> None:
    """
    Make `omniloop.…` instruments, with the attribute `runtime`.

    Args:
        runtimes: Which; by default the one that the whole process shares.
        meter: Of the provider that exports them; by default that of the global one.
    """
    meter = meter or get_meter("omniloop")
    watched = runtimes or (shared_runtime(),)

    def read(field: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def callback(options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(getattr(runtime.stats(), field), {"runtime": runtime.name}) for runtime in watched]

        return callback

    counters = {
        "accepted": "Submissions that were accepted.",
        "finished": "Work that is done, whatever came of it.",
        "failed": "Work that ended with an error.",
        "cancelled": "Work that ended by cancellation.",
        "dropped": "Submissions that the bounds dropped.",
        "handed_over": "Calls that their engine has taken.",
        "refused": "Calls for an engine that were refused, because too many were on their way.",
    }
    for field, description in counters.items():
        meter.create_observable_counter(f"omniloop.{field}", [read(field)], "{task}", description)
    gauges = {
        "running": ("{task}", "Work that is started and not done."),
        "scheduled": ("{task}", "Calls that are not due yet."),
        "queue_depth": ("{task}", "Work that is accepted and not started."),
        "handing_over": ("{call}", "Calls that are on their way to an engine."),
        "loop_lag": ("s", "How late the loop was when last asked."),
        "drain_time": ("s", "How long the last drain took."),
    }
    for field, (unit, description) in gauges.items():
        meter.create_observable_gauge(f"omniloop.{field}", [read(field)], unit, description)
    # By what `configure(timings=True)` measures; without it they stay empty.
    to_start = meter.create_histogram("omniloop.time_to_start", "s", "From the submission to the start.")
    to_finish = meter.create_histogram(
        "omniloop.time_to_finish", "s", "From the submission to the end, whatever came of it."
    )

    def listener(runtime: Runtime) -> Callable[[str, float | None, float], None]:
        def record(name: str, until_start: float | None, until_finish: float) -> None:
            attributes = {"runtime": runtime.name, "task": name}
            if until_start is not None:
                to_start.record(until_start, attributes)
            to_finish.record(until_finish, attributes)

        return record

    for runtime in watched:
        runtime._timing_listeners.append(listener(runtime))
