"""What lives on the loop: opened on first use, shared by all, closed when nobody can need it any more."""

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
import sys
import threading

import pytest

import omniloop
from children import run_child
from omniloop import ClosedError, NotAsyncError, Runtime, TaskTimeoutError, WouldDeadlockError, WrongLoopError, resource


@pytest.fixture(params=["asyncio", "uvloop"])
def runtime(request):
    factory = None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with Runtime(name=request.param, loop_factory=factory) as made:
        yield made


class Client:
    """Notes where it was made, and what was done with it."""

    def __init__(self, log=None, name="client"):
        self.log = log if log is not None else []
        self.loop = asyncio.get_running_loop()
        self.name = name

    async def get(self, path):
        await asyncio.sleep(0)
        return self, path

    async def aclose(self):
        await asyncio.sleep(0)
        self.log.append(f"{self.name} closed")


@pytest.mark.promise("A resource is opened on first use, once for all")
def test_nothing_is_opened_until_the_first_use_and_then_one_for_all(runtime):
    made = []

    def factory():
        made.append(Client())
        return made[-1]

    client = resource(factory, runtime=runtime)
    assert made == []

    first, path = client.run(lambda c: c.get("/a"))
    second, _ = client.go(lambda c: c.get("/b")).result(timeout=5)

    async def work():
        return await client

    assert [first, second, runtime.run(work())] == made * 3
    assert path == "/a"
    assert first.loop is runtime._life.thread.loop


@pytest.mark.promise("Whoever comes meanwhile waits for the same opening")
def test_many_first_users_wait_for_the_same_opening(runtime):
    opened = []

    async def factory():
        opened.append(1)
        await asyncio.sleep(0.02)
        return Client()

    client = resource(factory, runtime=runtime)
    barrier, found = threading.Barrier(8), []

    def use():
        barrier.wait(timeout=5)
        found.append(client.run(lambda c: c.get("/"))[0])

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(opened) == 1
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


@pytest.mark.promise("If the factory fails, all who wait get the error, and the next use tries again")
def test_a_factory_that_fails_fails_all_who_wait_and_the_next_use_tries_again(runtime):
    attempts = []

    async def factory():
        attempts.append(1)
        await all_wait.wait()
        if len(attempts) == 1:
            raise ConnectionError("refused")
        return Client()

    async def turns():
        for _ in range(10):
            await asyncio.sleep(0)

    all_wait = asyncio.Event()
    client = resource(factory, runtime=runtime)
    tasks = [client.go(lambda c: c.get("/")) for _ in range(3)]
    runtime.run(turns())
    runtime.call_soon(all_wait.set)

    assert [str(task.exception(timeout=5)) for task in tasks] == ["refused"] * 3
    assert client.run(lambda c: c.get("/"))[1] == "/"
    assert len(attempts) == 2


@pytest.mark.promise("A first user that is cancelled leaves the opening to the others")
def test_a_first_user_that_is_cancelled_leaves_the_opening_to_the_others(runtime):
    gate, opening = asyncio.Event(), threading.Event()

    async def factory():
        opening.set()
        await gate.wait()
        return Client()

    client = resource(factory, runtime=runtime)
    first, second = client.go(lambda c: c.get("/1")), client.go(lambda c: c.get("/2"))
    assert opening.wait(timeout=5)
    first.cancel()
    runtime.call_soon(gate.set)

    assert second.result(timeout=5)[1] == "/2"
    assert first.cancelled()


def closers(log):
    """Each way in which something can be made and closed."""

    class Entered:
        async def __aenter__(self):
            log.append("entered")
            return self

        async def __aexit__(self, kind, error, tb):
            assert error is None
            log.append("left")

        async def aclose(self):
            pytest.fail("entered and closed")

    class Sync:
        def close(self):
            log.append("closed")

    class Odd:
        async def dispose(self):
            log.append("disposed")

        def hang_up(self):
            log.append("hung up")

    class Pool(Entered):
        """As asyncpg's: may be awaited, or entered."""

        def __await__(self):
            pytest.fail("awaited and entered")
            yield

    @contextlib.asynccontextmanager
    async def managed():
        log.append("entered")
        try:
            yield Odd()
        finally:
            log.append("left")

    async def made_async():
        await asyncio.sleep(0)
        return Entered()

    return {
        "async with": ((Entered,), ["entered", "left"]),
        "asynccontextmanager": ((managed,), ["entered", "left"]),
        "awaitable and async with": ((Pool,), ["entered", "left"]),
        "async factory": ((made_async,), ["entered", "left"]),
        "aclose": ((lambda: Client(log),), ["client closed"]),
        "close": ((Sync,), ["closed"]),
        "a given async closer": ((Odd, Odd.dispose), ["disposed"]),
        "a given sync closer": ((Odd, Odd.hang_up), ["hung up"]),
        "a given closer for what could be entered": ((Entered, lambda c: log.append("given")), ["given"]),
    }


@pytest.mark.promise("How it is opened and closed is found, or given")
@pytest.mark.parametrize("way", closers([]))
def test_it_is_opened_and_closed_in_the_way_that_is_found_or_given(way):
    log = []
    arguments, expected = closers(log)[way]
    runtime = Runtime()

    resource(*arguments, runtime=runtime).run(lambda c: asyncio.sleep(0))
    runtime.shutdown()

    assert log == expected


@pytest.mark.promise("Opening and closing run in one task, and in no caller's context")
def test_opening_and_closing_run_in_one_task_and_no_callers_context():
    variable, tasks = contextvars.ContextVar("variable", default="unset"), []
    runtime = Runtime()

    @contextlib.asynccontextmanager
    async def factory():
        async with asyncio.timeout(60):
            tasks.append((asyncio.current_task(), variable.get()))
            yield
            tasks.append((asyncio.current_task(), variable.get()))

    variable.set("of one caller")
    resource(factory, runtime=runtime).run(lambda c: asyncio.sleep(0))
    runtime.shutdown()

    assert tasks[0] == tasks[1]
    assert tasks[0][1] == "unset"


@pytest.mark.promise("Resources are closed last-in-first-out, after all work and all daemons")
def test_resources_are_closed_last_in_first_out_after_all_work_and_all_daemons():
    log, runtime = [], Runtime()
    database = resource(lambda: Client(log, "database"), runtime=runtime)

    async def make_cache():
        await database
        return Client(log, "cache")

    cache = resource(make_cache, runtime=runtime)
    using = threading.Event()

    async def daemon():
        try:
            await cache
            using.set()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            await (await cache).get("/")
            log.append("daemon ended")

    async def last_work():
        await asyncio.sleep(0.05)
        await (await database).get("/")
        log.append("work ended")

    runtime.go(daemon(), daemon=True)
    assert using.wait(timeout=5)
    runtime.go(last_work())
    runtime.shutdown()

    assert log == ["work ended", "daemon ended", "cache closed", "database closed"]


class Connection:
    """As aio-pika's: a reader and a heartbeat of its own, and a `close()` that needs the reader."""

    def __init__(self, log, name="connection"):
        self.log, self.name = log, name
        self.closing, self.closed = asyncio.Event(), asyncio.Event()
        self.reader = asyncio.create_task(self.read())
        self.heartbeat = asyncio.create_task(asyncio.sleep(60))

    async def read(self):
        try:
            await self.closing.wait()
            await asyncio.sleep(0.01)
            self.closed.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.log.append(f"{self.name}'s reader ended")
            raise

    async def use(self):
        assert not self.closing.is_set()

    async def aclose(self):
        self.closing.set()
        await self.closed.wait()
        assert not self.heartbeat.done()
        self.log.append(f"{self.name} closed")


@pytest.mark.promise("A client is closed before its own reader and heartbeat are cancelled, the youngest client first")
@pytest.mark.parametrize("closes", ["the end", "its user"])
def test_a_client_is_closed_before_its_own_tasks_are_cancelled(closes):
    """Its reader and its heartbeat were cancelled with the daemons, and `close()` waited in vain for the reader."""
    log, runtime = [], Runtime(cancel_timeout=5)
    older = resource(lambda: Connection(log, "older"), runtime=runtime)

    async def make_younger():
        await older
        return Connection(log, "younger")

    younger = resource(make_younger, runtime=runtime)
    younger.run(Connection.use)
    if closes == "its user":
        # And leaves its own tasks behind.
        younger.close()
    runtime.shutdown()

    assert log == ["younger closed", "younger's reader ended", "older closed", "older's reader ended"]


@pytest.mark.promise("So it is though the time for the work is over")
def test_a_client_is_closed_before_its_own_tasks_are_cancelled_though_work_is_dropped():
    log, runtime = [], Runtime(cancel_timeout=5)
    client = resource(lambda: Connection(log), runtime=runtime)

    async def never_ends(connection):
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            await connection.use()
            log.append("work ended")

    started = threading.Event()
    client.go(never_ends)
    assert started.wait(timeout=5)
    runtime.shutdown(timeout=0)

    assert log == ["work ended", "connection closed", "connection's reader ended"]


@pytest.mark.promise(
    "Tasks that were made without the runtime end after all resources, and what they raise without those is not reported"
)
def test_bare_tasks_end_after_the_resources_and_what_they_then_raise_is_not_reported(caplog):
    log, runtime = [], Runtime(cancel_timeout=5, leftover_timeout=0)
    client = resource(lambda: Connection(log), runtime=runtime)

    async def beat():
        connection = await client
        try:
            while True:
                await asyncio.sleep(0.001)
                await connection.use()
        finally:
            log.append("heartbeat ended")

    async def work():
        await client
        held.append(asyncio.create_task(beat()))
        await asyncio.sleep(0.01)

    held = []
    runtime.run(work())
    runtime.shutdown()
    (task,) = held
    held.clear()
    del task
    gc.collect()

    assert sorted(log) == ["connection closed", "connection's reader ended", "heartbeat ended"]
    assert caplog.records == []


@pytest.mark.promise("While the end closes resources none is opened by a task that was made without the runtime")
@pytest.mark.parametrize("again", ["await client", "client.go"])
def test_while_resources_are_closed_a_bare_task_does_not_open_them_again(caplog, again):
    """A client that reconnects by itself opened one 364 times, until the deadline."""
    log, errors, runtime = [], [], Runtime(cancel_timeout=5, leftover_timeout=0)
    opened = []

    async def make():
        opened.append(1)
        return Connection(log)

    client = resource(make, runtime=runtime)

    async def reconnects():
        while True:
            try:
                await (client if again == "await client" else client.go(Connection.use))
            except ClosedError as error:
                errors.append(error)
                # Again, by a task of its own, whose error nobody asks for.
                others.append(asyncio.create_task(client._get(sys._getframe())))
                raise
            await asyncio.sleep(0.001)

    async def work():
        await client
        others.append(asyncio.create_task(reconnects()))
        await asyncio.sleep(0.01)

    others = []
    runtime.run(work())
    runtime.shutdown()
    others.clear()
    gc.collect()

    assert opened == [1]
    assert len(errors) <= 1
    assert all("does not open it again" in str(error) for error in errors)
    assert log == ["connection closed", "connection's reader ended"]
    assert caplog.records == []


def test_work_that_comes_while_resources_are_closed_has_them_open():
    log, runtime = [], Runtime(cancel_timeout=5)
    client = resource(lambda: Connection(log), runtime=runtime)

    async def late():
        await (await client).use()
        log.append("late work")

    async def goes_on():
        try:
            await asyncio.sleep(60)
        finally:
            runtime.go(late())

    async def make_last():
        held.append(asyncio.create_task(goes_on()))
        await asyncio.sleep(0)
        return Client(log, "last")

    held = []
    client.run(Connection.use)
    last = resource(make_last, runtime=runtime)
    last.run(lambda c: c.get("/"))
    runtime.shutdown()

    assert log[:2] == ["last closed", "late work"]
    assert log[2:] == ["connection closed", "connection's reader ended"]


@pytest.mark.promise("Closing gets its time though a daemon does not end")
def test_closing_gets_its_time_though_a_daemon_does_not_end():
    log, runtime = [], Runtime(cancel_timeout=0.4)
    client = resource(lambda: Client(log), runtime=runtime)
    deaf = threading.Event()

    async def never_ends():
        deaf.set()
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    client.run(lambda c: c.get("/"))
    runtime.go(never_ends(), daemon=True)
    assert deaf.wait(timeout=5)
    runtime.shutdown()

    assert log == ["client closed"]


@pytest.mark.promise("What the clean-up of a daemon starts is waited for in the drain, and not cancelled")
def test_what_a_daemons_clean_up_starts_is_waited_for_and_not_cancelled():
    """The drain looked again when the first daemon had ended, and cancelled what the others' clean-up was waiting for."""
    log, runtime = [], Runtime()
    started = [threading.Event(), threading.Event()]

    async def quick():
        started[0].set()
        await asyncio.sleep(60)

    async def thorough():
        try:
            started[1].set()
            await asyncio.sleep(60)
        finally:
            await asyncio.gather(asyncio.sleep(0.05))
            log.append("cleaned up")

    runtime.go(quick(), daemon=True)
    runtime.go(thorough(), daemon=True)
    assert all(event.wait(timeout=5) for event in started)
    runtime.shutdown()

    assert log == ["cleaned up"]


@pytest.mark.promise("An error in closing is reported")
def test_an_error_in_closing_is_reported():
    failures = []
    runtime = Runtime(on_error=failures.append)

    def close(client):
        raise LookupError("in closing")

    resource(lambda: object(), close, runtime=runtime).run(lambda c: asyncio.sleep(0))
    runtime.shutdown()

    assert [str(failure.exception) for failure in failures] == ["in closing"]
    assert "resource(" in failures[0].name


@pytest.mark.promise("After a shutdown the next use opens it anew")
def test_after_a_shutdown_of_the_shared_runtime_it_is_opened_anew():
    def program():
        class Client:
            async def aclose(self):
                print("closed")

        def make():
            print("made")
            return Client()

        client = omniloop.resource(make)
        for _ in range(2):
            client.run(lambda c: asyncio.sleep(0))
            omniloop.shutdown()
            print("shut down")

    result = run_child(program)

    assert result.stdout.split("\n") == ["made", "closed", "shut down"] * 2 + [""]
    assert (result.stderr, result.code) == ("", 0)


def test_it_is_not_work_that_a_flush_waits_for_or_that_is_listed(runtime):
    resource(Client, runtime=runtime).run(lambda c: c.get("/"))

    runtime.flush(timeout=5)

    assert runtime.tasks() == []


def test_a_timeout_cancels_the_use_and_the_client_stays_open(runtime):
    log = []
    client = resource(lambda: Client(log), runtime=runtime)

    with pytest.raises(TaskTimeoutError):
        client.run(lambda c: asyncio.sleep(60), timeout=0.01)

    assert client.run(lambda c: c.get("/"))[1] == "/"
    assert log == []


@pytest.mark.promise("Using it in sync code on the loop's own thread is an error, not a hang")
def test_on_the_loops_own_thread_run_would_deadlock(runtime):
    client = resource(Client, runtime=runtime)

    with pytest.raises(WouldDeadlockError, match="await"):
        runtime.call_soon(client.run, lambda c: c.get("/")).result(timeout=5)


@pytest.mark.promise("A factory that needs itself is an error, not a hang")
def test_a_factory_that_needs_itself_would_deadlock(runtime):
    async def factory():
        return await client

    client = resource(factory, runtime=runtime)

    with pytest.raises(WouldDeadlockError, match="its own factory"):
        client.run(lambda c: c.get("/"), timeout=5)


@pytest.mark.promise("On another loop it is refused with the way out")
def test_on_another_loop_it_is_refused_with_the_way_out(runtime):
    client = resource(Client, runtime=runtime)

    async def elsewhere():
        with pytest.raises(WrongLoopError, match=r"await client.go\("):
            await client
        return await client.go(lambda c: c.get("/"))

    assert asyncio.run(elsewhere())[1] == "/"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: resource(7), r"7 can't be called. Use resource\(lambda: …\)"),
        (lambda: resource(object, close=7), "close=7: give a function"),
        (lambda: resource(object).run(7), r"7 can't be called. Use run\(lambda"),
        (lambda: resource(object).go(7), r"7 can't be called. Use go\(lambda"),
        (lambda: resource(object).run(print), "can't be closed.*Give resource.. a second argument"),
        (lambda: resource(object, id).run(lambda c: 7), "returned 7, which can't be awaited"),
        (lambda: resource(generator).run(print), r"resource\(asynccontextmanager\(generator\)\)"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(make, words):
    with pytest.raises(NotAsyncError, match=words):
        make()


async def generator():
    yield


class Announced:
    def __init__(self):
        self.pid = os.getpid()

    async def use(self):
        await asyncio.sleep(0)
        return "own" if self.pid == os.getpid() else "another's"

    async def aclose(self):
        await asyncio.sleep(0.01)
        print("closed", await self.use(), flush=True)

    def __del__(self, getpid=os.getpid):
        # Bound: without a GIL it may be called when this module is cleared already.
        if self.pid != getpid():
            print("finalised in a child", flush=True)


# Opened in the programs only, which have one each.
announced = omniloop.resource(Announced)


@pytest.mark.promise("It is closed at exit, after the work")
def test_it_is_closed_at_exit_after_the_work():
    def program():
        async def work(c):
            while not omniloop._process.exit.draining():
                await asyncio.sleep(0.001)
            print("work", await c.use())

        announced.go(work)
        print("last line")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("last line\nwork own\nclosed own\n", "", 0)


def test_work_that_first_needs_it_in_the_drain_has_it():
    def program():
        async def work():
            while not omniloop._process.exit.draining():
                await asyncio.sleep(0.001)
            print("work", await (await announced).use())

        omniloop.go(work())

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("work own\nclosed own\n", "", 0)


@pytest.mark.promise("A forked child opens its own, and never touches the parent's")
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_a_forked_child_opens_its_own_and_never_touches_the_parents():
    def program():
        print(announced.run(Announced.use), flush=True)
        if os.fork() == 0:
            print("child", announced.run(Announced.use), flush=True)
            sys.exit()
        assert os.wait()[1] == 0
        print("parent", announced.run(Announced.use))

    result = run_child(
        program,
        flags=["-W", "ignore::DeprecationWarning"],
    )

    assert result.stdout.splitlines() == ["own", "child own", "closed own", "parent own", "closed own"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("Ctrl-C cancels the use, and the client is closed at exit")
def test_ctrl_c_cancels_the_use_and_the_client_is_closed_at_exit():
    def program():
        async def use(c):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)
            finally:
                print("use ended")

        try:
            announced.run(use)
        except KeyboardInterrupt:
            print("interrupted")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("use ended\ninterrupted\nclosed own\n", "", 0)
