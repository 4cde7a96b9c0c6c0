"""Waits that could never end are errors, and honest waits that look like them are not."""

import asyncio
import concurrent.futures
import contextlib
import gc
import importlib
import os
import sys
import threading
import time
from functools import partial

import pytest

import omniloop
from children import run_child
from omniloop import Runtime, WouldDeadlockError
from omniloop._life import waits
from omniloop._report import CAN_LOOK_AT_WHAT_RUNS
from programs import source_of

# Admission a wait that should end by itself.
SOON = 8


@pytest.fixture
def other():
    with Runtime(name="other") as runtime:
        yield runtime


async def answer(value: int = 42) -> int:
    await asyncio.sleep(0)
    return value


# --- two runtimes -----------------------------------------------------------------------------------------------------


@pytest.mark.promise("Two loops that wait for each other are told")
def test_two_loops_that_wait_for_each_other_are_told(runtime, other):
    both_run = threading.Barrier(2)

    def waits_for(next_one):
        both_run.wait(timeout=SOON)
        return next_one.run(answer())

    ours = runtime.call_soon(waits_for, other)
    theirs = other.call_soon(waits_for, runtime)

    outcomes = [ours.exception(timeout=SOON), theirs.exception(timeout=SOON)]
    assert WouldDeadlockError in map(type, outcomes)
    assert runtime.run(answer()) == other.run(answer()) == 42


@pytest.mark.promise("Also where one of them flushes or shuts down the other")
@pytest.mark.parametrize("how", ["flush", "shutdown"])
def test_two_loops_one_of_which_waits_for_all_of_the_others_work_are_told(runtime, how, failures):
    # A shutdown reports a failure that nobody has asked for by then: here it may be faster than the test's question.
    other = Runtime(name="other")
    both_run = threading.Barrier(2)

    def waits_for_work():
        both_run.wait(timeout=SOON)
        return other.run(answer())

    def waits_for_all():
        both_run.wait(timeout=SOON)
        getattr(runtime, how)()

    ours = runtime.call_soon(waits_for_work)
    theirs = other.call_soon(waits_for_all)

    outcomes = [ours.exception(timeout=SOON), theirs.exception(timeout=SOON)]
    other.shutdown()
    assert WouldDeadlockError in map(type, outcomes)


def test_three_loops_in_a_circle_are_told(runtime, other):
    with Runtime(name="third") as third:
        loops = [runtime, other, third]
        all_run = threading.Barrier(3)

        def waits_for(next_one):
            all_run.wait(timeout=SOON)
            return next_one.run(answer(), timeout=SOON)

        calls = [loop.call_soon(waits_for, loops[(number + 1) % 3]) for number, loop in enumerate(loops)]
        outcomes = [call.exception(timeout=SOON) for call in calls]

    assert WouldDeadlockError in map(type, outcomes)


def test_one_loop_may_wait_for_another(runtime, other):
    assert runtime.call_soon(lambda: other.run(answer())).result(timeout=SOON) == 42
    assert runtime.call_soon(other.flush).result(timeout=SOON) is None


# --- imports ----------------------------------------------------------------------------------------------------------


def program_that_imports(module, tmp_path):
    """Write *module*, the body of a function, to a file; the program imports that, and tells its outcome."""
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "__init__.py").write_text(source_of(module))
    (tmp_path / "module" / "part.py").write_text("")
    path = str(tmp_path)

    def program():
        sys.path.insert(0, path)
        import module

        sys.stdout.write(f"{module.outcome}\n")

    return program


@pytest.mark.promise("Waiting while importing for work that imports the same is told")
@pytest.mark.parametrize("imported", ["a module", "a part", "from it", "by importlib"])
def test_waiting_while_importing_for_work_that_imports_the_same_is_told(imported, tmp_path):
    """The loop waits for the lock of the module, which the waiting thread holds."""

    def module():
        async def work():
            if imported == "a module":
                import module
            elif imported == "a part":
                import module.part  # noqa: F401
            elif imported == "from it":
                from module import part  # noqa: F401
            else:
                importlib.import_module("module")
            return "imported"

        try:
            outcome = omniloop.run(work())
        except omniloop.WouldDeadlockError as error:
            outcome = "told: " + str(error)

    result = run_child(program_that_imports(module, tmp_path), env={"OMNILOOP_SLOW_CALLBACK": "none"})

    assert result.stdout.startswith("told: ") and "while importing would never end" in result.stdout
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("Waiting while importing for other work is fine, however long it takes")
def test_waiting_while_importing_for_other_work_is_fine_however_long_it_takes(tmp_path):
    (tmp_path / "another.py").write_text("value = 7")

    def module():
        async def work():
            import another

            await asyncio.sleep(1.3)
            import json.tool  # noqa: F401

            return another.value

        outcome = omniloop.run(work())

    result = run_child(program_that_imports(module, tmp_path))

    assert result == ("7\n", "", 0, result.seconds)


def test_submitting_while_importing_what_imports_the_same_is_fine(tmp_path):
    def module():
        async def work():
            import module

            # In one piece: the main thread prints at the same time.
            os.write(1, f"{module.outcome}\n".encode())

        omniloop.go(work())
        outcome = "imported"

    result = run_child(program_that_imports(module, tmp_path))

    assert result == ("imported\nimported\n", "", 0, result.seconds)


# --- the caller's own loop --------------------------------------------------------------------------------------------


@pytest.fixture
def looked(monkeypatch):
    """Set when a long wait has been looked into."""
    event = threading.Event()
    monkeypatch.setattr(waits, "_looks", [*waits._looks, lambda ident, task: event.set()])
    return event


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_factory(request):
    return asyncio.new_event_loop if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop


@pytest.mark.skipif(not CAN_LOOK_AT_WHAT_RUNS, reason="frames of other threads are not safe to look at here")
@pytest.mark.promise(
    "Waiting in an event loop's thread, while omniloop's thread blocks until that loop has done something, is told",
)
@pytest.mark.parametrize("asks", ["result", "exception"])
@pytest.mark.parametrize("place", ["a coroutine", "a done callback"])
def test_waiting_in_a_loop_that_the_loop_blocks_for_is_told(runtime, place, asks):
    """As a window's thread that waits, while a callback makes a call there and waits for the answer (Textual's `call_from_thread`)."""

    async def window():
        mine = asyncio.get_running_loop()

        gate, over = [runtime.call_soon(asyncio.Event).result(timeout=SOON) for _ in range(2)]

        def blocks(task=None):
            answers.append(getattr(asyncio.run_coroutine_threadsafe(answer(7), mine), asks)())
            over.set()

        async def work():
            await gate.wait()
            if place == "a coroutine":
                blocks()

        blocked = runtime.go(work())
        if place == "a done callback":
            blocked.add_done_callback(blocks)
        runtime.call_soon(gate.set)
        with pytest.raises(WouldDeadlockError, match=r"the thread that runs it blocks at File .*, in .*blocks, until"):
            runtime.go(over.wait()).result()
        # Only that wait is over: the work goes on, as soon as it has its answer.
        await runtime.go(over.wait())

    answers = []
    asyncio.run(window())

    assert answers == [7 if asks == "result" else None]


@pytest.mark.skipif(not CAN_LOOK_AT_WHAT_RUNS, reason="frames of other threads are not safe to look at here")
def test_waiting_in_a_loop_that_is_in_the_middle_of_what_the_loop_blocks_for_is_told(runtime, loop_factory):
    async def window():
        mine, begun, gate = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        async def asked():
            begun.set()
            await gate.wait()

        blocked = runtime.call_soon(lambda: asyncio.run_coroutine_threadsafe(asked(), mine).result())
        await begun.wait()
        with pytest.raises(WouldDeadlockError, match="the thread that runs it blocks at"):
            runtime.go(answer()).result()
        gate.set()
        await blocked

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(window())


@pytest.mark.promise(
    "Waiting in an event loop's thread while omniloop's blocks for anything else is fine, however long it takes"
)
@pytest.mark.parametrize("what", ["another loop", "a future", "a timeout"])
def test_waiting_in_a_loop_while_the_loop_blocks_for_something_else_is_fine(runtime, other, looked, what):
    async def window():
        mine = asyncio.get_running_loop()
        future = concurrent.futures.Future()
        if what == "another loop":
            gate = other.call_soon(asyncio.Event).result(timeout=SOON)
            gate_loop = other.run(get_loop())
            blocked = runtime.call_soon(lambda: asyncio.run_coroutine_threadsafe(gate.wait(), gate_loop).result())
            end = partial(gate_loop.call_soon_threadsafe, gate.set)
        elif what == "a future":
            blocked, end = runtime.call_soon(future.result), partial(future.set_result, None)
        else:
            # It would end by itself: here somebody cancels it sooner.
            def blocks():
                asked.append(asyncio.run_coroutine_threadsafe(answer(), mine))
                with contextlib.suppress(concurrent.futures.CancelledError):
                    asked[0].result(timeout=60)

            asked = []
            blocked, end = runtime.call_soon(blocks), lambda: asked[0].cancel()

        def ends():
            assert looked.wait(timeout=SOON)
            end()

        thread = threading.Thread(target=ends)
        thread.start()
        assert runtime.run(answer()) == 42
        thread.join()
        await blocked

    asyncio.run(window())


async def get_loop():
    return asyncio.get_running_loop()


def test_waiting_in_a_loop_for_a_worker_while_the_loop_blocks_for_that_loop_is_fine(runtime, looked):
    """A worker's call ends without the loop."""

    async def window():
        mine = asyncio.get_running_loop()
        began = threading.Event()

        def works():
            began.set()
            return looked.wait(timeout=SOON)

        call = runtime.to_thread(works)
        assert began.wait(timeout=SOON)
        blocked = runtime.call_soon(lambda: asyncio.run_coroutine_threadsafe(answer(), mine).result())
        assert call.result() is True
        assert await blocked == 42

    asyncio.run(window())


# --- finalisers and logging on the loop's thread ----------------------------------------------------------------------


@pytest.mark.promise("A finaliser that waits on the loop's thread is told, and one that submits is not")
def test_a_finaliser_that_waits_on_the_loops_thread_is_told_and_one_that_submits_is_not(runtime):
    outcomes = []

    class Client:
        def __del__(self):
            outcomes.append(runtime.go(answer()))
            try:
                runtime.run(answer())
            except WouldDeadlockError as error:
                outcomes.append(error)

    def drops_a_cycle():
        client = Client()
        client.me = client
        del client
        gc.collect()

    runtime.call_soon(drops_a_cycle).result(timeout=SOON)

    assert outcomes[0].result(timeout=SOON) == 42
    assert "on the loop's own thread" in str(outcomes[1])


def test_a_logging_handler_that_waits_while_the_loop_logs_is_told(runtime, failures):
    import logging

    outcomes = []

    class Ships(logging.Handler):
        def emit(self, record):
            outcomes.append(runtime.go(answer()))
            try:
                outcomes[-1].result(timeout=SOON)
            except WouldDeadlockError as error:
                outcomes.append(error)

    logger = logging.getLogger("tests.ships")
    logger.propagate = False
    logger.addHandler(Ships())

    runtime.call_soon(logger.warning, "on the loop").result(timeout=SOON)
    logger.warning("elsewhere")

    assert [type(outcome).__name__ for outcome in outcomes] == ["Task", "WouldDeadlockError", "Task"]


@pytest.mark.promise("A report from a finaliser takes no lock of logging's")
def test_a_collection_on_the_loops_thread_inside_a_logging_handler_with_a_plain_lock_does_not_hang(runtime, failures):
    """A report from `__del__` was logged there and then: the handler's lock was held by the very frame that collected."""
    import logging

    class Plain(logging.Handler):
        def createLock(self):
            self.lock = threading.Lock()

        def emit(self, record):
            gc.collect()
            seen.append(record.getMessage())

    async def fails():
        raise ValueError("dropped")

    def drops(task):
        box = [task]
        box.append(box)

    seen = []
    logger = logging.getLogger("omniloop")
    handler = Plain()
    logger.addHandler(handler)
    runtime.configure(on_error=None)
    try:
        task = runtime.go(fails())
        concurrent.futures.wait([task])
        gc.disable()
        drops(task)
        del task
        # Logs, and so collects with the lock held; the collection drops a failure that nobody asked for.
        logger.warning("first")
        gc.enable()
        runtime.flush(timeout=SOON)
    finally:
        gc.enable()
        logger.removeHandler(handler)
        runtime.configure(on_error=failures.append)

    assert seen[0] == "first"
    assert any("fails" in message for message in seen[1:])


# --- fork hooks -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_waiting_inside_a_fork_hook_is_told():
    def program():
        def hook():
            try:
                omniloop.run(asyncio.sleep(0))
            except omniloop.WouldDeadlockError as error:
                print(error)

        # Hooks before a fork run last in, first out: when this one runs, ours has.
        os.register_at_fork(before=hook)
        import omniloop

        omniloop.run(asyncio.sleep(0))
        omniloop.go(asyncio.sleep(0.1))
        if not os.fork():
            os._exit(0)
        assert os.wait()[1] == 0

    result = run_child(
        program,
        flags=["-W", "ignore::DeprecationWarning"],
    )

    assert "holds still until this thread has forked" in result.stdout
    assert (result.stderr, result.code) == ("", 0)


# --- worker threads ---------------------------------------------------------------------------------------------------


def test_workers_that_wait_for_the_runtime_do_not_starve_the_look_ups_they_wait_for():
    """The pool was full of workers that waited, and what they waited for never ran: 4 of 6 timed out."""
    with Runtime(name="small", max_workers=2) as runtime:

        async def looks_up():
            loop = asyncio.get_running_loop()
            await loop.getaddrinfo("localhost", 80)
            return await asyncio.to_thread(sum, [40, 2])

        calls = [runtime.to_thread(runtime.run, looks_up()) for _ in range(6)]

        assert [call.result(timeout=SOON) for call in calls] == [42] * 6


@pytest.mark.promise("Workers that wait for the runtime do not starve the look-ups they wait for")
def test_workers_that_wait_for_workers_that_wait_are_served():
    with Runtime(name="small", max_workers=1) as runtime:

        def nested(depth):
            return runtime.to_thread(nested, depth - 1).result(timeout=SOON) + 1 if depth else 0

        assert runtime.to_thread(nested, 10).result(timeout=SOON) == 10


def test_the_workers_that_took_the_places_of_waiting_ones_end():
    with Runtime(name="small", max_workers=1) as runtime:
        gate = asyncio.Event()
        calls = [runtime.to_thread(lambda: runtime.run(gate.wait())) for _ in range(5)]
        while runtime.run(count_tasks()) < 6:
            time.sleep(0.001)
        assert workers_of("small") >= 5

        runtime.call_soon(gate.set)
        for call in calls:
            call.result(timeout=SOON)
        runtime.to_thread(int).result(timeout=SOON)

        # They end when they have nothing to do.
        until = time.monotonic() + SOON
        while workers_of("small") > 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert workers_of("small") <= 1


async def count_tasks():
    return len(asyncio.all_tasks())


def workers_of(name):
    return sum(thread.name.startswith(f"{name}-worker") for thread in threading.enumerate())


@pytest.mark.promise(
    "Where no further thread can start, what takes one more than there are is an error, and other waits are not"
)
def test_a_worker_that_waits_where_no_other_can_start_is_told_or_served():
    """3.12 starts no thread once main has ended: there the last worker would wait for ever for what only it could do."""

    def program():
        def waits():
            # Until main has ended. Its join() returns only after the first drain.
            time.sleep(0.5)
            print(omniloop.run(asyncio.sleep(0.01, "slept")))
            try:
                print(omniloop.run(asyncio.to_thread(sum, [1, 2])))
            except (omniloop.CannotStartError, omniloop.WouldDeadlockError) as error:
                print(error)

        omniloop.configure(exit_timeout=20)
        omniloop.to_thread(waits)

    result = run_child(program)

    if (3, 12) <= sys.version_info < (3, 12, 3):
        # Who is refused is the one that asks; or, if the worker tries to start another at the same moment, the one that waits.
        refused, told = (
            "omniloop can't start a worker thread here",
            "would never end: all 1 worker threads of 'omniloop' wait",
        )
        assert result.stdout.startswith("slept\n")
        assert refused in result.stdout or told in result.stdout
    else:
        assert result.stdout == "slept\n3\n"
    assert (result.stderr, result.code) == ("", 0)
    assert result.seconds < 15


@pytest.mark.promise("`flush()` and `shutdown()` in a worker of the same runtime are told")
def test_flush_and_shutdown_in_a_worker_of_the_same_runtime_are_told(runtime):
    for wait_for_itself in runtime.flush, runtime.shutdown:
        error = runtime.to_thread(wait_for_itself).exception(timeout=SOON)
        assert isinstance(error, WouldDeadlockError)
        assert "in a worker thread of the same runtime" in str(error)
