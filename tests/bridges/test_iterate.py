"""Iterating across the border: over an async generator in sync code, over a blocking iterator in async code."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import os
import signal
import sys
import threading
import time

import pytest

import omniloop
from children import run_child
from omniloop import NotAsyncError, Runtime, WouldDeadlockError, aiterate, iterate


@pytest.fixture(params=["asyncio", "uvloop"])
def runtime(request):
    factory = None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with Runtime(name=request.param, loop_factory=factory) as made:
        yield made


async def count(n, closed=None):
    try:
        for number in range(n):
            await asyncio.sleep(0)
            yield number
    finally:
        await asyncio.sleep(0)
        if closed is not None:
            closed.set()


@pytest.mark.promise("`iterate` gives the items of an async iterable, in order, in sync code")
@pytest.mark.parametrize("buffer", [1, 3, 100])
def test_the_items_come_in_order(runtime, buffer):
    assert list(iterate(count(50), buffer=buffer, runtime=runtime)) == list(range(50))


def test_the_shared_runtime_is_the_default():
    assert list(iterate(count(3))) == [0, 1, 2]


def test_any_async_iterable_will_do(runtime):
    class Countdown:
        def __init__(self):
            self.left = 3

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    assert list(iterate(Countdown(), runtime=runtime)) == [2, 1, 0]


@pytest.mark.promise("The source is never further ahead of the consumer than the buffer and one item")
@pytest.mark.parametrize("buffer", [1, 4])
def test_the_source_is_never_further_ahead_than_the_buffer_and_one(runtime, buffer):
    taken, ahead = [], []

    async def source():
        for number in range(50):
            ahead.append(number - len(taken))
            yield number

    for number in iterate(source(), buffer=buffer, runtime=runtime):
        taken.append(number)  # noqa: PERF402

    # One more, because an item leaves the buffer before it is noted here.
    assert max(ahead) <= buffer + 1


@pytest.mark.promise("What the source raises is raised where the consumer is, after the items before it")
def test_what_the_source_raises_comes_out_after_the_items_before_it(runtime):
    async def source():
        yield 1
        yield 2
        raise LookupError("no third")

    numbers, items = iterate(source(), buffer=10, runtime=runtime), []
    with pytest.raises(LookupError, match="no third"):
        for number in numbers:
            items.append(number)  # noqa: PERF402

    assert items == [1, 2]
    # Once, as of a generator.
    assert list(numbers) == []


@pytest.mark.promise("An early `break` closes the generator on the loop, and its `finally` runs")
def test_an_early_break_closes_the_generator_on_the_loop(runtime):
    closed, where = threading.Event(), []

    async def source():
        try:
            while True:
                yield
        finally:
            await asyncio.sleep(0)
            where.append(asyncio.get_running_loop())
            closed.set()

    for _ in iterate(source(), runtime=runtime):
        break

    assert closed.wait(timeout=5)
    assert where == [runtime._life.thread.loop]


@pytest.mark.promise("So does an error in the body of the `for`")
def test_an_error_in_the_loop_body_closes_the_generator(runtime):
    closed = threading.Event()

    with pytest.raises(ZeroDivisionError):
        for number in iterate(count(9, closed), runtime=runtime):
            _ = 1 / number

    assert closed.wait(timeout=5)


@pytest.mark.promise("So does a garbage collection of the iterator")
def test_a_garbage_collection_closes_the_generator(runtime):
    closed = threading.Event()
    cycle = [iterate(count(9, closed), runtime=runtime)]
    next(cycle[0])
    cycle.append(cycle)

    del cycle
    gc.collect()

    assert closed.wait(timeout=5)


@pytest.mark.promise("A `with` around the iteration waits until the generator is closed")
def test_a_with_block_waits_until_the_generator_is_closed(runtime):
    closed = threading.Event()

    with iterate(count(9, closed), runtime=runtime) as numbers:
        next(numbers)

    assert closed.is_set()
    assert list(numbers) == []


@pytest.mark.promise("An error in closing is raised by `close`")
def test_an_error_in_closing_is_raised_by_close(runtime):
    async def source():
        try:
            yield 1
            await asyncio.sleep(60)
        finally:
            raise LookupError("in closing")

    numbers = iterate(source(), runtime=runtime)
    next(numbers)

    with pytest.raises(LookupError, match="in closing"):
        numbers.close()
    numbers.close()


@pytest.mark.promise("A source that swallows its cancellation is closed nonetheless")
def test_a_source_that_swallows_its_cancellation_is_closed_nonetheless(runtime):
    closed = threading.Event()

    async def source():
        try:
            yield 1
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
                yield 2
        finally:
            closed.set()

    with iterate(source(), runtime=runtime) as numbers:
        next(numbers)

    assert closed.is_set()


@pytest.mark.promise("The whole generator runs in one task and in the caller's context")
def test_the_whole_generator_runs_in_one_task_and_the_callers_context(runtime):
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("the caller's")
    seen = set()

    async def source():
        # Has to be left in the task that entered it.
        async with asyncio.timeout(60):
            for _ in range(5):
                seen.add((asyncio.current_task(), variable.get()))
                yield
        seen.add((asyncio.current_task(), variable.get()))

    for _ in iterate(source(), runtime=runtime):
        pass

    assert len(seen) == 1
    assert seen.pop()[1] == "the caller's"


@pytest.mark.promise("Iterating on the loop's own thread is an error, not a hang")
def test_on_the_loops_own_thread_it_would_deadlock(runtime):
    async def work():
        return list(iterate(count(3), runtime=runtime))

    with pytest.raises(WouldDeadlockError, match="await"):
        runtime.run(work())


def test_waiting_on_the_loops_own_thread_for_an_iteration_made_elsewhere_would_deadlock(runtime):
    async def nothing():
        await asyncio.sleep(60)
        yield

    numbers = iterate(nothing(), runtime=runtime)

    with pytest.raises(WouldDeadlockError):
        runtime.call_soon(next, numbers).result(timeout=5)
    numbers.close()


@pytest.mark.promise("So are two runtimes that iterate over each other")
def test_two_runtimes_that_iterate_over_each_other_would_deadlock(runtime):
    with Runtime(name="other") as other:

        async def inner():
            for number in iterate(count(3), runtime=runtime):
                yield number

        async def outer():
            for number in iterate(inner(), runtime=other):
                yield number

        with pytest.raises(WouldDeadlockError):
            list(iterate(outer(), runtime=runtime))


@pytest.mark.promise("A worker that iterates leaves its place to what the source needs")
def test_a_worker_that_iterates_leaves_its_place_to_what_the_source_needs():
    with Runtime(max_workers=1) as runtime:

        async def source():
            for number in range(3):
                yield await asyncio.to_thread(int, number)

        assert runtime.to_thread(lambda: list(iterate(source(), runtime=runtime))).result(timeout=5) == [0, 1, 2]


def test_a_shutdown_ends_the_iteration_with_a_cancellation():
    runtime = Runtime()
    waiting = threading.Event()

    async def source():
        yield 1
        waiting.set()
        await asyncio.sleep(60)

    numbers = iterate(source(), runtime=runtime)
    next(numbers)
    assert waiting.wait(timeout=5)
    runtime.shutdown()

    with pytest.raises(concurrent.futures.CancelledError):
        next(numbers)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([1, 2], "Iterate over it as it is"),
        (count, r"Call it: iterate\(count\(…\)\)"),
        (asyncio.sleep(0), r"Use run\(\)"),
        (7, "Pass what `async for` takes"),
    ],
)
def test_what_is_no_async_iterable_is_refused_with_the_way_out(source, words):
    with pytest.raises(NotAsyncError, match=words):
        iterate(source)


@pytest.mark.parametrize("buffer", [0, -1, 1.5, True, None, "1"])
@pytest.mark.parametrize("call", [lambda n: iterate(count(1), buffer=n), lambda n: aiterate([1], buffer=n)])
def test_a_buffer_that_is_no_whole_number_above_zero_is_refused(call, buffer):
    with pytest.raises(ValueError, match=f"buffer={buffer!r}"):
        call(buffer)


# --- at the end of the program ----------------------------------------------------------------------------------------


@pytest.mark.promise("An iteration that nobody ends is closed at exit")
def test_an_iteration_that_nobody_ends_is_closed_at_exit():
    def program():
        async def source():
            try:
                while True:
                    yield 1
            finally:
                await asyncio.sleep(0.01)
                print("closed")

        numbers = omniloop.iterate(source())
        print(next(numbers))

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("1\nclosed\n", "", 0)
    # `exit_timeout` is 25 s.
    assert result.seconds < 15


@pytest.mark.promise("Ctrl-C ends the wait for an item, and the generator is closed")
def test_ctrl_c_in_the_wait_ends_it_and_the_generator_is_closed():
    def program():
        async def source():
            try:
                yield 1
                await printed.wait()
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)
            finally:
                sys.stdout.write("closed\n")

        printed = asyncio.Event()
        try:
            for number in omniloop.iterate(source()):
                print(number)
                omniloop.call_soon(printed.set)
        except KeyboardInterrupt:
            # One write each: two threads say something here.
            sys.stdout.write("interrupted\n")

    result = run_child(program)

    assert (sorted(result.stdout.split()), result.stderr, result.code) == (["1", "closed", "interrupted"], "", 0)


@pytest.mark.promise("A forked child leaves the parent's iteration alone, and can make its own")
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_a_forked_child_leaves_the_parents_iteration_alone_and_makes_its_own():
    def program():
        async def source():
            try:
                for number in range(4):
                    yield number
            finally:
                print("closed in", "parent" if os.getpid() == parent else "child", flush=True)

        parent = os.getpid()
        numbers = omniloop.iterate(source())
        print(next(numbers), flush=True)
        if os.fork() == 0:
            try:
                # One may wait in the buffer; what would have to be waited for is the parent's.
                for number in numbers:
                    pass
            except omniloop.ForkedError:
                print("refused", flush=True)
            del numbers
            parent = os.getpid()
            print(list(omniloop.iterate(source())), flush=True)
            sys.exit()
        assert os.wait()[1] == 0
        print(list(numbers))

    result = run_child(
        program,
        flags=["-W", "ignore::DeprecationWarning"],
    )

    assert result.stdout.splitlines() == [
        "0",
        "refused",
        "closed in parent",
        "[0, 1, 2, 3]",
        "closed in parent",
        "[1, 2, 3]",
    ]
    assert (result.stderr, result.code) == ("", 0)


# --- aiterate ---------------------------------------------------------------------------------------------------------


async def collect(source, **options):
    return [item async for item in aiterate(source, **options)]


@pytest.mark.promise("`aiterate` yields the items of a blocking iterator in async code, on any loop")
@pytest.mark.parametrize("buffer", [1, 100])
def test_a_blocking_iterator_yields_in_async_code_on_any_loop(runtime, buffer):
    assert runtime.run(collect(range(50), buffer=buffer, runtime=runtime)) == list(range(50))
    assert asyncio.run(collect(range(50), buffer=buffer, runtime=runtime)) == list(range(50))


def test_a_blocking_iterator_yields_under_trio(runtime):
    trio = pytest.importorskip("trio")

    async def main():
        return await collect(range(20), runtime=runtime)

    assert trio.run(main) == list(range(20))


@pytest.mark.promise("A blocking iterator runs in one worker thread from beginning to end")
def test_a_blocking_iterator_runs_in_one_worker_thread(runtime):
    threads = set()

    def source():
        for number in range(10):
            threads.add(threading.current_thread())
            yield number
        threads.add(threading.current_thread())

    asyncio.run(collect(source(), runtime=runtime))

    assert len(threads) == 1
    assert "worker" in threads.pop().name


def test_what_a_blocking_iterator_raises_comes_out_after_the_items_before_it(runtime):
    def source():
        yield 1
        raise LookupError("no second")

    async def main():
        items = []
        with pytest.raises(LookupError, match="no second"):
            async for item in aiterate(source(), runtime=runtime):
                items.append(item)  # noqa: PERF401
        return items

    assert asyncio.run(main()) == [1]


@pytest.mark.promise("Closing it early closes a generator in its thread, and waits for that")
def test_closing_early_closes_the_generator_in_its_thread_and_waits_for_that(runtime):
    threads = []

    def source():
        threads.append(threading.current_thread())
        try:
            while True:
                yield
        finally:
            threads.append(threading.current_thread())

    async def main():
        async with contextlib.aclosing(aiterate(source(), runtime=runtime)) as items:
            async for _ in items:
                break
        return len(threads)

    assert asyncio.run(main()) == 2
    assert threads[0] is threads[1]


def test_a_consumer_that_is_cancelled_does_not_wait_and_the_generator_is_closed(runtime):
    gate, closed = threading.Event(), threading.Event()

    def source():
        try:
            yield 1
            gate.wait(timeout=5)
            yield 2
        finally:
            closed.set()

    async def main():
        waiting = asyncio.Event()

        async def consume():
            async for _ in aiterate(source(), runtime=runtime):
                waiting.set()

        task = asyncio.ensure_future(consume())
        await waiting.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not closed.is_set()
        gate.set()

    asyncio.run(main())

    assert closed.wait(timeout=5)


@pytest.mark.promise("A slow consumer of a blocking iterator does not use up the pool")
def test_a_slow_consumer_does_not_use_up_the_pool():
    with Runtime(max_workers=1) as runtime:

        async def consume():
            # Each body needs the pool's only place, which the iterator has.
            return [await runtime.to_thread(abs, number) async for number in aiterate(range(5), runtime=runtime)]

        assert runtime.go(consume()).result(timeout=5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("when_full", ["block", "raise", "drop_new", "drop_old"])
def test_bounds_do_not_stand_between_a_source_and_its_consumer(when_full):
    """With room for one, what filled the buffer kept out what would have emptied it."""
    with Runtime(max_pending=1, when_full=when_full) as runtime:
        assert asyncio.run(collect(range(50), runtime=runtime)) == list(range(50))
        assert list(iterate(count(50), runtime=runtime)) == list(range(50))


@pytest.mark.parametrize("source", [count(1), 7])
def test_what_is_not_iterable_is_refused_with_the_way_out(source):
    with pytest.raises(NotAsyncError, match="Pass an iterable|Use `async for`"):
        aiterate(source)


def test_an_iteration_of_a_task_goes_on_at_exit():
    def program():
        def source():
            while not omniloop._process.exit.draining():
                time.sleep(0.001)
            yield from range(3)

        async def consume():
            async for number in omniloop.aiterate(source()):
                print(number)

        omniloop.go(consume())
        print("last line")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("last line\n0\n1\n2\n", "", 0)


@pytest.mark.promise(
    "A blocking source of `aiterate` that waits for ever does not hold up the exit, however the iteration ends"
)
@pytest.mark.parametrize("ends", ["by a break", "by a time limit", "by an error", "by aclosing"])
@pytest.mark.parametrize("where", ["asyncio.run", "omniloop.run", "go"])
def test_a_source_that_blocks_does_not_hold_up_the_exit(ends, where):
    """Its worker was waited for until the deadline."""

    def program():
        import contextlib

        ends, where = os.environ["ENDS"], os.environ["WHERE"]

        def tail():
            yield "a line"
            threading.Event().wait()
            yield "never"

        async def consume():
            lines = omniloop.aiterate(tail())
            if ends == "by aclosing":
                async with contextlib.aclosing(lines):
                    await asyncio.wait([asyncio.ensure_future(anext(lines))])
                return
            async with asyncio.timeout(0.2 if ends == "by a time limit" else None):
                async for line in lines:
                    if ends == "by an error":
                        raise LookupError(line)
                    if ends == "by a break":
                        break

        with contextlib.suppress(LookupError, TimeoutError):
            if where == "asyncio.run":
                asyncio.run(consume())
            elif where == "omniloop.run":
                omniloop.run(consume())
            else:
                omniloop.go(consume()).result()
        print("last line", flush=True)

    result = run_child(program, env={"ENDS": ends, "WHERE": where})

    assert (result.stdout, result.code) == ("last line\n", 0)
    # `exit_timeout` is 25 s.
    assert result.seconds < 15
    # Said where closing was to wait for it; which a break's closing may have come before.
    said = "aiterate(tail): its source has blocked for 1 s, and closing waits for it no longer."
    assert result.stderr == "" or result.stderr.startswith(said)


@pytest.mark.promise("Closing `aiterate` closes its source, or says after a second that this blocks")
def test_closing_says_that_the_source_blocks(runtime, caplog):
    asked, gate, closed = threading.Event(), threading.Event(), threading.Event()

    def source():
        try:
            yield 1
            asked.set()
            gate.wait(30)
            yield 2
        finally:
            closed.set()

    async def main():
        lines = aiterate(source(), runtime=runtime)
        assert await anext(lines) == 1
        assert asked.wait(5)
        await lines.aclose()

    asyncio.run(main())
    assert "source): its source has blocked for 1 s, and closing waits for it no longer" in caplog.text
    assert not closed.is_set()

    gate.set()
    assert closed.wait(5)


def test_an_iteration_that_was_refused_has_ended():
    """The second step was a CancelledError, which in async code means that the task was cancelled."""
    runtime = Runtime()
    runtime.run(asyncio.sleep(0))
    runtime.shutdown()

    async def main():
        numbers = omniloop.blocking(count, runtime=runtime).aio(3)
        with pytest.raises(omniloop.ClosedError):
            await anext(numbers)
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(numbers)
        await numbers.aclose()

    asyncio.run(main())
