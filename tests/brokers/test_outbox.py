"""`omniloop.ext.outbox`: on disk when the call returns, and there until it is done with, whoever is killed."""

# The programs of a test are one after the other: what the first defines, the next uses.
# ruff: noqa: F821

import collections
import os
import signal
import sqlite3
import sys
import time

import pytest

import omniloop
from children import child_environment, run_child
from omniloop import background
from omniloop.ext.outbox import Outbox
from programs import source_of

# For a process that starts on a busy machine.
LONG = 30.0


def rows(path):
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("SELECT count(*) FROM calls").fetchone()
    connection.close()
    return count


def wait_until(condition, timeout=LONG):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


# --- in front of this process -----------------------------------------------------------------------------------------


def test_a_call_runs_here_its_value_comes_back_and_nothing_of_it_stays_on_disk(tmp_path):
    jobs = Outbox(tmp_path / "jobs.sqlite")

    @background(broker=jobs, name="double")
    async def double(number: int) -> list:
        delivery = omniloop.current_delivery()
        return [number * 2, delivery.id, delivery.attempt]

    sent = double(21)

    assert sent.result(timeout=LONG) == [42, sent.id, 1]
    sent.accepted.result(timeout=LONG)
    assert rows(tmp_path / "jobs.sqlite") == 0


@pytest.mark.promise("A call of an outbox is on disk when it returns", section="Beyond the process")
def test_a_call_is_on_disk_when_it_returns(tmp_path):
    class Down(omniloop.Engine):
        """Takes nothing until it is told to."""

        up = False

        def bind(self, function): ...

        def pack(self, function, call_id, args, kwargs):
            return [call_id, args, kwargs]

        async def send(self, function, parcel):
            assert self.up, "down"

        async def fetch(self, function, call_id, timeout): ...

    engine = Down()
    path = tmp_path / "jobs.sqlite"

    @background(broker=Outbox(path, engine), name="work")
    async def work(number): ...

    sent = [work(number) for number in range(10)]

    try:
        assert rows(path) == 10
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()
    finally:
        engine.up = True
    for call in sent:
        call.accepted.result(timeout=LONG)
    assert rows(path) == 0


def test_an_error_is_the_calls_own_end(tmp_path, caplog):
    jobs = Outbox(tmp_path / "jobs.sqlite")

    @background(broker=jobs, name="fails")
    async def fails():
        raise LookupError("no such account")

    sent = fails()

    with pytest.raises(LookupError, match="no such account"):
        sent.result(timeout=LONG)
    sent.accepted.result(timeout=LONG)
    assert rows(tmp_path / "jobs.sqlite") == 0
    assert "fails" in caplog.text


def test_what_json_changes_is_refused_and_not_on_disk(tmp_path):
    jobs = Outbox(tmp_path / "jobs.sqlite")

    @background(broker=jobs, name="work")
    async def work(value): ...

    for value in ((1, 2), object(), {1: 2}):
        with pytest.raises(TypeError, match="work"):
            work(value)
    assert not (tmp_path / "jobs.sqlite").exists()


def test_what_is_refused_for_want_of_room_is_not_on_disk(tmp_path):
    import threading

    gate = threading.Event()
    jobs = Outbox(tmp_path / "jobs.sqlite", waiting=2)

    @background(broker=jobs, name="work")
    def work(number):
        gate.wait(LONG)

    work(1), work(2)
    try:
        with pytest.raises(omniloop.FullError):
            work(3)
        assert rows(tmp_path / "jobs.sqlite") == 2
    finally:
        gate.set()
    omniloop.flush(timeout=LONG)


# --- killed -----------------------------------------------------------------------------------------------------------


def app():
    """What each of the processes below begins with: two functions, and a book of what they have done."""
    import asyncio
    import os

    from omniloop import background, current_delivery
    from omniloop.ext.outbox import Outbox

    jobs = Outbox(os.environ["OUTBOX"])
    book = os.open(os.environ["BOOK"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(*words):
        os.write(book, (" ".join(map(str, words)) + "\n").encode())

    @background(broker=jobs, name="work")
    async def work(number: int, seconds: float) -> None:
        attempt = current_delivery().attempt
        note("started", number, attempt)
        await asyncio.sleep(seconds if attempt == 1 else 0)
        note("ended", number, attempt)


def burst():
    note("pid", os.getpid())
    number = 0
    while True:
        work(number, 0.01)
        note("returned", number)
        number += 1


def forty():
    for number in range(40):
        work(number, 600)
    asyncio.run(asyncio.sleep(600))


def only_start():
    # Nothing is called here: what was left goes on by itself.
    import time

    deadline = time.monotonic() + 30
    ended = 0
    while ended < int(os.environ["WANTED"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
        with open(os.environ["BOOK"]) as lines:
            ended = sum(line.startswith("ended") for line in lines)


class Book:
    def __init__(self, folder):
        self.path = folder / "book"
        self.path.touch()
        self.env = {"OUTBOX": str(folder / "jobs.sqlite"), "BOOK": str(self.path)}

    def noted(self, word):
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return collections.Counter(int(line[1]) for line in lines if line[0] == word)


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


def spawned(book, *programs, **env):
    import subprocess

    source = "\n".join(source_of(program) for program in programs)
    return subprocess.Popen(
        [sys.executable, "-c", source], env=child_environment({**book.env, **env}), start_new_session=True
    )


@pytest.mark.promise(
    "When a process is killed in a burst, every call of its outbox that had returned is done at the next start"
)
def test_a_process_that_is_killed_in_a_burst_loses_nothing_that_had_returned(book):
    process = spawned(book, app, burst)
    try:
        wait_until(lambda: len(book.noted("returned")) > 150)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)
    returned = set(book.noted("returned"))
    missing = len(returned - set(book.noted("ended")))

    result = run_child(app, only_start, env={**book.env, "WANTED": str(len(book.noted("ended")) + missing)}, timeout=40)

    assert (result.code, result.stderr) == (0, "")
    assert returned <= set(book.noted("ended"))
    # One may have been on disk, and its call not have returned.
    assert len(set(book.noted("ended")) - returned) <= 1
    # Twice: only what had ended, and not been crossed out yet.
    assert max(book.noted("ended").values()) <= 2
    assert rows(book.env["OUTBOX"]) == 0


@pytest.mark.promise(
    "Calls that ran in a process that is killed run again within a second of the next start, and see that"
)
def test_forty_calls_in_a_process_that_is_killed_run_again_at_the_next_start(book):
    process = spawned(book, app, forty)
    try:
        wait_until(lambda: len(book.noted("started")) == 40)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)
    assert book.noted("ended") == {}

    result = run_child(app, only_start, env={**book.env, "WANTED": "40"}, timeout=40)

    assert (result.code, result.stderr) == (0, "")
    assert book.noted("ended") == dict.fromkeys(range(40), 1)
    assert {line.split()[2] for line in book.path.read_text().splitlines() if line.startswith("ended")} == {"2"}


@pytest.mark.promise("Two processes on one outbox do not take each other's calls, until one of them is killed")
def test_a_living_sibling_keeps_its_calls_and_a_killed_ones_go_on(book):
    first = spawned(book, app, forty)
    second = None
    try:
        wait_until(lambda: len(book.noted("started")) == 40)
        second = spawned(book, app, only_start, WANTED="40")
        time.sleep(1.5)
        assert book.noted("started") == dict.fromkeys(range(40), 1)
        first.send_signal(signal.SIGKILL)
        first.wait(LONG)
        assert second.wait(LONG) == 0
    finally:
        for process in (first, second):
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(LONG)

    assert book.noted("ended") == dict.fromkeys(range(40), 1)


def many_functions():
    import asyncio

    functions = []
    for at in range(50):

        @background(broker=jobs, name=f"work {at}")
        async def one(number: int) -> None:
            attempt = current_delivery().attempt
            note("started", number)
            await asyncio.sleep(600 if attempt == 1 else 0)
            note("ended", number)

        functions.append(one)
        # The loop comes in between.
        import time

        time.sleep(0.005)


def call_all():
    for number, function in enumerate(functions):
        function(number)
    time.sleep(600)


def test_every_function_takes_up_what_was_left_for_it_in_whichever_order_they_are_defined(book):
    process = spawned(book, app, many_functions, call_all)
    try:
        wait_until(lambda: len(book.noted("started")) == 50)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)

    result = run_child(app, many_functions, only_start, env={**book.env, "WANTED": "50"}, timeout=40)

    assert (result.code, result.stderr) == (0, "")
    assert book.noted("ended") == dict.fromkeys(range(50), 1)


def thousand():
    for number in range(1000):
        work(number, 0)


def test_two_processes_at_once_on_one_file_do_each_call_once(book):
    processes = [spawned(book, app, thousand) for _ in range(2)]

    assert [process.wait(60) for process in processes] == [0, 0]
    assert book.noted("ended") == dict.fromkeys(range(1000), 2)
    assert rows(book.env["OUTBOX"]) == 0


def forks():
    for number in range(20):
        work(number, 0.01)
    pid = os.fork()
    for number in range(100, 120) if pid == 0 else range(20, 40):
        work(number, 0.01)
    if pid:
        _, status = os.waitpid(pid, 0)
        sys.exit(status)


def test_after_a_fork_parent_and_child_do_their_own_calls_once(book):
    result = run_child(app, forks, env=book.env, timeout=40, flags=["-W", "ignore::DeprecationWarning"])

    assert (result.code, result.stderr) == (0, "")
    assert book.noted("ended") == dict.fromkeys([*range(40), *range(100, 120)], 1)
    assert rows(book.env["OUTBOX"]) == 0


def at_the_end():
    import omniloop

    omniloop.configure(exit_timeout=0.3)
    for number in range(3):
        work(number, 600)


def test_what_is_not_done_in_time_is_named_and_goes_on_at_the_next_start(book):
    ended = run_child(app, at_the_end, env=book.env, timeout=20)
    assert f"before these 3 calls were handed over; they are kept in {book.env['OUTBOX']}" in ended.stderr

    result = run_child(app, only_start, env={**book.env, "WANTED": "3"}, timeout=40)

    assert (result.code, result.stderr) == (0, "")
    assert book.noted("ended") == dict.fromkeys(range(3), 1)
