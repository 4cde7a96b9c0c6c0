"""Calls that are handed over to Procrastinate, on PostgreSQL: by itself, and inside of Django's transactions."""

import pytest

pytest.importorskip("procrastinate")
pytest.importorskip("psycopg")

import services
from servers import free_port, get, wait_until
from test_brokers import LONG, Calls, _quiet

pytestmark = [pytest.mark.servers, pytest.mark.timeout(150)]

DJANGO = "import django_calls; django_calls.main()"


@pytest.fixture
def calls(tmp_path):
    with services.postgres(tmp_path) as service:
        yield Calls("procrastinate", service.url, tmp_path)


@pytest.fixture
def alone(calls):
    with calls._process("-m", "procrastinate", "--app", "pg_calls.app", "schema", "--apply") as schema:
        assert schema.wait() == 0, schema.log()
    return calls


def worker(calls):
    return calls._process("-m", "procrastinate", "--app", "pg_calls.app", "worker")


def producer(calls, count, seconds=0):
    return calls._process("-c", "import pg_calls; pg_calls.main()", count, seconds)


@pytest.mark.promise(
    "Of 40 jobs on a worker of Procrastinate that is killed, 40 run again", section="Beyond the process"
)
def test_jobs_on_a_worker_that_is_killed_run_again(alone):
    with producer(alone, 40, 300) as process:
        assert process.wait() == 0, process.log()
    with worker(alone) as process:
        alone.wait("started", 40)
        process.kill()
    assert alone.noted("ended") == {}

    with worker(alone) as process:
        ended = alone.wait("ended", 40)

    assert ended == dict.fromkeys(range(40), 1)
    assert sorted(alone.attempts("ended")) == [2] * 40


def test_a_thousand_calls_before_the_last_line_and_before_any_worker_arrive(alone):
    with producer(alone, 1000) as process:
        wait_until(process.ended, process.log, LONG)
        assert process.wait() == 0

    with worker(alone):
        ended = alone.wait("ended", 1000)
        _quiet(alone)

    assert ended == dict.fromkeys(range(1000), 1)


@pytest.mark.promise(
    "A worker of Procrastinate that a restart of PostgreSQL has ended is started again, and does what was called meanwhile"
)
def test_after_a_restart_of_the_database_a_worker_that_is_started_again_does_what_was_called(tmp_path):
    with services.postgres(tmp_path) as service:
        calls = Calls("procrastinate", service.url, tmp_path)
        with calls._process("-m", "procrastinate", "--app", "pg_calls.app", "schema", "--apply") as schema:
            assert schema.wait() == 0, schema.log()
        with worker(calls) as first:
            with producer(calls, 1) as process:
                assert process.wait() == 0, process.log()
            calls.wait("ended", 1)
            service.kill()
            service.start()
            with producer(calls, 10) as process:
                assert process.wait() == 0, process.log()
            wait_until(first.ended, first.log, LONG)
            # What docs/how-to/django-procrastinate.md says of it: a supervisor must not go by the code.
            assert first.wait() in (0, 1)
            assert "ConnectorException" in first.log()

        # As the supervisor does.
        with worker(calls):
            ended = calls.wait("ended", 10)

    assert set(ended) == set(range(10))


# --- Django -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(calls):
    pytest.importorskip("django")
    with calls._process("-c", DJANGO, "create") as create:
        assert create.wait() == 0, create.log()
    return calls


def django_worker(calls):
    return calls._process("-c", DJANGO, "procrastinate", "worker")


@pytest.mark.promise(
    "In Django a call is part of the transaction: a rollback sends nothing, and a commit loses nothing"
)
def test_a_rollback_sends_nothing_and_a_commit_loses_nothing_whoever_is_killed(project):
    pytest.importorskip("gunicorn")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "gunicorn", "django_calls:application", "-w", 1, "-b", f"127.0.0.1:{port}", "--no-control-socket"]
    with project._process(*command) as server:
        assert server.wait_for_page(url) == "[]"
        for number in range(30):
            assert get(f"{url}/register/{number}?seconds=300") == "ok"
        # As kill -9 of the server would.
        server.kill()
    committed = [number for number in range(30) if number % 3 != 2]

    with django_worker(project) as worker:
        project.wait("started", len(committed))
        worker.kill()
    with django_worker(project):
        project.wait("ended", len(committed))
        _quiet(project)

    assert project.noted("started").keys() == set(committed)
    assert project.noted("ended") == dict.fromkeys(committed, 1)
    with project._process(*command) as server:
        assert server.wait_for_page(url) == repr([(number, 1) for number in committed])


def test_in_an_async_view_the_call_goes_by_the_loop(project):
    pytest.importorskip("gunicorn")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "gunicorn", "django_calls:application", "-w", 1, "-b", f"127.0.0.1:{port}", "--no-control-socket"]
    with project._process(*command) as server:
        server.wait_for_page(url)
        for number in range(10):
            assert get(f"{url}/async/{number}") == "ok"
        assert server.stop() == 0

    with django_worker(project):
        ended = project.wait("ended", 10)

    assert ended == dict.fromkeys(range(10), 1)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "What PostgreSQL and Procrastinate refuse fails at its caller: access, tables that are not there, a `queueing_lock`"
)
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("CREATE ROLE reader LOGIN", "permission denied"),
        ("DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE ROLE reader LOGIN SUPERUSER", "does not exist"),
        ("CREATE ROLE reader LOGIN SUPERUSER", "there is already a job in the queue"),
    ],
    ids=["access", "tables", "lock"],
)
def test_what_postgres_refuses_fails_at_its_caller(alone, command, message):
    import psycopg
    from procrastinate import App, PsycopgConnector

    import omniloop
    from omniloop.ext.procrastinate import Procrastinate

    url = alone.env["BROKER_URL"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(command)
    jobs = Procrastinate(lambda: App(connector=PsycopgConnector(conninfo=url.replace("postgres@", "reader@"))))

    @omniloop.background(broker=jobs.with_options(queueing_lock="one"), name="locked")
    async def locked(number: int) -> None: ...

    @omniloop.background(broker=jobs, name="free")
    async def free(number: int) -> None: ...

    locked(0).accepted.exception(timeout=LONG)
    calls = [locked(number) for number in range(40)]
    others = [free(number) for number in range(40)]

    for call in calls:
        with pytest.raises(omniloop.RefusedError, match=f"(?i)refuses the call of locked: .*{message}"):
            call.accepted.result(timeout=LONG)
    for call in others:
        error = call.accepted.exception(timeout=LONG)
        assert isinstance(error, omniloop.RefusedError) == ("queue" not in message)
    omniloop.shutdown()
