"""One thread, one loop: it runs until it is told to end, whatever its callbacks raise, and holds still for a fork."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .. import _cpython
from .._clock import join, time
from .._errors import OmniloopError
from .._hooks import surroundings
from .._process.threads import new_thread

# How long to wait for the system to forget a thread that `join` says is gone: on 3.12.1 it returned before that in 30
# of 400 forks.
_GONE_TIMEOUT = 0.1

# What a thread that comes back too late gives its tasks to clean up (a guess: nobody waits for it).
_LATE_TIMEOUT = 1.0


class Starter:
    """
    One start at a time: who comes while one is under way leaves it to that, and goes on at once.

    Tried, and not waited for, because a signal handler may come here in the middle of a start. And told by identity, in a dictionary whose
    `setdefault` is atomic: a handler that raises right after it took a common lock would leave that taken for ever.
    """

    __slots__ = ("_by",)

    def __init__(self) -> None:
        # The start that is under way: the ident of its thread, and a lock that is held until it is over.
        self._by: dict[str, tuple[int, threading.Lock]] = {}

    def in_this_thread(self) -> bool:
        """Tell whether the start that is under way goes on below this call: it was interrupted, by a signal handler say."""
        by = self._by.get("by")
        return by is not None and by[0] == threading.get_ident()

    def start(self, make: Callable[[], object]) -> bool:
        """Call *make*, unless a start is under way; False then. Whoever leaves something to that looks again afterwards."""
        me = threading.get_ident(), threading.Lock()
        me[1].acquire()
        try:
            if self._by.setdefault("by", me) is not me:
                return False
            make()
            return True
        finally:
            # Without a call, after which a signal handler could raise: nothing would ever be started again.
            if self._by == {"by": me}:
                del self._by["by"]
            me[1].release()

    def wait(self, timeout: float) -> None:
        """Wait until the start that is under way is over, *timeout* seconds at the most; not for one that this thread itself is in."""
        by = self._by.get("by")
        if by is not None and by[0] != threading.get_ident() and by[1].acquire(timeout=timeout):
            by[1].release()


class LoopThread:
    """
    Runs an event loop on a daemon thread.

    A daemon, because the interpreter joins every other thread before it calls anyone who could stop this one.
    May be ended and started again: the loop stays the same.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        on_escape: Callable[[BaseException], None],
        on_death: Callable[[BaseException | None], None],
        on_orphaned: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.name = name
        self._on_escape = on_escape
        self._on_death = on_death
        self._on_orphaned = on_orphaned
        # The thread that was last started, and the one that runs the loop: the same, unless a start was interrupted.
        self._started: threading.Thread | None = None
        self._runner: threading.Thread | None = None
        # Held by the thread that runs the loop; in the end by whoever closes it.
        self._running = threading.Lock()
        # Whether the thread was told to leave the loop; and whether the loop is to be closed.
        self.leaving = False
        self._to_close = False
        self._gate: threading.Lock | None = None
        # When it was asked how late it is, until it answers; and the last answer.
        self._asked: float | None = None
        self._lag = 0.0
        # All callbacks of ours run in this one, empty context: without it each would copy its submitter's, and keep
        # that alive. Not the thread's own, which can't be entered twice.
        self.context = contextvars.Context()
        self._own()

    def _own(self) -> None:
        """Have nobody but this stop and run the loop, which is its own."""
        loop = self.loop
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(_handle)
        self._stop_loop, self._run_forever = loop.stop, loop.run_forever
        try:
            # On the instance (`method-assign`), where everybody who has the loop finds them.
            loop.stop = _refuse_stop  # type: ignore[method-assign]
            # On 3.13.0 asyncio's own refusal leaves the loop running in no thread.
            loop.run_forever = _refuse_run  # type: ignore[method-assign]
            if type(loop).time is asyncio.BaseEventLoop.time:
                # What freezes the clock in a test would stop the timers of this thread, which knows nothing of that.
                loop.time = time.monotonic  # type: ignore[method-assign]
        except AttributeError:
            # A loop with slots. It is entered again after a stop, as after an error.
            pass

    @property
    def _thread(self) -> threading.Thread | None:
        return self._runner or self._started

    @property
    def runs(self) -> bool:
        """Tell whether the thread has come to run the loop, and is not told to leave it."""
        return self._runner is not None and not self.leaving

    @property
    def ident(self) -> int | None:
        """The ident of the thread, from its first line on: a trace function may be called there before any of ours."""
        thread = self._thread
        return None if thread is None else thread.ident

    @property
    def native_id(self) -> int | None:
        """The system's id of the thread, if it runs."""
        thread = self._thread
        return None if thread is None else thread.native_id

    def is_current(self) -> bool:
        return threading.get_ident() == self.ident

    def start(self, first: Callable[[], object]) -> None:
        """Start the thread; *first* is the first thing that the loop calls."""
        self.leaving = False
        if (around := surroundings()) is not None:
            around.warn_of_threads()
        self.post(first)
        thread = new_thread(self._main, self.name)
        try:
            self._started = thread
            thread.start()
        except BaseException:
            # Interrupted (Ctrl-C): the thread may come to run all the same, and then says so itself.
            self._started = None
            raise

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Have the loop call *fn*; from any thread. RuntimeError if the loop is closed."""
        self.loop.call_soon_threadsafe(fn, *args, context=self.context)

    def lag(self, ask: bool) -> float:
        """
        Ask the loop how late it is, if *ask*, without waiting; return its last answer, or how long it has not answered for.

        So it costs nothing but when asked.
        """
        lag = max(self._lag, self.unanswered_for())
        if ask and self._asked is None:
            self._asked = time.monotonic()
            try:
                self.post(self._answer)
            except RuntimeError:
                # The loop was closed.
                self._asked = None
        return lag

    def unanswered_for(self) -> float:
        """Seconds since `lag` asked, if the loop has not answered yet; else 0."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def _answer(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            self._lag = time.monotonic() - asked

    def stop(self, timeout: float | None) -> bool:
        """Leave the loop after its current callbacks and join the thread; False if that took longer than *timeout*."""
        thread = self._thread
        if thread is None:
            return True
        self.post(self._leave)
        if not self.join(timeout):
            return False
        self.forget()
        return True

    def join(self, timeout: float | None) -> bool:
        thread = self._thread
        if thread is None:
            return True
        native_id = thread.native_id
        if not join(thread, timeout):
            return False
        wait_until_gone([native_id])
        return True

    def forget(self) -> None:
        """Forget a thread that left and was joined."""
        self._started = self._runner = None

    def close(self) -> None:
        """Close the loop; where a callback still keeps the thread from its end, it does so itself when it comes back."""
        # Whoever is second sees the mark, or finds the lock free; and nobody gives it back any more.
        self._to_close = True
        if self._running.acquire(False):
            self.loop.close()

    # --- holding still ------------------------------------------------------------------------------------------------

    def hold_or_leave(self, may_leave: Callable[[], bool], timeout: float) -> bool:
        """
        Hold the loop between two callbacks until `resume`; or, if *may_leave* says so there, end the thread and return True.

        Waits no longer than *timeout* for the callback that runs now; the loop then goes on unhindered.
        """
        gate = threading.Lock()
        gate.acquire()
        self._gate = gate
        reached = threading.Lock()
        reached.acquire()
        left = False

        def hold() -> None:
            nonlocal left
            if self._gate is not gate:
                # Too late: the fork is over.
                return
            if may_leave():
                left = True
                self._leave()
                reached.release()
                return
            reached.release()
            with gate:
                pass

        self.post(hold)
        reached.acquire(timeout=timeout)
        return left

    def resume(self) -> None:
        """Let a paused loop go on."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.release()

    def is_wanted(self) -> bool:
        """Tell whether the loop has sockets, timers or callbacks to serve, or whether that can't be seen from here."""
        return _cpython.is_wanted(self.loop)

    def abandon(self) -> None:
        """In a forked child: if the fork was made inside a callback of this loop, run none of the parent's others here."""
        if not self.is_current():
            return
        ready = _cpython.ready(self.loop)
        if ready is not None:
            _cpython.set_ready(self.loop, _Nothing(ready))
        # 3.14 complains of a task that ends after an asyncio.run() in the child, which took the loop out of its thread.
        self.loop.set_exception_handler(lambda _, __: None)
        self.leaving = True
        self._stop_loop()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        if not self._running.acquire(False):
            # The thread of a start that was interrupted was first.
            return
        pid = os.getpid()
        self._runner = threading.current_thread()
        error = None
        try:
            error = self._run(pid)
        finally:
            if os.getpid() != pid:
                self._on_orphaned()
            if not self.leaving:
                self.forget()
                self._on_death(error)
            self._running.release()
            # After that: see `close`. Whoever ended the runtime has given this thread up, and the interpreter may be gone in a moment.
            if self.leaving and self._to_close and self._running.acquire(False):
                self._finish_late()

    def _run(self, pid: int) -> BaseException | None:
        while not self.leaving and not self.loop.is_closed():
            try:
                self._run_forever()
            except BaseException as error:
                if os.getpid() != pid:
                    # The child of a fork that was made inside a task, and came back from it: see `abandon`.
                    return None
                if not isinstance(error, (SystemExit, KeyboardInterrupt)):
                    # Of what a callback raises asyncio lets only those two out: it is the loop that is broken, and going back
                    # into it would spin.
                    return error
                self._on_escape(error)
        return None

    def _finish_late(self) -> None:
        """Cancel what a callback that came back too late has left, let it clean up, and close the loop."""
        asyncio.Task(self._cancel_rest(), loop=self.loop)
        self._run_forever()
        self.loop.close()

    async def _cancel_rest(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=_LATE_TIMEOUT)
        for task in asyncio.all_tasks():
            # Its handle was told.
            _cpython.destroy_quietly(task)
        self._stop_loop()

    def _leave(self) -> None:
        self.leaving = True
        self._stop_loop()


class _Nothing(deque[Any]):
    """The queue of a loop that must run nothing more: keeps what is in it, and what comes, and the loop that looks raises."""

    def popleft(self) -> NoReturn:
        raise IndexError


def wait_until_gone(native_ids: Sequence[int | None]) -> None:
    """
    Wait, bounded, until the system has forgotten threads that ended.

    CPython's warning about forking with threads counts what the system lists. Elsewhere than on Linux nothing is listed.
    """
    if sys.platform != "linux":
        return
    deadline = time.monotonic() + _GONE_TIMEOUT
    for native_id in native_ids:
        while native_id is not None and os.path.exists(f"/proc/self/task/{native_id}") and time.monotonic() < deadline:
            time.sleep(0.0001)


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Those two leave through the loop, or through an eager start, and are told of there. asyncio says it again when the task is
    # destroyed, whose exception nobody could retrieve.
    if not isinstance(context.get("exception"), (SystemExit, KeyboardInterrupt)):
        loop.default_exception_handler(context)


def _refuse_stop() -> None:
    raise OmniloopError(
        "The loop serves the whole process and can't be stopped from inside. Use omniloop.shutdown() to end it."
    )


def _refuse_run() -> None:
    raise RuntimeError("The loop runs already, on the runtime's thread. Use go() or run() to run something on it.")
