"""Reads the package's source: imports go down only, and each power has one home."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import omniloop
from floor_plan import FLOORS

PACKAGE = Path(omniloop.__file__).parent

NAMES = list(FLOORS)

# Which module may do what; a test of its own for each.
HOMES = {
    "threads": ({"_thread.start_new_thread", "threading.Thread", "threading.Timer"}, {"_threads", "_process.fork"}),
    "exit and fork hooks": (
        {"atexit.register", "os.register_at_fork", "threading._register_atexit", "call_early_at_exit", "signal.signal", "weakref.finalize"},
        {"_cpython", "_process.exit", "_process.fork", "_process.signals"},
    ),
    "logging": ({"logging"}, {"_report", "ext.logging"}),
    "worker pools": ({"concurrent.futures.ThreadPoolExecutor", "concurrent.futures.thread.ThreadPoolExecutor"}, {"_life.workers"}),
}  # fmt: skip


def modules() -> list[str]:
    """Every module of the package by its name within it: `_work.task`, `ext.flask`; a package by its own name."""
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = [path.parent if path.name == "__init__" and path.parent.name else path for path in paths]
    return sorted(path.as_posix().replace("/", ".") for path in names)


def tree_of(module: str) -> ast.Module:
    path = PACKAGE / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def floor_of(module: str) -> int:
    """The number of the floor that *module* is on."""
    return next(number for number, rooms in enumerate(FLOORS.values()) if module.partition(".")[0] in rooms)


def imports_within(module: str) -> set[str]:
    """The modules of the package that *module* imports, anywhere in its source; those for types only count too."""
    found: set[str] = set()
    # The package that a leading dot means, within omniloop: "" or "ext".
    here = module if (PACKAGE / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "omniloop"}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = here.split(".") if here else []
                parts = parts[: len(parts) - (node.level - 1)]
                base = ".".join(["omniloop", *parts, *([node.module] if node.module else [])])
            else:
                base = node.module or ""
            if base.split(".")[0] == "omniloop":
                known = set(modules())
                for alias in node.names:
                    inner = f"{base}.{alias.name}".removeprefix("omniloop.")
                    found.add(f"omniloop.{inner}" if inner in known else base)
    return {name.removeprefix("omniloop").removeprefix(".") or "__init__" for name in found}


def names_used(module: str) -> Iterator[str]:
    """The dotted names that *module* uses or imports, with `import … as` and `from … import` undone."""
    tree = tree_of(module)
    meant: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                meant[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                meant[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
                yield node.module or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            dotted = ast.unparse(node.func)
            first, dot, rest = dotted.partition(".")
            yield meant.get(first, first) + dot + rest
            if dotted == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                yield f"{ast.unparse(node.args[0])}.{node.args[1].value}"


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_only(module):
    floor = floor_of(module)

    wrong = {other for other in imports_within(module) if floor_of(other) > floor and other != "__init__"}

    assert not wrong, (
        f"{module} ({NAMES[floor]}) imports {sorted(wrong)}: move the shared part down, or register from above"
    )


def test_no_module_leads_back_to_itself():
    known = {module: imports_within(module) - {module} for module in modules() if module != "__init__"}
    while free := {module for module, others in known.items() if not others & known.keys()}:
        known = {module: others for module, others in known.items() if module not in free}

    assert not known, f"in a circle, or leading to one: {sorted(known)}"


@pytest.mark.parametrize("power", HOMES)
def test_each_power_has_one_home(power):
    names, homes = HOMES[power]

    elsewhere = {
        module: used for module in modules() if module not in homes and (used := names & set(names_used(module)))
    }

    assert not elsewhere, f"{power}: only {sorted(homes)} may do this"


def test_every_floor_is_built():
    """A part that was renamed is renamed in the plan too."""
    assert set().union(*FLOORS.values()) == {module.partition(".")[0] for module in modules()}


def test_contributing_shows_the_floors_as_they_are():
    text = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE)

    shown = {int(number): {name.rstrip("/") for name in re.findall(r"`([\w/]+)`", names)} for number, names in rows}
    assert shown == dict(enumerate(FLOORS.values()))


@pytest.mark.parametrize(
    "package",
    ["_process", "_work", "_life", "_seen", "_guests", "_brokers", "_processes", "_bridges", "_twins", "_monitor"],
)
def test_contributing_says_where_each_part_of_a_package_is(package):
    text = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| \d+ \| `{package}/` \| (.+) \|$", text, re.MULTILINE)

    parts = {module.partition(".")[2] for module in modules() if module.startswith(f"{package}.")}
    assert set(re.findall(r"`(\w+)`", row)) == parts


def test_each_word_of_ours_is_told_in_a_line_and_is_still_used():
    text = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z -]+) \| (.+) \|$", text.partition("## Words")[2].partition("\n## ")[0], re.MULTILINE)
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))

    assert rows
    assert [
        word for word, meaning in rows if len(meaning.split()) > 15 or word.replace(" ", "_") not in source.lower()
    ] == []
