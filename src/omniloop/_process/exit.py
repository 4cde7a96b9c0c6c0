"""The end of the process: three hooks, in which what the runtimes have accepted is finished."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .fork import forget_after_fork, notice_fork, watched
from .hosts import is_multiprocessing_child

if TYPE_CHECKING:
    from .fork import Watched

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


def draining() -> bool:
    """Tell whether the process waits for what is left, because it ends."""
    return _since is not None


def exiting() -> bool:
    """Tell whether the last drain is over, so that nothing more can be done in this process."""
    return _exiting


_hooked_pid: int | None = None

# When the drain that goes on began. The deadlines of all runtimes count from here: their work goes on at the same time, and a
# signal handler may end what a hook began.
_since: float | None = None

# How often Ctrl-C came in a drain. The first ends the waiting for work, in all runtimes; the second that for clean-up.
_interruptions = 0


# No drain goes on longer than this, by `time.monotonic()`, whatever the deadlines of the runtimes are.
_latest: float | None = None


def drain_no_longer_than(seconds: float) -> None:
    """Have the drains of this process be over in *seconds*, or earlier where a runtime's own deadline is earlier."""
    global _latest
    _latest = time.monotonic() + seconds


def no_later(deadline: float | None) -> float | None:
    """*deadline*, or the end of all drains if that is earlier."""
    if _latest is None:
        return deadline
    return _latest if deadline is None else min(deadline, _latest)


def is_idle() -> bool:
    """Tell whether no runtime has anything left to do."""
    return not any(runtime._remaining() for runtime in list(watched))


def beside(call: Callable[[], object], name: str) -> None:
    """Make *call* in a thread of its own, because the calling thread has a loop that must go on. RuntimeError if there is none."""
    threading.Thread(target=call, name=name, daemon=True).start()


def _hook_exit() -> None:
    """
    Register with this process's exit, on first use.

    The early hook runs before the pools of others are shut, if it is registered after theirs: hence now, and not at import.
    """
    global _hooked_pid
    if _hooked_pid == os.getpid():
        return
    _hooked_pid = os.getpid()
    # Private, and there since 3.9; without it there is atexit alone. It raises RuntimeError once the shutdown began.
    register: Callable[[Callable[[], None]], None] | None = getattr(threading, "_register_atexit", None)
    if register is not None:
        try:
            register(_drain_early)
        except RuntimeError:
            # A thread that outlives the main one is the first to use the runtime.
            _hook_before_others()
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
    # Up to 3.12 a child of multiprocessing ends by os._exit, and atexit does not run: this is the last hook.
    last = sys.version_info < (3, 13) and is_multiprocessing_child()
    wait_for_all()
    if last:
        drain_at_exit()
        return
    _hook_before_others()


def _hook_before_others() -> None:
    # The last to be registered, and so the first to run.
    atexit.unregister(_before_others)
    atexit.register(_before_others)


def _before_others() -> None:
    """
    Finish and tell what others' exit hooks would come too early for: Sentry's and OpenTelemetry's send what they have, and close.

    That is the work of threads that ended only now, and failures that somebody holds and has not asked for.
    """
    if not _interruptions:
        wait_for_all()
    for runtime in list(watched):
        runtime._tell_failures()
    _tell()


def _tell() -> None:
    for tell in _tellers:
        tell()


def wait_for_all() -> None:
    """Wait for the work of all runtimes, up to their deadlines; cancel and close nothing."""
    global _since, _interruptions
    notice_fork()
    since = _since = _since or time.monotonic()
    try:
        _wait(since)
    except KeyboardInterrupt:
        _interruptions += 1
    finally:
        for runtime in list(watched):
            runtime._count_drain(since)
        _since = None


def wait_in_the_middle() -> None:
    """As `wait_for_all`, while the program goes on: the time that this takes is not taken off that of the exit."""
    notice_fork()
    _wait(time.monotonic())


def _wait(since: float) -> None:
    in_time, before, now = True, -1, _started()
    # Again, if anything was started meanwhile: what one has finished may have gone on in another.
    while in_time and before != now:
        for runtime in list(watched):
            in_time = runtime._drain_early(since) and in_time
        before, now = now, _started()


def _started() -> int:
    return sum(runtime._started() for runtime in list(watched))


def drain_at_exit() -> None:
    global _exiting, _since, _interruptions
    if not _interruptions:
        wait_for_all()
    notice_fork()
    since = _since = _since or time.monotonic()
    # Again and again: what ends one runtime may start another.
    while watched:
        runtime = next(iter(watched))
        try:
            _interruptions = runtime._drain_at_exit(since, _interruptions)
        finally:
            watched.discard(runtime)
    _tell()
    _exiting = True


# At import, and so before those that the program registers later: they run first, and may still submit.
atexit.register(drain_at_exit)


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
    """In a forked child: the parent's end is not its own."""
    global _exiting, _since, _interruptions, _latest
    _exiting = False
    _since, _interruptions, _latest = None, 0, None


forget_after_fork(_forget)
