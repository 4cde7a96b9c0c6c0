"""
The end of the process: three exit hooks finish the work that the runtimes have accepted.

What is guaranteed. Accepted work is finished, within the deadlines of its runtime. The deadline for work counts the time of all hooks
together, and runs for all runtimes at once (`Clock`). The deadline for the clean-up of cancelled tasks comes on top, for one runtime after
the other (`_life.shutdown.close`, which also handles Ctrl-C). Work that is submitted while the process ends is finished by one of the hooks or
refused, never lost silently. After the last hook no thread of ours runs that could end, and logging waits for no handler that hangs in one
of our threads.

The hooks, in the order in which they run:

1. `_drain_early`, a hook of `threading`, runs before non-daemon threads end and before the pools of `concurrent.futures` are shut. It only
   waits: the program may go on for minutes in non-daemon threads.
2. `_before_others`, a hook of `atexit`, is registered only when main has ended, so that it is the first of them to run. It finishes what
   threads did until now and reports failures, before the hooks of Sentry and OpenTelemetry close the channels for that.
3. `drain_at_exit`, a hook of `atexit`, is registered at import, so that it runs after the hooks that the program registers later, which may
   still submit. It finishes that, cancels the rest, closes the runtimes, and refuses work from then on.

Which thread may do what. The hooks run in the main thread, one after the other. But a signal handler may run the last hook in the middle of
another; a child that returns from a fork in a worker runs the hooks there (`end_orphan`); and a drain on SIGTERM may run in its own thread
beside the main one. So each of them may start and stop the clock, which shows the same time to all.

What was tried and does not work. Cancelling in the early hook: threads that outlive main found the runtime shut. `atexit` alone: on every
version the default pool refuses work by then, and up to 3.12 a child of multiprocessing ends without calling it. A hook of `threading`
registered at import: it runs after the pools of others are shut. A clock for each runtime: two that need each other took twice the time.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Final

from .._cpython import call_early_at_exit, joins_threads
from .._report import callers, frame_of, hurried, leave_out_hung, say
from .._threads import new_thread, take, time
from .fork import forget_after_fork, hold_inherited, is_multiprocessing_child, notice_fork, watched

if TYPE_CHECKING:
    from .fork import Watched

# The message for work that comes after the last drain; also when there was none, because omniloop is first used then.
TOO_LATE: Final = "The interpreter is exiting, and its last drain is over: nothing more can be run. Submit it earlier."

_exiting = False

_tellers: list[Callable[[], None]] = []


def watch(runtime: Watched) -> None:
    """Tell *runtime* of forks and of the end, and keep it alive until then. May be called again; it is told of the end only once."""
    watched.add(runtime)
    _hook_exit()


def unwatch(runtime: Watched) -> None:
    """Forget *runtime*."""
    watched.discard(runtime)


def tell_at_exit(tell: Callable[[], None]) -> None:
    """Have *tell* called when the work is done, to report what is left to report: before the exit hooks of others, and again at the end."""
    _tellers.append(tell)


def exiting() -> bool:
    """Tell whether the last drain is over, or can't come any more, so that this process can do no more work."""
    return _exiting


_hooked_pid: int | None = None


# The share of the time in `end_within` that is kept for the clean-up of cancelled tasks.
_FOR_CLEAN_UP: Final = 0.2


class Clock:
    """The time that a drain has taken, summed over its parts, and the number of Ctrl-C in it. From any thread."""

    def __init__(self, ends: bool = True) -> None:
        # Whether the process or the life ends; only then leftovers on the loop are waited for too.
        self.ends = ends
        # When the current part began, None between parts.
        self._since: float | None = None
        self._spent = 0.0
        # The latest end of the wait for work, by `time.monotonic()`, whatever the deadlines of the runtimes; and how many seconds clean-up
        # has after that.
        self._latest = math.inf
        self._for_clean_up = math.inf
        # The first Ctrl-C ends the wait for work, in all runtimes; the second ends the wait for clean-up.
        self.interruptions = 0

    @property
    def began(self) -> float:
        """When the current part began, by `time.monotonic()`; now, if none is under way."""
        since = self._since
        return time.monotonic() if since is None else since

    @property
    def spent(self) -> float:
        """Seconds spent so far."""
        since = self._since
        return self._spent + (0.0 if since is None else time.monotonic() - since)

    def start(self) -> None:
        """Begin a part. Harmless if one is under way: a signal handler may drain in the middle of a hook."""
        if self._since is None:
            self._since = time.monotonic()

    def stop(self) -> None:
        """End the current part."""
        self._spent, self._since = self.spent, None

    def end_within(self, seconds: float) -> None:
        """End the drain within *seconds*, or earlier if a runtime's own deadline is earlier."""
        self._for_clean_up = seconds * _FOR_CLEAN_UP
        self._latest = time.monotonic() + seconds - self._for_clean_up

    def deadline(self, timeout: float | None) -> float | None:
        """Return the deadline, by `time.monotonic()`, of a runtime that gives the drain *timeout* seconds; None if it has none."""
        left = math.inf if timeout is None else max(0.0, timeout - self.spent)
        deadline = min(self._latest, time.monotonic() + left)
        return None if deadline == math.inf else deadline

    def clean_up(self, timeout: float) -> float:
        """Return how many seconds a runtime waits for clean-up that gives it *timeout* seconds."""
        return max(0.0, min(timeout, self._for_clean_up - max(0.0, time.monotonic() - self._latest)))


# The clock of the process's end.
_clock = Clock()

# Held during the last drain. Re-entrant, because the work that it runs may end the process too.
_last_drain = threading.RLock()

# The idents of our threads that did not end, because something blocks them.
_left_behind: set[int] = set()


def draining() -> bool:
    """Tell whether the process ends and waits for unfinished work."""
    return _clock._since is not None


def drained_for() -> float:
    """Return how many seconds the process has drained at its end."""
    return _clock.spent


def drain_no_longer_than(seconds: float) -> None:
    """End the drains of this process within *seconds*, or earlier if a runtime's own deadline is earlier."""
    _clock.end_within(seconds)


def leave_behind(ident: int | None) -> None:
    """Note that our thread *ident* did not end. If it hangs in a logging handler, logging does not wait for that handler at exit."""
    if ident is not None:
        _left_behind.add(ident)


# How a signal wants the process to end after the last drain; and whether a signal handler could not run that drain, nor start a thread for
# it.
_end: Callable[[], object] | None = None
_put_off = False


def end_with(end: Callable[[], object]) -> None:
    """Have *end* called after the last drain, to end the process."""
    global _end
    _end = end


def ends() -> bool:
    """Tell whether a signal has asked for the end of the process."""
    return _end is not None


def put_off() -> None:
    """
    Note that a signal handler could neither drain, because of what it interrupted, nor start a thread for that: the interrupted code does
    it.
    """
    global _put_off
    _put_off = True


def make_up_for_signal() -> None:
    """At the end of a start or a shutdown: run the drain that a signal handler put off, which ends the process."""
    global _put_off
    if _put_off:
        _put_off = False
        drain_at_exit()


def is_idle() -> bool:
    """Tell whether no runtime has work left."""
    return not any(runtime._remaining() for runtime in list(watched))


def beside(call: Callable[[], object], name: str) -> None:
    """Call *call* in a new thread, because the calling thread's loop must go on. RuntimeError if no thread can be started."""
    new_thread(call, name).start()


def _hook_exit() -> None:
    """
    Register with this process's exit, on first use.

    The early hook runs before the pools of others are shut only if it is registered after theirs: so on first use, and not at import.
    """
    global _hooked_pid, _exiting
    if _hooked_pid == os.getpid():
        return
    _hooked_pid = os.getpid()
    try:
        call_early_at_exit(_drain_early)
    except RuntimeError:
        # A thread that outlives main is the first to use a runtime.
        _hook_before_others()
        _exiting = _exiting or _ends_without_atexit()
    if is_multiprocessing_child():
        # multiprocessing clears inherited registrations in its children; from 3.13 on it then runs what was registered after that.
        atexit.register(drain_at_exit)


def drain_before_pools() -> None:
    """
    Have the early drain run before `concurrent.futures` ends those of its pools that are loaded by now.

    Its hooks run last-in-first-out, so the drain is registered once more.
    """
    global _hooked_pid
    _hooked_pid = None
    _hook_exit()


def _drain_early() -> None:
    # Then no other hook follows this one.
    last = _ends_without_atexit()
    wait_for_all()
    if last:
        drain_at_exit()
        return
    _hook_before_others()


def _ends_without_atexit() -> bool:
    # Up to 3.12 a child of multiprocessing ends by os._exit.
    return sys.version_info < (3, 13) and is_multiprocessing_child()


def _hook_before_others() -> None:
    # Registered last, and so the first to run.
    atexit.unregister(_before_others)
    atexit.register(_before_others)


def _before_others() -> None:
    """
    Finish and report what must precede the exit hooks of others: Sentry's and OpenTelemetry's send what they have, and close.

    That is the work of threads that ended only now, and failures whose handle is held but was not asked.
    """
    if not _clock.interruptions:
        wait_for_all()
    with hurried():
        for runtime in list(watched):
            runtime._tell_failures()
        _tell()


def _tell() -> None:
    for tell in _tellers:
        tell()


def _too_late() -> bool:
    """
    Tell whether no other thread runs any more.

    On 3.13 that is so in a sub-interpreter that was left open: its hooks run when the main interpreter is all but gone. (On 3.14 they run
    in time, and up to 3.12 never.)
    """
    return sys.is_finalizing()


def wait_for_all() -> None:
    """Wait for the work of all runtimes, up to their deadlines, without cancelling or closing anything."""
    if _too_late():
        return
    notice_fork()
    _clock.start()
    try:
        with hurried():
            _wait(_clock)
    except KeyboardInterrupt:
        _clock.interruptions += 1
    finally:
        _clock.stop()
        for runtime in list(watched):
            runtime._drained(_clock.spent)


def wait_in_the_middle() -> None:
    """Wait like `wait_for_all` while the program goes on: the exit still has all of its time."""
    notice_fork()
    clock = Clock(ends=False)
    clock.start()
    _wait(clock)


def _wait(clock: Clock) -> None:
    in_time, before, now = True, -1, _started()
    # Repeated if anything was started meanwhile: work that one runtime has finished may have continued in another.
    while in_time and before != now:
        for runtime in list(watched):
            in_time = runtime._drain_early(clock) and in_time
        before, now = now, _started()


def _started() -> int:
    return sum(runtime._started() for runtime in list(watched))


def drain_at_exit() -> None:
    """Finish what is left, cancel what does not end, and close all runtimes. Later work is refused."""
    hold_inherited()
    notice_fork()
    # Bound once, because a child that is forked during the drain gets a new lock.
    last_drain = _last_drain
    taken: list[bool] = []
    try:
        while True not in taken:
            try:
                # The exit hook of main and a drain on SIGTERM may run at once: the second would cancel again what the first lets clean up.
                # Acquired twice, after a Ctrl-C, it would be released once.
                take(last_drain, None, taken)
            except KeyboardInterrupt:
                _clock.interruptions += 1
        _drain_at_exit()
    finally:
        if True in taken:
            last_drain.release()


def _drain_at_exit() -> None:
    global _exiting
    if not _clock.interruptions:
        wait_for_all()
    if _too_late():
        _give_up()
        return
    notice_fork()
    _clock.start()
    failed: BaseException | None = None
    with hurried():
        # Repeated, because the end of one runtime may start another.
        while watched:
            runtime = next(iter(watched))
            life = runtime._held_by_fork()
            try:
                runtime._drain_at_exit(_clock)
            except BaseException as error:
                # The other runtimes are ended nevertheless, and what they cut off is named.
                failed = failed or error
                _clock.interruptions += isinstance(error, KeyboardInterrupt)
            if runtime._held_by_fork() is life:
                # Otherwise somebody went on meanwhile, and the next life is to be drained as well.
                watched.discard(runtime)
        _tell()
        leave_out_hung(_left_behind)
    _exiting = True
    if _end is not None:
        _end()
    if failed is not None:
        raise failed


def _give_up() -> None:
    """Log how much is lost because nothing can run it, and wait for nothing."""
    global _exiting
    _exiting = True
    if count := sum(runtime._remaining() for runtime in list(watched)):
        say(
            "%d unfinished are lost, because their sub-interpreter was still open when the main one ended. Close it before.",
            count,
        )
    watched.clear()


def _hooks_run() -> bool:
    """
    Tell whether the interpreter has begun to call its exit hooks: one registered now succeeds, and is never called.

    That is so once main has ended; but while `threading` waits for the other threads, on main's stack, the hooks are still to come.
    """
    main = threading.main_thread()
    here = main is threading.current_thread()
    if main.is_alive() and not here:
        return False
    outermost = None
    for outermost in callers(sys._getframe() if here else frame_of(main.ident)):
        if joins_threads(outermost.f_code):
            return False
    # Without a frame: what `threading` takes for main was a thread of the program, which has ended. And if `threading` was first loaded
    # after main had ended, it takes main for alive.
    return outermost is not None and (not main.is_alive() or outermost.f_code in _Codes().of_hooks())


class _Codes:
    """The code of the registered exit hooks. `atexit` shows them only by comparing each with the one to unregister."""

    def __init__(self) -> None:
        self._codes: set[CodeType | None] = set()

    def of_hooks(self) -> set[CodeType | None]:
        atexit.unregister(self)  # type: ignore[arg-type]
        return self._codes

    def __eq__(self, hook: object) -> bool:
        self._codes.add(code_of(hook))
        return False

    __hash__ = None  # type: ignore[assignment]


def code_of(function: object) -> CodeType | None:
    """Return the code that a call of *function* runs, if it is written in Python; else None."""
    while isinstance(function, partial):
        function = function.func
    if not hasattr(function, "__code__"):
        # B004 mistakes this for a test whether it is callable.
        function = getattr(function, "__func__", None) or getattr(type(function), "__call__", None)  # noqa: B004
    return getattr(function, "__code__", None)


# Registered at import, before the hooks that the program registers later: those run first, and may still submit.
atexit.register(drain_at_exit)
# Asked after the registration: if main is still running now, the hook will be called.
_exiting = _hooks_run()


def end_orphan() -> None:
    """
    End a child whose only thread has nothing more to run: it was forked inside a piece of work, which has returned.

    If left alone it would end as well, but without finishing its own work and writing its output.
    """
    _drain_early()
    drain_at_exit()
    flush_streams()
    os._exit(0)


def flush_streams() -> None:
    """Write out what the process has printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            # Closed, broken or absent: there is nothing to save.
            pass


def _forget() -> None:
    """In a forked child: forget the end of the parent, unless an exit hook has forked this child, which then goes on in the hooks."""
    global _exiting, _clock, _end, _put_off, _last_drain
    _exiting = _exiting and _hooks_run()
    _end, _put_off = None, False
    # Another thread of the parent may have held it.
    _last_drain = threading.RLock()
    _clock = Clock()
    _left_behind.clear()


forget_after_fork(_forget)
