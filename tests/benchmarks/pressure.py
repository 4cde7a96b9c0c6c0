"""
What happens to a timer and to an echo server on the loop while other threads press: ``python tests/benchmarks/pressure.py``.

One thread pours in 200,000 coroutines, or the main thread spins; and what the garbage collector adds to a million live tasks.
Each case runs in an interpreter of its own. Milliseconds; how late the timer was, and how long the echo took.
"""

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

import omniloop  # noqa: E402

POURED = 200_000
LIVE = 1_000_000


async def noop() -> None:
    pass


def submitter(who: str) -> Callable[[Any], Any]:
    """`go`, or what the standard library offers, on a loop of its own."""
    if who == "omniloop":
        return omniloop.go
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return lambda coro: asyncio.run_coroutine_threadsafe(coro, loop)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


def under(pressure: Callable[[], object], submit: Callable[[Any], Any]) -> str:
    """Apply *pressure* in this thread; how late a timer and an echo were meanwhile."""
    late: list[float] = []
    took: list[float] = []
    over = threading.Event()

    async def tick() -> None:
        while not over.is_set():
            due = time.perf_counter() + 0.002
            await asyncio.sleep(0.002)
            late.append(time.perf_counter() - due)

    server = submit(asyncio.start_server(echo, "127.0.0.1", 0)).result()
    client = socket.create_connection(server.sockets[0].getsockname())
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask() -> None:
        while not over.is_set():
            start = time.perf_counter()
            client.sendall(b"ping")
            client.recv(100)
            took.append(time.perf_counter() - start)

    ticker = submit(tick())
    asker = threading.Thread(target=ask)
    asker.start()
    start = time.perf_counter()
    pressure()
    seconds = time.perf_counter() - start
    over.set()
    ticker.result()
    asker.join()
    return f"timer {_tail(late)}   echo {_tail(took)}   ({seconds:.2f} s)"


def _tail(values: list[float]) -> str:
    values.sort()
    half, most = values[len(values) // 2], values[int(len(values) * 0.99)]
    return f"median {half * 1e3:7.2f}  p99 {most * 1e3:7.2f}  max {values[-1] * 1e3:7.2f}"


def pour(who: str) -> str:
    submit = submitter(who)

    def pressure() -> None:
        for _ in range(POURED):
            submit(noop())

    return under(pressure, submit)


def spin(who: str, interval: str) -> str:
    sys.setswitchinterval(float(interval))
    until = time.perf_counter() + 2

    def pressure() -> None:
        while time.perf_counter() < until:
            pass

    return under(pressure, submitter(who))


def live(collect: str) -> str:
    """Start a million tasks, cancel them, drain; with the garbage collector as it is, off, or with the longest generation rarer."""
    if collect == "off":
        gc.disable()
    elif collect == "threshold":
        gc.set_threshold(100_000, 50, 1000)
    pauses: list[float] = []
    began = 0.0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - began)

    gc.callbacks.append(note)
    marks = [time.perf_counter()]
    tasks = [omniloop.go(asyncio.sleep(3600)) for _ in range(LIVE)]
    omniloop.run(noop())
    marks.append(time.perf_counter())
    for task in tasks:
        task.cancel()
    omniloop.flush()
    marks.append(time.perf_counter())
    start, end = ((after - before) / LIVE * 1e6 for before, after in zip(marks, marks[1:], strict=False))
    collected = f"{len(pauses)} collections, {sum(pauses):.2f} s, the longest {max(pauses, default=0) * 1e3:.0f} ms"
    return f"start {start:.2f} µs   cancel and drain {end:.2f} µs   {collected}"


CASES = [
    ["pour", "omniloop"],
    ["pour", "run_coroutine_threadsafe"],
    ["spin", "omniloop", "0.005"],
    ["spin", "omniloop", "0.0005"],
    ["spin", "run_coroutine_threadsafe", "0.005"],
    ["live", "as it is"],
    ["live", "threshold"],
    ["live", "off"],
]

if __name__ == "__main__":
    if len(sys.argv) > 1:
        name, *arguments = sys.argv[1:]
        print({"pour": pour, "spin": spin, "live": live}[name](*arguments), flush=True)
        os._exit(0)
    print(sys.version.split()[0])
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, *case], check=True, capture_output=True, text=True)
        print(f"{' '.join(case):36} {done.stdout.strip()}", flush=True)
