"""Canaries: what `omniloop._cpython` reads of CPython's inside is there, and means what it is taken for. A new Python tells here what it has moved."""

import asyncio
import atexit
import concurrent.futures
import importlib
import inspect
import logging
import multiprocessing
import sys
import threading
import time
import weakref

import pytest

from children import run_child
from omniloop import _cpython

pytestmark = pytest.mark.skipif(sys.implementation.name != "cpython", reason="of CPython's own library")


def on_a_loop(work):
    """Run *work* on one of asyncio's own loops, whatever the suite runs on, and return what it returns."""
    loop = asyncio.SelectorEventLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.close()


async def settled():
    for _ in range(3):
        await asyncio.sleep(0)


def test_waiter_of():
    async def work():
        future = asyncio.get_running_loop().create_future()

        async def wait():
            await future

        task = asyncio.ensure_future(wait())
        await settled()
        found = _cpython.waiter_of(task), _cpython.waiter_of(asyncio.current_task())
        future.set_result(None)
        await task
        return found == (future, None)

    assert on_a_loop(work)


def test_awaits_future():
    async def work():
        async def wait():
            await future

        future = asyncio.futures._PyFuture(loop=asyncio.get_running_loop())
        task = asyncio.ensure_future(wait())
        await settled()
        found = task.get_coro().cr_await.gi_frame.f_code
        future.set_result(None)
        await task
        return found is _cpython.AWAITS_FUTURE

    assert on_a_loop(work)


def test_generator_of():
    async def generator():
        await asyncio.sleep(0)
        yield

    async def work():
        items = generator()
        found = []
        for awaitable in (anext(items), items.asend(None), items.athrow(KeyError), items.aclose(), settled()):
            found.append(_cpython.generator_of(awaitable) is items)
            awaitable.close()
        return found

    assert on_a_loop(work) == [True, True, True, True, False]


def test_gathered():
    async def work():
        tasks = [asyncio.ensure_future(settled()) for _ in range(2)]
        together = asyncio.gather(*tasks)
        found = _cpython.gathered(together), _cpython.gathered(tasks[0])
        await together
        return found == (tasks, [])

    assert on_a_loop(work)


def test_callbacks_of():
    async def work():
        future, task = asyncio.get_running_loop().create_future(), asyncio.ensure_future(settled())
        for each in future, task:
            each.add_done_callback(print)
        found = [_cpython.callbacks_of(each) for each in (future, task)]
        for each in future, task:
            each.remove_done_callback(print)
        await task
        return found, _cpython.callbacks_of(future)

    assert on_a_loop(work) == ([[print], [print]], [])


def test_done_callbacks_of():
    future = concurrent.futures.Future()
    future.add_done_callback(print)

    assert _cpython.done_callbacks_of(future) == [print]


def test_members_of_and_parent_of():
    async def work():
        async with asyncio.TaskGroup() as group:
            task = group.create_task(settled())
            found = list(_cpython.members_of(group)), _cpython.parent_of(group)
        return found == ([task], asyncio.current_task())

    assert on_a_loop(work)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="from 3.14 on")
def test_noted_waiters():
    async def work():
        future = asyncio.get_running_loop().create_future()

        async def wait():
            await future

        task = asyncio.ensure_future(wait())
        await settled()
        found = set(_cpython.noted_waiters(future))
        future.set_result(None)
        await task
        return found == {task}

    assert on_a_loop(work)


def test_destroy_quietly():
    def program():
        import gc

        from omniloop import _cpython

        async def wait():
            await asyncio.Event().wait()

        loop = asyncio.new_event_loop()
        for quiet in True, False:
            task = loop.create_task(wait(), name="quiet" if quiet else "loud")
            loop.run_until_complete(asyncio.sleep(0))
            if quiet:
                _cpython.destroy_quietly(task)
            del task
            gc.collect()

    result = run_child(program)

    assert result.code == 0
    assert "loud" in result.stderr and "quiet" not in result.stderr


def test_transport_of():
    async def work():
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            found = _cpython.transport_of(reader) is writer.transport
            writer.close()
            await writer.wait_closed()
        return found

    assert on_a_loop(work)


def test_is_made_by_ensure_future():
    class Awaitable:
        def __await__(self):
            yield from settled().__await__()

    async def work():
        wrapped, plain = asyncio.ensure_future(Awaitable()), asyncio.ensure_future(settled())
        await wrapped
        await plain
        return _cpython.is_made_by_ensure_future(wrapped), _cpython.is_made_by_ensure_future(plain)

    assert on_a_loop(work) == (True, False)


def test_shield_of_and_ended_by():
    async def work():
        inner = asyncio.ensure_future(settled())
        outer = asyncio.shield(inner)
        found = (
            [shield for each in _cpython.callbacks_of(inner) if (shield := _cpython.shield_of(each)) is not None],
            [inside for each in _cpython.callbacks_of(outer) if (inside := _cpython.ended_by(each)) is not None],
        )
        await outer
        return found == ([outer], [inner])

    assert on_a_loop(work)


def test_ended_by_where_futures_are_chained():
    async def work():
        future = concurrent.futures.Future()
        wrapped = asyncio.wrap_future(future)
        found = [_cpython.ended_by(each) for each in _cpython.callbacks_of(wrapped)]
        future.set_result(None)
        await wrapped
        return found == [future]

    assert on_a_loop(work)


def test_what_run_coroutine_threadsafe_is_known_by():
    async def work():
        loop = asyncio.get_running_loop()
        future = asyncio.run_coroutine_threadsafe(settled(), loop)
        begun = [_cpython.begun_by(handle) for handle in _cpython.ready(loop)]
        await asyncio.sleep(0)
        (task,) = map(_cpython.ended_by, _cpython.done_callbacks_of(future))
        found = future in begun, task in asyncio.all_tasks()
        await asyncio.wrap_future(future)
        return found

    assert on_a_loop(work) == (True, True)


def test_ready_and_set_ready():
    async def work():
        loop = asyncio.get_running_loop()
        handle = loop.call_soon(list)
        found = _cpython.ready(loop)[-1] is handle
        _cpython.set_ready(loop, queue := type(_cpython.ready(loop))(_cpython.ready(loop)))
        return found and _cpython.ready(loop) is queue

    assert on_a_loop(work)


def test_selector_of_and_is_wanted():
    loop = asyncio.SelectorEventLoop()
    try:
        assert callable(_cpython.selector_of(loop).select)
        assert not _cpython.is_wanted(loop)
        timer = loop.call_later(60, print)
        assert _cpython.is_wanted(loop)
        timer.cancel()
    finally:
        loop.close()
    assert _cpython.is_wanted(object()), "what can't be seen may be wanted"


def test_open_generators():
    async def numbers():
        yield 1

    async def work():
        open_one = numbers()
        await anext(open_one)
        found = list(_cpython.open_generators(asyncio.get_running_loop())) == [open_one]
        await open_one.aclose()
        return found

    assert on_a_loop(work)


def test_clock_resolution():
    loop = asyncio.SelectorEventLoop()
    loop.close()

    assert 0 < _cpython.clock_resolution(loop) < 1


def test_set_default_executor():
    async def work():
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor(1, "set") as executor:
            _cpython.set_default_executor(loop, executor)
            return await loop.run_in_executor(None, lambda: threading.current_thread().name)

    assert on_a_loop(work) == "set_0"


def test_call_early_at_exit_and_joins_threads():
    def program():
        from omniloop import _cpython

        def wait_for_main():
            main = threading.main_thread()
            while not any(map(_cpython.joins_threads, codes_of(main.ident))):
                time.sleep(0.01)
            print("main joins threads")

        def codes_of(ident):
            frame = sys._current_frames()[ident]
            while frame is not None:
                yield frame.f_code
                frame = frame.f_back

        atexit.register(print, "at exit")
        _cpython.call_early_at_exit(lambda: print("early"))
        threading.Thread(target=wait_for_main).start()

    result = run_child(program)

    assert (result.stderr, result.code) == ("", 0)
    assert sorted(result.stdout.splitlines()[:2]) == ["early", "main joins threads"]
    assert result.stdout.splitlines()[2] == "at exit"


def test_module_lock_and_is_of_importlib(tmp_path, monkeypatch):
    """A thread that waits for a module which another one imports."""
    (tmp_path / "canary_imported.py").write_text("import sys\nsys.begun.set()\nassert sys.goes_on.wait(20)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "begun", threading.Event(), raising=False)
    monkeypatch.setattr(sys, "goes_on", threading.Event(), raising=False)
    threads = [threading.Thread(target=importlib.import_module, args=["canary_imported"]) for _ in range(2)]
    threads[0].start()
    assert sys.begun.wait(20)
    threads[1].start()

    def lock():
        frame = sys._current_frames()[threads[1].ident]
        while frame is not None:
            if (found := _cpython.module_lock(frame)) is not None:
                assert _cpython.is_of_importlib(frame)
                return found
            frame = frame.f_back
        return None

    try:
        while (found := lock()) is None:
            pass
        assert (found.name, found.owner) == ("canary_imported", threads[0].ident)
    finally:
        sys.goes_on.set()
        for thread in threads:
            thread.join(20)
        sys.modules.pop("canary_imported", None)


def test_threads_of():
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        thread = executor.submit(threading.current_thread).result(20)
        assert _cpython.threads_of(executor) == {thread}


def test_is_owned():
    lock = threading.RLock()

    assert not _cpython.is_owned(lock)
    with lock:
        assert _cpython.is_owned(lock)


def test_incref():
    thing = object()
    before = sys.getrefcount(thing)
    _cpython.incref()(thing)

    assert sys.getrefcount(thing) == before + 1


def test_has_gil():
    assert _cpython.has_gil() is getattr(sys, "_is_gil_enabled", lambda: True)()
    assert hasattr(sys, "_is_gil_enabled") == (sys.version_info >= (3, 13))


def test_closed_at_exit():
    handler = logging.NullHandler()
    logging.Handler.__init__(handler)

    assert handler in [reference() for reference in _cpython.closed_at_exit(logging)]
    assert all(isinstance(reference, weakref.ref) for reference in _cpython.closed_at_exit(logging))


def test_is_being_imported_by_and_joined_at_exit():
    process = multiprocessing.get_context("spawn").Process(target=print)

    assert not _cpython.is_being_imported_by(multiprocessing.current_process())
    multiprocessing.current_process()._inheriting = True
    try:
        with pytest.raises(RuntimeError, match="bootstrapping"):
            # It is what multiprocessing itself looks at.
            process.start()
    finally:
        del multiprocessing.current_process()._inheriting
    assert _cpython.joined_at_exit(multiprocessing.process) == set(multiprocessing.active_children())


def test_each_function_has_its_canary():
    source = inspect.getsource(sys.modules[__name__])
    public = {name for name, thing in vars(_cpython).items() if getattr(thing, "__module__", "") == _cpython.__name__}

    assert {name for name in public if not name.startswith("_") and f"_cpython.{name}" not in source} == set()
