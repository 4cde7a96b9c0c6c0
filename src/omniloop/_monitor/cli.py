"""The commands of ``python -m omniloop`` that look into processes: `ps`, `dump`, `top`, `web` and `attach`."""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from .._errors import how_to_install
from .._seen.look import as_lines
from . import sockets
from .client import Connection, NoAnswerError, asked, command_of, processes

_NOBODY = (
    "No process can be asked. A process lets itself be asked with configure(monitor=True), or if it was started with OMNILOOP_MONITOR=1 "
    "in its environment."
)


_PID: Final[dict[str, Any]] = {"type": int}
_ONE_PID: Final[dict[str, Any]] = {"type": int, "nargs": "?", "help": "may be left out if there is only one"}


def _command(**options: dict[str, Any]) -> Callable[[Callable[..., None]], Callable[[Sequence[str]], int]]:
    """
    Make a command of a function: it takes the arguments of the command line, as *options* describe them, and returns the exit code.

    That is 0; 1 with a message on stderr if a process can't be asked; 130 after Ctrl-C.
    """

    def make(function: Callable[..., None]) -> Callable[[Sequence[str]], int]:
        @functools.wraps(function)
        def command(args: Sequence[str]) -> int:
            if isinstance(sys.stdout, io.TextIOWrapper):
                # The encoding of a terminal may lack letters; a name with such letters must not end the command.
                sys.stdout.reconfigure(errors="backslashreplace")
            parser = argparse.ArgumentParser(prog=f"python -m omniloop {function.__name__}")
            for name, option in options.items():
                parser.add_argument(name if name == "pid" else f"--{name}", **option)
            try:
                given = vars(parser.parse_args(args))
                if (why := sockets.lacking()) is not None:
                    raise NoAnswerError(why)
                function(**given)
            except NoAnswerError as error:
                print(error, file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                return 130
            except BrokenPipeError:
                # The reader has gone, as `| head` does. Redirect stdout, because writing the rest at exit would fail again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

        return command

    return make


@_command()
def ps() -> None:
    """``ps``"""
    found = processes()
    if not found:
        raise NoAnswerError(_NOBODY)
    print(f"{'PID':>8}  {'PYTHON':<8}  {'FOR':>8}  COMMAND")
    for hello in found:
        if "problem" in hello:
            print(f"{hello['pid']:>8}  {hello['problem']}")
        else:
            age = _age(time.time() - hello["since"])
            print(f"{hello['pid']:>8}  {hello['python']:<8}  {age:>8}  {command_of(hello)}")


@_command(pid=_PID, json={"action": "store_true", "help": "all that is told of it, for programs", "dest": "as_json"})
def dump(pid: int, as_json: bool) -> None:
    """``dump PID``"""
    snapshot = asked(pid, "snapshot")
    print(json.dumps(snapshot, indent=2) if as_json else "\n".join(snapshot_lines(snapshot)))


@_command(pid=_ONE_PID)
def top(pid: int | None) -> None:
    """``top [PID]``"""
    try:
        from .top import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        raise NoAnswerError(
            f"`top` needs Textual: {how_to_install('monitor')}. `ps`, `dump` and `web` work without."
        ) from None
    run(_chosen(pid))


@_command(
    pid=_ONE_PID,
    port={"type": int, "default": 0, "help": "by default one that is free"},
    open={"action": "store_true", "help": "open it in the browser, too", "dest": "browse"},
)
def web(pid: int | None, port: int, browse: bool) -> None:
    """``web [PID]``"""
    from .web import run

    run(_chosen(pid), port, browse=browse)


@_command(pid=_PID)
def attach(pid: int) -> None:
    """``attach PID``"""
    from .attach import attach

    attach(pid)
    print(f"The process {pid} can be asked now: python -m omniloop dump {pid}")


def _chosen(pid: int | None) -> int:
    """Return *pid*, or the only process that can be asked."""
    if pid is not None:
        # Raises the reason if the process can't be asked: now, before `top` takes over the terminal.
        Connection(pid).close()
        return pid
    found = [hello for hello in processes() if "problem" not in hello]
    if not found:
        raise NoAnswerError(_NOBODY)
    if len(found) > 1:
        lines = [f"{hello['pid']:>8}  {command_of(hello)}" for hello in found]
        raise NoAnswerError("\n".join(["Several processes can be asked. Say which:", *lines]))
    return int(found[0]["pid"])


def snapshot_lines(snapshot: dict[str, Any]) -> list[str]:
    """Format an answer as lines of text."""
    lines = [f"process {snapshot['pid']}, Python {snapshot['python']}: {command_of(snapshot)}"]
    for runtime in snapshot["runtimes"]:
        lines += ["", *as_lines(runtime)]
        stats, workers, blocked = runtime["stats"], runtime["workers"], runtime["blocked"]
        lines.append(
            f"  accepted {stats['accepted']}, finished {stats['finished']} ({stats['failed']} failed, {stats['cancelled']} cancelled), "
            f"running {stats['running']}, scheduled {stats['scheduled']}, queued {stats['queue_depth']}, lag {stats['loop_lag']:.3f} s"
        )
        if workers is not None:
            lines.append(
                f"  worker threads: {workers['workers']} of at most {workers['most']}, {workers['idle']} idle; {workers['jobs']} jobs wait"
            )
        for resource in runtime["resources"]:
            lines.append(f"  keeps open: {resource['name']}{_since(resource['for'])}")
        if blocked is not None:
            lines += [f"  a callback blocks the loop, for {blocked['for']:.1f} s:", blocked["stack"].rstrip("\n")]
    for failure in snapshot["failures"]:
        lines += ["", f"{_clock(failure['time'])}  {failure['message']}", failure["traceback"].rstrip("\n")]
    return lines


def _since(seconds: float | None) -> str:
    return "" if seconds is None else f", for {_age(seconds)}"


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
