"""`run` blocks until the work is done; a timeout or an interruption cancels it, and waits a bounded time for its clean-up."""

import asyncio
import concurrent.futures
import gc
import signal
import threading
import time
import traceback
import weakref

import pytest

import omniloop
from omniloop import ClosedError, Runtime, TaskGroup, TaskTimeoutError

# Short for a test, and yet so long that a busy machine has started the work by then.
SOON = 0.6


async def work(value="done"):
    await asyncio.sleep(0.001)
    return value


class Cancelled:
    """Work that is cancelled, and whose clean-up waits for an event; or swallows the cancellation, or fails in it."""

    def __init__(self, outcome=None):
        self.cleaned_up = threading.Event()
        self._outcome = outcome

    async def work(self):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.02)
            self.cleaned_up.set()
            if isinstance(self._outcome, Exception):
                raise self._outcome from None
            if self._outcome is not None:
                return self._outcome
            raise


def test_it_returns_the_value_or_raises_the_error(runtime):
    async def fails():
        await asyncio.sleep(0)
        raise OSError("of the work")

    assert runtime.run(work()) == "done"
    assert runtime.run(work(None)) is None
    with pytest.raises(OSError, match="of the work"):
        runtime.run(fails())


def test_it_works_where_another_loop_runs(runtime):
    """As in a notebook."""

    async def cell():
        return runtime.run(work())

    assert asyncio.run(cell()) == "done"


def test_a_timeout_cancels_the_work_and_waits_for_its_clean_up(runtime):
    cancelled = Cancelled()

    with pytest.raises(TaskTimeoutError, match=r"was not done after 0.6 s, and was cancelled") as raised:
        runtime.run(cancelled.work(), timeout=SOON)

    assert raised.value.task.cancelled()
    assert cancelled.cleaned_up.is_set()
    assert runtime.tasks() == []


def test_a_timeout_of_nothing_cancels_at_once(runtime):
    ran = []

    async def work():
        ran.append(1)
        await asyncio.sleep(60)

    with pytest.raises(TaskTimeoutError):
        runtime.run(work(), timeout=0)
    assert runtime.tasks() == []


def test_work_that_swallows_the_cancellation_gives_its_value_and_one_that_fails_its_error(runtime):
    assert runtime.run(Cancelled("survived").work(), timeout=SOON) == "survived"
    with pytest.raises(OSError, match="in the clean-up"):
        runtime.run(Cancelled(OSError("in the clean-up")).work(), timeout=SOON)


def test_the_wait_for_the_clean_up_is_bounded():
    async def deaf():
        while not over.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass

    over = threading.Event()
    with Runtime(name="bounded", cancel_timeout=0.05) as runtime:
        start = time.monotonic()
        with pytest.raises(
            TaskTimeoutError, match=r"was asked to end; 0.05 s later it has not. It goes on: tasks\(\)"
        ) as raised:
            runtime.run(deaf(), timeout=SOON)
        assert time.monotonic() - start < 20
        assert runtime.tasks() == [raised.value.task]
        over.set()


def test_a_timeout_of_the_work_is_not_taken_for_ours(runtime):
    async def times_out():
        raise TimeoutError("of the work")

    with pytest.raises(TimeoutError, match="of the work") as caught:
        runtime.run(times_out(), timeout=5)
    assert not isinstance(caught.value, TaskTimeoutError)


@pytest.mark.promise(
    "The `task` of a `TaskTimeoutError` tells whose time limit it was: that of `run`, or one inside the work"
)
def test_whose_time_limit_it_was_is_told(runtime):
    async def outer(inner):
        await inner()

    async def a_task():
        held.append(runtime.go(asyncio.sleep(60), name="inner", timeout=0.01))
        await held[0]

    async def a_group():
        async with TaskGroup(timeout=0.01, runtime=runtime):
            await asyncio.sleep(60)

    async def no_limit():
        await asyncio.sleep(60)

    found, held = [], []
    for inner, timeout in ((a_task, 5), (a_group, 5), (no_limit, 0.01)):
        with pytest.raises(TaskTimeoutError) as raised:
            runtime.run(outer(inner), timeout=timeout)
        task = raised.value.task
        found.append(None if task is None else task.get_name().rpartition(".")[2])

    assert found == ["inner", None, "outer"]


def test_work_that_another_cancels_raises_cancelled_error(runtime):
    async def cancels_itself():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    with pytest.raises(concurrent.futures.CancelledError):
        runtime.run(cancels_itself())


class Interrupted(Exception):
    """What a signal handler may raise, other than KeyboardInterrupt."""


@pytest.mark.promise(
    "`run` that times out, or is interrupted, cancels the work and waits a bounded time for its clean-up"
)
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Interrupted])
def test_ctrl_c_and_any_error_of_a_signal_handler_cancel_the_work_and_wait_for_its_clean_up(runtime, error):
    def handler(number, frame):
        raise error

    def interrupt():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    async def interrupted():
        # Of the work itself: by now the thread is in run().
        runtime.call_later(0.05, interrupt)
        await cancelled.work()

    cancelled = Cancelled()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(error):
            runtime.run(interrupted())
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert cancelled.cleaned_up.is_set()
    assert runtime.tasks() == []


def test_many_threads_may_run_at_once(runtime):
    def call(number):
        results.append(runtime.run(work(number)))

    results = []
    threads = [threading.Thread(target=call, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=5)

    assert sorted(results) == list(range(20))


@pytest.mark.promise("`run` on a runtime that is shut down is refused at once")
def test_what_is_refused_is_refused_at_once():
    """It was waited for as long as for the clean-up of what Ctrl-C cancels."""
    runtime = Runtime(cancel_timeout=60)
    runtime.shutdown()
    refused = work()

    # pytest's limit of 10 s tells.
    with pytest.raises(ClosedError):
        runtime.run(refused)

    assert refused.cr_frame is None


async def broken():
    await asyncio.sleep(0)
    raise LookupError("no such account")


@pytest.mark.promise("The traceback of `run` shows the caller and the cause, and one line of ours between")
def test_the_traceback_shows_the_caller_and_the_cause_and_one_line_between():
    for call in (lambda: omniloop.run(broken()), lambda: omniloop.go(broken()).result(timeout=5)):
        with pytest.raises(LookupError) as caught:
            call()

        names = [entry.name for entry in traceback.extract_tb(caught.value.__traceback__)]
        assert names[1:] in (["<lambda>", "run", "broken"], ["<lambda>", "result", "broken"])


def test_an_error_that_came_out_of_run_lives_in_no_cycle():
    class Mine(Exception):
        pass

    async def fail():
        raise Mine

    gc.collect()
    gc.disable()
    try:
        for call in (lambda: omniloop.run(fail()), lambda: omniloop.go(fail()).result(timeout=5)):
            try:
                call()
            except Mine as error:
                gone = weakref.ref(error)
            # The loop may hold the last task that it ran for a turn more; and without a GIL, what it made lives until it has run again.
            for _ in range(20):
                omniloop.run(asyncio.sleep(0))
                if gone() is None:
                    break
            assert gone() is None
    finally:
        gc.enable()
