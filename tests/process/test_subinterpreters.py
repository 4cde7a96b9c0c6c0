"""In a sub-interpreter: work as in the main one, or words that say why not; and the end of the process waits for none of them."""

import asyncio
import sys
import textwrap

import pytest

import omniloop
from children import run_child

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 13), reason="3.12's own isolated sub-interpreters abort with asyncio"
)

# What 3.14 says of a sub-interpreter that is left open.
LEFT_OPEN = ["-W", "ignore:remaining subinterpreters:RuntimeWarning"]


def run_in(kind, code):
    """In a child: run *code* in a new sub-interpreter of that *kind*; a function that closes it is returned."""
    import _interpreters

    interpreter = _interpreters.create(kind)
    failed = _interpreters.run_string(interpreter, textwrap.dedent(code))
    if failed is not None:
        print(failed.formatted)
    return lambda: _interpreters.destroy(interpreter)


@pytest.mark.promise(
    "In an isolated sub-interpreter, which has no daemon threads, each use says so and what to do, and nothing is left behind",
    section="Other worlds",
)
def test_in_an_isolated_one_each_use_says_that_there_are_no_daemon_threads_and_leaves_nothing_behind():
    def program():
        run_in(
            "isolated",
            """
            import asyncio, inspect
            import omniloop

            coro = asyncio.sleep(0)
            for use in (
                lambda: omniloop.go(coro),
                lambda: omniloop.run(asyncio.sleep(0)),
                lambda: omniloop.call_soon(print, "called"),
                lambda: omniloop.to_thread(print, "called"),
            ):
                try:
                    use()
                except omniloop.CannotStartError as error:
                    print(str(error).replace("a worker thread", "its thread"), flush=True)
            print(inspect.getcoroutinestate(coro), omniloop.tasks(), omniloop.flush(timeout=1), flush=True)
            """,
        )
        print("main", omniloop.run(asyncio.sleep(0, "works")))

    result = run_child(program, timeout=20, flags=LEFT_OPEN)

    said = (
        "omniloop can't start its thread here: this is an isolated sub-interpreter, and those have no daemon threads. "
        "Use omniloop in the main interpreter, and asyncio.run() in this one."
    )
    assert result.stdout.splitlines() == [said] * 4 + ["CORO_CLOSED [] None", "main works"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise(
    "A legacy one has a runtime of its own, and what is left to it is finished when it is closed",
    section="Other worlds",
)
def test_a_legacy_one_has_a_runtime_of_its_own_which_is_drained_when_it_is_closed():
    def program():
        close = run_in(
            "legacy",
            """
            import asyncio
            import omniloop

            async def work():
                await asyncio.sleep(0.1)
                print("worked", flush=True)

            print(omniloop.stats().accepted, omniloop.run(asyncio.sleep(0, "works")), flush=True)
            omniloop.go(work())
            """,
        )
        omniloop.run(asyncio.sleep(0))
        close()
        print("closed", omniloop.run(asyncio.sleep(0, "main works")))

    result = run_child(program, timeout=20)

    assert result.stdout.splitlines() == ["0 works", "worked", "closed main works"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise(
    "A legacy one that is left open does not hold up the exit: from 3.14 on it is drained, on 3.13 a line says what is lost",
    section="Other worlds",
)
def test_a_legacy_one_that_is_left_open_does_not_hold_up_the_exit():
    def program():
        run_in(
            "legacy",
            """
            import asyncio, threading
            import omniloop

            begun = threading.Event()

            async def work():
                await asyncio.sleep(0)
                begun.set()
                await asyncio.sleep(0.5)
                print("worked", flush=True)

            omniloop.go(work())
            begun.wait(5)
            """,
        )
        print("main ends", flush=True)

    result = run_child(program, timeout=20, flags=LEFT_OPEN)

    if sys.version_info >= (3, 14):
        assert result.stdout.splitlines() == ["main ends", "worked"]
        assert (result.stderr, result.code) == ("", 0)
        return
    # CPython 3.13 then aborts, as with any three daemon threads there: "not the last thread".
    assert result.stdout.splitlines() == ["main ends"]
    assert (
        "1 unfinished are lost, because their sub-interpreter was still open when the main one ended." in result.stderr
    )
    assert result.seconds < 10
