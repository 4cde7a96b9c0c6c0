"""
Exports `Runtime.stats` as OpenTelemetry metrics: observable instruments, which look only when they are read.

Traces need nothing: a span that is current where work is submitted is the parent of the spans in it, as for all context variables.
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

# Seconds for which a look serves the instruments that have not read it: a collection reads all of them, one after the other.
_FRESH: Final = 1.0


class _Looks:
    """
    The numbers of a runtime: one look for all instruments of a collection.

    OpenTelemetry does not say where a collection begins, and a look at 100,000 tasks takes its time. So a look serves each instrument
    once; the first that asks again begins the next one.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._look: tuple[Stats, float, set[str]] | None = None

    def read(self, field: str) -> float:
        look = self._look
        # Two collections at once may look once more than it takes.
        if look is None or field in look[2] or time.monotonic() - look[1] > _FRESH:
            stats = self.runtime.stats()
            look = self._look = stats, time.monotonic(), set()
        look[2].add(field)
        value: float = getattr(look[0], field)
        return value


class _Export:
    """What one meter exports: its instruments, and the runtimes that they read."""

    def __init__(self, meter: Meter) -> None:
        self._looks: list[_Looks] = []
        # By what `configure(timings=True)` measures; without it they stay empty.
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
# By the global provider, which may be set later.
_global_export: list[_Export] = []


def instrument(*runtimes: Runtime, meter: Meter | None = None) -> None:
    """
    Make `omniloop.…` instruments, with the attribute `runtime`; once, however often this is called.

    Args:
        runtimes: Which; by default the one that the whole process shares.
        meter: Of the provider that exports them; by default that of the global one.
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
