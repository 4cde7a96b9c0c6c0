"""In a real Django: work starts after the commit, uses the async ORM, closes what it opened, and is done before the server is gone."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("django")

import django
import servers
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.db import close_old_connections, connection, transaction
from django.http import HttpResponse
from django.urls import path
from django.utils import timezone, translation

import omniloop
from children import Result, run_child
from omniloop import go, run
from omniloop.ext.django import database, go_on_commit

if TYPE_CHECKING:
    # There once Django is set up, in the programs.
    from accounts.models import Account

APP = servers.EXAMPLES / "django_app"

# A server with its workers, a service and a load, each in interpreters of their own, on a machine that may be busy.
SERVER = pytest.mark.timeout(90)


def environment(tmp_path: Path, service: str = "") -> dict[str, str]:
    return {
        "SERVICE": service,
        "DATABASE": str(tmp_path / "accounts.sqlite"),
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": servers.import_path(APP),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture
def database_file(tmp_path: Path, empty_database: bytes) -> Path:
    """A database of the test's own, with its tables made."""
    path = tmp_path / "accounts.sqlite"
    path.write_bytes(empty_database)
    return path


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("django")
    command = [sys.executable, APP / "manage.py", "migrate", "--verbosity=0"]
    with servers.process(command, folder / "migrate.log", folder, environment(folder)) as migrating:
        assert migrating.wait() == 0, migrating.log()
    return (folder / "accounts.sqlite").read_bytes()


def rows(database: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


# --- servers ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("A graceful stop of Django under gunicorn drains")
@SERVER
@pytest.mark.parametrize("options", ["--worker-class=sync", "--worker-class=gthread --threads=4 --preload"])
def test_a_graceful_stop_of_gunicorn_drains(tmp_path, database_file, options):
    pytest.importorskip("gunicorn")
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers=2", "--no-control-socket"]
    with (
        servers.collector(tmp_path) as collector,
        servers.process(
            [*command, *options.split(), "wsgi:application"],
            tmp_path / "gunicorn.log",
            tmp_path,
            environment(tmp_path, collector.url),
        ) as server,
    ):
        server.wait_for_page(f"{url}/pid")
        collector.hold()
        load = servers.load(url, 30, tmp_path)
        assert not load.failed
        server.signal(signal.SIGTERM)
        server.wait_for_log("Worker exiting", times=2)
        collector.let_in(slowly=1)

        assert server.wait() == 0
        servers.assert_all_arrived_once(collector.arrived(), load.accepted)
        assert rows(database_file, "accounts_auditentry") == len(load.accepted)
        assert "Traceback" not in server.log()
        assert "Warning" not in server.log()


@pytest.mark.promise("A graceful stop of Django under uvicorn, hypercorn and daphne drains")
@SERVER
@pytest.mark.parametrize("name", servers.variants("uvicorn", "hypercorn", "daphne"))
def test_a_graceful_stop_of_an_asgi_server_drains(tmp_path, database_file, name):
    pytest.importorskip(name)
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    options = [f"--bind=127.0.0.1:{port}"] if name == "hypercorn" else [f"--port={port}"]
    with (
        servers.collector(tmp_path) as collector,
        servers.process(
            [sys.executable, "-m", name, *options, "asgi:application"],
            tmp_path / "server.log",
            tmp_path,
            environment(tmp_path, collector.url),
        ) as server,
    ):
        server.wait_for_page(f"{url}/pid")
        collector.hold()
        load = servers.load(url, 16, tmp_path)
        assert not load.failed
        server.signal(signal.SIGTERM)
        collector.let_in(slowly=1)
        server.wait()

        servers.assert_all_arrived_once(collector.arrived(), load.accepted)
        assert rows(database_file, "accounts_auditentry") == len(load.accepted)
        assert "Traceback" not in server.log()


@contextlib.contextmanager
def runserver(tmp_path: Path, service: str) -> Iterator[tuple[servers.Process, str]]:
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    # The settings are a copy's, so that the test can touch a file.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "touched.py").write_text("from settings import *\n")
    env = environment(tmp_path, service)
    env |= {"DJANGO_SETTINGS_MODULE": "touched", "PYTHONPATH": servers.import_path(tmp_path / "site", APP)}
    command = [sys.executable, "-W", "error::RuntimeWarning", APP / "manage.py", "runserver", f"127.0.0.1:{port}"]
    with servers.process(command, tmp_path / "runserver.log", tmp_path, env) as server:
        server.wait_for_page(f"{url}/pid")
        yield server, url


@pytest.mark.long
@pytest.mark.promise("The autoreload of `runserver` drains and goes on")
@SERVER
def test_the_autoreload_of_runserver_drains_and_goes_on(tmp_path, database_file):
    with servers.collector(tmp_path) as collector, runserver(tmp_path, collector.url) as (server, url):
        first_pid = servers.get(f"{url}/pid")
        collector.hold()
        before = servers.load(url, 10, tmp_path)
        assert not before.failed

        (tmp_path / "site" / "touched.py").write_text("from settings import *\n\n")
        server.wait_for_log("changed, reloading")
        collector.let_in(slowly=1)
        servers.wait_until(lambda: servers.get(f"{url}/pid") not in (None, first_pid), server.log)
        servers.assert_all_arrived_once(collector.arrived(), before.accepted)

        after = servers.load(url, 10, tmp_path)
        servers.wait_until(lambda: sum(collector.arrived().values()) >= 60, server.log)
        servers.assert_all_arrived_once(collector.arrived(), before.accepted + after.accepted)


@pytest.mark.promise("Nothing is started after a rollback in a view")
@SERVER
def test_nothing_is_started_after_a_rollback_in_a_view(tmp_path, database_file):
    with servers.collector(tmp_path) as collector, runserver(tmp_path, collector.url) as (server, url):
        with pytest.raises(urllib.error.HTTPError, match="409") as answer:
            urllib.request.urlopen(f"{url}/accounts", b"name=rolled+back", timeout=servers.PATIENCE)
        answer.value.close()
        # Later than what the rolled back request would have left.
        load = servers.load(url, 1, tmp_path)
        servers.wait_until(lambda: sum(collector.arrived().values()) >= 3, server.log)

        servers.assert_all_arrived_once(collector.arrived(), load.accepted)
        assert rows(database_file, "accounts_account") == 1
        assert "never awaited" not in server.log()


# --- programs ---------------------------------------------------------------------------------------------------------


def sets_up():
    import django

    django.setup()
    from accounts.models import Account  # noqa: F401


async def add(name):
    await Account.objects.acreate(name=name)
    print("added", name)


def open_files():
    return [
        name
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
        and (name := os.readlink(f"/proc/self/fd/{fd}")) == os.environ["DATABASE"]
    ]


def run_django(tmp_path: Path, program: Callable[[], object], *flags: str) -> Result:
    """Run *program* with Django set up; a warning is an error."""
    return run_child(sets_up, program, env=environment(tmp_path), flags=["-W", "error", *flags])


def assert_said(child: Result, *lines: str) -> None:
    assert (child.stderr, child.stdout.splitlines(), child.code) == ("", list(lines), 0)


@pytest.mark.promise("In Django, `go_on_commit` starts work after the commit, and not before")
def test_work_starts_after_the_commit_and_not_before(tmp_path, database_file):
    def program():
        async def look(pk):
            print("found", (await Account.objects.aget(pk=pk)).name)

        with transaction.atomic():
            account = Account.objects.create(name="ada")
            go_on_commit(look(account.pk))
            go_on_commit(lambda: look(account.pk))
            print("unfinished", omniloop.tasks())
        omniloop.flush()
        go_on_commit(look(account.pk))

    child = run_django(
        tmp_path,
        program,
    )

    assert_said(child, "unfinished []", "found ada", "found ada", "found ada")


@pytest.mark.promise("After a rollback, of a savepoint too, the coroutine is closed and no warning follows")
def test_after_a_rollback_the_coroutine_is_closed_and_no_warning_follows(tmp_path, database_file):
    def program():
        try:
            with transaction.atomic():
                go_on_commit(add("rolled back"))
                raise LookupError
        except LookupError:
            pass
        with transaction.atomic():
            go_on_commit(add("kept"))
            inner = transaction.atomic()
            inner.__enter__()
            go_on_commit(add("rolled back with its savepoint"))
            transaction.set_rollback(True)
            inner.__exit__(None, None, None)

    child = run_django(
        tmp_path,
        program,
    )

    assert_said(child, "added kept")


@pytest.mark.promise("Connections are closed when the last work that uses them is done")
def test_connections_are_closed_when_the_last_work_that_uses_them_is_done(tmp_path, database_file):
    def program():
        first, second = threading.Event(), threading.Event()

        async def hold(event):
            await Account.objects.acount()
            await asyncio.to_thread(event.wait)
            await Account.objects.acount()

        for event in first, second:
            go_on_commit(hold(event))
        connection.close()
        while len(open_files()) < 1:
            pass
        first.set()
        while len(omniloop.tasks()) > 1:
            pass
        print("one is done:", len(open_files()))
        second.set()
        omniloop.flush()
        print("all are done:", len(open_files()))

    child = run_django(
        tmp_path,
        program,
    )

    assert_said(child, "one is done: 1", "all are done: 0")


@pytest.mark.promise("Django's ORM works in the drain at exit")
def test_the_orm_works_in_the_drain_at_exit(tmp_path, database_file):
    """asgiref's own thread is shut before the last drain begins: there the ORM failed on every version."""

    def program():
        async def late():
            await asyncio.sleep(0.1)
            await add("late")

        def after_main_has_ended():
            threading.main_thread().join()
            go_on_commit(late())
            connection.close()

        threading.Thread(target=after_main_has_ended).start()
        go_on_commit(late())

    child = run_django(
        tmp_path,
        program,
    )

    assert_said(child, "added late", "added late")


@pytest.mark.promise("Django's ORM works in a child that was forked after its use")
def test_the_orm_works_in_a_child_that_was_forked_after_its_use(tmp_path, database_file):
    """asgiref's own thread does not live in the child, where the first call waited for ever."""

    def program():
        go_on_commit(add("parent"))
        omniloop.flush()
        connection.close()
        if not (pid := os.fork()):
            go_on_commit(add("child"))
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        print("rows", Account.objects.count())

    child = run_django(
        tmp_path,
        program,
        # CPython's own, from 3.12 on: the thread that serves the ORM is there.
        "-Wignore::DeprecationWarning",
    )

    assert_said(child, "added parent", "added child", "rows 2")


@pytest.mark.promise("Work outlives the async view that left it")
@pytest.mark.parametrize("door", ["WSGI", "ASGI"])
def test_work_outlives_the_async_view_that_left_it(tmp_path, database_file, door):
    """asgiref binds a view's sync code to a thread that ends with the request, and hands that on in the context."""

    def program():
        answered = threading.Event()

        async def late():
            await asyncio.to_thread(answered.wait)
            await add("late")

        async def view():
            await Account.objects.acount()
            await sync_to_async(lambda: go_on_commit(late()))()
            await sync_to_async(close_old_connections)()

        async def asgi():
            async with ThreadSensitiveContext():
                await view()

        if door == "WSGI":
            async_to_sync(view)()
        else:
            asyncio.run(asgi())
        answered.set()

    child = run_django(
        tmp_path,
        program,
    )

    assert_said(child, "added late")


@pytest.mark.promise("`go_on_commit` in async code raises, and says where to call it")
def test_in_async_code_django_says_that_the_transaction_is_elsewhere(tmp_path, database_file):
    def program():
        async def view():
            go_on_commit(add("never"))

        try:
            asyncio.run(view())
        except django.core.exceptions.SynchronousOnlyOperation as error:
            print(error)

    child = run_django(
        tmp_path,
        program,
    )

    assert_said(child, "You cannot call this from an async context - use a thread or sync_to_async.")


@pytest.mark.promise("A failure names the line that called `go_on_commit`")
def test_a_failure_names_the_line_that_called_go_on_commit(tmp_path, database_file):
    def program():
        async def fail():
            raise LookupError("no such mailbox")

        def leave():
            go_on_commit(fail())

        omniloop.configure(on_error=lambda failure: print(failure.name, failure.site.function, failure.exception))
        with transaction.atomic():
            leave()

    child = run_django(
        tmp_path,
        program,
    )

    assert_said(child, "fail leave no such mailbox")


@pytest.mark.promise("What `go_on_commit` cannot run is refused with what to do")
def test_what_go_on_commit_cannot_run_is_refused_with_what_to_do(tmp_path, database_file):
    def program():
        for work in 7, lambda: 7:
            try:
                go_on_commit(work)
            except omniloop.NotAsyncError as error:
                print(error)

    child = run_django(
        tmp_path,
        program,
    )

    assert (child.stderr, child.code) == ("", 0)
    first, second = child.stdout.splitlines()
    assert first == "7 can't be awaited. Pass a coroutine: go(fetch(url))."
    assert "returned 7. Give go_on_commit() a coroutine, or a function that makes one" in second


@pytest.mark.promise("Work of `go_on_commit` that is cancelled before it starts leaves no warning")
def test_work_that_is_cancelled_before_it_starts_leaves_no_warning(tmp_path, database_file):
    def program():
        def on_the_loop():
            os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
            go_on_commit(add("never"))
            [task.cancel() for task in omniloop.tasks()]
            connection.close()

        omniloop.call_soon(on_the_loop).result()
        omniloop.flush()

    child = run_django(
        tmp_path,
        program,
    )

    assert_said(child)


@pytest.mark.promise("`database()` gives periodic and other work the same")
def test_the_context_manager_serves_periodic_work(tmp_path, database_file):
    def program():
        done = threading.Event()

        async def turn():
            async with database():
                await add("periodic")
            done.set()

        omniloop.every(60, turn, immediately=True)
        done.wait(5)
        print(len(open_files()))

    child = run_django(
        tmp_path,
        program,
    )

    assert_said(child, "added periodic", "0")


# --- under ASGI -------------------------------------------------------------------------------------------------------


def serve(*views):
    root = type(sys)("root")
    root.urlpatterns = [path("", view) for view in views]
    sys.modules["root"] = root
    from django.conf import settings

    settings.ROOT_URLCONF, settings.USE_I18N, settings.USE_TZ = "root", True, True
    application = get_asgi_application()

    async def ask():
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        asking = ApplicationCommunicator(application, scope)
        await asking.send_input({"type": "http.request", "body": b""})
        start = await asking.receive_output(timeout=30)
        body = await asking.receive_output(timeout=30)
        await asking.wait()
        print(start["status"], body["body"].decode())

    asyncio.run(ask())


@pytest.mark.promise("`run` of the async ORM works in a sync view under ASGI, and in its transaction")
def test_run_of_the_async_orm_works_in_a_sync_view_under_asgi(tmp_path, database_file):
    """The one thread that asgiref runs the view's sync code in was the one that waited: the request never ended."""

    def program():
        def view(request):
            me = threading.get_ident()
            with transaction.atomic():
                Account.objects.create(name="ada")
                # Sees what is not committed, so it is the view's own connection.
                count = run(Account.objects.acount())
                assert run(sync_to_async(threading.get_ident)()) == me
                transaction.set_rollback(True)
            return HttpResponse(f"{count} {run(Account.objects.acount())}")

        serve(view)

    child = run_django(tmp_path, program)

    assert_said(child, "200 1 0")


@pytest.mark.promise("A wait in such a view that could never end is an error that says the way out")
def test_a_wait_for_other_work_that_needs_the_views_thread_is_an_error(tmp_path, database_file):
    def program():
        def view(request):
            try:
                return HttpResponse(go(Account.objects.acount()).result())
            except omniloop.WouldDeadlockError as error:
                return HttpResponse(error)

        serve(view)

    child = run_django(tmp_path, program)

    assert (child.stderr, child.code) == ("", 0)
    assert "Wait with run(), which makes such calls meanwhile" in child.stdout


@pytest.mark.promise("What a view under ASGI leaves to `go` may use `sync_to_async` when the request is over")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_view_leaves_may_use_sync_to_async_when_the_request_is_over(tmp_path, database_file, kind):
    """asgiref's mark of a deadlock travelled in the copied context: "Single thread executor already being used"."""

    def program():
        over = threading.Event()

        async def late():
            await asyncio.to_thread(over.wait)
            print("late", await sync_to_async(lambda: 42)())

        if kind == "sync":

            def view(request):
                go(late())
                return HttpResponse("left")
        else:

            async def view(request):
                go(late())
                return HttpResponse("left")

        serve(view)

        # Without a context of asgiref's, as in a program of one's own.
        def leave():
            go(late())

        asyncio.run(sync_to_async(leave)())
        over.set()
        omniloop.flush()

    child = run_django(tmp_path, program)

    assert_said(child, "200 left", "late 42", "late 42")


@pytest.mark.promise(
    "The language and the time zone of the submitter are those of its work in `go_on_commit`, `database()` and `run`"
)
def test_the_language_and_the_time_zone_of_the_view_are_those_of_its_work(tmp_path, database_file):
    """From asgiref 3.12 on a copied context no longer brings them along."""

    def program():
        async def work(how):
            print(how, translation.get_language(), timezone.get_current_timezone_name())

        async def in_database():
            async with database():
                await work("database")

        def view(request):
            with translation.override("de"), timezone.override("Asia/Tokyo"):
                go_on_commit(work("go_on_commit"))
                omniloop.flush()
                run(work("run"))
                run(in_database())
            go(in_database()).result()
            return HttpResponse(translation.get_language())

        serve(view)

    child = run_django(tmp_path, program)

    tokyo = [f"{how} de Asia/Tokyo" for how in ("go_on_commit", "run", "database")]
    assert_said(child, *tokyo, "database en-us America/Chicago", "200 en-us")
