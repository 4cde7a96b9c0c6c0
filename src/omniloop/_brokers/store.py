"""
Stores the calls of an outbox in an SQLite table that many processes share, and takes over the calls that dead processes leave.

Guarantees:

- When `add` returns, the call is on disk, in the file that is at the path by then.
- A failed transaction is rolled back, and none stays open. A statement that fails does not make the others of its batch fail.
- A call has one owner: the process that made it, or that took it over from a dead one, in one transaction. Only the owner changes it,
  unless it is set aside.

Writing:

1. A caller that finds nobody else writing commits its statement itself. The single statement is a whole transaction, so that Ctrl-C
   leaves none half done.
2. Otherwise the caller queues its statement and waits for the commit. A writer thread commits all queued statements together.
3. While another process has the file locked, the wait is outside of `_lock`. A fork takes `_lock`, so that no thread is inside SQLite:
   what SQLite locks in memory would stay locked in the child.

Tried and rejected: without a thread, where the first caller commits for those that come meanwhile, a commit had two calls, and with
the thread eight. An index on the id doubles what an insert writes; instead a call is found by its number, and the id is compared.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from threading import Condition, Lock
from typing import Any, Final, TypeVar

from .._cpython import is_owned
from .._process.fork import hold_at_fork, keep_for_ever
from .._report import say, shown
from .._threads import Guard, new_thread, take
from . import liveness
from .batches import Batches

T = TypeVar("T")

# Seconds to wait for another process to finish writing.
_BUSY: Final = 30.0

# Seconds after which an idle writer thread ends.
_IDLE: Final = 1.0

# Calls taken over in one transaction, at most.
BATCH: Final = 500

# The reason of calls that were set aside for want of a function. The first process that has the function takes them up again.
NOBODY: Final = "no process had the function"

TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS calls (number INTEGER PRIMARY KEY, id TEXT, owner TEXT, function TEXT, parcel TEXT, "
    "attempt INTEGER DEFAULT 0, made REAL, aside TEXT)"
)
_ADD: Final = "INSERT INTO calls (id, owner, function, parcel, attempt, made) VALUES (?, ?, ?, ?, 0, ?)"
_OURS: Final = "WHERE rowid = ? AND id = ? AND owner = ?"
_BEGIN: Final = f"UPDATE calls SET attempt = ? {_OURS}"
_CROSS_OUT: Final = f"DELETE FROM calls {_OURS}"
_SET_ASIDE: Final = f"UPDATE calls SET owner = '', aside = ? {_OURS}"
_TAKE_BACK: Final = "DELETE FROM calls WHERE id = ?"


class ReplacedError(OSError):
    """The file was removed, or another one put in its place, while it was in use."""


class Row:
    """A call of this process that is on disk."""

    __slots__ = ("attempt", "call", "id", "key", "taken_back")

    def __init__(self, number: int, call_id: str, owner: str, attempt: int, call: Any) -> None:
        self.id = call_id
        # Row number, id and owner: what `_OURS` looks for.
        self.key = number, call_id, owner
        # How often the call has begun to run.
        self.attempt = attempt
        # The call itself, as the outbox has read it.
        self.call = call
        # True if its caller has got an error, and the call must not run.
        self.taken_back = False


class _Statement:
    """One statement and its outcome: the number of the new row for `_ADD`, otherwise how many rows were changed."""

    __slots__ = ("error", "outcome", "parameters", "sql")

    def __init__(self, sql: str, *parameters: object) -> None:
        self.sql = sql
        self.parameters = parameters
        self.outcome: int = 0
        self.error: BaseException | None = None

    def result(self) -> int:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return self.outcome


class Store:
    """
    One process's access to the file.

    A forked child makes its own and leaves this one alone, because SQLite's connections do not survive a fork.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # Held while SQLite is called. Re-entrant, because a signal handler may make a call in the middle of another.
        self._lock = Guard()
        self._connection: sqlite3.Connection | None = None
        self._synchronous = ""
        # True while the writer adds calls. A caller that comes then queues its call, to join the next batch.
        self._syncs = False
        # The file as it was opened, to notice a replacement; and this process's sign, a new one with each opening.
        self._file: os.stat_result | None = None
        self._sign: liveness.Sign | None = None
        # The writer's queue: statements, and the function to call once they are written. Its lock is taken without `_lock`.
        self._post_box = Guard()
        self._posted = Condition(self._post_box)
        self._queue: list[tuple[Sequence[_Statement], Callable[[], object]]] = []
        self._writer: threading.Thread | None = None
        self._ending = False
        # Used on the loop's thread only.
        self._batches: Batches[_Statement] = Batches(self._post_from_loop)
        self._told: set[str] = set()
        hold_at_fork(self)

    # --- one call ---------------------------------------------------------------------------------------------------------

    def add(self, call_id: str, function: str, text: str, call: Any) -> Row:
        """
        Write a call to the file. Blocks until it is on disk.

        Raises:
            OSError: if the file is not at its path any more.
            Error: of `sqlite3`, if the file can't be written; the call is not in the file.
        """
        self._opened()
        owner = self._owner
        statement = _Statement(_ADD, call_id, owner, function, text, time.time())
        try:
            if self._queue or self._syncs or not self._write_alone(statement):
                self._post_and_wait(statement)
            return Row(statement.result(), call_id, owner, 0, call)
        except (sqlite3.Error, OSError):
            raise
        except BaseException:
            # Ctrl-C: the call may or may not be on disk by now, or be in the queue.
            self._post_and_wait(_Statement(_TAKE_BACK, call_id))
            raise

    def take_back(self, row: Row) -> None:
        """Delete a call whose caller gets an error."""
        row.taken_back = True
        self._post_and_wait(_Statement(_CROSS_OUT, *row.key))

    async def begin(self, row: Row) -> bool:
        """Count one more run of the call, in the file. False if the call is not ours any more, and must not run."""
        if not await self._soon(row, _Statement(_BEGIN, row.attempt + 1, *row.key)):
            return False
        row.attempt += 1
        return True

    async def cross_out(self, row: Row) -> None:
        """Delete a call that is done. Need not be on disk at once: at worst the call runs again."""
        await self._soon(row, _Statement(_CROSS_OUT, *row.key))

    async def set_aside(self, row: Row, why: str) -> None:
        """Set a call aside: from now on every process leaves it alone."""
        await self._soon(row, _Statement(_SET_ASIDE, why, *row.key))

    # --- writing ----------------------------------------------------------------------------------------------------------

    async def _soon(self, row: Row, statement: _Statement) -> bool:
        """Write a statement, in a batch with others of this iteration of the loop. False if the call is not ours any more."""
        if self._is_gone(row):
            return True
        await self._batches.send(statement)
        return bool(statement.result()) or self._is_gone(row)

    @property
    def _owner(self) -> str:
        """The name of this process in the file; empty while it is closed."""
        return "" if self._sign is None else self._sign.owner

    def _is_gone(self, row: Row) -> bool:
        """Whether the call was in a file that is gone, so that there is nothing to change."""
        return row.key[2] != self._owner

    async def _post_from_loop(self, statements: Sequence[_Statement]) -> None:
        loop, written = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            # The loop is closed: the end of the runtime did not wait for the write.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(written.set)

        self._post(statements, tell)
        await written.wait()

    def _write_alone(self, statement: _Statement) -> bool:
        """
        Write the statement in this thread, unless another thread is in SQLite.

        Returns True if it was carried out or failed for good; False if it must be queued.
        """
        taken: list[bool] = []
        try:
            take(self._lock, 0, taken)
            if True not in taken:
                return False
            self._write([statement], patience=0)
        finally:
            if True in taken:
                self._lock.release()
        return not _is_busy(statement.error)

    def _post_and_wait(self, statement: _Statement) -> None:
        if is_owned(self._lock) or is_owned(self._post_box):
            # A signal handler has interrupted a call of this thread, whose lock the writer would wait for.
            self._write([statement])
            return
        written = Lock()
        written.acquire()
        self._post([statement], written.release)
        written.acquire()

    def _post(self, statements: Sequence[_Statement], tell: Callable[[], object]) -> None:
        with self._post_box:
            self._queue.append((statements, tell))
            if self._writer is not None:
                self._posted.notify()
                return
            self._writer = new_thread(self._write_on, f"outbox {os.path.basename(self.path)}")
            try:
                self._writer.start()
                return
            except RuntimeError:
                # No thread can be started, for example at the end of the interpreter: write here.
                self._writer = None
            except BaseException:
                # Ctrl-C: the thread may still run. It then sees that it is not `_writer`, and ends.
                self._writer = None
                raise
        self._write_queue()

    def _write_on(self) -> None:
        while True:
            with self._post_box:
                if self._writer is not threading.current_thread():
                    return
                while not self._queue:
                    if self._ending or (not self._posted.wait(_IDLE) and not self._queue):
                        self._writer = None
                        return
            self._write_queue()

    def _write_queue(self) -> None:
        with self._post_box:
            queue, self._queue = self._queue, []
        together = [statement for statements, _ in queue for statement in statements]
        self._syncs = any(statement.sql is _ADD for statement in together)
        self._write(together)
        self._syncs = False
        for _, tell in queue:
            tell()

    def _write(self, statements: Sequence[_Statement], *, patience: float = _BUSY) -> None:
        """Execute the statements in one transaction; if that fails, each in a transaction of its own."""

        def work(connection: sqlite3.Connection) -> None:
            for statement in statements:
                cursor = connection.execute(statement.sql, statement.parameters)
                statement.outcome = cursor.lastrowid or 0 if statement.sql is _ADD else cursor.rowcount
                statement.error = None

        durable = any(statement.sql is _ADD for statement in statements)
        try:
            self._in_transaction(work, durable, single=len(statements) == 1, patience=patience)
            if durable:
                self._check_file([statement.parameters[0] for statement in statements if statement.sql is _ADD])
        except BaseException as error:
            if len(statements) > 1 and not _is_busy(error) and not isinstance(error, ReplacedError):
                for statement in statements:
                    self._write([statement])
                return
            for statement in statements:
                statement.error = error

    def _in_transaction(
        self,
        work: Callable[[sqlite3.Connection], T],
        durable: bool = False,
        *,
        single: bool = False,
        patience: float = _BUSY,
    ) -> T:
        """Do *work* in one transaction; a *single* statement needs no BEGIN. Waits up to *patience* seconds for other processes."""

        def step() -> T:
            with self._lock:
                connection = self._opened()
                self._be_synchronous(durable)
                with nullcontext() if single else transaction(connection):
                    return work(connection)

        return until_free(step, patience)

    def _be_synchronous(self, durable: bool) -> None:
        mode = "FULL" if durable else "NORMAL"
        if mode != self._synchronous:
            # If the statement is interrupted, the next call executes it again.
            self._synchronous = ""
            self._opened().execute(f"PRAGMA synchronous = {mode}")
            self._synchronous = mode

    def _check_file(self, added: Sequence[object]) -> None:
        """Raise ReplacedError unless the file is still at its path: otherwise no process would find what was committed."""
        try:
            if self._file is not None and os.path.samestat(os.stat(self.path), self._file):
                return
            what = "another file was put in the place of"
        except FileNotFoundError:
            what = "somebody has removed"
        with self._lock:
            with suppress(sqlite3.Error):
                # The file that is there now may get these calls from the log that SQLite keeps beside the path: delete them.
                self._opened().executemany(_TAKE_BACK, [(call_id,) for call_id in added])
            # Closed before a new file is opened, because SQLite's file locks belong to the process.
            self._close_file()
        raise ReplacedError(
            f"{self.path}: {what} the outbox while it was in use. This call was not made; the next one begins a new file, or goes on with the one that is there."
        )

    # --- what the dead have left ------------------------------------------------------------------------------------------

    def take_up(
        self, functions: Sequence[str], read: Callable[[str, str], Any]
    ) -> Generator[tuple[list[tuple[str, Row]], list[str], bool], None, None]:
        """
        Take over the calls that dead processes left for *functions*, in batches.

        Each batch has the calls, as pairs of function name and row; descriptions of calls that were set aside; and whether a living
        process has calls for *functions*. *read* makes a call of a function's name and a text, or raises ValueError with the reason
        why it can't be read.
        """
        self._opened()
        marks = ", ".join("?" * len(functions))
        has_any = (
            f"SELECT 1 FROM calls WHERE owner = ? AND function IN ({marks}) AND (aside IS NULL OR aside = ?) LIMIT 1"
        )
        for owner in self._others():
            dead = self._dead(owner)
            if dead is None:
                if self._ask(has_any, owner, *functions, NOBODY):
                    yield [], [], True
                continue
            with dead:
                last = -1 << 62
                while True:
                    left, bad, last = self._take_over(owner, functions, marks, read, last)
                    if not left and not bad:
                        break
                    yield left, bad, False
                if not self._ask("SELECT 1 FROM calls WHERE owner = ? AND aside IS NULL LIMIT 1", owner):
                    dead.remove()

    def _dead(self, owner: str) -> liveness.Sign | None:
        try:
            return liveness.sign_of_dead(self.path, owner)
        except OSError as error:
            if owner not in self._told:
                self._told.add(owner)
                say(
                    "%s: whether a process lives that may have calls here can't be told, so its calls are left alone; all others go on. %s",
                    self.path,
                    error,
                    level=40,
                )
            return None

    def _others(self) -> list[str]:
        found = {owner for (owner,) in self._ask("SELECT DISTINCT owner FROM calls")}
        owners = {owner for owner in found if owner == "" or liveness.is_owner(owner)}
        if owners != found:
            # No process has such a name, so these calls belong to nobody: any process may take them up.
            self._in_transaction(
                lambda connection: connection.execute(
                    "UPDATE calls SET owner = '' WHERE owner IS NULL OR typeof(owner) != 'text' OR length(owner) != 32 "
                    "OR owner GLOB '*[^0-9a-f]*'"
                )
            )
            owners.add("")
        return sorted(owners.union(liveness.owners(self.path)) - {self._owner})

    def _take_over(
        self, owner: str, functions: Sequence[str], marks: str, read: Callable[[str, str], Any], last: int
    ) -> tuple[list[tuple[str, Row]], list[str], int]:
        mine = self._owner
        rows = self._ask(
            f"SELECT rowid, id, function, parcel, attempt FROM calls WHERE rowid > ? AND owner = ? AND function IN ({marks}) "
            f"AND (aside IS NULL OR aside = ?) ORDER BY rowid LIMIT {BATCH}",
            last,
            owner,
            *functions,
            NOBODY,
        )
        left: list[tuple[str, Row]] = []
        bad: list[str] = []
        changes: list[tuple[str, str | None, int]] = []
        for number, call_id, function, parcel, attempt in rows:
            try:
                if not isinstance(call_id, str) or not call_id:
                    raise ValueError("its id is no text")
                if not isinstance(parcel, str):
                    raise ValueError("its arguments are no text in UTF-8")  # noqa: TRY004 - what is wrong is the row
                if not isinstance(attempt, int) or attempt < 0:
                    raise ValueError("its attempt is no number")
                left.append((function, Row(number, call_id, mine, attempt, read(function, parcel))))
                changes.append((mine, None, number))
            except ValueError as error:
                bad.append(f"{function} #{number} ({error})")
                changes.append(("", str(error), number))

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany("UPDATE calls SET owner = ?, aside = ? WHERE rowid = ?", changes)

        if changes:
            self._in_transaction(work)
        return left, bad, rows[-1][0] if rows else last

    def set_strangers_aside(self, functions: Sequence[str], *, unless_others_live: bool) -> list[str]:
        """Set aside the calls that dead processes left for functions not in *functions*. Returns how many, for each function."""
        self._opened()
        marks = ", ".join("?" * len(functions))
        ended = []
        for owner in self._others():
            dead = self._dead(owner)
            if dead is not None:
                with dead:
                    ended.append(owner)
            elif unless_others_live:
                return []
        whose = f"aside IS NULL AND owner IN ({', '.join('?' * len(ended))}) AND ifnull(function NOT IN ({marks}), 1)"

        def work(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(
                f"SELECT function, count(*) FROM calls WHERE {whose} GROUP BY function", (*ended, *functions)
            ).fetchall()
            connection.execute(f"UPDATE calls SET aside = ? WHERE {whose}", (NOBODY, *ended, *functions))
            return [f"{count} of {function if function is None else shown(str(function))}" for function, count in found]

        if not self._ask(f"SELECT 1 FROM calls WHERE {whose} LIMIT 1", *ended, *functions):
            return []
        return self._in_transaction(work)

    def _ask(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        def step() -> list[tuple[Any, ...]]:
            with self._lock:
                return self._opened().execute(sql, parameters).fetchall()

        return until_free(step)

    # --- the file ---------------------------------------------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            with self._lock:
                if self._connection is None:
                    self._open()
        assert self._connection is not None
        return self._connection

    def _open(self) -> None:
        with suppress(FileExistsError):
            os.close(liveness.make_private(os.path.realpath(self.path)))
        while True:
            before = os.stat(self.path)
            connection = connect(self.path)
            try:
                until_free(partial(connection.execute, "PRAGMA journal_mode = WAL"))
                until_free(partial(connection.execute, TABLE))
                self._file = os.stat(self.path)
                if os.path.samestat(before, self._file):
                    self._sign = liveness.own_sign(self.path)
                    break
            except BaseException:
                connection.close()
                raise
            connection.close()
        self._synchronous = ""
        self._connection = connection
        # Never freed, because a forked child that frees its copy would close the connection.
        keep_for_ever(connection)

    def _close_file(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        sign, self._sign = self._sign, None
        if sign is not None:
            sign.remove()

    def close(self) -> None:
        """End the writer thread, close the file and remove the sign. The next use opens it again."""
        self.end_writer()
        with self._lock:
            self._close_file()

    # --- forks ------------------------------------------------------------------------------------------------------------

    def end_writer(self) -> None:
        """Have the writer thread write what is queued, and end."""
        with self._post_box:
            self._ending = True
            self._posted.notify_all()
            writer = self._writer
        if writer is not None:
            writer.join(_BUSY)
        self._ending = False

    def hold_still(self) -> None:
        """Before a fork: keep all threads out of SQLite. The child would find SQLite's locks in memory held for ever."""
        self.end_writer()
        self._lock.acquire()

    def go_on(self) -> None:
        """After the fork, in the parent."""
        self._lock.release()


def connect(path: str) -> sqlite3.Connection:
    """Connect without implicit transactions and without waiting for locks. Text that is not UTF-8 is read as bytes."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    connection.text_factory = _text
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block does, or roll it back on any error. No transaction stays open."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _is_busy(error: BaseException | None) -> bool:
    """Whether *error* only means that another connection is writing: SQLITE_BUSY or SQLITE_LOCKED, with any extended code."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def until_free(step: Callable[[], T], patience: float = _BUSY) -> T:
    """Do *step*, and retry for up to *patience* seconds while another process writes. SQLite's own waiting would hold its locks."""
    deadline = time.monotonic() + patience
    pause = 0.001
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() >= deadline:
                raise
        time.sleep(random.uniform(0, pause))
        pause = min(0.02, pause * 1.5)
