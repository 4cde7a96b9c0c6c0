"""
Measure omniloop beside what a user would pick instead: ``python tests/benchmarks/run.py``.

In one process per event loop all contenders take turns, round by round, so that what else the machine does hits all alike.
Shown are the median of the rounds, and the calm quarter: what the machine adds comes and goes, what the code costs stays. Ratios are
those of the calm quarters.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

HERE = Path(__file__).parent
# For --quick: seconds for a measure, once it has had so many rounds.
BUDGET = 4.0
ENOUGH = 3
CHARTS = HERE.parents[1] / "docs" / "explanation"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], action="append", help="by default both, if there")
    parser.add_argument("--only", default="", help="measures whose name contains this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="few rounds, about a minute for each loop")
    parser.add_argument("--check", action="store_true", help="fail where a ratio is below its floor")
    parser.add_argument(
        "--retries", type=int, default=0, help="measure again what is below its floor: noise goes, slowness stays"
    )
    parser.add_argument("--plot", action="store_true", help="draw the charts of the page on speed")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds = min(options.rounds, 5)
    if options.here:
        print(json.dumps(measure(options)))
        return 0
    loops = options.loop or ["asyncio", *(["uvloop"] if _has_uvloop() else [])]
    below: list[str] = []
    first: dict[str, Any] = {}
    for loop in loops:
        results = in_child(loop, options.rounds, options.only, options.quick)
        first = first or results
        show(loop, results)
        if options.check:
            below += check(loop, results, options)
    if options.plot:
        from chart import draw

        draw(CHARTS, first)
    for line in below:
        print(line, file=sys.stderr)
    return 1 if below else 0


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True


def in_child(loop: str, rounds: int, only: str, quick: bool) -> dict[str, Any]:
    """Measure in a process of its own, on *loop*."""
    command = [sys.executable, str(HERE / "run.py"), "--here", "--loop", loop, "--rounds", str(rounds), "--only", only]
    env = {**os.environ, "OMNILOOP_LOOP": loop, "PYTHONPATH": sys.path[0]}
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])], env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    *remarks, last = done.stdout.strip().splitlines()
    for remark in remarks:
        print(remark)
    results: dict[str, Any] = json.loads(last)
    return results


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take all samples; by measure and contender: seconds, and the ratio to ours."""
    from measures import OURS, calm, everything, median, percentile

    import omniloop

    make_loop = asyncio.new_event_loop
    if options.loop == ["uvloop"]:
        import uvloop

        make_loop = uvloop.new_event_loop
    omniloop.run(asyncio.sleep(0))
    results: dict[str, Any] = {}
    for measure in everything(make_loop, options.quick):
        if options.only not in measure.name:
            continue
        began = time.perf_counter()
        for take in measure.contenders.values():
            # Warm: threads are started, caches filled.
            take()
        place(measure.cores)
        samples: dict[str, list[list[float]]] = {name: [] for name in measure.contenders}
        names = list(measure.contenders)
        for turn in range(max(1, round(options.rounds * measure.rounds))):
            if options.quick and turn >= ENOUGH and time.perf_counter() - began > BUDGET:
                break
            # Another one goes first each time.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                samples[name].append(measure.contenders[name]())
        middles = {name: [median(costs) for costs in them] for name, them in samples.items()}
        # Of each round, and not of all: a pause of the machine is in few rounds.
        tails = {name: [percentile(costs, 0.99) for costs in them] for name, them in samples.items()}
        results[measure.name] = {
            name: {
                "unit": measure.unit,
                "median": median(middles[name]),
                "best": calm(middles[name]),
                "ratio": calm(middles[name]) / calm(middles[OURS]),
                "tail": calm(tails[name]) if measure.tail else None,
                "tail ratio": calm(tails[name]) / calm(tails[OURS]),
            }
            for name in samples
        }
        print(f"{measure.name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return results


def place(cores: str) -> None:
    """
    Put the calling thread on one core and all others on another, or all on one; or let all go anywhere.

    Left alone the kernel does the one or the other, and stays with it for seconds: a round trip takes 15 to 30 µs on one
    core and 40 to 60 on two, which says nothing about the contenders.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = _CORES or sorted(os.sched_getaffinity(0))
    _CORES[:] = allowed
    if len(allowed) < 2:
        return
    mine, other = {allowed[0]}, {allowed[0] if cores == "together" else allowed[1]}
    if cores == "anywhere":
        mine = other = set(allowed)
    for entry in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(entry), mine if int(entry) == os.getpid() else other)
        except ProcessLookupError:
            # It ended meanwhile.
            pass


_CORES: list[int] = []


def show(loop: str, results: dict[str, Any]) -> None:
    """Print one table."""
    machine = f"CPython {platform.python_version()}, {loop}, {os.cpu_count()} cores"
    print(f"\n{machine}\n{'measure':35} {'contender':28} {'median':>10} {'calm':>10} {'p99':>10} {'ratio':>7}")
    for name, row in results.items():
        for contender, it in row.items():
            scale = {"µs": 1e6, "ms": 1e3, "bytes": 1}[it["unit"]]
            tail = "" if it["tail"] is None else f"{it['tail'] * scale:.1f}"
            print(
                f"{name:35} {contender:28} {it['median'] * scale:10.2f} {it['best'] * scale:10.2f} {tail:>10} {it['ratio']:7.2f}"
                f"  {it['unit']}"
            )
            name = ""


def ratio(results: dict[str, Any], measure: str, against: str) -> float | None:
    """How many times cheaper omniloop was; None if that was not measured."""
    from floors import BEST_PEER, RCTS

    tail = measure.endswith(", p99")
    row = results.get(measure.removesuffix(", p99"))
    if row is None:
        return None
    if against == BEST_PEER:
        rivals = [name for name in row if name not in ("omniloop", RCTS) and not name.startswith("(")]
    else:
        rivals = [against]
    return min((row[name]["tail ratio" if tail else "ratio"] for name in rivals), default=None)


def check(loop: str, results: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Compare with the floors; what is below them is measured again, as often as `--retries` says."""
    from floors import FLOORS, held

    below = []
    for floor in FLOORS:
        least = held(floor, loop)
        got = ratio(results, floor.measure, floor.against)
        for _ in range(options.retries):
            if got is None or got >= least:
                break
            again = in_child(loop, options.rounds, floor.measure.removesuffix(", p99"), options.quick)
            got = max(got, ratio(again, floor.measure, floor.against) or 0)
        if got is None:
            continue
        verdict = "ok" if got >= least else "BELOW"
        goal = "" if floor.goal is None else f", goal {floor.goal:g}"
        instead = "" if least == floor.floor else f" instead of {floor.floor:.2f}"
        print(f"{verdict:5} {floor.measure}: {got:.2f} times {floor.against} (floor {least:.2f}{instead}{goal})")
        if got < least:
            below.append(f"{loop}: {floor.measure}: {got:.2f} times {floor.against}, and {least:.2f} is the floor")
    return below


if __name__ == "__main__":
    sys.exit(main())
