"""Computes the figures that the live views plot; rates come from the difference between two answers."""

from __future__ import annotations

from typing import Any, Final

# The name and the unit of each figure.
FIGURES: Final = (
    ("finished", "/s"),
    ("failed", "/s"),
    ("running", ""),
    ("queued", ""),
    ("lag", " ms"),
    ("busy workers", ""),
)


class Figures:
    """Makes figures from answers, and remembers the last answer for the rates."""

    def __init__(self) -> None:
        self._last: dict[str, Any] | None = None

    def of(self, snapshot: dict[str, Any]) -> tuple[float, ...]:
        """The values of `FIGURES`, summed over all runtimes; for the lag, the largest."""
        last, self._last = self._last, snapshot
        seconds = snapshot["time"] - last["time"] if last is not None else 0.0
        runtimes = snapshot["runtimes"]

        def total(of: dict[str, Any], name: str) -> float:
            return float(sum(runtime["stats"][name] for runtime in of["runtimes"]))

        def rate(name: str) -> float:
            if last is None or seconds <= 0:
                return 0.0
            return round(max(0.0, total(snapshot, name) - total(last, name)) / seconds, 1)

        lag = max(
            (max(runtime["stats"]["loop_lag"], (runtime["blocked"] or {"for": 0.0})["for"]) for runtime in runtimes),
            default=0.0,
        )
        workers = [runtime["workers"] for runtime in runtimes if runtime["workers"] is not None]
        return (
            rate("finished"),
            rate("failed"),
            total(snapshot, "running"),
            total(snapshot, "queue_depth"),
            round(lag * 1000, 1),
            sum(max(0, worker["workers"] - worker["idle"]) for worker in workers),
        )
