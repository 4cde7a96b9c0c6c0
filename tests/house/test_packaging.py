"""What a user gets by installing, and what a reader finds in the folder."""

import ast
import asyncio
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import omniloop
from children import run_child

ROOT = Path(__file__).resolve().parents[2]

# A build takes a second, and a minute where the machine is busy.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, built by the backend itself: pip would ask the network for it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(
        [sys.executable, "-c", f"import hatchling.build as b; b.build_wheel({str(folder)!r}); b.build_sdist({str(folder)!r})"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=100,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("omniloop-*-py3-none-any.whl")
    return zipfile.ZipFile(path)


@pytest.mark.promise(
    "Its types are part of it: `py.typed` is installed, and mypy and pyright, both strict, see the exact type of each call"
)
def test_the_wheel_holds_the_package_and_its_types(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert "omniloop/py.typed" in names
    assert names == {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.promise("Its run-time dependencies are janus and typing-extensions, and nothing else")
def test_the_wheel_needs_janus_and_typing_extensions_only(wheel):
    (path,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(wheel.read(path).decode())

    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]

    assert [line.split(">")[0].strip() for line in sorted(needed)] == ["janus", "typing-extensions"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) >= {"examples", "test", "dev", "docs", "uvloop", "bench"}


def test_the_wheel_works_by_itself(wheel, tmp_path):
    wheel.extractall(tmp_path)

    def program():
        async def work():
            await asyncio.sleep(0)
            print(omniloop.__file__)

        omniloop.go(work())

    result = run_child(
        program,
        env={"PYTHONPATH": str(tmp_path)},
    )

    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith(str(tmp_path))


def test_the_source_distribution_holds_what_a_packager_needs(built):
    (path,) = built.glob("omniloop-*.tar.gz")
    with tarfile.open(path) as archive:
        top = {name.split("/")[1] for name in archive.getnames()}
        everything = archive.getnames()

    assert {"src", "tests", "examples", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE"} <= top
    assert not [name for name in everything if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a git checkout")
def test_no_two_test_files_have_one_name():
    """pytest imports them by their names alone: the second could not be collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]

    assert sorted(names) == sorted(set(names))


def test_the_top_level_is_small():
    """A reader knows within a minute where each thing lives."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, env={**os.environ, "LC_ALL": "C"}, check=True, capture_output=True, text=True
    ).stdout

    assert {name.split("/")[0] for name in listed.splitlines()} == {
        ".ci", ".github", ".gitignore", "CONTRIBUTING.md", "LICENSE", "README.md",
        "docs", "examples", "findings", "pyproject.toml", "src", "tests",
    }  # fmt: skip


@pytest.mark.promise("Each of its run-time dependencies is used")
@pytest.mark.parametrize("module", ["janus", "typing_extensions"])
def test_what_the_wheel_needs_is_imported_by_the_package(module):
    files = Path(omniloop.__file__).parent.rglob("*.py")

    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]

    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert module in named
