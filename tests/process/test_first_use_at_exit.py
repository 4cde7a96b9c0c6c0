"""A first use while the interpreter exits is run or refused, and never accepted and lost. Each test is an interpreter of its own."""

import os
import sys

import pytest

from children import run_child

# CPython starts no thread any more when main has ended.
STARTS_THREADS = not (3, 12) <= sys.version_info < (3, 13)

DOORS = ["go", "try_go", "run", "call_soon", "call_later", "to_thread", "every", "group", "resource", "background"]


def first_use(door):
    """Submit by *door*; say what became of it. Whatever is imported is imported here."""
    import omniloop

    async def work():
        print("done", flush=True)

    def plainly():
        print("done", flush=True)

    try:
        if door == "group":
            with omniloop.TaskGroup() as group:
                group.go(work())
        elif door == "resource":
            omniloop.resource(work).run(lambda opened: opened)
        elif door == "background":
            omniloop.background(work)()
        elif door == "call_later":
            omniloop.call_later(0, plainly)
        elif door == "every":
            omniloop.every(0.001, plainly, immediately=True)
        elif door in ("go", "try_go", "run"):
            getattr(omniloop, door)(work())
        else:
            getattr(omniloop, door)(plainly)
    except (omniloop.OmniloopError, ExceptionGroup) as error:
        (error,) = getattr(error, "exceptions", (error,))
        print(f"{type(error).__name__}: {error}", flush=True)
    else:
        print("accepted", flush=True)


REFUSED = (
    "ClosedError: The interpreter is exiting, and its last drain is over: nothing more can be run. Submit it earlier.\n"
)


@pytest.mark.promise(
    "A first use in an exit hook is refused, by every call, whatever was loaded before: nothing could finish it",
    section="At exit",
)
@pytest.mark.parametrize(
    ("door", "loaded"),
    [*((door, "asyncio") for door in DOORS), *(("go", loaded) for loaded in ("nothing", "threading", "pools"))],
)
def test_a_first_use_in_an_exit_hook_is_refused(door, loaded):
    """It was accepted, and lost without a word: what `atexit` registers while it runs is never called."""
    imports = {"nothing": "", "threading": "import threading", "asyncio": "import asyncio"}
    imports["pools"] = "import asyncio, concurrent.futures.thread"

    def program():
        import atexit

        exec(imports[loaded])
        atexit.register(first_use, door)

    result = run_child(program)

    assert result == (REFUSED, "", 0, result.seconds)


@pytest.mark.promise("It is refused in every form of hook, and in a thread of one too")
@pytest.mark.parametrize("hook", ["a method", "a partial", "an object", "a finaliser", "a thread"])
def test_a_first_use_in_any_hook_is_refused(hook):
    def program():
        import atexit
        import functools
        import weakref

        class Hook:
            def method(self):
                first_use("go")

            __call__ = method

        if hook == "a method":
            atexit.register(Hook().method)
        elif hook == "a partial":
            atexit.register(functools.partial(functools.partial(first_use), "go"))
        elif hook == "an object":
            atexit.register(Hook())
        elif hook == "a finaliser":
            weakref.finalize(Hook, first_use, "go")
        else:
            import threading

            go_on, done = threading.Event(), threading.Event()

            def wait_and_use():
                go_on.wait()
                first_use("go")
                done.set()

            def let_it_go_on():
                go_on.set()
                done.wait(10)

            threading.Thread(target=wait_and_use, daemon=True).start()
            atexit.register(let_it_go_on)

    result = run_child(program)

    assert result == (REFUSED, "", 0, result.seconds)


@pytest.mark.promise("A first use by a thread that outlives main is accepted and done, whatever was loaded before")
@pytest.mark.skipif(not STARTS_THREADS, reason="this Python starts no thread once main has ended")
@pytest.mark.parametrize("loaded", ["", "asyncio", "concurrent.futures.thread"])
@pytest.mark.parametrize("how", ["a thread", "a hook of threading"])
def test_a_first_use_by_what_outlives_main_is_done(how, loaded):
    """Where nobody had loaded the module of the pools before it, the import of omniloop failed."""
    if os.environ.get("OMNILOOP_LOOP") == "uvloop" and loaded != "concurrent.futures.thread":
        pytest.skip("uvloop imports that module, which can't be loaded any more: the first use is refused")

    def program():
        import importlib
        import threading

        if loaded:
            importlib.import_module(loaded)

        def use():
            import asyncio

            import omniloop

            async def work():
                # On the loop's own pool, whose class can't be loaded any more.
                await asyncio.to_thread(int)
                os.write(1, b"done\n")

            omniloop.go(work())
            os.write(1, b"%d\n" % omniloop.to_thread(sum, [1, 2]).result(5))

        def outlive_main():
            threading.main_thread().join()
            use()

        if how == "a thread":
            threading.Thread(target=outlive_main).start()
        else:
            threading._register_atexit(use)

    result = run_child(program)

    assert sorted(result.stdout.split()) == ["3", "done"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.skipif(not STARTS_THREADS, reason="this Python does not fork either once main has ended")
@pytest.mark.promise("A child that an exit hook forks after the last drain refuses too")
def test_a_child_that_is_forked_after_the_last_drain_refuses():
    def before_the_import():
        import atexit

        @atexit.register
        def fork_and_use():
            import os

            pid = os.fork()
            if pid == 0:
                first_use("go")
            else:
                os.waitpid(pid, 0)

    def program():
        import omniloop

        omniloop.go

    result = run_child(before_the_import, program)

    assert result == (REFUSED, "", 0, result.seconds)
