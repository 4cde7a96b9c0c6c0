"""The sync twins of real clients against real servers, 16 threads at once."""

import contextlib
import os
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import PATIENCE, free_port, wait_until

from omniloop import TaskTimeoutError, blocking

THREADS = 16
pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def redis_socket(tmp_path_factory):
    """A redis-server of the tests' own, on a Unix socket."""
    command = shutil.which("redis-server") or pytest.skip("no redis-server: apt-get install redis-server")
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "r.sock"
    server = subprocess.Popen(
        [command, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder], stdout=subprocess.DEVNULL
    )
    try:
        wait_until(path.exists, "redis-server opened no socket")
        yield str(path)
    finally:
        server.terminate()
        server.wait(PATIENCE)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """The port of a PostgreSQL of the tests' own."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin")] if Path("/usr/lib/postgresql").exists() else []
    on_path = shutil.which("initdb")
    bins = str(
        max(found, default=None) or (Path(on_path).resolve().parent if on_path else pytest.skip("no PostgreSQL"))
    )
    folder = tmp_path_factory.mktemp("postgres")
    # It refuses to run as root.
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    if user:
        with contextlib.suppress(PermissionError):
            for parent in [folder, *folder.parents]:
                if str(parent).startswith("/tmp/"):
                    os.chmod(parent, 0o755)
        try:
            shutil.chown(folder, "postgres", "postgres")
        except LookupError:
            pytest.skip("no user postgres to run PostgreSQL as")
    data, port = folder / "data", free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run(
        [f"{bins}/initdb", "-D", data, "-A", "trust", "-U", "tester", "--no-sync"], check=True, timeout=60, **quiet
    )
    server = subprocess.Popen(
        [f"{bins}/postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"], **quiet
    )
    try:
        ready = [f"{bins}/pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
        wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL is not ready")
        yield port
    finally:
        server.terminate()
        server.wait(PATIENCE)


@pytest.mark.promise(
    "The sync twin of the client of redis works against a server, with pipelines, subscriptions and locks, 16 threads at once"
)
@pytest.mark.servers
def test_redis(redis_socket):
    asyncio_redis = pytest.importorskip("redis.asyncio")
    Redis = blocking(asyncio_redis.Redis)

    with Redis(unix_socket_path=redis_socket, decode_responses=True) as redis:
        redis.flushall()
        assert (redis.set("key", "value"), redis.get("key"), redis.get("none")) == (True, "value", None)
        with redis.pipeline() as pipe:
            assert pipe.set("a", 1).incr("a").get("a").execute() == [True, 2, "2"]
        assert sorted(redis.scan_iter()) == ["a", "key"]

        with redis.pubsub() as pubsub:
            pubsub.subscribe("news")
            redis.publish("news", "hello")
            for message in pubsub.listen():
                if message["type"] == "message":
                    break
            assert message["data"] == "hello"

        held = []

        def work(number):
            with redis.lock("lock", timeout=30):
                held.append(number)
                assert len(held) == 1
                held.remove(number)
            return redis.incr("count")

        with ThreadPoolExecutor(THREADS) as pool:
            assert sorted(pool.map(work, range(THREADS * 3))) == list(range(1, THREADS * 3 + 1))
        with pytest.raises(TaskTimeoutError):
            redis.blpop.options(timeout=0.05)("nothing")
        with pytest.raises(asyncio_redis.ResponseError):
            redis.lpush("key", 1)


@pytest.mark.promise(
    "The sync twins of asyncpg work against a server, with a pool, transactions and cursors, 16 threads at once"
)
@pytest.mark.servers
def test_asyncpg(postgres):
    asyncpg = pytest.importorskip("asyncpg")
    connect, create_pool = blocking(asyncpg.connect), blocking(asyncpg.create_pool)
    # What `connect` returns; a pool, its connections and cursors can be entered or iterated over, and need no mention.
    blocking(asyncpg.Connection)
    where = {"host": "127.0.0.1", "port": postgres, "user": "tester", "database": "postgres"}

    connection = connect(**where)
    try:
        connection.execute("create table if not exists numbers (n int)")
        connection.executemany("insert into numbers values ($1)", [(n,) for n in range(20)])
        assert connection.fetchval("select sum(n) from numbers") == 190

        # A cursor needs its connection between two rows; and so does the body.
        with connection.transaction():
            for row in connection.cursor("select n from numbers order by n"):
                assert connection.fetchval("select $1::int", row["n"]) == row["n"]
                if row["n"] == 5:
                    break
        with pytest.raises(asyncpg.UniqueViolationError), connection.transaction():
            connection.execute("create table once (n int primary key)")
            connection.execute("insert into once values (1), (1)")
        assert connection.fetchval("select to_regclass('once')") is None
    finally:
        connection.close()

    with create_pool(**where, min_size=2, max_size=8) as pool:

        def work(number):
            with pool.acquire() as connection, connection.transaction():
                connection.execute("insert into numbers values ($1)", number)
                return connection.fetchval("select pg_backend_pid()")

        with ThreadPoolExecutor(THREADS) as threads:
            backends = Counter(threads.map(work, [100] * THREADS * 10))
        assert sum(backends.values()) == THREADS * 10
        assert len(backends) <= 8
        assert pool.fetchval("select count(*) from numbers where n = 100") == THREADS * 10
        # Each was given back.
        assert pool.get_idle_size() == pool.get_size()


@pytest.mark.promise("The sync twins of aiosqlite work, 16 threads at once")
def test_aiosqlite(tmp_path):
    aiosqlite = pytest.importorskip("aiosqlite")
    connect = blocking(aiosqlite.connect)

    with connect(tmp_path / "test.db") as db:
        db.execute("create table numbers (n integer)")
        db.executemany("insert into numbers values (?)", [(n,) for n in range(5)])
        db.commit()
        with db.execute("select n from numbers order by n") as cursor:
            assert [n for (n,) in cursor] == [0, 1, 2, 3, 4]
            assert cursor.description[0][0] == "n"

        def work(number):
            db.execute("insert into numbers values (?)", (number,))
            return db.execute("select count(*) from numbers where n = ?", (number,)).fetchone()[0]

        with ThreadPoolExecutor(THREADS) as pool:
            assert set(pool.map(work, range(100, 260))) == {1}
        db.commit()
        assert db.execute_fetchall("select count(*) from numbers") == [(165,)]
        db.row_factory = aiosqlite.Row
        assert db.execute("select 1 as one").fetchone()["one"] == 1

    db = connect(":memory:")
    assert db.execute("select 1").fetchone() == (1,)
    db.close()


@pytest.mark.promise(
    "The sync twin of the session of aiohttp works against a server: what `get` returns can be used as it is, and in a `with`"
)
def test_aiohttp():
    aiohttp = pytest.importorskip("aiohttp")
    from aiohttp import web

    from omniloop import enter

    @contextlib.asynccontextmanager
    async def serve():
        async def hello(request):
            return web.Response(text="hello " * 3)

        app = web.Application()
        app.add_routes([web.get("/", hello)])
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield "http://{}:{}".format(*runner.addresses[0])
        finally:
            await runner.cleanup()

    Session = blocking(aiohttp.ClientSession)

    with enter(serve()) as url, Session() as session:
        with session.get(url) as answer:
            assert (answer.status, answer.text()) == (200, "hello hello hello ")
        answer = session.get(url)
        assert answer.read() == b"hello hello hello "
        with ThreadPoolExecutor(THREADS) as pool:
            assert set(pool.map(lambda _: session.get(url).text(), range(THREADS * 5))) == {"hello hello hello "}
        assert not session.closed
    assert session.closed


@pytest.mark.promise(
    "The sync twins of httpx's and httpx2's clients stream from a server, line by line, and close the response at the end of the block"
)
@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_httpx(library):
    httpx = pytest.importorskip(library)
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = b"".join(b"line %d\n" % n for n in range(1000))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    blocking(httpx.Response, rename={"aread": "read", "aiter_lines": "iter_lines", "aclose": "close"})
    Client = blocking(httpx.AsyncClient)
    try:
        with Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
            assert client.get("/").text.startswith("line 0")
            with client.stream("GET", "/") as response:
                assert next(iter(response.iter_lines())) == "line 0"
            assert response.is_closed
            with ThreadPoolExecutor(THREADS) as pool:
                assert set(pool.map(lambda _: client.get("/").status_code, range(THREADS * 5))) == {200}
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()
