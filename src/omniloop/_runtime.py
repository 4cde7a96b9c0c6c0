"""The runtime: work that is submitted to it is held until it is done, and finished before the interpreter exits."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError
from contextvars import Context
from functools import partial
from threading import RLock
from types import CoroutineType, FrameType, FunctionType, TracebackType
from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Literal,
    Never,
    ParamSpec,
    Self,
    TypeVar,
    TypeVarTuple,
    Unpack,
    final,
)

from . import _hooks
from ._arguments import (
    NOT_PLAIN,
    as_coroutine,
    check_function,
    check_timeout,
    checked_name,
    close_unstarted,
    misplaced_arguments,
    name_of,
    one_argument,
)
from ._errors import (
    AlreadyRunningError,
    CannotStartError,
    ClosedError,
    FullError,
    TaskTimeoutError,
    WaitTimeoutError,
    WouldDeadlockError,
)
from ._life import drain, shutdown, waits
from ._life.life import Life, Stage
from ._life.workers import ThreadWork
from ._process import exit, fork, signals
from ._report import Site, caller, shown
from ._settings import MOST_SECONDS, SHAPES_THE_THREAD, Settings, WhenFull, changed, from_environment
from ._threads import give_way, take, time, why_no_thread
from ._work.failures import Failures
from ._work.ledger import Later
from ._work.leftovers import OF_DAEMONS
from ._work.tally import Tally
from ._work.task import DAEMON, KEEPER, WORK, Kind, Task, belongs_to

if TYPE_CHECKING:
    from ._admission import Admission
    from ._settings import AllChanges, Changes
    from ._stats import Stats

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
P = ParamSpec("P")

_same_process: Final = fork.same_process
_getframe: Final = sys._getframe


class FromSettings:
    """The default of `shutdown(timeout)`: the setting `exit_timeout`."""

    def __repr__(self) -> str:
        return "exit_timeout"


FROM_SETTINGS: Final = FromSettings()


@final
class Runtime:
    """
    One event loop on one daemon thread, and everything that submits work to it.

    Making one starts nothing; the thread starts on first use. The module's functions are the methods of the one that the
    whole process shares; make another only where work must be kept apart. As a context manager it shuts down at the end.

    Unless a method says otherwise, it may be called from any thread.

    Args:
        name: The name of the thread, and in the log.
        settings: As for `configure`, except `monitor` and `sigterm`, which belong to the process. A setting that is not given has the value
            of its `OMNILOOP_…` environment variable, or else its default.

    Raises:
        SettingError: if a setting, or its variable, can't have this value, or the setting belongs to the process.

    Example:
        >>> from omniloop import Runtime
        >>> async def double(number):
        ...     return 2 * number
        >>> with Runtime(name="reports") as runtime:
        ...     runtime.go(double(21)).result(timeout=5)
        42
    """

    # The shared runtime, which holds the settings of the whole process.
    _shared: ClassVar[Runtime]

    # The bounds, made where `max_pending` is set.
    _admission: Admission | None = None

    def __init__(self, *, name: str = "omniloop", **settings: Unpack[Changes]) -> None:
        self._set_up(name, changed(from_environment(), settings, shared=False), reopens=False)

    @classmethod
    def _make_shared(cls) -> Self:
        """Make the shared runtime of the process. This happens at import, but its environment is read, and may be refused, on first use."""
        runtime = cls._shared = cls.__new__(cls)
        runtime._set_up("omniloop", None, reopens=True)
        return runtime

    def _set_up(self, name: str, settings: Settings | None, reopens: bool) -> None:
        self.name = name
        # Whether shutdown() is followed by a fresh start on the next use; else further use is refused.
        self._reopens = reopens
        self._shut_down = False
        # True when no further life may begin: after `shutdown()` without a fresh start, and at exit.
        self._ended = False
        # How long the last drain took.
        self._drain_time = 0.0
        self._failures = Failures(lambda: self._settings.on_error)
        self._tally = Tally()
        # Loaded and made when `timings` is switched on; and the listeners that are given each measurement.
        self._timings: _hooks.Timings | None = None
        self._timing_listeners: list[Callable[[str, float | None, float], object]] = []
        # Whether submissions go through `_admission`; read on the hot path. True until the settings are known.
        self._bounded = True
        self._chosen: Settings | None = None
        if settings is not None:
            self._choose(settings)
        # The clock of `call_at` and `call_later`; tests may set another.
        self._clock: Callable[[], float] = time.monotonic
        # Re-entrant, because a SIGTERM may drain in the middle of a shutdown.
        self._closing = RLock()
        self._lives: dict[tuple[int, int], Life] = {}
        self._life: Life
        self._begin(0)

    @property
    def _settings(self) -> Settings:
        if self._chosen is None:
            self._choose(from_environment())
        assert self._chosen is not None
        return self._chosen

    @staticmethod
    def _settings_of_process() -> Settings:
        # Those of the shared runtime. If it is not in use yet, it has not read its environment.
        return Runtime._shared._chosen or from_environment()

    def _choose(self, settings: Settings) -> None:
        if settings.timings and self._timings is None:
            self._timings = _hooks.on_use("_seen.timings").Timings(self._timing_listeners)
        if settings.max_pending is not None and self._admission is None:
            from ._admission import Admission

            # Atomic, so that two threads that submit first get the same one.
            vars(self).setdefault("_admission", Admission())
        if self._admission is not None:
            self._admission.resize(settings.max_pending)
        self._bounded = settings.max_pending is not None
        # Last, so that nobody takes settings for chosen whose bounds are not there yet.
        self._chosen = settings

    # --- submitting ---------------------------------------------------------------------------------------------------

    @one_argument
    def go(
        self,
        coro: Awaitable[T],
        *misplaced: Never,
        name: str | None = None,
        context: Context | None = None,
        daemon: bool = False,
        timeout: float | None = None,
    ) -> Task[T]:
        """
        Start a coroutine, or any awaitable, on the loop; return its handle at once.

        Does not block and takes no lock, so that it may be called anywhere: in signal handlers and finalisers too, and on
        the loop's own thread, where the coroutine starts after the current callback. Only if `max_pending` is set and
        reached does `when_full` decide what happens: by default the call waits for room.

        Args:
            name: For logs and `tasks()`. By default the name of the coroutine.
            context: Run in a copy of this context instead of a copy of the caller's.
            daemon: Cancel it at exit instead of waiting for it; its clean-up runs.
            timeout: Seconds from now. Work that is not done by then is cancelled, and fails with `TaskTimeoutError`; work that is not
                even started by then never starts. Work that swallows the cancellation keeps its value. None means no limit.

        Raises:
            NotAsyncError: if *coro* can't be awaited here; the message names the call that was meant.
            TypeError: if *name* is no string, or *context* no `Context`.
            ValueError: if *timeout* is not a number of seconds.
            ClosedError: if the runtime is shut down, or the interpreter ends. The coroutine is closed.
            CannotStartError: if this was the first use, and no thread can be started here.
            FullError: if `max_pending` is reached, and this call is not to wait, or may not.

        Example:
            >>> from omniloop import go
            >>> async def greet(name):
            ...     return f"hello, {name}"
            >>> task = go(greet("ada"), timeout=5)
            >>> task.result()
            'hello, ada'
        """
        # The usual case of `_go` in place: a call less, 40 of 700 ns.
        try:
            frame = _getframe(1)
        except ValueError:
            # No Python code called this: see `caller`, whose call is saved here.
            frame = _getframe()
        if misplaced or timeout is not None:
            if misplaced:
                raise misplaced_arguments("go", coro, misplaced)
            return self._go_within(timeout, coro, frame, name, context=context, kind=DAEMON if daemon else WORK)
        if daemon:
            return self._go(coro, frame, name, context, DAEMON)
        if type(coro) is not CoroutineType or coro.cr_suspended or coro.cr_running:
            coro = as_coroutine(coro, self._life.loop)
        if name is not None:
            name = checked_name(name, coro)
        task: Task[T] = Task(self, coro, None, context, frame, name)
        return self._put_bounded(task, self._put) if self._bounded else self._put(task)

    @one_argument
    def try_go(
        self,
        coro: Awaitable[T],
        *misplaced: Never,
        name: str | None = None,
        context: Context | None = None,
        daemon: bool = False,
        timeout: float | None = None,
    ) -> Task[T] | None:
        """
        As `go`, but return None, and close the coroutine, if `max_pending` tasks are unfinished. Never waits.

        Raises:
            NotAsyncError: if *coro* can't be awaited here.
            ValueError: if *timeout* is not a number of seconds.
            ClosedError: if the runtime is shut down, or the interpreter ends.
            CannotStartError: if this was the first use, and no thread can be started here.

        Example:
            >>> from omniloop import try_go
            >>> async def greet(name):
            ...     return f"hello, {name}"
            >>> task = try_go(greet("ada"))
            >>> "there is no room" if task is None else task.result(timeout=5)
            'hello, ada'
        """
        if misplaced:
            raise misplaced_arguments("try_go", coro, misplaced)
        kind = DAEMON if daemon else WORK
        try:
            return self._go_within(timeout, coro, caller(), name, context=context, kind=kind, when_full="raise")
        except FullError:
            return None

    def call_soon(self, fn: Callable[[*Ts], T], *args: *Ts, context: Context | None = None) -> Task[T]:
        """
        Run a plain function on the loop's thread, in the order of submission; return its handle at once.

        May be called anywhere, as `go`. The function should not block: everything else on the loop waits for it.

        Args:
            context: Run in a copy of this context instead of a copy of the caller's.

        Raises:
            NotAsyncError: if *fn* is async, or can't be called.
            ClosedError: if the runtime is shut down, or the interpreter ends.
            CannotStartError: if this was the first use, and no thread can be started here.
            FullError: if `max_pending` is reached, and this call is not to wait, or may not.

        Example:
            >>> import threading
            >>> from omniloop import call_soon
            >>> call_soon(lambda: threading.current_thread().name).result(timeout=5)
            'omniloop'
        """
        try:
            frame = _getframe(1)
        except ValueError:
            frame = _getframe()
        # The usual case is checked in place: two calls less, 50 of 690 ns on 3.11.
        if type(fn) is not FunctionType or fn.__code__.co_flags & NOT_PLAIN:
            check_function(fn, "call_soon")
        task: Task[T] = Task(self, fn, args, context, frame)
        return self._put_bounded(task, self._put) if self._bounded else self._put(task)

    def call_later(
        self, delay: float, fn: Callable[[*Ts], Any], *args: *Ts, context: Context | None = None
    ) -> Task[Any]:
        """
        Call a function, plain or async, on the loop in *delay* seconds; the returned handle cancels it and has its result.

        A call that is not due at exit is cancelled without a report; a call that is due is work like any other. `flush` does not wait
        for calls that are not due.

        Args:
            delay: Seconds from now; a negative number counts as 0.
            context: Run in a copy of this context instead of a copy of the caller's.

        Raises:
            NotAsyncError: if *fn* can't be called.
            ValueError: if *delay* is not a number of seconds.
            ClosedError: if the runtime is shut down, or the interpreter ends.
            CannotStartError: if this was the first use, and no thread can be started here.

        Example:
            >>> from omniloop import call_later
            >>> call_later(0.01, max, 3, 7).result(timeout=5)
            7
        """
        check_function(fn, "call_later", or_async=True)
        when = self._now() + _seconds("delay", delay, -MOST_SECONDS)
        return self._call_at(when, fn, args, context, caller())

    def call_at(self, when: float, fn: Callable[[*Ts], Any], *args: *Ts, context: Context | None = None) -> Task[Any]:
        """
        Call a function, plain or async, on the loop at *when*, by `time.monotonic()`; otherwise as `call_later`.

        Raises:
            NotAsyncError: if *fn* can't be called.
            ValueError: if *when* is not a number of seconds.
            ClosedError: if the runtime is shut down, or the interpreter ends.
            CannotStartError: if this was the first use, and no thread can be started here.

        Example:
            >>> import time
            >>> from omniloop import call_at
            >>> call_at(time.monotonic() + 0.01, max, 3, 7).result(timeout=5)
            7
        """
        check_function(fn, "call_at", or_async=True)
        return self._call_at(_seconds("when", when, -MOST_SECONDS), fn, args, context, caller())

    def every(
        self,
        interval: float,
        fn: Callable[[], object],
        *,
        jitter: float = 0,
        immediately: bool = False,
        name: str | None = None,
        context: Context | None = None,
        daemon: bool = False,
    ) -> Task[None]:
        """
        Call a function, plain or async, on the loop every *interval* seconds, until the handle is cancelled or the program ends.

        The turns are counted from the start, so that they do not drift. A turn that is missed, because the one before took too long,
        is left out. An error is reported, and the next turn comes.

        At exit, and by `shutdown`, it is cancelled without a report between two turns. A turn that is under way when all other work is
        done is waited for, once, as other work is; no further turn begins.

        Args:
            interval: Seconds from turn to turn.
            jitter: Seconds; each turn is late by a random part of this.
            immediately: Take the first turn now, and not after one interval.
            name: For logs and `tasks()`. By default made of the interval and the function's name.
            context: Take all turns in one copy of this context instead of a copy of the caller's.
            daemon: At the end, cancel even a turn that is under way, instead of waiting for it; its clean-up runs.

        Raises:
            NotAsyncError: if *fn* can't be called.
            TypeError: if *context* is no `Context`.
            ValueError: if *interval* or *jitter* is not a number of seconds.
            ClosedError: if the runtime is shut down, or the interpreter ends.
            CannotStartError: if this was the first use, and no thread can be started here.

        Example:
            >>> import threading
            >>> from omniloop import every
            >>> turns = threading.Semaphore(0)
            >>> beat = every(0.01, turns.release)
            >>> for _ in range(3):
            ...     turns.acquire(timeout=5)
            True
            True
            True
            >>> beat.cancel()
            True
        """
        frame = caller()
        check_function(fn, "every", or_async=True)
        if _seconds("interval", interval) <= 0:
            raise ValueError(f"interval={interval!r}: give seconds as a number above 0.")
        title = name or f"every {interval:g} s: {name_of(fn)}"
        site = Site(frame.f_code, frame.f_lasti)
        late = _seconds("jitter", jitter)
        # Loaded on use, as most programs have none.
        from ._work.periodic import Turns

        turns = Turns(interval, fn, late, immediately, daemon, title, site, self._failures.tell_soon)
        return self._go(turns.run(), frame, title, context, DAEMON, "accept")

    def to_thread(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """
        Run a blocking function in a worker thread, in a copy of the caller's context; return its handle at once.

        A running function can't be cancelled. A function that waits for this runtime takes no place in the pool meanwhile.

        Raises:
            NotAsyncError: if *fn* is async, or can't be called.
            ClosedError: if the runtime is shut down, or the interpreter ends.
            CannotStartError: if no thread can be started here.
            FullError: if `max_pending` is reached, and this call is not to wait, or may not.

        Example:
            >>> from omniloop import to_thread
            >>> to_thread(sorted, [3, 1, 2], reverse=True).result(timeout=5)
            [3, 2, 1]
        """
        return self._to_thread(fn, args, kwargs, caller())

    # --- waiting ------------------------------------------------------------------------------------------------------

    @one_argument
    def run(self, coro: Awaitable[T], *misplaced: Never, timeout: float | None = None) -> T:
        """
        Run a coroutine on the loop and return its value, or raise the error it raised.

        Blocks; not for the loop's own thread, signal handlers or finalisers. If another loop runs in the calling thread (a
        notebook), the call works and blocks that loop. Unlike `asyncio.run` it makes no loop of its own: *coro* can't use what
        was made on the caller's loop.

        Ctrl-C, and *timeout*, cancel the work and wait for its clean-up, `cancel_timeout` seconds at the most.

        Args:
            timeout: Seconds to wait. None waits without end.

        Raises:
            TaskTimeoutError: if *timeout* passed. The work was cancelled; the error's ``task`` is its handle.
            NotAsyncError: if *coro* can't be awaited here.
            WouldDeadlockError: if the wait could never end: on the loop's own thread, for one.
            ClosedError: if the runtime is shut down, or the interpreter ends.
            CannotStartError: if this was the first use, and no thread can be started here.
            CancelledError: of `concurrent.futures`, if somebody else cancelled the work.

        Example:
            >>> from omniloop import run
            >>> async def add(left, right):
            ...     return left + right
            >>> run(add(1, 2), timeout=5)
            3
        """
        if misplaced:
            raise misplaced_arguments("run", coro, misplaced)
        try:
            frame = _getframe(1)
        except ValueError:
            frame = _getframe()
        task = self._run_to_end(coro, timeout, frame)
        value: T
        value, error = task._take(CancelledError)
        if error is None:
            return value
        # Raised here, so that this is the only line between the caller's and the work's in the traceback.
        try:
            raise error
        finally:
            # The traceback refers to this frame: a cycle, which would keep both alive.
            del task, error

    def flush(self, timeout: float | None = None, *, progress: bool = False, leftovers: bool = False) -> None:
        """
        Wait until all work that was accepted before this call is done, whichever way it ended.

        Failures whose handle was dropped are reported by then. A failure whose handle somebody holds is left to the holder: it is
        reported when the handle is dropped before anybody asked, by `shutdown`, or at exit.

        Async generators that the work dropped before their end are closed by then, if that takes no longer than `cancel_timeout`.
        Does not wait for daemons, periodic calls, or calls that are not due. Blocks; not for the loop's own thread.

        Args:
            timeout: Seconds to wait. None waits without end, 0 asks without waiting.
            progress: Show how much is left, on stderr, if that is a terminal and the wait takes longer than half a second.
            leftovers: Wait, too, for the tasks that work has left on the loop by `asyncio.create_task` and its kin, as the end of the
                program does: for `leftover_timeout` at the most.

        Raises:
            WaitTimeoutError: if *timeout* passed. The work goes on.
            WouldDeadlockError: if called on the loop's own thread, or in a worker thread of this runtime.

        Example:
            >>> import asyncio
            >>> from omniloop import flush, go
            >>> done = []
            >>> async def work(number):
            ...     await asyncio.sleep(0.01)
            ...     done.append(number)
            >>> for number in range(3):
            ...     task = go(work(number))
            >>> flush(timeout=5)
            >>> done
            [0, 1, 2]
        """
        life = self._current()
        check_timeout(timeout)
        with waits.waiting_for_all(life, "flush()"):
            done = drain.flush(
                life,
                _deadline(timeout),
                progress,
                self._settings.cancel_timeout,
                self._leftover_time(time.monotonic(), 0.0, None) if leftovers else None,
            )
        # Done here too, because the loop's thread may have died.
        self._failures.tell_unheld()
        self._failures.tell_kept(at_once=True)
        if not done:
            raise WaitTimeoutError(
                f"flush() was not done after {timeout} s: {len(self.tasks())} tasks are unfinished. They go on."
            )

    def shutdown(self, timeout: float | None | FromSettings = FROM_SETTINGS) -> None:
        """
        Drain, cancel the work that is left, await its clean-up, and end the threads. Blocks; not for the loop's own thread.

        Work that is cancelled because *timeout* passed is named in the log. Afterwards a `Runtime` refuses further work; the module's
        functions start afresh on the next use. Calling it again, or from several threads, is harmless. In a signal handler that has
        interrupted a call of this package it returns at once, and another thread does the shutdown.

        Args:
            timeout: Seconds to wait for the work to be done; then `cancel_timeout` more for the clean-up of work that is cancelled. None
                waits without end, 0 cancels at once. By default the setting `exit_timeout`.

        Raises:
            WouldDeadlockError: if called on the loop's own thread, or in a worker thread of this runtime.

        Example:
            >>> import asyncio
            >>> from omniloop import Runtime
            >>> runtime = Runtime()
            >>> task = runtime.go(asyncio.sleep(0.01, "done"))
            >>> runtime.shutdown()
            >>> task.result()
            'done'
        """
        life = self._current()
        if not isinstance(timeout, FromSettings):
            check_timeout(timeout)
        if signals.handler_must_not_wait():
            # The interrupted frame may be in the start, or in a shutdown of its own; so another thread does this one.
            exit.beside(partial(self.shutdown, timeout), "omniloop-shutdown")
            return
        seconds = self._settings.exit_timeout if isinstance(timeout, FromSettings) else timeout
        deadline = _deadline(seconds)
        with waits.waiting_for_all(life, "shutdown()"):
            taken: list[bool] = []
            try:
                # Another thread may be in a shutdown that has more time. Work that this one cancels at its own deadline, that one no
                # longer waits for.
                take(self._closing, seconds, taken)
                if not self._reopens:
                    self._shut_down = self._ended = True
                leftovers = self._leftover_time(time.monotonic(), 0.0, deadline)
                self._close(deadline, leftovers, self._settings.cancel_timeout)
            finally:
                if True in taken:
                    self._closing.release()
        exit.make_up_for_signal()

    # --- settings and looks -------------------------------------------------------------------------------------------

    def configure(self, **settings: Unpack[AllChanges]) -> None:
        """
        Change settings; see the reference for what each does. For programs; a library should leave them alone.

        Raises:
            SettingError: if there is no such setting, it can't have this value, or it belongs to the process (`monitor`, `sigterm`) and
                this is not the shared runtime. Nothing is changed then.
            AlreadyRunningError: if `loop_factory`, `max_workers` or `max_waiting_workers` is to change while the thread runs.
            ValueError: for `sigterm`, if not called in the main thread.
            CannotStartError: for `monitor`, if its socket can't be opened; for `slow_callback`, if no thread can be started. All
                settings are changed then, and the next call tries again.

        Example:
            >>> from omniloop import configure
            >>> configure(exit_timeout=10, slow_callback=0.5)
        """
        new = changed(self._settings, settings, shared=self is Runtime._shared)
        for name in SHAPES_THE_THREAD & settings.keys():
            life = self._current()
            if life.stage not in (Stage.NEW, Stage.CLOSED) and getattr(new, name) != getattr(self._settings, name):
                raise AlreadyRunningError(
                    f"{name} shapes the thread, which runs already. Call configure() before the first use, or after shutdown()."
                )
        if "sigterm" in settings:
            signals.set_up_sigterm(new.sigterm)
        self._choose(new)
        try:
            self._current().watch()
        except RuntimeError as error:
            raise CannotStartError(f"The watchdog can't be started: {why_no_thread(error)}") from error
        finally:
            if "monitor" in settings:
                server = _hooks.on_use("_monitor.server", load=new.monitor)
                if server is not None:
                    (server.start if new.monitor else server.stop)()

    def tasks(self) -> list[Task[Any]]:
        """
        Return the handles of all work that is accepted and not done.

        Example:
            >>> import asyncio
            >>> from omniloop import go, tasks
            >>> task = go(asyncio.sleep(60), name="nightly report")
            >>> [task.get_name() for task in tasks()]
            ['nightly report']
            >>> task.cancel()
            True
        """
        return self._current().unfinished()

    def stats(self) -> Stats:
        """
        Return counts: what was accepted, finished, failed … so far, and what runs and waits now. Does not block; costs nothing until called.

        The counts begin with the process; in a forked child they begin at 0. They go on after `shutdown()`.

        Example:
            >>> from omniloop import flush, stats, to_thread
            >>> before = stats().finished
            >>> task = to_thread(sum, [1, 2])
            >>> flush(timeout=5)
            >>> stats().finished - before
            1
        """
        stats = self._current().stats(self._drain_time)
        return stats if self._timings is None else stats._replace(timings=self._timings.read())

    def dump(self, file: IO[str] | None = None, *, json: bool = False) -> None:
        """
        Write the unfinished work to *file* (by default stderr): name, age, where it was submitted, where it waits.

        Tasks that were submitted at one place and wait at one place share a line, with their count and the age of the oldest. Below it
        are the functions that await each other, or the stack of a call in a worker thread; then the tasks that the task has started with
        asyncio's own means.

        Args:
            json: Write the same as one line of JSON, for programs.

        Example:
            >>> import sys
            >>> from omniloop import Runtime
            >>> with Runtime(name="reports") as runtime:
            ...     runtime.dump(sys.stdout)
            reports: 0 unfinished
        """
        look = _hooks.on_use("_seen.look")
        out = sys.stderr if file is None else file
        looked = look.look(self.name, self._current())
        if json:
            from json import dumps

            print(dumps(looked), file=out)
        else:
            for line in look.as_lines(looked):
                print(line, file=out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        return f"<Runtime '{shown(self.name)}', {len(self.tasks())} unfinished{', shut down' if self._ended else ''}>"

    # --- the submit path; the bridges call these with the frame of their caller ---------------------------------------

    # A handle is the record of its submission (work, name, context, kind and place), so it is all that is passed on from here.

    def _go(
        self,
        coro: Awaitable[T],
        frame: FrameType,
        name: str | None = None,
        context: Context | None = None,
        kind: Kind = WORK,
        when_full: WhenFull | Literal["accept"] | None = None,
    ) -> Task[T]:
        return self._submit(self._make(coro, frame, name, context, kind), when_full)

    def _make(
        self, coro: Awaitable[T], frame: FrameType, name: str | None, context: Context | None = None, kind: Kind = WORK
    ) -> Task[T]:
        if type(coro) is not CoroutineType or coro.cr_suspended or coro.cr_running:
            coro = as_coroutine(coro, self._life.loop)
        if name is not None:
            name = checked_name(name, coro)
        task: Task[T] = Task(self, coro, None, context, frame, name, kind)
        if kind is DAEMON:
            # All that it submits and makes belongs to a daemon: its context says so. (A task that is not done has a context.)
            task._context.run(belongs_to.set, OF_DAEMONS)  # type: ignore[union-attr]
        return task

    def _go_within(
        self,
        timeout: float | None,
        coro: Awaitable[T],
        frame: FrameType,
        name: str | None = None,
        *,
        limit: Callable[[Coroutine[Any, Any, T]], Coroutine[Any, Any, T]] | None = None,
        from_start: bool = False,
        when_full: WhenFull | Literal["accept"] | None = None,
        **options: Any,
    ) -> Task[T]:
        """
        As `_go`; the work is cancelled *timeout* seconds from now, or from its start. None means no limit.

        *limit* makes of *coro* the coroutine that waits for its turn.
        """
        if timeout is None and limit is None:
            return self._go(coro, frame, name, when_full=when_full, **options)
        task = inner = limited = outer = None
        try:
            check_timeout(timeout)
            inner = limited = outer = as_coroutine(coro, self._life.loop)
            name = name if name is not None else name_of(inner)
            if limit is not None:
                limited = outer = limit(inner)
            if timeout is not None:
                outer = within(limited, str(name), timeout, None if from_start else time.monotonic() + timeout)
            made = self._make(outer, frame, name, **options)
            # For work that is refused, or cancelled or dropped before its turn.
            made._when_done(partial(close_unstarted, limited, inner))
            task = made
            return self._submit(task, when_full)
        except BaseException:
            closing = partial(close_unstarted, outer, limited, inner, coro)
            # Interrupted (Ctrl-C) while it was delivered: the loop may be starting it, so it is closed on the loop's thread.
            if task is None or task.done() or not self._life.inbox.put(closing):
                closing()
            raise

    def _call_at(
        self, when: float, fn: Callable[..., Any], args: tuple[Any, ...], context: Context | None, frame: FrameType
    ) -> Task[Any]:
        task: Task[Any] = Task(self, fn, args, context, frame)
        return self._put(task, Later(task, when))

    def _to_thread(
        self,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        frame: FrameType,
        name: str | None = None,
        when_full: Literal["accept"] | None = None,
        context: Context | None = None,
    ) -> Task[T]:
        check_function(fn, "to_thread")
        work = ThreadWork(fn, partial(fn, *args, **kwargs) if args or kwargs else fn)
        task: Task[T] = Task(self, work, (), context, frame, name)
        if self._bounded and when_full is None:
            return self._put_bounded(task, self._put_to_thread)
        return self._put_to_thread(task)

    def _run(self, coro: Awaitable[T], timeout: float | None, frame: FrameType) -> T:
        return self._run_to_end(coro, timeout, frame).result(0)

    def _run_to_end(self, coro: Awaitable[T], timeout: float | None, frame: FrameType) -> Task[T]:
        """Wait until *coro* is done, and return its task."""
        try:
            check_timeout(timeout)
            life = self._current()
            # Before the work is submitted, so that it never starts if it is refused.
            life.check_may_wait("run()", by_host=True)
            if type(coro) is not CoroutineType or coro.cr_suspended or coro.cr_running:
                coro = as_coroutine(coro, life.loop, "run")
        except BaseException:
            close_unstarted(coro)
            raise
        guest = _hooks.waits()
        if guest is not None:
            task: Task[T] = guest.run(self, coro, timeout, frame)
            return task
        return self._run_task(Task(self, coro, None, None, frame), timeout)

    def _run_task(
        self, task: Task[T], timeout: float | None, wait_here: Callable[[float], bool] | None = None
    ) -> Task[T]:
        wait_here = wait_here or task._wait_here
        # A host's thread is asked again, because it runs the loop while it waits.
        wait = waits.wait if _hooks.host.guest is not None else waits.wait_unasked
        life: Any = task._owner
        try:
            # Inside the `try`, because Ctrl-C may come when the loop has the task already. Without bounds: a caller that waits can't
            # pile up work.
            self._put(task)
            life = task._owner
            give_way()
            done = task._outcome() is not None or wait(life, task, wait_here, timeout)
            if not done:
                task.cancel()
                done = wait(life, task, wait_here, self._settings.cancel_timeout) and not task.cancelled()
        except WouldDeadlockError:
            task.cancel()
            raise
        except BaseException:
            # Ctrl-C, or an error from another signal handler. A second one ends this wait too. A child that was forked in the middle of
            # the wait comes here by its sys.exit(): there the work is the parent's.
            fork.notice_fork()
            if not life.foreign and task._give_up():
                wait(life, task, wait_here, self._settings.cancel_timeout)
            raise
        if not done:
            end = (
                "was cancelled"
                if task.done()
                else f"was asked to end; {self._settings.cancel_timeout} s later it has not. It goes on: tasks() shows it"
            )
            raise TaskTimeoutError(f"{shown(task.get_name())} was not done after {timeout} s, and {end}.", task=task)
        return task

    def _submit(self, task: Task[T], when_full: WhenFull | Literal["accept"] | None = None) -> Task[T]:
        """Deliver *task*, if there is room for it."""
        if self._bounded and when_full != "accept":
            return self._put_bounded(task, self._put, when_full)
        return self._put(task)

    def _note(self, task: Task[Any], frame: FrameType) -> None:
        """Note more about a submission than the work needs, for debug mode or `timings`."""
        if self._life.debug:
            task._stack = _stack(frame)
        if self._timings is not None and self._settings.timings:
            self._timings.measure(task, self._life.ledger.batch_began)

    def _put(self, task: Task[T], later: Later | None = None) -> Task[T]:
        """Deliver *task*, to be started at once or *later*, to this life or the next; or refuse it."""
        # Not `self._life`, which may be another life by now. The task knows its life only as an `Owner`.
        life: Life = task._owner  # type: ignore[assignment]
        item = task if later is None else later
        while True:
            try:
                if life.inbox.put(item):
                    return task
            except BaseException:
                # Interrupted, or no thread can be started. Nobody gets the handle, so nothing is left behind, even if the loop has taken it.
                if life.inbox.take_back(item):
                    task._refuse()
                else:
                    task._give_up()
                raise
            if not self._renew(life):
                task._refuse()
                raise self._closed_error()
            task._owner = life = self._life

    def _put_to_thread(self, task: Task[T]) -> Task[T]:
        while True:
            # As in `_put`.
            life: Life = task._owner  # type: ignore[assignment]
            work: Any = task._work
            if not life.inbox.closed and life.workers.make(task, work):
                return task
            if not self._renew(life):
                task._refuse()
                raise self._closed_error()
            task._owner = self._life
            # A new ticket, because the other life has taken the first one.
            task._work = ThreadWork(work, work.call)

    def _put_bounded(
        self, task: Task[T], put: Callable[[Task[T]], Task[T]], when_full: WhenFull | None = None
    ) -> Task[T]:
        """Deliver *task* if there is room for it; else do what *when_full*, or the setting, says. FullError if it is refused."""
        try:
            # Reading the settings, perhaps for the first time, sets `_bounded`.
            settings = self._settings
        except BaseException:
            task._refuse()
            raise
        admission = self._admission
        if admission is None or not self._bounded or task._kind is KEEPER:
            return put(task)
        try:
            if not admission.admit(task, self._life, when_full or settings.when_full):
                return task
            # After a wait for room it may be another life.
            task._owner = self._life
            # Room is made before the outcome is known: where threads run in parallel, whoever learns of it may submit the next task at
            # once.
            task._before_done(partial(admission.leave, task))
            put(task)
            admission.delivered(task)
            return task
        except BaseException:
            admission.leave(task)
            # If the loop has it already, an interruption (Ctrl-C) came in between.
            task._give_up()
            raise

    def _now(self) -> float:
        return self._clock()

    # --- lives --------------------------------------------------------------------------------------------------------

    def _current(self) -> Life:
        if not _same_process[0]:
            fork.notice_fork()
        return self._life

    def _renew(self, life: Life) -> bool:
        """Begin another life after *life* has refused a task, unless this runtime may have none."""
        if life is not self._life:
            return True
        if self._ended or exit.exiting() or not (life.stage is Stage.DEAD or self._reopens):
            return False
        self._begin(life.generation + 1)
        return True

    def _begin(self, generation: int) -> None:
        life = Life(self, generation)
        key = os.getpid(), generation
        life.noted = life.debug or (self._chosen is not None and self._chosen.timings)
        # Atomic, so that two threads that begin a life at once get the same one.
        self._life = self._lives.setdefault(key, life)
        self._failures.inbox = self._life.inbox
        for old in [other for other in list(self._lives) if other != key]:
            self._lives.pop(old, None)

    def _closed_error(self) -> ClosedError:
        if self._ended and not self._shut_down:
            return ClosedError(exit.TOO_LATE)
        return ClosedError(
            f"The runtime '{shown(self.name)}' is shut down. Submit the work before shutdown(), or make a new Runtime."
        )

    # --- what the process tells ---------------------------------------------------------------------------------------

    def _held_by_fork(self) -> Life:
        return self._life

    def _after_fork_in_parent(self) -> None:
        self._life.catch_up()
        shutdown.name_left_behind(self._life)

    def _after_fork_in_child(self) -> None:
        # Another thread may have held the lock at the fork.
        self._closing = RLock()
        self._drain_time = 0.0
        self._failures.abandon()
        self._failures = Failures(lambda: self._settings.on_error)
        self._tally = Tally()
        self._timings = None
        if self._admission is not None:
            # Nothing may be imported here.
            self._admission = type(self._admission)()
        if self._chosen is not None:
            self._choose(self._chosen)
        self._ended = self._shut_down
        old = self._life
        exit.unwatch(self)
        self._begin(old.generation + 1)
        old.after_fork_in_child()

    def _drain_early(self, clock: fork.Clock) -> bool:
        """Only wait: the program may go on for minutes, in threads that are not daemons. False if the deadline passed."""
        deadline = clock.deadline(self._settings.exit_timeout)
        leftovers = self._leftover_time(clock.began, clock.spent, deadline) if clock.ends else None
        return drain.drain(self._life, deadline, self._settings.cancel_timeout, leftovers)

    def _leftover_time(self, began: float, spent: float, deadline: float | None) -> drain.LeftoverTime:
        """Return how long an end that began at *began* waits for leftovers, and for which of them."""
        seconds = self._settings.leftover_timeout
        until = time.monotonic() + max(0.0, seconds - spent)
        return drain.LeftoverTime(began - seconds, until if deadline is None else min(until, deadline))

    def _drained(self, seconds: float) -> None:
        self._drain_time = seconds

    def _started(self) -> int:
        """Return how much work was ever started, or waits to be, without what daemons have submitted."""
        return self._life.started()

    def _remaining(self) -> int:
        """Return how much unfinished work, leftovers included, there is to wait for."""
        return self._life.ledger.remaining() + self._life.ledger.leftovers.count(
            time.monotonic() - self._settings.leftover_timeout
        )

    def _tell_failures(self) -> None:
        self._failures.tell_all()

    def _drain_at_exit(self, clock: fork.Clock) -> None:
        """Drain for the last time: all work that is submitted later is refused."""
        deadline = clock.deadline(self._settings.exit_timeout)
        self._ended = True
        taken: list[bool] = []
        try:
            try:
                # A daemon thread may be in a shutdown() that has more time than the exit.
                take(self._closing, None if deadline is None else deadline - time.monotonic(), taken)
            except KeyboardInterrupt:
                clock.interruptions += 1
            leftovers = self._leftover_time(clock.began, clock.spent, deadline)
            clean_up = clock.clean_up(self._settings.cancel_timeout)
            clock.interruptions = self._close(deadline, leftovers, clean_up, clock.interruptions)
        finally:
            if True in taken:
                self._closing.release()

    def _close(
        self, deadline: float | None, leftovers: drain.LeftoverTime, cancel_timeout: float, interruptions: int = 0
    ) -> int:
        life = self._life
        if life.stage is not Stage.CLOSED:
            start = time.monotonic()
            try:
                interruptions = shutdown.close(life, deadline, cancel_timeout, leftovers, interruptions)
            finally:
                self._drain_time = exit.drained_for() if exit.draining() else time.monotonic() - start
                if self._admission is not None:
                    self._admission.report(life)
                self._failures.tell_unheld()
                exit.unwatch(self)
                if self._life is not life:
                    # The runtime was used meanwhile: the next life is to be drained as well.
                    exit.watch(self)
        return interruptions


def _seconds(name: str, value: float, least: float = 0) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= MOST_SECONDS:
        return value
    raise ValueError(f"{name}={value!r}: give seconds as a number{' of 0 or more' if least == 0 else ''}.")


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _stack(frame: FrameType) -> traceback.StackSummary:
    # Without source lines: those are read when somebody prints the stack.
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
    stack.reverse()
    return stack


async def within(coro: Coroutine[Any, Any, T], name: str, timeout: float, until: float | None) -> T:
    """Await *coro* until *until*, by `time.monotonic()`, or for *timeout* seconds if that is None. If it is too late, *coro* never starts."""
    left = timeout if until is None else until - time.monotonic()
    if left <= 0:
        coro.close()
        raise _of_handle(f"{shown(name)} was not started within {timeout:g} s of its submission, and never will be.")
    cut_off = None
    try:
        try:
            async with asyncio.timeout(left):
                try:
                    return await coro
                except asyncio.CancelledError as error:
                    cut_off = error
                    raise
        except TimeoutError as error:
            # A TimeoutError that the work itself raised, even while it was being cancelled, has another cause.
            if cut_off is None or error.__cause__ is not cut_off:
                raise
        # Raised outside the handler. Inside, asyncio's error would be the context of this one and keep its `Timeout` alive, which
        # refers to the task: a cycle.
        since = "its start" if until is None else "its submission"
        # The cause shows where the work was when the time was over.
        raise _of_handle(f"{shown(name)} was not done {timeout:g} s after {since}, and was cancelled.") from cut_off
    finally:
        # The traceback of the cause refers to this frame: another cycle.
        del cut_off


def _of_handle(words: str) -> TaskTimeoutError:
    error = TaskTimeoutError(words)
    error.of_handle = True
    return error
