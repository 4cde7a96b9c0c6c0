"""Django's own tasks on the loop: side by side, told by Django's signals and logger, after the commit, and done before the end."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

django = pytest.importorskip("django", minversion="6.0")

import asyncio
import logging
import os
import time

import servers

from children import Result, run_child

if TYPE_CHECKING:
    # There once Django is set up, in the programs.
    import jobs
    from asgiref.sync import sync_to_async
    from django.db import connection, connections, transaction
    from django.tasks import default_task_backend, signals
    from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist

    import omniloop

SITE = Path(__file__).parent / "apps" / "django_tasks"

pytestmark = pytest.mark.timeout(90)


def environment(tmp_path: Path, queues: list[str] | None = None, **options: Any) -> dict[str, str]:
    return {
        "DJANGO_SETTINGS_MODULE": "tasks_settings",
        "DATABASE": str(tmp_path / "site.sqlite"),
        "OPTIONS": json.dumps(options),
        "QUEUES": json.dumps(queues or []),
        "PYTHONPATH": servers.import_path(SITE),
    }


def with_engine(tmp_path: Path, *lines: str, **options: Any) -> dict[str, str]:
    """The environment of a site whose `broker` is `jobs` of a module with these *lines*."""
    (tmp_path / "engines.py").write_text("\n".join([*lines, ""]))
    env = environment(tmp_path, broker="engines.jobs", **options)
    env["PYTHONPATH"] += f":{tmp_path}"
    return env


def sets_up():
    import django

    django.setup()

    import jobs  # noqa: F401
    from asgiref.sync import sync_to_async  # noqa: F401
    from django.db import connection, connections, transaction  # noqa: F401
    from django.tasks import default_task_backend, signals  # noqa: F401
    from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist  # noqa: F401

    import omniloop  # noqa: F401


def with_table():
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE names (name text)")


def names():
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM names ORDER BY name")
        return [name for (name,) in cursor.fetchall()]


def run_site(tmp_path: Path, program: Callable[[], object], queues: list[str] | None = None, **options: Any) -> Result:
    return run_child(sets_up, program, env=environment(tmp_path, queues, **options), flags=["-W", "error"])


def assert_said(child: Result, *lines: str) -> None:
    assert child == ("".join(f"{line}\n" for line in lines), "", 0, child.seconds)


@pytest.mark.promise(
    "Django's async tasks run side by side on the loop, plain ones in worker threads", section="Django's tasks"
)
def test_tasks_run_side_by_side(tmp_path):
    def program():
        results = [jobs.meet.enqueue(20) for _ in range(20)]
        plain = [jobs.meet_in_threads.enqueue() for _ in range(3)]
        omniloop.flush()
        print({result.return_value for result in results}, [result.return_value for result in plain])

    assert_said(run_site(tmp_path, program), "{20} [True, True, True]")


@pytest.mark.promise("What `enqueue` returned is done before the program ends")
def test_what_was_enqueued_is_done_before_the_program_ends(tmp_path):
    def program():
        result = jobs.say.enqueue("hello")
        print(result.is_finished)

    assert_said(run_site(tmp_path, program), "False", "said hello")


@pytest.mark.promise("A result is filled in as Django's are, and found by its id")
def test_a_result_is_filled_in_and_found_by_its_id(tmp_path):
    def program():
        waits = jobs.meet.enqueue(2)
        try:
            waits.return_value
        except ValueError as error:
            print(error)
        jobs.meet.enqueue(2)
        result = jobs.add.enqueue(1, b=2)
        omniloop.flush()
        again = jobs.add.get_result(result.id)
        result.refresh()
        print(again.return_value, result.return_value, result.status, result.attempts, result.args, result.kwargs)
        print(result.enqueued_at <= result.started_at == result.last_attempted_at <= result.finished_at)
        for look in lambda: jobs.add.get_result("another"), lambda: jobs.echo.get_result(result.id):
            try:
                look()
            except Exception as error:
                print(type(error).__name__)

    child = run_site(tmp_path, program)
    assert_said(
        child,
        "Task has not finished yet",
        "3 3 SUCCESSFUL 1 [1] {'b': 2}",
        "True",
        "TaskResultDoesNotExist",
        "TaskResultMismatch",
    )


@pytest.mark.promise("A task that fails is FAILED, and told once, by Django's logger")
def test_a_failure_is_told_once_by_djangos_logger(tmp_path):
    def program():
        handler = logging.StreamHandler(sys.stdout)
        handler.setLevel(logging.ERROR)
        logging.getLogger("django.tasks").addHandler(handler)
        handler.setFormatter(logging.Formatter("%(name)s %(levelname)s"))
        logging.Formatter.formatException = lambda self, info: repr(info[1])
        for task in jobs.fail, jobs.leave:
            result = task.enqueue()
            omniloop.flush()
            print(result.status, result.errors[0].exception_class.__name__, result.errors[0].traceback.splitlines()[-1])

    assert_said(
        run_site(tmp_path, program),
        "django.tasks ERROR",
        "LookupError('no such mailbox')",
        "FAILED LookupError LookupError: no such mailbox",
        "django.tasks ERROR",
        "SystemExit('left')",
        "FAILED SystemExit SystemExit: left",
    )


@pytest.mark.promise("Signals come in order, to async receivers too")
def test_signals_come_in_order(tmp_path):
    def program():
        said = []

        async def listen(sender, task_result, signal, **kwargs):
            said.append(("async", names[signal], str(task_result.status)))

        def hear(sender, task_result, signal, **kwargs):
            said.append(("plain", names[signal], str(task_result.status)))

        names = {signals.task_enqueued: "enqueued", signals.task_started: "started", signals.task_finished: "finished"}
        for one in names:
            one.connect(listen)
            one.connect(hear)
        jobs.add.enqueue(1)
        omniloop.flush()
        print(sorted(said[:2]), sorted(said[2:4]), sorted(said[4:]))

        async def in_a_loop():
            said.clear()
            jobs.add.enqueue(1)
            await asyncio.to_thread(omniloop.flush)
            print([word for _, word, _ in said])
            said.clear()
            await jobs.add.aenqueue(1)
            await asyncio.to_thread(omniloop.flush)
            print([word for _, word, _ in said])

        asyncio.run(in_a_loop())

    order = "['enqueued', 'enqueued', 'started', 'started', 'finished', 'finished']"
    assert_said(
        run_site(tmp_path, program),
        "[('async', 'enqueued', 'READY'), ('plain', 'enqueued', 'READY')] "
        "[('async', 'started', 'RUNNING'), ('plain', 'started', 'RUNNING')] "
        "[('async', 'finished', 'SUCCESSFUL'), ('plain', 'finished', 'SUCCESSFUL')]",
        order,
        order,
    )


@pytest.mark.promise("A receiver that fails is reported, and the result does not stay RUNNING")
def test_a_receiver_that_fails_is_reported(tmp_path):
    def program():
        def refuse(sender, **kwargs):
            raise LookupError("of the receiver")

        signals.task_started.connect(refuse)
        result = jobs.add.enqueue(1)
        omniloop.flush()
        print(result.status, result.errors[0].exception_class.__name__)

    child = run_site(tmp_path, program)
    assert child.stdout == "FAILED LookupError\n"
    assert "of the receiver" in child.stderr
    assert child.code == 0


@pytest.mark.promise("A task is enqueued from a running loop, where Django's own backend fails without a word")
def test_a_task_is_enqueued_from_a_running_loop(tmp_path):
    def program():
        async def main():
            results = [jobs.add.enqueue(1), await jobs.add.aenqueue(2), jobs.meet.enqueue(1)]
            await asyncio.to_thread(omniloop.flush)
            print([result.return_value for result in results], (await jobs.add.aget_result(results[1].id)).status)

        async def on_omniloops_loop():
            return [jobs.add.enqueue(3), await jobs.add.aenqueue(4)]

        asyncio.run(main())
        results = omniloop.run(on_omniloops_loop())
        omniloop.flush()
        print([result.return_value for result in results])

    assert_said(run_site(tmp_path, program), "[2, 3, 1] SUCCESSFUL", "[4, 5]")


@pytest.mark.promise("A task has the caller's language and time zone")
def test_a_task_has_the_callers_language_and_time_zone(tmp_path):
    def program():
        from django.utils import timezone, translation

        with translation.override("de"), timezone.override("Asia/Tokyo"):
            results = [jobs.locale.enqueue(), jobs.plain_locale.enqueue()]
        omniloop.flush()
        print([result.return_value for result in results])

    assert_said(run_site(tmp_path, program), "[['de', 'Asia/Tokyo'], ['de', 'Asia/Tokyo']]")


@pytest.mark.promise("`takes_context` gives the task its result and attempt")
def test_a_task_that_takes_its_context(tmp_path):
    def program():
        result = jobs.attempts.enqueue("ada")
        omniloop.flush()
        print(result.return_value == [1, result.id, "ada"])

    assert_said(run_site(tmp_path, program), "True")


@pytest.mark.promise("The connections of a task's thread are closed after it, as at a request's end")
def test_connections_are_closed_after_each(tmp_path):
    def program():
        results = [jobs.write.enqueue(str(number)) for number in range(5)]
        omniloop.flush()
        print(names(), all(result.return_value for result in results))
        connection.close()
        fds = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        ]
        print(os.environ["DATABASE"] in fds)

    child = run_child(sets_up, with_table, program, env=environment(tmp_path), flags=["-W", "error"])
    assert_said(child, "['0', '1', '2', '3', '4'] True", "False")


@pytest.mark.promise("With `on_commit` a task starts when the transaction is committed, and never after a rollback")
def test_a_task_starts_when_the_transaction_is_committed(tmp_path):
    def program():
        with transaction.atomic():
            committed = jobs.add.enqueue(1)
            omniloop.flush()
            print(committed.status, committed.enqueued_at)
        try:
            with transaction.atomic():
                rolled_back = jobs.add.enqueue(1)
                raise LookupError
        except LookupError:
            pass
        outside = jobs.add.enqueue(1)
        omniloop.flush()
        print(committed.status, rolled_back.status, outside.status)
        try:
            jobs.add.get_result(rolled_back.id)
        except TaskResultDoesNotExist:
            print("does not exist")

        connection.close()

        async def main():
            result = await jobs.add.aenqueue(1)
            await sync_to_async(connections.close_all)()
            return result

        in_a_loop = asyncio.run(main())
        omniloop.flush()
        print(in_a_loop.status)

    child = run_site(tmp_path, program, on_commit=True)
    assert_said(child, "READY None", "SUCCESSFUL READY SUCCESSFUL", "does not exist", "SUCCESSFUL")


@pytest.mark.promise("`limit` tasks run at a time, `timeout` ends one, `keep_results` bounds what is kept")
def test_the_options_bound_what_runs_and_what_is_kept(tmp_path):
    def program():
        for _ in range(30):
            jobs.count_together.enqueue()
        omniloop.flush()
        late = jobs.wait_for_ever.enqueue()
        omniloop.flush()
        print(jobs.together["most"], late.status, late.errors[0].traceback.splitlines()[-1])
        results = [jobs.add.enqueue(number) for number in range(10)]
        omniloop.flush()
        kept = 0
        for result in results:
            try:
                kept += default_task_backend.get_result(result.id) is result
            except TaskResultDoesNotExist:
                pass
        print(kept)

    assert_said(
        run_site(tmp_path, program, limit=3, timeout=0.2, keep_results=4),
        "3 FAILED TimeoutError: jobs.wait_for_ever took longer than its time limit of 0.2 s.",
        "4",
    )


@pytest.mark.promise("What this backend can't do is refused where it is asked for")
def test_what_it_cant_do_is_refused(tmp_path):
    def program():
        from django.utils import timezone

        for using in {"priority": 5}, {"run_after": timezone.now()}, {"queue_name": "other"}:
            try:
                jobs.add.using(**using)
            except InvalidTask as error:
                print(error)
        try:
            jobs.echo.enqueue({1, 2})
        except TypeError as error:
            print(error)

    assert_said(
        run_site(tmp_path, program, queues=["default"]),
        "Backend does not support setting priority of tasks.",
        "Backend does not support run_after.",
        "Queue 'other' is not valid for backend.",
        "Unsupported type: <class 'set'>",
    )


@pytest.mark.promise("`manage.py check` names an option that is wrong, and `enqueue` refuses with it")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"limits": 3},
            "there is no option 'limits'. The options are broker, keep_results, limit, on_commit, timeout.",
        ),
        ({"limit": 0}, "limit=0. Give a whole number of 1 or more, or None for no limit."),
        ({"limit": True}, "limit=True. Give a whole number of 1 or more, or None for no limit."),
        ({"timeout": -1}, "timeout=-1. Give seconds, more than 0, or None for no limit."),
        ({"keep_results": "all"}, "keep_results='all'. Give a whole number of 0 or more."),
        ({"on_commit": 1}, "on_commit=1. Give True, False, or the alias of a database."),
        ({"broker": 1}, "broker=1. Give an engine, or the dotted path of one or of a function that makes one."),
        ({"broker": "x.y", "timeout": 1}, "timeout is not for tasks of a broker. Its workers decide: set it there."),
    ],
)
def test_check_names_an_option_that_is_wrong(tmp_path, options, message):
    def program():
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import call_command
        from django.core.management.base import SystemCheckError

        try:
            call_command("check")
        except SystemCheckError as error:
            print("omniloop.E001" in str(error))
        try:
            jobs.add.enqueue(1)
        except ImproperlyConfigured as error:
            print(error)

    assert_said(run_site(tmp_path, program, **options), "True", f"TASKS['default']['OPTIONS']: {message}")


@pytest.mark.promise("With a `broker` the tasks of Django outlive the process, in an outbox say")
def test_tasks_go_through_an_outbox(tmp_path):

    def program():
        import engines

        result = jobs.attempts.enqueue("ada")
        failed = jobs.fail.enqueue()
        omniloop.flush()
        print(type(engines.jobs).__name__, result.status)
        result.refresh()
        failed.refresh()
        print(
            result.return_value[0],
            result.return_value[1] == result.id,
            failed.status,
            failed.errors[0].exception_class.__name__,
        )

    env = with_engine(
        tmp_path, "from omniloop.ext.outbox import Outbox", f"jobs = Outbox({str(tmp_path / 'outbox.sqlite')!r})"
    )
    child = run_child(sets_up, program, env=env)
    assert child.stdout.splitlines() == ["Outbox READY", "1 True FAILED LookupError"], child.stderr
    assert child.code == 0


@pytest.mark.promise(
    "With taskiq as its `broker` a task of Django runs as taskiq delivers it, and its result comes back"
)
def test_tasks_go_through_taskiq(tmp_path):
    pytest.importorskip("taskiq")

    def program():
        with_table()
        results = [
            jobs.attempts.enqueue("ada"),
            jobs.echo.enqueue({"a": [1]}),
            jobs.fail.enqueue(),
            jobs.write.enqueue("ada"),
        ]
        for result in results:
            while not result.is_finished:
                time.sleep(0.01)
                result.refresh()
            print(result.status, result.errors or result.args)
        print(results[0].return_value == [1, results[0].id, "ada"], results[1].return_value, names())
        try:
            jobs.echo.enqueue(object())
        except TypeError:
            print("refused")

    env = with_engine(tmp_path, "from omniloop.ext.taskiq import Taskiq", "jobs = Taskiq()")
    child = run_child(sets_up, program, env=env)
    lines = child.stdout.splitlines()
    assert lines[0] == "SUCCESSFUL ['ada']" and lines[1] == "SUCCESSFUL [{'a': [1]}]", child
    assert lines[2].startswith("FAILED [TaskError(exception_class_path='builtins.LookupError'"), child
    assert lines[3:] == ["SUCCESSFUL ['ada']", "True {'a': [1]} ['ada']", "refused"], child
    assert child.code == 0


@pytest.mark.servers
@pytest.mark.promise(
    "With taskiq as its `broker` the tasks of Django outlive the process: a worker of taskiq runs each once"
)
@pytest.mark.parametrize("kind", ["rabbitmq", "nats"])
def test_tasks_are_run_by_a_worker_of_taskiq(tmp_path, kind, request):
    pytest.importorskip("taskiq")
    url = request.getfixturevalue(kind).url

    def program():
        for number in range(40):
            jobs.append.enqueue(os.environ["ARRIVED"], str(number))

    make = {
        "rabbitmq": "AioPikaBroker({url!r}, exchange=Exchange(name='django')).with_queue(Queue(name='django'))",
        "nats": "PullBasedJetStreamBroker({url!r}, subject='django', stream_name='django', durable='django')",
    }
    env = with_engine(
        tmp_path,
        "from omniloop.ext.taskiq import Taskiq",
        "def make():",
        "    from taskiq_aio_pika import AioPikaBroker",
        "    from taskiq_aio_pika.exchange import Exchange",
        "    from taskiq_aio_pika.queue import Queue",
        "    from taskiq_nats import PullBasedJetStreamBroker",
        f"    return {make[kind].format(url=url)}",
        "jobs = Taskiq(make)",
    )
    (tmp_path / "worker.py").write_text(
        "import django\n\ndjango.setup()\n\nimport jobs\nfrom engines import jobs as engine\n\nbroker = engine.broker\n"
    )
    arrived = tmp_path / "arrived"
    arrived.touch()
    child = run_child(sets_up, program, env={**env, "ARRIVED": str(arrived)}, timeout=60)
    assert (child.code, child.stdout) == (0, ""), child
    assert arrived.read_text() == ""

    worker = [sys.executable, "-m", "taskiq", "worker", "worker:broker", "--workers", 1, "--max-async-tasks", 20]
    with servers.process(worker, tmp_path / "log", tmp_path, env) as process:
        servers.wait_until(lambda: len(arrived.read_text().split()) >= 40, process.log)
        process.stop()
    assert sorted(arrived.read_text().split(), key=int) == [str(number) for number in range(40)]


@pytest.mark.promise(
    "`manage.py runserver` ends the tasks that views have enqueued, at Ctrl-C and before it loads the site anew"
)
@pytest.mark.parametrize("end", ["Ctrl-C", "reload"])
def test_runserver_ends_the_tasks(tmp_path, end):
    arrived, port = tmp_path / "arrived", servers.free_port()
    arrived.touch()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "touched.py").write_text("from tasks_settings import *\nDEBUG = True\n")
    env = {**environment(tmp_path), "ARRIVED": str(arrived), "DJANGO_SETTINGS_MODULE": "touched"}
    env["PYTHONPATH"] += f":{tmp_path}"
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "django", "runserver", f"127.0.0.1:{port}"]
    # Else Django's autoreloader kills the process that serves a quarter of a second later.
    command += ["--noreload"] if end == "Ctrl-C" else []
    with servers.process(command, tmp_path / "log", tmp_path, env) as process:
        first = process.wait_for_page(f"{url}/pid")
        for number in range(5):
            servers.get(f"{url}/go?name={number}")
            servers.get(f"{url}/async?name=a{number}")
        if end == "Ctrl-C":
            process.signal(signal.SIGINT)
            process.wait()
        else:
            (tmp_path / "touched.py").write_text("from tasks_settings import *\nDEBUG = True\n\n")
            process.wait_for_log("Watching for file changes", 2)
            servers.wait_until(lambda: servers.get(f"{url}/pid") not in (None, first), process.log)

        expected = [f"{a}{number}" for number in range(5) for a in ("", "a")]
        assert sorted(arrived.read_text().split()) == sorted(expected), process.log()
        assert "Traceback" not in process.log()


@pytest.mark.promise("A graceful stop of gunicorn and uvicorn ends the tasks that views have enqueued")
@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_a_graceful_stop_ends_the_tasks(tmp_path, server):
    pytest.importorskip(server)
    arrived = tmp_path / "arrived"
    arrived.touch()
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "site_app.py").write_text(
        "from django.core.asgi import get_asgi_application\nfrom django.core.wsgi import get_wsgi_application\n"
        "from omniloop.ext.asgi import with_lifespan\n"
        "wsgi = get_wsgi_application()\nasgi = with_lifespan(get_asgi_application())\n"
    )
    command = {
        "gunicorn": ["gunicorn", f"--bind=127.0.0.1:{port}", "--workers=2", "--no-control-socket", "site_app:wsgi"],
        "uvicorn": ["uvicorn", f"--port={port}", "site_app:asgi"],
    }[server]
    env = {**environment(tmp_path), "ARRIVED": str(arrived)}
    env["PYTHONPATH"] += f":{tmp_path}"
    with servers.process([sys.executable, "-m", *command], tmp_path / "log", tmp_path, env) as process:
        process.wait_for_page(f"{url}/pid")
        for number in range(5):
            servers.get(f"{url}/go?name={number}")
            if server == "uvicorn":
                servers.get(f"{url}/async?name=a{number}")
        process.signal(signal.SIGTERM)
        process.wait()

        expected = {str(number) for number in range(5)} | (
            {f"a{number}" for number in range(5)} if server == "uvicorn" else set()
        )
        assert set(arrived.read_text().split()) == expected, process.log()
        assert "Traceback" not in process.log()


@pytest.mark.promise("`run_after` is heeded by an engine that can, and refused by one that can't")
def test_run_after_is_the_engines_to_heed(tmp_path):
    pytest.importorskip("procrastinate")

    def program():
        from datetime import UTC, datetime

        import engines
        from django.tasks import task_backends

        later = datetime(2099, 12, 31, tzinfo=UTC)
        jobs.add.using(run_after=later).enqueue(1, b=2)
        omniloop.flush()
        (job,) = engines.connector.jobs.values()
        print(job["task_name"], job["args"]["args"], job["args"]["kwargs"], job["scheduled_at"] == later)
        print(task_backends["default"].supports_defer)

    env = with_engine(
        tmp_path,
        "from procrastinate import App",
        "from procrastinate.testing import InMemoryConnector",
        "from omniloop.ext.procrastinate import Procrastinate",
        "connector = InMemoryConnector()",
        "app = App(connector=connector)",
        "jobs = Procrastinate(lambda: app)",
    )
    child = run_child(sets_up, program, env=env)
    assert_said(child, "jobs.add [1] {'b': 2} True", "True")
