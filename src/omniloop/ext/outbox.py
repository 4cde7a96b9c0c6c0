"""
Writes each call down before it returns, and keeps it until an engine, or this very process, has done with it. No server needed.

    jobs = Outbox("jobs.sqlite", Taskiq(make))  # on disk, then on its way to the broker
    jobs = Outbox("jobs.sqlite")  # on disk, then run here: a killed process's calls run at the next start

SQLite stores, and a locked file tells who is alive: what a dead process held is taken up by the next to come, or by a sibling, at once
and without a lease. A library of queues would add a claim for each call, which needs one: litequeue's can't be prolonged (and it needs
3.12), and persist-queue gives the items of a living sibling to a process that opens the file. Here no call is claimed by anybody but
the process that made it, or inherited it.

To run a call and to cross it out are two steps. When its function has ended, only the second is tried again, however long it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import json
import os
import random
import sqlite3
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

from omniloop._bridges.resource import resource
from omniloop._brokers.handover import Delivery, Engine, Function, Sent, resume, was_cancelled
from omniloop._brokers.store import Row, Store
from omniloop._errors import NoResultError, RefusedError
from omniloop._locks import Guard
from omniloop._report import say
from omniloop._shared import go, shared_runtime, to_thread

# Seconds between two looks for processes that have died.
_LOOK: Final = 0.5

# Seconds after which a function that is not defined by then is taken for one that never will be.
_GRACE: Final = 5.0

# Between two tries to write what can't be written now, in seconds: from the first to the most.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0

# Outcomes of calls that ran here are kept for so many, for those who ask for them late.
_OUTCOMES: Final = 10_000

# So many run here at once, if nothing else is said: they are work, not messages.
_HERE_AT_ONCE: Final = 100

# So many of those that another process has left are on their way, or wait for it, at the same time.
_LEFT_AT_ONCE: Final = 1_000

# So many are named in one line of the log.
_NAMED: Final = 10


class Outbox(Engine):
    """
    An engine that writes down what is on its way to another, or to the functions here.

    A call is on disk when it returns; it stays there until the engine has taken it, or, without one, until its function has returned
    or raised. What a killed process had written down goes on when the next process that has the same functions starts, within a
    second, and may run a second time: `current_delivery` tells. Any number of processes on one host may use one file.

    What can't be read, or is refused for good, is set aside, said once at ERROR, and listed by ``python -m omniloop outbox FILE``.

    Args:
        path: Of the file, and of files beside it that begin with its name; they are made so that their user alone can read them. On a
            local disk: the locks of network file systems lie.
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
        self._offices: dict[int, _Office] = {}
        # On the loop's thread alone: what came of calls that ran here, and who waits to know.
        self._outcomes: OrderedDict[str, tuple[bool, Any]] = OrderedDict()
        self._asked: dict[str, asyncio.Future[None]] = {}

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
            ValueError: if the next process could not find it by its name, or the name is taken.
        """
        function._check_name(self._functions.get(function.name, function))
        if self.engine is not None:
            self.engine.bind(function)
        elif not function.named and "<" in function.name:
            raise ValueError(f"{function.original!r}: the next process could not find it. Give it a name=.")
        self._functions[function.name] = function
        if os.path.exists(self.path):
            self._office().look(now=True)

    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Write the call down. Blocks until the disk has it.

        Raises:
            TypeError: if an argument can't be carried.
            OSError: if the file was removed or replaced; the call is not made, and the next one goes on with the new file.
            Error: of `sqlite3`, if the file can't be written; the call is not made.
        """
        if self.engine is not None:
            parcel = self.engine.pack(function, call_id, args, kwargs)
            text = json.dumps(parcel)
        else:
            text = function._as_json(args, kwargs, nan=True)
            parcel = json.loads(text)
        office = self._office()
        row = office.store.add(call_id, function.name, text, parcel)
        try:
            office.look()
        except BaseException:
            office.store.take_back(row)
            raise
        return row

    async def send(self, function: Function, parcel: Any) -> None:
        """Bring the call to the engine, or run it here."""
        if self.engine is not None:
            await self.engine.send(function, parcel.call)
        elif await self._office().store.begin(parcel):
            await self._run(function, parcel)
        elif not parcel.taken_back:
            # Only by the hand of a user, who has removed the sign that this process lives.
            say(
                "%s: the call %s is not this process's any more, and does not run here.",
                self.label,
                parcel.id,
                level=40,
            )

    async def _run(self, function: Function, row: Row) -> None:
        args, kwargs = row.call
        try:
            outcome = True, await function.run(Delivery(row.id, row.attempt), tuple(args), kwargs)
        except BaseException as error:
            if was_cancelled(error):
                # The end of this process, and not of the call.
                raise
            # The call's own end, and not trouble on the way: it is over.
            say("%s %s failed", function.name, row.id, level=40, error=error)
            outcome = False, _without_frames(error)
        self._outcomes[row.id] = outcome
        if len(self._outcomes) > _OUTCOMES:
            self._outcomes.popitem(last=False)
        if (asked := self._asked.pop(row.id, None)) is not None and not asked.done():
            asked.set_result(None)

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
        # Another one, because being raised gives it the frames of who asks.
        raise _without_frames(value)

    async def _arrived(self, parcel: Any, refusal: RefusedError | None) -> None:
        """Cross it out, or set it aside, however long that takes."""
        row: Row = parcel
        store = self._office().store
        if refusal is None:
            await self._insist(row, partial(store.cross_out, row), "crossed out")
        else:
            await self._insist(row, partial(store.set_aside, row, str(refusal)), "set aside")
            self._tell_set_aside([f"{row.id} ({refusal})"])

    async def _insist(self, row: Row, write: Callable[[], Awaitable[None]], what: str) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await write()
            except (sqlite3.Error, OSError) as error:
                if pause == _FIRST_PAUSE:
                    self._office().trouble(what, row.id, error)
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _take_back(self, parcel: Any) -> None:
        self._office().store.take_back(parcel)

    async def _until_known(self, sent: Sent[Any]) -> None:
        if self.engine is not None or sent.accepted.done():
            await super()._until_known(sent)
        elif sent.id not in self._outcomes:
            asked = self._asked.setdefault(sent.id, asyncio.get_running_loop().create_future())
            accepted = asyncio.ensure_future(super()._until_known(sent))
            try:
                await asyncio.wait([asked, accepted], return_when=asyncio.FIRST_COMPLETED)
                if not asked.done():
                    # Refused, or cut off.
                    await accepted
            finally:
                accepted.cancel()

    def _tell_set_aside(self, names: list[str]) -> None:
        if names:
            say(
                "%s: set aside, and run nowhere: %s%s. `python -m omniloop outbox %s` lists them, and requeues or drops them.",
                self.label,
                ", ".join(names[:_NAMED]),
                ", …" if len(names) > _NAMED else "",
                self.path,
                level=40,
            )

    def _read(self, name: str, text: str) -> Any:
        """The call that *text* is; ValueError if it is none."""
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
    """What one process does for an outbox: its store, and the looks for what others have left."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.store = Store(outbox.path)
        # Closed after all work, in each life of the runtime.
        self._open = resource(partial(_kept, self.store))
        # Apart from the store's, which is held while the disk is busy.
        self._lock = Guard()
        self._looks = False
        self._last_look = -_LOOK
        self._graced = False
        self._said: dict[str, float] = {}

    def trouble(self, what: str, call_id: str, error: Exception) -> None:
        """Say, once a minute, what can't be written."""
        now = time.monotonic()
        if now - self._said.get(what, -60) >= 60:
            self._said[what] = now
            say(
                "%s: the call %s is over, and can't be %s: %s. That alone is tried again; it does not run again in this process.",
                self._outbox.label,
                call_id,
                what,
                error,
            )

    def look(self, *, now: bool = False) -> None:
        """Look for what dead processes have left, unless that was just done; one look at a time."""
        with self._lock:
            if self._looks or (not now and time.monotonic() - self._last_look < _LOOK):
                return
            self._looks = True
        # Work, so that a program that ends at once has looked all the same.
        self._go(self._look_once(), "take up what is left in")

    def _go(self, coro: Coroutine[Any, Any, None], what: str, *, daemon: bool = False) -> None:
        # In an empty context: what goes on is nobody's who is at work here.
        go(coro, name=f"{what} {os.path.basename(self._outbox.path)}", daemon=daemon, context=contextvars.Context())

    async def _look_once(self) -> None:
        living = True
        try:
            await self._open
            while True:
                functions = len(self._outbox._functions)
                living = await self._take_up()
                with self._lock:
                    # Unless a function was defined meanwhile.
                    if living or functions == len(self._outbox._functions):
                        break
        finally:
            with self._lock:
                self._looks = False
                self._last_look = time.monotonic()
        if living:
            # They may die yet.
            self._go(self._watch(), "watch the others of", daemon=True)
        if not self._graced:
            self._graced = True
            self._go(self._wait_for_functions(), "wait for the functions of", daemon=True)

    async def _watch(self) -> None:
        await asyncio.sleep(_LOOK)
        self.look(now=True)

    async def _take_up(self) -> bool:
        """Go on with what the dead have left; tells whether others live that have calls."""
        outbox = self._outbox
        runtime, way = shared_runtime(), outbox._way()
        living, count = False, 0
        batches = self.store.take_up(list(outbox._functions), outbox._read)
        try:
            while (batch := await to_thread(next, batches, None)) is not None:
                left, bad, lives = batch
                living = living or lives
                outbox._tell_set_aside(bad)
                for function, row in left:
                    # The rest of the room is for calls that are made meanwhile.
                    while not way.has_room(_LEFT_AT_ONCE):
                        await asyncio.sleep(0.01)
                    resume(outbox, outbox._functions[function], runtime, row.id, row)
                    count += 1
                    if not count % 50:
                        # The loop is for others too.
                        await asyncio.sleep(0)
        finally:
            batches.close()
        if count:
            say("%s: %d calls that another process has left go on.", outbox.label, count, level=20)
        return living

    async def _wait_for_functions(self) -> None:
        """When all modules are loaded, set aside what nobody has a function for."""
        ends = True
        try:
            await asyncio.sleep(_GRACE)
            ends = False
        finally:
            self._graced = False
            strangers = await to_thread(
                self.store.set_strangers_aside, list(self._outbox._functions), unless_others_live=ends
            )
            self._outbox._tell_set_aside([f"{name}, which no process had" for name in strangers])


@contextlib.asynccontextmanager
async def _kept(store: Store) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await to_thread(store.close)


def _without_frames(error: BaseException) -> BaseException:
    """A copy without tracebacks, whose frames would hold all that the call had in its hands."""
    copies: dict[int, BaseException] = {}

    def copied(error: BaseException | None) -> BaseException | None:
        if error is None:
            return None
        other = copies.get(id(error))
        if other is None:
            if isinstance(error, BaseExceptionGroup):
                other = error.derive([inner for inner in map(copied, error.exceptions) if inner is not None])
            else:
                other = error
                # Not every class can be copied.
                with contextlib.suppress(Exception):
                    other = copy.copy(error)
            copies[id(error)] = other
            other.__cause__, other.__context__ = copied(error.__cause__), copied(error.__context__)
            other.__suppress_context__ = error.__suppress_context__
            other.__traceback__ = None
        return other

    without = copied(error)
    assert without is not None
    return without
