"""`call_soon` runs a plain function on the loop's thread, and its handle has the outcome."""

import asyncio
import functools
import threading

import pytest


def test_a_function_runs_on_the_loops_thread_with_its_arguments(runtime):
    async def thread():
        return threading.get_ident()

    assert runtime.call_soon(threading.get_ident).result(timeout=5) == runtime.go(thread()).result(timeout=5)
    assert runtime.call_soon(divmod, 7, 2).result(timeout=5) == (3, 1)
    assert runtime.call_soon(functools.partial(int, "11", base=2)).result(timeout=5) == 3
    assert runtime.call_soon(asyncio.get_running_loop).result(timeout=5).is_running()


def test_its_error_comes_out_of_the_handle(runtime):
    with pytest.raises(ZeroDivisionError):
        runtime.call_soon(divmod, 1, 0).result(timeout=5)


def test_on_the_loops_own_thread_it_runs_after_the_current_callback(runtime):
    def outer():
        runtime.call_soon(order.append, "inner")
        order.append("outer")

    order = []
    runtime.call_soon(outer).result(timeout=5)
    runtime.flush(timeout=5)

    assert order == ["outer", "inner"]


def test_it_can_be_awaited(runtime):
    async def main():
        return await runtime.call_soon(int, "7")

    assert asyncio.run(asyncio.wait_for(main(), 5)) == 7


def test_a_function_that_runs_can_not_be_cancelled(runtime):
    started, go_on = threading.Event(), threading.Event()

    def block():
        started.set()
        return go_on.wait(timeout=5)

    task = runtime.call_soon(block)
    assert started.wait(timeout=5)

    assert task.cancel() is False
    go_on.set()
    assert task.result(timeout=5) is True
