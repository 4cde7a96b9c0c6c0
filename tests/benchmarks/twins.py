"""
What a call of a sync twin costs more than `run`, beside its peers; and a sync client that is a twin beside one that was written by hand.

    python tests/benchmarks/twins.py [--rounds N] [--check]

All contenders take turns in one process, round by round, on one core; shown are medians, and medians of the differences within a
round. `--check` fails if a blocking call costs more than 3 µs more than ``run(f())``. The clients ask a server on loopback, in a
process of its own.
"""

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = 100
REQUESTS = 30
# Microseconds; what a twin may cost more than `run`.
MOST = 3.0


async def echo(value: int) -> int:
    return value


class AsyncEcho:
    async def echo(self, value: int) -> int:
        return value

    def plain(self, value: int) -> int:
        return value


def callers() -> dict[str, Callable[[], Any]]:
    """One blocking call each, of a coroutine that only returns."""
    from omniloop import blocking, run

    function, twin = blocking(echo), blocking(AsyncEcho)()
    found: dict[str, Callable[[], Any]] = {
        "run(f())": lambda: run(echo(1)),
        "blocking: function": lambda: function(1),
        "blocking: method": lambda: twin.echo(1),
        "blocking: sync method": lambda: twin.plain(1),
    }
    for name, make in {"asgiref": _asgiref, "unsync": _unsync, "synchronicity": _synchronicity}.items():
        try:
            found |= make()
        except ImportError:
            print(f"{name} is not installed, and is left out")
    return found


def _asgiref() -> dict[str, Callable[[], Any]]:
    from asgiref.sync import async_to_sync

    call = async_to_sync(echo)
    return {"asgiref: async_to_sync": lambda: call(1)}


def _unsync() -> dict[str, Callable[[], Any]]:
    from unsync import unsync

    call = unsync(echo)
    return {"unsync": lambda: call(1).result()}


def _synchronicity() -> dict[str, Callable[[], Any]]:
    from synchronicity import Synchronizer

    synchronizer = Synchronizer()
    function = synchronizer.wrap(echo, name="sync_echo", target_module=__name__)
    twin = synchronizer.wrap(AsyncEcho, name="SyncEcho", target_module=__name__)()
    return {"synchronicity: function": lambda: function(1), "synchronicity: method": lambda: twin.echo(1)}


def clients(url: str) -> dict[str, Callable[[], Any]]:
    """One request each."""
    try:
        import httpx
    except ImportError:
        print("httpx is not installed: no clients are compared")
        return {}
    from omniloop import blocking

    by_hand, twin = httpx.Client(base_url=url), blocking(httpx.AsyncClient)(base_url=url)
    # What the async client costs where nobody changes threads.
    runner, alone = asyncio.Runner(), httpx.AsyncClient(base_url=url)
    found: dict[str, Callable[[], Any]] = {
        "httpx.Client, by hand": lambda: by_hand.get("/"),
        "httpx.AsyncClient, on a loop here": lambda: runner.run(alone.get("/")),
        "blocking(httpx.AsyncClient)": lambda: twin.get("/"),
    }
    try:
        import httpx2
    except ImportError:
        print("httpx2 is not installed, and is left out")
    else:
        by_hand_2, twin_2 = httpx2.Client(base_url=url), blocking(httpx2.AsyncClient)(base_url=url)
        found["httpx2.Client, by hand"] = lambda: by_hand_2.get("/")
        found["blocking(httpx2.AsyncClient)"] = lambda: twin_2.get("/")
    try:
        from synchronicity import Synchronizer
    except ImportError:
        return found
    synchronizer = Synchronizer()
    synchronizer.wrap(httpx.AsyncClient.__base__, name="SyncBase", target_module=__name__)
    other = synchronizer.wrap(httpx.AsyncClient, name="SyncClient", target_module=__name__)(base_url=url)
    return {**found, "synchronicity(httpx.AsyncClient)": lambda: other.get("/")}


def serve() -> None:
    """Answers every request with two bytes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(main())


def measure(contenders: dict[str, Callable[[], Any]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Microseconds a call, one number a round."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        # In another order each time.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            call = contenders[name]
            started = time.perf_counter()
            for _ in range(calls):
                call()
            if number:
                # The first round warms up.
                found[name].append((time.perf_counter() - started) / calls * 1e6)
    return found


def show(found: dict[str, list[float]], against: str) -> dict[str, float]:
    differences = {}
    for name, samples in found.items():
        pairs = list(zip(samples, found[against], strict=True))
        differences[name] = statistics.median(a - b for a, b in pairs)
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"  {name:34}{statistics.median(samples):9.1f} µs  {differences[name]:+8.1f} µs  {ratio:6.2f} ×")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if hasattr(os, "sched_setaffinity"):
        # Where the threads are on two cores, the kernel's wake-ups drown the differences.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"Python {platform.python_version()}; medians of {options.rounds} rounds")
    print(f"a blocking call ({CALLS} a round), and what it is against run(f()):")
    differences = show(measure(callers(), options.rounds, CALLS), "run(f())")
    server = subprocess.Popen(
        [sys.executable, Path(__file__), "--serve"], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert server.stdout is not None
        contenders = clients(f"http://127.0.0.1:{server.stdout.readline().strip()}")
        if contenders:
            print(f"a request ({REQUESTS} a round), and what it is against the client that was written by hand:")
            show(measure(contenders, options.rounds, REQUESTS), next(iter(contenders)))
    finally:
        server.terminate()
        server.wait(10)
    if options.check:
        late = {name: found for name, found in differences.items() if name in CHECKED and found > MOST}
        print("held" if not late else f"above {MOST} µs: {late}")
        return int(bool(late))
    return 0


CHECKED = {"blocking: function", "blocking: method"}


if __name__ == "__main__":
    sys.exit(main())
