"""
The end of the process: three hooks, in which what the runtimes have accepted is finished.

What is guaranteed. What was accepted is finished, within the deadlines of its runtime. The one for the work counts the time of all hooks
together, and that of all runtimes at once (`Clock`); the one for the clean-up of what is cancelled comes on top, for one runtime after the
other (`_life.drain.close`, which also does what a Ctrl-C asks for). Nothing that is submitted while the process ends is lost without a
word: it is finished by one of the hooks, or refused. After the last one no thread of ours runs that could end, and no handler of logging
that hangs in one of our threads is left for logging to wait for.

The hooks, in the order in which they run:

1. `_drain_early`, of `threading`: before non-daemon threads end, and before the pools of `concurrent.futures` are shut. It only waits:
   the program may go on for minutes, in threads that are not daemons.
2. `_before_others`, of `atexit`, and registered only when main has ended, so that it is the first of all: finishes what threads did
   until now, and tells of failures, before the hooks of Sentry and OpenTelemetry close what they are told by.
3. `drain_at_exit`, of `atexit`, registered at import and so called after the hooks that the program registers later, which may still
   submit: finishes that, cancels what is left, closes, and refuses from then on.

Who may touch what. The hooks run in the main thread, one after the other. But a signal handler may run the last one in the middle of
another, a child that comes back from a fork in a worker runs them there (`end_orphan`), and a drain on SIGTERM may run in a thread of
its own beside the main one: so the clock may be started and stopped by each of them, and says the same to all.

What was tried and does not work. Cancelling in the early hook: threads that outlive main found the runtime shut. `atexit` alone: on every
version the default pool refuses work by then, and up to 3.12 a child of multiprocessing ends without it. A hook registered at import
in `threading`: it comes after the pools of others are shut. A clock for each runtime: two that need each other took twice the time.
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

from .._clock import time
from .._cpython import call_early_at_exit, joins_threads
from .._report import frame_of, hurried, leave_out_hung, say
from .fork import forget_after_fork, hold_inherited, is_multiprocessing_child, notice_fork, watched
from .threads import new_thread

if TYPE_CHECKING:
    from .fork import Watched

# What is said to those who come after the last drain; also where there was none, because they are the first to use omniloop.
TOO_LATE: Final = "The interpreter is exiting, and its last drain is over: nothing more can be run. Submit it earlier."

_exiting = False

_tellers: list[Callable[[], None]] = []


def watch(runtime: Watched) -> None:
    """Keep *runtime*, and tell it of forks and of the end. May be called again; once it is told of the end only once."""
    watched.add(runtime)
    _hook_exit()


def unwatch(runtime: Watched) -> None:
    """Forget *runtime*."""
    watched.discard(runtime)


def tell_at_exit(tell: Callable[[], None]) -> None:
    """Have *tell* called when the work is done: what is still to be said then is said before others' exit hooks, and at last."""
    _tellers.append(tell)


def exiting() -> bool:
    """Tell whether the last drain is over, or can't come any more, so that nothing more can be done in this process."""
    return _exiting


_hooked_pid: int | None = None


# Of the time within which a drain is to be over, the part that is kept for the clean-up of what is cancelled.
_FOR_CLEAN_UP: Final = 0.2


class Clock:
    """The time that a drain has taken, in all its parts, and how often Ctrl-C came in it. From any thread."""

    def __init__(self, ends: bool = True) -> None:
        # Whether the process, or the life, ends: then what work has left on the loop is waited for too.
        self.ends = ends
        # When the part that goes on began.
        self._since: float | None = None
        self._spent = 0.0
        # Until when work is waited for at most, by `time.monotonic()`, whatever the deadlines of the runtimes are; and how long clean-up is
        # after that.
        self._latest = math.inf
        self._for_clean_up = math.inf
        # The first Ctrl-C ends the waiting for work, in all runtimes; the second that for clean-up.
        self.interruptions = 0

    @property
    def began(self) -> float:
        """When the part that goes on began, by `time.monotonic()`."""
        since = self._since
        return time.monotonic() if since is None else since

    @property
    def spent(self) -> float:
        """Seconds until now."""
        since = self._since
        return self._spent + (0.0 if since is None else time.monotonic() - since)

    def start(self) -> None:
        """A part begins. Harmless where one goes on: a signal handler may drain in the middle of a hook."""
        if self._since is None:
            self._since = time.monotonic()

    def stop(self) -> None:
        """The part is over."""
        self._spent, self._since = self.spent, None

    def end_within(self, seconds: float) -> None:
        """Have the drain be over in *seconds*, or earlier where a runtime's own deadline is earlier."""
        self._for_clean_up = seconds * _FOR_CLEAN_UP
        self._latest = time.monotonic() + seconds - self._for_clean_up

    def deadline(self, timeout: float | None) -> float | None:
        """When a runtime that gives the drain *timeout* seconds is to be done, by `time.monotonic()`."""
        left = math.inf if timeout is None else max(0.0, timeout - self.spent)
        deadline = min(self._latest, time.monotonic() + left)
        return None if deadline == math.inf else deadline

    def clean_up(self, timeout: float) -> float:
        """How long a runtime that gives the clean-up *timeout* seconds waits for it."""
        return max(0.0, min(timeout, self._for_clean_up - max(0.0, time.monotonic() - self._latest)))


# The one of the process's end.
_clock = Clock()

# Held by whoever is at the last drain. Re-entrant, because what it runs may end the process too.
_last_drain = threading.RLock()

# Threads of ours that did not end, because something blocks them.
_left_behind: set[int] = set()


def draining() -> bool:
    """Tell whether the process waits for what is left, because it ends."""
    return _clock._since is not None


def drained_for() -> float:
    """How many seconds the process has drained for, because it ends."""
    return _clock.spent


def drain_no_longer_than(seconds: float) -> None:
    """Have the drains of this process be over in *seconds*, or earlier where a runtime's own deadline is earlier."""
    _clock.end_within(seconds)


def leave_behind(ident: int | None) -> None:
    """Note that the thread *ident* of ours did not end. If it hangs in a handler of logging, that is not waited for either."""
    if ident is not None:
        _left_behind.add(ident)


# How the process ends after the last drain, if a signal has asked for that; and whether nobody is at that drain, for want of a thread.
_end: Callable[[], object] | None = None
_put_off = False


def end_with(end: Callable[[], object]) -> None:
    """Have *end* called after the last drain: it ends the process."""
    global _end
    _end = end


def ends() -> bool:
    """Tell whether a signal has asked for the end of the process."""
    return _end is not None


def put_off() -> None:
    """Note that a signal handler could not drain, because of what it has interrupted, nor have it done: who holds that does it."""
    global _put_off
    _put_off = True


def make_up_for_signal() -> None:
    """At the end of a start or a shutdown: drain, and end the process, if that was put off."""
    global _put_off
    if _put_off:
        _put_off = False
        drain_at_exit()


def is_idle() -> bool:
    """Tell whether no runtime has anything left to do."""
    return not any(runtime._remaining() for runtime in list(watched))


def beside(call: Callable[[], object], name: str) -> None:
    """Make *call* in a thread of its own, because the calling thread has a loop that must go on. RuntimeError if there is none."""
    new_thread(call, name).start()


def _hook_exit() -> None:
    """
    Register with this process's exit, on first use.

    The early hook runs before the pools of others are shut, if it is registered after theirs: hence now, and not at import.
    """
    global _hooked_pid, _exiting
    if _hooked_pid == os.getpid():
        return
    _hooked_pid = os.getpid()
    try:
        call_early_at_exit(_drain_early)
    except RuntimeError:
        # A thread that outlives the main one is the first to use the runtime.
        _hook_before_others()
        _exiting = _exiting or _ends_without_atexit()
    if is_multiprocessing_child():
        # multiprocessing clears in its children what was registered before; from 3.13 on it then runs what was
        # registered after that.
        atexit.register(drain_at_exit)


def drain_before_pools() -> None:
    """
    Have the early drain come before `concurrent.futures` ends those of its pools that are loaded by now.

    Its hooks run last-in-first-out, hence the drain is registered once more.
    """
    global _hooked_pid
    _hooked_pid = None
    _hook_exit()


def _drain_early() -> None:
    # This is the last hook then.
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
    # The last to be registered, and so the first to run.
    atexit.unregister(_before_others)
    atexit.register(_before_others)


def _before_others() -> None:
    """
    Finish and tell what others' exit hooks would come too early for: Sentry's and OpenTelemetry's send what they have, and close.

    That is the work of threads that ended only now, and failures that somebody holds and has not asked for.
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
    Tell whether no thread but this one runs any more.

    On 3.13 that is so in a sub-interpreter that was left open: its hooks come when the main interpreter is all but gone. (On 3.14 they
    come in time, and up to 3.12 never.)
    """
    return sys.is_finalizing()


def wait_for_all() -> None:
    """Wait for the work of all runtimes, up to their deadlines; cancel and close nothing."""
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
    """As `wait_for_all`, while the program goes on: the time that this takes is not taken off that of the exit."""
    notice_fork()
    clock = Clock(ends=False)
    clock.start()
    _wait(clock)


def _wait(clock: Clock) -> None:
    in_time, before, now = True, -1, _started()
    # Again, if anything was started meanwhile: what one has finished may have gone on in another.
    while in_time and before != now:
        for runtime in list(watched):
            in_time = runtime._drain_early(clock) and in_time
        before, now = now, _started()


def _started() -> int:
    return sum(runtime._started() for runtime in list(watched))


def drain_at_exit() -> None:
    """Finish what is left, cancel what does not end, and close all runtimes; what comes after this is refused."""
    hold_inherited()
    notice_fork()
    # The same to the end: a child that is forked in the drain gets another.
    last_drain = _last_drain
    alone = False
    while not alone:
        try:
            # The exit hook of main and the drain on a SIGTERM may come at once: the second would cancel again what the first lets clean up.
            alone = last_drain.acquire()
        except KeyboardInterrupt:
            _clock.interruptions += 1
    try:
        _drain_at_exit()
    finally:
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
    with hurried():
        # Again and again: what ends one runtime may start another.
        while watched:
            runtime = next(iter(watched))
            try:
                runtime._drain_at_exit(_clock)
            finally:
                watched.discard(runtime)
        _tell()
        leave_out_hung(_left_behind)
    _exiting = True
    if _end is not None:
        _end()


def _give_up() -> None:
    """Say what is lost, because nothing can run it, and wait for nothing."""
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
    Tell whether the interpreter calls its exit hooks by now: what is registered then is never called, though registering succeeds.

    Main has ended; but while `threading` waits for the other threads, on main's stack, the hooks are still to come.
    """
    main = threading.main_thread()
    here = main is threading.current_thread()
    if main.is_alive() and not here:
        return False
    outermost = None
    frame = sys._getframe() if here else frame_of(main.ident)
    while frame is not None:
        if joins_threads(frame.f_code):
            return False
        outermost, frame = frame, frame.f_back
    # No frame: what `threading` takes for main was a thread of the program's, which has ended. And where nobody had loaded `threading`
    # when main ended, it takes main for alive.
    return outermost is not None and (not main.is_alive() or outermost.f_code in _Codes().of_hooks())


class _Codes:
    """The code of the registered hooks of exit: `atexit` compares each with what is to be unregistered, and shows them in no other way."""

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
    """The code that a call of *function* runs, if it is written in Python."""
    while isinstance(function, partial):
        function = function.func
    if not hasattr(function, "__code__"):
        # B004 takes it for a question whether it can be called.
        function = getattr(function, "__func__", None) or getattr(type(function), "__call__", None)  # noqa: B004
    return getattr(function, "__code__", None)


# At import, and so before those that the program registers later: they run first, and may still submit.
atexit.register(drain_at_exit)
# After the registering: if main goes on now, it is called.
_exiting = _hooks_run()


def end_orphan() -> None:
    """
    End a child whose only thread has nothing more to run: one forked inside a piece of work, that came back from it.

    Left alone it would end the same way, but without its own forgotten work done and its output written.
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
            # Closed, broken or absent: nothing to save there.
            pass


def _forget() -> None:
    """In a forked child: the parent's end is not its own, unless it was forked by one of the exit hooks, and goes on in them."""
    global _exiting, _clock, _end, _put_off, _last_drain
    _exiting = _exiting and _hooks_run()
    _end, _put_off = None, False
    # Another thread may have held it.
    _last_drain = threading.RLock()
    _clock = Clock()
    _left_behind.clear()


forget_after_fork(_forget)
