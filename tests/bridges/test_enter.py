"""A sync `with` on an async context manager, whose whole life is one task on the loop."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import os
import signal
import sys
import threading
import weakref

import pytest

from children import run_child
from omniloop import NotAsyncError, OmniloopError, Runtime, WouldDeadlockError, enter


@pytest.fixture(params=["asyncio", "uvloop"])
def runtime(request):
    factory = None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with Runtime(name=request.param, loop_factory=factory) as made:
        yield made


class Manager:
    """Notes what happens to it, and in which task; suppresses the errors that it is told to."""

    def __init__(self, suppresses=(), value="value"):
        self.suppresses = tuple(suppresses)
        self.value = value
        self.tasks = []
        self.error = "never left"
        self.left = threading.Event()

    async def __aenter__(self):
        await asyncio.sleep(0)
        self.tasks.append(asyncio.current_task())
        return self.value

    async def __aexit__(self, kind, error, tb):
        await asyncio.sleep(0)
        self.tasks.append(asyncio.current_task())
        self.error = error
        self.left.set()
        return isinstance(error, self.suppresses)


@pytest.mark.promise("`enter` makes a sync `with` of an async context manager, and leaves it at the end of the block")
def test_the_value_comes_out_and_the_manager_is_left_at_the_end(runtime):
    manager = Manager()

    with enter(manager, runtime=runtime) as value:
        assert value == "value"
        assert not manager.left.is_set()

    assert manager.left.is_set()
    assert manager.error is None


def test_the_shared_runtime_is_the_default():
    with enter(Manager(value=None)) as value:
        assert value is None


@pytest.mark.promise("Entering and leaving run in one task")
def test_entering_and_leaving_run_in_one_task(runtime):
    manager = Manager()

    with enter(manager, runtime=runtime):
        pass

    assert len(manager.tasks) == 2
    assert manager.tasks[0] is manager.tasks[1]


@pytest.mark.promise("Cancel scopes, timeouts and task groups can be entered")
def test_cancel_scopes_timeouts_and_task_groups_can_be_entered(runtime):
    anyio = pytest.importorskip("anyio")

    @contextlib.asynccontextmanager
    async def scoped():
        async with asyncio.timeout(60), anyio.create_task_group() as group:
            with anyio.CancelScope():
                group.start_soon(anyio.sleep, 0)
                yield group

    with enter(scoped(), runtime=runtime) as group:
        runtime.call_soon(group.start_soon, anyio.sleep, 0).result(timeout=5)


@pytest.mark.promise("An error in the block goes in, and comes out as it was")
def test_an_error_in_the_block_goes_in_and_comes_out_as_it_was(runtime):
    manager, error = Manager(), LookupError("in the block")

    with pytest.raises(LookupError) as caught, enter(manager, runtime=runtime):
        raise error

    assert caught.value is error
    assert manager.error is error
    # Nothing of the loop's is in the traceback.
    assert [entry.name for entry in caught.traceback] == ["test_an_error_in_the_block_goes_in_and_comes_out_as_it_was"]


@pytest.mark.promise("What the manager suppresses is suppressed")
def test_suppression_comes_out(runtime):
    with enter(Manager(suppresses=[LookupError]), runtime=runtime):
        raise LookupError


@pytest.mark.promise("What the manager raises instead comes out")
def test_what_the_manager_raises_instead_comes_out(runtime):
    @contextlib.asynccontextmanager
    async def translating():
        try:
            yield
        except LookupError as error:
            raise RuntimeError("translated") from error

    with pytest.raises(RuntimeError, match="translated") as caught, enter(translating(), runtime=runtime):
        raise LookupError("original")

    assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.promise(
    "`KeyboardInterrupt`, `SystemExit`, `StopIteration` and their kin go in and out too, and the loop goes on"
)
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, StopAsyncIteration, asyncio.CancelledError]
)
def test_errors_that_mean_something_to_the_loop_go_in_and_out_too(runtime, error):
    manager = Manager()

    with pytest.raises(error), enter(manager, runtime=runtime):
        raise error

    assert type(manager.error) is error
    assert runtime.run(asyncio.sleep(0, "alive")) == "alive"


def test_an_error_on_entering_comes_out_and_the_block_is_not_run(runtime):
    @contextlib.asynccontextmanager
    async def refusing():
        await asyncio.sleep(0)
        raise ConnectionError("refused")
        yield

    with pytest.raises(ConnectionError, match="refused"), enter(refusing(), runtime=runtime):
        pytest.fail("the block ran")


def test_the_manager_runs_in_the_callers_context(runtime):
    variable = contextvars.ContextVar("variable")
    variable.set("the caller's")

    @contextlib.asynccontextmanager
    async def manager():
        yield variable.get()

    with enter(manager(), runtime=runtime) as value:
        assert value == "the caller's"


def test_managers_nest_and_the_block_may_use_the_loop(runtime):
    inner, outer = Manager(), Manager()

    with enter(outer, runtime=runtime), enter(inner, runtime=runtime):
        assert runtime.run(asyncio.sleep(0, "in the block")) == "in the block"
        assert not inner.left.is_set()

    assert inner.left.is_set()
    assert outer.left.is_set()


@pytest.mark.promise("Leaving what was never entered is a clear error")
def test_leaving_what_was_never_entered_is_an_error(runtime):
    with pytest.raises(OmniloopError, match="never entered"):
        enter(Manager(), runtime=runtime).__exit__(None, None, None)


@pytest.mark.promise("Entering twice is a clear error")
def test_entering_twice_is_an_error(runtime):
    once = enter(Manager(), runtime=runtime)
    with once:
        pass

    with pytest.raises(OmniloopError, match=r"entered before.*Call enter\(\) again"), once:
        pytest.fail("entered twice")


@pytest.mark.promise("Entering on the loop's own thread is an error, not a hang")
def test_on_the_loops_own_thread_it_would_deadlock(runtime):
    manager = Manager()

    async def work():
        with enter(manager, runtime=runtime):
            pass

    with pytest.raises(WouldDeadlockError, match="await"):
        runtime.run(work())
    assert manager.tasks == []


def test_one_that_is_entered_and_dropped_is_left_on_the_loop(runtime):
    manager = Manager()
    enter(manager, runtime=runtime).__enter__()

    gc.collect()

    assert manager.left.wait(timeout=5)
    assert isinstance(manager.error, asyncio.CancelledError)


def test_a_shutdown_leaves_the_manager_and_the_block_hears_of_it():
    runtime, manager = Runtime(), Manager()

    with pytest.raises(concurrent.futures.CancelledError), enter(manager, runtime=runtime):
        runtime.shutdown()
        assert manager.left.is_set()

    with pytest.raises(LookupError), enter(Manager(), runtime=(second := Runtime())):
        second.shutdown()
        raise LookupError("the block's own error tells more")


@pytest.mark.parametrize(
    ("manager", "words"),
    [
        (threading.Lock(), "Use it in `with` as it is"),
        (asyncio.timeout, r"Call it: enter\(timeout\(…\)\)"),
        (asyncio.sleep(0), "is a coroutine"),
        (None, "Pass what `async with` takes"),
    ],
)
def test_what_is_no_async_context_manager_is_refused_with_the_way_out(manager, words):
    with pytest.raises(NotAsyncError, match=words):
        enter(manager)


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")


@contextlib.asynccontextmanager
async def manager(entering=None, leaving=None):
    if entering:
        try:
            entering()
            await asyncio.sleep(60)
        finally:
            say("entering ended")
    try:
        yield
    finally:
        if leaving:
            leaving()
            await asyncio.sleep(60)
        say("left")


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def in_the_block():
    with enter(manager()):
        signal.raise_signal(signal.SIGINT)


def while_entering():
    with enter(manager(entering=interrupt)):
        say("never")


def while_leaving():
    with enter(manager(leaving=interrupt)):
        say("block")


@pytest.mark.promise("Ctrl-C while entering, in the block, or while leaving comes out, and the manager is left")
@pytest.mark.parametrize(
    ("interrupted", "said"),
    [
        (in_the_block, ["left", "interrupted"]),
        (while_entering, ["entering ended", "interrupted"]),
        # The leaving itself is cancelled, as `run` cancels what it waits for.
        (while_leaving, ["block", "interrupted"]),
    ],
)
def test_ctrl_c_comes_out(interrupted, said):
    def program():
        try:
            interrupted()
        except KeyboardInterrupt:
            say("interrupted")

    result = run_child(program)

    assert (result.stdout.splitlines(), result.stderr, result.code) == (said, "", 0)
    # `exit_timeout` is 25 s.
    assert result.seconds < 15


@pytest.mark.promise("A block that never ends does not keep the program from ending: its manager is left at exit")
def test_a_block_that_never_ends_is_left_at_exit():
    def program():
        entered = threading.Event()

        def block():
            with enter(manager()):
                entered.set()
                threading.Event().wait()

        threading.Thread(target=block, daemon=True).start()
        entered.wait()
        say("last line")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("last line\nleft\n", "", 0)
    # `exit_timeout` is 25 s.
    assert result.seconds < 15


@pytest.mark.promise("A forked child leaves the parent's manager alone")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_leaves_the_parents_manager_alone():
    def program():
        with enter(manager()):
            if os.fork() == 0:
                try:
                    # The block ends in the child, too.
                    sys.exit()
                finally:
                    with enter(manager()):
                        say("the child's own")
            # It ended by the error that it was told.
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 1
            say("the parent's")

    result = run_child(
        program,
        flags=["-W", "ignore::DeprecationWarning"],
    )

    # The child's exit can't leave the parent's manager: it is told so.
    assert "ForkedError" in result.stderr
    assert result.stdout.splitlines() == ["the child's own", "left", "the parent's", "left"]
    assert result.code == 0


def test_a_manager_that_is_never_entered_or_left_lives_in_no_cycle():
    class Mine(Manager):
        pass

    def entered():
        made = enter(Mine())
        made.__enter__()
        return weakref.ref(made)

    gc.disable()
    try:
        manager = Mine()
        never_entered = weakref.ref(manager)
        made = enter(manager)
        del made, manager
        assert never_entered() is None

        never_left = contextvars.Context().run(entered)
        assert never_left() is None
    finally:
        gc.enable()
