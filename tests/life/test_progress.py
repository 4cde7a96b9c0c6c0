"""A line for whoever waits at a terminal; seen here through a real pseudo-terminal, and only there."""

import asyncio
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

import omniloop
from children import child_environment, run_child
from omniloop import flush, go, run, to_thread
from programs import source_of

try:
    import pty
except ImportError:
    # Not on Windows.
    pty = None


async def long(seconds):
    await asyncio.sleep(seconds)


# Until the test has seen what it is to see.
async def until_told():
    await asyncio.to_thread(os.read, 0, 1)


def open_terminal() -> tuple[int, int]:
    if pty is None:
        pytest.skip("no pseudo-terminals on this system")
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminal is to be had here: {error}")


def run_on_a_terminal(program: Callable[[], object], *told_of: str, columns: int | None = None) -> tuple[str, str]:
    """What *program* writes to its stdout (a pipe), and to its stderr (a terminal). One `until_told` ends when each of *told_of* is seen."""
    ours, theirs = open_terminal()
    if columns is not None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-c", source_of(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=child_environment(),
    )
    os.close(theirs)
    seen, to_see = b"", [re.compile(text.encode()) for text in told_of]
    try:
        while chunk := _read(ours):
            seen += chunk
            if to_see and to_see[0].search(seen):
                del to_see[0]
                os.write(child.stdin.fileno(), b".")
        stdout, _ = child.communicate(timeout=40)
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    assert child.returncode == 0, seen
    return stdout, seen.decode()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:
        # Linux's word for: the other side is closed.
        return b""


def screen(written: str) -> list[str]:
    """The lines that a terminal shows in the end."""
    lines = []
    for line in written.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.mark.promise(
    "On a terminal, and only there, a long drain at exit shows what is left and for how long it waits, on one line that is erased at the end"
)
def test_the_drain_at_exit_shows_what_is_left_and_for_how_long():
    def program():
        omniloop.configure(exit_timeout=200)
        go(until_told())
        go(until_told())
        to_thread(os.read, 0, 1)

    lines = [f"omniloop: {count} unfinished, \\d+ s left" for count in (3, 2, 1)]
    _, written = run_on_a_terminal(program, *lines)

    shown = [part.strip() for part in written.split("\r") if part.strip()]
    counts = [re.fullmatch(r"omniloop: (\d) unfinished, (200|1\d\d) s left", line)[1] for line in shown]
    assert counts == sorted(counts, reverse=True) and set(counts) == {"3", "2", "1"}
    # Erased at the end.
    assert screen(written) == [""]


@pytest.mark.promise("So it does for what work has left on the loop, with the seconds that are left for that")
def test_the_drain_shows_how_many_leftovers_there_are_and_for_how_long():
    """It showed "0 unfinished, 25 s left", and the log said that they are waited for as long."""

    def program():
        async def main():
            asyncio.create_task(until_told(), name="the log")

        omniloop.configure(leftover_timeout=20, exit_timeout=200)
        run(main())

    _, written = run_on_a_terminal(program, "waits for 1 unfinished for .*")

    # Fewer where the machine is busy.
    assert re.search(r"\romniloop: 1 unfinished, (20|1\d) s left", written)
    assert re.search(r"omniloop: waits for 1 unfinished for 1[0-8] s more at the most: the log\.", written)
    assert "0 unfinished" not in written


@pytest.mark.promise("`flush(progress=True)` does so too")
def test_flush_shows_it_if_asked_to():
    def program():
        go(until_told())
        flush(progress=True)
        print("flushed")
        go(long(0.8))
        flush()

    stdout, written = run_on_a_terminal(program, "omniloop: 1 unfinished")

    assert stdout == "flushed\n"
    assert "\romniloop: 1 unfinished" in written
    # flush() without a deadline has no seconds to tell; and the second one shows nothing.
    assert "left" not in written
    assert screen(written) == [""]
    assert written.count("\r" + " " * len("omniloop: 1 unfinished") + "\r") == 1


@pytest.mark.promise("A short wait shows nothing")
def test_a_short_wait_shows_nothing():
    def program():
        # Whatever a busy machine makes of it, it is short.
        omniloop.run(long(0))
        omniloop._life.drain._QUIET = 20
        go(long(0.2))
        flush(progress=True)
        go(long(0.2))

    _, written = run_on_a_terminal(program)

    assert written == ""


def test_a_narrow_terminal_gets_one_short_line():
    def program():
        go(until_told())

    _, written = run_on_a_terminal(program, "omniloop: 1", columns=12)

    assert "\romniloop: 1\r" in written.replace(" \r", "\r")
    assert screen(written) == [""]
    assert "\n" not in written


@pytest.mark.promise("Nor does one without a terminal")
def test_where_stderr_is_no_terminal_nothing_is_shown():
    def program():
        go(long(0.8))
        flush(progress=True)
        go(long(0.8))

    result = run_child(program)

    assert result[:3] == ("", "", 0)


@pytest.mark.parametrize("stderr", ["none", "closed"])
def test_without_a_stderr_the_wait_goes_on(stderr):
    def program():
        if stderr == "none":
            sys.stderr = None
        else:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            sys.stderr.close()
        go(long(0.6))
        flush(progress=True)
        print("flushed")

    result = run_child(program)

    assert (result.stdout, result.code) == ("flushed\n", 0)


def test_a_terminal_that_goes_away_does_not_end_the_wait():
    def program():
        go(until_told())
        flush(progress=True)
        print("flushed")

    ours, theirs = open_terminal()
    child = subprocess.Popen(
        [sys.executable, "-c", source_of(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=child_environment(),
    )
    os.close(theirs)
    assert os.read(ours, 4096).startswith(b"\romniloop: 1 unfinished")
    os.close(ours)
    stdout, _ = child.communicate(".", timeout=40)

    assert (stdout, child.returncode) == ("flushed\n", 0)


# --- in the log -------------------------------------------------------------------------------------------------------


@pytest.mark.promise("A drain of more than two seconds says in the log for what it waits, and for how long still")
def test_a_drain_that_takes_long_says_once_for_what_it_waits_and_how_to_start_what_never_ends():
    def program():
        class Tells(logging.StreamHandler):
            def emit(self, record):
                super().emit(record)
                omniloop.call_soon(said.set)

        async def late():
            await said.wait()

        said = asyncio.Event()
        logging.getLogger("omniloop").addHandler(Tells())
        for _ in range(2):
            go(late())
        go(late(), name="sleeper")
        go(asyncio.sleep(60), daemon=True, name="a daemon")

    result = run_child(program, env={"OMNILOOP_EXIT_TIMEOUT": "20"}, remarks=True)

    assert result[:3:2] == ("", 0)
    (line,) = result.stderr.splitlines()
    # Fewer where the machine is busy.
    assert re.match(r"omniloop: waits for 3 unfinished for 1[0-8] s more at the most: late, sleeper\. ", line)
    assert "What never ends is started with daemon=True" in line


def test_a_shutdown_that_takes_long_says_so_and_names_the_first():
    class Tells(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())
            runtime.call_soon(said.set)

    messages, said, handler = [], asyncio.Event(), Tells()
    logging.getLogger("omniloop").addHandler(handler)
    try:
        with omniloop.Runtime(name="long", slow_callback=None) as runtime:
            for number in range(30):
                runtime.go(said.wait(), name=f"sleeper {number}")
            runtime.shutdown(timeout=None)
    finally:
        logging.getLogger("omniloop").removeHandler(handler)

    (message,) = messages
    assert message.startswith("long: waits for 30 unfinished without a limit: sleeper 0, sleeper 1, ")
    assert "sleeper 19, …. What never ends" in message and "sleeper 20" not in message
