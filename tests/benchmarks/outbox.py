"""
An outbox beside huey's SQLite and a plain commit each, from one thread and from 16: `python tests/benchmarks/outbox.py [rounds]`.

No server is needed. `OMNILOOP_SYNC_US=1000` makes a sync of the disk take that long, by a library that gcc makes; with `PYTHONPATH` it
measures another build. The cases take turns, so that a busy machine is busy for all of them.
"""

import asyncio
import importlib.util
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import omniloop
from omniloop import background

Case = Callable[[int], object]

# A sync that takes as long as told, and does nothing: what a disk of another kind would cost.
SLOW = """
#include <stdlib.h>
#include <time.h>
static int nap(void) { long us = atol(getenv("OMNILOOP_SYNC_US")); struct timespec t = {us / 1000000, us % 1000000 * 1000}; return nanosleep(&t, 0); }
int fsync(int fd) { return nap(); }
int fdatasync(int fd) { return nap(); }
"""


class Nobody(omniloop.Engine):
    """Takes nothing: what is measured is the writing down alone."""

    def bind(self, function): ...

    def pack(self, function, call_id, args, kwargs):
        return [call_id, list(args), kwargs]

    async def send(self, function, parcel):
        await asyncio.sleep(3600)

    async def fetch(self, function, call_id, timeout): ...


def outboxes(folder: Path) -> dict[str, tuple[Case, Callable[[], object]]]:
    from omniloop.ext.outbox import Outbox

    here = Outbox(folder / "here.sqlite", waiting=10**6)
    run = background(broker=here, name="work")(lambda number: None)

    def until_all_ran() -> None:
        # Not a flush, which would wait for what nobody takes.
        while here._way()._open:
            time.sleep(0.001)

    found: dict[str, tuple[Case, Callable[[], object]]] = {"outbox, and the calls run here": (run, until_all_ran)}
    kept = background(broker=Outbox(folder / "kept.sqlite", Nobody(), waiting=10**6), name="work")(lambda number: None)
    found["outbox, enqueue only"] = kept, lambda: None
    plain = sqlite3.connect(folder / "plain.sqlite", isolation_level=None, check_same_thread=False)
    plain.execute("PRAGMA journal_mode = WAL")
    plain.execute("PRAGMA synchronous = FULL")
    plain.execute("CREATE TABLE calls (id TEXT, function TEXT, parcel TEXT)")
    lock = threading.Lock()

    def insert(number: int) -> None:
        with lock:
            plain.execute("INSERT INTO calls VALUES (?, 'work', ?)", (uuid.uuid4().hex, json.dumps([[number], {}])))

    found["a plain commit each"] = insert, lambda: None
    if importlib.util.find_spec("huey"):
        from huey import SqliteHuey

        found["huey's SQLite with fsync"] = (
            SqliteHuey(filename=str(folder / "huey.sqlite"), fsync=True).task()(lambda number: None),
            lambda: None,
        )
    return found


def side_by_side(rounds: int) -> None:
    """Calls a second, and the processor time of a call: medians of rounds that take turns."""
    calls = 1600
    with tempfile.TemporaryDirectory() as folder:
        if "OMNILOOP_SYNC_US" in os.environ and "LD_PRELOAD" not in os.environ:
            library, source = Path(folder) / "slow.so", Path(folder) / "slow.c"
            source.write_text(SLOW)
            subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
            subprocess.run([sys.executable, *sys.argv], env={**os.environ, "LD_PRELOAD": str(library)}, check=True)
            return
        found = outboxes(Path(folder))
        results: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(rounds):
            for threads in (1, 16):
                for name, (call, wait) in found.items():
                    each = [
                        threading.Thread(target=lambda call=call, n=calls // threads: [call(at) for at in range(n)])
                        for _ in range(threads)
                    ]
                    begun, spent = time.perf_counter(), time.process_time()
                    for thread in each:
                        thread.start()
                    for thread in each:
                        thread.join()
                    wait()
                    results.setdefault((name, threads), []).append(
                        (calls / (time.perf_counter() - begun), (time.process_time() - spent) / calls * 1e6)
                    )
        print("| | calls a second, 1 / 16 threads | processor time of a call, µs, 1 / 16 threads |")
        print("|---|---|---|")
        for name in found:
            (one, spent), (many, spent_many) = (
                map(statistics.median, zip(*results[name, threads], strict=True)) for threads in (1, 16)
            )
            print(f"| {name} | {one:,.0f} / {many:,.0f} | {spent:.0f} / {spent_many:.0f} |", flush=True)
        # Without the calls that nobody takes.
        os._exit(0)


if __name__ == "__main__":
    side_by_side(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
