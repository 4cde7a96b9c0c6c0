"""Work runs in a copy of its submitter's context, whoever else submits, and whatever way it is submitted."""

import asyncio
import contextvars
import gc
import socket
import sys
import threading
import weakref

import pytest

import omniloop
from children import run_child
from omniloop import Runtime
from programs import source_of

SEEN = pytest.param(
    "seen", marks=pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the live view takes Unix sockets")
)

variable = contextvars.ContextVar("variable", default="unset")


async def read():
    before = variable.get()
    await asyncio.sleep(0)
    assert variable.get() == before
    return before


@pytest.fixture
def set_here():
    token = variable.set("the submitter's")
    yield
    variable.reset(token)


SUBMISSIONS = {
    "go": lambda runtime: runtime.go(read()),
    "call_soon": lambda runtime: runtime.call_soon(variable.get),
    "call_later": lambda runtime: runtime.call_later(0, variable.get),
    "call_later async": lambda runtime: runtime.call_later(0, read),
    "to_thread": lambda runtime: runtime.to_thread(variable.get),
}


@pytest.mark.promise("Work sees a copy of its submitter's context")
@pytest.mark.parametrize("submit", SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_work_sees_its_submitters_context(runtime, set_here, submit):
    assert submit(runtime).result(timeout=5) == "the submitter's"


def test_every_turn_sees_its_submitters_context(runtime, set_here):
    seen, twice = [], threading.Event()

    def turn():
        seen.append(variable.get())
        if len(seen) == 2:
            twice.set()

    runtime.every(0.001, turn)

    assert twice.wait(timeout=5)
    assert seen[:2] == ["the submitter's"] * 2


@pytest.mark.parametrize("submit", SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_the_loops_thread_has_an_empty_context_whoever_submitted_first(set_here, submit):
    async def new_task():
        return await asyncio.get_running_loop().create_task(read(), context=contextvars.Context())

    with Runtime(name="first") as runtime:
        submit(runtime).result(timeout=5)
        seen = []
        runtime._life.thread.loop.call_soon_threadsafe(lambda: seen.append(variable.get()), context=None)
        token = variable.set("unset")
        runtime._life.thread.loop.call_soon_threadsafe(lambda: seen.append(variable.get()))
        variable.reset(token)
        assert runtime.go(new_task()).result(timeout=5) == "unset"
        runtime.flush(timeout=5)
        assert seen[1] == "unset"


@pytest.mark.promise(
    "No thread keeps what the context of the first submitter held, also where threads inherit contexts"
)
@pytest.mark.parametrize("first", ["go", "to_thread", "timer", "watched", SEEN])
def test_no_thread_keeps_the_context_of_the_first_submitter(first):
    """Each thread that the first use starts kept the request it was started in; where threads inherit contexts that is the default without a GIL."""

    def program():
        first = sys.argv[1]
        request = contextvars.ContextVar("request")

        class Request:
            pass

        async def work():
            await asyncio.sleep(0)

        def submit():
            held = Request()
            request.set(held)
            if first == "to_thread":
                omniloop.to_thread(int).result(5)
            elif first == "timer":
                omniloop.call_later(0, int).result(5)
            else:
                omniloop.configure(slow_callback=5 if first == "watched" else None, monitor=first == "seen")
                omniloop.go(work()).result(5)
            return weakref.ref(held)

        seen = contextvars.Context().run(submit)
        omniloop.flush()
        gc.collect()
        if seen() is None:
            print("freed")
        else:
            print("kept, by", [thread.name for thread in threading.enumerate() if request in (thread._context or ())])

    result = run_child(
        f"import sys; sys.argv[1:] = [{first!r}]\n" + source_of(program), flags=["-X", "thread_inherit_context=1"]
    )

    assert result == ("freed\n", "", 0, result.seconds)


def test_each_of_many_submitters_keeps_its_own_context(runtime):
    def submit(number):
        variable.set(number)
        results[number] = [runtime.go(read()) for _ in range(50)] + [runtime.to_thread(variable.get) for _ in range(5)]

    results = {}
    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=5)

    for number, tasks in results.items():
        assert {task.result(timeout=5) for task in tasks} == {number}


def test_a_context_that_is_given_is_used_instead(runtime, set_here):
    context = contextvars.Context()
    context.run(variable.set, "the given one's")

    assert runtime.go(read(), context=context).result(timeout=5) == "the given one's"
    assert runtime.call_soon(variable.get, context=context).result(timeout=5) == "the given one's"
    assert runtime.call_later(0, read, context=context).result(timeout=5) == "the given one's"


@pytest.mark.promise("`context=` is used instead, also where the submitter is inside of it")
def test_a_context_that_the_submitter_is_inside_of_can_be_given(runtime):
    """It can't be entered twice: the work hung for ever."""
    context = contextvars.Context()

    def submit():
        variable.set("inside")
        return runtime.go(read(), context=context), runtime.call_soon(variable.get, context=context)

    for task in context.run(submit):
        assert task.result(timeout=5) == "inside"


def test_what_the_work_sets_is_seen_by_itself_alone(runtime, set_here):
    async def write():
        variable.set("the work's")
        await asyncio.sleep(0)
        return variable.get()

    context = contextvars.copy_context()

    assert runtime.go(write(), context=context).result(timeout=5) == "the work's"
    assert runtime.go(write()).result(timeout=5) == "the work's"
    runtime.call_soon(variable.set, "the function's").result(timeout=5)
    assert variable.get() == "the submitter's"
    assert context[variable] == "the submitter's"
    assert runtime.go(read()).result(timeout=5) == "the submitter's"


def test_an_async_function_that_is_called_later_goes_on_in_the_context_its_call_began_in(runtime):
    def begins():
        variable.set("set by the call")
        return read()

    assert runtime.call_later(0, begins).result(timeout=5) == "set by the call"
