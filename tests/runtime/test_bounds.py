"""`max_pending`: what may pile up is bounded; more waits, is refused, or is dropped."""

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import inspect
import linecache
import os
import signal
import sys
import threading
import time
import warnings

import pytest

import omniloop
from children import run_child
from omniloop import ClosedError, FullError, Runtime, SettingError, _admission


class Gate:
    """Work that stays unfinished until the gate is opened."""

    def __init__(self):
        self._open = threading.Event()
        self.started = []

    async def work(self, number=0):
        self.started.append(number)
        await asyncio.to_thread(self._open.wait, 8)
        return number

    def blocking_work(self, number=0):
        self.started.append(number)
        self._open.wait(8)
        return number

    def open(self):
        self._open.set()


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open()


async def value(thing=None):
    return thing


async def forever(ended):
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ended.append(True)


def wait_until(condition):
    """For what happens inside another thread's call, where no event can be set."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def waiting_for_room(runtime):
    return len(runtime._admission._queue)


# --- what is counted --------------------------------------------------------------------------------------------------


@pytest.mark.promise('More than `max_pending` is refused with `when_full="raise"`, and the coroutine closed')
def test_more_than_max_pending_is_refused_and_the_coroutine_closed(gate):
    with Runtime(max_pending=3, when_full="raise") as runtime:
        runtime.go(gate.work())
        runtime.go(gate.work(), daemon=True)
        runtime.to_thread(gate.blocking_work)
        coro = value()

        with pytest.raises(FullError, match="max_pending=3 was reached"):
            runtime.go(coro)
        with pytest.raises(FullError):
            runtime.call_soon(abs, -1)
        with pytest.raises(FullError):
            runtime.to_thread(abs, -1)
        gate.open()

    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


def test_what_is_done_makes_room():
    with Runtime(max_pending=1, when_full="raise") as runtime:
        for number in range(100):
            assert runtime.go(value(number)).result(5) == number
            with pytest.raises(ValueError):
                runtime.to_thread(int, "x").result(5)


def test_run_delayed_and_periodic_calls_are_let_through(gate):
    with Runtime(max_pending=1, when_full="raise") as runtime:
        runtime.go(gate.work())

        assert runtime.run(value(1), timeout=5) == 1
        assert runtime.call_later(0, abs, -1).result(5) == 1
        assert not runtime.every(60, lambda: None).done()
        gate.open()


@pytest.mark.promise("Of many threads, exactly as many submissions as fit are accepted")
def test_of_many_threads_exactly_as_many_as_fit_are_accepted(gate):
    start = threading.Barrier(8)
    refused = []

    def submit():
        start.wait(5)
        for _ in range(50):
            try:
                runtime.go(gate.work())
            except FullError:
                refused.append(True)

    with Runtime(max_pending=100, when_full="raise") as runtime:
        threads = [threading.Thread(target=submit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(8)
        runtime.run(value())
        unfinished = len(runtime.tasks())
        gate.open()

    assert (unfinished, len(refused)) == (100, 300)


# --- try_go -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("`try_go` returns None where there is no room")
@pytest.mark.parametrize("when_full", ["block", "raise", "drop_new", "drop_old"])
def test_try_go_returns_none_when_there_is_no_room(gate, when_full):
    with Runtime(max_pending=1, when_full=when_full) as runtime:
        first = runtime.try_go(gate.work(1))
        coro = value()

        assert runtime.try_go(coro) is None
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        assert runtime.stats().dropped == 0
        gate.open()
        assert first.result(5) == 1
        assert runtime.try_go(value(2)).result(5) == 2


def test_without_a_bound_try_go_is_go():
    assert omniloop.try_go(value(1), name="one").result(5) == 1


# --- block ------------------------------------------------------------------------------------------------------------


@pytest.mark.promise('With `when_full="block"` submitters get room in the order of asking')
def test_go_waits_for_room_in_the_order_of_asking(gate):
    accepted = []

    def submit(number):
        runtime.go(gate.work(number))
        accepted.append(number)

    with Runtime(max_pending=1) as runtime:
        submit(0)
        threads = []
        for number in range(1, 5):
            threads.append(threading.Thread(target=submit, args=(number,)))
            threads[-1].start()
            wait_until(lambda: waiting_for_room(runtime) == number)  # noqa: B023
        assert accepted == [0]
        gate.open()
        for thread in threads:
            thread.join(5)
        runtime.flush(5)

    assert gate.started == [0, 1, 2, 3, 4]


@pytest.mark.promise("A flood through a small bound is done completely and in order")
def test_a_flood_through_a_small_bound_is_done_completely_and_in_order():
    done = []
    with Runtime(max_pending=3) as runtime:
        for number in range(2000):
            runtime.call_soon(done.append, number)

    assert done == list(range(2000))


@pytest.mark.promise("A thread that runs an event loop is not blocked, but told")
def test_blocking_an_event_loop_is_refused(gate):
    """The loop's own thread would wait for itself; on another, what is pending may wait for that loop."""

    async def submit():
        coro = value()
        with pytest.raises(FullError, match="runs an event loop"):
            runtime.go(coro)
        return inspect.getcoroutinestate(coro)

    with Runtime(max_pending=1) as runtime:
        runtime.go(gate.work())

        assert runtime.run(submit(), timeout=5) == inspect.CORO_CLOSED
        assert asyncio.run(submit()) == inspect.CORO_CLOSED
        gate.open()


@pytest.mark.promise("Nor is a worker thread, which has one of the places itself")
def test_a_worker_thread_does_not_wait_for_the_room_that_it_takes_itself():
    with Runtime(max_pending=1) as runtime, pytest.raises(FullError, match="worker"):
        runtime.to_thread(lambda: runtime.go(value())).result(5)


@pytest.mark.promise("Nor is a signal handler")
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("kind", ["function", "partial", "method", "callable", "lambda"])
def test_a_signal_handler_is_refused_instead_of_blocked(kind):
    def program():
        omniloop.configure(max_pending=1)
        release = asyncio.Event()
        first = omniloop.go(release.wait())

        def handler(number, frame):
            try:
                omniloop.go(asyncio.sleep(0))
            except FullError as error:
                print("signal handler" in str(error))

        def more(one, number, frame):
            handler(number, frame)

        class Handlers:
            def method(self, number, frame):
                handler(number, frame)

            def __call__(self, number, frame):
                handler(number, frame)

        handlers = {
            "function": handler,
            "partial": functools.partial(more, 1),
            "method": Handlers().method,
            "callable": Handlers(),
            "lambda": lambda *args: handler(None, None),
        }
        signal.signal(signal.SIGUSR1, handlers[kind])
        os.kill(os.getpid(), signal.SIGUSR1)

        # One rule, and no guess: what is set as a handler never waits, and what is no longer set may.
        handlers[kind](signal.SIGUSR1, None)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)

        async def let_go_soon():
            asyncio.get_running_loop().call_later(0.05, release.set)

        omniloop.run(let_go_soon())
        handlers[kind](signal.SIGUSR1, None)
        print("waited")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("True\nTrue\nwaited\n", "", 0)


def test_a_submitter_that_waits_when_the_runtime_is_shut_down_is_refused(gate):
    errors = []

    def submit():
        try:
            runtime.go(coro)
        except ClosedError as error:
            errors.append(error)

    coro = value()
    runtime = Runtime(max_pending=1)
    runtime.go(forever([]))
    thread = threading.Thread(target=submit)
    thread.start()
    wait_until(lambda: waiting_for_room(runtime) == 1)
    runtime.shutdown(timeout=0)
    thread.join(5)

    # Accepted at the last moment and then refused, or cancelled by the drain; never lost, never left open.
    assert errors or coro.cr_frame is None
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


@pytest.mark.promise("Ctrl-C while waiting for room refuses the work and loses no place")
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_while_waiting_for_room_refuses_and_loses_no_place():
    def program():
        async def interrupt():
            while not omniloop.shared_runtime()._admission._queue:
                await asyncio.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            await release.wait()

        release = asyncio.Event()
        omniloop.configure(max_pending=1)
        first = omniloop.go(interrupt())
        coro = asyncio.sleep(0)
        try:
            omniloop.go(coro)
        except KeyboardInterrupt:
            print("interrupted", inspect.getcoroutinestate(coro))

        async def let_go():
            release.set()

        omniloop.run(let_go())
        for _ in range(3):
            print(omniloop.go(asyncio.sleep(0, "done")).result(5))

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == (
        "interrupted CORO_CLOSED\n" + "done\n" * 3,
        "",
        0,
    )


def test_ctrl_c_at_any_line_of_a_submission_loses_no_place():
    def interrupt_at(line):
        """Raise at the given line event of the bounded path, as a signal handler may."""
        lines = 0

        def trace(frame, event, arg):
            nonlocal lines
            if frame.f_code.co_name not in ("_put_bounded", "admit", "delivered"):
                return trace if frame.f_code.co_name in ("go", "_go") else None
            # Not where a `with` enters or leaves: there the interpreter lets no signal handler come in between.
            if event == "line" and "with self._lock" not in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
                lines += 1
                if lines == line:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        coro = value()
        sys.settrace(trace)
        try:
            runtime.go(coro)
        finally:
            sys.settrace(None)
            runtime.flush(5)
            coro.close()

    former = sys.gettrace()
    line = 0
    with Runtime(max_pending=1, when_full="raise") as runtime:
        try:
            while True:
                line += 1
                with contextlib.suppress(KeyboardInterrupt):
                    interrupt_at(line)
                    break
        finally:
            sys.settrace(former)
        places = len(runtime._admission._places)

    assert places == 0
    assert line > 8


# --- dropping ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise('`"drop_new"` returns a cancelled handle and closes the coroutine')
def test_drop_new_returns_a_cancelled_task_and_closes_the_coroutine(gate):
    reports = []
    with Runtime(max_pending=1, when_full="drop_new", on_error=reports.append) as runtime:
        first = runtime.go(gate.work(1))
        coro = value()
        dropped = [runtime.go(coro), runtime.call_soon(abs, -1), runtime.to_thread(abs, -1)]

        assert all(task.cancelled() for task in dropped)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        assert runtime.stats().dropped == 3
        gate.open()
        assert first.result(5) == 1


@pytest.mark.promise('`"drop_old"` ends the oldest, and keeps the order of the others')
def test_drop_old_ends_the_oldest_and_keeps_the_order_of_the_others():
    reports, ended, done = [], [], []
    with Runtime(max_pending=3, when_full="drop_old", on_error=reports.append) as runtime:
        old = [runtime.go(forever(ended)) for _ in range(3)]
        runtime.run(value())
        blocked, release = threading.Event(), threading.Event()
        runtime.call_later(0, lambda: (blocked.set(), release.wait(5)))
        assert blocked.wait(5)
        # Neither is done, and has left its place, before the other comes.
        new = [runtime.call_soon(done.append, number) for number in range(2)]
        release.set()
        for task in new:
            task.result(5)
        concurrent.futures.wait(old[:2], timeout=5)

        assert [task.cancelled() for task in old] == [True, True, False]
        old[2].cancel()

    assert done == [0, 1]
    assert ended == [True] * 3
    assert runtime.stats().dropped == 2


@pytest.mark.promise("What is dropped while the loop is blocked does not pile up for it")
def test_drop_old_drops_what_has_not_started_without_starting_it():
    started, reports = [], []
    blocked, release = threading.Event(), threading.Event()

    def block():
        blocked.set()
        release.wait(5)

    async def work(number):
        started.append(number)

    with Runtime(max_pending=4, when_full="drop_old", on_error=reports.append) as runtime:
        runtime.call_later(0, block)
        assert blocked.wait(5)
        coros = [work(number) for number in range(100)]
        tasks = [runtime.go(coro) for coro in coros]
        # While the loop is blocked, what is dropped does not pile up.
        depth = len(runtime._life.inbox)
        states = {inspect.getcoroutinestate(coro) for coro in coros[:96]}
        release.set()
        runtime.flush(5)

        assert states == {inspect.CORO_CLOSED}
        assert depth <= 5
        assert [task.cancelled() for task in tasks] == [True] * 96 + [False] * 4
        assert started == [96, 97, 98, 99]


def test_drop_old_lets_calls_in_threads_go_on_and_drops_the_new_if_nothing_else_is_there(gate):
    reports = []
    with Runtime(max_pending=2, when_full="drop_old", on_error=reports.append) as runtime:
        calls = [runtime.to_thread(gate.blocking_work, number) for number in range(2)]
        wait_until(lambda: len(gate.started) == 2)
        new = runtime.go(value())

        assert new.cancelled()
        gate.open()
        assert [call.result(5) for call in calls] == [0, 1]


@pytest.mark.promise("What is dropped is told of at once, then once a second at most, and at the end")
def test_what_is_dropped_is_told_of_at_once_then_once_a_second_and_at_the_end(monkeypatch):
    # All of it is within a second, however long a busy machine takes for it.
    monkeypatch.setattr(_admission, "_REPORT_EVERY", 60)
    reports = []
    with Runtime(max_pending=1, when_full="drop_new", on_error=reports.append) as runtime:
        ended = []
        runtime.go(forever(ended), daemon=True)
        runtime.go(value())
        wait_until(lambda: len(reports) == 1)
        for _ in range(1000):
            runtime.go(value())
        runtime.flush(5)
        assert len(reports) == 1

    assert [report.message.split(",")[0] for report in reports] == ["1 dropped", "1000 dropped"]
    assert "; the last was '" in reports[0].message
    assert {type(report.exception) for report in reports} == {FullError}
    assert reports[0].site.filename == __file__
    assert "max_pending" in str(reports[0])


def test_a_second_report_comes_after_a_second():
    reports = []
    with Runtime(max_pending=1, when_full="drop_new", on_error=reports.append) as runtime:
        runtime.go(forever([]), daemon=True)
        before = time.monotonic()
        runtime.go(value())
        wait_until(lambda: len(reports) == 1)
        runtime.go(value())
        wait_until(lambda: len(reports) == 2)

        assert time.monotonic() - before >= 1


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_bound_may_change_while_submitters_wait(gate):
    with Runtime(max_pending=1) as runtime:
        runtime.go(gate.work(0))
        threads = [threading.Thread(target=runtime.go, args=(gate.work(number),)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: waiting_for_room(runtime) == 2)
        runtime.configure(max_pending=2)
        wait_until(lambda: waiting_for_room(runtime) == 1)
        runtime.configure(max_pending=None)
        for thread in threads:
            thread.join(5)
        runtime.go(gate.work(3))
        runtime.run(value())
        unfinished = len(runtime.tasks())
        gate.open()

    assert unfinished == 4


@pytest.mark.parametrize("setting", [{"max_pending": 0}, {"max_pending": 1.5}, {"when_full": "wait"}], ids=str)
def test_a_bound_that_can_not_be_is_named(setting):
    ((name, number),) = setting.items()

    with pytest.raises(SettingError, match=f"^{name}={number!r}: give "):
        Runtime(**setting)


def test_the_environment_sets_the_bound_from_the_first_submission_on():
    def program():
        started = [omniloop.try_go(asyncio.sleep(60), daemon=True) is not None for _ in range(3)]
        print(started)
        try:
            omniloop.go(asyncio.sleep(0))
        except omniloop.FullError:
            print("refused")

    result = run_child(
        program,
        env={"OMNILOOP_MAX_PENDING": "2", "OMNILOOP_WHEN_FULL": "raise"},
    )

    assert (result.stdout, result.stderr, result.code) == ("[True, True, False]\nrefused\n", "", 0)


def test_a_bound_in_the_environment_that_can_not_be_is_named_at_first_use():
    def program():
        try:
            omniloop.go(asyncio.sleep(0))
        except omniloop.SettingError as error:
            print(error)

    result = run_child(
        program,
        env={"OMNILOOP_MAX_PENDING": "many"},
    )

    assert result.stdout.startswith("OMNILOOP_MAX_PENDING='many' can't be used")
    assert (result.stderr, result.code) == ("", 0)


# --- ending well ------------------------------------------------------------------------------------------------------


@pytest.mark.promise("What waits for room at exit is still accepted and done")
def test_what_waits_for_room_at_exit_is_still_accepted_and_done():
    def program():
        async def work(number):
            await asyncio.sleep(0.01)
            print(number)

        def submit():
            for number in range(4):
                omniloop.go(work(number))
                first.set()

        first = threading.Event()
        omniloop.configure(max_pending=1)
        threading.Thread(target=submit).start()
        first.wait()

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("0\n1\n2\n3\n", "", 0)


def test_what_was_dropped_is_told_of_in_the_log_at_exit():
    def program():
        omniloop.configure(max_pending=1, when_full="drop_new")
        gate = asyncio.Event()
        for _ in range(50):
            omniloop.go(gate.wait())
        omniloop.call_later(0, gate.set)

    result = run_child(program)

    counts = [int(line.split()[0]) for line in result.stderr.splitlines() if " dropped, because " in line]
    assert sum(counts) == 49
    assert len(counts) <= 2
    assert "Task was destroyed" not in result.stderr
    assert (result.stdout, result.code) == ("", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.promise("A forked child has all the room, and the parent's waiter goes on")
def test_a_forked_child_has_all_the_room_and_the_parents_waiter_goes_on():
    def program():
        warnings.simplefilter("ignore", DeprecationWarning)

        async def work(who, go_on):
            await go_on.wait()
            print(who, flush=True)

        forked, full = asyncio.Event(), asyncio.Event()
        omniloop.configure(max_pending=1)
        omniloop.go(work("parent 1", forked))
        waiter = threading.Thread(target=lambda: omniloop.go(work("parent 2", forked)))
        waiter.start()
        while not omniloop.shared_runtime()._admission._queue:
            pass
        pid = os.fork()
        if pid == 0:
            assert omniloop.try_go(work("child", full)) is not None
            assert omniloop.try_go(work("child", full)) is None
            omniloop.call_later(0, full.set)
        else:
            assert os.waitpid(pid, 0)[1] == 0
            omniloop.call_later(0, forked.set)
            waiter.join()

    result = run_child(program)

    assert (sorted(result.stdout.split("\n")), result.stderr, result.code) == (
        ["", "child", "parent 1", "parent 2"],
        "",
        0,
    )


def test_after_a_shutdown_the_shared_runtime_has_its_room_back():
    def program():
        omniloop.configure(max_pending=2, when_full="raise")
        for _ in range(3):
            for _ in range(2):
                omniloop.go(asyncio.sleep(60))
            omniloop.shutdown(timeout=0)
        print(len(omniloop.tasks()))

    result = run_child(program)

    assert (result.stdout, result.code) == ("0\n", 0)


def test_a_runtime_that_was_full_keeps_nothing_alive(gate):
    import weakref

    class Thing:
        pass

    with Runtime(max_pending=1, when_full="drop_new", on_error=lambda report: None) as runtime:
        runtime.go(gate.work())
        things = [Thing() for _ in range(10)]
        for thing in things:
            runtime.go(value(thing))
        watched = [weakref.ref(thing) for thing in things]
        del things, thing
        gc.collect()
        alive = [ref for ref in watched if ref() is not None]
        gate.open()

    assert alive == []


@pytest.mark.promise("Ctrl-C in the first submission leaves the bounds of the environment as they are")
def test_a_first_submission_that_is_interrupted_leaves_the_bounds():
    """The settings were taken for chosen when their bounds were not made yet, and nothing was bounded from then on."""

    def program():
        class Interrupts:
            def find_spec(self, name, path, target=None):
                if name == "omniloop._admission":
                    sys.meta_path.remove(self)
                    raise KeyboardInterrupt

        sys.modules.pop("omniloop._admission", None)
        sys.meta_path.insert(0, Interrupts())
        try:
            omniloop.call_soon(int)
        except KeyboardInterrupt:
            print("interrupted")
        gate = threading.Event()
        omniloop.call_soon(gate.wait)
        try:
            omniloop.call_soon(int)
        except FullError:
            print("refused")
        gate.set()

    result = run_child(program, env={"OMNILOOP_MAX_PENDING": "1", "OMNILOOP_WHEN_FULL": "raise"})

    assert result == ("interrupted\nrefused\n", "", 0, result.seconds)
