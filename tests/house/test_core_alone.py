"""The core stands alone: it names nobody else's library, its tests pass without its guests, and each guest can be left out."""

import ast
import asyncio
import io
import os
import re
import subprocess
import sys
import tempfile
import types

import pytest

import omniloop
from alone import PACKAGE, copy_package, run_alone
from floor_plan import CORE, FLOORS, GUESTS
from programs import source_of

LIBRARIES = {
    *("aiohttp", "anyio", "asgiref", "billiard", "celery", "django", "docker", "dumb_init", "eventlet", "fastapi", "flask", "gevent"),
    *("greenlet", "gunicorn", "hypercorn", "ipykernel", "ipython", "janus", "joblib", "jupyter", "kubernetes", "opentelemetry"),
    *("podman", "procrastinate", "prometheus", "pyodide", "pytest", "sentry", "sniffio", "starlette", "systemd", "taskiq", "textual"),
    *("tini", "tornado", "trio", "twisted", "uvicorn", "uvloop", "uwsgi", "webloop", "winloop"),
}  # fmt: skip


CORE_FILES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).with_suffix("").parts[0] in CORE
]


def words_of_code(tree):
    """The names and texts of *tree*; not its comments and docstrings, which may give a reason."""
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if id(node) in told:
            continue
        for _, value in ast.iter_fields(node):
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    yield from re.findall(r"[a-z]+(?:_init)?", text.lower())


@pytest.mark.parametrize("file", CORE_FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_the_core_names_nobody_elses_library(file):
    named = LIBRARIES & set(words_of_code(ast.parse(file.read_text(encoding="utf-8"))))

    assert not named, "what the core needs to know of a library a guest knows, behind a hook: see omniloop/_hooks.py"


def test_a_name_in_code_or_in_a_text_is_found_and_one_in_a_docstring_is_not():
    source = (
        '"""Of trio."""\nimport uvloop\ndef is_asgiref():\n    """Of Celery."""\n    return "under uWSGI"  # flask\n'
    )

    assert LIBRARIES & set(words_of_code(ast.parse(source))) == {"uvloop", "asgiref", "uwsgi"}


def test_the_core_and_its_guests_are_the_package():
    shared = FLOORS["shared by guests"]
    assert CORE | {*GUESTS, *shared, "__main__"} == set().union(*FLOORS.values())


@pytest.mark.timeout(180)
def test_the_core_works_without_its_guests(tmp_path):
    """Of its tests those that say most; `tox -e core` runs all."""
    names = ["work/test_go.py", "work/test_await.py", "runtime/test_run.py"]

    result = run_alone(tmp_path / "alone", ["-n", "0", *(f"tests/{name}" for name in names)])

    assert result.returncode == 0, "see what it has printed"


# --- each guest left out ----------------------------------------------------------------------------------------------


async def answer(value=42):
    await asyncio.sleep(0)
    return value


def smoke_of_core():
    assert omniloop.run(answer()) == 42
    assert omniloop.go(answer()).result(timeout=20) == 42
    assert omniloop.call_soon(abs, -1).result(timeout=20) == 1
    assert omniloop.to_thread(abs, -1).result(timeout=20) == 1
    omniloop.flush(timeout=20)


def smoke_of_seen():
    omniloop.dump(io.StringIO())
    omniloop.configure(timings=True)


def smoke_of_guests():
    # By its name alone: the guest of asyncio.run under anyio, where no trio is.
    sys.modules["sniffio"] = types.SimpleNamespace(thread_local=types.SimpleNamespace(name=None))
    assert omniloop.run(answer()) == 42
    assert "omniloop._guests.trio" in sys.modules
    del sys.modules["sniffio"]


def smoke_of_brokers():
    assert omniloop.Delivery.__module__ == "omniloop._brokers.handover"


def smoke_of_processes():
    assert omniloop.to_process(abs, -1).result(timeout=30) == 1


def smoke_of_bridges():
    async def numbers():
        yield 1

    assert list(omniloop.iterate(numbers())) == [1]
    with omniloop.TaskGroup() as group:
        group.go(answer())


def smoke_of_background():
    assert omniloop.background(answer)().result(timeout=20) == 42


def smoke_of_twins():
    assert omniloop.blocking(answer)() == 42


def smoke_of_monitor():
    omniloop.configure(monitor=True)
    omniloop.configure(monitor=False)


def smoke_of_ext():
    pass


def smoke_of_testing():
    pass


# By what each needs: entering a twin is entering what it wraps, a background function may be handed over, and the live view looks as a dump does.
SMOKES = {
    smoke_of_seen: {"_seen"},
    smoke_of_guests: {"_guests"},
    smoke_of_brokers: {"_brokers"},
    smoke_of_processes: {"_processes"},
    smoke_of_bridges: {"_bridges"},
    smoke_of_background: {"_bridges", "_brokers"},
    smoke_of_twins: {"_twins", "_bridges"},
    smoke_of_monitor: {"_monitor", "_seen"},
    smoke_of_ext: {"ext"},
    smoke_of_testing: {"testing"},
}


@pytest.mark.parametrize(
    "imports",
    ["normal", pytest.param("all", marks=pytest.mark.skipif(sys.version_info < (3, 15), reason="none is lazy"))],
)
@pytest.mark.parametrize("absent", GUESTS)
def test_a_guest_can_be_left_out(absent, imports, tmp_path):
    """Where all imports are lazy, the one of `_guests` failed beside the place that expects it to."""
    copy_package({*CORE, *GUESTS, *FLOORS["shared by guests"], "__main__"} - {absent}, tmp_path / "omniloop")
    others = [smoke for smoke, needs in SMOKES.items() if absent not in needs]
    program = source_of(smoke_of_core, *others)
    env = {name: value for name, value in os.environ.items() if not name.startswith("OMNILOOP_")}

    # A socket's path may not be long.
    with tempfile.TemporaryDirectory(prefix="o") as folder:
        result = subprocess.run(
            [sys.executable, "-X", f"lazy_imports={imports}", "-c", program],
            env={**env, "PYTHONPATH": str(tmp_path), "XDG_RUNTIME_DIR": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)
