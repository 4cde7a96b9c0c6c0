"""Draws docs/explanation/speed.svg: the cost of a task among 1 to a million, and a round trip beside the peers."""

import asyncio
import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

COUNTS = [10**power for power in range(7)]
# A million of them take half a minute each, and tell nothing new.
FEWER = 100_000


async def _noop() -> None:
    pass


def scale() -> dict[str, list[tuple[int, float]]]:
    """Seconds a task, until all are done, by their number; the best of a few, because the machine is shared."""
    import omniloop

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def ours(count: int) -> None:
        for _ in range(count):
            omniloop.go(_noop())
        omniloop.flush()

    def stdlib(count: int) -> None:
        for _ in range(count - 1):
            asyncio.run_coroutine_threadsafe(_noop(), loop)
        asyncio.run_coroutine_threadsafe(_noop(), loop).result()

    def sleeping(count: int) -> None:
        tasks = [omniloop.go(asyncio.sleep(3600)) for _ in range(count)]
        for task in tasks:
            task.cancel()
        omniloop.flush()

    lines = {}
    for name, run, most in (
        ("omniloop: go", ours, COUNTS[-1]),
        ("run_coroutine_threadsafe", stdlib, FEWER),
        ("omniloop: start a sleeper, cancel it", sleeping, FEWER),
    ):
        run(1)
        lines[name] = [
            (count, min(_seconds(run, count) for _ in range(_times(count)))) for count in COUNTS if count <= most
        ]
    return lines


def _times(count: int) -> int:
    return max(2, min(50, 100_000 // count))


def _seconds(run: Any, count: int) -> float:
    gc.collect()
    start = time.perf_counter()
    run(count)
    return (time.perf_counter() - start) / count


def draw(path: Path, results: dict[str, Any], lines: dict[str, list[tuple[int, float]]]) -> None:
    """Write the chart."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    # The same bytes for the same figures.
    mpl.rcParams["svg.hashsalt"] = "omniloop"
    mpl.rcParams["font.size"] = 9
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for name, points in lines.items():
        left.plot(
            [count for count, _ in points], [cost * 1e6 for _, cost in points], marker="o", markersize=3, label=name
        )
    left.set(
        xscale="log",
        yscale="log",
        xlabel="tasks",
        ylabel="µs a task, until all are done",
        title="Cost of a task among many",
    )
    left.legend(fontsize=7)
    for axes, measure, title in (
        (middle, "submit", "Submit and forget a coroutine"),
        (right, "round trip, one core", "Run a coroutine and wait, one core"),
    ):
        row = sorted(results[measure].items(), key=lambda item: item[1]["best"], reverse=True)
        bars = axes.barh(
            [name.strip("()") for name, _ in row],
            [it["best"] * 1e6 for _, it in row],
            color=["C0" if name == "omniloop" else "0.8" if name.startswith("(") else "C1" for name, _ in row],
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axes.set(xscale="log", xlabel="µs", title=title)
        axes.margins(x=0.15)
    figure.savefig(path, metadata={"Date": None})
    print(f"{path.stat().st_size // 1024} KiB", os.path.basename(path))
