"""Both faces against a server of their own. Run it: `python demo.py`."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# As if it were installed.
sys.path.insert(0, str(Path(__file__).parent / "src"))

from notes_sdk import AsyncClient, Client, NotFoundError
from service import Service

from omniloop import enter


def sync_face(url: str) -> None:
    with Client(url) as client:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client.add, [f"note {number}" for number in range(25)]))
        print("one client, 8 threads:", sum(1 for _ in client.notes()), "notes")

        for note in client.notes(page_size=5):
            if note.number == 6:
                print("stopped at:", note.number)
                break

        with client.export() as lines:
            print("streamed:", len(list(lines)), "lines")

        try:
            client.get.options(timeout=5)(99)
        except NotFoundError as error:
            print("not there:", error)


async def async_face(url: str) -> None:
    async with AsyncClient(url) as client:
        print("async:", (await client.get(0)).number, len([note async for note in client.notes()]))


def main() -> None:
    service = Service()
    with enter(service.serve()) as url:
        sync_face(url)
        asyncio.run(async_face(url))
    print("pages that were asked for:", len(service.requests))


if __name__ == "__main__":
    main()
