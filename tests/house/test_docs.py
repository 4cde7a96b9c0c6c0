"""Runs every ```python block of the README and the docs, each as a file of its own, as a reader pastes it."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from children import child_environment, without_remarks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(
    r"^(?P<mark><!-- (?:not run|needs).*?-->\n+)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
OUTPUT = re.compile(r"\s*```text\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)

# By these words, which the reader sees, a block is added to the file of the one before; the sentence says it for a whole page.
GOES_ON = "# Goes on from the block above."
ALL_GO_ON = "Each block goes on where the one before stopped: put them into one file, one after the other, and run it."

# What a page's engine needs, by its door: not all of them have wheels for the newest Python.
ENGINES = {"taskiq": "taskiq", "procrastinate": "procrastinate"}
# What a page is about; the suite does without them too.
LIBRARIES = {"asgiref", "celery", "django", "flask", "opentelemetry", "prometheus_client"}


class Block(NamedTuple):
    page: str
    line: int
    code: str
    # What the page says that the block prints, if a ```text block follows it.
    output: str | None
    runs: bool
    goes_on: bool = False
    # What the page says that those above print.
    before: str = ""


def can_run(mark: str | None) -> bool:
    """`<!-- needs stamina -->` before a block: it runs where that is installed."""
    if mark is None:
        return True
    needs = re.match(r"<!-- needs ([\w., ]+?) -->", mark)
    return needs is not None and all(importlib.util.find_spec(module) for module in needs[1].split(", "))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for match in BLOCK.finditer(text):
        output = OUTPUT.match(text, match.end())
        code, before, goes_on = match["code"], "", False
        runs = can_run(match["mark"])
        if runs and (code.startswith(GOES_ON) or (found and ALL_GO_ON in text)):
            above = found[-1]
            assert above.runs, f"{name(page)}: a block goes on from one that is not run"
            goes_on = True
            code, before = above.code + "\n\n" + code, above.before + (above.output or "")
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(name(page), line, code, output["text"] if output else None, runs, goes_on, before))
    return found


def is_shown(shown: str, printed: str) -> bool:
    """Whether *printed* is the lines of *shown*. An ellipsis stands for what differs from run to run; on a line of its own, for any lines."""
    lines = [line.rstrip() for line in shown.splitlines()]
    patterns = [r"(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n" for line in lines]
    return re.fullmatch("".join(patterns), "".join(line.rstrip() + "\n" for line in printed.splitlines())) is not None


RUNNING = [block for page in PAGES for block in blocks(page) if block.runs]


@pytest.mark.promise(
    "Every code block of the README and of these pages runs, each as a file of its own", section="The package"
)
@pytest.mark.parametrize("block", RUNNING, ids=[f"{block.page}:{block.line}" for block in RUNNING])
def test_every_block_runs_as_a_file_of_its_own(block, tmp_path):
    """In a fresh interpreter; what it prints is what the page shows below it, after what the blocks above print that it goes on from."""
    for door, module in ENGINES.items():
        if f"omniloop.ext.{door} " in block.code:
            pytest.importorskip(module)
    for library in LIBRARIES & set(re.findall(r"^ *(?:import|from) (\w+)", block.code, re.MULTILINE)):
        pytest.importorskip(library)
    file = tmp_path / "pasted.py"
    file.write_text(block.code, encoding="utf-8")

    result = subprocess.run(
        [sys.executable, str(file)],
        cwd=tmp_path,
        # Buffered, or what several threads print at once is mixed within a line.
        env=child_environment({"PYTHONUNBUFFERED": ""}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )

    printed = result.stdout + without_remarks(result.stderr)
    assert result.returncode == 0, printed
    if block.output is not None and block.goes_on:
        # What ends the program comes last, and so do the lines that a block above leaves for the end.
        missing = [
            line
            for line in (block.before + block.output).splitlines()
            if not any(is_shown(line, other) for other in printed.splitlines())
        ]
        assert not missing, printed
    elif block.output is not None:
        assert is_shown(block.output, printed), f"the page shows\n{block.output}\nand it prints\n{printed}"
    else:
        assert not without_remarks(result.stderr)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_block_that_does_not_run_says_why(page):
    for mark in re.findall(r"<!-- not run(.*?)-->", page.read_text(encoding="utf-8")):
        assert re.fullmatch(r": \S.*", mark.strip(), re.DOTALL), f"{name(page)}: write <!-- not run: reason -->"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"
