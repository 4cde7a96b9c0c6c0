"""Runs every ```python block of the README and the docs, so that none can go stale."""

import importlib.util
import linecache
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import __main__
from children import run_child

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(
    r"^(?P<mark><!-- (?:not run|needs).*?-->\n+)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
OUTPUT = re.compile(r"\s*```text\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


# What a page's engine needs, by its door: not all of them have wheels for the newest Python.
ENGINES = {"taskiq": "taskiq", "procrastinate": "procrastinate"}
# What a page is about; the suite does without them too.
LIBRARIES = {"asgiref", "celery", "django", "flask", "opentelemetry", "prometheus_client"}


class Block(NamedTuple):
    code: str
    # What the page says that the block prints, if a ```text block follows it.
    output: str | None
    runs: bool


def can_run(mark: str | None) -> bool:
    """`<!-- needs stamina -->` before a block: it runs where that is installed."""
    if mark is None:
        return True
    needs = re.match(r"<!-- needs ([\w., ]+?) -->", mark)
    return needs is not None and all(importlib.util.find_spec(module) for module in needs[1].split(", "))


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        output = OUTPUT.match(text, match.end())
        # Padded, so that a traceback names the page's own line.
        line = text.count("\n", 0, match.start("code"))
        found.append(Block("\n" * line + match["code"], output["text"] if output else None, can_run(match["mark"])))
    return found


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.promise("Every code block of the README and of these pages runs")
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks(page))], ids=name)
def test_every_block_of_a_page_runs(page):
    """In order, in one interpreter, as a reader would; the output that the page shows is among what is printed."""
    running = [block for block in blocks(page) if block.runs]
    for engine in {
        module for block in running for door, module in ENGINES.items() if f"omniloop.ext.{door} " in block.code
    }:
        pytest.importorskip(engine)
    for block in running:
        for library in LIBRARIES & set(re.findall(r"^ *(?:import|from) (\w+)", block.code, re.MULTILINE)):
            pytest.importorskip(library)
    title, sources = name(page), [block.code for block in running]

    # One namespace for the page, as in a session; each block is compiled by itself, so that a traceback names its line.
    def program():
        for number, source in enumerate(sources):
            filename = title if number == 0 else f"{title}#{number + 1}"
            linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
            exec(compile(source, filename, "exec", dont_inherit=True), vars(__main__))

    # Buffered, or what the page's threads print at once is mixed within a line.
    result = run_child(program, env={"PYTHONUNBUFFERED": ""})

    assert result.code == 0, result.stderr
    for block in running:
        for line in (block.output or "").splitlines():
            # An ellipsis stands for whatever differs from run to run.
            pattern = ".*".join(re.escape(part) for part in line.strip().split("…"))
            assert re.search(pattern, result.stdout + result.stderr), f"{name(page)} shows {line!r}; {result}"


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
