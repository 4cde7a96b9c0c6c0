"""
Hands calls over to an engine that keeps them: packs each in the caller's thread, sends it from the loop, retries until it is taken.

An engine has four functions (`Engine`): `bind` a function, `pack` a call, `send` a parcel, `fetch` a result. This module does what is
the same for every engine: it checks that the function would receive what was passed, limits how many calls are on their way, retries,
and makes what a call returns (`Sent`).

No timeout and no cancelled waiter takes a call back. A hand-over fails in two cases only: the engine refuses the call for good, or the
process ends first. An ending process waits for its hand-overs, up to `exit_timeout`, and names the rest in the log.

The kind of error decides which calls have to wait. After a connection error (`OSError`, `EOFError`) all calls wait while one at a time
tries, until the engine can be reached. Any other error concerns its own call: that call waits, without a place, and the others go on.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import random
import sys
import types
import typing
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar, final

from .._arguments import check_count, check_timeout
from .._errors import FullError, NotAsyncError, RefusedError, WaitTimeoutError
from .._report import caller, say
from .._shared import shared_runtime
from .._threads import Guard, time
from .._work.task import CANCELLED, DAEMON, FAILED, HANDOVER, SUCCEEDED, Task

if TYPE_CHECKING:
    from datetime import datetime

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

# Seconds between two tries: the first pause and the longest one. The longest decides how soon a broker that is back is noticed.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0

# Seconds until the same trouble is logged again.
_SAY_AGAIN: Final = 60.0

# Errors that mean the engine can't be reached. A `TimeoutError` is an `OSError`; asyncio's streams end with an `EOFError`.
_UNREACHABLE: Final = (OSError, EOFError)

# Errors that nearly always mean that the call itself is at fault, and will fail again. The call still gets five tries, the last about
# 1.5 s after the first: a restarting proxy may answer with something other than JSON, which is a ValueError too.
_OF_THE_CALL: Final = (TypeError, ValueError, OverflowError, RecursionError)
_TRIES: Final = 5

_NOTHING_FOR_IT: Final = (
    "The engine has nothing for it, annotated or not: pass something else that says the same, such as a string."
)


_NOT_OF_A_BROKER: Final = {
    "daemon": "what is handed over to a broker is not cancelled at exit.",
    "context": "what is handed over runs in another process.",
    "timeout": "how long a call may take there is the engine's to say.",
    "on_error": "the failures of calls that are handed over are the engine's.",
    "runtime": "calls are handed over by the runtime that the process shares.",
}


class Delivery(NamedTuple):
    """
    What the engine tells about the call that is running: see `current_delivery`.

    Attributes:
        id: The id of the call: the same for each of its deliveries, and the same as `Sent.id` in the caller.
        attempt: 1 for the first delivery, more if an earlier one did not run to its end. None if the engine does not tell.

    Example:
        >>> from omniloop import Delivery
        >>> delivery = Delivery(id="5f3a", attempt=2)
        >>> delivery.attempt > 1  # an earlier one did not come to its end
        True
    """

    id: str
    attempt: int | None


_delivery: ContextVar[Delivery] = ContextVar("omniloop_delivery")

# The arguments of a call, positional and by keyword.
_Call = tuple[tuple[Any, ...], dict[str, Any]]

# The earliest time at which calls made in this context may run. Read by the `pack` of an engine whose `can_defer` is True.
due: ContextVar[datetime | None] = ContextVar("omniloop_due", default=None)


def current_delivery() -> Delivery | None:
    """
    Return the id of the handed-over call that is running, and how often it was delivered; None outside of such a call.

    Engines deliver at least once: when a worker is killed, its calls may run a second time. May be called anywhere in the work,
    also in the tasks and worker threads that it starts. Does not block.

    Example:
        >>> import asyncio
        >>> from omniloop import background, current_delivery
        >>> @background
        ... async def notify(name):
        ...     delivery = current_delivery()
        ...     return "called here" if delivery is None else f"attempt {delivery.attempt}"
        >>> notify("ada").result(timeout=5)
        'called here'
    """
    return _delivery.get(None)


@final
class Function:
    """
    A function whose calls are handed over, in the form that its engine gets. Made by `background(broker=…)`.

    Attributes:
        name: The name under which a worker finds the function.
        original: The function that was decorated.
        signature: Its signature.
        named: True if *name* was given; False if it was made from the module and the qualified name.

    Example:
        >>> from omniloop import Engine, background
        >>> class Noting(Engine):
        ...     def bind(self, function):
        ...         print(function.original.__name__, function.signature)
        ...     def pack(self, function, call_id, args, kwargs): ...
        ...     async def send(self, function, parcel): ...
        ...     async def fetch(self, function, call_id, timeout): ...
        >>> @background(broker=Noting(), name="shop.notify")
        ... async def notify(name): ...
        notify (name)
    """

    def __init__(self, original: Callable[..., Any], name: str | None, here: Callable[..., Task[Any]]) -> None:
        self.original = original
        self.named = name is not None
        self.name = name or f"{original.__module__}:{original.__qualname__}"
        self.signature = signature_of(original)
        self._here = here

    @functools.cached_property
    def hints(self) -> dict[str, Any]:
        """The annotations, resolved on first use. Annotations that can't be resolved are left out."""
        original = inspect.unwrap(self.original)
        hints: dict[str, Any] = {}
        for name, annotation in _annotations(original).items():
            # Each by itself, because one may name something that is imported for type checkers only.
            with suppress(Exception):
                one = types.SimpleNamespace(__annotations__={name: annotation})
                hints |= typing.get_type_hints(one, getattr(original, "__globals__", {}), include_extras=True)
        return hints

    @property
    def findable(self) -> bool:
        """Whether another process that imports the module finds the function under its name."""
        return self.named or not ("<" in self.name or self.name.startswith("__main__:"))

    def check(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        received_args: tuple[Any, ...],
        received_kwargs: Mapping[str, Any],
        way_out: str,
    ) -> None:
        """
        Refuse a call whose function would not receive what was passed. For `Engine.pack`.

        Args:
            args: The positional arguments that the caller passed.
            kwargs: The keyword arguments that the caller passed.
            received_args: The positional arguments as the engine would deliver them.
            received_kwargs: The keyword arguments as the engine would deliver them.
            way_out: What the caller can do, as a sentence; `{name}` and `{type}` stand for the parameter and the type of its value.

        Raises:
            TypeError: if an argument would arrive changed. The message names the parameter and what would arrive.
        """
        if _same(args, received_args) and _same(kwargs, received_kwargs):
            # Saves most calls from binding the signature twice.
            return
        received = self.signature.bind(*received_args, **received_kwargs).arguments
        for name, value in self.signature.bind(*args, **kwargs).arguments.items():
            other = received.get(name)
            if name not in received or not _same(value, other):
                advice = way_out.format(name=name, type=type(value).__name__) if other is not None else _NOTHING_FOR_IT
                raise TypeError(
                    f"{self.name}({name}={_short(value)}) would arrive as {_short(other)}, a {type(other).__name__}. {advice}"
                )

    def _as_json(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, nan: bool) -> tuple[str, list[Any]]:
        """The arguments as a JSON list, `[args, kwargs]`, and what JSON makes of it. Raises TypeError if JSON can't carry them."""
        try:
            text = json.dumps([args, kwargs], allow_nan=nan)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self.name}(): {error}. Pass what JSON knows, such as an id.") from None
        call: list[Any] = json.loads(text)
        self.check(args, kwargs, tuple(call[0]), call[1], "Pass something that JSON knows.")
        return text, call

    def _places(self) -> set[object]:
        """
        Where the function is defined: its qualified name, and its line in the file.

        Two functions that share a place are the same function, defined again in a notebook or by a reload.
        """
        code = getattr(self.original, "__code__", None)
        place = (self.original.__module__, self.original.__qualname__)
        return {place, code and (code.co_filename, code.co_firstlineno)} - {None}

    def _check_findable(self) -> None:
        """Raise ValueError if a worker that imports the module would not find the function under its name."""
        if not self.findable:
            raise ValueError(
                f"{self.original!r}: a worker imports the module under another name, and would not find it. Give it a name=, such as "
                f'@background(broker=…, name="{self.original.__name__}"), or define it in a module that both import.'
            )

    def _check_name(self, other: Function) -> None:
        """Raise ValueError unless *other*, which has the same name, is this function or an earlier definition of it."""
        if self._places().isdisjoint(other._places()):
            raise ValueError(
                f"{self.original!r}: another function is called {self.name!r} already, {other.original!r}. Give one of them a name=."
            )

    def _not_of(self, engine: Engine, parcel: object) -> RefusedError:
        return RefusedError(
            f"{self.name}: what is to be sent was packed for another engine than {engine.label}: {parcel!r:.100}. Hand it over "
            "with that engine, or drop it."
        )

    async def run(self, delivery: Delivery, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """
        Run the function in this process, on omniloop's loop or in a worker thread. For the worker's side of an engine.

        May be awaited on any loop. Raises what the function raises.
        """
        token = _delivery.set(delivery)
        try:
            task = self._here(*args, **kwargs)
        finally:
            _delivery.reset(token)
        return await task

    def __repr__(self) -> str:
        return f"<Function {self.name}>"


class Engine(ABC):
    """
    Keeps calls beyond the process: the contract between `background(broker=…)` and a task queue.

    Subclass it for a queue of your own. What is common to all engines is already done: the arguments are checked against the
    signature before `pack`, `send` is retried until it returns, *at_once* limits the calls being sent, and `Sent` waits for `fetch`.

    Attributes:
        at_once: How many calls are being sent at the same time, at most.
        waiting: How many calls may be on their way, including those being sent; a call beyond that raises `FullError`.
        can_defer: Whether the engine can hold a call back until a given time, as Django's `run_after` asks for.

    Example:
        >>> from omniloop import Delivery, Engine, background
        >>> class InMemory(Engine):  # stands for one whose worker is another process
        ...     def bind(self, function):
        ...         self.results = {}
        ...     def pack(self, function, call_id, args, kwargs):
        ...         return call_id, args, kwargs
        ...     async def send(self, function, parcel):
        ...         call_id, args, kwargs = parcel
        ...         self.results[call_id] = await function.run(Delivery(call_id, attempt=1), args, kwargs)
        ...     async def fetch(self, function, call_id, timeout):
        ...         return self.results.pop(call_id)
        >>> @background(broker=InMemory())
        ... async def notify(name):
        ...     return f"told {name}"
        >>> notify("ada").result(timeout=5)
        'told ada'
    """

    at_once: int = 16
    waiting: int = 10_000
    can_defer: bool = False

    @abstractmethod
    def bind(self, function: Function) -> None:
        """
        Register a function. Called when it is decorated: at import, both in the calling process and in the worker.

        Must not connect to anything. The worker's side of the engine calls `Function.run` for each call.

        Raises:
            ValueError: if the engine can't carry this function; say why, and what to do.
        """

    @abstractmethod
    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Make a parcel of a call. Called in the caller's thread and context, so it must not wait for a server.

        The caller may mutate its arguments afterwards; the parcel must not change with them. Call `Function.check` with the
        arguments that the worker would receive.

        Args:
            call_id: The id of the call. The engine hands it on to `Function.run`, in a `Delivery`, and gets it in `fetch`.

        Raises:
            TypeError: if an argument can't be carried; the message names it.
        """

    @abstractmethod
    async def send(self, function: Function, parcel: Any) -> None:
        """
        Send a parcel to the engine; return when the engine keeps it for good. Called on the runtime's loop.

        The class of an error decides what happens next. `OSError` (which includes `ConnectionError` and `TimeoutError`) and `EOFError`
        mean that the engine can't be reached: all calls wait while one tries. Any other error concerns this call alone, which is
        retried: up to five tries with `TypeError`, `ValueError`, `OverflowError` or `RecursionError`, without limit for other errors.
        So a parcel may be sent twice.

        Raises:
            RefusedError: if the engine will never take this call. The call is not retried, and `Sent.accepted` fails with this error.
        """

    @abstractmethod
    async def fetch(self, function: Function, call_id: str, timeout: float | None) -> Any:
        """
        Wait for the result of a call: return its value, or raise its error. Called on the runtime's loop.

        Args:
            timeout: Seconds. None waits without end, 0 asks once.

        Raises:
            WaitTimeoutError: if *timeout* passed; a `TimeoutError` of another class is the function's own.
            NoResultError: if this engine keeps no results.
        """

    @property
    def label(self) -> str:
        """The name of the engine in logs and `tasks()`."""
        return type(self).__name__

    @property
    def kept(self) -> str:
        """What becomes of calls that were not handed over before the process ended, for its log. Empty by default: they are lost."""
        return ""

    async def _arrived(self, parcel: Any, refusal: BaseException | None) -> None:  # noqa: B027 - most have nothing left to do
        """Finish a call that the engine has taken or refused. `Sent.accepted` waits for this; the call's place is free by then."""

    def _take_back(self, parcel: Any) -> None:  # noqa: B027 - and nothing to forget
        """Forget a call that was packed but is not sent, because its caller gets an error."""

    async def _until_known(self, sent: Sent[Any]) -> None:
        """Wait until it makes sense to `fetch`."""
        await sent.accepted

    def _way(self) -> Way:
        # One for each process id: a forked child must not inherit the parent's calls, nor a lock that another thread holds.
        ways: dict[int, Way] = vars(self).setdefault("_ways", {})
        pid = os.getpid()
        return ways.get(pid) or ways.setdefault(pid, Way(self))


@final
class Sent(Generic[T]):
    """
    A call that was handed over: what a function decorated with `background(broker=…)` returns.

    Nothing takes the call back: dropping this object does not, and a wait that times out or is cancelled only stops waiting. May be
    used in any thread, unless a method says otherwise.

    Attributes:
        id: The id of the call, the same in the worker: see `current_delivery`.
        accepted: A `Task` that is done when the engine has the call; the end of the program waits for it. Its `cancel()` returns
            False. It fails with `RefusedError` if the engine will never take the call.

    Example:
        >>> from omniloop import Delivery, Engine, background
        >>> class InMemory(Engine):  # stands for one whose worker is another process
        ...     def bind(self, function):
        ...         self.results = {}
        ...     def pack(self, function, call_id, args, kwargs):
        ...         return call_id, args, kwargs
        ...     async def send(self, function, parcel):
        ...         call_id, args, kwargs = parcel
        ...         self.results[call_id] = await function.run(Delivery(call_id, attempt=1), args, kwargs)
        ...     async def fetch(self, function, call_id, timeout):
        ...         return self.results.pop(call_id)
        >>> @background(broker=InMemory())
        ... async def notify(name):
        ...     return f"told {name}"
        >>> sent = notify("ada")
        >>> sent.accepted.result(timeout=5)  # the engine has it
        >>> sent.result(timeout=5)
        'told ada'
    """

    __slots__ = ("_engine", "_function", "accepted", "id")

    def __init__(self, engine: Engine, function: Function, call_id: str, accepted: Task[None]) -> None:
        self.id = call_id
        self.accepted = accepted
        self._engine = engine
        self._function = function

    def result(self, timeout: float | None = None) -> T:
        """
        Wait until the function has run, wherever that is, and return its value or raise its error.

        Blocks. Not for the loop's own thread, signal handlers or finalisers. The engine must keep results. If the class of the error
        can't be made in this process, an error that names the class is raised instead.

        Args:
            timeout: Seconds to wait, the hand-over included. None waits without end, 0 asks once.

        Raises:
            WaitTimeoutError: if *timeout* passed. The call is not affected; ask again.
            NoResultError: if the engine keeps no results; the message says how to have them kept.
            RefusedError: if the engine will never take the call.
            WouldDeadlockError: if called on the loop's own thread.
            CancelledError: of `concurrent.futures`, if the end of the process ended the hand-over.
        """
        check_timeout(timeout)
        shared_runtime()._current().check_may_wait("result() of a call that was handed over", "await it")
        return shared_runtime()._run(self._value(timeout), None, caller())

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the value in async code, on any event loop. Cancelling the waiter only ends the waiting."""
        name = f"value of {self!r}"
        return shared_runtime()._go(self._value(None), caller(), name, kind=DAEMON, when_full="accept").__await__()

    async def _value(self, timeout: float | None) -> T:
        deadline = None if timeout is None else time.monotonic() + timeout
        limit = asyncio.timeout(None if self.accepted.done() else timeout)
        try:
            async with limit:
                await self._engine._until_known(self)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            value: T = await self._engine.fetch(self._function, self.id, left)
            return value
        except TimeoutError as error:
            # Any other is the function's own.
            if not limit.expired() and not isinstance(error, WaitTimeoutError):
                raise
        raise WaitTimeoutError(f"{self!r} had no result after {timeout} s. It goes its way: ask again.")

    def __repr__(self) -> str:
        outcome = self.accepted._outcome()
        ending = None if outcome is None else outcome[0]
        state = "accepted" if ending is SUCCEEDED else "refused" if ending is FAILED else "on its way"
        return f"<Sent {self._function.name} {self.id}, {state}>"


class Way:
    """
    Brings the calls of this process to one engine: limits how many wait and how many are sent at once, and retries.

    Up to `at_once` are sent while the engine can be reached, one at a time while it can't. Semaphore and lock are fair, and a call that
    has failed queues up anew, so a call that itself breaks the connection is not the one that tries twice in a row.
    """

    def __init__(self, engine: Engine) -> None:
        for name in ("at_once", "waiting"):
            check_count(name, getattr(engine, name))
        self._engine = engine
        # Re-entrant, because a signal handler may make a call in the middle of another.
        self._lock = Guard()
        # The ids of the calls on their way. Ids, not a count: a caller that was interrupted may give a place back that it never had,
        # or a second time.
        self._open: set[str] = set()
        self._lost: list[str] = []
        # When each trouble was last logged. The key is the name of a function and the class of an error, or None for an engine that
        # can't be reached.
        self._said: dict[object, float] = {}
        # Whether an outage was logged, whose end is to be logged too.
        self._told = False
        # The rest is used on the loop's thread only. After a shutdown there is another loop, and no call is on its way.
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self, name: str, call_id: str) -> None:
        """Take a place for a call. Raises FullError if there is none."""
        tally = shared_runtime()._tally
        with self._lock:
            if len(self._open) < self._engine.waiting:
                self._open.add(call_id)
                tally.handing_over.add(call_id)
                return
        tally.count("refused")
        raise FullError(
            f"{name}: {self._engine.waiting} calls are on their way to {self._engine.label} already, and it does not take them as fast as they "
            "come. Nothing was handed over: make the call again later, or raise the engine's `waiting`."
        )

    def leave(self, call_id: str, lost: str | None = None) -> None:
        """
        Give the call's place back, if it has one. *lost* names a call that was not handed over.

        The last call to leave logs all names of lost calls.
        """
        with self._lock:
            shared_runtime()._tally.handing_over.discard(call_id)
            if call_id not in self._open:
                return
            self._open.remove(call_id)
            if lost is not None:
                self._lost.append(lost)
            if self._open or not self._lost:
                return
            names, self._lost = self._lost, []
        message = "%s: the process ended before these %d calls were handed over%s: %s"
        say(message, self._engine.label, len(names), self._engine.kept, ", ".join(names))

    async def hand_over(self, engine: Engine, function: Function, parcel: Any) -> None:
        """Retry until the engine has the call. Raises RefusedError if the engine will never take it."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._places, self._trying = asyncio.Semaphore(self._engine.at_once), asyncio.Lock()
            # True while the engine can't be reached. Then only the call that holds the lock is sent.
            self._down = False
            # Of the outage that is, or the next; a failure of a call that was sent before the last one's end says nothing about now.
            self._outage = pauses()
        waits, failed = pauses(), 0
        while True:
            # Not `async with`, which takes 2 µs more for each call.
            await self._places.acquire()
            try:
                error = await self._send(engine, function, parcel)
            finally:
                self._places.release()
            if error is None or isinstance(error, RefusedError):
                break
            unreachable = isinstance(error, _UNREACHABLE)
            self._tell(function, error, None if unreachable else (function.name, type(error)))
            # While the engine can't be reached, `_send` makes the pauses.
            if not unreachable:
                failed += isinstance(error, _OF_THE_CALL)
                if failed == _TRIES:
                    words = f"{type(error).__name__}: {error}"
                    refusal = f"{engine.label} does not take the call of {function.name}, in {_TRIES} tries. {words}"
                    error = caused(RefusedError(refusal), error)
                    break
                await asyncio.sleep(next(waits))
        await engine._arrived(parcel, error)
        if error is not None:
            raise error

    async def _send(self, engine: Engine, function: Function, parcel: Any) -> BaseException | None:
        """Send a call, in its turn while the engine can't be reached. Returns its error."""
        if self._down:
            async with self._trying:
                if self._down:
                    await asyncio.sleep(next(self._outage))
                    return await self._try(engine, function, parcel)
        return await self._try(engine, function, parcel)

    async def _try(self, engine: Engine, function: Function, parcel: Any) -> BaseException | None:
        outage, error = self._outage, None
        try:
            await engine.send(function, parcel)
        except (Exception, asyncio.CancelledError) as raised:
            if was_cancelled(raised):
                raise
            if isinstance(raised, _UNREACHABLE):
                self._down = self._down or outage is self._outage
                return raised
            error = raised
        if self._down:
            self._down, self._outage = False, pauses()
        if self._told:
            self._told = False
            say("%s takes calls again.", engine.label)
        return error

    def is_news(self, trouble: object) -> bool:
        """Whether *trouble* is to be logged: not within a minute of the last time."""
        now = time.monotonic()
        if now - self._said.get(trouble, -_SAY_AGAIN) < _SAY_AGAIN:
            return False
        self._said[trouble] = now
        return True

    def _tell(self, function: Function, error: BaseException, trouble: tuple[str, type] | None) -> None:
        if self.is_news(trouble):
            self._told = self._told or trouble is None
            label, count, error = self._engine.label, len(self._open), error.__cause__ or error
            message = "%s does not take the call of %s; %d are on their way, and are tried again. %s: %s"
            say(message, label, function.name, count, type(error).__name__, error)


def pauses(first: float = _FIRST_PAUSE, longest: float = _LONGEST_PAUSE) -> Iterator[float]:
    """Seconds between tries: longer each time, and random, so that not all processes come at once to a server that has just come back."""
    while True:
        yield first * random.uniform(0.5, 1)
        first = min(longest, first * 2)


def caused(error: E, cause: BaseException | None) -> E:
    """Return *error* with its cause."""
    error.__cause__ = cause
    return error


def was_cancelled(error: BaseException) -> bool:
    """Whether *error* is a cancellation that was requested of the current task, not one that came out of a client library's tasks."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def handed_over(
    engine: Engine, fn: Callable[..., Any], name: str | None, here: Callable[..., Task[Any]]
) -> Callable[..., Sent[Any]]:
    """Make the function that `background(broker=…)` returns. *here* runs the original in this process."""
    if not isinstance(engine, Engine):
        raise TypeError(
            f"broker={engine!r} is no engine. Give omniloop.ext.taskiq.Taskiq(make_broker), another of omniloop.ext, or an Engine of your own."
        )
    function = Function(fn, name, here)
    engine.bind(function)

    def start(*args: Any, **kwargs: Any) -> Sent[Any]:
        frame = caller()
        try:
            function.signature.bind(*args, **kwargs)
        except TypeError as error:
            # Raised here, in the caller, instead of in the worker.
            raise TypeError(f"{function.name}(): {error}") from None
        return _start(engine, function, frame, uuid.uuid4().hex, call=(args, kwargs))

    return start


def resume(engine: Engine, function: Function, call_id: str, parcel: Any) -> None:
    """Hand over a call that another process has packed. Raises FullError if there is no room."""
    _start(engine, function, caller(), call_id, parcel)


def _start(
    engine: Engine,
    function: Function,
    frame: types.FrameType,
    call_id: str,
    parcel: Any = None,
    call: _Call | None = None,
) -> Sent[Any]:
    """Hand over a *parcel*, or a *call*, its arguments, that is to be packed."""
    way, runtime, packed = engine._way(), shared_runtime(), None

    def done() -> None:
        ending, _ = accepted._ended()
        if ending is SUCCEEDED:
            runtime._tally.count("handed_over")
        way.leave(call_id, f"{function.name} {call_id}" if ending is CANCELLED else None)

    try:
        way.enter(function.name, call_id)
        if call is not None:
            args, kwargs = call
            # Without a star: after such a call of a method 3.14 may raise Ctrl-C, and what is on disk would not be taken back.
            parcel = packed = engine.pack(function, call_id, _settled(args), _settled(kwargs))
        # The name tells function, id and engine, because the log at exit shows it for a call that is lost.
        name = f"{function.name} {call_id} → {engine.label}"
        accepted: Task[None] = runtime._go(
            way.hand_over(engine, function, parcel), frame, name, kind=HANDOVER, when_full="accept"
        )
        accepted._when_done(done)
        return Sent(engine, function, call_id, accepted)
    except BaseException:
        way.leave(call_id)
        if packed is not None:
            engine._take_back(packed)
        raise


def checked_options(**options: object) -> None:
    """Raise ValueError for options of `background` that have no meaning for work in another process."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"{name}={value!r}: {_NOT_OF_A_BROKER[name]} Leave it away.")


def checked_function(fn: object) -> None:
    """Raise NotAsyncError for classes and methods, which another process can't call by name."""
    if isinstance(fn, (classmethod, type)) or "self" in list(signature_of(fn).parameters)[:1]:  # type: ignore[arg-type]
        raise NotAsyncError(
            f"{fn!r}: a class or an object does not go through a broker. Decorate a function, and pass what identifies the object."
        )


# --- annotations ----------------------------------------------------------------------------------------------------------


# Python 3.14 evaluates annotations lazily. FORWARDREF leaves names that are imported for type checkers only unresolved.
if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations

    signature_of = functools.partial(inspect.signature, annotation_format=Format.FORWARDREF)
    _annotations = functools.partial(get_annotations, format=Format.FORWARDREF)
else:
    signature_of = inspect.signature
    _annotations = inspect.get_annotations


# --- what is carried ----------------------------------------------------------------------------------------------------


def _settled(value: Any) -> Any:
    """Replace Django's lazy strings by plain ones, in the caller's language, because no serialiser knows lazy strings."""
    if (functional := sys.modules.get("django.utils.functional")) is None:
        return value
    kind = type(value)
    if kind in (list, tuple):
        return kind(map(_settled, value))
    if kind is dict:
        return {key: _settled(item) for key, item in value.items()}
    return str(value) if isinstance(value, functional.Promise) else value


def _same(sent: Any, received: Any) -> bool:
    """Whether *received* equals *sent*. Two nans are equal; objects without an `__eq__` are equal if their types are the same."""
    if sent is received:
        return True
    kind = type(sent)
    if issubclass(kind, float) and sent != sent:
        return isinstance(received, float) and received != received
    if kind in (list, tuple, dict):
        # Item by item: a list with a nan may not equal its copy.
        if type(received) is not kind or len(sent) != len(received):
            return False
        if kind is dict:
            return all(key in received and _same(value, received[key]) for key, value in sent.items())
        return all(map(_same, sent, received))
    if kind.__eq__ is object.__eq__:  # type: ignore[comparison-overlap]
        return type(received) is kind
    try:
        return bool(sent == received)
    except Exception:
        # An array compares element by element, and has no single truth value.
        return False


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
