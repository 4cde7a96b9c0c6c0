"""
Runs the core's own tests where nothing but the core is: `python tests/alone.py [pytest's arguments, paths below tests/]`.

The core is copied away from its guests, and the tests of its four folders beside it. A test that uses a guest is not run: one whose source,
or the source of what it names, has a word for one of them.
"""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from floor_plan import CORE, FLOORS
from programs import source_of

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "src" / "omniloop"
FOLDERS = ("work", "life", "process", "runtime")

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Expr)

# What a test of a guest says: the guests' names, and those of the libraries that they know.
_GUESTS = re.compile(
    r"(?<![a-z])(?<!os\.set_)(TaskGroup|Iteration|Queue|Resource|ProcessPool|Blocking|aiterate|background|blocking|enter|iterate|queue|resource|to_process"
    r"|omniloop\.map|dump|timings|watchdog|monitor|progress|ext|testing|trio|asgiref|anyio|sniffio|uvloop"
    # What guests tell, on a terminal or in the log.
    r"|services|will_lose|process_1_is_told|the_advice_is|omniloop[.\w]*\.("
    + "|".join(sorted(set().union(*FLOORS.values()) - CORE))
    + r"))(?![a-z])",
    re.IGNORECASE,
)


def copy_package(parts: Iterable[str], target: Path) -> None:
    """Copy those *parts* of the package, modules and folders, to *target*."""
    target.mkdir(parents=True)
    for part in parts:
        if (PACKAGE / part).is_dir():
            shutil.copytree(PACKAGE / part, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PACKAGE / f"{part}.py", target)


def run_alone(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Copy the core and its tests to *folder*, and run them there with pytest's *arguments*."""
    copy_package(CORE, folder / "src" / "omniloop")
    shutil.copy(TESTS.parent / "pyproject.toml", folder)
    for path in TESTS.glob("*.py"):
        (folder / "tests").mkdir(exist_ok=True)
        shutil.copy(path, folder / "tests")
    for name in FOLDERS:
        shutil.copytree(TESTS / name, folder / "tests" / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Without what makes a worker of a pytest that runs around this one.
    around = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env = {**around, "PYTHONPATH": os.pathsep.join([str(folder / "src"), str(folder / "tests")])}
    command = [sys.executable, "-m", "pytest", "-p", "alone", "-p", "no:cacheprovider", *(arguments or ["tests"])]
    return subprocess.run(command, cwd=folder, env=env, text=True, check=False)


# --- as a plugin of that pytest ---------------------------------------------------------------------------------------


def pytest_configure() -> None:
    import omniloop

    for name, module in omniloop._LAZY.items():
        if module.partition(".")[0] not in CORE:
            # A file of tests may import it, for tests that are not run.
            setattr(omniloop, name, None)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if collection_path.suffix != ".py":
        return None
    # What the file needs as a whole stands at its top.
    top = [node for node in ast.parse(collection_path.read_text()).body if not isinstance(node, _DEFINITIONS)]
    return any(map(_is_of_guest, [collection_path.stem, *map(ast.unparse, top)])) or None


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    kept = [item for item in items if not any(map(_is_of_guest, [item.name, *map(_source, _functions(item))]))]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _is_of_guest(source: str) -> bool:
    if "run_child" not in source:
        # A child imports all that is named there.
        source = re.sub(r"^from omniloop import .*", "", source, flags=re.MULTILINE)
    return _GUESTS.search(source) is not None


def _functions(item: Any) -> list[Any]:
    """The test's own, and those that it is given as parameters."""
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return [item.function, *filter(inspect.isfunction, given)]


def _source(function: Any) -> str:
    try:
        return source_of(function)
    except (TypeError, SyntaxError, KeyError):
        # No program: it binds what one can't be given, or returns; or it is a lambda.
        return inspect.getsource(function)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(run_alone(Path(temporary, "alone"), sys.argv[1:]).returncode)
