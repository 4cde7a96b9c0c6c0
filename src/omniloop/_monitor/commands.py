"""The commands of ``python -m omniloop``."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from .._errors import how_to_install
from .._seen.look import as_lines
from . import places
from .client import Connection, NoAnswerError, command_of, processes

_NOBODY = (
    "No process can be asked. A process lets itself be asked with configure(monitor=True), or if it was started with OMNILOOP_MONITOR=1 "
    "in its environment."
)


def ps(args: Sequence[str]) -> int:
    """``ps``"""
    _parser("ps").parse_args(args)
    return _asked(_ps)


def dump(args: Sequence[str]) -> int:
    """``dump PID``"""
    parser = _parser("dump")
    parser.add_argument("pid", type=int)
    parser.add_argument("--json", action="store_true", help="all that is told of it, for programs")
    options = parser.parse_args(args)
    return _asked(_dump, options.pid, options.json)


def top(args: Sequence[str]) -> int:
    """``top [PID]``"""
    parser = _parser("top")
    parser.add_argument("pid", type=int, nargs="?", help="may be left out if there is only one")
    return _asked(_top, parser.parse_args(args).pid)


def web(args: Sequence[str]) -> int:
    """``web [PID]``"""
    parser = _parser("web")
    parser.add_argument("pid", type=int, nargs="?", help="may be left out if there is only one")
    parser.add_argument("--port", type=int, default=0, help="by default one that is free")
    parser.add_argument("--open", action="store_true", help="open it in the browser, too")
    options = parser.parse_args(args)
    return _asked(_web, options.pid, options.port, options.open)


def attach_to(args: Sequence[str]) -> int:
    """``attach PID``"""
    parser = _parser("attach")
    parser.add_argument("pid", type=int)
    return _asked(_attach, parser.parse_args(args).pid)


def _parser(command: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m omniloop {command}")


def _asked(command: Callable[..., int], *args: Any) -> int:
    """Run one command; the exit code: 0, or 1 with a message on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may know few letters; a name in others must not end the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    if (why := places.lacking()) is not None:
        print(why, file=sys.stderr)
        return 1
    try:
        return command(*args)
    except NoAnswerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `| head` has seen enough. What is left must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _ps() -> int:
    found = processes()
    if not found:
        print(_NOBODY, file=sys.stderr)
        return 1
    print(f"{'PID':>8}  {'PYTHON':<8}  {'FOR':>8}  COMMAND")
    for hello in found:
        if "problem" in hello:
            print(f"{hello['pid']:>8}  {hello['problem']}")
        else:
            age = _age(time.time() - hello["since"])
            print(f"{hello['pid']:>8}  {hello['python']:<8}  {age:>8}  {command_of(hello)}")
    return 0


def _dump(pid: int, as_json: bool) -> int:
    with Connection(pid) as connection:
        snapshot = connection.ask("snapshot")
    if as_json:
        print(json.dumps(snapshot, indent=2))
        return 0
    for line in snapshot_lines(snapshot):
        print(line)
    return 0


def _top(pid: int | None) -> int:
    try:
        from .top import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        print(
            f"`top` needs Textual: {how_to_install('monitor')}. `ps`, `dump` and `web` work without.",
            file=sys.stderr,
        )
        return 1
    return run(_chosen(pid))


def _web(pid: int | None, port: int, browse: bool) -> int:
    from .web import run

    return run(_chosen(pid), port, browse=browse)


def _attach(pid: int) -> int:
    from .attach import attach

    attach(pid)
    print(f"The process {pid} can be asked now: python -m omniloop dump {pid}")
    return 0


def _chosen(pid: int | None) -> int:
    """The process that was named, or the only one that there is."""
    if pid is not None:
        # Says why, if it can't be asked; a terminal that was taken over could not.
        Connection(pid).close()
        return pid
    found = [hello for hello in processes() if "problem" not in hello]
    if not found:
        raise NoAnswerError(_NOBODY)
    if len(found) > 1:
        lines = [f"{hello['pid']:>8}  {command_of(hello)}" for hello in found]
        raise NoAnswerError("\n".join(["Several processes can be asked. Say which:", *lines]))
    number: int = found[0]["pid"]
    return number


def snapshot_lines(snapshot: dict[str, Any]) -> list[str]:
    """An answer, as text."""
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
