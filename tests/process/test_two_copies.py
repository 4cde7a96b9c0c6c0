"""
Two copies of the package in one process: one of them vendored under another name, or imported a second time.

Each has a runtime, hooks and marks of its own; neither undoes what the other has set.
"""

import asyncio
import importlib
import os
import re
import shutil
import signal
import sys
import time

import pytest

import omniloop
from children import SRC, run_child

in_both_ways = pytest.mark.parametrize("how", ["vendored", "imported twice"])


@pytest.fixture
def folder(how, tmp_path):
    """Where the vendored copy can be imported from."""
    if how == "vendored":
        package = tmp_path / "acme" / "vendored"
        package.mkdir(parents=True)
        for parent in (package.parent, package):
            (parent / "__init__.py").touch()
        shutil.copytree(SRC / "omniloop", package / "omniloop", ignore=shutil.ignore_patterns("__pycache__"))
        for module in (package / "omniloop").rglob("*.py"):
            # As the tools that vendor do it.
            source = re.sub(r"\b(from|import) omniloop\b", r"\1 acme.vendored.omniloop", module.read_text())
            module.write_text(source)
    return str(tmp_path)


def another(how, folder):
    """The other copy."""
    if how == "vendored":
        sys.path.insert(0, folder)
        return importlib.import_module("acme.vendored.omniloop")
    for name in [name for name in sys.modules if name.partition(".")[0] == "omniloop"]:
        del sys.modules[name]
    return importlib.import_module("omniloop")


async def work(what):
    await asyncio.sleep(0.05)
    await asyncio.to_thread(int)
    os.write(1, f"{what} is done\n".encode())
    return what


def lines(result):
    return sorted(result.stdout.splitlines())


@pytest.mark.promise(
    "Two copies of omniloop in one process, one of them vendored say, both drain at exit, and each may wait for the other's work",
    section="Several runtimes",
)
@in_both_ways
def test_both_are_drained_at_exit(how, folder):
    def program():
        # Not the other one, where the import is lazy.
        omniloop.run
        other = another(how, folder)

        async def on_both():
            return await other.go(work("awaited")), await omniloop.to_thread(other.run, work("waited for"))

        assert omniloop.shared_runtime() is not other.shared_runtime()
        omniloop.go(work("one"))
        other.go(work("the other"))
        assert omniloop.run(on_both()) == ("awaited", "waited for")
        with omniloop.TaskGroup() as one, other.TaskGroup() as two:
            one.go(work("one's group"))
            two.go(work("the other's group"))

    result = run_child(program)

    done = ["awaited", "one", "one's group", "the other", "the other's group", "waited for"]
    assert lines(result) == [f"{what} is done" for what in done]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("In a forked child both begin anew, and what both had begun in the parent goes on there alone")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@in_both_ways
def test_both_begin_anew_in_a_forked_child(how, folder):
    def program():
        other = another(how, folder)
        omniloop.go(work("one"))
        other.go(work("the other"))
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        else:
            assert not omniloop.tasks() and not other.tasks()
            assert omniloop.run(work("one in the child")) and other.run(work("the other in the child"))
            omniloop.go(work("one that the child forgets"))
            other.go(work("the other that the child forgets"))

    result = run_child(program, flags=["-W", "ignore::DeprecationWarning"])

    whose = ["", " in the child", " that the child forgets"]
    assert lines(result) == sorted(f"{which}{what} is done" for which in ("one", "the other") for what in whose)
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise('Both drain on SIGTERM where both were told so by `sigterm="drain"`, and the process dies of it')
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("slow", ["one", "the other"])
@in_both_ways
def test_both_drain_on_sigterm(how, folder, slow):
    """The second found the first one's handler, took it for the program's, and was lost when that had drained."""

    def program():
        other = another(how, folder)
        omniloop.configure(sigterm="drain")
        other.configure(sigterm="drain")

        async def slowly(what):
            await asyncio.sleep(0.5)
            await work(what)

        omniloop.go((slowly if slow == "one" else work)("one"))
        other.go((slowly if slow == "the other" else work)("the other"))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    result = run_child(program)

    assert lines(result) == ["one is done", "the other is done"]
    assert (result.stderr, result.code) == ("", -signal.SIGTERM)


@in_both_ways
def test_a_handler_that_shuts_down_in_the_first_use_of_the_other_returns_at_once(how, folder):
    """A vendored copy did not know its own frames by their name, and waited for what the interrupted one of them held."""

    def program():
        other = another(how, folder)

        def handler(number, frame):
            other.shutdown()
            print("the handler is back", flush=True)

        def interrupts(frame, event, arg):
            if event == "line" and frame.f_globals["__name__"].endswith("._life.thread"):
                sys.settrace(None)
                os.kill(os.getpid(), signal.SIGINT)
            return interrupts

        signal.signal(signal.SIGINT, handler)
        sys.settrace(interrupts)
        other.go(work("the other"))
        sys.settrace(None)

    result = run_child(program)

    # The work was done, or is named.
    assert "the handler is back" in lines(result)
    assert "the other is done" in lines(result) or "were not started" in result.stderr


@pytest.mark.promise("`importlib.reload(omniloop)`, and a second import of the package alone, give the same runtime")
@pytest.mark.parametrize("how", ["reloaded", "imported again"])
def test_a_reload_and_a_second_import_of_the_package_give_the_same_runtime(how):
    def program():
        forgotten = omniloop.go(work("before"))
        if how == "reloaded":
            again = importlib.reload(omniloop)
        else:
            del sys.modules["omniloop"]
            again = importlib.import_module("omniloop")
        assert again.shared_runtime() is omniloop.shared_runtime()
        assert again.Task is type(forgotten)
        again.go(work("after"))

    result = run_child(program)

    assert lines(result) == ["after is done", "before is done"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.skipif(sys.version_info < (3, 15), reason="imports can be lazy from 3.15 on")
@in_both_ways
def test_nothing_of_the_other_is_left_to_be_imported_later(how, folder):
    """Of a vendored copy all was: it looked for its modules by the first part of its name."""

    def program():
        other = another(how, folder)
        other.run, other.TaskGroup
        print(
            *(
                f"{module}.{name}"
                for module in list(sys.modules)
                if module.startswith(other.__name__)
                for name, value in list(vars(sys.modules[module]).items())
                if type(value).__name__ == "lazy_import"
            )
        )

    result = run_child(program, flags=["-X", "lazy_imports=all"])

    assert result == ("\n", "", 0, result.seconds)


@pytest.mark.promise("A twin in a vendored copy leaves the copy's own objects alone")
@pytest.mark.parametrize("how", ["vendored"])
def test_a_twin_of_a_vendored_copy_leaves_its_own_objects_alone(how, folder):
    """Its classes were known by the name that the package has where it is not vendored."""

    def program():
        copy = another(how, folder)

        class Sdk:
            async def opened(self):
                return copy.resource(lambda: None)

        print(type(copy.blocking(Sdk)().opened()) is copy.Resource)

    result = run_child(program)

    assert result == ("True\n", "", 0, result.seconds)
