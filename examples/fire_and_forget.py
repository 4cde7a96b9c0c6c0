"""
Register 1,000 accounts in a plain sync script, tell a web service about each one in the background, and simply end.

Run it: `python examples/fire_and_forget.py`. Three processes take part:

- the collector: a real HTTP server that writes what it is told into an SQLite file;
- the script: no async in sight but `go(log_account_created(user, url))`, and no waiting at its end;
- this one, which starts both and then reads from the file what has arrived.
"""

import argparse
import asyncio
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from aiohttp import web

from omniloop import go, resource

ACCOUNTS = 1_000


# --- the script -------------------------------------------------------------------------------------------------------


# One client for all, opened on first use, and closed when the drain is over.
http = resource(aiohttp.ClientSession)


async def log_account_created(user: str, url: str) -> None:
    client = await http
    async with client.post(url, json={"user": user}) as response:
        response.raise_for_status()


def register_accounts(url: str) -> None:
    start = time.perf_counter()
    for number in range(ACCOUNTS):
        user = f"user-{number}"
        # … here a real program would write the account into its database …
        go(log_account_created(user, url))
    print(f"{ACCOUNTS} {time.perf_counter() - start:.4f} {time.time()}")


# --- the collector ----------------------------------------------------------------------------------------------------


def collect(database: Path) -> None:
    connection = sqlite3.connect(database)
    # A thousand commits, and no thousand waits for the disk: it is omniloop's drain that is timed here.
    connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
    connection.execute("CREATE TABLE created (user TEXT PRIMARY KEY)")

    async def created(request: web.Request) -> web.Response:
        with connection:
            connection.execute("INSERT INTO created VALUES (?)", [(await request.json())["user"]])
        return web.Response()

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/created", created)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        # Until whoever started it closes the pipe, or ends.
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()

    asyncio.run(serve())
    connection.close()


# --- this process -----------------------------------------------------------------------------------------------------


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "accounts.sqlite3"
        command = [sys.executable, __file__]
        with subprocess.Popen(
            [*command, "--collect", str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as collector:
            assert collector.stdout is not None
            port = int(collector.stdout.readline())
            # A name, not an address: the look-up needs a thread, also while the script's interpreter is ending.
            url = f"http://localhost:{port}/created"
            script = subprocess.run([*command, "--register", url], stdout=subprocess.PIPE, text=True, check=True)
            ended = time.time()
            collector.communicate()
        registered, calls, last_line = script.stdout.split()
        with sqlite3.connect(database) as connection:
            (arrived,) = connection.execute("SELECT count(*) FROM created").fetchone()
        connection.close()
    print(f"registered {int(registered):,}, arrived {arrived:,}")
    print(f"the {int(registered):,} calls took the script {float(calls) * 1000:.1f} ms")
    print(f"the drain took {ended - float(last_line):.2f} s, after the script's last line")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--register", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.collect:
        collect(arguments.collect)
    elif arguments.register:
        register_accounts(arguments.register)
    else:
        main()
