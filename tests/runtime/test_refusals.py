"""What is refused is refused with an error that names the value and the call that was meant, and leaves nothing behind."""

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import inspect
import io
import math
import pickle
import re
import sys
import threading
import traceback
import warnings

import pytest

import omniloop
from omniloop import CannotStartError, ClosedError, NotAsyncError, OmniloopError, Runtime, TaskGroup
from omniloop.ext.logging import AsyncHandler


async def work(argument=None):
    await asyncio.sleep(0)


async def numbers():
    yield 1


def plain():
    pass


class AsyncCall:
    async def __call__(self):
        pass


@pytest.fixture(autouse=True)
def nothing_is_never_awaited(recwarn):
    yield
    gc.collect()
    assert [str(warning.message) for warning in recwarn if "never awaited" in str(warning.message)] == []


def refused(call, match, error=NotAsyncError):
    with pytest.raises(error, match=match) as caught:
        call()
    return str(caught.value)


# --- go and run -------------------------------------------------------------------------------------------------------

REFUSED_BY_GO = {
    "a coroutine function": (lambda: work, r"is a coroutine function\. Call it: CALL\(work\(…\)\)"),
    "a partial of one": (lambda: functools.partial(work, 1), r"is a coroutine function\. Call it"),
    "a plain function": (
        lambda: plain,
        r"plain function\. Use call_soon\(plain, …\) .* or to_thread\(plain, …\) if it blocks",
    ),
    "a class": (lambda: int, r"plain function\. Use call_soon\(int, …\)"),
    "an async generator": (numbers, r"is an async generator\. Use iterate\(\)"),
    "an async generator function": (lambda: numbers, r"async generator function\. .*iterate\(numbers\(…\)\)"),
    "a future of a pool": (
        concurrent.futures.Future,
        r"concurrent\.futures\.Future, which can't be awaited.* result\(\)",
    ),
    "a number": (lambda: 42, r"^42 can't be awaited\. Pass a coroutine"),
    "None": (lambda: None, r"^None can't be awaited\. Pass a coroutine"),
    "a string": (lambda: "work()", r"^'work\(\)' can't be awaited"),
}


@pytest.mark.promise("What is refused is refused with an error that names the value and the call that was meant")
@pytest.mark.parametrize("call", ["go", "run"])
@pytest.mark.parametrize(("make", "match"), REFUSED_BY_GO.values(), ids=REFUSED_BY_GO)
def test_go_and_run_name_the_value_and_the_call_that_was_meant(runtime, call, make, match):
    value = make()

    message = refused(lambda: getattr(runtime, call)(value), match.replace("CALL", call))

    assert repr(value) in message


def test_a_refusal_is_the_built_in_error_that_one_would_guess():
    assert issubclass(NotAsyncError, TypeError)
    assert issubclass(NotAsyncError, OmniloopError)
    assert issubclass(ClosedError, RuntimeError)


def test_a_coroutine_that_already_runs_is_refused_and_goes_on(runtime):
    async def elsewhere():
        inner = asyncio.get_running_loop().create_task(work())
        await asyncio.sleep(0)
        refused(lambda: runtime.go(inner.get_coro()), "already runs. A coroutine can be started once")
        await inner
        refused(lambda: runtime.go(asyncio.current_task().get_coro()), "already runs")
        return "went on"

    assert asyncio.run(elsewhere()) == "went on"


def test_a_future_of_another_loop_is_refused(runtime):
    async def elsewhere():
        for future in (asyncio.get_running_loop().create_future(), asyncio.ensure_future(work())):
            message = refused(lambda future=future: runtime.go(future), "belongs to another event loop")
            assert repr(future) in message

    runtime.go(work()).result(timeout=5)
    asyncio.run(elsewhere())


def test_a_future_of_another_loop_is_refused_by_a_runtime_that_has_no_loop_yet():
    async def elsewhere():
        with Runtime(name="unstarted") as runtime:
            refused(lambda: runtime.go(asyncio.ensure_future(work())), "belongs to another event loop")

    asyncio.run(elsewhere())


def test_a_coroutine_that_was_awaited_already_fails_as_everywhere(runtime):
    coro = work()
    runtime.run(coro)

    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        runtime.run(coro)


@pytest.mark.parametrize("context", ["a string", {}, object()], ids=["a string", "a dict", "an object"])
def test_a_context_that_is_none_is_refused_and_the_coroutine_closed(runtime, context):
    coro = work()

    message = refused(lambda: runtime.go(coro, context=context), "give a contextvars.Context", TypeError)

    assert repr(context) in message
    assert coro.cr_frame is None
    refused(lambda: runtime.call_soon(plain, context=context), "^context=", TypeError)
    refused(lambda: runtime.call_later(0, plain, context=context), "^context=", TypeError)


# --- call_soon, call_later, every, to_thread --------------------------------------------------------------------------

TAKE_FUNCTIONS = {
    "call_soon": lambda runtime, fn: runtime.call_soon(fn),
    "to_thread": lambda runtime, fn: runtime.to_thread(fn),
    "call_later": lambda runtime, fn: runtime.call_later(1, fn),
    "every": lambda runtime, fn: runtime.every(1, fn),
}


@pytest.mark.promise('A coroutine that is refused is closed, so that no "never awaited" follows')
@pytest.mark.parametrize("call", TAKE_FUNCTIONS)
def test_a_coroutine_where_a_function_is_meant_is_refused_and_closed(runtime, call):
    coro = work()

    way = "Use go\\(\\) for it" if call in ("call_soon", "to_thread") else "Pass the async function itself"
    message = refused(lambda: TAKE_FUNCTIONS[call](runtime, coro), rf"^{call}\(\) takes a function, .* {way}")

    assert "coroutine object work" in message
    assert coro.cr_frame is None


@pytest.mark.parametrize("call", TAKE_FUNCTIONS)
@pytest.mark.parametrize("value", [42, None, "plain"])
def test_what_can_not_be_called_is_refused(runtime, call, value):
    message = refused(
        lambda: TAKE_FUNCTIONS[call](runtime, value), rf"^{call}\(\) takes a function, .* can't be called"
    )

    assert repr(value) in message
    # The way out is written as the call is.
    usage = {"call_later": "call_later(delay, fn, *args)", "every": "every(interval, fn)"}
    assert usage.get(call, f"{call}(fn, *args)") in message


@pytest.mark.parametrize("call", TAKE_FUNCTIONS)
def test_an_async_generator_function_would_do_nothing_and_is_refused(runtime, call):
    refused(lambda: TAKE_FUNCTIONS[call](runtime, numbers), rf"^{call}\(\) .* does nothing when called\. Use iterate")


@pytest.mark.parametrize("call", ["call_soon", "to_thread"])
@pytest.mark.parametrize("fn", [work, functools.partial(work, 1), AsyncCall()])
def test_an_async_function_where_a_plain_one_is_meant_is_refused(runtime, call, fn):
    refused(lambda: TAKE_FUNCTIONS[call](runtime, fn), rf"^{call}\(\) runs plain functions, and .* is async\. Use go\(")


@pytest.mark.parametrize("call", ["call_soon", "to_thread"])
def test_what_turns_out_to_be_async_when_called_is_the_tasks_failure(runtime, call):
    task = TAKE_FUNCTIONS[call](runtime, lambda: work())

    refused(lambda: task.result(timeout=5), rf"^{call}\(\) runs plain functions, and .* is async\. Use go\(")


# Too large for a float: what was accepted with it failed on the loop, and its handle never ended.
HUGE = 10**400


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, HUGE, -HUGE, "1", None, True, 1j], ids=type)
def test_a_delay_or_interval_that_is_no_number_of_seconds_is_refused(runtime, seconds):
    for call, name in (
        (lambda: runtime.call_later(seconds, plain), "delay"),
        (lambda: runtime.call_at(seconds, plain), "when"),
        (lambda: runtime.every(seconds, plain), "interval"),
        (lambda: runtime.every(1, plain, jitter=seconds), "jitter"),
    ):
        refused(call, f"^{name}={re.escape(repr(seconds))}: give seconds", ValueError)


@pytest.mark.parametrize("seconds", [-1, -0.001])
def test_an_interval_below_zero_is_refused(runtime, seconds):
    for call, name in (
        (lambda: runtime.every(seconds, plain), "interval"),
        (lambda: runtime.every(1, plain, jitter=seconds), "jitter"),
    ):
        refused(call, f"^{name}={re.escape(repr(seconds))}: give seconds", ValueError)


def test_an_interval_of_nothing_is_refused(runtime):
    refused(lambda: runtime.every(0, plain), "^interval=0: give seconds as a number above 0", ValueError)


@pytest.mark.parametrize("timeout", [HUGE, -HUGE, math.nan, "5"], ids=type)
def test_a_timeout_that_is_no_number_of_seconds_is_refused(runtime, timeout):
    pending = runtime.go(asyncio.sleep(60), daemon=True)

    for call in (
        lambda: pending.result(timeout),
        lambda: pending.exception(timeout),
        lambda: runtime.run(work(), timeout=timeout),
        lambda: runtime.flush(timeout),
        lambda: runtime.shutdown(timeout),
        lambda: TaskGroup(timeout=timeout),
    ):
        refused(call, f"^timeout={re.escape(repr(timeout))}: give seconds as a number, or None", ValueError)


@pytest.mark.parametrize("name", [5, b"n", ["n"], work], ids=type)
def test_a_name_that_is_no_string_is_refused(runtime, name):
    async def use(client):
        pass

    group = TaskGroup(runtime=runtime)
    for call in (
        lambda: runtime.go(work(), name=name),
        lambda: runtime.try_go(work(), name=name),
        lambda: runtime.every(60, plain, name=name),
        lambda: group.go(work(), name=name),
        lambda: omniloop.resource(io.StringIO, runtime=runtime).go(use, name=name),
    ):
        refused(call, f"^name={re.escape(repr(name))}: give a string, or None", TypeError)


@pytest.mark.parametrize("wrong", [5, "shared", 0, Runtime])
def test_a_runtime_that_is_none_is_refused_by_everything_that_takes_one(wrong):
    for call in (
        lambda: TaskGroup(runtime=wrong),
        lambda: list(omniloop.map(len, ["a"], runtime=wrong)),
        lambda: omniloop.iterate(numbers(), runtime=wrong),
        lambda: omniloop.aiterate([1], runtime=wrong),
        lambda: omniloop.enter(contextlib.AsyncExitStack(), runtime=wrong),
        lambda: omniloop.queue(runtime=wrong),
        lambda: omniloop.resource(io.StringIO, runtime=wrong),
        lambda: omniloop.ProcessPool(runtime=wrong),
        lambda: omniloop.background(runtime=wrong),
        lambda: AsyncHandler(work, runtime=wrong),
    ):
        refused(call, f"^runtime={re.escape(repr(wrong))}: give a Runtime, or None", TypeError)


@pytest.mark.parametrize("fn", [None, 5, "callback"])
def test_a_done_callback_that_cannot_be_called_is_refused(runtime, fn):
    task = runtime.go(work())

    refused(lambda: task.add_done_callback(fn), f"{re.escape(repr(fn))} can't be called", TypeError)


def test_a_coroutine_where_a_function_or_an_iterable_is_meant_is_closed(runtime):
    client = omniloop.resource(io.StringIO, runtime=runtime)

    for call, error in (
        (lambda: omniloop.resource(work(), runtime=runtime), NotAsyncError),
        (lambda: client.run(work()), NotAsyncError),
        (lambda: client.go(work()), NotAsyncError),
        (lambda: omniloop.aiterate(work(), runtime=runtime), NotAsyncError),
        (lambda: omniloop.map(plain, work(), runtime=runtime), TypeError),
    ):
        refused(call, "<coroutine object work", error)


def test_a_loop_factory_that_is_async_is_named_and_what_it_made_is_closed():
    with Runtime(loop_factory=work) as runtime:
        refused(lambda: runtime.go(work()), "^loop_factory returned <coroutine object work", OmniloopError)


def test_items_that_cannot_be_iterated_over_are_named(runtime):
    for items in (None, 5, numbers()):
        refused(
            lambda items=items: omniloop.map(plain, items, runtime=runtime),
            f"^items={re.escape(repr(items))}: give an iterable",
            TypeError,
        )


# --- after the end ----------------------------------------------------------------------------------------------------


def test_a_runtime_that_is_shut_down_refuses_everything_by_name():
    runtime = Runtime(name="over")
    runtime.shutdown()

    for call in (
        lambda: runtime.go(work()),
        lambda: runtime.run(work()),
        lambda: runtime.call_soon(plain),
        lambda: runtime.call_later(0, plain),
        lambda: runtime.every(1, plain),
        lambda: runtime.to_thread(plain),
    ):
        refused(call, "The runtime 'over' is shut down. Submit the work before shutdown", ClosedError)


def test_a_runtime_that_can_not_start_says_so_and_closes_the_coroutine():
    def no_loop():
        raise OSError("too many open files")

    runtime = Runtime(name="unable", loop_factory=no_loop)
    coro = work()

    refused(lambda: runtime.go(coro), "too many open files", CannotStartError)
    assert coro.cr_frame is None
    assert runtime.tasks() == []
    runtime.shutdown()


def test_a_loop_factory_that_makes_no_loop_is_refused():
    runtime = Runtime(name="unable", loop_factory=object)
    coro = work()

    refused(
        lambda: runtime.go(coro), "loop_factory returned <object .*, which is not an asyncio event loop", OmniloopError
    )
    assert coro.cr_frame is None
    runtime.shutdown()


class LoopWithoutFactories(asyncio.SelectorEventLoop):
    def get_task_factory(self):
        raise NotImplementedError("no factories")


def test_a_loop_factory_whose_loop_tells_no_task_factory_is_refused_at_the_start():
    """Each batch of work asks for it: the first submission waited for ever."""
    runtime = Runtime(name="unable", loop_factory=LoopWithoutFactories)
    coro = work()

    refused(
        lambda: runtime.go(coro),
        r"loop_factory returned <.*LoopWithoutFactories.*, which can't be used: its get_task_factory\(\) raises NotImplementedError",
        OmniloopError,
    )
    assert coro.cr_frame is None
    runtime.shutdown()


# --- all at once ------------------------------------------------------------------------------------------------------


def test_the_warning_that_this_module_forbids_would_be_seen():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
        gc.collect()

    assert "never awaited" in str(caught[0].message)


def test_refusals_from_many_threads_leave_nothing_behind(runtime):
    def refuse():
        for _ in range(100):
            with pytest.raises(NotAsyncError):
                runtime.go(work)
            with pytest.raises(NotAsyncError):
                runtime.call_soon(work())

    before = sys.getrefcount(work)
    threads = [threading.Thread(target=refuse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=5)

    assert runtime.tasks() == []
    gc.collect()
    assert sys.getrefcount(work) < before + 50


# --- calls that were meant ---------------------------------------------------------------------------------------------


@omniloop.background
async def send(argument):
    await asyncio.sleep(0)


MEANT = {
    "a background function": (lambda: omniloop.go(send), NotAsyncError, r"^send is a @background function.*Call it: send\(…\)\.$"),
    "a timeout by position": (lambda: omniloop.run(work(), 5), TypeError, r"Name what it is: run\(work\(…\), timeout=5\)\.$"),
    "a name by position": (lambda: omniloop.go(work(), "mail"), TypeError, r"Name what it is: go\(work\(…\), name='mail'\)\.$"),
    "two coroutines": (lambda: omniloop.go(work(), work()), TypeError, r"go\(\) takes one coroutine, and was given 2\. Start each with a go\(\)"),
    "three for run": (lambda: omniloop.run(work(), work(), work()), TypeError, r"was given 3\. .* or use TaskGroup or map\(\)\.$"),
    "a function and its arguments": (lambda: omniloop.go(work, 3), TypeError, r"was given the function work with its arguments\. Call it: go\(work\(3\)\)\.$"),
    "a plain one": (lambda: omniloop.go(plain, 3), TypeError, r"Use call_soon\(plain, 3\), or to_thread\(\) if it blocks\.$"),
    "for try_go": (lambda: omniloop.try_go(work(), work()), TypeError, r"^try_go\(\) takes one coroutine"),
    "in a group": (lambda: TaskGroup().go(work(), work()), TypeError, r"^go\(\) takes one coroutine"),
}  # fmt: skip


@pytest.mark.promise("A call that was written as another library has it gets a word about the one that was meant")
@pytest.mark.parametrize(("call", "error", "match"), MEANT.values(), ids=MEANT)
def test_a_misplaced_argument_gets_a_word_about_the_call_that_was_meant(call, error, match):
    """And its coroutines are closed, so that none was "never awaited": the fixture above looks."""
    refused(call, match, error)


@pytest.mark.parametrize(
    ("thing", "name", "match"),
    [
        (TaskGroup(), "start_soon", r"Call the function and start what it returns: group\.go\(fn\(\*args\)\)\.$"),
        (TaskGroup(), "spawn", r"group\.go"),
        (TaskGroup(), "nonsense", r"has no attribute 'nonsense'\.$"),
        (omniloop, "gather", r"Start each with go\(\) and ask the tasks for their results; or use TaskGroup"),
        (omniloop, "nonsense", r"has no attribute 'nonsense'$"),
    ],
)
def test_a_name_that_other_libraries_have_is_answered_with_ours(thing, name, match):
    refused(lambda: getattr(thing, name), match, AttributeError)
    assert not hasattr(thing, name)


def test_what_gather_returns_is_refused_with_what_to_do_instead():
    async def main():
        gathered = asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))
        refused(lambda: omniloop.run(gathered), r"Start each with go\(\) and ask the tasks for their results, or use")
        await gathered

    asyncio.run(main())


def test_the_place_for_misplaced_arguments_is_not_shown():
    for call in (omniloop.go, omniloop.try_go, omniloop.run, TaskGroup.go, Runtime.go):
        assert "misplaced" not in str(inspect.signature(call))


# --- how errors are shown ---------------------------------------------------------------------------------------------


@pytest.mark.promise("A traceback names each error of omniloop's as one imports it: `omniloop.ClosedError`")
@pytest.mark.parametrize("name", [name for name in omniloop.__all__ if name.endswith("Error")])
def test_an_error_is_shown_and_pickled_by_the_name_that_one_imports(name):
    error = getattr(omniloop, name)("what happened")

    assert traceback.format_exception_only(error) == [f"omniloop.{name}: what happened\n"]
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args) == (type(error), ("what happened",))
