"""Calls that no Python code made: the first function of a greenlet or of a bare thread, a slot of a GUI toolkit."""

import _thread
import asyncio
import contextlib
import queue

import pytest

import omniloop


async def work():
    await asyncio.sleep(0)
    return 7


async def several():
    yield 7


@contextlib.asynccontextmanager
async def client():
    yield 7


def called_by_nobody(fn, *args):
    """What *fn* returned, in a thread in which it is the first Python function: all that is around it is C."""
    results = queue.SimpleQueue()
    _thread.start_new_thread(list, (map(results.put, map(fn, *([arg] for arg in args))),))
    return results.get(timeout=20)


@pytest.mark.promise(
    "It may be called by what is no Python code: as the first function of a greenlet or of a bare thread",
    section="Submitting",
)
@pytest.mark.parametrize("door", [omniloop.go, omniloop.try_go, omniloop.Runtime.go])
def test_work_is_started_where_no_python_code_calls(door):
    args = (omniloop.shared_runtime(), work()) if door is omniloop.Runtime.go else (work(),)

    assert called_by_nobody(door, *args).result(timeout=20) == 7


def test_plain_functions_are_started_where_no_python_code_calls():
    seen = queue.SimpleQueue()

    called_by_nobody(omniloop.call_soon, lambda: seen.put("soon"))
    assert seen.get(timeout=20) == "soon"
    called_by_nobody(omniloop.call_later, 0, lambda: seen.put("later"))
    assert seen.get(timeout=20) == "later"
    called_by_nobody(omniloop.call_at, 0, lambda: seen.put("at"))
    assert seen.get(timeout=20) == "at"
    repeated = called_by_nobody(omniloop.every, 3600, lambda: seen.put("every"))
    repeated.cancel()
    assert called_by_nobody(omniloop.to_thread, int).result(timeout=20) == 0


def test_a_wait_works_where_no_python_code_calls():
    assert called_by_nobody(omniloop.run, work()) == 7


def test_bridges_work_where_no_python_code_calls():
    assert called_by_nobody(list, called_by_nobody(omniloop.iterate, several())) == [7]
    manager = omniloop.enter(client())
    assert called_by_nobody(type(manager).__enter__, manager) == 7
    manager.__exit__(None, None, None)
    kept = omniloop.resource(client)

    async def use(opened):
        return opened

    assert called_by_nobody(kept.run, use) == 7
    assert called_by_nobody(kept.go, use).result(timeout=20) == 7
    with omniloop.TaskGroup() as group:
        assert called_by_nobody(group.go, work()).result(timeout=20) == 7
