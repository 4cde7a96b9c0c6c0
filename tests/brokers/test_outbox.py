"""`omniloop.ext.outbox`: on disk when the call returns, and there until it is done with, whoever is killed."""

# The programs of a test are one after the other: what the first defines, the next uses.
# ruff: noqa: F821

import asyncio
import collections
import gc
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
import weakref

import pytest

import omniloop
from children import child_environment, run_child
from omniloop import background
from omniloop._brokers import store
from omniloop.ext import outbox
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


def test_what_an_outbox_can_not_do_is_refused_by_what_is_wrong(tmp_path):
    with pytest.raises(TypeError, match=r"the second argument is an engine, such as Taskiq\(make\), or None"):
        Outbox(tmp_path / "jobs.sqlite", print)
    jobs = Outbox(tmp_path / "jobs.sqlite")

    async def work(): ...

    with pytest.raises(ValueError, match="the next process could not find it. Give it a name="):
        background(broker=jobs)(work)
    sent = background(broker=jobs, name="work")(work)()
    assert sent.result(timeout=LONG) is None
    sent.accepted.result(timeout=LONG)
    jobs._outcomes.clear()
    with pytest.raises(omniloop.NoResultError, match="it did not run in this process, or long ago"):
        sent.result(timeout=LONG)


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


# --- faults ------------------------------------------------------------------------------------------------------------


class Down(omniloop.Engine):
    """Takes nothing."""

    def bind(self, function): ...

    def pack(self, function, call_id, args, kwargs):
        return [call_id, list(args), kwargs]

    async def send(self, function, parcel):
        raise ConnectionError("down")

    async def fetch(self, function, call_id, timeout): ...


def query(path, sql, *parameters):
    connection = sqlite3.connect(path, timeout=LONG, isolation_level=None)
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()


@pytest.mark.promise(
    "When the function of a call has ended, only its crossing-out is tried again, whatever fails, and its value is there meanwhile"
)
def test_a_call_that_can_not_be_crossed_out_has_run_once_and_harms_no_other(tmp_path, caplog):
    path = tmp_path / "jobs.sqlite"
    jobs = Outbox(path)
    ran = collections.Counter()

    @background(broker=jobs, name="charge")
    async def charge(number: int) -> int:
        ran[number] += 1
        return number * 2

    charge(0).accepted.result(timeout=LONG)
    query(
        path,
        "CREATE TRIGGER no BEFORE DELETE ON calls WHEN OLD.parcel LIKE '%[1]%' BEGIN SELECT RAISE(ABORT, 'no'); END",
    )

    stuck = charge(1)
    assert stuck.result(timeout=LONG) == 2
    wait_until(lambda: "can't be crossed out" in caplog.text)
    others = [charge(number) for number in (2, 3)]
    for sent in others:
        sent.accepted.result(timeout=LONG)
    assert not stuck.accepted.done()
    # Another process may write: no transaction is open.
    query(path, "DROP TRIGGER no")
    stuck.accepted.result(timeout=LONG)

    assert ran == {0: 1, 1: 1, 2: 1, 3: 1}
    assert rows(path) == 0


def taken_over_in_vain():
    import sqlite3

    import omniloop
    from omniloop import background
    from omniloop.ext.outbox import Outbox

    path = os.environ["OUTBOX"]
    other = sqlite3.connect(path, timeout=5, isolation_level=None)
    other.execute("CREATE TRIGGER no BEFORE UPDATE ON calls BEGIN SELECT RAISE(ABORT, 'no'); END")

    @background(broker=Outbox(path, Down()), name="work")
    async def work(number): ...

    try:
        omniloop.flush(10)
    except TimeoutError:
        pass
    for number in range(10):
        work(number)
    print(other.execute("SELECT count(*) FROM calls").fetchone())
    other.execute("BEGIN IMMEDIATE")
    print("another may write", flush=True)
    os.kill(os.getpid(), 9)


def left_behind():
    from omniloop import background
    from omniloop.ext.outbox import Outbox

    @background(broker=Outbox(os.environ["OUTBOX"], Down()), name="work")
    async def work(number): ...

    work(1)
    os.kill(os.getpid(), 9)


@pytest.mark.promise("After a take-over that failed, calls are on disk when they return, and other processes can write")
def test_a_take_over_that_fails_leaves_no_transaction_open(book):
    run_child(left_behind, env=book.env)

    result = run_child(taken_over_in_vain, env=book.env)

    assert result.stdout == "(11,)\nanother may write\n", result.stderr


def full_disk():
    import logging
    import resource
    import signal
    import threading
    import time

    from omniloop import background
    from omniloop.ext.outbox import Outbox

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = os.environ["OUTBOX"]
    ran = []
    gate = threading.Event()

    @background(broker=Outbox(path), name="work")
    def work(number: int) -> int:
        ran.append(number)
        gate.wait(20)
        return number

    first = work(1)
    while not ran:
        time.sleep(0.01)
    size = os.path.getsize(path + "-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    begun = time.monotonic()
    try:
        work(2)
    except Exception as error:
        print(type(error).__name__, "at once" if time.monotonic() - begun < 15 else "late")
    told = threading.Event()

    class Told(logging.StreamHandler):
        def emit(self, record):
            super().emit(record)
            told.set()

    logging.getLogger("omniloop").addHandler(Told())
    gate.set()
    print(first.result(20), told.wait(20), first.accepted.done())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    third = work(3)
    first.accepted.result(20)
    print(third.result(20), sorted(ran))


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
@pytest.mark.promise("On a full disk a call fails at once, and what had run when it became full has run once")
def test_on_a_full_disk_a_call_fails_at_once_and_nothing_runs_twice(book):
    result = run_child(full_disk, env=book.env, timeout=60)

    assert result.code == 0
    assert result.stdout == "OperationalError at once\n1 True False\n3 [1, 3]\n", result.stderr
    assert result.stderr.count("can't be crossed") == 1
    assert rows(book.env["OUTBOX"]) == 0


def interrupted():
    import random
    import signal

    import omniloop
    from omniloop import background
    from omniloop.ext.outbox import Outbox

    @background(broker=Outbox(os.environ["OUTBOX"], Down()), name="work")
    async def work(number): ...

    def interrupt(*_):
        raise KeyboardInterrupt

    work(0)
    returned, interrupted = set(), 0
    for number in range(300):
        sent = None
        try:
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 1e-3))
            sent = work(number)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        except KeyboardInterrupt:
            interrupted += 1
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        if sent is not None:
            returned.add(sent.id)
    import sqlite3

    on_disk = {row[0] for row in sqlite3.connect(os.environ["OUTBOX"], timeout=5).execute("SELECT id FROM calls")}
    print(returned <= on_disk, len(on_disk) <= omniloop.stats().handing_over, interrupted > 0, flush=True)
    os.kill(os.getpid(), 9)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")
@pytest.mark.promise("A call that Ctrl-C interrupts is either on its way or not on disk, and other processes can write")
def test_a_call_that_is_interrupted_leaves_nothing_half_done(book):
    result = run_child(interrupted, env=book.env, timeout=60)

    assert result.stdout == "True True True\n", result.stderr


def interrupted_again_and_again():
    import random
    import signal
    import warnings

    import omniloop
    from omniloop import FullError, background
    from omniloop.ext.outbox import Outbox

    warnings.simplefilter("ignore")

    class Interrupted(BaseException): ...

    def interrupt(*_):
        raise Interrupted

    @background(broker=Outbox(os.environ["OUTBOX"]), name="work")
    async def work(): ...

    def call_until_full():
        try:
            while True:
                work()
        except FullError:
            pass

    work()
    signal.signal(signal.SIGALRM, interrupt)
    for _ in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
            call_until_full()
            # In here, as it may come behind the last call too.
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            pass
    work().accepted.result(timeout=30)
    omniloop.flush(timeout=30)
    print(omniloop.stats().handing_over, flush=True)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")
@pytest.mark.promise(
    "A call that is interrupted, at whatever point, keeps no later one from being written down, and no place on the way"
)
def test_later_calls_go_on_wherever_one_is_interrupted(book):
    result = run_child(interrupted_again_and_again, env=book.env, timeout=90)

    assert result.stdout == "0\n", result.stderr
    assert rows(book.env["OUTBOX"]) == 0
    assert "not this process's" not in result.stderr


def interrupting():
    import signal

    from omniloop import background
    from omniloop.ext.outbox import Outbox

    # Its calls stay on disk.
    jobs = Outbox(os.environ["OUTBOX"], Down())

    @background(broker=jobs, name="work")
    async def work(number): ...

    work(0)
    store = jobs._office().store
    signal.signal(signal.SIGUSR1, lambda *_: work(1))
    for lock in store._lock, store._post_box:
        with lock:
            # Something for the writer, which waits for what this thread holds.
            store._post([], int)
            signal.raise_signal(signal.SIGUSR1)
    print("returned", flush=True)
    os.kill(os.getpid(), 9)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
@pytest.mark.promise("A signal handler may make a call in the middle of another, at whatever point")
def test_a_signal_handler_may_make_a_call_in_the_middle_of_another(book):
    result = run_child(interrupting, env=book.env, timeout=60)

    assert result.stdout == "returned\n", result.stderr
    assert rows(book.env["OUTBOX"]) == 3


def some_begun():
    import asyncio

    from omniloop import background
    from omniloop.ext.outbox import Outbox

    @background(broker=Outbox(os.environ["OUTBOX"], at_once=5), name="five")
    async def five(number: int) -> None:
        attempt = current_delivery().attempt
        note("began", number, attempt)
        await asyncio.sleep(600 if os.environ.get("WANTED") is None else 0)
        note("ended", number, attempt)


def twenty():
    for number in range(20):
        five(number)
        note("returned", number)
    asyncio.run(asyncio.sleep(600))


@pytest.mark.promise("The attempt of a call is raised on disk when a run begins: what has not begun has 1")
def test_only_what_began_has_a_second_attempt(book):
    process = spawned(book, app, some_begun, twenty)
    try:
        wait_until(lambda: len(book.noted("began")) == 5 and len(book.noted("returned")) == 20)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)

    begun = set(book.noted("began"))

    result = run_child(app, some_begun, only_start, env={**book.env, "WANTED": "20"}, timeout=40)

    assert (result.code, result.stderr) == (0, "")
    lines = [line.split() for line in book.path.read_text().splitlines() if line.startswith("ended")]
    assert {int(number): int(attempt) for _, number, attempt in lines} == {
        number: 2 if number in begun else 1 for number in range(20)
    }


def test_a_call_that_another_process_has_taken_does_not_run_here(tmp_path, caplog):
    path = tmp_path / "jobs.sqlite"
    ran = []
    gate = threading.Event()

    @background(broker=Outbox(path, at_once=1), name="work")
    def work(number: int) -> None:
        ran.append(number)
        gate.wait(LONG)

    work(1)
    wait_until(lambda: ran)
    second = work(2)
    query(path, "UPDATE calls SET owner = ? WHERE parcel LIKE '%[2]%'", "f" * 32)
    gate.set()
    second.accepted.result(timeout=LONG)

    assert ran == [1]
    assert rows(path) == 1
    assert "does not run here" in caplog.text


def test_calls_that_come_together_are_committed_together(tmp_path):
    path = tmp_path / "jobs.sqlite"
    jobs = Outbox(path, Down())

    @background(broker=jobs, name="work")
    async def work(number): ...

    work(0)
    store = jobs._office().store
    statements = []
    store._connection.set_trace_callback(statements.append)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(jobs._way()._open) == 17)
    other.execute("COMMIT")
    other.close()
    for thread in threads:
        thread.join(LONG)

    assert rows(path) == 17
    # The first that came was alone, the second alone with the thread.
    assert statements.count("COMMIT") < 8
    query(path, "DELETE FROM calls")
    assert omniloop.shutdown(timeout=0.1) is None


# --- what can't be gone on with ------------------------------------------------------------------------------------------


POISON = {
    "of another shape": "INSERT INTO calls (id, owner, function, parcel) VALUES ('a', 'x', 'work', '{\"a\": 1}')",
    "no JSON": "INSERT INTO calls (id, owner, function, parcel) VALUES ('b', 'x', 'work', 'no')",
    "a blob": "INSERT INTO calls (id, owner, function, parcel) VALUES ('c', 'x', 'work', x'5b5b315d2c7b7d5d')",
    "no UTF-8": "INSERT INTO calls (id, owner, function, parcel) VALUES ('d', 'x', 'work', CAST(x'ff' AS TEXT))",
    "an id of NULL": "INSERT INTO calls (id, owner, function, parcel) VALUES (NULL, 'x', 'work', '[[1, 0], {}]')",
    "too deep": f"INSERT INTO calls (id, owner, function, parcel) VALUES ('e', 'x', 'work', '{'[' * 200_000}')",
    "other arguments": "INSERT INTO calls (id, owner, function, parcel) VALUES ('f', 'x', 'work', '[[1, 2, 3, 4], {}]')",
    "an attempt that is none": "INSERT INTO calls (id, owner, function, parcel, attempt) VALUES ('g', NULL, 'work', '[[1, 0], {}]', 'x')",
}


def call_once():
    work(100, 0)


def listed(path, *arguments):
    import subprocess

    return subprocess.run(
        [sys.executable, "-m", "omniloop", "outbox", path, *arguments],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.promise(
    "A call that can't be read is set aside, said once at ERROR, listed by `python -m omniloop outbox`, and delays nobody"
)
def test_what_can_not_be_read_is_set_aside_and_harms_no_other(book):
    path = book.env["OUTBOX"]
    assert run_child(app, call_once, env=book.env).code == 0
    for statement in POISON.values():
        query(path, statement)

    begun = time.monotonic()
    result = run_child(app, call_once, env=book.env)
    assert result.code == 0
    assert "set aside" in result.stderr and path in result.stderr
    again = run_child(app, call_once, env=book.env)

    # Far from the time that an exit may take.
    assert time.monotonic() - begun < 20
    assert (again.code, again.stderr) == (0, "")
    assert book.noted("ended") == {100: 3}
    told = listed(path)
    assert told.stdout.startswith(f"0 calls wait\n{len(POISON)} calls are set aside\n"), told
    assert "id None" in told.stdout and "no JSON" in told.stdout

    # Mended by hand, and requeued; the others dropped.
    query(path, "UPDATE calls SET parcel = '[[7, 0], {}]' WHERE id = 'f'")
    assert listed(path, "--requeue", "f").stdout == "1 calls requeued\n"
    assert listed(path, "--requeue", "nobody").returncode == 1
    assert listed(path, "--drop", "all").stdout == f"{len(POISON) - 1} calls dropped\n"
    run_child(app, call_once, env=book.env)
    assert book.noted("ended") == {100: 4, 7: 1}
    assert listed(path).stdout == "0 calls wait\n0 calls are set aside\n"


def no_functions():
    from omniloop import background
    from omniloop.ext.outbox import Outbox

    @background(broker=Outbox(os.environ["OUTBOX"]), name="other")
    async def other(): ...


@pytest.mark.promise(
    "What is left for a function that no process has is set aside, and goes on in the first process that has it"
)
def test_what_nobody_has_a_function_for_is_set_aside_until_somebody_has_it(book):
    run_child(app, at_the_end, env=book.env, timeout=20)

    first = run_child(no_functions, env=book.env)
    second = run_child(no_functions, env=book.env)

    assert first.stderr.count("3 of work, which no process had") == 1
    assert (first.code, second.code, second.stderr) == (0, 0, "")
    assert "3 calls are set aside" in listed(book.env["OUTBOX"]).stdout
    result = run_child(app, only_start, env={**book.env, "WANTED": "3"}, timeout=40)
    assert (result.code, result.stderr) == (0, "")
    assert book.noted("ended") == dict.fromkeys(range(3), 1)


def test_what_an_engine_refuses_is_set_aside(tmp_path, caplog):
    class Refusing(Down):
        async def send(self, function, parcel):
            raise omniloop.RefusedError("too large")

    path = tmp_path / "jobs.sqlite"

    @background(broker=Outbox(path, Refusing()), name="work")
    async def work(number): ...

    with pytest.raises(omniloop.RefusedError, match="too large"):
        work(1).accepted.result(timeout=LONG)

    assert query(path, "SELECT owner, aside FROM calls") == [("", "too large")]
    assert "too large" in caplog.text


def test_two_functions_of_one_name_are_refused(tmp_path):
    jobs = Outbox(tmp_path / "jobs.sqlite")

    @background(broker=jobs, name="work")
    async def one(): ...

    with pytest.raises(ValueError, match="another function is called 'work'"):

        @background(broker=jobs, name="work")
        async def two(): ...


@pytest.mark.promise(
    "What comes of a call that is waited for comes to its waiter, however many calls ended since it began"
)
def test_what_came_of_a_long_call_is_kept_for_its_waiter(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "_OUTCOMES", 50)
    jobs = Outbox(tmp_path / "jobs.sqlite")
    gate = asyncio.Event()

    @background(broker=jobs, name="long")
    async def long(number: int) -> int:
        await gate.wait()
        return number

    @background(broker=jobs, name="short")
    async def short() -> None: ...

    async def wait_for(sent):
        return await sent

    async def main():
        waiter = omniloop.go(wait_for(long(1)))
        while not jobs._outcomes:
            await asyncio.sleep(0.001)
        for _ in range(49):
            await short().accepted
        # Those that end together with it.
        others = [long(number) for number in range(20)]
        await asyncio.sleep(0.3)
        gate.set()
        for other in others:
            await other.accepted
        return await waiter

    assert omniloop.run(main(), timeout=LONG) == 1


def test_what_came_of_a_call_keeps_no_frames(tmp_path):
    class Thing: ...

    things = []

    @background(broker=Outbox(tmp_path / "jobs.sqlite"), name="fails")
    async def fails():
        thing = Thing()
        things.append(weakref.ref(thing))
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ExceptionGroup("outer", [error, LookupError("other")]) from error

    # pytest keeps what is logged, with the traceback.
    logging.disable()
    try:
        sent = fails()
        for _ in range(2):
            with pytest.raises(ExceptionGroup, match="outer") as caught:
                sent.result(timeout=LONG)
            assert caught.value.__cause__ is caught.value.exceptions[0]
            del caught
        sent.accepted.result(timeout=LONG)
        omniloop.flush(LONG)
    finally:
        logging.disable(logging.NOTSET)
    gc.collect()

    assert things[0]() is None


# --- files -------------------------------------------------------------------------------------------------------------


def with_files():
    import glob
    import stat

    os.umask(0)
    work(1, 0)
    for file in sorted(glob.glob(os.environ["OUTBOX"] + "*")):
        print(oct(stat.S_IMODE(os.stat(file).st_mode)), file.rpartition(".")[2])


@pytest.mark.skipif(sys.platform == "win32", reason="no modes")
@pytest.mark.promise(
    "The files of an outbox are for their user alone, whatever the umask, and a clean exit leaves no lock"
)
def test_the_files_are_private_and_an_exit_takes_the_lock_away(book, tmp_path):
    result = run_child(app, with_files, env=book.env)

    assert (result.code, result.stderr) == (0, "")
    assert sorted(result.stdout.splitlines()) == ["0o600 lock", "0o600 sqlite", "0o600 sqlite-shm", "0o600 sqlite-wal"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["book", "jobs.sqlite"]


@pytest.mark.skipif(sys.platform == "win32", reason="no links")
@pytest.mark.promise("A lock that can't be opened is said once, and the calls of other processes go on")
def test_a_lock_that_can_not_be_opened_stops_nobody(book):
    path = book.env["OUTBOX"]
    run_child(app, at_the_end, env=book.env, timeout=20)
    query(
        path,
        "INSERT INTO calls (id, owner, function, parcel) VALUES ('a', ?, 'work', '[[100, 0], {}]')",
        "a" * 32,
    )
    os.symlink("/nowhere", f"{path}.{'a' * 32}.lock")

    result = run_child(app, only_start, env={**book.env, "WANTED": "3"}, timeout=40)

    assert result.code == 0
    assert result.stderr.count("can't be told") == 1
    assert book.noted("ended") == dict.fromkeys(range(3), 1)
    assert "can't be told" in listed(path).stdout


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may be somebody else")
def test_another_users_hold_on_a_lock_stops_nobody(book, tmp_path):
    import fcntl

    path = book.env["OUTBOX"]
    run_child(app, at_the_end, env=book.env, timeout=20)
    ((owner,),) = query(path, "SELECT DISTINCT owner FROM calls")
    lock = f"{path}.{owner}.lock"
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.chmod(lock, 0o666)
        os.chown(lock, 65534, 65534)

        result = run_child(app, only_start, env={**book.env, "WANTED": "3"}, timeout=40)

    assert (result.code, result.stderr) == (0, "")
    assert book.noted("ended") == dict.fromkeys(range(3), 1)


def as_nobody():
    # All that is needed is loaded first: the interpreter may be root's alone.
    import tempfile

    import omniloop
    from omniloop import background
    from omniloop.ext.outbox import Outbox

    with tempfile.TemporaryDirectory() as other:

        @background(broker=Outbox(other + "/other.sqlite"), name="other")
        async def first(): ...

        first().result(20)
        omniloop.shutdown()
    os.setgid(65534)
    os.setuid(65534)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may be somebody else")
@pytest.mark.promise("What root has left in a user's outbox the user's processes take up")
def test_what_root_left_its_user_takes_up(book):
    import pathlib
    import shutil
    import tempfile

    # Others can't come into pytest's folder.
    folder = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        os.chmod(folder, 0o777)
        book = Book(folder)
        os.chmod(book.path, 0o666)
        assert run_child(as_nobody, app, call_once, env=book.env).stderr == ""
        process = spawned(book, app, forty)
        try:
            wait_until(lambda: len(book.noted("started")) == 41)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(LONG)

        result = run_child(as_nobody, app, only_start, env={**book.env, "WANTED": "41"}, timeout=40)

        assert (result.code, result.stderr) == (0, "")
    finally:
        shutil.rmtree(folder)


def refused_unlink():
    import os

    real = os.unlink

    def unlink(path, *args, **kwargs):
        if str(path).endswith(".lock"):
            raise PermissionError(13, "used by another process", path)
        real(path, *args, **kwargs)

    os.unlink = unlink


@pytest.mark.promise("What a dead process left goes on where no file that is open can be removed, as on Windows")
def test_a_lock_that_can_not_be_removed_stops_nobody(book):
    process = spawned(book, app, forty)
    try:
        wait_until(lambda: len(book.noted("started")) == 40)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)

    result = run_child(refused_unlink, app, only_start, env={**book.env, "WANTED": "40"}, timeout=40)

    assert (result.code, result.stderr) == (0, "")
    assert book.noted("ended") == dict.fromkeys(range(40), 1)
    assert rows(book.env["OUTBOX"]) == 0


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_anew(tmp_path, monkeypatch):
    """The calls would go into the old file, which nobody finds."""
    path = tmp_path / "jobs.sqlite"
    connect = store.connect

    def connect_to_the_old(where):
        connection = connect(where)
        connection.execute("PRAGMA user_version").fetchone()
        monkeypatch.undo()
        path.rename(tmp_path / "old.sqlite")
        path.touch()
        return connection

    monkeypatch.setattr(store, "connect", connect_to_the_old)
    begun, go_on = threading.Event(), threading.Event()

    @background(broker=Outbox(path), name="waits")
    def waits():
        begun.set()
        go_on.wait(LONG)

    sent = waits()
    try:
        assert begun.wait(LONG)
        assert rows(path) == 1
    finally:
        go_on.set()
    sent.accepted.result(timeout=LONG)


@pytest.mark.skipif(sys.platform == "win32", reason="no removal of an open file")
@pytest.mark.promise(
    "When the file was removed or replaced while in use, the next call says so and is not made, and the one after is in the new file"
)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_removed_is_told_and_begun_anew(tmp_path, replaced):
    path, other = tmp_path / "jobs.sqlite", tmp_path / "other.sqlite"

    @background(broker=Outbox(path), name="work")
    async def work(number: int) -> int:
        return number

    if replaced:
        sqlite3.connect(other).close()
        other.touch()
    work(1).accepted.result(timeout=LONG)
    if replaced:
        os.replace(other, path)
    else:
        os.unlink(path)

    with pytest.raises(OSError, match=r"jobs\.sqlite: .* while it was in use"):
        work(2)
    sent = work(3)
    assert sent.result(timeout=LONG) == 3
    sent.accepted.result(timeout=LONG)

    assert rows(path) == 0
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def forks_while_writing():
    import threading

    over = threading.Event()

    def call_on():
        number = 1000
        while not over.is_set():
            work(number, 0).accepted.result(20)
            number += 1

    threads = [threading.Thread(target=call_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(int(os.environ["FORKS"])):
        pid = os.fork()
        if pid == 0:
            work(number, 0)
            omniloop.flush(20)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.promise("A fork in the middle of calls of other threads leaves parent and child working")
def test_a_fork_while_other_threads_write_leaves_both_working(book):
    flags = ["-W", "ignore::DeprecationWarning"]
    result = run_child(app, forks_while_writing, env={**book.env, "FORKS": "20"}, timeout=60, flags=flags)

    assert (result.code, result.stderr) == (0, "")
    assert {number: book.noted("ended")[number] for number in range(20)} == dict.fromkeys(range(20), 1)


def thousands_left():
    import sqlite3
    import time
    import uuid

    work(0, 600)
    while not os.path.getsize(os.environ["BOOK"]):
        time.sleep(0.01)
    connection = sqlite3.connect(os.environ["OUTBOX"], timeout=5)
    row = connection.execute("SELECT owner, function, attempt, made FROM calls").fetchone()
    connection.executemany(
        "INSERT INTO calls (id, owner, function, attempt, made, parcel) VALUES (?, ?, ?, ?, ?, ?)",
        [(uuid.uuid4().hex, *row, f"[[{number}, 0], {{}}]") for number in range(1, 3000)],
    )
    connection.commit()
    os.kill(os.getpid(), 9)


def watch_them_go_on():
    import time

    most = 0
    ended = 0
    while ended < 3000:
        most = max(most, omniloop.stats().handing_over)
        time.sleep(0.001)
        with open(os.environ["BOOK"]) as lines:
            ended = sum(line.startswith("ended") for line in lines)
    print(most <= 1000)


@pytest.mark.promise("What was left goes on in batches: there is room for calls that are made meanwhile")
def test_thousands_that_were_left_go_on_in_batches(book):
    run_child(app, thousands_left, env=book.env)

    result = run_child(app, watch_them_go_on, env=book.env, timeout=60)

    assert (result.code, result.stdout, result.stderr) == (0, "True\n", "")
    assert book.noted("ended") == dict.fromkeys(range(3000), 1)
    assert rows(book.env["OUTBOX"]) == 0


# --- counted -----------------------------------------------------------------------------------------------------------


def two_threads():
    import itertools
    import threading

    numbers = itertools.count(int(os.environ["FIRST"]))

    def call_on():
        while True:
            number = next(numbers)
            note("called", number)
            work(number, 0.002)
            note("returned", number)

    for _ in range(2):
        threading.Thread(target=call_on, daemon=True).start()
    threading.Event().wait(600)


def until_nothing_is_left():
    import sqlite3
    import time

    connection = sqlite3.connect(os.environ["OUTBOX"], timeout=5)
    deadline = time.monotonic() + 30
    while connection.execute("SELECT count(*) FROM calls").fetchone() != (0,):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def killed_at_random(book, rounds):
    """Kill one of two processes at a random moment, round after round; returns what was noted of each call, in order."""
    import random

    moments = random.Random(49)
    for at in range(rounds):
        processes = [spawned(book, app, two_threads, FIRST=str((2 * at + one) * 100_000)) for one in range(2)]
        try:
            for one in range(2):
                wait_until(lambda first=(2 * at + one) * 100_000: first in book.noted("returned"))
            time.sleep(moments.uniform(0, 0.3))
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
                process.wait(LONG)
    assert run_child(app, until_nothing_is_left, env=book.env, timeout=60).code == 0
    calls = collections.defaultdict(list)
    for line in book.path.read_text().splitlines():
        word, number, *attempt = line.split()
        calls[int(number)].append((word, *map(int, attempt)))
    return calls


@pytest.mark.long
@pytest.mark.promise(
    "Of processes that are killed at random moments every call that had returned is done, and one that runs twice can tell why"
)
def test_after_kills_at_random_moments_every_call_is_accounted_for(book):
    calls = killed_at_random(book, int(os.environ.get("KILLS", "10")))

    lost, twice, unknown = [], collections.Counter(), []
    for number, notes in calls.items():
        started = [attempt for word, *rest in notes if word == "started" for attempt in rest]
        ended = [attempt for word, *rest in notes if word == "ended" for attempt in rest]
        if ("returned",) in notes and not ended:
            lost.append(number)
        if started != sorted(set(started)):
            # The same attempt twice would be one that could not tell.
            unknown.append((number, notes))
        if len(ended) > 1:
            twice["it had ended, and was not crossed out when its process was killed"] += 1
        elif len(started) > 1:
            twice["it was cut off"] += 1
        elif started and started[0] > 1:
            twice["it was to begin when its process was killed"] += 1
    print(len(calls), "calls;", dict(twice))

    assert (lost, unknown) == ([], [])
    assert rows(book.env["OUTBOX"]) == 0
