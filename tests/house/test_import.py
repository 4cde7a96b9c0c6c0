"""What importing the package does: next to nothing."""

import builtins
import os
import sys
import threading

import pytest

import omniloop
from children import run_child


@pytest.mark.promise(
    "Importing it starts no thread, makes no event loop, and loads neither janus nor any part that is not used"
)
def test_importing_starts_and_loads_nothing():
    def program():
        def descriptors():
            return set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else set()

        before = descriptors()
        assert threading.enumerate() == [threading.main_thread()]
        # A loop opens a selector and a pair of sockets.
        assert descriptors() == before, descriptors() - before
        assert not {"janus", "uvloop", "trio", "anyio", "flask", "django", "multiprocessing"} & sys.modules.keys()
        print(*sorted(name.partition(".")[2] for name in sys.modules if name.startswith("omniloop.")))

    result = run_child(program)

    assert (result.code, result.stderr) == (0, "")
    bridges = [
        name for name in result.stdout.split() if name.startswith(("_bridges.", "_brokers.", "_processes.", "_twins."))
    ]
    assert bridges == [], "a bridge loads on first use"


def test_every_public_name_can_be_had_and_is_sorted():
    """Also those that load on first use."""

    def program():
        assert omniloop.__all__ == sorted(omniloop.__all__), "sort __all__"
        for name in omniloop.__all__:
            assert getattr(omniloop, name) is not None, name
        assert set(omniloop.__all__) <= set(dir(omniloop))

    result = run_child(program)

    assert (result.code, result.stderr) == (0, "")


@pytest.mark.promise("Importing it loads little that `import asyncio, concurrent.futures` does not")
def test_importing_loads_little_that_asyncio_does_not():
    """What it costs is measured in `tests/benchmarks`; here it is named."""

    def program():
        before = set(sys.modules)
        print(*sorted(name for name in set(sys.modules) - before if name.partition(".")[0] != "omniloop"))

    result = run_child(program)

    assert (result.code, result.stderr) == (0, "")
    # From 3.14 on asyncio does without typing.
    assert set(result.stdout.split()) <= {
        "__future__",
        "_queue",
        "_typing",
        "concurrent.futures.thread",
        "mmap",
        "queue",
        "typing",
    }


def test_a_first_run_makes_no_class_that_is_dear_to_make():
    """An enum, a named tuple, a protocol or a data class takes as long to make as a small module to load."""

    def program():
        import asyncio
        import builtins
        import dataclasses
        import enum
        import typing

        make, decorate, dear = builtins.__build_class__, dataclasses.dataclass, []

        def is_ours(frame):
            return frame.f_globals["__name__"].startswith("omniloop")

        def noting(body, name, /, *bases, **options):
            made = make(body, name, *bases, **options)
            protocol = getattr(made, "_is_protocol", False)
            if is_ours(sys._getframe(1)) and (
                isinstance(made, enum.EnumType) or typing.NamedTuple in bases or protocol
            ):
                dear.append(name)
            return made

        def noting_data(*args, **options):
            if is_ours(sys._getframe(1)):
                dear.append(args)
            return decorate(*args, **options)

        builtins.__build_class__ = noting
        dataclasses.dataclass = noting_data
        from omniloop import run

        run(asyncio.sleep(0))
        print(dear)

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("[]\n", "", 0)


@pytest.mark.promise("A star import hides neither the built-in `map` nor the module `queue`")
def test_a_star_import_hides_no_builtin():
    names: dict[str, object] = {}
    exec("from omniloop import *", names)

    assert names.keys() & {*dir(builtins), "queue"} == set()
    assert omniloop.map is not map
    assert omniloop.queue.__module__ == "omniloop._bridges.queue"


@pytest.mark.promise("The types that calls return, and hooks take, can be imported")
@pytest.mark.parametrize("name", ["Histogram", "Hook", "Site", "Timing", "WhenFull"])
def test_the_types_that_calls_return_can_be_imported(name):
    assert getattr(omniloop, name) is not None
    assert name in dir(omniloop)


def test_a_tool_that_imports_every_module_breaks_nothing():
    """The guest for a page without threads hooked itself in wherever it was imported, and took the place of the thread."""

    def program():
        import asyncio
        import importlib
        import pkgutil

        import omniloop

        for module in pkgutil.iter_modules([f"{omniloop.__path__[0]}/_guests"], "omniloop._guests."):
            importlib.import_module(module.name)
        print(omniloop.run(asyncio.sleep(0, "done")))

    result = run_child(program)

    assert result == ("done\n", "", 0, result.seconds)
