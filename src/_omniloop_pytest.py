"""
The pytest plugin of omniloop: fixtures for tests, and, if the project asks for it, a check of each test for leaked work.

It lies beside the package, because pytest loads it wherever omniloop is installed: importing the package here would slow down every
project's test run. The fixtures are implemented in `omniloop.testing`, which the first used fixture imports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from omniloop import Runtime
    from omniloop.testing import Clock


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "omniloop_timeout",
        "Seconds that work which a test leaves behind has until it counts as leaked.",
        default="5",
    )
    parser.addini(
        "omniloop_strict",
        "Flush the shared runtime after each test, and fail the test that left work which does not end.",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    text = config.getini("omniloop_timeout")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise pytest.UsageError(f"omniloop_timeout={text!r}: give seconds as a number of 0 or more.")
    if config.getini("omniloop_strict"):
        config.pluginmanager.register(_Judge(), "omniloop_strict")


class _Judge:
    """Checks each test for leaked work. Registered only if the project asks for it, because the hook costs time in every test."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        # After the teardown of the fixtures, which may still submit work.
        yield
        if "omniloop" in sys.modules:
            from omniloop.testing import judge

            judge(_timeout(item.config))


@pytest.fixture
def omniloop_runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """
    Provide a fresh `Runtime`, which runs by `omniloop_clock` if the test uses that fixture too.

    The test fails if it leaves work that does not end, or an error that nobody asked for. The message says where each was submitted.
    """
    from omniloop.testing import strict_runtime

    yield from strict_runtime(_clock(request), _timeout(request.config))


@pytest.fixture
def omniloop_shared(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """Provide the shared runtime, which the module's functions such as `go` use: fresh, and as strict as `omniloop_runtime`."""
    from omniloop.testing import strict_shared

    _clock(request)
    yield from strict_shared(_timeout(request.config))


@pytest.fixture
def omniloop_clock(request: pytest.FixtureRequest) -> Iterator[Clock]:
    """Provide a `Clock` for the module's functions and for `omniloop_runtime`: time stands still until the test calls `advance`."""
    from omniloop.testing import shared_by_clock

    yield from shared_by_clock(_timeout(request.config))


def _clock(request: pytest.FixtureRequest) -> Clock | None:
    if "omniloop_clock" not in request.fixturenames:
        return None
    clock: Clock = request.getfixturevalue("omniloop_clock")
    return clock


def _timeout(config: pytest.Config) -> float:
    return float(config.getini("omniloop_timeout"))
