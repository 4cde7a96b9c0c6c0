"""What the page on typing says in its comments is what the type checkers say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from children import child_environment

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "typing.md"
LINE = re.compile(r"^(?P<indent> *)(?P<code>\S.*?)  # (?P<type>[^;]+)(?:; (?P<wrong>.+) is an error|; `.*)?$")


def program() -> str:
    """The page's blocks, with an `assert_type` for each comment."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [
        "# pyright: basic, reportUnnecessaryTypeIgnoreComment=true",
        "from typing import assert_type",
        "from omniloop import Task",
    ]
    for line in "\n".join(blocks).splitlines():
        found = LINE.match(line)
        if found is None:
            lines.append(line)
            continue
        indent, code, kind, wrong = found.groups()
        if name := re.fullmatch(r"for (\w+) in .*:|with .* as (\w+):", code):
            lines += [code, f"    assert_type({name[1] or name[2]}, {kind})"]
        elif name := re.match(r"(\w+) = ", code):
            lines += [line, f"{indent}assert_type({name[1]}, {kind})"]
        else:
            lines.append(f"{indent}assert_type({code}, {kind})")
        if wrong is not None:
            lines.append(f"{indent}{wrong}  # type: ignore[arg-type]")
    return "\n".join(lines) + "\n"


@pytest.mark.promise("What the page on typing says of types is what mypy and pyright say", section="The package")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_the_checkers_say_what_the_page_says(checker, tmp_path):
    pytest.importorskip(checker)
    text = program()
    assert text.count("assert_type(") >= 15
    (tmp_path / "page.py").write_text(text, encoding="utf-8")

    command = {"mypy": ["mypy", "--strict"], "pyright": ["pyright", "--pythonpath", sys.executable]}[checker]
    ended = subprocess.run(
        [sys.executable, "-m", *command, "page.py"],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
