"""What holds for every test: a `Runtime` of its own is shut down at the end, so that no thread is left behind."""

import gc
import inspect
import logging
import os
import platform
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from _pytest.junitxml import xml_key

import not_on_pypy
import omniloop
from omniloop._process import fork

try:
    import fcntl
except ImportError:
    # Not on Windows, where all run side by side then.
    fcntl = None

if sys.dont_write_bytecode:
    # Not beside the sources then; but a thousand children would each compile the package, and all that they import.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.path.expanduser("~/.cache/omniloop/bytecode")
    # For them, and for the workers.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# A script's background jobs (`pytest &`) are born deaf to Ctrl-C, and so would be the children that are tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What asyncio's debug mode remarks about a busy machine, as in `children.without_remarks`.
logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing <"))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """The report of a session says which Python it was: `.ci/platforms.py` writes that down."""
    if (report := config.stash.get(xml_key, None)) is not None:
        version = platform.python_version()
        if sys.implementation.name == "pypy":
            version += " ({}.{}.{})".format(*sys.pypy_version_info)
        elif not getattr(sys, "_is_gil_enabled", lambda: True)():
            version += "t"
        report.add_global_property("python", f"{platform.python_implementation()} {version}")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One or two files are done before workers have come up; and in the same process there is `--pdb`, and `-s`."""
    few = len(config.args) <= 2 and all(".py" in arg for arg in config.args)
    # Two more than there are cores: half of the tests' time is a wait for a child, a server or a deadline.
    return 0 if few else (os.cpu_count() or 1) + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.parent.name)
        if sys.implementation.name == "pypy":
            # All of a test's parameters, or one.
            for name in {item.name, getattr(item, "originalname", item.name)}:
                if reason := not_on_pypy.SKIPPED.get(f"{item.path.name}::{name}"):
                    item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


@pytest.fixture(autouse=True, scope="module")
def _what_is_loaded_is_not_searched_for_garbage() -> Iterator[None]:
    """A collection, which many tests ask for, takes a tenth of its time so where Django, mypy and servers are loaded."""
    if not hasattr(gc, "freeze"):
        # PyPy.
        yield
        return
    gc.freeze()
    yield
    # Hypothesis, say, looks through the collector's lists at the end.
    gc.unfreeze()


if sys.implementation.name == "pypy":

    @pytest.fixture(autouse=True, scope="session")
    def _what_is_dropped_is_soon_collected() -> Iterator[None]:
        """What waits for a finaliser waits for the collector."""

        def collect() -> None:
            while not over.wait(0.5):
                # A finaliser may raise what a test wants it to.
                with suppress(Exception):
                    gc.collect()

        over = threading.Event()
        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        yield
        over.set()
        thread.join(5)

    @pytest.fixture(autouse=True)
    def _what_a_test_drops_warns_while_its_own_filters_hold(request: pytest.FixtureRequest) -> Iterator[None]:
        """A coroutine that a test may leave behind, or a file, is not found in the middle of another."""
        yield
        if request.node.get_closest_marker("filterwarnings"):
            # What has a finaliser and is referred to by what has one too is found by the next collection.
            for _ in range(3):
                gc.collect()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that runs alone waits until the other workers are between two tests, and keeps them there."""
    if fcntl is None or "PYTEST_XDIST_TESTRUNUID" not in os.environ:
        return (yield)
    turn = os.path.join(tempfile.gettempdir(), f"omniloop-tests-{os.environ['PYTEST_XDIST_TESTRUNUID']}")
    with open(turn, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)


@pytest.fixture(autouse=True)
def _no_runtime_is_left_behind() -> Iterator[None]:
    before = set(fork.watched)

    yield

    # The shared runtime may go on: it serves the whole session, on the loop that OMNILOOP_LOOP names.
    left = fork.watched - before - {omniloop.shared_runtime()}
    for runtime in left:
        runtime.shutdown(timeout=0)
    assert not left, f"shut down each Runtime that a test makes: {left}"


@pytest.fixture
def failures() -> list[omniloop.Failure]:
    """What `runtime` reported."""
    return []


@pytest.fixture
def runtime(request: pytest.FixtureRequest, failures: list[omniloop.Failure]) -> Iterator[omniloop.Runtime]:
    """A runtime for one test; unless the test asks for `failures`, it must not report any."""
    with omniloop.Runtime(name="tested", on_error=failures.append) as runtime:
        yield runtime
    if "failures" not in inspect.signature(request.function).parameters:
        assert failures == []
