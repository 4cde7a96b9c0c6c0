"""What each loop of another library is asked for, as `configure(loop_factory=…)`: the rows of these loops differ in nothing else."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable

import omniloop

started: list[int] = []


async def start(number: int) -> int:
    started.append(number)
    await asyncio.sleep(0)
    return number


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()


async def server_and_client() -> bytes:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"over the wire\n")
        line = await reader.readline()
        writer.close()
        return line


async def subprocess() -> bytes:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(6 * 7)", stdout=-1)
    return (await process.communicate())[0]


async def never(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ended.append("cleaned up")


async def looks_up() -> bool:
    return bool(await asyncio.get_running_loop().getaddrinfo("localhost", 80))


async def elsewhere() -> list[int]:
    return await asyncio.gather(*(omniloop.go(start(number)) for number in range(100)))


def ask_of(factory: Callable[[], asyncio.AbstractEventLoop], *, subprocesses: bool = True) -> None:
    """Order, a server and a client, worker threads, names, time limits, timers, a fork, and a subprocess if *subprocesses*."""
    omniloop.configure(loop_factory=factory)
    assert asyncio.run(elsewhere()) == started == list(range(100))
    assert omniloop.run(server_and_client(), timeout=20) == b"over the wire\n"
    assert omniloop.to_thread(threading.current_thread).result(timeout=20) is not threading.main_thread()
    assert omniloop.run(looks_up(), timeout=20)
    ended: list[str] = []
    try:
        omniloop.run(never(ended), timeout=0.05)
    except TimeoutError:
        pass
    assert ended == ["cleaned up"]
    turns = threading.Semaphore(0)
    every = omniloop.every(0.01, turns.release)
    assert all(turns.acquire(timeout=20) for _ in range(3))
    every.cancel()
    pid = os.fork()
    if not pid:
        os._exit(0 if omniloop.run(start(5), timeout=20) == 5 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert omniloop.run(start(6), timeout=20) == 6
    if subprocesses:
        assert omniloop.run(subprocess(), timeout=20) == b"42\n"
