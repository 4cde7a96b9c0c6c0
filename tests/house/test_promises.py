"""docs/reference/promises.md is the list of promises: each line names its test, and each test is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reference" / "promises.md").read_text(encoding="utf-8")
PROMISES = [line.removeprefix("- ") for line in TEXT.splitlines() if line.startswith("- ")]


@cache
def names_in(path: Path) -> frozenset[str]:
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            # A hypothesis state machine is a class, and is run by its TestCase.
            found |= {node.name} | {
                f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)
            }
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(found)


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_names_a_test_that_is_there(promise):
    named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)(?:\[[^`]*\])?`", promise)

    assert named, f"{promise!r} names no test: end it with (`tests/test_x.py::test_y`)"
    for file, test in named:
        assert (ROOT / file).exists(), f"{promise!r}: there is no {file}"
        assert test in names_in(ROOT / file), f"{promise!r}: there is no {test} in {file}"


def test_no_promise_is_made_twice():
    sentences = [promise.partition(" (`tests/")[0] for promise in PROMISES]

    assert len(set(sentences)) == len(sentences)
