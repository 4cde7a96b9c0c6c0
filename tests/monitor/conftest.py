"""What the tests of the monitor share."""

import pytest
from targets import place

import omniloop


@pytest.fixture
def env(monkeypatch):
    """An environment for targets, which this process asks in, too."""
    with place() as made:
        monkeypatch.setenv("XDG_RUNTIME_DIR", made["XDG_RUNTIME_DIR"])
        yield made
        # One that could not listen is wanted all the same, by the next start.
        omniloop.configure(monitor=False)
