"""Lazy imports, of omniloop and of everything: what is used late is done or refused in words. Each test is an interpreter of its own."""

import sys

import pytest

from children import run_child

pytestmark = pytest.mark.skipif(sys.version_info < (3, 15), reason="imports can be lazy from 3.15 on")

REFUSED = (
    "ClosedError The interpreter is exiting, and its last drain is over: nothing more can be run. Submit it earlier."
)

ALL = ["-X", "lazy_imports=all"]

EXPLICIT = """
    import asyncio, atexit
    lazy import omniloop

    async def work(name):
        await asyncio.sleep(0.01)
        print(name, "done", flush=True)

    @atexit.register
    def hook():
        try:
            omniloop.go(work("of the hook"))
            print("accepted", flush=True)
        except RuntimeError as error:
            print(type(error).__name__, error, flush=True)

    if {used}:
        omniloop.go(work("of main"))
"""


@pytest.mark.promise(
    "A lazy import changes nothing of this: an exit hook that was registered before the first use is refused",
    section="At exit",
)
@pytest.mark.parametrize("flags", [[], ALL], ids=["explicit", "all"])
@pytest.mark.parametrize("used", [True, False])
def test_a_hook_that_was_registered_before_the_first_use_is_refused(used, flags):
    result = run_child(EXPLICIT.format(used=used), flags=flags)

    assert result.stdout.splitlines() == [*(["of main done"] if used else []), REFUSED]
    assert (result.stderr, result.code) == ("", 0)


LATE = """
    import asyncio, sys
    import omniloop

    async def work():
        print("done", flush=True)

    class Last:
        def __del__(self):
            for call, what in [(omniloop.go, work()), (omniloop.run, work()), (omniloop.try_go, work()), (omniloop.call_soon, print), (omniloop.to_thread, print)]:
                try:
                    call(what)
                except BaseException as error:
                    print(type(error).__name__, error, flush=True)

    omniloop.go(work())
    # Cleared last of all, when nothing can be imported any more.
    sys.modules["last"] = Last()
"""


@pytest.mark.promise(
    "What comes after the exit is refused in the same words, and its coroutine closed, also where all imports are lazy"
)
@pytest.mark.parametrize("flags", [[], ALL], ids=["eager", "all"])
def test_what_comes_when_nothing_can_be_imported_is_refused_in_the_same_words(flags):
    result = run_child(LATE, flags=flags)

    assert result.stdout.splitlines() == ["done", *[REFUSED] * 5]
    assert (result.stderr, result.code) == ("", 0)


LATER_NAMES = """
    import sys
    import omniloop
    omniloop.go
    omniloop.TaskGroup, omniloop.resource, omniloop.blocking
    lazy = [
        f"{module}.{name}"
        for module in list(sys.modules) if module.partition(".")[0] == "omniloop"
        for name, value in list(vars(sys.modules[module]).items()) if type(value).__name__ == "lazy_import"
    ]
    print(len(lazy), lazy[:9])
"""


@pytest.mark.promise("Nothing of the package is left to be imported in a fork hook, a signal handler or the exit")
def test_nothing_of_the_package_is_left_to_be_imported_later():
    result = run_child(LATER_NAMES, flags=ALL)

    assert result == ("0 []\n", "", 0, result.seconds)


@pytest.mark.promise("A module that imports a late name of the package lazily can be loaded before that name")
def test_a_module_that_imports_late_names_lazily_can_be_loaded_first(tmp_path):
    """Getting the first late name got all that is put off; so did each of those: one was asked for while it was resolved, an ImportCycleError."""
    (tmp_path / "omniloop_guest.py").write_text("from omniloop import Queue, TaskGroup\n")
    program = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import omniloop, omniloop_guest
        omniloop_guest.__name__
        # As one of the package's own, in omniloop.ext.
        sys.modules["omniloop.guest"] = omniloop_guest
        print(omniloop.resource.__name__, omniloop_guest.TaskGroup.__name__)
    """

    result = run_child(program, flags=ALL)

    assert result == ("resource TaskGroup\n", "", 0, result.seconds)


DEADLOCK = """
    import omniloop

    async def work():
        import needed
        return "imported"

    try:
        outcome = omniloop.run(work())
    except omniloop.WouldDeadlockError as error:
        outcome = "told: " + str(error)
"""


@pytest.mark.promise("So is waiting in a module that is imported lazily")
@pytest.mark.parametrize("flags", [[], ALL], ids=["explicit", "all"])
def test_waiting_while_importing_lazily_for_work_that_imports_the_same_is_told(flags, tmp_path):
    """Nobody had imported `importlib` itself, so that its frames had another name, and the wait hung."""
    import textwrap

    (tmp_path / "needed.py").write_text(textwrap.dedent(DEADLOCK))
    program = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        lazy import needed
        print(needed.outcome)
    """

    result = run_child(program, flags=flags, env={"OMNILOOP_SLOW_CALLBACK": "none"})

    assert result.stdout.startswith("told: ") and "while importing would never end" in result.stdout
    assert (result.stderr, result.code) == ("", 0)
