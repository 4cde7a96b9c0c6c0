"""Reads the package's source: imports go down only, and each power has one home."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import omniloop

PACKAGE = Path(omniloop.__file__).parent

# From the ground up. A module imports from lower floors only, and from no neighbour.
FLOORS = [
    {"_errors", "_settings", "_report", "_stats", "_tally", "_elsewhere"},
    {
        "_accept",
        "_first_steps",
        "_inbox",
        "_task",
        "_workers",
        "_process",
        "_waiting",
        "_periodic",
        "_progress",
        "_watchdog",
    },
    {"_loop_thread", "_ledger"},
    {"_life"},
    {"_bounds", "_drain"},
    {"_runtime"},
    {"_limits", "_shared"},
]
# Whatever is named on no floor is a bridge, except `__init__`, `testing` and `ext`: the doors.
BRIDGES, DOORS = 7, 8

# Words may be made of words.
NEIGHBOURS_THAT_MAY = {("_settings", "_errors"), ("_settings", "_report")}

# Which module may do what; a test of its own for each.
HOMES = {
    "threads": ({"_thread.start_new_thread", "threading.Thread", "threading.Timer"}, {"_loop_thread", "_workers", "_watchdog", "_process"}),
    "exit and fork hooks": (
        {"atexit.register", "os.register_at_fork", "threading._register_atexit", "signal.signal", "weakref.finalize"},
        {"_process"},
    ),
    "logging": ({"logging"}, {"_report", "ext.logging"}),
    "worker pools": ({"concurrent.futures.ThreadPoolExecutor", "concurrent.futures.thread.ThreadPoolExecutor"}, {"_workers"}),
}  # fmt: skip


def modules() -> list[str]:
    """Every module of the package by its name within it: `_task`, `ext.flask`."""
    names = [path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for path in PACKAGE.rglob("*.py")]
    return sorted(names)


def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / (module.replace(".", "/") + ".py")).read_text())


def floor_of(module: str) -> int:
    if module.partition(".")[0] in ("__init__", "testing", "ext"):
        return DOORS
    for number, names in enumerate(FLOORS):
        if module in names:
            return number
    return BRIDGES


def imports_within(module: str) -> set[str]:
    """The modules of the package that *module* imports, anywhere in its source; those for types only count too."""
    found: set[str] = set()
    # The package that a leading dot means, within omniloop: "" or "ext".
    here = module.rpartition(".")[0]
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

    wrong = {
        other
        for other in imports_within(module)
        if other != module
        and (module, other) not in NEIGHBOURS_THAT_MAY
        # The package itself and its subpackages' own modules are behind the same door.
        and not (floor == DOORS and (module == "__init__" or other == "__init__" or module.split(".")[0] == other.split(".")[0]))
        and floor_of(other) >= floor
    }  # fmt: skip

    assert not wrong, f"{module} (floor {floor}) imports {sorted(wrong)}: pass a callable down, or move the shared part"


@pytest.mark.parametrize("power", HOMES)
def test_each_power_has_one_home(power):
    names, homes = HOMES[power]

    elsewhere = {
        module: used for module in modules() if module not in homes and (used := names & set(names_used(module)))
    }

    assert not elsewhere, f"{power}: only {sorted(homes)} may do this"


def test_every_floor_is_built():
    """A module that was renamed would else stand, unseen, among the bridges."""
    named = {name for floor in FLOORS for name in floor}

    assert named <= {*modules()}


def test_contributing_shows_the_floors_as_they_are():
    text = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", text, re.MULTILINE)

    assert {int(number): set(re.findall(r"`(\w+)`", names)) for number, names in rows if int(number) < BRIDGES} == dict(
        enumerate(FLOORS)
    )
