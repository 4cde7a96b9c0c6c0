"""What the tests of the monitor share."""

import pytest
from targets import place


@pytest.fixture
def env(monkeypatch):
    """An environment for targets, which this process asks in, too."""
    with place() as made:
        monkeypatch.setenv("XDG_RUNTIME_DIR", made["XDG_RUNTIME_DIR"])
        yield made
