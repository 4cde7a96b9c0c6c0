"""Work that `run` waits for, and that uses asgiref's `sync_to_async`: the waiting thread makes its calls."""

import asyncio
import gc
import itertools
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from contextvars import copy_context

import pytest

import omniloop
from children import run_child
from omniloop import Runtime, TaskTimeoutError
from omniloop._life import waits

pytest.importorskip("asgiref.sync")

from asgiref.local import Local
from asgiref.sync import AsyncToSync, ThreadSensitiveContext, sync_to_async


@pytest.fixture
def runtime():
    # A clean-up has more than the two seconds that a busy machine may take for it.
    with Runtime(name="waited for", cancel_timeout=20) as runtime:
        # The first use makes the loop, and goes another way.
        runtime.run(asyncio.sleep(0))
        runtime.run(asyncio.sleep(0))
        yield runtime


@pytest.fixture(params=["nothing in its context", "a value in its context"])
def caller(request):
    """The thread that waits, without and with a value of asgiref's in its context, as Django's language: each goes a way of its own."""
    if request.param == "nothing in its context":
        yield
        return
    language = Local()
    language.code = "de"
    yield
    del language.code


@pytest.mark.promise(
    "Where asgiref is loaded, `run()` makes the calls of `sync_to_async` in the thread that waits", section="Waiting"
)
def test_the_waiting_thread_makes_the_calls_of_sync_to_async(runtime):
    async def work():
        first = await sync_to_async(threading.get_ident)()
        await asyncio.sleep(0)
        return {first, *await asyncio.gather(*[sync_to_async(threading.get_ident)() for _ in range(5)])}

    for _ in range(50):
        assert runtime.run(work(), timeout=5) == {threading.get_ident()}


def test_what_such_a_call_raises_comes_out_in_the_work(runtime):
    async def work():
        with pytest.raises(ZeroDivisionError):
            await sync_to_async(lambda: 1 / 0)()
        return "went on"

    assert runtime.run(work(), timeout=5) == "went on"


def test_a_call_may_itself_run_something_on_the_loop(runtime):
    async def inner():
        return await sync_to_async(threading.get_ident)()

    async def work():
        return await sync_to_async(lambda: runtime.run(inner(), timeout=5))()

    assert runtime.run(work(), timeout=5) == threading.get_ident()


def test_what_is_left_when_the_wait_is_over_is_made_in_another_thread(runtime):
    made_in = []

    async def later():
        await asyncio.to_thread(over.wait, 5)
        made_in.append(await sync_to_async(threading.get_ident)())

    async def work():
        return asyncio.get_running_loop().create_task(later())

    over = threading.Event()
    left = runtime.run(work(), timeout=5)
    over.set()

    async def wait():
        await left

    runtime.go(wait()).result(timeout=5)
    assert made_in and made_in != [threading.get_ident()]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")
@pytest.mark.promise(
    "Ctrl-C in `run()` cancels the work, waits for its clean-up and leaves nothing behind, also where asgiref is loaded",
    section="Waiting",
)
def test_an_interrupted_wait_sees_the_clean_up_and_leaves_nothing_to_wait_for(runtime):
    """Its gate was opened twice; the loop never came to the end of the task, and `shutdown()` waited out its time."""

    class Interrupted(Exception):
        pass

    def handler(number, frame):
        raise Interrupted

    async def work():
        runtime.call_soon(signal.pthread_kill, threading.main_thread().ident, signal.SIGUSR1)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(await sync_to_async(threading.get_ident)())

    cleaned_up = []
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(Interrupted):
            runtime.run(work(), timeout=20)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert cleaned_up == [threading.get_ident()]
    assert runtime.tasks() == []
    assert runtime.flush(timeout=5) is None


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_wait_may_be_interrupted_anywhere(runtime, caller):
    """At each of our calls, and after each of those in C: there CPython runs the handlers of signals."""

    class Interrupted(Exception):
        pass

    def look(frame, event, arg):
        nonlocal left
        # From 3.14 on one may come between the entering of a `with` and its body: no lock in Python is proof against that.
        counts = event == "call" or (event == "c_return" and arg.__name__ not in ("__enter__", "__exit__"))
        if counts and frame.f_globals.get("__name__", "").startswith("omniloop."):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise Interrupted

    async def work():
        started.append(1)
        try:
            await sync_to_async(int)()
            await asyncio.sleep(0)
            await sync_to_async(int)()
        finally:
            ended.append(1)

    # Where the interruption comes before the loop has the work, that is waited for in vain.
    runtime.configure(cancel_timeout=0.05)
    started, ended = [], []
    for point in itertools.count(1):
        left, before = point, sys.getprofile()
        sys.setprofile(look)
        try:
            runtime.run(work(), timeout=5)
        except Interrupted:
            pass
        finally:
            sys.setprofile(before)
        runtime.flush(timeout=5)
        assert runtime.tasks() == [], f"at point {point}"
        assert started == ended, f"at point {point}"
        if left > 0:
            break

    assert point > 30
    # Now, and not outside of this test, which knows that some were never awaited.
    gc.collect()


def test_a_timeout_holds_while_calls_come(runtime):
    async def work():
        while True:
            await sync_to_async(time.sleep)(0.001)

    with pytest.raises(TaskTimeoutError):
        runtime.run(work(), timeout=0.05)
    assert runtime.tasks() == []


@pytest.mark.promise(
    "A call of `sync_to_async` that the waiting thread makes may be as long as it likes", section="Waiting"
)
def test_a_call_may_take_longer_than_a_wait_goes_on_without_a_look(runtime, caller, monkeypatch):
    """It was said to wait for this very thread, which had just made the call; and the next `run()` was cancelled in its place."""
    monkeypatch.setattr(waits, "LOOK_UP", 0.01)

    async def work():
        await sync_to_async(time.sleep)(0.03)
        return "made"

    for _ in range(5):
        assert runtime.run(work()) == "made"


def test_a_call_may_come_at_any_moment_of_the_wait(runtime, caller, caplog):
    """One that came between two looks for it left a gate that was opened twice."""

    async def work():
        nonlocal over
        # The wait comes to no further line before a call comes.
        over = not await asyncio.to_thread(comes.wait, 0.5)
        call = asyncio.ensure_future(sync_to_async(int)())
        # Its first step, which hands it over.
        await asyncio.sleep(0)
        came.set()
        await call
        await asyncio.sleep(0.001)
        await sync_to_async(int)()
        await asyncio.sleep(0.001)
        return "done"

    def look(frame, event, arg):
        return at_line if frame.f_code.co_name == "wait_here" else None

    def at_line(frame, event, arg):
        nonlocal left
        left -= 1
        if left == 0:
            comes.set()
            # At some lines the call waits for what this thread holds.
            came.wait(0.05)
        return at_line

    over = False
    for point in itertools.count(1):
        left, comes, came = point, threading.Event(), threading.Event()
        before = sys.gettrace()
        sys.settrace(look)
        try:
            assert runtime.run(work(), timeout=5) == "done"
        finally:
            sys.settrace(before)
        runtime.flush(timeout=5)
        assert not caplog.records, f"at line {point}"
        if over:
            break

    assert point > 8


def test_a_cancelled_call_cancels_the_second_run_in_it_too(runtime):
    """What the first had called in this thread hid the mark by which asgiref hands the cancellation on."""

    async def first():
        return await sync_to_async(int)()

    async def second():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("second")

    def view():
        runtime.run(first(), timeout=5)
        runtime.run(second(), timeout=5)

    async def main():
        async with ThreadSensitiveContext():
            request = asyncio.create_task(sync_to_async(view)())
            await asyncio.to_thread(started.wait, 5)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            assert ended == ["second"]

    ended, started = [], threading.Event()
    asyncio.run(main())


@pytest.mark.promise(
    "Where a call of `sync_to_async` is cancelled, the `run()` in it is cancelled too", section="Waiting"
)
def test_a_cancelled_call_cancels_the_run_in_it_on_the_same_loop(runtime):
    """Only where another loop had made the call was the cancellation passed on."""

    async def inner():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("inner")

    async def work():
        call = asyncio.ensure_future(sync_to_async(lambda: runtime.run(inner(), timeout=5))())
        await asyncio.to_thread(started.wait, 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return list(ended)

    ended, started = [], threading.Event()
    assert runtime.run(work(), timeout=10) == ["inner"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.promise(
    "A child that is forked in a call of `sync_to_async` does not go on with what `run()` waits for in the parent",
    section="Fork",
)
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("value", [False, True], ids=["nothing in its context", "a value in its context"])
@pytest.mark.parametrize("how", ["exits", "returns", "works"])
def test_a_child_that_is_forked_in_such_a_call_ends_as_it_wants(how, value):
    """It waited for ever: for the parent's loop, which was to hear of its SystemExit."""

    def program():
        async def work():
            try:
                return await sync_to_async(forks)()
            finally:
                print("cleaned up in the", "parent" if os.getpid() == parent else "child")

        async def answer():
            return 3

        def forks():
            child = os.fork()
            if child:
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            # The test's own limit is that of the parent, which would leave it behind.
            signal.alarm(10)
            if how == "exits":
                sys.exit(3)
            if how == "works":
                sys.exit(omniloop.run(answer()))
            return 0

        # Imported before, also where imports are lazy: loaded only in the work, asgiref makes the call in a thread of its own.
        sync_to_async.__name__
        language = Local()
        if value:
            language.code = "de"
        for _ in range(2):
            # The first use makes the loop, and goes another way.
            omniloop.run(asyncio.sleep(0))
        parent = os.getpid()
        try:
            code = omniloop.run(work())
        except omniloop.ForkedError:
            sys.exit(3 if os.getpid() != parent else 1)
        print("child:", code)

    result = run_child(program, flags=["-W", "ignore::DeprecationWarning"])

    assert (result.stdout, result.stderr, result.code) == ("cleaned up in the parent\nchild: 3\n", "", 0)


async def fails(argument):
    await asyncio.sleep(0)
    raise OSError("of the work")


def error_of_a_run(runtime):
    """The functions in the traceback of an error that came out of run(), and a reference to what its work was given."""
    argument = threading.Event()
    reference = weakref.ref(argument)
    try:
        # `pytest.raises` would keep the error.
        runtime.run(fails(argument))
    except OSError as error:
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    del argument
    return names, reference


@pytest.mark.promise(
    "There, what comes out of `run()` has the same traceback as anywhere, and lives in no cycle", section="Waiting"
)
def test_an_error_is_the_same_where_django_has_values_in_the_context(runtime):
    """A coroutine of our own around the work was in the traceback, and kept the work, its arguments and itself alive."""

    def with_values():
        local.language = "de"
        return error_of_a_run(runtime)

    local = Local()
    gc.collect()
    gc.disable()
    try:
        (names, first), (names_there, second) = error_of_a_run(runtime), copy_context().run(with_values)
        assert names_there == names
        for _ in range(100):
            if first() is None and second() is None:
                break
            # Without a GIL what the loop made is finalised when its thread runs again.
            runtime.run(asyncio.sleep(0.001))
        assert first() is None and second() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("started", [True, False], ids=["by a thread that serves", "by its first use"])
def test_the_work_has_the_values_of_its_submitter(started):
    async def value():
        return local.language, await sync_to_async(lambda: local.language)()

    def with_values():
        local.language = "de"
        return runtime.run(value(), timeout=5)

    local = Local()
    with Runtime(name="first used") as runtime:
        if started:
            runtime.run(asyncio.sleep(0))
        assert copy_context().run(with_values) == ("de", "de")


def test_a_loop_that_is_over_is_let_go_of():
    before = set(AsyncToSync.loop_thread_executors)
    with Runtime(name="over") as runtime:
        runtime.run(asyncio.sleep(0))
        assert len(set(AsyncToSync.loop_thread_executors) - before) == 1

    assert set(AsyncToSync.loop_thread_executors) <= before
