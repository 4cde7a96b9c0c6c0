"""
`run()` where Python calls one's code in the middle of other code: in finalisers, in hooks, in signal handlers.

Beside the loop's thread it works as anywhere; on the loop's thread, and in the middle of the very start of that thread, it is told, at once.
"""

import asyncio
import gc
import importlib.abc
import itertools
import logging
import os
import signal
import sys
import threading
import weakref

import pytest

import omniloop
from children import run_child


async def answer():
    await asyncio.sleep(0)
    return 42


def ask():
    """What comes out of `run()` here; asked in one place of a thread at a time, as all of these hooks are called by what a `run` does itself."""
    if getattr(asks, "now", False):
        return
    asks.now = True
    try:
        told = omniloop.run(answer())
    except omniloop.OmniloopError as error:
        told = type(error).__name__
    finally:
        asks.now = False
    (on_the_loop if threading.current_thread().name == "omniloop" else beside).append(told)


asks = threading.local()
on_the_loop, beside = [], []


class Finalised:
    """Dropped by the garbage collector."""

    def __init__(self):
        self.me = self

    def __del__(self):
        ask()


class Asks(logging.Handler):
    def emit(self, record):
        ask()


class Fails:
    def __del__(self):
        raise LookupError


def in_a_finaliser():
    Finalised()
    gc.collect()


def in_a_callback_of_a_weak_reference():
    thing = Asks()
    kept.append(weakref.ref(thing, lambda _: ask()))
    weakref.finalize(thing, ask)
    del thing
    gc.collect()


kept = []


def in_a_handler_of_logging():
    logger = logging.getLogger("asks")
    logger.propagate = False
    logger.handlers[:] = [Asks()]
    logger.warning("")


def in_an_import_hook():
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            ask()

    sys.meta_path.insert(0, Finder())
    try:
        sys.modules.pop("colorsys", None)
        import colorsys  # noqa: F401
    finally:
        del sys.meta_path[0]


def in_the_hook_for_what_can_not_be_raised():
    sys.unraisablehook = lambda _: ask()
    Fails()
    gc.collect()


PLACES = [
    in_a_finaliser,
    in_a_callback_of_a_weak_reference,
    in_a_handler_of_logging,
    in_an_import_hook,
    in_the_hook_for_what_can_not_be_raised,
]


@pytest.mark.promise(
    "`run()` may be called in finalisers, in callbacks of weak references, in handlers of logging and in Python's own hooks; on the loop's thread it is told there, as anywhere",
    section="Deadlocks",
)
@pytest.mark.parametrize("first", [True, False], ids=["the first use", "later"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_run_in_what_python_calls(place, first):
    def program():
        if not first:
            omniloop.run(answer())
        place()
        omniloop.call_soon(place).result(20)
        omniloop.to_thread(place).result(20)
        print(set(beside), set(on_the_loop))

    result = run_child(program)

    assert result == ("{42} {'WouldDeadlockError'}\n", "", 0, result.seconds)


def test_run_in_the_hooks_for_what_nobody_has_caught():
    def program():
        sys.excepthook = lambda *_: (ask(), print(beside))
        threading.excepthook = lambda _: ask()

        def fails():
            raise LookupError

        thread = threading.Thread(target=fails, name="another")
        thread.start()
        thread.join()
        # Forgotten work is done all the same.
        omniloop.go(answer()).add_done_callback(lambda _: print("done"))
        raise LookupError

    result = run_child(program)

    assert sorted(result.stdout.splitlines()) == ["[42, 42]", "done"]
    assert (result.stderr, result.code) == ("", 1)


@pytest.mark.promise("So may trace and profile functions, and audit hooks, from the first line of each thread on")
@pytest.mark.parametrize("how", ["settrace", "setprofile", "audit"])
def test_run_in_what_looks_on(how):
    """On the loop's thread, before any line of ours, it waited for that very thread: it was not known by then who that was."""

    def program():
        def looks(*_):
            if next(calls) < 300:
                ask()

        # A hook that runs within the import of omniloop, where imports are lazy, has no name of it.
        omniloop.run
        calls = itertools.count()
        if how == "audit":
            sys.addaudithook(lambda *_: looks())
        else:
            getattr(threading, how)(looks)
            getattr(sys, how)(looks)
        first = omniloop.run(answer()), omniloop.to_thread(int).result(20)
        # PyPy tells an audit hook of nothing that the loop's thread has done until now.
        omniloop.call_soon(open, os.devnull).result(20).close()
        if how != "audit":
            getattr(threading, how)(None)
            getattr(sys, how)(None)
        print(first, set(beside), set(on_the_loop))

    result = run_child(program)

    assert result == ("(42, 0) {42} {'WouldDeadlockError'}\n", "", 0, result.seconds)


@pytest.mark.promise(
    "A wait in the middle of the start of the loop's thread, by a hook, a finaliser or a signal handler, is told, and the start goes on"
)
@pytest.mark.skipif(sys.version_info < (3, 12), reason="an audit hook is not told of threads")
def test_a_wait_in_the_middle_of_the_start_is_told():
    """It hung, for ever: only the interrupted frame could have started the loop."""

    def program():
        def hook(event, args):
            if event.startswith("_thread.start"):
                ask()

        sys.addaudithook(hook)
        print(omniloop.run(answer()), set(beside))

    result = run_child(program)

    assert result == ("42 {'WouldDeadlockError'}\n", "", 0, result.seconds)


@pytest.mark.promise("A signal handler that interrupts a wait may wait itself, and the interrupted wait goes on")
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")
@pytest.mark.parametrize("outer", ["run", "result", "flush", "a group", "iterate"])
def test_a_signal_handler_that_interrupts_a_wait_may_wait(outer):
    def program():
        def handler(number, frame):
            ask()
            # Only now can the interrupted wait be over.
            omniloop.call_soon(gate.set)

        gate = asyncio.Event()

        async def work():
            os.kill(os.getpid(), signal.SIGUSR1)
            await gate.wait()
            return "done"

        async def works():
            yield await work()

        signal.signal(signal.SIGUSR1, handler)
        if outer == "run":
            out = omniloop.run(work())
        elif outer == "result":
            out = omniloop.go(work()).result()
        elif outer == "flush":
            handle = omniloop.go(work())
            omniloop.flush()
            out = handle.result(0)
        elif outer == "a group":
            with omniloop.TaskGroup() as group:
                handle = group.go(work())
            out = handle.result(0)
        else:
            (out,) = omniloop.iterate(works())
        print(out, beside)

    result = run_child(program)

    assert result == ("done [42]\n", "", 0, result.seconds)


@pytest.mark.promise("A wait may be interrupted anywhere by code that waits itself, also while its own work ends")
def test_a_wait_may_be_interrupted_at_each_of_its_lines():
    """The loop waited for the lock of the handle, which the interrupted frame held, and went on no more."""

    def program():
        def looks(frame, event, arg):
            if "omniloop" not in frame.f_code.co_filename:
                return None
            if event == "line" and next(lines) == number:
                reached.append(number)
                omniloop.call_soon(gate.set)
                # The work that is waited for ends meanwhile.
                omniloop.run(asyncio.sleep(0.01))
            return looks

        reached = []
        for number in itertools.count():
            gate, lines = asyncio.Event(), itertools.count()
            task = omniloop.go(gate.wait())
            # For when it waits, and there are no more lines.
            late = omniloop.call_later(0.2, gate.set)
            sys.settrace(looks)
            value = task.result(20)
            sys.settrace(None)
            late.cancel()
            assert value is True
            if number not in reached:
                break
        print(len(reached) > 20)

    result = run_child(program)

    assert result == ("True\n", "", 0, result.seconds)
