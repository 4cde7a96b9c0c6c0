"""One thread, one loop: it runs until it is told to end, whatever its callbacks raise, and can be held still for a fork."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from .. import _cpython
from .._errors import OmniloopError
from .._hooks import polls, surroundings
from .._process import fork
from .._process.exit import end_orphan
from .._threads import join, new_thread, time

# How long, in seconds, a thread that a callback had blocked past the end lets its tasks clean up (a guess: nobody waits for it).
_LATE_TIMEOUT = 1.0


class Run:
    """One thread's time with the loop, from the start of the thread until it has left the loop; the next start makes another."""

    __slots__ = ("ident", "leaving", "thread")

    thread: threading.Thread

    def __init__(self) -> None:
        # Kept, because each wait asks for it several times: by the thread's own property it takes twice as long (118 and 56 ns on 3.13).
        self.ident: int | None = None
        # Whether the thread was told to leave the loop.
        self.leaving = False


class LoopThread:
    """
    Runs an event loop on a daemon thread.

    A daemon, because the interpreter joins every other thread before it calls anyone who could stop this one. The thread may be ended and
    started again; the loop stays the same.
    """

    def __init__(
        self,
        name: str,
        on_escape: Callable[[BaseException], None],
        on_death: Callable[[BaseException | None], None],
    ) -> None:
        # None until it is made, which the first start does.
        self.loop: Any = None
        self.name = name
        self._on_escape = on_escape
        self._on_death = on_death
        # The run that was started last, and that of the thread which has the loop. They differ during a start, after an interrupted one, and
        # while a callback keeps a thread that is to leave.
        self._started: Run | None = None
        self._current: Run | None = None
        # Held by the thread that has the loop, and in the end by the thread that closes it.
        self._running = threading.Lock()
        # Whether the loop should be closed.
        self._to_close = False
        self._gate: threading.Lock | None = None
        # Of the last fork that waited for a callback: who decides, and what it waits for.
        self._awaited: tuple[threading.Lock, threading.Lock] | None = None
        # When the loop was asked how late it is, None once it has answered; and its last answer.
        self._asked: float | None = None
        self._lag = 0.0
        # All our callbacks run in this empty context; otherwise each would copy its submitter's and keep that alive. It is not the thread's
        # own context, because that can't be entered twice.
        self.context = contextvars.Context()

    def own(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take over *loop*, so that only this object can stop and run it."""
        self.loop = loop
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(_handle)
        self._stop_loop, self._run_forever = loop.stop, loop.run_forever
        try:
            # On the instance (`method-assign`), so that everybody who has the loop meets the refusal.
            loop.stop = _refuse_stop  # type: ignore[method-assign]
            # On 3.13.0 asyncio's own refusal leaves the loop running in no thread.
            loop.run_forever = _refuse_run  # type: ignore[method-assign]
            if type(loop).time is asyncio.BaseEventLoop.time:
                # A test that freezes the clock would otherwise stop the timers of this thread, which is not part of the test.
                loop.time = time.monotonic  # type: ignore[method-assign]
        except AttributeError:
            # A loop with slots. If somebody stops it, it is entered again, as after an error.
            pass

    @property
    def leaving(self) -> bool:
        """Tell whether the thread that has the loop was told to leave it."""
        return (run := self._current) is not None and run.leaving

    @property
    def runs(self) -> bool:
        """Tell whether the thread has begun to run the loop and was not told to leave it."""
        return (run := self._current) is not None and not run.leaving

    @property
    def ident(self) -> int | None:
        """The ident of the thread, valid from its first line on: a trace function may be called there before any of our code."""
        run = self._current
        if run is not None:
            return run.ident
        return None if (started := self._started) is None else started.thread.ident

    @property
    def native_id(self) -> int | None:
        """The system's id of the thread, if it runs."""
        run = self._current or self._started
        return None if run is None else run.thread.native_id

    def is_current(self) -> bool:
        return threading.get_ident() == self.ident

    def start(self, first: Callable[[], object]) -> None:
        """Start the thread; the loop calls *first* before anything else."""
        if (around := surroundings()) is not None:
            around.warn_of_threads()
        self.post(first)
        run = Run()
        run.thread = new_thread(partial(self._main, run, self._current, first), self.name)
        try:
            self._started = run
            run.thread.start()
        except BaseException:
            # Interrupted (Ctrl-C): the thread may run nevertheless, and notes that itself.
            self._started = None
            raise

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Have the loop call *fn*. From any thread. RuntimeError if the loop is closed."""
        self.loop.call_soon_threadsafe(fn, *args, context=self.context)

    def lag(self, ask: bool) -> float:
        """
        Return how late the loop was when it last answered, or how long it has not answered; if *ask*, ask it again. Does not wait.

        The loop is asked only here, so that nothing is measured unless somebody wants to know.
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
        return 0.0 if (asked := self._asked) is None else time.monotonic() - asked

    def _answer(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            self._lag = time.monotonic() - asked

    def stop(self, timeout: float) -> bool:
        """Leave the loop after its current callbacks and join the thread; False if that took longer than *timeout* seconds."""
        if self._current or self._started:
            with suppress(RuntimeError):
                # Somebody else closed the loop; the thread ends by itself.
                self.post(self._leave)
        return self.join(timeout)

    def join(self, timeout: float) -> bool:
        """Join the thread, which was told to leave, and forget it; False if that took longer than *timeout* seconds."""
        deadline = time.monotonic() + timeout
        # The one that was started last may still wait for the other.
        for run in (self._current, self._started):
            if run is not None and not join(run.thread, deadline - time.monotonic()):
                return False
        self._started = self._current = None
        return True

    def close(self) -> None:
        """Close the loop. If a callback still blocks its thread, that thread closes it when the callback returns."""
        # Whichever of the two threads comes second sees the mark or gets the lock. The lock is never released after this.
        self._to_close = True
        if self._running.acquire(False):
            self.loop.close()

    # --- holding still ------------------------------------------------------------------------------------------------

    def hold_or_leave(self, may_leave: Callable[[], bool], timeout: float) -> bool:
        """
        Hold the loop between two callbacks until `resume`; or, if *may_leave* allows it there, end the thread and return True.

        Waits *timeout* seconds at most for the callback that runs now. If that takes longer, or forks itself, the loop goes on unheld.
        """
        gate, reached = threading.Lock(), threading.Lock()
        gate.acquire()
        reached.acquire()
        self._gate = gate
        # Acquired by whoever decides: the loop, which is held or leaves; or a thread that forks, which waits no more. Were the loop to leave
        # later, in the middle of the fork, nobody would join its thread.
        decided = threading.Lock()
        self._awaited = decided, reached
        left = False

        def hold() -> None:
            nonlocal left
            if self._gate is not gate or not decided.acquire(False):
                # Too late: the fork is over, or nobody waits any more.
                return
            left = may_leave()
            if left:
                self._leave()
            reached.release()
            if not left:
                gate.acquire()

        self.post(hold)
        if fork.forks(self.ident):
            # Since before it could see `_awaited`.
            self.let_forks_go_on()
        if not reached.acquire(timeout=timeout) and not decided.acquire(False):
            # It came at the last moment, and is about to say so.
            reached.acquire(timeout=timeout)
        return left

    def let_forks_go_on(self) -> None:
        """The callback that runs now forks: let a fork in another thread wait for it no more, because this one may have to wait for that."""
        if self._awaited is not None:
            decided, reached = self._awaited
            if decided.acquire(False):
                reached.release()

    def resume(self) -> None:
        """Let a held loop go on."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.release()

    def abandon(self) -> None:
        """In a forked child: if a callback of this loop has forked, run none of the parent's other callbacks here."""
        if not self.is_current():
            return
        ready = _cpython.ready(self.loop)
        if ready is not None:
            _cpython.set_ready(self.loop, _Nothing(ready))
        elif polls.guest is not None:
            polls.guest.stop_polling(self.loop)
        # After an asyncio.run() in the child, which has replaced the thread's loop, 3.14 complains of a task that ends.
        self.loop.set_exception_handler(lambda _, __: None)
        self._leave()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _main(self, run: Run, former: Run | None, first: Callable[[], object]) -> None:
        if former is not None and former.leaving:
            # It has not left yet: a callback keeps it, which came after the word to leave. It may take *first* with it, undone.
            join(former.thread, None)
            with suppress(RuntimeError):
                # Somebody else closed the loop.
                self.post(first)
        if not self._running.acquire(False):
            # The thread of an interrupted start came first, or the loop is closed.
            return
        pid = os.getpid()
        run.ident = threading.get_ident()
        self._current = run
        error = None
        try:
            error = self._run(run, pid)
        finally:
            if os.getpid() != pid:
                end_orphan()
            if not run.leaving:
                self._started = self._current = None
                self._on_death(error)
            self._running.release()
            # After the release: see `close`. The closing thread has given this one up, and the interpreter may be gone in a moment.
            if run.leaving and self._to_close and self._running.acquire(False):
                self._finish_late()

    def _run(self, run: Run, pid: int) -> BaseException | None:
        while not run.leaving and not self.loop.is_closed():
            try:
                self._run_forever()
            except BaseException as error:
                if os.getpid() != pid:
                    # A task has forked, and this is the child, which has returned from it: see `abandon`.
                    return None
                if not isinstance(error, (SystemExit, KeyboardInterrupt)):
                    # Of the errors of a callback asyncio lets out only those two. So the loop itself is broken, and running it again would
                    # spin.
                    return error
                self._on_escape(error)
        return None

    def _finish_late(self) -> None:
        """After a callback that had blocked past the end: cancel the tasks that are left, let them clean up, and close the loop."""
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
            # Its handle has reported this.
            _cpython.destroy_quietly(task)
        self._stop_loop()

    def _leave(self) -> None:
        assert self._current is not None
        self._current.leaving = True
        self._stop_loop()


class _Nothing(deque[Any]):
    """The queue of a loop that must run nothing more: it keeps all its entries, and raises when the loop takes one."""

    def popleft(self) -> NoReturn:
        raise IndexError


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Those two leave through the loop, or through an eager start, and are reported there. asyncio would report them again when the task is
    # destroyed, because nobody could retrieve its exception.
    if not isinstance(context.get("exception"), (SystemExit, KeyboardInterrupt)):
        loop.default_exception_handler(context)


def _refuse_stop() -> None:
    raise OmniloopError(
        "The loop serves the whole process and can't be stopped from inside. Use omniloop.shutdown() to end it."
    )


def _refuse_run() -> None:
    raise RuntimeError("The loop runs already, on the runtime's thread. Use go() or run() to run something on it.")
