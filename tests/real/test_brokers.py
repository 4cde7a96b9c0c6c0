"""Calls that are handed over to real brokers, counted to the call: distinct, and doubled, whoever is killed meanwhile."""

import collections
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("taskiq")

import services
from servers import HERE, free_port, import_path, process, wait_until

from children import run_child, without_remarks

pytestmark = [pytest.mark.servers, pytest.mark.timeout(150)]

# Redelivery, a new worker's start, and a busy machine.
LONG = 60.0
BROKERS = ["rabbitmq", "nats"]


class Calls:
    """One queue of one broker, and the book in which its calls are written down."""

    def __init__(self, kind: str, url: str, folder: Path, **env: str) -> None:
        self.folder = folder
        self._book = folder / "book"
        self._book.touch()
        self._number = 0
        self.env = {
            "BROKER_KIND": kind,
            "BROKER_URL": url,
            "BOOK": str(self._book),
            "PYTHONPATH": import_path(HERE / "apps"),
            **env,
        }

    def noted(self, word: str) -> collections.Counter[int]:
        """How often *word* was written down, by the number of the call."""
        lines = [line.split() for line in self._book.read_text().splitlines()]
        return collections.Counter(int(line[1]) for line in lines if line[0] == word)

    def attempts(self, word: str) -> list[int]:
        lines = [line.split() for line in self._book.read_text().splitlines()]
        return [int(line[2]) for line in lines if line[0] == word]

    def wait(self, word: str, count: int, timeout: float = LONG) -> collections.Counter[int]:
        """Wait until *count* calls have come to *word*."""
        wait_until(
            lambda: len(self.noted(word)) >= count, lambda: f"{word}: {len(self.noted(word))} of {count}", timeout
        )
        return self.noted(word)

    @contextlib.contextmanager
    def _process(self, *command: object):
        self._number += 1
        name = self.folder / f"process{self._number}.log"
        with process([sys.executable, *command], name, self.folder, self.env) as running:
            yield running

    def worker(self):
        """taskiq's own."""
        return self._process("-m", "taskiq", "worker", "calls:broker", "--workers", 1, "--max-async-tasks", 100)

    def producer(self, count: int, seconds: float = 0):
        return self._process(HERE / "apps" / "calls.py", count, seconds)


@pytest.fixture(params=BROKERS)
def calls(request, tmp_path):
    """A queue that nobody else has."""
    with services.KINDS[request.param](tmp_path) as service:
        yield Calls(request.param, service.url, tmp_path)


@pytest.mark.promise(
    "Of 40 calls on a worker that is killed, 40 are done by another, with RabbitMQ and NATS",
    section="Beyond the process",
)
def test_calls_on_a_worker_that_is_killed_are_done_by_another(calls):
    with calls.producer(40, 300) as producer:
        assert producer.wait() == 0
    with calls.worker() as worker:
        calls.wait("started", 40)
        worker.kill()
    assert calls.noted("ended") == {}

    with calls.worker():
        ended = calls.wait("ended", 40)

    assert set(ended) == set(range(40))
    assert max(ended.values()) == 1
    # The body sees that it is not the first time.
    assert sorted(calls.attempts("ended")) == [2] * 40


@pytest.mark.promise(
    "When a program is killed in a burst, what `accepted` said had been accepted arrives, and nothing twice"
)
def test_a_producer_that_is_killed_loses_nothing_that_was_accepted(calls):
    with calls.producer(100_000) as producer:
        calls.wait("accepted", 150)
        producer.kill()
    accepted, returned = calls.noted("accepted"), calls.noted("returned")
    assert len(accepted) < len(returned)

    with calls.worker():
        calls.wait("ended", len(accepted))
        # And those that the broker had, whose answer the producer did not live to see: as many as may be sent at once.
        wait_until(lambda: set(accepted) <= set(calls.noted("ended")), "all that was accepted", LONG)
        _quiet(calls)

    ended = calls.noted("ended")
    assert max(ended.values()) == 1
    assert set(accepted) <= set(ended) <= set(returned)
    assert len(set(ended) - set(accepted)) <= 32


@pytest.mark.promise(
    "Behind an outbox every call that had returned when the program was killed arrives, by its next start"
)
def test_with_an_outbox_a_producer_that_is_killed_loses_nothing_that_had_returned(calls):
    calls.env["OUTBOX"] = str(calls.folder / "outbox.sqlite")
    with calls.producer(100_000) as producer:
        calls.wait("returned", 150)
        producer.kill()
    # The one that was being written down may be there, and not have returned.
    returned = set(calls.noted("returned"))

    with calls.producer(0) as again:
        assert again.wait() == 0, again.log()
    del calls.env["OUTBOX"]
    with calls.worker():
        calls.wait("ended", len(returned))
        wait_until(lambda: returned <= set(calls.noted("ended")), "all that returned", LONG)
        _quiet(calls)

    ended = calls.noted("ended")
    assert len(set(ended) - returned) <= 1
    # Twice: only what was sent, and not crossed out yet.
    assert sum(ended.values()) - len(ended) <= 32


def test_with_an_outbox_what_a_broker_that_is_down_does_not_take_goes_on_at_the_next_start(tmp_path):
    with services.nats(tmp_path) as service:
        calls = Calls("nats", service.url, tmp_path, OUTBOX=str(tmp_path / "outbox.sqlite"), OMNILOOP_EXIT_TIMEOUT="1")
        service.kill()
        with calls.producer(60) as producer:
            assert producer.wait() == 0
            assert "before these 60 calls were handed over; they are kept in" in producer.log()
        service.start()
        calls.env["OMNILOOP_EXIT_TIMEOUT"] = "60"
        with calls.producer(0) as again:
            assert again.wait() == 0, again.log()
        with calls.worker():
            ended = calls.wait("ended", 60)
            _quiet(calls)

    assert set(ended) == set(range(60))


def _quiet(calls):
    """Wait until nothing comes any more."""
    before = -1
    while (now := len(calls.noted("ended"))) != before:
        before = now
        time.sleep(0.5)


@pytest.mark.promise("Of 1,000 calls before the last line of a script, made before any worker exists, 1,000 arrive")
def test_a_thousand_calls_before_the_last_line_and_before_any_worker_arrive(calls):
    with calls.producer(1000) as producer:
        assert producer.wait() == 0
        assert without_remarks(producer.log()) == ""
    assert len(calls.noted("accepted")) == 1000

    with calls.worker():
        ended = calls.wait("ended", 1000)
        _quiet(calls)

    assert ended == dict.fromkeys(range(1000), 1)


@pytest.mark.promise("A broker that is down while a program calls, and comes up again, gets every call")
@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_that_goes_down_and_comes_up_gets_every_call(kind, tmp_path):
    with services.KINDS[kind](tmp_path) as service:
        # RabbitMQ's classic queues: on a quorum queue that was killed in a burst, 3.10 answers no publisher any more, a new one neither.
        calls = Calls(kind, service.url, tmp_path, OMNILOOP_EXIT_TIMEOUT="100", QUEUE="classic")
        with calls.producer(5000) as producer:
            calls.wait("accepted", 50)
            service.kill()
            calls.wait("returned", 5000)
            service.start()
            wait_until(producer.ended, lambda: f"the end of the producer:\n{producer.log()}", LONG)
        assert set(calls.noted("accepted")) == set(range(5000))
        assert calls.noted("accepted").total() == 5000

        with calls.worker():
            ended = calls.wait("ended", 5000)

    # A call whose answer was lost with the connection is sent again: at least once.
    assert set(ended) == set(range(5000))
    assert sum(ended.values()) - 5000 <= 32


@pytest.mark.promise(
    "A worker of NATS takes calls again after a restart of the server, also where the broker sets no limit"
)
def test_a_worker_of_nats_takes_calls_again_after_a_restart_of_the_server(tmp_path):
    with services.nats(tmp_path) as service:
        calls = Calls("nats", service.url, tmp_path, PULL="default")
        with calls.producer(1) as producer:
            assert producer.wait() == 0
        with calls.worker():
            calls.wait("ended", 1)
            service.kill()
            service.start()
            with calls.producer(50) as producer:
                assert producer.wait() == 0

            ended = calls.wait("ended", 50)

    assert set(ended) == set(range(50))


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_that_stays_down_costs_a_bounded_exit_and_each_call_is_named(kind, tmp_path):
    url = {"rabbitmq": "amqp://guest:guest@127.0.0.1:{}/", "nats": "nats://127.0.0.1:{}"}[kind].format(free_port())
    calls = Calls(kind, url, tmp_path, OMNILOOP_EXIT_TIMEOUT="1")

    with calls.producer(30) as producer:
        assert producer.wait() == 0
        log = producer.log()

    assert len(calls.noted("returned")) == 30
    (line,) = [line for line in log.splitlines() if "the process ended before these 30 calls were handed over" in line]
    assert line.count("work ") == 30


FORK = """
import os, sys
import calls, omniloop

for number in range(20):
    calls.call(number)
omniloop.flush()
pid = os.fork()
for number in range(100, 120) if pid == 0 else range(20, 40):
    calls.call(number)
if pid:
    _, status = os.waitpid(pid, 0)
    sys.exit(status)
"""


@pytest.mark.promise("After a fork, parent and child hand their calls over, each on a connection of its own")
def test_a_fork_after_use_loses_nothing(calls):
    # While a connection is open, a loop's thread is there, and the interpreter says so.
    result = run_child(FORK, env=calls.env, timeout=40, flags=["-W", "ignore::DeprecationWarning"])
    assert (result.code, result.stderr) == (0, "")

    with calls.worker():
        ended = calls.wait("ended", 60)
        _quiet(calls)

    assert ended == dict.fromkeys([*range(40), *range(100, 120)], 1)


APP = """
import calls

# Used in the master already.
calls.call(0).accepted.result(30)


def app(environ, start_response):
    if environ["PATH_INFO"] != "/":
        calls.call(int(environ["PATH_INFO"][1:]))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
"""


@pytest.mark.promise(
    "Under gunicorn --preload, where the master has used the broker, every call of the workers arrives"
)
def test_under_gunicorn_with_preload_every_call_arrives(calls):
    pytest.importorskip("gunicorn")
    from servers import get

    (calls.folder / "preloaded.py").write_text(APP)
    port = free_port()
    command = [
        "-m",
        "gunicorn",
        "preloaded:app",
        "--preload",
        "-w",
        2,
        "-b",
        f"127.0.0.1:{port}",
        "--no-control-socket",
    ]
    calls.env["PYTHONPATH"] = os.pathsep.join([str(calls.folder), calls.env["PYTHONPATH"]])
    with calls._process(*command) as server:
        server.wait_for_page(f"http://127.0.0.1:{port}/")
        for number in range(1, 61):
            assert get(f"http://127.0.0.1:{port}/{number}") == "ok"
        assert server.stop() == 0

    with calls.worker():
        ended = calls.wait("ended", 61)
        _quiet(calls)

    assert ended == dict.fromkeys(range(61), 1)


def test_a_value_comes_back_from_the_worker_and_an_error_as_itself(calls, redis):
    calls.env["RESULTS_URL"] = redis.url
    with calls.worker():
        result = run_child("import calls; print(calls.call(21).result(timeout=50))", env=calls.env, timeout=55)

    assert (result.stdout, result.stderr, result.code) == ("42\n", "", 0)


@pytest.mark.promise("The connection to RabbitMQ is closed in order at the end of the program")
@pytest.mark.parametrize("times", [3, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
def test_the_connection_is_closed_in_order_at_exit(rabbitmq, tmp_path, times):
    calls = Calls("rabbitmq", rabbitmq.url, tmp_path)
    before = len(rabbitmq.log())

    for _ in range(times):
        result = run_child("import calls; calls.call(1)", env=calls.env, timeout=30)
        assert (result.stdout, result.stderr, result.code) == ("", "", 0)

    assert calls.noted("accepted") == {1: times}
    log = rabbitmq.log()[before:]
    assert log.count("closing AMQP connection") >= times
    assert "unexpectedly closed" not in log
    assert "[error]" not in log


def test_a_call_that_outlives_ack_wait_is_not_given_to_another(nats, tmp_path):
    """`ack_wait` is 2 s here; without the word that it goes on, JetStream delivers it again."""
    calls = Calls("nats", nats.url, tmp_path)
    with calls.producer(1, 5) as producer:
        assert producer.wait() == 0

    with calls.worker():
        calls.wait("ended", 1)
        _quiet(calls)

    assert calls.noted("started") == {0: 1}
    assert calls.attempts("ended") == [1]


def test_a_worker_that_is_asked_to_end_finishes_what_it_has(calls):
    with calls.producer(20, 1) as producer:
        assert producer.wait() == 0
    with calls.worker() as worker:
        calls.wait("started", 20)
        worker.signal(signal.SIGTERM)
        worker.wait()

    assert set(calls.noted("ended")) == set(range(20))
