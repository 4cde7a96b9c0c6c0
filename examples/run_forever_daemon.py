"""A task that runs for ever: cancelled at exit instead of awaited, and its clean-up runs."""

import asyncio
import sqlite3
import tempfile
from pathlib import Path

from omniloop import go, run


async def heartbeat(database: Path, beating: asyncio.Event) -> None:
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE IF NOT EXISTS beats (n INTEGER)")
    beats = 0
    try:
        while True:
            beats += 1
            with connection:
                connection.execute("INSERT INTO beats VALUES (?)", [beats])
            beating.set()
            await asyncio.sleep(0.05)
    finally:
        # Runs when the program ends: a daemon is cancelled, not killed.
        (written,) = connection.execute("SELECT count(*) FROM beats").fetchone()
        connection.close()
        print(f"heartbeat stopped cleanly, every beat written: {written == beats}")


def main() -> None:
    beating = asyncio.Event()
    database = Path(tempfile.mkdtemp()) / "beats.sqlite3"
    go(heartbeat(database, beating), daemon=True)
    run(beating.wait())
    print("main is done, and does not wait for the heartbeat")


if __name__ == "__main__":
    main()
