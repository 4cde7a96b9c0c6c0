"""`@background`: calling the function starts it, and returns its task."""

import asyncio
import contextvars
import functools
import gc
import inspect
import os
import re
import signal
import threading
import time
import warnings

import pytest

import omniloop
from children import run_child
from omniloop import Failure, NotAsyncError, Runtime, Task, TaskTimeoutError, background, run

who = contextvars.ContextVar("who", default="nobody")


@background
async def double(number: int, *, by: int = 2) -> int:
    """Multiply."""
    await asyncio.sleep(0)
    return number * by


@background
def thread_name() -> str:
    return threading.current_thread().name


# --- calling ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("Calling an async function that is decorated with `@background` starts it and returns its task")
def test_calling_an_async_function_starts_it_and_returns_the_task():
    started = threading.Event()

    @background
    async def work():
        started.set()

    task = work()

    assert type(task) is Task
    assert started.wait(5)
    assert task.result(5) is None


@pytest.mark.promise("`await` on the call only waits, on any event loop")
@pytest.mark.parametrize("run", [asyncio.run, omniloop.run], ids=["another loop", "the loop itself"])
def test_await_only_waits_on_any_loop(run):
    loops = []

    @background
    async def work():
        loops.append(asyncio.get_running_loop())
        return "done"

    async def main():
        return await work()

    assert run(main()) == "done"
    assert loops == [omniloop.run(_running_loop())]


async def _running_loop():
    return asyncio.get_running_loop()


@pytest.mark.promise("A plain function that is decorated with it runs in a worker thread")
def test_a_plain_function_runs_in_a_worker_thread():
    name = thread_name().result(5)

    assert "worker" in name


def test_a_plain_function_can_be_awaited_too():
    async def main():
        return await thread_name()

    assert "worker" in asyncio.run(main())


def test_the_caller_is_told_of_wrong_arguments_at_once():
    with pytest.raises(TypeError, match="tries"):
        double(1, tries=2)


@pytest.mark.promise("A call runs in a copy of its caller's context")
def test_a_call_runs_in_a_copy_of_its_callers_context():
    @background
    async def ask():
        return who.get()

    @background
    def ask_in_thread():
        return who.get()

    token = who.set("me")
    try:
        assert (ask().result(5), ask_in_thread().result(5)) == ("me", "me")
    finally:
        who.reset(token)


def test_the_place_of_submission_is_the_line_of_the_call():
    task = double(1)

    assert __file__ in repr(task)
    assert f"line {inspect.currentframe().f_lineno - 3}" in repr(task)
    task.result(5)


# --- what it looks like -----------------------------------------------------------------------------------------------


@pytest.mark.promise("Signature, docstring and name are kept")
def test_signature_docstring_and_name_are_kept():
    assert str(inspect.signature(double)) == "(number: int, *, by: int = 2) -> int"
    assert (double.__name__, double.__doc__, double.__module__) == ("double", "Multiply.", __name__)


@pytest.mark.promise("To `inspect` it is no coroutine function")
@pytest.mark.filterwarnings("ignore:.*iscoroutinefunction.*:DeprecationWarning")
def test_to_inspect_it_is_no_coroutine_function():
    """Frameworks that see one would await the call's result in their own task, and cancel it with the request."""
    assert not inspect.iscoroutinefunction(double)
    # Django asks this one. It is to go with 3.16.
    assert not getattr(asyncio, "iscoroutinefunction", inspect.iscoroutinefunction)(double)


@pytest.mark.skipif(not hasattr(inspect, "markcoroutinefunction"), reason="came with 3.12")
def test_a_function_that_is_marked_as_async_is_so_no_longer():
    def marked():
        return _running_loop()

    decorated = background(inspect.markcoroutinefunction(marked))

    assert not inspect.iscoroutinefunction(decorated)
    assert isinstance(decorated().result(5), asyncio.AbstractEventLoop)


@pytest.mark.promise("Methods, class methods and static methods stay what they are")
def test_methods_class_methods_and_static_methods_stay_what_they_are():
    class Mailer:
        host = "here"

        @background
        async def send(self, to):
            return type(self).__name__, to

        @classmethod
        @background
        async def inside(cls):
            return cls.host

        @background
        @classmethod
        async def outside(cls):
            return cls.host

        @staticmethod
        @background
        def static_inside(data):
            return data

        @background
        @staticmethod
        def static_outside(data):
            return data

    mailer = Mailer()

    assert mailer.send("you").result(5) == ("Mailer", "you")
    assert (Mailer.inside().result(5), mailer.outside().result(5)) == ("here", "here")
    assert (Mailer.static_inside(1).result(5), mailer.static_outside(2).result(5)) == (1, 2)


@pytest.mark.promise("Above a class it takes every public async method")
def test_a_class_decorator_takes_every_public_async_method():
    @background
    class Service:
        async def public(self):
            return "public"

        async def _private(self):
            return "private"

        def plain(self):
            return "plain"

        @classmethod
        async def of_class(cls):
            return cls.__name__

        async def stream(self):
            yield 1

    service = Service()

    assert service.public().result(5) == "public"
    assert Service.of_class().result(5) == "Service"
    assert service.plain() == "plain"
    assert inspect.iscoroutinefunction(service._private)
    assert inspect.isasyncgenfunction(service.stream)


def test_an_object_with_an_async_call_and_a_partial_work_too():
    class Callable:
        async def __call__(self, number):
            return number + 1

    import functools

    async def add(left, right):
        return left + right

    assert background(Callable())(1).result(5) == 2
    assert background(functools.partial(add, 1))(2).result(5) == 3


# --- options ----------------------------------------------------------------------------------------------------------


def test_name_is_the_tasks_name():
    @background(name="mail")
    async def send():
        pass

    @background(name="press", limit=1)
    def compress():
        pass

    tasks = [send(), compress(), double(1)]

    assert [task.get_name() for task in tasks] == ["mail", "press", "double"]
    assert [task.result(5) for task in tasks] == [None, None, 2]


@pytest.mark.promise("`limit` bounds how many calls run at once; the others start in the order of the calls")
@pytest.mark.parametrize("kind", ["async", "plain"])
def test_limit_bounds_how_many_run_at_once_and_keeps_the_order(kind):
    running, most, order = 0, 0, []
    lock = threading.Lock()
    # Two must meet each time, or nobody goes on.
    pair = threading.Barrier(2)

    def enter(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            order.append((number, who.get()))

    def leave():
        nonlocal running
        with lock:
            running -= 1

    if kind == "async":

        @background(limit=2)
        async def work(number):
            enter(number)
            await asyncio.sleep(0)
            await asyncio.to_thread(pair.wait, 5)
            leave()
    else:

        @background(limit=2)
        def work(number):
            enter(number)
            pair.wait(5)
            leave()

    contexts = [contextvars.copy_context() for _ in range(6)]
    for number, context in enumerate(contexts):
        context.run(who.set, f"caller {number}")
    tasks = [context.run(work, number) for number, context in enumerate(contexts)]
    for task in tasks:
        task.result(5)

    assert most == 2
    assert sorted(order) == [(number, f"caller {number}") for number in range(6)]
    if kind == "async":
        assert [number for number, _ in order] == list(range(6))


@pytest.mark.promise("A call that waits for its turn can be cancelled, and then never starts")
def test_a_call_that_waits_for_its_turn_can_be_cancelled():
    gate = threading.Event()

    @background(limit=1)
    async def work(ran):
        ran.append(True)
        await asyncio.to_thread(gate.wait, 5)

    first_ran, second_ran, third_ran = [], [], []
    first, second, third = work(first_ran), work(second_ran), work(third_ran)
    assert second.cancel()
    gate.set()

    first.result(5), third.result(5)
    omniloop.flush(5)
    assert second.cancelled()
    assert (first_ran, second_ran, third_ran) == ([True], [], [True])
    # Would warn that a coroutine was never awaited.
    gc.collect()


@pytest.mark.promise("`on_error` is told of failures that nobody asked about")
def test_on_error_is_told_of_failures_that_nobody_asked_about():
    told, settings_told = [], []

    with Runtime(on_error=settings_told.append) as runtime:

        @background(on_error=told.append, runtime=runtime)
        async def fail(why):
            raise ValueError(why)

        @background(on_error=told.append, runtime=runtime)
        def fail_in_thread():
            raise OSError

        fail("forgotten")
        fail_in_thread()
        asked = fail("asked")
        assert isinstance(asked.exception(5), ValueError)
        del asked
        runtime.flush(5)

    assert sorted(str(type(failure.exception).__name__) for failure in told) == ["OSError", "ValueError"]
    assert {type(failure) for failure in told} == {Failure}
    assert settings_told == []


def test_without_on_error_the_hook_of_the_runtime_is_told():
    told = []
    with Runtime(on_error=told.append) as runtime:

        @background(runtime=runtime)
        async def fail():
            raise ValueError

        fail()

    assert [type(failure.exception) for failure in told] == [ValueError]


def test_another_runtime_can_be_given():
    with Runtime(name="other") as runtime:

        @background(runtime=runtime)
        async def where():
            return threading.current_thread().name

        @background(runtime=runtime, limit=1)
        def where_in_thread():
            return threading.current_thread().name

        assert where().result(5) == "other"
        assert where_in_thread().result(5).startswith("other-worker")


# --- bad input --------------------------------------------------------------------------------------------------------


def _generator():
    yield


async def _async_generator():
    yield


@pytest.mark.promise("What can't be decorated is named, with what to do instead")
@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (5, "5 can't be called"),
        ("fetch", "'fetch' can't be called"),
        (_generator, "generator function"),
        (_async_generator, "generator function"),
        (double, "already"),
        (int, "no public async method"),
    ],
    ids=["number", "string", "generator", "async generator", "twice", "class without async methods"],
)
def test_what_cannot_be_decorated_is_named(thing, message):
    with pytest.raises(NotAsyncError, match=message):
        background(thing)


def test_a_coroutine_is_refused_and_closed():
    coro = _running_loop()

    with pytest.raises(NotAsyncError, match=r"go\(\)"):
        background(coro)

    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"limit": 0}, ValueError),
        ({"limit": 1.5}, ValueError),
        ({"limit": True}, ValueError),
        ({"name": 5}, TypeError),
        ({"daemon": "yes"}, TypeError),
        ({"context": {}}, TypeError),
        ({"timeout": "5"}, ValueError),
        ({"on_error": "log"}, TypeError),
        ({"runtime": "mine"}, TypeError),
    ],
    ids=str,
)
def test_an_option_of_a_wrong_kind_is_named(options, error):
    (name, value), *_ = options.items()

    with pytest.raises(error, match=f"^{name}={value!r}: give "):
        background(**options)


def test_a_time_limit_for_a_plain_function_needs_it_to_be_a_daemon():
    with pytest.raises(ValueError, match=r"timeout=1: .*print.* is a plain function, .* Give daemon=True"):
        background(timeout=1)(print)


class Fetcher:
    async def __call__(self, number):
        return await doubled(number)


class Hidden:
    def __call__(self, number):
        return doubled(number)


async def doubled(number):
    await asyncio.sleep(0)
    return 2 * number


def hidden(number):
    return doubled(number)


@pytest.mark.promise(
    "What does not say that it is async is taken by what it returns: a lambda, a partial, an object that can be called"
)
@pytest.mark.parametrize(
    "fn",
    [
        lambda number: doubled(number),
        functools.partial(hidden),
        functools.partial(doubled),
        Fetcher(),
        Hidden(),
        hidden,
    ],
    ids=["lambda", "partial of plain", "partial of async", "async object", "object", "function"],
)
def test_what_does_not_say_that_it_is_async_is_taken_by_what_it_returns(runtime, fn):
    assert background(runtime=runtime)(fn)(4).result(timeout=5) == 8


def test_a_handle_that_it_returns_is_a_value(runtime):
    handle = runtime.go(asyncio.sleep(0, "done"))

    assert background(runtime=runtime)(lambda: handle)().result(timeout=5) is handle
    assert handle.result(timeout=5) == "done"


@pytest.mark.parametrize("fn", [lambda: asyncio.get_running_loop(), asyncio.get_event_loop], ids=["lambda", "function"])
def test_what_needs_a_running_loop_in_the_call_itself_is_told_so(runtime, fn):
    words = r"needs a running event loop in the call itself.*Make it an async function"
    with pytest.raises(NotAsyncError, match=words):
        background(runtime=runtime)(fn)().result(timeout=5)


@pytest.mark.promise(
    "A plain function that is a daemon runs in a thread of its own; nobody waits for it at the end, which names it if it still runs"
)
def test_a_plain_function_that_is_a_daemon_runs_in_a_thread_of_its_own():
    def program():
        @background(daemon=True, name="watch the folder")
        def watch(started):
            print(threading.current_thread().name, threading.current_thread().daemon, "\n", end="")
            started.set()
            threading.Event().wait()

        @background
        def work():
            print("worked\n", end="")

        started = threading.Event()
        watch(started)
        started.wait(5)
        work()
        omniloop.flush(5)
        omniloop.shutdown()
        watch(again := threading.Event())
        again.wait(5)

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == (
        "watch the folder True \nworked\nwatch the folder True \n",
        result.stderr,
        0,
    )
    # By `shutdown`, and at exit.
    lines = result.stderr.splitlines()
    assert lines[::2] == ["omniloop: 1 left running in daemon threads, which nobody waits for:"] * 2
    # In its wait, or on the way there.
    assert [re.sub(r"File .*, line \d+, in watch.*", "File …", line) for line in lines[1::2]] == [
        "  watch the folder, runs at File …"
    ] * 2
    # `exit_timeout` is 25 s.
    assert result.seconds < 15


def test_a_daemon_call_that_has_ended_or_was_left_in_time_is_named_only_if_it_still_runs():
    def program():
        def wait(gate):
            gate.wait(5)

        first, second = threading.Event(), threading.Event()
        first.set()
        background(daemon=True, name="ended")(wait)(first).result(5)
        try:
            background(daemon=True, name="left", timeout=0.5)(wait)(second).result(5)
        except omniloop.TaskTimeoutError:
            pass
        omniloop.shutdown()
        second.set()

    result = run_child(program)

    assert (result.stdout, result.code) == ("", 0)
    assert result.stderr.startswith(
        "omniloop: 1 left running in daemon threads, which nobody waits for:\n  left, runs at "
    )
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="takes fork")
@pytest.mark.promise("A fork names, once, the daemon calls whose threads the child is without")
def test_a_fork_names_the_daemon_calls_whose_threads_the_child_is_without():
    def program():
        warnings.simplefilter("ignore", DeprecationWarning)

        @background(daemon=True, name="watch the folder")
        def watch(started, gate):
            started.set()
            gate.wait(20)

        started, gate = threading.Event(), threading.Event()
        task = watch(started, gate)
        started.wait(5)
        for _ in range(2):
            if (pid := os.fork()) == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        gate.set()
        task.result(5)

    result = run_child(program)

    assert (result.stdout, result.code) == ("", 0)
    first, second = result.stderr.splitlines()
    assert first == (
        "omniloop: 1 left running in daemon threads, which the forked child is without; a lock that one of them held is held there for "
        "ever. Start them after the fork, or the child by spawn:"
    )
    assert second.startswith("  watch the folder, runs at File ")


def test_daemon_calls_count_for_no_bound():
    gate = threading.Event()
    with Runtime(max_workers=1) as runtime:
        tasks = [background(daemon=True, runtime=runtime)(gate.wait)(5) for _ in range(5)]

        assert runtime.to_thread(sum, [1, 2]).result(timeout=5) == 3
        gate.set()
        assert [task.result(timeout=5) for task in tasks] == [True] * 5


def test_a_daemon_call_has_the_callers_context_its_result_and_its_error(runtime, failures):
    who.set("the caller's")
    other = contextvars.Context()
    other.run(who.set, "another")

    assert background(daemon=True, runtime=runtime)(who.get)().result(timeout=5) == "the caller's"
    assert background(daemon=True, runtime=runtime, context=other)(who.get)().result(timeout=5) == "another"
    assert background(runtime=runtime, context=other)(who.get)().result(timeout=5) == "another"
    with pytest.raises(LookupError):
        background(daemon=True, runtime=runtime)({}.__getitem__)(1).result(timeout=5)
    with pytest.raises(RuntimeError, match="StopIteration"):
        background(daemon=True, runtime=runtime)(next)(iter([])).result(timeout=5)


def test_a_time_limit_cancels_an_async_call_and_leaves_a_daemons_thread(runtime):
    gate = threading.Event()

    @background(timeout=0.01, runtime=runtime)
    async def endless():
        await asyncio.Event().wait()

    with pytest.raises(TaskTimeoutError):
        endless().result(timeout=5)
    with pytest.raises(TaskTimeoutError):
        background(daemon=True, timeout=0.01, runtime=runtime)(gate.wait)(5).result(timeout=5)
    gate.set()


# --- ending well ------------------------------------------------------------------------------------------------------


@pytest.mark.promise("Forgotten calls are done before the interpreter exits")
def test_forgotten_calls_are_done_before_the_interpreter_exits():
    def program():
        @background(limit=1)
        async def save(number):
            await asyncio.sleep(0.01)
            # In one piece: threads print side by side.
            print(f"saved {number}\n", end="")

        @background
        def compress():
            time.sleep(0.02)
            print("compressed\n", end="")

        @background(daemon=True)
        async def poll():
            try:
                await asyncio.Event().wait()
            finally:
                print("stopped polling\n", end="")

        compress()
        poll()
        for number in range(3):
            save(number)

    result = run_child(program)

    assert (result.stderr, result.code) == ("", 0)
    assert sorted(result.stdout.split("\n")) == ["", "compressed", "saved 0", "saved 1", "saved 2", "stopped polling"]


@pytest.mark.promise("A limit starts afresh in a forked child")
def test_a_limit_starts_afresh_in_a_forked_child():
    def program():
        warnings.simplefilter("ignore", DeprecationWarning)
        gate = None

        async def make_gate():
            nonlocal gate
            gate = asyncio.Event()

        @background(limit=1)
        async def work(who, wait=False):
            if wait:
                await gate.wait()
            print(who, flush=True)

        async def open_gate():
            gate.set()

        run(make_gate())
        work("parent's first", wait=True)
        work("parent's second")
        pid = os.fork()
        if pid == 0:
            work("child's").result(5)
        else:
            assert os.waitpid(pid, 0)[1] == 0
            run(open_gate())

    result = run_child(program)

    assert (result.stderr, result.code) == ("", 0)
    assert result.stdout == "child's\nparent's first\nparent's second\n"


def test_ctrl_c_while_waiting_leaves_the_work_to_the_drain():
    def program():
        @background
        async def work():
            # Not while it is submitted: Ctrl-C there leaves no work behind.
            await submitted.wait()
            os.kill(os.getpid(), signal.SIGINT)
            await told.wait()
            print("done")

        submitted, told = asyncio.Event(), asyncio.Event()
        task = work()
        try:
            omniloop.call_soon(submitted.set)
            task.result()
        except KeyboardInterrupt:
            print("interrupted")
        omniloop.call_soon(told.set)

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("interrupted\ndone\n", "", 0)


def test_waiting_for_a_call_on_the_loops_own_thread_is_refused():
    async def main():
        with pytest.raises(omniloop.WouldDeadlockError):
            double(1).result()

    omniloop.run(main(), timeout=5)
