"""`map`: results over many items, only so many of which are on their way."""

import asyncio
import functools
import gc
import itertools
import os
import signal
import sys
import threading
import warnings
import weakref

import pytest

import omniloop
from children import run_child
from omniloop import NotAsyncError, Runtime, WouldDeadlockError


async def double(number):
    await asyncio.sleep(0)
    return number * 2


def double_in_thread(number):
    return number * 2


@pytest.mark.promise("`map` gives results in the order of the items")
@pytest.mark.parametrize("fn", [double, double_in_thread])
@pytest.mark.parametrize("limit", [1, 3, None])
def test_results_come_in_the_order_of_the_items(fn, limit):
    assert list(omniloop.map(fn, range(10), limit=limit)) == list(range(0, 20, 2))


@pytest.mark.promise("Or as they are done")
def test_results_may_come_as_they_are_done():
    others_are_out = asyncio.Event()

    async def work(number):
        if number == 0:
            await others_are_out.wait()
        return number

    results = omniloop.map(work, range(5), ordered=False)
    first = {next(results) for _ in range(4)}
    omniloop.call_soon(others_are_out.set)

    assert first == {1, 2, 3, 4}
    assert list(results) == [0]


@pytest.mark.promise("`map` takes the items as its results are taken, so that they may be endless")
@pytest.mark.parametrize("ordered", [True, False])
def test_items_are_taken_as_results_are(ordered):
    taken = []

    def items():
        for number in itertools.count():
            taken.append(number)
            yield number

    results = omniloop.map(double, items(), limit=3, ordered=ordered)
    assert taken == []
    most = 0
    for count, _ in enumerate(itertools.islice(results, 50), 1):
        # What is out, what is in the window, and nothing more.
        most = max(most, len(taken) - count)
    results.close()

    assert most <= 2


def test_a_result_that_is_there_does_not_wait_for_the_next_items():
    """The items may come slowly: a queue, a file that is still written."""
    handed_out = threading.Event()

    def items():
        yield 1
        omniloop.flush(5)
        yield 2
        assert handed_out.wait(5)
        yield 3

    results = omniloop.map(double, items(), limit=10)
    assert next(results) == 2
    handed_out.set()

    assert list(results) == [4, 6]


def test_no_more_than_the_limit_run_at_once():
    running, most = 0, 0
    lock = threading.Lock()
    pair = threading.Barrier(2)

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        pair.wait(5)
        with lock:
            running -= 1
        return number

    assert list(omniloop.map(work, range(8), limit=2)) == list(range(8))
    assert most == 2


def test_progress_is_told_where_the_results_are_used():
    told = []

    def progress(done, total):
        told.append((threading.current_thread(), done, total))

    list(omniloop.map(double, [1, 2], progress=progress))
    list(omniloop.map(double, iter([1]), progress=progress))

    me = threading.current_thread()
    assert told == [(me, 1, 2), (me, 2, 2), (me, 1, None)]


@pytest.mark.promise("The first error comes out of `map` as it is, and the rest is cancelled")
@pytest.mark.parametrize("ordered", [True, False])
def test_the_first_error_comes_out_as_it_is_and_the_rest_is_cancelled(ordered):
    ended = []
    all_started = asyncio.Event()

    async def work(number):
        if number == 3:
            all_started.set()
        await all_started.wait()
        if number == 0 and ordered:
            return 0
        if number == 1:
            raise ValueError(number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    results = omniloop.map(work, range(4), ordered=ordered)
    if ordered:
        assert next(results) == 0
    with pytest.raises(ValueError, match="^1$"):
        next(results)

    assert sorted(ended) == ([2, 3] if ordered else [0, 2, 3])


@pytest.mark.promise("A `map` that is left early cancels what is on its way")
@pytest.mark.parametrize("how", ["break", "close", "collected"])
def test_an_iterator_that_is_left_early_cancels_what_is_on_its_way(how):
    ended = []
    all_started = asyncio.Event()

    async def work(number):
        if number == 2:
            all_started.set()
        await all_started.wait()
        if number == 0:
            return number
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    if how == "break":
        for _ in omniloop.map(work, range(3)):
            break
    else:
        results = omniloop.map(work, range(3))
        next(results)
        if how == "close":
            results.close()
        del results
    gc.collect()

    assert sorted(ended) == [1, 2]


def test_an_error_in_the_items_comes_out_and_the_rest_is_cancelled():
    ended = []

    async def work(number):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    def items():
        yield 0
        omniloop.run(double(0))
        raise OSError("no more items")

    with pytest.raises(OSError, match="no more items"):
        list(omniloop.map(work, items()))

    assert ended == [0]


def test_an_error_that_came_out_is_not_kept_alive():
    class MyError(Exception):
        pass

    async def fail(number):
        raise MyError

    gc.disable()
    try:
        for ordered in (True, False):
            try:
                next(omniloop.map(fail, [1], ordered=ordered))
            except MyError as error:
                watched = weakref.ref(error)
            # Without a GIL what the loop has made lives until it runs again.
            for _ in range(20):
                if watched() is None:
                    break
                omniloop.run(asyncio.sleep(0))
            assert watched() is None
    finally:
        gc.enable()


def test_another_runtime_can_be_given():
    def where(_):
        return threading.current_thread().name

    with Runtime(name="other") as runtime:
        assert [name.partition("-")[0] for name in omniloop.map(where, "ab", runtime=runtime)] == ["other", "other"]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((5, []), {}, NotAsyncError, "5 can't be called"),
        ((double, 5), {}, TypeError, "items=5: give"),
        ((double, []), {"limit": 0}, ValueError, "limit=0: give"),
        ((double, []), {"progress": 5}, TypeError, "progress=5: give"),
        ((double, []), {"runtime": 5}, TypeError, "runtime=5: give"),
    ],
    ids=["fn", "items", "limit", "progress", "runtime"],
)
def test_bad_input_is_named_at_the_call(arguments, options, error, message):
    with pytest.raises(error, match=message):
        omniloop.map(*arguments, **options)


def test_on_the_loops_own_thread_it_is_refused():
    async def main():
        with pytest.raises(WouldDeadlockError):
            next(omniloop.map(double, [1]))

    omniloop.run(main(), timeout=5)


def main_waits():
    """Whether the main thread waits for work, and no longer for the start of the loop."""
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame is not None and (frame.f_globals["__name__"], frame.f_code.co_name) != ("omniloop._life.waits", "wait"):
        frame = frame.f_back
    return frame is not None


async def interrupt_the_wait():
    while not main_waits():
        await asyncio.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.promise("Ctrl-C in `map` cancels what is on its way")
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_cancels_what_is_on_its_way(ordered):
    def program():
        async def work(number):
            try:
                if number == 1:
                    await interrupt_the_wait()
                await asyncio.Event().wait()
            finally:
                print("cleaned up", number)

        try:
            list(omniloop.map(work, range(2), ordered=ordered))
        except KeyboardInterrupt:
            print("interrupted")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("cleaned up 0\ncleaned up 1\ninterrupted\n", "", 0)


def test_what_is_on_its_way_is_finished_at_exit():
    def program():
        async def work(number):
            if number == 1:
                both_started.set()
            await both_started.wait()
            await asyncio.sleep(0.05 * number)
            print("done", number)

        both_started = asyncio.Event()
        results = omniloop.map(work, range(2))
        next(results)

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("done 0\ndone 1\n", "", 0)


def test_a_forked_child_may_map_anew_and_leaves_the_parents_alone():
    def program():
        warnings.simplefilter("ignore", DeprecationWarning)

        async def work(number):
            await asyncio.sleep(0.01 * number)
            return number

        results = omniloop.map(work, range(4))
        next(results)
        pid = os.fork()
        if pid == 0:
            del results
            print("child", list(omniloop.map(work, [0, 1])), flush=True)
        else:
            assert os.waitpid(pid, 0)[1] == 0
            print("parent", list(results))

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("child [0, 1]\nparent [1, 2, 3]\n", "", 0)


# --- timeout and return_exceptions ------------------------------------------------------------------------------------


async def even(number):
    await asyncio.sleep(0)
    if number % 2:
        raise LookupError(number)
    return number


def even_in_thread(number):
    if number % 2:
        raise LookupError(number)
    return number


@pytest.mark.promise("`map(…, return_exceptions=True)` hands out an error in the place of its result, and goes on")
@pytest.mark.parametrize("fn", [even, even_in_thread])
@pytest.mark.parametrize("ordered", [True, False])
def test_errors_may_be_handed_out_in_the_place_of_results(fn, ordered):
    results = list(omniloop.map(fn, range(6), limit=2, ordered=ordered, return_exceptions=True))

    shown = [repr(result) for result in results]
    assert sorted(shown) == sorted(["0", "LookupError(1)", "2", "LookupError(3)", "4", "LookupError(5)"])
    if ordered:
        assert [isinstance(result, LookupError) for result in results] == [False, True] * 3


def test_an_item_that_takes_too_long_does_not_end_the_others():
    async def fetch(number):
        if number == 3:
            await asyncio.Event().wait()
        return number

    *_, bad, last = omniloop.map(fetch, range(5), timeout=1, return_exceptions=True)

    assert type(bad) is omniloop.TaskTimeoutError
    assert str(bad).endswith("fetch was not done 1 s after its start, and was cancelled.")
    assert last == 4


@pytest.mark.promise("`map(…, timeout=…)` gives each item its time, counted from its start")
def test_the_time_of_an_item_counts_from_its_start():
    """Behind a loop that is blocked for longer than the timeout: each item has its time all the same."""
    runtime = Runtime()
    busy, go_on = threading.Event(), threading.Event()

    def block():
        busy.set()
        assert go_on.wait(timeout=5)

    runtime.call_soon(block)
    assert busy.wait(timeout=5)
    runtime.to_thread(lambda: (threading.Event().wait(1.5), go_on.set()))

    with runtime:
        assert list(omniloop.map(double, range(3), timeout=1, runtime=runtime)) == [0, 2, 4]


def test_without_return_exceptions_a_timeout_comes_out_as_it_is():
    async def fetch(number):
        await asyncio.Event().wait()

    with pytest.raises(omniloop.TaskTimeoutError):
        list(omniloop.map(fetch, range(3), timeout=0.01))


def test_a_timeout_for_a_plain_function_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"double_in_thread is a plain function.*Pass an async function, or give what"):
        omniloop.map(double_in_thread, [1], timeout=5)
    with pytest.raises(ValueError, match="give seconds as a number"):
        omniloop.map(double, [1], timeout="5")


def test_a_system_exit_of_the_work_is_no_result():
    async def leave(number):
        raise SystemExit(number)

    with pytest.raises(SystemExit):
        list(omniloop.map(leave, [3], return_exceptions=True))


class Hidden:
    """Can be called, and does not say what it returns."""

    def __call__(self, number):
        return late(number)


async def late(number):
    await asyncio.sleep(0)
    return 2 * number


@pytest.mark.promise("`map` takes a function by what it returns, too: a lambda, a partial, an object")
@pytest.mark.parametrize(
    "fn",
    [lambda number: late(number), functools.partial(Hidden().__call__), Hidden()],
    ids=["lambda", "partial", "object"],
)
def test_what_does_not_say_that_it_is_async_is_taken_by_what_it_returns(runtime, fn):
    assert list(omniloop.map(fn, range(5), limit=2, runtime=runtime)) == [0, 2, 4, 6, 8]
