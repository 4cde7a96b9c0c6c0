"""
How long a Flask view takes that leaves work behind: with `go`, with a thread for each call, with `async_to_sync`; as ratios of one run.

    python tests/benchmarks/real_latency.py [REQUESTS]

The view runs under real gunicorn (one worker, four threads); the work is a call to a service on loopback that answers after 5 ms. The
client asks one request at a time, over one connection, the kinds in turn.
"""

import asyncio
import http.client
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

KINDS = ("nothing", "go", "thread", "async_to_sync")
SERVICE_TIME = 0.005


def make_app():
    """The application, in the server's process."""
    from asgiref.sync import async_to_sync
    from flask import Flask

    from omniloop import go

    app = Flask(__name__)
    port = int(os.environ["SERVICE_PORT"])

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.read()
        writer.close()

    @app.get("/nothing")
    def nothing():
        return "answered"

    @app.get("/go")
    def with_go():
        go(work())
        return "answered"

    @app.get("/thread")
    def with_thread():
        threading.Thread(target=asyncio.run, args=[work()]).start()
        return "answered"

    @app.get("/async_to_sync")
    def with_async_to_sync():
        async_to_sync(work)()
        return "answered"

    return app


def serve(sock: socket.socket) -> None:
    """The service: says a word after 5 ms."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(SERVICE_TIME)
        writer.write(b"done")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, sock=sock)
        await server.serve_forever()

    asyncio.run(main())


def measure(port: int, requests: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for number in range(requests + 20):
        for kind in KINDS:
            start = time.perf_counter()
            connection.request("GET", f"/{kind}")
            assert connection.getresponse().read() == b"answered"
            if number >= 20:
                seconds[kind].append(time.perf_counter() - start)
            # Let what was left behind end, so that each kind is measured by itself.
            time.sleep(2 * SERVICE_TIME)
    return seconds


def main(requests: int) -> None:
    service, listener = socket.socket(), socket.socket()
    service.bind(("127.0.0.1", 0))
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    threading.Thread(target=serve, args=[service], daemon=True).start()
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--threads=4", "--keep-alive=60"]
    server = subprocess.Popen(
        [*command, "--no-control-socket", "--log-level=error", "real_latency:make_app()"],
        cwd=Path(__file__).parent,
        env={**os.environ, "SERVICE_PORT": str(service.getsockname()[1])},
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        seconds = measure(port, requests)
    finally:
        server.terminate()
        server.wait(30)

    base = statistics.median(seconds["go"])
    print(
        f"CPython {platform.python_version()}, {os.cpu_count()} cores, {requests} requests of each kind, one at a time"
    )
    for kind in KINDS:
        median = statistics.median(seconds[kind])
        tail = sorted(seconds[kind])[int(0.95 * requests)]
        print(f"{kind:14} median {median * 1e3:6.2f} ms  95 % below {tail * 1e3:6.2f} ms  {median / base:5.2f} x go")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
