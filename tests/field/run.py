"""
Runs omniloop beside other libraries, and writes docs/reference/works-with.md: `python tests/field/run.py trio redis`, or `all`.

Each program in `programs/` is one neighbour and one row. Its header (PEP 723) pins the Python and the packages; its docstring
says what is run and, after "Differs:", what a user of both should know; what it prints last, from forgotten work at the
program's end, is what is right. It runs in an environment of its own, which is made new each time, and has to exit with 0.
Only a row that was run is on the page: results.json keeps the last run of each. Without a name, the names are printed.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
PAGE = ROOT / "docs" / "reference" / "works-with.md"

# Folders of programs/, in the order of the page.
KINDS = {
    "loops": "Loops, patched and foreign",
    "tools": "Tools that look, and tools of tests",
    "processes": "Processes and executors",
    "clients": "Databases and clients",
    "hosts": "Hosts: servers, notebooks, frameworks, queues",
}
HEADER = re.compile(r"^# /// script\n(?P<toml>(?:#(?: .*)?\n)+)# ///$", re.MULTILINE)
# Seconds: a program has to end by itself well before, on a machine that is busy.
LIMIT = 120.0


class Program(NamedTuple):
    name: str
    kind: str
    path: Path
    python: str
    packages: list[str]
    # Debian's, which must be there: without them there is no row.
    commands: list[str]
    # Packages without a wheel, in pure Python.
    built: list[str]
    ran: str
    differs: str


def programs() -> dict[str, Program]:
    found = {}
    for kind in KINDS:
        for path in sorted((HERE / "programs" / kind).glob("*.py")):
            source = path.read_text(encoding="utf-8")
            header = HEADER.search(source)
            assert header is not None, f"{path} has no `# /// script` header"
            wanted = tomllib.loads("".join(line[2:] + "\n" for line in header["toml"].splitlines()))
            ran, _, differs = (ast.get_docstring(ast.parse(source)) or "").partition("Differs:")
            found[path.stem] = Program(
                path.stem,
                kind,
                path,
                wanted["requires-python"].strip("=.*"),
                wanted["dependencies"],
                wanted.get("tool", {}).get("field", {}).get("commands", []),
                wanted.get("tool", {}).get("field", {}).get("built", []),
                " ".join(ran.split()),
                " ".join(differs.split()),
            )
    return found


def find_python(version: str) -> str | None:
    """On `PATH`, or where pyenv and .ci/fetch-python put theirs."""
    home = Path.home()
    places = [
        *home.glob(f".pyenv/versions/{version}.*/bin"),
        *home.glob(f".local/share/omniloop/python/{version}/**/bin"),
    ]
    return shutil.which(f"python{version}", path=os.pathsep.join(map(str, places))) or shutil.which(f"python{version}")


def environment(base: str, program: Program, folder: Path) -> str:
    """The interpreter of a new environment with the program's packages, and with omniloop from this tree."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    uv = shutil.which("uv")
    if uv is not None:
        subprocess.run([uv, "venv", "--quiet", "--python", base, folder], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        subprocess.run([base, "-m", "venv", folder], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
    # Wheels only: a compiler's hours are not what is asked for here.
    kinds = ["--only-binary", ":all:"]
    for name in ["omniloop", *program.built]:
        kinds += ["--no-binary", name]
    subprocess.run([*install, *kinds, *program.packages, str(ROOT)], check=True, timeout=600)
    return str(python)


def run(program: Program) -> dict[str, str] | str:
    """The row, or why there is none."""
    for command in program.commands:
        if shutil.which(command) is None:
            return f"not run: there is no {command}, which .ci/servers installs"
    base = find_python(program.python)
    if base is None:
        return f"not run: there is no python{program.python}, which .ci/fetch-python builds"
    with tempfile.TemporaryDirectory(prefix="omniloop-field-") as place:
        try:
            python = environment(base, program, Path(place, "env"))
        except subprocess.SubprocessError as error:
            return f"not run: {error}"
        work = Path(place, "work")
        work.mkdir()
        # Not the program's own folder on the path: `trio.py` would be what its `import trio` finds.
        surroundings = {
            **os.environ,
            "HOME": str(work),
            "PATH": os.pathsep.join([os.path.dirname(python), os.environ["PATH"]]),
            "PYTHONPATH": str(HERE),
            "PYTHONSAFEPATH": "1",
        }
        try:
            ended = subprocess.run(
                [python, "-X", "faulthandler", str(program.path)],
                cwd=work,
                env=surroundings,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired as error:
            return f"FAILED: not done after {LIMIT:g} s\n{error.stdout!r}\n{error.stderr!r}"
        lines = ended.stdout.splitlines()
        if ended.returncode != 0 or not lines or not lines[-1].startswith("right: "):
            return f"FAILED: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}"
        if ended.stderr:
            print(f"{program.name} wrote:\n{ended.stderr}", file=sys.stderr)
        version = subprocess.run(
            [python, "-c", "import platform; print(platform.python_version())"],
            check=True,
            capture_output=True,
            text=True,
        )
    return {
        "kind": program.kind,
        "packages": ", ".join(package.replace("==", " ") for package in program.packages) or "the standard library",
        "python": version.stdout.strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "ran": program.ran,
        "right": lines[-1].removeprefix("right: "),
        "differs": program.differs,
    }


def page(results: dict[str, dict[str, str]]) -> str:
    rows = results.values()
    dates = sorted({row["date"] for row in rows})
    text = [
        "# Works with",
        "",
        "<!-- Written by `python tests/field/run.py`; the words are in tests/field/programs. -->",
        "",
        "Each row is a small program in `tests/field/programs`, which ran beside one other library, on valid input, in an environment of its own with these versions.",
        "At its end each leaves work behind, whose last line says what was right: so the drain at exit is part of each row.",
        "What was not run is not here; that says nothing about it.",
        f"Run on Linux, from {dates[0]} to {dates[-1]}." if len(dates) > 1 else f"Run on Linux, on {dates[0]}.",
        "",
        "```sh",
        "python tests/field/run.py trio redis  # these rows again; `all` for each",
        "```",
    ]
    for kind, title in KINDS.items():
        of_kind = {name: row for name, row in sorted(results.items()) if row["kind"] == kind}
        if not of_kind:
            continue
        text += [
            "",
            f"## {title}",
            "",
            "| | what was run | what is right | what differs, and what to do |",
            "|---|---|---|---|",
        ]
        for row in of_kind.values():
            versions = f"{row['packages']}; Python {row['python']}; {row['date']}"
            text.append(f"| {versions} | {row['ran']} | {row['right']} | {row['differs'] or '–'} |")
    return "\n".join(text) + "\n"


def main(names: list[str]) -> int:
    known = programs()
    if not names:
        print("\n".join(known))
        return 0
    unknown = [name for name in names if name != "all" and name not in known]
    if unknown:
        print(f"No program of this name: {', '.join(unknown)}. There are: {', '.join(known)}", file=sys.stderr)
        return 2
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    failed = 0
    for name in known if "all" in names else names:
        outcome = run(known[name])
        if isinstance(outcome, str):
            # What ran before is no longer so; what could not be run says nothing.
            if outcome.startswith("FAILED"):
                results.pop(name, None)
                failed += 1
            print(f"{name}: {outcome}", flush=True)
        else:
            results[name] = outcome
            print(f"{name}: right", flush=True)
        results = {name: results[name] for name in known if name in results}
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if results:
            PAGE.write_text(page(results), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
