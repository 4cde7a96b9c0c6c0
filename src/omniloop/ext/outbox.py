"""
Keeps each call on disk, before the call returns and until an engine has taken it or this process has run it. Needs no server.

    jobs = Outbox("jobs.sqlite", Taskiq(make))  # on disk, then on its way to the broker
    jobs = Outbox("jobs.sqlite")  # on disk, then run here: a killed process's calls run at the next start

SQLite stores the calls, and locked files tell which processes are alive. The next process to start, or one that runs already, takes
over a dead process's calls at once, without a lease. A queue library would need a claim, and so a lease, for each call: litequeue's
can't be prolonged (and it needs 3.12), and persist-queue gives the items of a living process to another that opens the file. Here a
call belongs to the process that made it, or that took it over from a dead one.

Running a call and deleting it from the file are two steps. Once the function has ended, only the second is retried, without limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import json
import math
import os
import sqlite3
import time
from collections.abc import Coroutine
from typing import Any, Final

from omniloop._bridges.resource import resource
from omniloop._brokers.handover import Delivery, Engine, Function, Sent, pauses, resume, was_cancelled
from omniloop._brokers.store import Row, Store
from omniloop._errors import NoResultError
from omniloop._report import say
from omniloop._shared import call_later, go, to_thread
from omniloop._threads import Guard

# Seconds between two checks for processes that have died.
_LOOK: Final = 0.5

# Seconds after which a function that is still not defined counts as one that never will be.
_GRACE: Final = 5.0

# Seconds between two tries of a write that fails: the first pause and the longest one.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0

# How many outcomes of calls that ran here are kept, for callers that ask late.
_OUTCOMES: Final = 10_000

# How many calls run here at once by default: more than an engine's, because they are work, not messages.
_HERE_AT_ONCE: Final = 100

# While this many calls are on their way, no more of a dead process's calls are added: the rest of the room is for new calls.
_LEFT_AT_ONCE: Final = 1_000

# How many calls one line of the log names.
_NAMED: Final = 10


class Outbox(Engine):
    """
    An engine that keeps calls on disk until another engine has taken them, or until they have run in this process.

    A call is on disk when it returns. It stays there until the engine has taken it or, without an engine, until its function has
    returned or raised. The calls of a killed process go on within a second of the start of the next process that has their functions,
    and may run a second time: `current_delivery` tells. Any number of processes on one host may use one file.

    Calls that can't be read, or are refused for good, are set aside: logged once at ERROR, and listed by
    ``python -m omniloop outbox FILE``.

    Args:
        path: The path of the file. Other files beside it begin with its name. All are created so that only their owner can read
            them. They must be on a local disk: the locks of network file systems are not reliable.
        engine: Where the calls go. None runs their functions in this process.
        at_once: How many calls are being sent, or run here, at the same time. By default 16, or 100 without an engine.
        waiting: How many calls may be on their way, including those; a call beyond that raises `FullError`, and is not on disk.

    Raises:
        TypeError: if *engine* is neither an engine nor None.
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
        self._offices: dict[int, _Office] = {}
        # Used on the loop's thread only: what came of calls that ran here, or is waited for: the value, or the error.
        self._outcomes: dict[str, asyncio.Future[Any]] = {}

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
        Register a function, and take over the calls that dead processes left for it.

        Raises:
            ValueError: if the next process could not find the function by its name, or the name is taken.
        """
        function._check_name(self._functions.get(function.name, function))
        if self.engine is not None:
            self.engine.bind(function)
        elif not function.named and "<" in function.name:
            raise ValueError(f"{function.original!r}: the next process could not find it. Give it a name=.")
        self._functions[function.name] = function
        if os.path.exists(self.path):
            self._office().look(True)

    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Write the call to the file. Blocks until it is on disk.

        Raises:
            TypeError: if an argument can't be carried.
            OSError: if the file was removed or replaced; the call is not made, and the next one goes on with the new file.
            Error: of `sqlite3`, if the file can't be written; the call is not made.
        """
        if self.engine is not None:
            parcel = self.engine.pack(function, call_id, args, kwargs)
            text = json.dumps(parcel)
        else:
            text, parcel = function._as_json(args, kwargs, nan=True)
        office = self._office()
        row = office.store.add(call_id, function.name, text, parcel)
        try:
            office.look()
            return row
        except BaseException:
            office.store.take_back(row)
            raise

    async def send(self, function: Function, parcel: Any) -> None:
        """Send the call to the engine, or run it here."""
        if self.engine is not None:
            await self.engine.send(function, parcel.call)
        elif await self._office().store.begin(parcel):
            await self._run(function, parcel)
        elif not parcel.taken_back:
            # Happens only if somebody removed this process's sign: another process took it for dead, and took over its calls.
            message = "%s: the call %s is not this process's any more, and does not run here."
            say(message, self.label, parcel.id, level=40)

    async def _run(self, function: Function, row: Row) -> None:
        args, kwargs = row.call
        value, failed = None, None
        try:
            value = await function.run(Delivery(row.id, row.attempt), tuple(args), kwargs)
        except BaseException as error:
            if was_cancelled(error):
                # The process ends; the call stays in the file.
                raise
            # The function itself failed, so the call is over and is not retried.
            say("%s %s failed", function.name, row.id, level=40, error=error)
            failed = _without_frames(error)
        outcome = self._outcome(row.id)
        # The last to be thrown out: who waits for it has not looked yet.
        self._outcomes[row.id] = self._outcomes.pop(row.id)
        if not outcome.done():
            outcome.set_result((value, failed))

    def _outcome(self, call_id: str) -> asyncio.Future[Any]:
        outcome = self._outcomes.get(call_id)
        if outcome is None:
            outcome = self._outcomes[call_id] = asyncio.get_running_loop().create_future()
            if len(self._outcomes) > _OUTCOMES:
                del self._outcomes[next(iter(self._outcomes))]
        return outcome

    async def fetch(self, function: Function, call_id: str, timeout: float | None) -> Any:
        """
        Ask the engine; without one, return or raise the outcome of a call that ran here.

        Raises:
            NoResultError: if there is no engine, and the call did not run in this process, or ran too long ago.
        """
        if self.engine is not None:
            return await self.engine.fetch(function, call_id, timeout)
        outcome = self._outcomes.get(call_id)
        if outcome is None or not outcome.done():
            raise NoResultError(
                f"What came of {function.name} {call_id} is not kept: it did not run in this process, or long ago."
            )
        value, failed = outcome.result()
        if failed is not None:
            # A copy, because raising an error adds the frames of this caller to it.
            raise _without_frames(failed)
        return value

    async def _arrived(self, parcel: Any, refusal: BaseException | None) -> None:
        """Delete the call from the file, or set it aside if it was refused. Retries without limit."""
        what, why = ("crossed out", None) if refusal is None else ("set aside", str(refusal))
        waits = pauses(_FIRST_PAUSE)
        while True:
            try:
                await self._office().store.finish(parcel, why)
                break
            except (sqlite3.Error, OSError) as error:
                if self._way().is_news(what):
                    message = "%s: the call %s is over, and can't be %s: %s. That alone is tried again; it does not run again in this process."
                    say(message, self.label, parcel.id, what, error)
            await asyncio.sleep(next(waits))
        if why is not None:
            self._tell_set_aside([f"{parcel.id} ({why})"])

    def _take_back(self, parcel: Any) -> None:
        self._office().store.take_back(parcel)

    async def _until_known(self, sent: Sent[Any]) -> None:
        if self.engine is not None or sent.accepted.done():
            await super()._until_known(sent)
        elif not (outcome := self._outcome(sent.id)).done():
            accepted: asyncio.Future[Any] = asyncio.ensure_future(super()._until_known(sent))
            try:
                await asyncio.wait([outcome, accepted], return_when=asyncio.FIRST_COMPLETED)
                if not outcome.done():
                    # The call was refused, or the process ends: raise that.
                    await accepted
            finally:
                accepted.cancel()

    def _tell_set_aside(self, names: list[str]) -> None:
        if names:
            some = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
            message = "%s: set aside, and run nowhere: %s. `python -m omniloop outbox %s` lists them, and requeues or drops them."
            say(message, self.label, some, self.path, level=40)

    def _read(self, name: str, text: str) -> Any:
        """Return the call that *text* holds. Raises ValueError if it holds none that *name* accepts."""
        try:
            call = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its arguments are no JSON: {error}") from None
        if self.engine is None:
            try:
                args, kwargs = call
                self._functions[name].signature.bind(*args, **kwargs)
            except (TypeError, ValueError) as error:
                raise ValueError(f"its arguments are not those of {name}(): {error}") from None
        return call

    def _office(self) -> _Office:
        pid = os.getpid()
        return self._offices.get(pid) or self._offices.setdefault(pid, _Office(self))


class _Office:
    """An outbox in one process: its store, and the tasks that look for calls of dead processes."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.store = Store(outbox.path)
        # A resource, so that the store is closed after all work each time the runtime shuts down.
        self._open = resource(lambda: self.store, lambda store: to_thread(store.close))
        # Separate from the store's lock, which is held while the disk is busy.
        self._lock = Guard()
        # The time of the next look; infinite while one is running.
        self._next_look = -math.inf
        self._graced = False

    def look(self, now: bool = False) -> None:
        """Start a look for calls of dead processes, unless one is running or, without *now*, has just ended."""
        with self._lock:
            if self._next_look == math.inf or (not now and time.monotonic() < self._next_look):
                return
            self._next_look = math.inf
        # Not a daemon, so that even a program that ends at once finishes its look.
        self._go(self._look_once(), "take up what is left in")

    def _go(self, coro: Coroutine[Any, Any, None], what: str, *, daemon: bool = False) -> None:
        # In an empty context, because this work does not belong to the caller that happens to start it.
        go(coro, name=f"{what} {os.path.basename(self._outbox.path)}", daemon=daemon, context=contextvars.Context())

    async def _look_once(self) -> None:
        living = True
        try:
            await self._open
            while True:
                functions = len(self._outbox._functions)
                living = await self._take_up()
                with self._lock:
                    # If a function was defined meanwhile, look again for its calls; if others live, that is done anyway.
                    if living or functions == len(self._outbox._functions):
                        break
        finally:
            with self._lock:
                self._next_look = time.monotonic() + _LOOK
        if living:
            # Living processes have calls: look again later, because those processes may die.
            call_later(_LOOK, self.look, True, context=contextvars.Context())
        if not self._graced:
            self._graced = True
            self._go(self._wait_for_functions(), "wait for the functions of", daemon=True)

    async def _take_up(self) -> bool:
        """Hand over the calls of dead processes. Returns whether a living process has calls for our functions."""
        outbox, way = self._outbox, self._outbox._way()
        living, count = False, 0
        batches = self.store.take_up(list(outbox._functions), outbox._read)
        try:
            while (batch := await to_thread(next, batches, None)) is not None:
                left, bad, lives = batch
                living = living or lives
                outbox._tell_set_aside(bad)
                for function, row in left:
                    # Leaves the rest of the places to new calls.
                    while len(way._open) >= min(_LEFT_AT_ONCE, outbox.waiting):
                        await asyncio.sleep(0.01)
                    resume(outbox, outbox._functions[function], row.id, row)
                    count += 1
                    if not count % 50:
                        # Let other tasks of the loop run.
                        await asyncio.sleep(0)
        finally:
            batches.close()
        if count:
            say("%s: %d calls that another process has left go on.", outbox.label, count, level=20)
        return living

    async def _wait_for_functions(self) -> None:
        """Set aside dead processes' calls for unknown functions: after `_GRACE` seconds, when all modules are loaded, or at the end."""
        ends = True
        try:
            await asyncio.sleep(_GRACE)
            ends = False
        finally:
            self._graced = False
            strangers = await to_thread(self.store.set_strangers_aside, list(self._outbox._functions), ends)
            self._outbox._tell_set_aside([f"{name}, which no process had" for name in strangers])


def _without_frames(error: BaseException, copies: dict[int, BaseException] | None = None) -> BaseException:
    """Copy *error* and its causes without tracebacks, whose frames would keep all local variables of the call alive."""
    copies = {} if copies is None else copies
    if (other := copies.get(id(error))) is None:
        other = error
        # A class that can't be copied: keep the original, without its traceback.
        with contextlib.suppress(Exception):
            if isinstance(error, BaseExceptionGroup):
                other = error.derive([_without_frames(inner, copies) for inner in error.exceptions])
            else:
                other = copy.copy(error)
        copies[id(error)] = other
        cause, context = error.__cause__, error.__context__
        other.__cause__ = cause and _without_frames(cause, copies)
        other.__context__ = context and _without_frames(context, copies)
        other.__suppress_context__ = error.__suppress_context__
        other.__traceback__ = None
    return other
