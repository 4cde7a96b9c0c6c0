"""docs/reference/promises.md says what the tests promise: `python .ci/promises.py` writes it from their markers."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

spec = importlib.util.spec_from_file_location("promises", ROOT / ".ci" / "promises.py")
promises = importlib.util.module_from_spec(spec)
spec.loader.exec_module(promises)

PAGE = """# Promises

## Going

- Work goes (`tests/test_go.py::test_goes`).
- And it comes back (`tests/test_go.py::test_comes`).

## Ending

- It ends (`tests/test_end.py::test_ends`).
"""

GOES = promises.Promise("Work goes", "tests/test_go.py::test_goes")
COMES = promises.Promise("And it comes back", "tests/test_go.py::test_comes")
ENDS = promises.Promise("It ends", "tests/test_end.py::test_ends")


def test_the_page_is_what_the_tests_promise():
    page = promises.PAGE.read_text(encoding="utf-8")

    assert promises.written(page, list(promises.promises())) == page, "run: python .ci/promises.py"


def test_no_promise_is_made_twice():
    sentences = [promise.sentence for promise in promises.promises()]

    assert sorted(set(sentences)) == sorted(sentences)


def test_the_lines_keep_the_order_that_they_have_on_the_page():
    assert promises.written(PAGE, [COMES, ENDS, GOES]) == PAGE


def test_a_new_promise_comes_after_the_one_before_it_in_its_file():
    new = promises.Promise("In order.", "tests/test_go.py::test_order")

    assert promises.written(PAGE, [GOES, new, COMES, ENDS]) == PAGE.replace(
        "- And it", "- In order (`tests/test_go.py::test_order`).\n- And it"
    )
    assert promises.written(PAGE, [new, GOES, COMES, ENDS]) == PAGE.replace(
        "- Work goes", "- In order (`tests/test_go.py::test_order`).\n- Work goes"
    )


def test_the_first_of_its_file_names_its_section():
    new = promises.Promise("It is told", "tests/test_told.py::test_told", "Going")

    assert promises.written(PAGE, [GOES, COMES, ENDS, new]) == PAGE.replace(
        "test_comes`).", "test_comes`).\n- It is told (`tests/test_told.py::test_told`)."
    )
    with pytest.raises(SystemExit, match="say in which section it belongs, .* one of Going, Ending"):
        promises.written(PAGE, [GOES, COMES, ENDS, new._replace(section=None)])


def test_a_sentence_that_changes_stays_in_its_place_and_one_that_is_gone_leaves_the_page():
    assert promises.written(PAGE, [GOES._replace(sentence="Work starts"), ENDS]) == PAGE.replace(
        "- Work goes", "- Work starts"
    ).replace("- And it comes back (`tests/test_go.py::test_comes`).\n", "")
