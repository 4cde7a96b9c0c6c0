"""
`iterate`: read an endless async stream with a plain `for`, and stop when there is enough.

Run it: `python examples/stream_lines.py`. A server on this machine sends numbered lines as long as somebody reads them.
"""

import asyncio
import csv
from collections.abc import AsyncIterator

from omniloop import aiterate, iterate, run


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    number = 0
    try:
        while True:
            writer.write(f"{number},line {number}\n".encode())
            # Waits while the reader is behind.
            await writer.drain()
            number += 1
            await asyncio.sleep(0)
    except ConnectionError:
        print("server: the reader has gone")
    finally:
        writer.close()


async def lines(host: str, port: int) -> AsyncIterator[str]:
    """An async generator like those of any async client; its clean-up needs the loop."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while line := await reader.readline():
            yield line.decode()
    finally:
        writer.close()
        await writer.wait_closed()
        print("client: connection closed")


def main() -> None:
    server = run(asyncio.start_server(serve, "127.0.0.1", 0))
    host, port = server.sockets[0].getsockname()[:2]

    # `csv.reader` takes any sync iterator of lines; it does not know that these come from an event loop.
    with iterate(lines(host, port), buffer=16) as received:
        for number, text in csv.reader(received):
            if int(number) == 1_000:
                print("stopped at:", text)
                break

    async def the_other_way() -> int:
        # A blocking iterator in async code: it runs in a worker thread, and this loop goes on.
        return sum([number async for number in aiterate(range(1_000), buffer=100)])

    print("the other way:", asyncio.run(the_other_way()))

    async def stop() -> None:
        server.close()

    run(stop())


if __name__ == "__main__":
    main()
