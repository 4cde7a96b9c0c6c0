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


def figures(snapshot: dict[str, Any], last: dict[str, Any] | None) -> tuple[float, ...]:
    """The values of `FIGURES`, summed over all runtimes; for the lag, the largest. *last* is the answer before, if there was one."""
    seconds = snapshot["time"] - last["time"] if last is not None else 0.0
    runtimes = snapshot["runtimes"]

    def total(name: str, of: dict[str, Any] = snapshot) -> float:
        return float(sum(runtime["stats"][name] for runtime in of["runtimes"]))

    def rate(name: str) -> float:
        return (
            round(max(0.0, total(name) - total(name, last)) / seconds, 1) if last is not None and seconds > 0 else 0.0
        )

    lags = [max(each["stats"]["loop_lag"], (each["blocked"] or {"for": 0.0})["for"]) for each in runtimes]
    workers = [each["workers"] for each in runtimes if each["workers"] is not None]
    return (
        rate("finished"),
        rate("failed"),
        total("running"),
        total("queue_depth"),
        round(max(lags, default=0.0) * 1000, 1),
        sum(max(0, each["workers"] - each["idle"]) for each in workers),
    )
