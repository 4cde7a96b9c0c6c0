"""What a piece of work raises, stops or breaks is its own affair: the runtime lives, and everybody else gets an answer."""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import gc
import os
import threading
import time
import warnings

import pytest

from omniloop import Failure, LoopDiedError, OmniloopError, Runtime


class Own(BaseException):
    pass


POISONS = [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, Own, MemoryError, StopAsyncIteration]


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


def outcome(error: type[BaseException]) -> type[BaseException]:
    # It can't be thrown into a coroutine, nor leave one.
    return RuntimeError if error is StopIteration else error


def assert_lives(runtime: Runtime, thread: int) -> None:
    assert runtime.run(answer(), timeout=5) == 42
    assert runtime.call_soon(threading.get_ident).result(timeout=5) == thread


@pytest.fixture
def neighbour(runtime):
    """Work that waits while the others are poisoned, and is done afterwards."""
    event = asyncio.Event()

    async def waits():
        await event.wait()
        return "done"

    task = runtime.go(waits())
    thread = runtime.call_soon(threading.get_ident).result()
    yield thread
    runtime.call_soon(event.set)
    assert task.result(timeout=5) == "done"


@pytest.mark.promise(
    "Whatever a coroutine raises, `SystemExit` and `KeyboardInterrupt` included, fails that task and nothing else"
)
@pytest.mark.parametrize("error", POISONS)
@pytest.mark.parametrize("suspended", [False, True], ids=["at once", "after a suspension"])
def test_whatever_a_coroutine_raises_fails_that_task_and_nothing_else(runtime, neighbour, error, suspended, caplog):
    async def poison():
        if suspended:
            await asyncio.sleep(0)
        raise error

    tasks = [runtime.go(poison()), runtime.go(answer()), runtime.go(poison())]

    assert isinstance(tasks[0].exception(timeout=5), outcome(error))
    assert tasks[1].result(timeout=5) == 42
    assert isinstance(tasks[2].exception(timeout=5), outcome(error))
    assert_lives(runtime, neighbour)
    # asyncio said of an eagerly started task that its exception was never retrieved.
    del tasks
    gc.collect()
    assert_lives(runtime, neighbour)
    assert caplog.records == []


@pytest.mark.promise("Whatever a function raises, on the loop or in a worker thread, fails that call and nothing else")
@pytest.mark.parametrize("error", POISONS)
def test_whatever_a_function_raises_fails_that_call_and_nothing_else(runtime, neighbour, error):
    def poison():
        raise error

    async def async_poison():
        raise error

    calls = [
        runtime.call_soon(poison),
        runtime.call_later(0, poison),
        runtime.call_later(0, async_poison),
        runtime.to_thread(poison),
    ]

    for call in calls:
        assert isinstance(call.exception(timeout=5), outcome(error))
    assert_lives(runtime, neighbour)


@pytest.mark.promise("Whatever a done callback raises is reported and harms no other callback")
@pytest.mark.parametrize("error", POISONS)
@pytest.mark.parametrize("where", ["coroutine", "function", "thread"])
def test_whatever_a_done_callback_raises_is_reported_and_harms_no_other_callback(runtime, failures, error, where):
    thread = runtime.call_soon(threading.get_ident).result()
    go_on, called = threading.Event(), []

    def poison(task):
        raise error

    async def work():
        await asyncio.to_thread(go_on.wait)

    task = {
        "coroutine": lambda: runtime.go(work()),
        "function": lambda: runtime.call_later(0.01, go_on.wait),
        "thread": lambda: runtime.to_thread(go_on.wait),
    }[where]()
    task.add_done_callback(poison)
    task.add_done_callback(called.append)
    go_on.set()
    runtime.flush(timeout=5)
    task.result(timeout=5)
    # Called at once, in the main thread, where a KeyboardInterrupt is Ctrl-C and meant for the program.
    comes_out = error is KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt) if comes_out else contextlib.nullcontext():
        task.add_done_callback(poison)

    assert_lives(runtime, thread)
    runtime.flush(timeout=5)
    assert called == [task]
    assert [type(failure.exception) for failure in failures] == ([error] if comes_out else [error, error])


@pytest.mark.promise("Callbacks and tasks that were made without the runtime do not stop it either")
@pytest.mark.parametrize("error", POISONS)
def test_whatever_a_callback_made_without_the_runtime_raises_leaves_the_loop_running(runtime, failures, error, caplog):
    thread = runtime.call_soon(threading.get_ident).result()

    async def work():
        def poison():
            raise error

        loop = asyncio.get_running_loop()
        loop.call_soon(poison)
        await asyncio.sleep(0.01)

    runtime.run(work(), timeout=5)

    assert_lives(runtime, thread)
    if error in (SystemExit, KeyboardInterrupt):
        # All others asyncio itself reports.
        assert [type(failure.exception) for failure in failures] == [error]
        assert "the loop goes on" in failures[0].message


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, Own])
def test_whatever_a_task_made_without_the_runtime_raises_leaves_the_loop_running(runtime, failures, error):
    thread = runtime.call_soon(threading.get_ident).result()

    async def work():
        async def poison():
            await asyncio.sleep(0)
            raise error

        (result,) = await asyncio.gather(asyncio.create_task(poison()), return_exceptions=True)
        return type(result)

    assert runtime.run(work(), timeout=5) is error
    assert_lives(runtime, thread)


def test_a_poisoned_item_does_not_keep_the_rest_of_the_inbox_waiting(runtime):
    """An eager start lets SystemExit out of the task's constructor, through the emptying: the items behind it waited for ever."""

    async def poison():
        raise SystemExit(3)

    blocked, go_on = threading.Event(), threading.Event()
    runtime.call_soon(lambda: (blocked.set(), go_on.wait()))
    blocked.wait()
    poisoned = [runtime.go(poison()) for _ in range(3)]
    rest = [runtime.go(answer()) for _ in range(3)]
    go_on.set()

    assert [task.result(timeout=5) for task in rest] == [42, 42, 42]
    assert [type(task.exception(timeout=5)) for task in poisoned] == [SystemExit] * 3


@pytest.mark.promise("A task can neither stop, nor close, nor run the loop")
def test_a_task_can_neither_stop_nor_close_nor_run_the_loop(runtime, neighbour):
    async def stops():
        asyncio.get_running_loop().stop()

    async def closes():
        asyncio.get_running_loop().close()

    async def runs():
        asyncio.get_running_loop().run_forever()

    async def runs_another():
        work = answer()
        try:
            asyncio.run(work)
        finally:
            work.close()

    assert "Use omniloop.shutdown()" in str(runtime.go(stops()).exception(timeout=5))
    assert isinstance(runtime.go(stops()).exception(timeout=5), OmniloopError)
    for work in closes, runs, runs_another:
        assert isinstance(runtime.go(work()).exception(timeout=5), RuntimeError)
    assert_lives(runtime, neighbour)


def test_a_loop_that_is_stopped_behind_our_back_goes_on(runtime, neighbour):
    async def stops():
        loop = asyncio.get_running_loop()
        type(loop).stop(loop)
        await asyncio.sleep(0)
        return "went on"

    assert runtime.go(stops()).result(timeout=5) == "went on"
    assert_lives(runtime, neighbour)


def test_a_task_that_cancels_itself_or_raises_cancelled_error_is_cancelled(runtime, neighbour):
    async def cancels_itself():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    async def raises():
        raise asyncio.CancelledError

    for work in cancels_itself, raises:
        task = runtime.go(work())
        with pytest.raises(concurrent.futures.CancelledError):
            task.result(timeout=5)
        assert task.cancelled()
    assert_lives(runtime, neighbour)


# --- the thread dies all the same -------------------------------------------------------------------------------------


class Breakable(asyncio.SelectorEventLoop):
    """A loop that can be broken as a lost descriptor breaks one: what it waits with raises."""

    broken = False

    def _run_once(self):
        if self.broken:
            raise OSError(9, "Bad file descriptor")
        super()._run_once()

    def break_down(self):
        self.broken = True
        self._write_to_self()


async def waits_for_ever():
    await asyncio.Event().wait()


@pytest.mark.promise(
    "Should the thread die all the same, every waiter gets `LoopDiedError` with the cause, and the next use starts another"
)
def test_every_waiter_gets_a_clear_error_when_the_thread_dies_and_the_next_use_starts_another():
    reported: list[Failure] = []
    runtime = Runtime(name="breaks", loop_factory=Breakable, on_error=reported.append)
    loop = runtime.run(running_loop())
    task = runtime.go(waits_for_ever())
    daemon = runtime.go(waits_for_ever(), daemon=True)
    timer = runtime.call_later(60, print)
    answers = []

    def waits(ask):
        with contextlib.suppress(LoopDiedError):
            ask()
            return
        answers.append(ask)

    asks = [
        task.result,
        lambda: runtime.run(waits_for_ever()),
        lambda: asyncio.run(awaits(task)),
        lambda: next(concurrent.futures.as_completed([task], timeout=5)).result(),
    ]
    waiters = [threading.Thread(target=waits, args=(ask,)) for ask in asks]
    flushing = threading.Thread(target=runtime.flush)
    for thread in [*waiters, flushing]:
        thread.start()
    while len(runtime.tasks()) < 4:
        time.sleep(0.001)

    loop.break_down()

    for thread in [*waiters, flushing]:
        thread.join(timeout=5)
        assert not thread.is_alive()
    assert len(answers) == len(asks)
    for handle in task, daemon, timer:
        error = handle.exception(timeout=5)
        assert isinstance(error, LoopDiedError)
        assert "Bad file descriptor" in str(error) and "Submit it again" in str(error)
        assert isinstance(error.__cause__, OSError)
    assert reported[0].exception is error.__cause__

    assert runtime.run(answer(), timeout=5) == 42
    assert runtime.run(running_loop(), timeout=5) is not loop
    assert loop.is_closed()
    runtime.shutdown()


@pytest.mark.promise("A wait that the loop has begun in the turn in which it dies ends without a word of asyncio's")
def test_a_wait_that_was_begun_in_the_turn_in_which_the_loop_dies_ends_in_silence(caplog):
    """asyncio told of a task that was destroyed, and Python of a coroutine that was never awaited, at the next collection."""
    runtime = Runtime(name="breaks", loop_factory=Breakable, on_error=lambda failure: None)
    loop = runtime.run(running_loop())
    gate = threading.Event()
    # One batch: the flush is begun in it, and has not had its first step when the loop breaks.
    held = threading.Event()
    runtime.call_soon(lambda: (held.set(), gate.wait(5)))
    assert held.wait(5)
    flushing = threading.Thread(target=runtime.flush)
    flushing.start()
    while not runtime._life.inbox:
        time.sleep(0.001)
    runtime.call_soon(loop.break_down)
    gate.set()

    flushing.join(timeout=5)
    assert not flushing.is_alive()
    runtime.shutdown(timeout=1)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        del loop, runtime, flushing
        gc.collect()

    assert [str(warning.message) for warning in warned] == []
    assert "destroyed" not in caplog.text


async def running_loop():
    return asyncio.get_running_loop()


async def awaits(task):
    await task


def test_a_runtime_whose_thread_died_shuts_down_in_silence(capfd):
    runtime = Runtime(name="breaks", loop_factory=Breakable, on_error=lambda failure: None)
    loop = runtime.run(running_loop())
    task = runtime.go(waits_for_ever())

    loop.break_down()
    assert isinstance(task.exception(timeout=5), LoopDiedError)
    runtime.shutdown(timeout=1)
    runtime.flush(timeout=1)

    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.environ.get("OMNILOOP_LOOP") == "uvloop", reason="what hits its C code is lost there")
def test_an_exception_that_is_thrown_into_the_loops_thread_while_it_waits_leaves_nobody_waiting():
    """`PyThreadState_SetAsyncExc`, as some libraries kill a thread. In the middle of a callback it may hit anything at all."""
    runtime = Runtime(name="hit", on_error=lambda failure: None)
    for error in (SystemExit, KeyboardInterrupt, Own) * 3:
        ident = runtime.call_soon(threading.get_ident).result(timeout=5)
        gate = asyncio.Event()
        tasks = [runtime.go(gate.wait()) for _ in range(5)]
        runtime.run(answer())
        while runtime._life._watchdog.busy_for() is not None:
            time.sleep(0.001)

        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(error))
        # It comes when the thread is woken.
        runtime.call_soon(gate.set)

        for task in tasks:
            failure = task.exception(timeout=5)
            assert isinstance(failure, LoopDiedError) if error is Own else failure is None
        assert runtime.run(answer(), timeout=5) == 42
    runtime.shutdown()
