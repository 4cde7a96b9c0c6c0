"""`python -i` and IPython: at a prompt, on a real terminal, and fed by a pipe."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from children import child_environment

pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")

pytestmark = pytest.mark.timeout(40)

# For anything that a prompt does: it passes in far less, but the machine may be busy.
PATIENCE = 15.0

WORK = """\
import asyncio
from omniloop import call_soon, go, run, tasks
async def work(value, pause=0.05): await asyncio.sleep(pause); print('worked', value); return value

"""


# The leader of a session that opens a terminal has it: from then on Ctrl-C, typed, is a signal for it. (Not in a preexec_fn,
# for which the test's own process would be forked, and not just spawn.)
TAKE_TERMINAL = "import os, sys; os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A child on a pseudo-terminal of its own, typed to and read from."""

    def __init__(self, *command: str, env: dict[str, str] | None = None) -> None:
        try:
            self._fd, theirs = pty.openpty()
        except OSError as error:
            pytest.skip(f"no pseudo-terminal is to be had here: {error}")
        self.seen = ""
        # Buffered, so that a line comes in one piece.
        environment = child_environment(
            {"TERM": "dumb", "PYTHON_BASIC_REPL": "1", "PYTHONUNBUFFERED": "", **(env or {})}
        )
        self.child = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def read_until(self, text: str) -> str:
        """Read on until *text* comes; return what came, *text* included."""
        while text not in self.seen:
            ready = select.select([self._fd], [], [], PATIENCE)[0]
            assert ready, f"{text!r} does not come: {self.seen!r}"
            assert self._read(), f"the child ended before {text!r} came: {self.seen!r}"
        came, _, self.seen = self.seen.partition(text)
        return came + text

    def interrupt_prompt(self) -> None:
        """Type Ctrl-C until it is noticed: one that comes just before readline begins to wait, Python sees only at the next key."""
        while "KeyboardInterrupt" not in self.seen:
            self.type("\x03")
            while select.select([self._fd], [], [], 0.5)[0] and "KeyboardInterrupt" not in self.seen:
                assert self._read(), f"the child ended: {self.seen}"

    def end(self) -> str:
        """Read on until the child has ended."""
        while self._read():
            pass
        self.child.wait(timeout=10)
        os.close(self._fd)
        return self.seen

    def _read(self) -> bytes:
        try:
            chunk = os.read(self._fd, 4096)
        except OSError:
            # Linux's word for: the other side is closed.
            return b""
        self.seen += chunk.decode(errors="replace").replace("\r\n", "\n")
        return chunk


@pytest.fixture
def python():
    terminal = Terminal(sys.executable, "-i", "-q")
    yield terminal
    if terminal.child.poll() is None:
        terminal.child.kill()
        terminal.child.wait()


@pytest.mark.promise("At a prompt the loop goes on while the prompt waits")
def test_at_a_prompt_run_blocks_and_go_goes_on_behind_it(python):
    python.read_until(">>> ")
    python.type(WORK)
    python.type("run(work(1))\n")
    python.read_until("worked 1\n1\n>>> ")
    python.type("task = go(work(2, 0.2))\n")
    # Without a key pressed: the loop runs behind the prompt.
    python.read_until("worked 2\n")
    python.type("task.result(), tasks()\n")
    python.read_until("(2, [])\n>>> ")
    python.type("exit()\n")

    python.end()
    assert python.child.returncode == 0


@pytest.mark.promise("Ctrl-C at the prompt leaves the work alone, and in `run` cancels it")
def test_ctrl_c_at_the_prompt_leaves_the_work_alone_and_in_run_cancels_it(python):
    python.read_until(">>> ")
    python.type(WORK)
    python.type("gate = asyncio.Event()\ntask = go(gate.wait())\nprint('at', 'the prompt')\n")
    python.read_until("at the prompt\n>>> ")
    python.interrupt_prompt()
    python.type("call_soon(gate.set) and task.result(), print('still', 'here')\n")
    python.read_until("still here\n(True, None)\n>>> ")
    python.type("go(work(2, 0.1)) and run(work(3, 60))\n")
    python.read_until("worked 2\n")
    python.type("\x03")
    python.read_until("KeyboardInterrupt\n>>> ")
    python.type("len(tasks()), run(work(4))\n")
    python.read_until("worked 4\n(0, 4)\n>>> ")
    python.type("\x04")

    assert "worked 3" not in python.end()
    # From 3.14 on, a Python that was interrupted in a statement at its prompt dies of that SIGINT in the end, with or without us.
    assert python.child.returncode == (0 if sys.version_info < (3, 14) else -signal.SIGINT)


def test_leaving_the_prompt_drains_and_shows_what_is_left(python):
    python.read_until(">>> ")
    python.type(WORK)
    python.type("for n in range(3): task = go(work(n, 1.8))\n\nprint('started', 3)\n")
    python.read_until("started 3\n>>> ")
    python.type("exit()\n")

    rest = python.end()
    assert "omniloop: 3 unfinished" in rest
    assert [f"worked {n}" in rest for n in range(3)] == [True] * 3
    assert python.child.returncode == 0


def test_after_a_script_that_failed_python_i_still_has_the_loop(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORK + "task = go(work(1))\nraise SystemExit('over')\n")
    child = subprocess.run(
        [sys.executable, "-i", "-q", script],
        input="task.result()\nrun(work(2))\n",
        capture_output=True,
        text=True,
        env=child_environment(),
        timeout=20,
        check=False,
    )

    assert child.stdout.split() == ["worked", "1", "1", "worked", "2", "2"]
    assert "over" in child.stderr
    assert child.returncode == 0


# --- IPython ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ipython_env(tmp_path) -> dict[str, str]:
    pytest.importorskip("IPython")
    return {"IPYTHONDIR": str(tmp_path / "ipython"), "IPY_TEST_SIMPLE_PROMPT": "1"}


IPYTHON = [
    sys.executable,
    "-m",
    "IPython",
    "--simple-prompt",
    "--no-banner",
    "--colors=NoColor",
    "--HistoryManager.enabled=False",
]


@pytest.mark.promise("IPython's top-level `await` takes a task")
def test_in_ipython_run_go_and_top_level_await_work(ipython_env):
    lines = [
        *WORK.split("\n"),
        "print(run(work(1)))",
        "task = go(work(2))",
        "print(await task)",
        "print(await asyncio.gather(go(work(3)), work(4)))",
        "go(work('at exit', 0.3))",
        "exit",
    ]
    child = subprocess.run(
        IPYTHON,
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        env=child_environment(ipython_env),
        timeout=30,
        check=False,
    )

    for expected in ("worked 1\n1\n", "worked 2\n2\n", "[3, 4]\n", "worked at exit\n"):
        assert expected in child.stdout, child
    assert child.returncode == 0
    assert "Traceback" not in child.stdout + child.stderr


def test_in_ipython_ctrl_c_in_run_cancels_the_work(ipython_env):
    terminal = Terminal(*IPYTHON, env=ipython_env)
    try:
        terminal.read_until("In [1]: ")
        terminal.type("import asyncio; from omniloop import go, run, tasks\n")
        terminal.read_until("In [2]: ")
        terminal.type("print('now') or run(asyncio.sleep(60))\n")
        terminal.read_until("now\n")
        # The print comes a moment before the wait; the signal may find it in either.
        time.sleep(0.2)
        terminal.child.send_signal(signal.SIGINT)
        terminal.read_until("KeyboardInterrupt")
        terminal.read_until("In [3]: ")
        terminal.type("print(len(tasks()), run(asyncio.sleep(0, 'on')))\n")
        terminal.read_until("0 on\n")
        terminal.type("exit\n")
        terminal.end()
        assert terminal.child.returncode == 0
    finally:
        if terminal.child.poll() is None:
            terminal.child.kill()
            terminal.child.wait()
