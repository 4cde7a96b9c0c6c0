"""`name`, `context`, `daemon` and `timeout` mean the same in every call that has them; the reference has a table of them."""

import inspect
import re
from pathlib import Path

import pytest

import omniloop
from omniloop import ProcessPool, Resource, Runtime, TaskGroup

OPTIONS = ("name", "context", "daemon", "timeout")

# Every call that starts work.
CALLS = {
    "go": omniloop.go,
    "try_go": omniloop.try_go,
    "TaskGroup.go": TaskGroup.go,
    "Resource.go": Resource.go,
    "background": omniloop.background,
    "TaskGroup.create_task": TaskGroup.create_task,
    "every": omniloop.every,
    "call_soon": omniloop.call_soon,
    "call_later": omniloop.call_later,
    "call_at": omniloop.call_at,
    "TaskGroup.call_soon": TaskGroup.call_soon,
    "to_thread": omniloop.to_thread,
    "TaskGroup.to_thread": TaskGroup.to_thread,
    "to_process": omniloop.to_process,
    "ProcessPool.to_process": ProcessPool.to_process,
}


def options_of(call):
    return {option for option in OPTIONS if option in inspect.signature(call).parameters}


@pytest.mark.promise("The reference has a table of which call takes which option", section="Submitting")
def test_the_table_of_options_is_that_of_the_signatures():
    page = Path(__file__).parents[2] / "docs" / "reference" / "api" / "starting.md"
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)

    shown = {
        call: {option for option, cell in zip(OPTIONS, cells.split(" | "), strict=True) if cell == "yes"}
        for call, cells in rows
    }
    assert shown == {name: options_of(call) for name, call in CALLS.items()}


@pytest.mark.promise(
    "`name`, `context`, `daemon` and `timeout` are keyword-only, with the same defaults everywhere",
    section="Submitting",
)
@pytest.mark.parametrize("call", CALLS)
def test_an_option_has_the_same_default_everywhere(call):
    found = inspect.signature(CALLS[call]).parameters

    for option in options_of(CALLS[call]):
        assert found[option].kind is inspect.Parameter.KEYWORD_ONLY
        assert found[option].default is (False if option == "daemon" else None)


@pytest.mark.promise("`to_thread` and `to_process` hand every keyword on to the function", section="Submitting")
def test_calls_that_hand_keywords_on_take_none_of_their_own():
    def given(**keywords):
        return keywords

    options = {"name": 1, "context": 2, "daemon": 3, "timeout": 4, "limit": 5, "executor": 6}
    with Runtime() as runtime, TaskGroup(runtime=runtime) as group:
        assert runtime.to_thread(given, **options).result(timeout=5) == options
        assert group.to_thread(given, **options).result(timeout=5) == options
    for call in ("to_thread", "to_process", "TaskGroup.to_thread", "ProcessPool.to_process"):
        kinds = [it.kind for name, it in inspect.signature(CALLS[call]).parameters.items() if name != "self"]
        assert kinds == [
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ]
