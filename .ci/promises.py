"""
Writes docs/reference/promises.md from the tests: `python .ci/promises.py`; with `--check` it only says whether that is to be done.

A promise is a sentence, and lives with the test that shows it: `@pytest.mark.promise("It works under pytest-xdist.")`. The page
gives it its place: sections and lines keep the order that they have there, so move them as you like. A promise that is new
comes after the one before it in its file; the first of a file names its section, `promise("…", section="Fork")`.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "promises.md"


class Promise(NamedTuple):
    sentence: str
    # `tests/work/test_go.py::test_…`
    test: str
    section: str | None = None

    @property
    def line(self) -> str:
        return f"- {self.sentence.removesuffix('.')} (`{self.test}`)."


def promises() -> Iterator[Promise]:
    """All that the tests hold, file by file, in the order of their lines."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        file = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, name in _named(tree.body):
            for mark in _marks(node):
                yield Promise(*[ast.literal_eval(at) for at in mark.args], f"{file}::{name}", *_section(mark))


def _named(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[ast.stmt, str]]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node, prefix + node.name
        elif isinstance(node, ast.ClassDef):
            yield from _named(node.body, f"{node.name}::")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            # A hypothesis state machine, which is run by its TestCase.
            yield node, prefix + node.targets[0].id


def _marks(node: ast.stmt) -> Iterator[ast.Call]:
    calls = [getattr(node.value, "func", None)] if isinstance(node, ast.Assign) else node.decorator_list
    for call in calls:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.promise":
            yield call


def _section(mark: ast.Call) -> list[str]:
    return [ast.literal_eval(keyword.value) for keyword in mark.keywords if keyword.arg == "section"]


def written(page: str, held: list[Promise]) -> str:
    """*page* with the lines of the promises that are *held*, and no other."""
    lines, known = page.splitlines(), {promise.line: promise for promise in held}
    kept: list[str] = []
    for line in lines:
        if not line.startswith("- ") or (line in known and line not in kept):
            kept.append(line)
        elif line not in known and (
            reworded := [p.line for p in held if p.test in line and p.line not in lines + kept]
        ):
            kept.append(reworded[0])
    for number, promise in enumerate(held):
        if promise.line not in kept:
            kept.insert(_place(promise, held[:number], held[number + 1 :], kept), promise.line)
    return "\n".join(kept) + "\n"


def _place(promise: Promise, before: list[Promise], after: list[Promise], lines: list[str]) -> int:
    file = promise.test.partition("::")[0]
    if promise.section is None:
        same_file = [other for other in before if other.test.startswith(file + "::")]
        for other in reversed(same_file):
            # One that names another section is in the midst of the file; the first names that of all.
            if (other.section is None or other is same_file[0]) and other.line in lines:
                return lines.index(other.line) + 1
        for other in after:
            if other.test.startswith(file + "::") and other.section is None and other.line in lines:
                return lines.index(other.line)
    heading = f"## {promise.section}"
    if heading not in lines:
        sections = ", ".join(line.removeprefix("## ") for line in lines if line.startswith("## "))
        sys.exit(
            f"{promise.test} makes the first promise of its file: say in which section it belongs,"
            f' promise("…", section="…"), one of {sections}; for a new one write its heading into {PAGE.relative_to(ROOT)}'
        )
    end = lines.index(heading) + 1
    while end < len(lines) and not lines[end].startswith("## "):
        end += 1
    while not lines[end - 1]:
        end -= 1
    return end if lines[end - 1].startswith("- ") else end + 1


def main() -> int:
    page, held = PAGE.read_text(encoding="utf-8"), list(promises())
    twice = {promise.sentence for promise in held if [other.sentence for other in held].count(promise.sentence) > 1}
    if twice:
        sys.exit(f"promised twice: {sorted(twice)}")
    new = written(page, held)
    if "--check" in sys.argv:
        if new != page:
            print(f"{PAGE.relative_to(ROOT)} is not what the tests promise: run python .ci/promises.py")
            for line in sorted(set(new.splitlines()) ^ set(page.splitlines())):
                print(("missing: " if line in new.splitlines() else "too much: ") + line)
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
