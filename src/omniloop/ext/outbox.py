"""
Writes each call down before it returns, and keeps it until an engine, or this very process, has done with it. No server needed.

    jobs = Outbox("jobs.sqlite", Taskiq(make))  # on disk, then on its way to the broker
    jobs = Outbox("jobs.sqlite")  # on disk, then run here: a killed process's calls run at the next start

SQLite stores, with `synchronous=FULL`, and filelock tells who is alive: each process holds a lock that dies with it, and what a dead
process held is taken up by the next to come, or by a sibling, at once and without a lease. A library of queues would add a claim for
each call, which needs one: litequeue's can't be prolonged (and it needs 3.12), and persist-queue gives the items of a living sibling
to a process that opens the file. Here no call is claimed by anybody but the process that made it, or inherited it: four statements.
"""

from __future__ import annotations

import asyncio
import glob
import json
import os
import sqlite3
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from threading import RLock
from typing import Any, Final

from filelock import FileLock, Timeout

from omniloop._brokers.handover import Delivery, Engine, Function, resume
from omniloop._errors import NoResultError
from omniloop._process.fork import keep_for_ever
from omniloop._report import say
from omniloop._shared import go, shared_runtime, to_thread

# Seconds between two looks for processes that have died.
_LOOK: Final = 0.5

# Seconds that SQLite waits for another process to finish writing.
_BUSY: Final = 30.0

# Outcomes of calls that ran here are kept for so many, for those who ask for them late.
_OUTCOMES: Final = 10_000

# So many run here at once, if nothing else is said: they are work, not messages.
_HERE_AT_ONCE: Final = 100


class Outbox(Engine):
    """
    An engine that writes down what is on its way to another, or to the functions here.

    A call is on disk when it returns; it stays there until the engine has taken it, or, without one, until its function has returned
    or raised. What a killed process had written down goes on when the next process that has the same functions starts, within a
    second, and may run a second time: `current_delivery` tells. Any number of processes on one host may use one file.

    Args:
        path: Of the file, and of files beside it that begin with its name. On a local disk: the locks of network file systems lie.
        engine: Where the calls go. None: their functions run in this process.
        at_once: So many calls are on their way at the same time; by default 16, or 100 that run here.
        waiting: So many may be on their way and waiting for it; a call beyond that raises `FullError`, and is not on disk.

    Raises:
        TypeError: if *engine* is none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        engine: Engine | None = None,
        *,
        at_once: int | None = None,
        waiting: int = Engine.waiting,
    ) -> None:
        if engine is not None and not isinstance(engine, Engine):
            raise TypeError(
                f"Outbox({os.fspath(path)!r}, {engine!r}): the second argument is an engine, such as Taskiq(make), or None."
            )
        self.path = os.path.abspath(path)
        self.engine = engine
        self.at_once = at_once or (Engine.at_once if engine is not None else _HERE_AT_ONCE)
        self.waiting = waiting
        self._functions: dict[str, Function] = {}
        self._stores: dict[int, _Store] = {}
        self._outcomes: OrderedDict[str, tuple[bool, Any]] = OrderedDict()

    @property
    def label(self) -> str:
        """The name of the file, and where the calls go from there."""
        name = f"Outbox {os.path.basename(self.path)}"
        return name if self.engine is None else f"{name} → {self.engine.label}"

    @property
    def kept(self) -> str:
        """What becomes of calls that were not handed over in time."""
        return f"; they are kept in {self.path}, and go on at the next start"

    def bind(self, function: Function) -> None:
        """
        Take note of a function, and take up what dead processes have left for it.

        Raises:
            ValueError: if the next process could not find it by its name.
        """
        if self.engine is not None:
            self.engine.bind(function)
        elif not function.named and "<" in function.name:
            raise ValueError(f"{function.original!r}: the next process could not find it. Give it a name=.")
        self._functions[function.name] = function
        if os.path.exists(self.path):
            self._look(now=True)

    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Write the call down. Blocks until the disk has it.

        Raises:
            TypeError: if an argument can't be carried.
            Error: of `sqlite3`, if the file can't be written; the call is not made.
        """
        if self.engine is not None:
            text = json.dumps(self.engine.pack(function, call_id, args, kwargs))
        else:
            try:
                text = json.dumps([args, kwargs])
            except (TypeError, ValueError) as error:
                raise TypeError(f"{function.name}(): {error}. Pass what JSON knows, such as an id.") from None
            received = json.loads(text)
            function.check(args, kwargs, tuple(received[0]), received[1], "Pass something that JSON knows.")
        self._store().add(call_id, function.name, text)
        self._look()
        return call_id, text, 1

    async def send(self, function: Function, parcel: Any) -> None:
        """Bring the call to the engine, or run it here; then cross it out."""
        call_id, text, attempt = parcel
        if self.engine is not None:
            await self.engine.send(function, json.loads(text))
        else:
            args, kwargs = json.loads(text)
            try:
                outcome = True, await function.run(Delivery(call_id, attempt), tuple(args), kwargs)
            except Exception as error:
                # The call's own end, and not trouble on the way: it is over.
                outcome = False, error
                say("%s %s failed", function.name, call_id, level=40, error=error)
            self._outcomes[call_id] = outcome
            if len(self._outcomes) > _OUTCOMES:
                self._outcomes.popitem(last=False)
        await self._store().cross_out(call_id)

    async def fetch(self, function: Function, call_id: str, timeout: float | None) -> Any:
        """
        Ask the engine; or return, or raise, what came of a call that ran here.

        Raises:
            NoResultError: if there is no engine, and the call did not run in this process, or too long ago.
        """
        if self.engine is not None:
            return await self.engine.fetch(function, call_id, timeout)
        if call_id not in self._outcomes:
            raise NoResultError(
                f"What came of {function.name} {call_id} is not kept: it did not run in this process, or long ago."
            )
        fine, value = self._outcomes[call_id]
        if fine:
            return value
        raise value

    def _store(self) -> _Store:
        pid = os.getpid()
        return self._stores.get(pid) or self._stores.setdefault(pid, _Store(self.path))

    def _look(self, *, now: bool = False) -> None:
        """Look for what dead processes have left, unless that was just done."""
        store = self._store()
        if store.may_look(now):
            # Work, so that a program that ends at once has looked all the same.
            go(self._look_once(store), name=f"take up what is left in {os.path.basename(self.path)}")

    async def _look_once(self, store: _Store) -> None:
        while True:
            functions = len(self._functions)
            try:
                living = await self._take_up(store)
            except BaseException:
                store.looked()
                raise
            if living:
                # They may die yet.
                go(self._watch(store), name=f"watch the others of {os.path.basename(self.path)}", daemon=True)
                return
            # Unless a function was defined meanwhile.
            if store.looked(partial(self._has_only, functions)):
                return

    def _has_only(self, functions: int) -> bool:
        return len(self._functions) == functions

    async def _watch(self, store: _Store) -> None:
        try:
            await asyncio.sleep(_LOOK)
            while await self._take_up(store):
                await asyncio.sleep(_LOOK)
        finally:
            store.looked()

    async def _take_up(self, store: _Store) -> bool:
        """Go on with what the dead have left; tells whether others live that have calls."""
        left, living = await to_thread(store.inherit, list(self._functions))
        runtime, way = shared_runtime(), self._way()
        for call_id, name, text, attempt in left:
            while not way.has_room():
                await asyncio.sleep(_LOOK / 10)
            resume(self, self._functions[name], runtime, call_id, (call_id, text, attempt))
        if left:
            say("%s: %d calls that another process has left go on.", self.label, len(left), level=20)
        return living


class _Store:
    """What one process has of the file. A fork makes another, and leaves this one as it is: SQLite's connections do not survive it."""

    def __init__(self, path: str) -> None:
        self._path = path
        # Re-entrant, because a signal handler may make a call in the middle of another.
        self._lock = RLock()
        self._connections: tuple[sqlite3.Connection, sqlite3.Connection] | None = None
        self._owner = ""
        self._alive: FileLock | None = None
        # Apart from the other, which is held while the disk is busy.
        self._look_lock = RLock()
        self._looks = False
        self._last_look = -_LOOK
        # On the loop's thread alone.
        self._done: list[tuple[str, asyncio.Future[None]]] = []
        self._crossing_out = False

    def add(self, call_id: str, function: str, text: str) -> None:
        with self._lock:
            writer, _ = self._open()
            writer.execute(
                "INSERT INTO calls (id, owner, function, parcel, attempt) VALUES (?, ?, ?, ?, 1)",
                (call_id, self._owner, function, text),
            )

    async def cross_out(self, call_id: str) -> None:
        """Many at a time: those that come while the disk is busy wait for the next turn together."""
        done = asyncio.get_running_loop().create_future()
        self._done.append((call_id, done))
        if not self._crossing_out:
            self._crossing_out = True
            go(self._cross_out(), name="cross out what is done")
        await done

    async def _cross_out(self) -> None:
        try:
            while self._done:
                batch, self._done = self._done, []
                try:
                    await to_thread(self._remove, [call_id for call_id, _ in batch])
                except Exception as error:
                    for _, done in batch:
                        if not done.done():
                            done.set_exception(error)
                else:
                    for _, done in batch:
                        if not done.done():
                            done.set_result(None)
        finally:
            self._crossing_out = False

    def _remove(self, ids: Iterable[str]) -> None:
        with self._lock:
            _, remover = self._open()
            remover.execute("BEGIN IMMEDIATE")
            remover.executemany("DELETE FROM calls WHERE id = ?", [(call_id,) for call_id in ids])
            remover.execute("COMMIT")

    def may_look(self, now: bool) -> bool:
        """Whether to look: one at a time, and not again soon unless *now*."""
        with self._look_lock:
            if self._looks or (not now and time.monotonic() - self._last_look < _LOOK):
                return False
            self._looks = True
            return True

    def looked(self, enough: Callable[[], bool] = lambda: True) -> bool:
        """End the look, unless something came meanwhile that was not looked for."""
        with self._look_lock:
            if not enough():
                return False
            self._looks = False
            self._last_look = time.monotonic()
            return True

    def inherit(self, functions: list[str]) -> tuple[list[tuple[str, str, str, int]], bool]:
        """Take over the calls of dead processes that are for *functions*; also tells whether others live that have calls."""
        left: list[tuple[str, str, str, int]] = []
        living = False
        with self._lock:
            writer, _ = self._open()
            marks = ", ".join("?" * len(functions))
            owners = {
                owner
                for (owner,) in writer.execute(
                    f"SELECT DISTINCT owner FROM calls WHERE function IN ({marks})", functions
                )
            }
            owners.discard(self._owner)
            for owner in owners | {
                path[len(self._path) + 1 : -5] for path in glob.glob(f"{glob.escape(self._path)}.*.lock")
            }:
                if owner == self._owner:
                    continue
                lock = FileLock(self._lock_file(owner), timeout=0, thread_local=False)
                try:
                    lock.acquire()
                except Timeout:
                    living = living or owner in owners
                    continue
                try:
                    left += self._inherit_from(writer, owner, functions, marks)
                    (others,) = writer.execute("SELECT count(*) FROM calls WHERE owner = ?", (owner,)).fetchone()
                    if not others:
                        # While it is held, so that nobody takes it for that of a process that begins.
                        _unlink(self._lock_file(owner))
                finally:
                    lock.release()
        return left, living

    def _inherit_from(
        self, writer: sqlite3.Connection, owner: str, functions: list[str], marks: str
    ) -> list[tuple[str, str, str, int]]:
        writer.execute("BEGIN IMMEDIATE")
        rows = writer.execute(
            f"SELECT id, function, parcel, attempt + 1 FROM calls WHERE owner = ? AND function IN ({marks}) ORDER BY rowid",
            (owner, *functions),
        ).fetchall()
        writer.executemany(
            "UPDATE calls SET owner = ?, attempt = ? WHERE id = ?", [(self._owner, row[3], row[0]) for row in rows]
        )
        writer.execute("COMMIT")
        return rows

    def _lock_file(self, owner: str) -> str:
        return f"{self._path}.{owner}.lock"

    def _open(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        if self._connections is None:
            self._announce()
            # What is done need not be on disk at once: at worst it is done again.
            self._connections = self._connect("FULL"), self._connect("NORMAL")
            # A child that is forked must not close them: they are this process's.
            keep_for_ever(self._connections)
        return self._connections

    def _announce(self) -> None:
        """Take the lock that tells the others that this process lives; the system lets go of it when it dies."""
        while True:
            self._owner = uuid.uuid4().hex
            path = self._lock_file(self._owner)
            self._alive = FileLock(path, timeout=_BUSY, thread_local=False)
            self._alive.acquire()
            if os.path.exists(path):
                return
            # Another took the file for that of a dead process, before it was locked.

    def _connect(self, synchronous: str) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        _patiently(
            lambda: connection.execute(
                "CREATE TABLE IF NOT EXISTS calls (id TEXT PRIMARY KEY, owner TEXT NOT NULL, function TEXT NOT NULL, "
                "parcel TEXT NOT NULL, attempt INTEGER NOT NULL)"
            )
        )
        return connection


def _patiently(call: Callable[[], object]) -> None:
    """SQLite's own time limit does not count for the change of the journal."""
    deadline = time.monotonic() + _BUSY
    while True:
        try:
            call()
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
