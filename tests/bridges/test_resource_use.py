"""A resource that nobody uses any more is closed; and one that is closed by hand."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import os
import sys
import threading

import pytest

import omniloop
from children import run_child
from omniloop import ClosedError, Runtime, TaskTimeoutError, WaitTimeoutError, WouldDeadlockError, resource


@pytest.fixture
def runtime():
    with Runtime() as made:
        yield made


class Client:
    """Notes who closed it."""

    def __init__(self, log, name="client"):
        self.log = log
        self.name = name

    async def get(self, path):
        await asyncio.sleep(0)
        return path

    async def wait_for(self, event):
        await event.wait()
        return len(self.log)

    async def aclose(self):
        await asyncio.sleep(0)
        self.log.append((self.name, threading.current_thread().name))


def settle(runtime):
    """The loop has come to all that was let go until now, and what that cancelled has ended."""

    async def turns():
        for _ in range(10):
            await asyncio.sleep(0)

    runtime.run(turns())


@pytest.mark.promise("A resource that nobody refers to any more is closed", section="Resources")
def test_a_resource_that_nobody_refers_to_is_closed_on_the_loop(runtime):
    log = []
    client = resource(lambda: Client(log), runtime=runtime)
    assert client.run(lambda c: c.get("/")) == "/"
    settle(runtime)
    assert log == []

    del client
    settle(runtime)

    assert log == [("client", "omniloop")]


@pytest.mark.promise("Also where only a garbage collection finds that out, in whichever thread", section="Resources")
def test_one_in_a_cycle_is_closed_after_a_garbage_collection(runtime):
    log = []

    class Library:
        def __init__(self):
            # The factory refers to what refers to the resource.
            self.client = resource(self.make, runtime=runtime)

        def make(self):
            return Client(log)

    library = Library()
    library.client.run(lambda c: c.get("/"))
    del library
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    settle(runtime)

    assert log == [("client", "omniloop")]


@pytest.mark.promise("A hundred re-runs of a script leave no client open", section="Resources")
@pytest.mark.skipif(
    sys.version_info[:2] == (3, 13) and not getattr(sys, "_is_gil_enabled", bool)(),
    reason="3.13 without a GIL keeps functions and their globals for ever, once there was a thread",
)
def test_a_hundred_reruns_of_a_script_leave_no_client_open(runtime):
    """Each run made a resource, as a script does that Streamlit runs again at each click: 100 clients were open after 100 of them."""
    opened, log = [], []

    def factory():
        opened.append(1)
        return Client(log)

    for _ in range(100):
        exec("client = resource(factory, runtime=runtime); client.run(lambda c: c.get('/'))", {**globals(), **locals()})
    gc.collect()
    settle(runtime)

    assert len(opened) == len(log) == 100


@pytest.mark.promise("It is in use while a `run` or a `go` of it is under way", section="Resources")
def test_it_is_in_use_while_a_go_of_it_is_under_way(runtime):
    log, event = [], runtime.run(make(asyncio.Event))

    task = resource(lambda: Client(log), runtime=runtime).go(lambda c: c.wait_for(event))
    gc.collect()
    settle(runtime)
    assert log == []
    runtime.call_soon(event.set)

    assert task.result(timeout=5) == 0
    settle(runtime)
    assert len(log) == 1


async def make(factory):
    return factory()


@pytest.mark.promise("And while a task that awaited it lives", section="Resources")
def test_it_is_in_use_while_a_task_that_awaited_it_lives(runtime):
    log, event = [], runtime.run(make(asyncio.Event))

    async def work():
        client = await resource(lambda: Client(log), runtime=runtime)
        gc.collect()
        await event.wait()
        return client, len(log)

    task = runtime.go(work())
    settle(runtime)
    assert log == []
    runtime.call_soon(event.set)

    client, closed = task.result(timeout=5)
    assert closed == 0
    settle(runtime)
    assert client.log == log == [("client", "omniloop")]


@pytest.mark.promise(
    "And while a resource lives whose factory awaited it; that one is closed first", section="Resources"
)
def test_it_is_in_use_while_a_resource_lives_whose_factory_awaited_it(runtime):
    log = []

    def build():
        pool = resource(lambda: Client(log, "pool"), runtime=runtime)

        async def make_client():
            await pool
            return Client(log, "client")

        return resource(make_client, runtime=runtime)

    client = build()
    client.run(lambda c: c.get("/"))
    gc.collect()
    settle(runtime)
    assert log == []
    del client
    # The factory of the one was kept by it, and the pool by that.
    settle(runtime)
    gc.collect()
    settle(runtime)

    assert [name for name, _ in log] == ["client", "pool"]


@pytest.mark.promise("A child that drops its parent's resource does not close the parent's client", section="Resources")
def test_a_forked_child_that_drops_it_leaves_the_parents_alone():
    def program():
        async def close(client):
            print("closed in", "parent" if os.getpid() == parent else "child", flush=True)

        parent = os.getpid()
        client = resource(make_nothing, close)
        client.run(use)
        child = os.fork()
        if not child:
            del client
            gc.collect()
            omniloop.run(asyncio.sleep(0.05))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print("child ended", flush=True)
        del client
        omniloop.run(asyncio.sleep(0.05))
        print("end", flush=True)

    # The client is open, and so the thread lives on: CPython warns of that.
    result = run_child(program, flags=["-W", "ignore::DeprecationWarning"])

    assert (result.stdout, result.stderr, result.code) == ("child ended\nclosed in parent\nend\n", "", 0)


async def make_nothing():
    return object()


async def use(client):
    return client


@pytest.mark.promise(
    "`close()` refuses further uses, waits for those that were accepted, and is final", section="Resources"
)
def test_close_refuses_waits_and_is_final(runtime):
    log, event = [], runtime.run(make(asyncio.Event))
    client = resource(lambda: Client(log), runtime=runtime)
    accepted = client.go(lambda c: c.wait_for(event))
    with pytest.raises(WaitTimeoutError, match="was still in use after 0.01 s. It is closed when its users are done"):
        client.close(timeout=0.01)

    for refused in (lambda: client.run(use), lambda: client.go(use), lambda: runtime.run(awaiting(client))):
        with pytest.raises(ClosedError, match="was closed by its close"):
            refused()
    assert log == []
    runtime.call_soon(event.set)
    client.close(timeout=5)

    assert accepted.result(timeout=5) == 0
    assert log == [("client", "omniloop")]
    assert "closed" in repr(client)
    client.close()
    with pytest.raises(ClosedError):
        client.run(use)


async def awaiting(client):
    return await client


@pytest.mark.promise("A second `close()` waits for the first, and does not interrupt it", section="Resources")
def test_a_second_close_does_not_interrupt_the_first(runtime):
    log, closes, may_end = [], threading.Event(), runtime.run(make(asyncio.Event))

    async def close(client):
        closes.set()
        await may_end.wait()
        log.append("closed")

    client = resource(object, close, runtime=runtime)
    client.run(use)
    first = threading.Thread(target=client.close)
    first.start()
    assert closes.wait(5)
    second = runtime.go(client.aclose())
    settle(runtime)
    runtime.call_soon(may_end.set)
    first.join(5)

    assert second.result(5) is None
    assert log == ["closed"]


@pytest.mark.promise("One that was never opened is closed without being opened", section="Resources")
def test_one_that_was_never_opened_is_closed_without_being_opened(runtime):
    opened = []
    with resource(lambda: opened.append(1), runtime=runtime) as client:
        pass

    with pytest.raises(ClosedError):
        client.run(use)
    assert opened == []
    # Not even a thread.
    assert runtime._life.loop is None


@pytest.mark.promise("`with` and `async with` give the resource, and close it at their end", section="Resources")
def test_with_and_async_with_give_the_resource_and_close_it(runtime):
    log = []
    with resource(lambda: Client(log), runtime=runtime) as client:
        assert client.run(lambda c: c.get("/")) == "/"
    assert len(log) == 1

    async def here():
        async with resource(lambda: Client(log), runtime=runtime) as client:
            # This task has awaited it, and is not waited for.
            assert await (await client).get("/") == "/"
        return len(log)

    async def elsewhere():
        async with resource(lambda: Client(log), runtime=runtime) as client:
            assert await client.go(lambda c: c.get("/")) == "/"
        return len(log)

    assert runtime.run(here(), timeout=5) == 2
    assert asyncio.run(elsewhere()) == 3


@pytest.mark.promise("On the loop's own thread `close()` is an error that says what to do", section="Resources")
def test_close_on_the_loops_own_thread_is_an_error(runtime):
    client = resource(lambda: Client([]), runtime=runtime)

    with pytest.raises(WouldDeadlockError, match="await its aclose"):
        runtime.call_soon(client.close).result(timeout=5)

    assert client.run(lambda c: c.get("/")) == "/"


@pytest.mark.promise(
    "An error in closing it is raised by `close()`, and reported where nobody has called that", section="Resources"
)
def test_an_error_in_closing_it_is_raised_by_close_or_reported(runtime):
    told = []
    runtime.configure(on_error=told.append)

    async def fail(client):
        raise LookupError("no such socket")

    with pytest.raises(LookupError, match="no such socket"), resource(make_nothing, fail, runtime=runtime) as client:
        client.run(use)
    runtime.flush(timeout=5)
    assert told == []

    resource(make_nothing, fail, runtime=runtime).run(use)
    settle(runtime)
    runtime.flush(timeout=5)
    assert [str(failure.exception) for failure in told] == ["no such socket"]


@pytest.mark.promise("What is told of a use of a resource names the user's function", section="Resources")
def test_what_is_told_of_a_use_names_the_users_function(runtime):
    """It was `Resource._use`, whatever it was."""
    told = []
    runtime.configure(on_error=told.append)
    client = resource(lambda: Client([]), runtime=runtime)

    async def fetch_orders(client):
        await asyncio.sleep(60)

    async def fail_orders(client):
        raise LookupError

    with pytest.raises(TaskTimeoutError, match="fetch_orders was not done"):
        client.run(fetch_orders, timeout=0.01)
    task = client.go(fetch_orders)
    assert "fetch_orders" in task.get_name()
    assert "fetch_orders" in repr(runtime.tasks()[0])
    task.cancel()
    client.go(fail_orders)
    runtime.flush(timeout=5)
    assert "fail_orders" in told[0].name


@pytest.mark.promise("`stats()` counts as running what `tasks()` lists: an open client is neither", section="Resources")
def test_an_open_client_is_neither_listed_nor_counted(runtime):
    client = resource(lambda: Client([]), runtime=runtime)
    client.run(lambda c: c.get("/"))

    stats = runtime.stats()

    assert runtime.tasks() == []
    assert (stats.running, stats.accepted, stats.finished) == (0, 1, 1)
    client.close()
    runtime.flush(timeout=5)
    stats = runtime.stats()
    assert stats.accepted == stats.finished


@pytest.mark.promise("`close()` raises what the client's own closing raises, under its own name", section="Resources")
@pytest.mark.parametrize(
    ("error", "comes_out"),
    [
        (TimeoutError, TimeoutError),
        (asyncio.CancelledError, concurrent.futures.CancelledError),
        (concurrent.futures.CancelledError, concurrent.futures.CancelledError),
        (omniloop.WaitTimeoutError, omniloop.WaitTimeoutError),
    ],
)
def test_close_raises_what_the_clients_own_closing_raises(error, comes_out):
    """A cancellation was swallowed, and a time limit told as that of the wait."""

    class Client:
        async def aclose(self):
            raise error("the client's own")

    async def use(client):
        pass

    with Runtime() as runtime:
        client = resource(Client, runtime=runtime)
        client.run(use)

        with pytest.raises(comes_out, match="^the client's own$") as caught:
            client.close(timeout=5)
        assert type(caught.value) is comes_out


def test_a_use_in_the_background_has_the_options_of_go(runtime):
    who = contextvars.ContextVar("who")
    context = contextvars.Context()
    context.run(who.set, "ada")

    async def use(client):
        return who.get()

    async def endless(client):
        await asyncio.Event().wait()

    with resource(contextlib.nullcontext, runtime=runtime) as client:
        assert client.go(use, context=context).result(timeout=5) == "ada"
        with pytest.raises(omniloop.TaskTimeoutError):
            client.go(endless, timeout=0.01).result(timeout=5)


def test_a_failure_in_closing_is_reported_at_once_if_nobody_waits_for_it_any_more():
    """It was reported only when the resource itself was dropped, or at the end of the runtime."""
    failures, told, gate = [], threading.Event(), threading.Event()

    def report(failure):
        failures.append(str(failure.exception))
        told.set()

    async def fail(client):
        while not gate.is_set():
            await asyncio.sleep(0.001)
        raise LookupError("no such socket")

    with Runtime(on_error=report) as runtime:
        client = resource(make_nothing, fail, runtime=runtime)
        client.run(use)
        with pytest.raises(WaitTimeoutError):
            client.close(timeout=0.01)
        gate.set()

        assert told.wait(5)
        assert failures == ["no such socket"]


def test_a_client_that_is_still_being_opened_for_nobody_is_given_up_by_closing(runtime):
    async def opening():
        await asyncio.Event().wait()

    client = resource(opening, lambda _: None, runtime=runtime)
    with pytest.raises(TaskTimeoutError):
        client.run(use, timeout=0.05)
    client.close(timeout=5)

    async def main():
        client = resource(opening, lambda _: None, runtime=runtime)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(awaiting(client), 0.05)
        await client.aclose()

    runtime.run(main(), timeout=5)
