"""What is accepted is held until it is done, and let go of then: no collection loses work, no cycle keeps arguments alive."""

import asyncio
import concurrent.futures
import contextvars
import gc
import threading
import time
import weakref

import pytest

from omniloop._process import fork
from omniloop._work.failures import LATE_FINALISERS


class Argument:
    """Something whose end can be seen."""


@pytest.fixture
def no_collector():
    """Only reference counts: whatever is in a cycle stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def is_gone(reference):
    """The last reference may be in a frame of another thread that is about to end."""
    deadline = time.monotonic() + 2
    while reference() is not None and time.monotonic() < deadline:
        if LATE_FINALISERS:
            # By the thread that made it, when it runs Python again: the loop's, or a worker.
            for runtime in list(fork.watched):
                runtime.call_soon(int)
                runtime.to_thread(int)
        threading.Event().wait(0.001)
    return reference() is None


# --- held until done --------------------------------------------------------------------------------------------------


@pytest.mark.promise("No garbage collection, at any moment, loses work")
def test_no_collection_at_any_moment_loses_work(runtime):
    """asyncio refers to its tasks weakly: one that waits on what only it refers to was collected in the middle."""

    async def waits_on_what_only_it_refers_to():
        future = asyncio.get_running_loop().create_future()
        reference = weakref.ref(future)
        started.release()
        waiting.append(reference)
        await future
        done.append(1)

    started, waiting, done = threading.Semaphore(0), [], []
    for _ in range(5):
        runtime.go(waits_on_what_only_it_refers_to())
    for _ in range(5):
        assert started.acquire(timeout=5)
        gc.collect()
    for reference in waiting:
        runtime.call_soon(lambda reference=reference: reference().set_result(None))
        gc.collect()
    runtime.flush(timeout=5)

    assert len(done) == 5


def test_collections_all_the_time_lose_nothing(runtime):
    async def work():
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, int)
        done.append(1)

    done = []
    former = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            runtime.go(work())
            runtime.to_thread(done.append, 1)
            runtime.call_later(0, done.append, 1).result(timeout=5)
        runtime.flush(timeout=9)
    finally:
        gc.set_threshold(*former)

    assert len(done) == 150


# --- let go of when done ----------------------------------------------------------------------------------------------


async def fails(argument):
    await asyncio.sleep(0)
    raise OSError("of the work")


async def fails_at_once(argument):
    raise OSError("of the work")


def fails_plainly(argument):
    raise OSError("of the work")


async def awaited(tasks):
    return await tasks.pop()


async def awaited_and_caught(tasks):
    with pytest.raises(OSError, match="of the work"):
        await tasks.pop()


def await_elsewhere(runtime, tasks):
    # Caught in there, because `asyncio.run` itself leaves a cycle.
    asyncio.run(awaited_and_caught(tasks))
    raise OSError


# Each takes the task out of a list: a frame of ours that refers to it would be in the traceback that it holds.
CLAIMS = {
    "result": lambda runtime, tasks: tasks.pop().result(timeout=5),
    "result, after it is done": lambda runtime, tasks: (concurrent.futures.wait(tasks, 5), tasks.pop().result()),
    "await elsewhere": await_elsewhere,
    "await on the own loop": lambda runtime, tasks: runtime.run(awaited(tasks)),
}
SUBMISSIONS = {
    "go": lambda runtime, argument: runtime.go(fails(argument)),
    "go, at once": lambda runtime, argument: runtime.go(fails_at_once(argument)),
    "call_soon": lambda runtime, argument: runtime.call_soon(fails_plainly, argument),
    "call_later": lambda runtime, argument: runtime.call_later(0, fails, argument),
    "to_thread": lambda runtime, argument: runtime.to_thread(fails_plainly, argument),
}


@pytest.mark.promise("No cycle keeps the arguments of failed work alive")
@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("submit", SUBMISSIONS)
def test_no_cycle_keeps_the_arguments_of_work_that_failed(runtime, no_collector, submit, claim):
    argument = Argument()
    reference = weakref.ref(argument)
    tasks = [SUBMISSIONS[submit](runtime, argument)]
    del argument

    try:
        CLAIMS[claim](runtime, tasks)
    except OSError:
        pass
    else:
        pytest.fail("it did not raise")

    assert is_gone(reference)


@pytest.mark.parametrize("work", [fails, fails_at_once])
def test_no_cycle_is_left_after_run_raised(runtime, no_collector, work):
    argument = Argument()
    reference = weakref.ref(argument)

    try:
        runtime.run(work(argument))
    except OSError:
        pass
    del argument

    assert is_gone(reference)


def test_no_cycle_is_left_after_a_cancellation(runtime, no_collector):
    async def work(argument):
        started.set()
        await asyncio.sleep(60)

    argument, started = Argument(), threading.Event()
    reference = weakref.ref(argument)
    task = runtime.go(work(argument))
    del argument
    assert started.wait(timeout=5)
    task.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        task.result(timeout=5)

    assert is_gone(reference)


def test_no_cycle_is_left_after_run_timed_out(runtime, no_collector):
    async def work(argument):
        await asyncio.sleep(60)

    argument = Argument()
    reference = weakref.ref(argument)
    try:
        runtime.run(work(argument), timeout=0.01)
    except TimeoutError:
        pass
    del argument

    assert is_gone(reference)


@pytest.mark.promise("A finished handle keeps neither arguments nor context nor coroutine")
@pytest.mark.parametrize("submit", ["go", "call_soon", "call_later", "to_thread"])
def test_a_finished_handle_keeps_neither_arguments_nor_context_nor_coroutine(runtime, no_collector, submit):
    async def work(argument):
        await asyncio.sleep(0)

    variable = contextvars.ContextVar("variable")
    argument, of_the_context = Argument(), Argument()
    context = contextvars.Context()
    context.run(variable.set, of_the_context)
    coro = work(argument)
    references = [weakref.ref(argument), weakref.ref(of_the_context)]
    if submit == "go":
        references.append(weakref.ref(coro))
        task = runtime.go(coro, context=context)
    else:
        coro.close()
        task = {
            "call_soon": lambda: runtime.call_soon(id, argument, context=context),
            "call_later": lambda: runtime.call_later(0, id, argument, context=context),
            "to_thread": lambda: context.run(runtime.to_thread, id, argument),
        }[submit]()
    task.result(timeout=5)
    argument = of_the_context = context = coro = None

    assert [is_gone(reference) for reference in references] == [True] * len(references)
    assert task.done()


def test_a_value_is_kept_by_the_handle_alone(runtime, no_collector):
    async def work():
        return Argument()

    task = runtime.go(work())
    reference = weakref.ref(task.result(timeout=5))
    assert reference() is not None
    del task

    assert is_gone(reference)


def test_a_worker_keeps_nothing_of_the_last_call(runtime, no_collector):
    argument = Argument()
    reference = weakref.ref(argument)
    runtime.to_thread(id, argument).result(timeout=5)
    del argument

    assert is_gone(reference)


def test_a_cancelled_timer_lets_go_of_its_arguments(runtime, no_collector):
    argument = Argument()
    reference = weakref.ref(argument)
    task = runtime.call_later(60, id, argument)
    del argument
    task.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        task.result(timeout=5)
    del task

    assert is_gone(reference)


@pytest.mark.promise("An outcome that comes out twice does not make its traceback grow")
@pytest.mark.parametrize("claim", CLAIMS)
def test_coming_out_twice_does_not_make_the_traceback_grow(runtime, claim):
    def length():
        try:
            CLAIMS[claim](runtime, [task])
        except OSError as error:
            count, traceback = 0, error.__traceback__
            while traceback is not None:
                count, traceback = count + 1, traceback.tb_next
            return count

    task = runtime.go(fails(None))

    first = length()
    assert [length() for _ in range(5)] == [first] * 5


def test_a_runtime_that_was_shut_down_is_let_go_of(no_collector):
    from omniloop import Runtime

    runtime = Runtime(name="gone")
    runtime.go(asyncio.sleep(0)).result(timeout=5)
    runtime.to_thread(int).result(timeout=5)
    runtime.shutdown()
    reference = weakref.ref(runtime)
    del runtime
    gc.collect()

    # Without a GIL the worker's thread, which nobody joins, may have it until it is over.
    deadline = time.monotonic() + 10
    while reference() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    assert reference() is None
