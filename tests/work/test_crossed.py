"""Where two things meet, and the quick answer is wrong: tokens of context variables, groups of cancellations, time limits of nothing."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import os
import sys
import threading

import pytest

import omniloop
from children import run_child
from omniloop import Runtime, TaskGroup, enter, go, iterate, run

variable = contextvars.ContextVar("variable", default="unset")


async def sets_and_resets():
    """The token is made in the first step, and used in a later one."""
    token = variable.set("set")
    await asyncio.sleep(0)
    variable.reset(token)
    return variable.get()


@contextlib.asynccontextmanager
async def set_inside():
    token = variable.set("set")
    try:
        await asyncio.sleep(0)
        yield
    finally:
        variable.reset(token)


class Client:
    async def __aenter__(self):
        self.token = variable.set("set")
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *error):
        variable.reset(self.token)


class Opened(Client):
    async def open(self):
        await self.__aenter__()

    async def close(self):
        await self.__aexit__()


# --- tokens of context variables --------------------------------------------------------------------------------------


def by_go():
    return go(sets_and_resets()).result(timeout=5)


def by_call_later():
    def begins():
        token = variable.set("set")

        async def goes_on():
            await asyncio.sleep(0)
            variable.reset(token)
            return variable.get()

        return goes_on()

    return omniloop.call_later(0, begins).result(timeout=5)


def by_enter():
    with enter(set_inside()):
        assert variable.get() == "set"
    return variable.get()


def by_a_twin():
    with omniloop.blocking(Client)():
        assert variable.get() == "set"
    return variable.get()


def by_iterate_that_is_left():
    async def numbers():
        async with set_inside():
            yield variable.get()
            yield None

    for seen in iterate(numbers()):
        assert seen == "set"
        break
    omniloop.flush(timeout=5)
    return variable.get()


def by_a_resource():
    with omniloop.resource(set_inside) as shared:
        shared.run(lambda _: asyncio.sleep(0), timeout=5)
    return variable.get()


@pytest.mark.promise(
    "A token that a coroutine gets in its first step, from `ContextVar.set`, can be used in every later one, whatever runs it",
    section="Order and context",
)
@pytest.mark.parametrize(
    "way",
    [by_go, by_call_later, by_enter, by_a_twin, by_iterate_that_is_left, by_a_resource],
    ids=lambda way: way.__name__,
)
def test_a_token_of_the_first_step_can_be_used_later(way, caplog):
    assert way() == "unset"
    assert caplog.records == []


def test_a_token_is_of_one_call_of_a_twin():
    """Each call is a task with a copy of the context, as it would be in `asyncio.create_task`: what lasts longer is `with`."""
    opened = omniloop.blocking(Opened)()
    opened.open()

    with pytest.raises(ValueError, match="was created in a different Context"):
        opened.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_token_can_be_used_in_a_forked_child_and_where_threads_inherit_contexts():
    def program():
        async def forks():
            token = variable.set("set")
            child = os.fork()
            if child:
                await asyncio.sleep(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            variable.reset(token)
            if not child:
                os._exit(variable.get() != "unset" or run(sets_and_resets()) != "unset")
            return variable.get()

        print(run(forks()))
        with enter(set_inside()):
            token = variable.set("the block's")
            child = os.fork()
            variable.reset(token)
            if not child:
                os._exit(variable.get() != "set")
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(variable.get())

    flags = ["-X", "thread_inherit_context=1"] if sys.version_info >= (3, 14) else []
    result = run_child(program, flags=[*flags, "-W", "ignore::DeprecationWarning"])

    assert result == ("unset\nunset\n", "", 0, result.seconds)


# --- cancellations ----------------------------------------------------------------------------------------------------


async def raises_a_group_of_cancellations():
    await asyncio.sleep(0)
    raise BaseExceptionGroup("cancelled", [asyncio.CancelledError(), asyncio.CancelledError()])


def test_a_group_of_cancellations_is_a_failure(runtime, failures):
    task = runtime.go(raises_a_group_of_cancellations())
    concurrent.futures.wait([task])

    assert not task.cancelled()
    assert isinstance(task.exception(), BaseExceptionGroup)
    with pytest.raises(BaseExceptionGroup) as caught, TaskGroup(runtime=runtime) as group:
        group.go(raises_a_group_of_cancellations())
    assert isinstance(caught.value.exceptions[0], BaseExceptionGroup)
    runtime.go(raises_a_group_of_cancellations())
    runtime.flush(timeout=5)
    assert [type(failure.exception) for failure in failures] == [BaseExceptionGroup]


def test_what_catches_its_cancellation_may_start_work(runtime):
    started = []

    async def work(begun):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            started.append(runtime.go(asyncio.sleep(0, "forgotten")))
            await runtime.go(asyncio.sleep(0))
            raise

    begun = threading.Event()
    task = runtime.go(work(begun))
    assert begun.wait(timeout=5)
    task.cancel()
    runtime.flush(timeout=5)

    assert task.cancelled()
    assert started[0].result(timeout=5) == "forgotten"


@pytest.mark.parametrize("how", ["cancel", "a time limit", "run"])
def test_who_takes_its_cancellation_back_has_time_limits_as_before(runtime, how):
    async def work():
        begun.set()
        task = asyncio.current_task()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            task.uncancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        return task.cancelling()

    begun = threading.Event()
    if how == "run":
        assert runtime.run(work(), timeout=1) == 0
        return
    task = runtime.go(work(), timeout=1 if how == "a time limit" else None)
    assert begun.wait(timeout=5)
    if how == "cancel":
        task.cancel()
    assert task.result(timeout=5) == 0


@pytest.mark.skipif(not hasattr(asyncio.TaskGroup, "cancel"), reason="asyncio's TaskGroup.cancel is new in 3.15")
@pytest.mark.parametrize("place", [asyncio.run, run], ids=["another loop", "omniloop's"])
@pytest.mark.parametrize("which", ["theirs", "ours", "both"])
def test_groups_of_both_kinds_that_are_cancelled_end_quietly(place, which):
    async def main():
        async with TaskGroup() as ours:
            mine = ours.go(asyncio.Event().wait())
            async with asyncio.TaskGroup() as theirs:
                waits = theirs.create_task(asyncio.Event().wait())
                await asyncio.sleep(0)
                if which != "ours":
                    theirs.cancel()
                if which != "theirs":
                    ours.cancel()
                await asyncio.sleep(0)
            # Reached where ours goes on.
            assert which == "theirs"
            ours.cancel()
        await asyncio.sleep(0)
        return waits.cancelled(), mine.cancelled(), asyncio.current_task().cancelling()

    assert place(main()) == (True, True, 0)


# --- time limits of nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [asyncio.run, run], ids=["another loop", "omniloop's"])
def test_a_timeout_of_nothing_ends_what_waits_and_leaves_what_is_done(place):
    async def main():
        done, waits = go(asyncio.sleep(0, "done")), go(asyncio.Event().wait())
        await done
        async with asyncio.timeout(0):
            assert await done == "done"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await waits
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0), TaskGroup() as group:
                grouped = group.go(asyncio.Event().wait())
        return waits.cancelled(), grouped.cancelled(), asyncio.current_task().cancelling()

    assert place(main()) == (True, True, 0)


def test_wait_for_nothing_asks_no_handle():
    """For a timeout of 0 asyncio looks only at futures of its own: of anything else it makes a task, and cancels that before it begins."""

    async def main():
        done, waits = go(asyncio.sleep(0, "done")), go(asyncio.Event().wait())
        await done
        for task in (done, waits):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(task, 0)
        return done.result(), waits.cancel()

    assert asyncio.run(main()) == ("done", True)


def test_work_outlives_the_three_groups_that_it_was_started_in():
    with Runtime(name="outlived") as runtime:
        release = runtime.call_soon(asyncio.Event).result(timeout=5)
        begun = threading.Event()

        async def starts():
            outlives.append(runtime.go(release.wait()))
            begun.set()
            await asyncio.Event().wait()

        outlives = []
        with (
            TaskGroup(runtime=runtime) as outer,
            TaskGroup(runtime=runtime) as middle,
            TaskGroup(runtime=runtime) as inner,
        ):
            inner.go(starts())
            assert begun.wait(timeout=5)
            for group in (outer, middle, inner):
                group.cancel()

        assert not outlives[0].done()
        runtime.call_soon(release.set)
        assert outlives[0].result(timeout=5) is True
