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
from contextlib import closing, contextmanager, nullcontext, suppress
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
        # The file as it was opened, to notice a replacement; and this process's sign, a new one with each opening, and its name.
        self._file: os.stat_result | None = None
        self._sign: liveness.Sign | None = None
        self._owner = ""
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
            if self._queue or not self._write_alone(statement):
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
        ours = await self._soon(row, _BEGIN, row.attempt + 1)
        row.attempt += ours
        return ours

    async def finish(self, row: Row, aside: str | None) -> None:
        """
        Delete a call that is done; or set it aside, and why: from now on every process leaves it alone.

        Need not be on disk at once: at worst the call runs again.
        """
        await (self._soon(row, _CROSS_OUT) if aside is None else self._soon(row, _SET_ASIDE, aside))

    # --- writing ----------------------------------------------------------------------------------------------------------

    async def _soon(self, row: Row, sql: str, *parameters: object) -> bool:
        """Write a statement, in a batch with others of this iteration of the loop. False if the call is not ours any more."""
        if row.key[2] == self._owner:
            statement = _Statement(sql, *parameters, *row.key)
            await self._batches.send(statement)
            if statement.result():
                return True
        # In a file that is gone there is nothing to change.
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
            except BaseException as error:
                # After Ctrl-C the thread may still run. It then sees that it is not `_writer`, and ends.
                self._writer = None
                if not isinstance(error, RuntimeError):
                    raise
                # No thread can be started, for example at the end of the interpreter: write here.
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
        self._write([statement for statements, _ in queue for statement in statements])
        for _, tell in queue:
            tell()

    def _write(self, statements: Sequence[_Statement], *, patience: float = _BUSY) -> None:
        """Execute the statements in one transaction; if that fails, each in a transaction of its own."""

        def work(connection: sqlite3.Connection) -> None:
            for statement in statements:
                cursor = connection.execute(statement.sql, statement.parameters)
                statement.outcome = cursor.lastrowid or 0 if statement.sql is _ADD else cursor.rowcount
                statement.error = None

        added = [statement.parameters[0] for statement in statements if statement.sql is _ADD]
        try:
            self._do(work, durable=bool(added), single=len(statements) == 1, patience=patience)
            if added:
                self._check_file(added)
        except BaseException as error:
            if len(statements) > 1 and not _is_busy(error) and not isinstance(error, ReplacedError):
                for statement in statements:
                    self._write([statement])
                return
            for statement in statements:
                statement.error = error

    def _do(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        durable: bool = False,
        single: bool = False,
        patience: float = _BUSY,
    ) -> T:
        """Do *work* in one transaction; a *single* statement needs no BEGIN. Waits up to *patience* seconds for other processes."""
        mode = "FULL" if durable else "NORMAL"

        def step() -> T:
            with self._lock:
                connection = self._opened()
                if mode != self._synchronous:
                    # If the statement is interrupted, the next call executes it again.
                    self._synchronous = ""
                    connection.execute(f"PRAGMA synchronous = {mode}")
                    self._synchronous = mode
                with nullcontext() if single else transaction(connection):
                    return work(connection)

        return until_free(step, patience)

    def _ask(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._do(lambda connection: connection.execute(sql, parameters).fetchall(), single=True)

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
        whose = f"FROM calls WHERE owner = ? AND function IN ({_marks(functions)}) AND (aside IS NULL OR aside = ?)"
        some = f"SELECT rowid, id, function, parcel, attempt {whose} ORDER BY rowid LIMIT {BATCH}"
        with closing(self._others()) as others:
            for owner, dead in others:
                if dead is None:
                    if self._ask(f"SELECT 1 {whose} LIMIT 1", owner, *functions, NOBODY):
                        yield [], [], True
                    continue
                while rows := self._ask(some, owner, *functions, NOBODY):
                    yield *self._take_over(rows, read), False
                if not self._ask("SELECT 1 FROM calls WHERE owner = ? AND aside IS NULL LIMIT 1", owner):
                    dead.remove()

    def _others(self) -> Generator[tuple[str, liveness.Sign | None], None, None]:
        """Yield each other process that may have calls, with its sign if it is dead, which is held until the next one."""
        found = {owner for (owner,) in self._ask("SELECT DISTINCT owner FROM calls")}
        owners = {owner for owner in found if owner == "" or liveness.is_owner(owner)}
        if owners != found:
            # No process has such a name, so these calls belong to nobody: any process may take them up.
            nobodys = "owner IS NULL OR typeof(owner) != 'text' OR length(owner) != 32 OR owner GLOB '*[^0-9a-f]*'"
            self._do(lambda connection: connection.execute(f"UPDATE calls SET owner = '' WHERE {nobodys}"))
            owners.add("")
        for owner in sorted(owners.union(liveness.owners(self.path)) - {self._owner}):
            dead = None
            try:
                dead = liveness.sign_of_dead(self.path, owner)
            except OSError as error:
                if owner not in self._told:
                    self._told.add(owner)
                    message = "%s: whether a process lives that may have calls here can't be told, so its calls are left alone; all others go on. %s"
                    say(message, self.path, error, level=40)
            with dead or nullcontext():
                yield owner, dead

    def _take_over(
        self, rows: Sequence[tuple[Any, ...]], read: Callable[[str, str], Any]
    ) -> tuple[list[tuple[str, Row]], list[str]]:
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
                left.append((function, Row(number, call_id, self._owner, attempt, read(function, parcel))))
                changes.append((self._owner, None, number))
            except ValueError as error:
                bad.append(f"{function} #{number} ({error})")
                changes.append(("", str(error), number))
        change = "UPDATE calls SET owner = ?, aside = ? WHERE rowid = ?"
        self._do(lambda connection: connection.executemany(change, changes))
        return left, bad

    def set_strangers_aside(self, functions: Sequence[str], unless_others_live: bool) -> list[str]:
        """Set aside the calls that dead processes left for functions not in *functions*. Returns how many, for each function."""
        ended = []
        for owner, dead in self._others():
            if dead is not None:
                ended.append(owner)
            elif unless_others_live:
                return []
        whose = f"aside IS NULL AND owner IN ({_marks(ended)}) AND ifnull(function NOT IN ({_marks(functions)}), 1)"
        count = f"SELECT function, count(*) FROM calls WHERE {whose} GROUP BY function"
        change, names = f"UPDATE calls SET aside = ? WHERE {whose}", (*ended, *functions)

        def work(connection: sqlite3.Connection) -> list[tuple[Any, int]]:
            found = connection.execute(count, names).fetchall()
            connection.execute(change, (NOBODY, *names))
            return found

        # Asked first: usually there is none, and nothing to wait for.
        found = self._ask(count, *names) and self._do(work)
        return [f"{count} of {function if function is None else shown(str(function))}" for function, count in found]

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
                    self._owner = self._sign.owner
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
        sign, self._sign, self._owner = self._sign, None, ""
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


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


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
