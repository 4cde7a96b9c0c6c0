"""
Exports `Runtime.stats` as OpenTelemetry metrics: observable instruments, which read the runtime only when they are collected.

Tracing needs no code: the span that is current when work is submitted is the parent of the spans in the work, because the work gets a
copy of the caller's context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from omniloop import Runtime, shared_runtime
from omniloop.ext import needs
from omniloop.ext._figures import COUNTERS, GAUGES, TO_FINISH, TO_START

with needs("opentelemetry"):
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter

if TYPE_CHECKING:
    from omniloop import Stats

# Seconds for which the numbers of one look are used. A collection reads all instruments one after the other.
_FRESH: Final = 1.0


class _Looks:
    """
    Reads the numbers of a runtime once for all instruments of a collection.

    OpenTelemetry does not tell when a collection begins, and a look at a runtime with 100,000 tasks takes a while. So each instrument
    uses a look once; the first instrument that asks a second time causes the next look.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._look: tuple[Stats, float, set[str]] | None = None

    def read(self, field: str) -> float:
        look = self._look
        # Not locked: two collections at once may cause one look too many.
        if look is None or field in look[2] or time.monotonic() - look[1] > _FRESH:
            stats = self.runtime.stats()
            look = self._look = stats, time.monotonic(), set()
        look[2].add(field)
        value: float = getattr(look[0], field)
        return value


class _Export:
    """The instruments of one meter, and the runtimes that they read."""

    def __init__(self, meter: Meter) -> None:
        self._looks: list[_Looks] = []
        # Filled only with `configure(timings=True)`.
        self._to_start = meter.create_histogram("omniloop.time_to_start", "s", TO_START)
        self._to_finish = meter.create_histogram("omniloop.time_to_finish", "s", TO_FINISH)
        _make_observable(meter, self._looks)

    def add(self, runtime: Runtime) -> None:
        """Export *runtime*, if it is not exported already."""
        if any(looks.runtime is runtime for looks in self._looks):
            return
        self._looks.append(_Looks(runtime))

        def record(name: str, until_start: float | None, until_finish: float) -> None:
            attributes = {"runtime": runtime.name, "task": name}
            if until_start is not None:
                self._to_start.record(until_start, attributes)
            self._to_finish.record(until_finish, attributes)

        runtime._timing_listeners.append(record)


_exports: WeakKeyDictionary[Meter, _Export] = WeakKeyDictionary()
# For the global provider, which may be set later.
_global_export: list[_Export] = []


def instrument(*runtimes: Runtime, meter: Meter | None = None) -> None:
    """
    Create the instruments `omniloop.…`, with the attribute `runtime`. May be called again: a runtime is exported once.

    Args:
        runtimes: The runtimes to export; by default the one that the whole process shares.
        meter: The meter to create them with; by default one of the global provider.
    """
    if meter is not None:
        export = _exports.get(meter) or _exports.setdefault(meter, _Export(meter))
    else:
        if not _global_export:
            _global_export.append(_Export(get_meter("omniloop")))
        export = _global_export[0]
    for runtime in runtimes or (shared_runtime(),):
        export.add(runtime)


def _make_observable(meter: Meter, exported: list[_Looks]) -> None:
    def read(field: str) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
        def callback(options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(looks.read(field), {"runtime": looks.runtime.name}) for looks in list(exported)]

        return [callback]

    for field, words in COUNTERS.items():
        meter.create_observable_counter(f"omniloop.{field}", read(field), "{task}", words)
    for field, (unit, words) in GAUGES.items():
        meter.create_observable_gauge(f"omniloop.{field}", read(field), unit, words)
