"""Implements ``python -m omniloop outbox FILE``: lists the waiting calls and their processes, requeues or drops what is set aside."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

from .._report import shown
from . import liveness
from .store import TABLE, connect, transaction, until_free

_ABOUT = """\
A call waits until the process that has it has done it; those of a process that has ended are taken up by the next one that starts
with their functions. What can't be read, what an engine has refused, and what is for a function that no process had is set
aside: nobody runs it until it is requeued, but for the last kind, which the first process that has the function takes up.
A call that has begun may have done its work."""

_LISTED = 100

# What can be done with calls that are set aside: what it does, the statement, and what was done.
_CHANGES = {
    "requeue": ("let the next process run them", "UPDATE calls SET aside = NULL, owner = ''", "requeued"),
    "drop": ("delete them for good", "DELETE FROM calls", "dropped"),
}


def outbox(args: Sequence[str]) -> int:
    """``outbox FILE [--requeue WHICH …] [--drop WHICH …]``; the exit code is 1 if the file can't be used, or WHICH does not exist."""
    parser = argparse.ArgumentParser(
        prog="python -m omniloop outbox", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    for name, (does, _, _) in _CHANGES.items():
        help_ = f"{does}: calls that are set aside, by their number or id, or `all`"
        parser.add_argument(f"--{name}", nargs="+", metavar="WHICH", default=[], help=help_)
    options = parser.parse_args(args)
    path = os.path.abspath(options.file)
    try:
        # Fails if the file is missing, which SQLite would create.
        os.stat(path)
        with closing(connect(path)) as connection:
            until_free(partial(connection.execute, TABLE))
            for name, (_, change, done) in _CHANGES.items():
                if which := getattr(options, name):
                    print(f"{until_free(partial(_change, connection, which, change))} calls {done}")
            if not options.requeue and not options.drop:
                _print(path, connection)
    except (LookupError, OSError, sqlite3.Error) as error:
        print(error.args[0] if isinstance(error, LookupError) else f"{path}: {error}", file=sys.stderr)
        return 1
    return 0


def _change(connection: sqlite3.Connection, which: Sequence[str], change: str) -> int:
    with transaction(connection):
        count = 0
        for one in which:
            where, names = ("", ()) if one == "all" else (" AND (id = ? OR rowid = ?)", (one, one.lstrip("#")))
            changed = connection.execute(f"{change} WHERE aside IS NOT NULL{where}", names).rowcount
            if not changed and one != "all":
                raise LookupError(f"{one}: no call that is set aside has this number or id. Nothing was changed.")
            count += changed
    return count


def _print(path: str, connection: sqlite3.Connection) -> None:
    now = time.time()
    waiting = connection.execute(
        "SELECT owner, function, count(*), min(made), sum(attempt > 0) FROM calls WHERE aside IS NULL "
        "GROUP BY owner, function ORDER BY owner, function"
    ).fetchall()
    print(f"{sum(row[2] for row in waiting)} calls wait")
    states = {owner: _state(path, owner) for owner in {row[0] for row in waiting}}
    for owner, function, count, made, begun in waiting:
        again = f", {begun} of them begun" if begun else ""
        print(f"  {count:>6}  {_name(function)}, the oldest {_age(now, made)}{again}; {states[owner]}")
    aside = connection.execute(
        "SELECT rowid, made, attempt, function, id, aside FROM calls WHERE aside IS NOT NULL ORDER BY rowid"
    ).fetchmany(_LISTED + 1)
    (count,) = connection.execute("SELECT count(*) FROM calls WHERE aside IS NOT NULL").fetchone()
    print(f"{count} calls are set aside")
    for number, made, attempt, function, call_id, why in aside[:_LISTED]:
        begun = f", begun {attempt} times" if attempt else ""
        print(
            f"  #{number:<5}  {_name(function)}, {_age(now, made)}{begun}; id {_name(call_id)}\n          {shown(str(why))}"
        )
    if count > _LISTED:
        print(f"  and {count - _LISTED} more")
    if count:
        print(f"to run them, or to delete them: python -m omniloop outbox {path} --requeue WHICH, or --drop WHICH")


def _state(path: str, owner: object) -> str:
    if not liveness.is_owner(owner):
        return "of no process: the next one takes them up"
    try:
        dead = liveness.sign_of_dead(path, str(owner))
    except OSError as error:
        return f"whether their process lives can't be told: {error}"
    if dead is None:
        return f"their process lives{liveness.pid_of(path, str(owner))}"
    with dead:
        return "their process has ended: the next one takes them up"


def _name(value: Any) -> str:
    return shown(value) if isinstance(value, str) else repr(value)


def _age(now: float, made: object) -> str:
    if not isinstance(made, (int, float)):
        return "of unknown age"
    seconds = max(0.0, now - made)
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} old"
    return f"{seconds:.0f} seconds old"
