"""A notebook, executed by nbclient in a real kernel, as `jupyter execute` does."""

import os
import textwrap
from collections.abc import Callable

import pytest

from children import child_environment

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import nbclient
import nbformat
from nbformat.v4 import new_code_cell, new_notebook

# Starting a kernel alone takes a second or two.
pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("default")]


@pytest.fixture
def execute(tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """Runs the cells in one kernel; returns what each showed: its stdout, and then the value of its last line."""
    for name, value in child_environment().items():
        monkeypatch.setenv(name, value)
    # Of its own, so that no kernel specification or history of the user's takes part.
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def run(*cells: str) -> list[str]:
        notebook = new_notebook(cells=[new_code_cell(textwrap.dedent(cell).strip()) for cell in cells])
        nbclient.NotebookClient(notebook, timeout=20, kernel_name="python3").execute(cwd=os.fspath(tmp_path))
        # Through its own format, as it is saved.
        notebook = nbformat.reads(nbformat.writes(notebook), as_version=4)
        return [shown(cell) for cell in notebook.cells]

    return run


def shown(cell: nbformat.NotebookNode) -> str:
    outputs = (output.text if output.output_type == "stream" else output.data["text/plain"] for output in cell.outputs)
    return "".join(outputs).strip()


@pytest.mark.promise("In the cells of a notebook `run`, `go` and `await task` work, where `asyncio.run` does not")
def test_run_go_and_await_work_in_cells_where_asyncio_run_does_not(execute):
    cells = execute(
        """
        import asyncio
        from omniloop import go, run, tasks

        async def fetch(value, pause=0.05):
            await asyncio.sleep(pause)
            return value
        """,
        """
        coro = fetch(1)
        try:
            asyncio.run(coro)
        except RuntimeError as error:
            coro.close()
            print(error)
        """,
        "run(fetch(2))",
        "task = go(fetch(3))",
        "await task",
        "task.result()",
        # The loop goes on between two cells.
        "later = go(fetch(4, 0.3)); later.done()",
        "import time; time.sleep(0.4); later.done(), later.result(0)",
        # Awaited beside what belongs to the kernel's own loop.
        "await asyncio.gather(go(fetch(5)), fetch(6))",
        "run(fetch(7, 0))",
        "tasks()",
    )

    assert cells == ["", "asyncio.run() cannot be called from a running event loop", "2", "", "3", "3", "False", "(True, 4)", "[5, 6]", "7", "[]"]  # fmt: skip


@pytest.mark.promise("A forgotten failure is shown in the notebook")
@pytest.mark.long
def test_a_forgotten_failure_is_shown_in_the_notebook(execute):
    cells = execute(
        """
        from omniloop import flush, go

        async def fail():
            raise LookupError("not there")
        """,
        """
        go(fail())
        None
        """,
        "flush()",
    )

    text = "".join(cells)
    assert "Task 'fail' failed, and nobody asked for its outcome" in text
    assert "LookupError: not there" in text


@pytest.mark.promise("When the kernel ends, what is left is done")
@pytest.mark.long
def test_what_the_kernel_still_has_to_do_is_done_before_it_ends(execute, tmp_path):
    execute(
        f"""
        import asyncio
        from omniloop import go

        async def save():
            await asyncio.sleep(0.3)
            open({str(tmp_path / "saved")!r}, "w").write("done")

        go(save())
        None
        """
    )

    assert (tmp_path / "saved").read_text() == "done"


@pytest.mark.promise("Interrupting a cell cancels what it waits for, and the next cell runs")
def test_interrupting_a_cell_that_runs_cancels_the_work_and_the_next_cell_runs(execute):
    cells = execute(
        """
        import asyncio, os, signal, sys, threading
        from omniloop import run, go

        cleaned = []

        def waits():
            frame = sys._current_frames()[threading.main_thread().ident]
            while frame is not None and frame.f_globals["__name__"] != "omniloop._life.waits":
                frame = frame.f_back
            return frame is not None

        async def endless():
            try:
                while not waits():
                    await asyncio.sleep(0.001)
                # What the stop button does.
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)
            finally:
                cleaned.append(1)

        try:
            run(endless())
        except KeyboardInterrupt:
            print("interrupted")
        """,
        "cleaned, run(asyncio.sleep(0, 'goes on'))",
    )

    assert cells == ["interrupted", "([1], 'goes on')"]
