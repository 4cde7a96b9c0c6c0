"""
The handle of one piece of work: a `concurrent.futures.Future` that can also be awaited, on any event loop.

The kinds of work (`Kind`):

    WORK      `flush` and the drain wait for it
    HANDOVER  the same, and it can't be cancelled
    DAEMON    the drain cancels it when the work is done
    KEEPER    keeps something open for all other work, and ends after it

The state of a handle is one word, `_work`:

    submitted   the coroutine or the function, and `_since` is not set
    begun       the same: the coroutine runs in its first step; or the function runs, and `_since` is its start time
    running     the asyncio task
    done        the outcome, a tuple; `_args` and `_context` are None, so that the handle keeps nothing else alive

What is guaranteed. A handle that was returned settles exactly once, and every waiter, of whichever kind, learns of it. A failure is either
claimed by whoever asks for the outcome, or reported.

The meeting is where the outcome and the waiters find each other, without a lock if nobody waits: a handle has a `_Meeting`, which has a lock
of its own, only when somebody has asked for one. Everything rests on one order:

    settle: write the outcome into `_work`, then look for a meeting: there? store the outcome in it too, and tell its waiters
    wait:   make the meeting, then look into `_work`: an outcome? store it in the meeting

Both sides write before they look, so whichever comes second sees the other. If the meeting is there first, the outcome is stored in it
alone, and written into `_work` when the waiters are told. What a meeting says is what counts: so if two threads may settle the same work (it
ends at the very moment when the end of the life gives it up), one of them asks for the meeting first, and its lock decides.

Waiters that come at once agree on one meeting by `setdefault` on a dictionary that all handles share, and that is empty between two calls.
What was tried: a list for each handle, whose first item decided, was one more object for the garbage collector to visit (of nine that a
pending coroutine is made of on 3.14; it took a quarter of the time that many pending ones spent in the collector on 3.11); `setdefault` on
the instance's dictionary costs 270 ns for making that dictionary (3.13).

Who may touch what. Methods without an underscore are for any thread, unless they say otherwise. Of the others, `_settle`, `_fail`,
`_end_cancelled` and `_settle_from` are for the thread that handles the work: the loop's thread, the worker that made the call, or the
thread that ended the work before it began.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import sys
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from threading import Lock
from traceback import StackSummary
from types import CoroutineType, FrameType, TracebackType, coroutine
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Protocol, TypeVar, final
from weakref import ref

from .. import _cpython
from .._arguments import check_timeout, close_unstarted
from .._errors import TaskTimeoutError, WaitTimeoutError, WouldDeadlockError, WrongLoopError, can_be_thrown
from .._hooks import who_runs_here
from .._process import fork
from .._report import Failure, Site, innermost, shown
from .._threads import Guard, give_way, time
from .failures import Failures, Unclaimed
from .tally import Entry, Tally

T = TypeVar("T")

SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
Ending = Literal["succeeded", "failed", "cancelled"]


# What the end of a runtime means for a piece of work: see the top of the module.
Kind = Literal["work", "daemon", "keeper", "handover"]
WORK: Final[Kind] = "work"
DAEMON: Final[Kind] = "daemon"
KEEPER: Final[Kind] = "keeper"
HANDOVER: Final[Kind] = "handover"

# The owner of what is submitted and made in a context, and in all contexts that are copied from it: see `leftovers`.
belongs_to: Final[ContextVar[Any]] = ContextVar("omniloop_belongs_to")

_same_process: Final = fork.same_process


def copied(context: object, coro: object) -> Context:
    """Return a copy of *context*: the caller may be inside it, and a context can't be entered twice. Closes *coro* if it refuses."""
    if not isinstance(context, Context):
        close_unstarted(coro)
        raise TypeError(f"context={context!r}: give a contextvars.Context, such as copy_context() returns, or None.")
    copy = context.copy()
    if (owner := belongs_to.get(None)) is not None:
        # The owner is the caller's, as its own context says.
        copy.run(belongs_to.set, owner)
    return copy


class Dropped(str):
    """The reason of a cancellation for lack of room under the bounds: the work then counts as dropped."""

    __slots__ = ()


# How the work ended, and with what: the value, the `Unclaimed` error, or the arguments of the cancellation.
Outcome = tuple[Ending, Any]


if TYPE_CHECKING:
    from .._hooks import Elsewhere

    class Maker(Protocol):
        """What the making of a task needs of the runtime. An interface, so that this module does not depend on runtimes."""

        @property
        def _life(self) -> Owner: ...
        def _note(self, task: Task[Any], frame: FrameType) -> None: ...

    class Owner(Protocol):
        """What a task needs of the life that runs it."""

        noted: bool
        failures: Failures
        tally: Tally

        @property
        def ledger(self) -> Any: ...
        @property
        def foreign(self) -> bool: ...
        @property
        def ident(self) -> int | None: ...

        def check_process(self) -> None: ...
        def check_may_wait(self, what: Task[Any], instead: str) -> object: ...
        def wait(self, task: Task[Any], wait_here: Callable[[float], bool], timeout: float | None) -> bool: ...
        def cancel(self, task: Task[Any], msg: object) -> bool: ...
        def hold_failure(self, unclaimed: Unclaimed, task: Task[Any]) -> None: ...


@final
class _Meeting:
    """Where the waiters of a task meet its outcome; made only when somebody waits."""

    __slots__ = ("awaited", "before", "callbacks", "condition", "gates", "lock", "outcome", "waiters")

    def __init__(self) -> None:
        # Re-entrant, because a signal handler may look at the task that the interrupted frame is looking at.
        self.lock = Guard()
        self.outcome: Outcome | None = None
        # The runtime's own callback, called before anybody can see the outcome.
        self.before: Callable[[], None] | None = None
        self.gates: list[Lock] = []
        # A dict, because a waiter that gives up removes its own callback.
        self.callbacks: dict[Callable[[], object], None] = {}
        self.waiters: list[Any] = []
        # An entry for each waiter in async code. A dict, because each removes its own, and they may be 100,000.
        self.awaited: dict[object, None] = {}
        self.condition: threading.Condition | None = None


# The meetings that are being made. By task, which is compared by identity.
_new_meetings: Final[dict[Task[Any], _Meeting]] = {}

_OUR_CLAIM: Final = "a task is settled by the runtime that runs it"


@final
class Task(concurrent.futures.Future[T]):
    """
    A piece of work that a runtime has accepted: wait for it with `result()`, or await it on any event loop.

    Made by `go`, `call_soon` and their kin, never by hand. It takes part in `concurrent.futures.wait` and
    `as_completed`, and in `asyncio.wrap_future`. Drop it, and the work goes on; if the work then fails, that is reported.

    Unless a method says otherwise, it may be called from any thread.

    Example:
        >>> import asyncio
        >>> from omniloop import go
        >>> task = go(asyncio.sleep(0.01, "rested"))
        >>> task.result(timeout=5)
        'rested'
        >>> task.done(), task.cancelled(), task.exception()
        (True, False, None)
    """

    # Without the attributes of Future, whose `__init__` is not called: a lock, a condition and two lists for each task are most of what
    # `run_coroutine_threadsafe` costs. The attributes that other libraries read are properties below.
    __slots__ = (
        "_args",
        "_code",
        "_context",
        "_given_up",
        "_kind",
        "_lasti",
        "_meeting",
        "_name",
        "_owner",
        "_since",
        "_stack",
        "_work",
    )

    _work: Any

    # Set only where needed: when the work started, the whole stack of its submission in debug mode, and that `_give_up` was called.
    _since: float
    _stack: StackSummary
    _given_up: bool

    def __init__(
        self,
        runtime: Maker,
        work: Any,
        args: tuple[Any, ...] | None,
        context: Context | None,
        frame: FrameType,
        name: str | None = None,
        kind: Kind = WORK,
    ) -> None:
        """Make the handle of *work*, a coroutine or, with *args*, a function, which is submitted by *frame* in a copy of *context*."""
        if not _same_process[0]:
            fork.notice_fork()
        self._owner = life = runtime._life
        # The state: see the top of the module.
        self._work = work
        # None for a coroutine.
        self._args = args
        self._context: Context | None = copy_context() if context is None else copied(context, work)
        self._name = name
        self._kind = kind
        self._code = frame.f_code
        self._lasti = frame.f_lasti
        self._meeting: _Meeting | None = None
        if life.noted:
            runtime._note(self, frame)

    # --- asking ---------------------------------------------------------------------------------------------------

    def done(self) -> bool:
        """Tell whether the work has ended, in whichever way."""
        return self._outcome() is not None

    def cancelled(self) -> bool:
        """Tell whether the work ended by cancellation, its clean-up included."""
        outcome = self._outcome()
        return outcome is not None and outcome[0] is CANCELLED

    def running(self) -> bool:
        """Tell whether the work was started and has not ended."""
        return self._outcome() is None and self._is_started()

    def result(self, timeout: float | None = None) -> T:
        """
        Wait for the work and return its value, or raise the error it raised.

        Blocks; may be called from any thread but the loop's own, and not from a signal handler or a finaliser.

        Args:
            timeout: Seconds to wait. None waits without end, 0 asks without waiting.

        Raises:
            WaitTimeoutError: if *timeout* passed. The work goes on; ask again or cancel it.
            WouldDeadlockError: if the wait could never end: on the loop's own thread, for one.
            ForkedError: if the work is a parent process's, and not done.
            CancelledError: of `concurrent.futures`, if the work was cancelled.
        """
        value: T
        error = None
        try:
            self._wait(timeout)
            value, error = self._take(concurrent.futures.CancelledError)
            if error is None:
                return value
            # Raised here, so that this is the only line between the caller's and the work's in the traceback.
            raise error
        finally:
            # The traceback refers to this frame. Without this the two keep each other alive, and whatever the frames below refer to.
            del self, error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """
        Wait for the work and return the error it raised, or None.

        Blocks; may be called where `result()` may.

        Args:
            timeout: Seconds to wait. None waits without end, 0 asks without waiting.

        Raises:
            WaitTimeoutError: if *timeout* passed. The work goes on.
            WouldDeadlockError: if the wait could never end.
            ForkedError: if the work is a parent process's, and not done.
            CancelledError: of `concurrent.futures`, if the work was cancelled.
        """
        self._wait(timeout)
        ending, value = self._ended()
        if ending is CANCELLED:
            raise concurrent.futures.CancelledError(*value)
        return self._claim(value) if ending is FAILED else None

    def get_name(self) -> str:
        """Return the name that was given at submission; if none was, that of the coroutine or function."""
        # Read in this order, because settling sets the name before it replaces the work.
        work = self._work
        return self._name or _name_of(work)

    def add_done_callback(self, fn: Callable[[Task[T]], object]) -> None:
        """
        Call ``fn(task)`` when the work has ended: on the thread where it ends, or, if it has ended already, at once on this thread.

        An error in *fn* is reported, and harms neither the task nor the other callbacks. The callback alone does not
        claim a failure; asking for `result()` or `exception()` in it does. If *fn* is called at once, Ctrl-C in it is raised here.

        Raises:
            TypeError: if *fn* can't be called.
            ForkedError: if the work is a parent process's, and not done.
            WrongLoopError: if *fn* is that of `asyncio.wait`, whose loop would not hear of it.
        """
        if not callable(fn):
            raise TypeError(f"add_done_callback() takes a function of the task, and {fn!r} can't be called.")
        if getattr(fn, "__module__", None) == asyncio.tasks.__name__:
            # The callback sets a future of the caller's loop from the thread where the task ends. Nothing wakes that loop, which then
            # hung.
            raise WrongLoopError(
                f"asyncio.wait() can't take {self!r}, which ends in another thread. "
                "Wrap it: asyncio.wait([asyncio.ensure_future(task)])."
            )
        self._when_done(lambda: fn(self))

    # --- asking it to end -----------------------------------------------------------------------------------------

    def cancel(self, msg: object = None) -> bool:
        """
        Ask the work to end, as `asyncio.Task.cancel` does: a `CancelledError` is raised inside it.

        Does not block. The task is done only when the work's clean-up is done: wait for that with `result()`.
        A function can be cancelled only before it starts.

        Returns:
            False if the work is done, or can't be cancelled any more; True if it was asked.

        Raises:
            ForkedError: if the work is a parent process's, and not done.
        """
        if self._outcome() is not None:
            return False
        self._owner.check_process()
        return self._may_be_asked() and self._owner.cancel(self, msg)

    def _give_up(self) -> bool:
        """
        Cancel the work, because its submission or the wait for it was interrupted. False if there is no end to wait for.

        Once only, whoever was interrupted: a second request would interrupt the clean-up.
        """
        if hasattr(self, "_given_up"):
            return not self.done()
        self._given_up = True
        return self.cancel()

    # --- awaiting -------------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, T]:
        """
        Wait in async code, on any asyncio loop or under trio, and return the value or raise the error.

        Cancelling the waiter asks the work to end and waits until it has, as awaiting an `asyncio.Task` does. If the work can't be cancelled any
        more (a function that runs), the wait ends at once and the work goes on. `wait()` leaves the work alone in either case.
        """
        elsewhere = who_runs_here()
        if self._outcome() is None:
            # For pyright a function decorated by `types.coroutine` returns an awaitable only.
            yield from self._wait_async(elsewhere, True)  # pyright: ignore[reportGeneralTypeIssues]
        value: T
        # No other kind of loop knows asyncio's CancelledError.
        value, error = self._take(asyncio.CancelledError if elsewhere is None else concurrent.futures.CancelledError)
        if error is None:
            return value
        try:
            raise error
        finally:
            # As in `result`.
            del self, error

    async def wait(self, timeout: float | None = None) -> bool:
        """
        Wait in async code, on any asyncio loop or under trio, until the work has ended; True if it has, in whichever way.

        Neither *timeout* nor a cancellation of the waiter asks the work to end, and the wait leaves nothing behind. Waiting does not claim a
        failure; asking for the outcome does: ``if await task.wait(5): print(task.result())``. In sync code use `result(timeout)`, or
        `concurrent.futures.wait`.

        Args:
            timeout: Seconds to wait. None waits without end, 0 asks without waiting.

        Raises:
            ValueError: if *timeout* is not a number of seconds.
            WouldDeadlockError: if the work waits for itself.
            ForkedError: if the work is a parent process's, and not done.
            RuntimeError: if no event loop runs here.
        """
        check_timeout(timeout)
        if self._outcome() is not None:
            return True
        if timeout is None or timeout > 0:
            await self._wait_async(who_runs_here(), False, timeout)
        else:
            self._owner.check_process()
        return self._outcome() is not None

    # --- what concurrent.futures and asyncio look at --------------------------------------------------------------

    # Attributes in Future, and properties here: hence the `override`s.

    @property
    def _state(self) -> str:  # type: ignore[override]
        outcome = self._outcome()
        if outcome is None:
            return "RUNNING" if self._is_started() else "PENDING"
        # NOTIFIED, because `wait` and `as_completed` count only that state.
        return "CANCELLED_AND_NOTIFIED" if outcome[0] is CANCELLED else "FINISHED"

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        if self._outcome() is None:
            self._owner.check_process()
        meeting = self._meet()
        with meeting.lock:
            if meeting.condition is None:
                meeting.condition = threading.Condition(meeting.lock)
            return meeting.condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        # Whoever reads this is about to wait: `concurrent.futures.wait` and `as_completed` give no other sign of it.
        if self._outcome() is None:
            self._owner.check_may_wait(self, "await it")
        return self._meet().waiters

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        # Called by asyncio of 3.15: done, cancelled, result, error.
        outcome = self._outcome()
        if outcome is None:
            return (False, False, None, None)
        ending, value = outcome
        if ending is FAILED:
            return (True, False, None, self._claim(value))
        return (True, ending is CANCELLED, value if ending is SUCCEEDED else None, None)

    def set_result(self, result: T) -> NoReturn:
        """Not for users: raises RuntimeError."""
        raise RuntimeError(f"set_result() is not for users: {_OUR_CLAIM}.")

    def set_exception(self, exception: BaseException | None) -> NoReturn:
        """Not for users: raises RuntimeError."""
        raise RuntimeError(f"set_exception() is not for users: {_OUR_CLAIM}.")

    def set_running_or_notify_cancel(self) -> NoReturn:
        """Not for users: raises RuntimeError."""
        raise RuntimeError(f"set_running_or_notify_cancel() is not for users: {_OUR_CLAIM}.")

    def __repr__(self) -> str:
        outcome = self._outcome()
        state = outcome[0] if outcome else "running" if self._is_started() else "pending"
        return f"<Task '{shown(self.get_name())}' {state}, submitted at {self._site().short()}>"

    # --- for the runtime ------------------------------------------------------------------------------------------

    def _settle(self, ending: Ending, value: Any) -> bool:
        """Make the outcome known. The first call returns True; later calls change nothing and return False."""
        if type(self._work) is tuple:
            return False
        if self._name is None:
            self._name = _name_of(self._work)
        outcome: Outcome = (ending, value)
        meeting = self._meeting
        if meeting is None:
            self._work = outcome
            # Again, after the outcome is there to be found.
            meeting = self._meeting
        if meeting is not None:
            first = self._tell(meeting, outcome)
            # Not this outcome, if another thread was first.
            self._work = meeting.outcome
            if not first:
                return False
        self._args = self._context = None
        return True

    def _fail(self, error: BaseException) -> bool:
        """Settle with an error, which is reported unless somebody asks for it."""
        name = self.get_name()
        error = can_be_thrown(error, shown(name))
        failure = Failure(f"Task '{shown(name)}' failed, and nobody asked for its outcome", error, name, self._site())
        unclaimed = Unclaimed(failure, self._owner.failures)
        if self._settle(FAILED, unclaimed):
            self._owner.hold_failure(unclaimed, self)
            return True
        unclaimed.claim()
        return False

    def _end_cancelled(self, args: tuple[object, ...], *also: Entry) -> None:
        """Settle as cancelled, and count that and *also* in one step, so that dropped work is never seen as finished."""
        close_unstarted(self._work)
        if self._settle(CANCELLED, args):
            self._owner.tally.count(*also, "dropped" if args and type(args[0]) is Dropped else "cancelled")

    def _end_unstarted(self, *args: object) -> None:
        """Settle as cancelled work that was accepted, and will not be taken from the inbox."""
        self._end_cancelled(args, "aside")

    def _refuse(self) -> None:
        """Settle as cancelled work that was not accepted, so that no waiter waits for ever."""
        close_unstarted(self._work)
        self._settle(CANCELLED, ())

    def _settle_from(self, runner: asyncio.Future[T]) -> None:
        """Settle with the outcome of the asyncio task that ran the work."""
        try:
            failure = runner.exception()
        except asyncio.CancelledError as error:
            self._end_cancelled(error.args)
            return
        if failure is not None:
            self._fail(failure)
        else:
            self._settle(SUCCEEDED, runner.result())

    def _when_done(self, callback: Callable[[], object]) -> None:
        """Call back when the outcome is known, or at once if it is. Errors of the callback are reported."""
        if self._outcome() is None:
            self._owner.check_process()
            meeting = self._meet()
            with meeting.lock:
                if meeting.outcome is None:
                    meeting.callbacks[callback] = None
                    return
        self._call_back(callback, at_once=True)

    def _no_more(self, callback: Callable[[], object]) -> None:
        """Remove a callback. It is not called any more, unless the call is under way."""
        meeting = self._meet()
        with meeting.lock:
            meeting.callbacks.pop(callback, None)

    @coroutine
    def _wait_async(
        self, elsewhere: Elsewhere | None, asks: bool, timeout: float | None = None
    ) -> Generator[Any, None, None]:
        """
        Wait on the loop that runs here until the outcome is known or *timeout* passed.

        A cancellation of the waiter asks the work to end if *asks* is true and the work can still be cancelled; else it ends the wait.
        """
        self._owner.check_process()
        awaited, waiter = self._meet().awaited, object()
        awaited[waiter] = None
        timer = None
        try:
            if elsewhere is not None:
                yield from elsewhere.wait(self, asks, timeout).__await__()
                return
            bridge = self._bridge(asks)
            if timeout is not None and timeout != math.inf:
                timer = bridge.get_loop().call_later(timeout, bridge.finish)
            yield from bridge
        finally:
            if timer is not None:
                timer.cancel()
            # Whether the wait was in vain or not: a failure that nobody asks for afterwards would be left to one who has gone.
            del awaited[waiter]

    def _bridge(self, asks: bool) -> _Bridge:
        """Return a future of the asyncio loop that runs here, which is done when this task is."""
        loop = asyncio._get_running_loop()
        if loop is None:
            raise RuntimeError("No event loop runs here to await the task on. In sync code, use result().")
        waiter = asyncio.current_task(loop)
        if self._is_current(waiter):
            raise WouldDeadlockError(f"{self!r} awaits itself: it would wait for ever.")
        bridge = _Bridge(self, loop, asks)
        if asks and waiter is not None and _cpython.is_made_by_ensure_future(waiter):
            bridge.look_for_shield(waiter)
        return bridge

    def _before_done(self, callback: Callable[[], None]) -> None:
        """Call back just before anybody can see that the work has ended. For the runtime, before the task is delivered."""
        self._meet().before = callback

    def _wait_here(self, timeout: float) -> bool:
        """Block until the outcome is known, *timeout* seconds at the most; -1 waits without end."""
        meeting = self._meet()
        # A bare lock, handed over once: half the cost of a Condition, which also makes a lock for each wait.
        gate = Lock()
        gate.acquire()
        # Without the meeting's lock: if a signal handler waited in the middle of this, the loop would wait for that lock. The thread
        # that settles sets the outcome first and looks at the gates second; here the gate is added first and the outcome looked at
        # second.
        meeting.gates.append(gate)
        if meeting.outcome is None and gate.acquire(timeout=timeout):
            return True
        with suppress(ValueError):
            # The thread that settles has taken it.
            meeting.gates.remove(gate)
        return meeting.outcome is not None

    def _site(self) -> Site:
        stack: StackSummary | None = getattr(self, "_stack", None)
        return Site(self._code, self._lasti, stack)

    def _place(self) -> str:
        """Return where the work is now, for a person to read."""
        work = self._work
        coro = work.get_coro() if isinstance(work, asyncio.Task) else work
        if isinstance(coro, Coroutine) and (coro is not work or _is_in_first_step(coro)):
            return f"{'runs' if getattr(coro, 'cr_running', False) else 'waits'} at {innermost(coro)}"
        if not self._is_started():
            return "not started"
        # A call in a worker thread has a ticket to claim; other functions are called on the loop.
        return "runs in a worker thread" if hasattr(work, "claim") else "runs on the loop"

    def _age(self) -> float | None:
        """Return the seconds since the work was started; None if it was not."""
        since: float | None = getattr(self, "_since", None)
        return None if since is None else time.monotonic() - since

    def _is_started(self) -> bool:
        work = self._work
        return isinstance(work, asyncio.Future) or getattr(self, "_since", None) is not None or _is_in_first_step(work)

    def _may_be_asked(self) -> bool:
        """Tell whether the work can be asked to end. A function that runs can't be interrupted, and a handover can't be taken back."""
        return self._kind is not HANDOVER and (self._args is None or not self._is_started())

    def _is_current(self, current: asyncio.Task[Any] | None) -> bool:
        work = self._work
        # In the first step of an eager start the work is still the coroutine.
        return current is not None and work is not None and (work is current or work is current.get_coro())

    def _outcome(self) -> Outcome | None:
        # Read in this order: an outcome that is found here, before any meeting is there, stays.
        work = self._work
        meeting = self._meeting
        if meeting is None:
            return work if type(work) is tuple else None
        return meeting.outcome if type(work) is not tuple else self._meet().outcome

    def _ended(self) -> Outcome:
        outcome = self._outcome()
        assert outcome is not None
        return outcome

    def _meet(self) -> _Meeting:
        """Return the meeting of this task. An outcome that came before it is in it."""
        meeting = self._meeting
        if meeting is None:
            try:
                meeting = _new_meetings.setdefault(self, _Meeting())
                # Whoever removes the entry has set the attribute before.
                if self._meeting is None:
                    self._meeting = meeting
                meeting = self._meeting
            finally:
                _new_meetings.pop(self, None)
        # After the meeting is there to be found.
        outcome = self._work
        if type(outcome) is tuple and meeting.outcome is None:
            with meeting.lock:
                if meeting.outcome is None:
                    meeting.outcome = outcome
        return meeting

    def _tell(self, meeting: _Meeting, outcome: Outcome) -> bool:
        before = meeting.before
        if before is not None and not self._owner.foreign:
            # Called without the meeting's lock, because it takes a lock of its own. If two threads settle at once, both call it.
            self._call_back(before)
        with meeting.lock:
            # A waiter that came at the same moment may have stored this one.
            if meeting.outcome is not None and meeting.outcome is not outcome:
                return False
            meeting.outcome = outcome
            # In one step: a gate that is added later finds the outcome.
            gates = meeting.gates.copy()
            meeting.gates.clear()
            callbacks, meeting.callbacks = meeting.callbacks, {}
            for waiter in meeting.waiters:
                match outcome[0]:
                    case "succeeded":
                        waiter.add_result(self)
                    case "failed":
                        waiter.add_exception(self)
                    case _:
                        waiter.add_cancelled(self)
            if meeting.condition is not None:
                meeting.condition.notify_all()
            if outcome[0] is FAILED and (gates or meeting.waiters or meeting.awaited):
                outcome[1].waiting = (gates, meeting.waiters, meeting.awaited)
        for gate in gates:
            gate.release()
        if not self._owner.foreign:
            # Not in a child that was forked in the work itself and returns from it: there the callbacks are the parent's to call.
            for callback in callbacks:
                self._call_back(callback)
        return True

    def _call_back(self, callback: Callable[[], object], at_once: bool = False) -> None:
        try:
            callback()
        except BaseException as error:
            if (
                at_once
                and isinstance(error, KeyboardInterrupt)
                and threading.current_thread() is threading.main_thread()
            ):
                # Ctrl-C, which is meant for the program.
                raise
            # SystemExit too is reported: raised, it would leave through the loop and skip the other callbacks.
            name = self.get_name()
            self._owner.failures.tell_soon(
                Failure(f"A done callback of task '{shown(name)}' failed", error, name, self._site())
            )

    def _wait(self, timeout: float | None) -> None:
        if not self._wait_until_done(timeout):
            raise WaitTimeoutError(
                f"{shown(self.get_name())} was not done after {timeout} s. It goes on: ask again, or cancel() it.",
                task=self,
            )

    def _wait_until_done(self, timeout: float | None) -> bool:
        """Block until the work has ended, whichever way; False if *timeout* passed first. Claims no failure."""
        if self._outcome() is not None:
            return True
        give_way()
        return self._outcome() is not None or self._owner.wait(self, self._wait_here, timeout)

    def _wait_for(self, wait_here: Callable[[float], bool], timeout: float | None) -> bool:
        """Block until *wait_here*, called with seconds, tells that the awaited effect of the work has come."""
        return self._owner.wait(self, wait_here, timeout)

    def _check_process(self) -> None:
        """Raise ForkedError if the work is a parent process's."""
        self._owner.check_process()

    def _claim(self, unclaimed: Unclaimed) -> BaseException:
        error = unclaimed.claim()
        if isinstance(error, TaskTimeoutError) and error.of_handle:
            # A weak reference, because the handle refers to the error.
            error.of_handle, error._task = False, ref(self)
        return error

    def _take(self, cancelled: type[BaseException]) -> tuple[Any, BaseException | None]:
        """Claim the outcome of work that is done: the value and None, or None and the error, for the caller to raise."""
        ending, value = self._ended()
        if ending is SUCCEEDED:
            return value, None
        if ending is CANCELLED:
            return None, cancelled(*value)
        return None, self._claim(value)


class _Bridge(asyncio.Future[None]):
    """Wakes the awaiting loop when the task is done. With *asks*, it passes a cancellation of the waiter on to the task."""

    def __init__(self, task: Task[Any], loop: AbstractEventLoop, asks: bool) -> None:
        super().__init__(loop=loop)
        self._task = task
        self._asks = asks
        self._asked = False
        self._ident = threading.get_ident()
        task._when_done(self._wake)

    def cancel(self, msg: object = None) -> bool:
        if self.done():
            return False
        # As asyncio.Task does for the task it awaits: the waiter waits until the work's clean-up is done, and if the work swallows the
        # cancellation, the waiter gets its result.
        if self._asked:
            # Only once: anyio cancels again in every turn of the loop, and a second request would interrupt the clean-up.
            return True
        if self._asks and self._task.cancel(msg):
            self._asked = True
            return True
        # As in asyncio.to_thread: nothing can interrupt the function, and it may run for long. If the cancellation were lost, no time
        # limit around the wait would hold, and anyio would cancel again and again.
        self._task._no_more(self._wake)
        return super().cancel(msg)

    def finish(self) -> None:
        """End the wait because its time is over. For the waiter's loop."""
        self._task._no_more(self._wake)
        self._finish()

    def _wake(self) -> None:
        # On no other loop: a signal handler may call this while the loop of its thread sleeps, and then that has to be woken.
        if threading.get_ident() == self._ident == self._task._owner.ident:
            self._finish()
            return
        try:
            self.get_loop().call_soon_threadsafe(self._finish)
        except RuntimeError:
            # That loop was closed while its task still waited: there is nothing left to wake.
            pass

    def _finish(self) -> None:
        if not self.done():
            self.set_result(None)

    # --- asyncio.shield() ---------------------------------------------------------------------------------------------

    # A shield wraps the handle in a task of the waiter's loop. That task is cancelled when the loop ends, and left waiting when the
    # shield is cancelled. Neither is meant for the work. `gather`, `wait_for` and `ensure_future` wrap the handle in the same way, but
    # their cancellation is meant for the work. So a shield is recognised by the callback that it adds to its task, and only by that.

    def look_for_shield(self, waiter: asyncio.Task[Any]) -> None:
        """If *waiter* is the task of a shield, leave the work alone, and end that task with the shield. For the waiter's loop."""
        callbacks = _cpython.callbacks_of(waiter)
        outer = next((found for callback in callbacks if (found := _cpython.shield_of(callback)) is not None), None)
        if outer is not None:
            self._asks = False
            outer.add_done_callback(partial(self._look_who_waits, ref(waiter)))
        elif not callbacks:
            # Either this is an eager start, inside the constructor of the task, and the callback comes right after it; or the shield
            # was cancelled already.
            self.get_loop().call_soon(self._look_who_waits, ref(waiter))

    def _look_who_waits(self, waiter_ref: ref[asyncio.Task[Any]], outer: object = None) -> None:
        waiter = waiter_ref()
        if waiter is None or self.done():
            return
        if outer is None and _cpython.callbacks_of(waiter):
            self.look_for_shield(waiter)
            return
        # Nobody waits for that task. But somebody may hold it and wait for it later: `mine = ensure_future(handle)`, then
        # `shield(mine)`. The only sign of that is its reference count. It is compared with the count of a probe that, like the task
        # which shield has made, is referred to by one object: the task by the bridge, the probe by a list.
        probe = object()
        holders = [probe]
        if waiter in _cpython.noted_waiters(self):
            # From 3.14 on the bridge refers to it a second time, for debuggers.
            holders.append(probe)
        count = getattr(sys, "getrefcount", None)
        if count is not None and count(waiter) <= count(probe):
            self._asks = False
            self.cancel()


def _is_in_first_step(work: Any) -> bool:
    """Tell whether *work* is a coroutine inside an eager start: its asyncio task is still being made."""
    return type(work) is CoroutineType and work.cr_running


def _name_of(work: Any) -> str:
    if isinstance(work, asyncio.Task):
        return work.get_name()
    return getattr(work, "__qualname__", None) or getattr(work, "__name__", None) or type(work).__name__


def traceback_without(error: BaseException, frames: int) -> TracebackType | None:
    """Return the traceback of *error* without its outermost *frames*, which are those of the machinery that caught it."""
    tb = error.__traceback__
    for _ in range(frames):
        tb = tb.tb_next if tb is not None else None
    return tb
