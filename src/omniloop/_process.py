"""The one home of exit hooks, fork hooks and the SIGTERM handler: what the process tells the runtimes in it."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:

    class Held(Protocol):
        """What holds still for a fork."""

        def before_fork(self) -> None: ...
        def after_fork_in_parent(self) -> None: ...


if TYPE_CHECKING:

    class Watched(Protocol):
        """What a runtime does when its process forks or ends."""

        def _held_by_fork(self) -> Held: ...
        def _after_fork_in_parent(self) -> None: ...
        def _after_fork_in_child(self) -> None: ...
        def _drain_early(self, since: float) -> bool: ...
        def _count_drain(self, since: float) -> None: ...
        def _started(self) -> int: ...
        def _report_held(self) -> None: ...
        def _drain_at_exit(self, since: float, interruptions: int) -> int: ...


_PAGE: Final = 4096
# Linux's number for it, from asm-generic/mman-common.h; the mmap module does not name it.
_MADV_WIPEONFORK: Final = 18


class _ByPid:
    """The mark where no page can be wiped: true in the process that made it. 0.15 µs a look."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, _: int) -> int:
        return os.getpid() == self._pid

    def __setitem__(self, _: int, value: int) -> None:
        self._pid = os.getpid()


class _Always:
    """The mark where nothing can fork."""

    def __getitem__(self, _: int) -> int:
        return 1

    def __setitem__(self, _: int, value: int) -> None:
        pass


if TYPE_CHECKING:

    class Mark(Protocol):
        """`mark[0]` is true in the process that set it, and false in a fork of it."""

        def __getitem__(self, index: int, /) -> int: ...
        def __setitem__(self, index: int, value: int, /) -> None: ...


def _make_mark() -> Mark:
    if not hasattr(os, "fork"):
        return _Always()
    if sys.platform == "linux":
        import mmap

        try:
            # A page that the kernel zeroes in a fork: 15 ns a look, against 150 for os.getpid().
            page = mmap.mmap(-1, _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_MADV_WIPEONFORK)
        except (OSError, ValueError):
            # Before Linux 4.14.
            return _ByPid()
        page[0] = 1
        return page
    return _ByPid()


# For programs that fork in C and call no hook (uWSGI): the submit path looks here.
same_process: Final = _make_mark()

_watched: set[Watched] = set()
_exiting = False
_pid = os.getpid()
_catching_up: dict[int, threading.RLock] = {}

# Thread by thread, the forks that it is in the middle of, and what each holds. Other libraries' fork hooks run in between, and
# meanwhile another thread may end what is held, and begin anew.
_forking: dict[int, list[list[Held]]] = {}


def watch(runtime: Watched) -> None:
    """Keep *runtime*, and tell it of forks and of the end. May be called again; once it is told of the end only once."""
    _watched.add(runtime)
    _hook_exit()


def unwatch(runtime: Watched) -> None:
    """Forget *runtime*."""
    _watched.discard(runtime)


def exiting() -> bool:
    """Tell whether the last drain is over, so that nothing more can be done in this process."""
    return _exiting


def is_forking() -> bool:
    """Tell whether some thread is between the hooks of a fork."""
    return bool(_forking)


def this_thread_forks() -> bool:
    """Tell whether the calling thread is between the hooks of a fork."""
    return threading.get_ident() in _forking


def notice_fork() -> None:
    """Catch up on a fork that called no hooks; where there was none, do nothing. Threads that notice it at once wait for the first."""
    if same_process[0]:
        return
    pid = os.getpid()
    # Of this process alone: one that a parent had too could be held, for ever, by a thread that is not here. Re-entrant,
    # because what is done in there looks as well, and so may a signal handler.
    with _catching_up.setdefault(pid, threading.RLock()):
        if pid != _pid:
            _after_in_child()


# --- exit -------------------------------------------------------------------------------------------------------------

_hooked_pid: int | None = None

# What is called when the early drain is over.
_after_early: list[Callable[[], None]] = []

# When the drain that goes on began. The deadlines of all runtimes count from here: their work goes on at the same time, and a
# signal handler may end what a hook began.
_since: float | None = None

# How often Ctrl-C came in a drain. The first ends the waiting for work, in all runtimes; the second that for clean-up.
_interruptions = 0


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
    if _is_multiprocessing_child():
        # multiprocessing clears in its children what was registered before; from 3.13 on it then runs what was
        # registered after that.
        atexit.register(_drain_at_exit)


def after_early_drain(fn: Callable[[], None]) -> None:
    """
    Have *fn* called at exit, after the early drain and before `concurrent.futures` ends those of its pools that are loaded by now.

    The hooks run last-in-first-out, hence the drain is registered once more: it must come before the pools' end, too.
    """
    global _hooked_pid
    # Not a hook of its own: in the middle of the drain none can be registered any more.
    if fn not in _after_early:
        _after_early.append(fn)
    _hooked_pid = None
    _hook_exit()
    if sys.version_info < (3, 13) and _is_multiprocessing_child():
        # Such a child waits, without a deadline, for its own children before it comes to any hook of ours.
        from multiprocessing.util import Finalize

        # Before its queues close, whose priority is 10.
        Finalize(None, _wait_and_end_pools, exitpriority=100)


def _is_multiprocessing_child() -> bool:
    multiprocessing = sys.modules.get("multiprocessing.process")
    return multiprocessing is not None and multiprocessing.parent_process() is not None


def _drain_early() -> None:
    # Up to 3.12 a child of multiprocessing ends by os._exit, and atexit does not run: this is the last hook.
    last = sys.version_info < (3, 13) and _is_multiprocessing_child()
    _wait_and_end_pools()
    if last:
        _drain_at_exit()
        return
    _hook_before_others()


def _wait_and_end_pools() -> None:
    _wait_for_all()
    for fn in _after_early:
        fn()


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
        _wait_for_all()
    for runtime in list(_watched):
        runtime._report_held()


def _wait_for_all() -> None:
    """Wait for the work of all runtimes, up to their deadlines; cancel and close nothing."""
    global _since, _interruptions
    notice_fork()
    since = _since = _since or time.monotonic()
    try:
        in_time, before, now = True, -1, _started()
        # Again, if anything was started meanwhile: what one has finished may have gone on in another.
        while in_time and before != now:
            for runtime in list(_watched):
                in_time = runtime._drain_early(since) and in_time
            before, now = now, _started()
    except KeyboardInterrupt:
        _interruptions += 1
    finally:
        for runtime in list(_watched):
            runtime._count_drain(since)
        _since = None


def _started() -> int:
    return sum(runtime._started() for runtime in list(_watched))


def _drain_at_exit() -> None:
    global _exiting, _since, _interruptions
    if not _interruptions:
        _wait_for_all()
    notice_fork()
    since = _since = _since or time.monotonic()
    # Again and again: what ends one runtime may start another.
    while _watched:
        runtime = next(iter(_watched))
        try:
            _interruptions = runtime._drain_at_exit(since, _interruptions)
        finally:
            _watched.discard(runtime)
    _exiting = True


# At import, and so before those that the program registers later: they run first, and may still submit.
atexit.register(_drain_at_exit)

# --- fork -------------------------------------------------------------------------------------------------------------


def _before() -> None:
    ident = threading.get_ident()
    held: list[Held] = []
    _forking.setdefault(ident, []).append(held)
    for runtime in list(_watched):
        held.append(runtime._held_by_fork())
        held[-1].before_fork()


def _after_in_parent() -> None:
    ident = threading.get_ident()
    held = _forking[ident].pop()
    if not _forking[ident]:
        del _forking[ident]
    for thing in held:
        thing.after_fork_in_parent()
    for runtime in list(_watched):
        runtime._after_fork_in_parent()


def _after_in_child() -> None:
    global _pid, _exiting, _since, _interruptions, _draining_on_sigterm
    if same_process[0]:
        # Another's fork hook, before this one, was the first to look.
        return
    _pid = os.getpid()
    _exiting = _draining_on_sigterm = False
    _since, _interruptions = None, 0
    _forking.clear()
    for runtime in list(_watched):
        runtime._after_fork_in_child()
    # At last: until then others wait in `notice_fork`.
    same_process[0] = 1
    _catching_up.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def forget_after_fork(forget: Callable[[], None]) -> None:
    """Have *forget* called in every child that is forked from now on."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


def keep_for_ever(thing: object) -> None:
    """
    Never let go of *thing*, not even when the interpreter ends.

    For what a child inherits: destroying a parent's suspended coroutine would run its `finally` blocks in the child. A
    module global is cleared at finalisation; a reference that is never given back is not.
    """
    try:
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    except (ImportError, AttributeError):
        # No ctypes here. The frame of a thread that never ends holds it as well.
        threading.Thread(target=_hold, args=(thing,), daemon=True, name="omniloop-inherited").start()


def _hold(thing: object) -> None:
    never = threading.Lock()
    never.acquire()
    never.acquire()
    del thing


def end_orphan() -> None:
    """
    End a child whose only thread has nothing more to run: one forked inside a piece of work, that came back from it.

    Left alone it would end the same way, but without its own forgotten work done and its output written.
    """
    _drain_early()
    _drain_at_exit()
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


# --- signals ----------------------------------------------------------------------------------------------------------


def in_signal_handler() -> bool:
    """Tell whether the calling code was called by a Python signal handler, and not by the program."""
    if threading.current_thread() is not threading.main_thread():
        return False
    codes = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # A handler is given the frame that it interrupts, and that is its caller: nobody calls one by hand like that.
        if frame.f_code in codes and any(
            value is frame.f_back or (isinstance(value, tuple) and frame.f_back in value)
            for value in frame.f_locals.values()
        ):
            return True
        frame = frame.f_back
    return False


def _code_of(handler: object) -> CodeType | None:
    while isinstance(handler, partial):
        handler = handler.func
    if not hasattr(handler, "__code__"):
        # B004 takes it for a question whether it can be called.
        handler = getattr(handler, "__func__", None) or getattr(type(handler), "__call__", None)  # noqa: B004
    return getattr(handler, "__code__", None)


def ignore_interrupts() -> None:
    """Have Ctrl-C, which goes to all processes of a terminal, do nothing in this one: what becomes of it is for its parent to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# --- SIGTERM ----------------------------------------------------------------------------------------------------------

_Handler = Callable[[int, FrameType | None], Any] | int | None
_draining_on_sigterm = False


def drain_on_sigterm(wanted: bool) -> None:
    """
    Drain on SIGTERM, then let happen what would have happened; or no longer.

    Main thread only, as all signal handlers: ValueError elsewhere.
    """
    handler = signal.getsignal(signal.SIGTERM)
    ours = handler if isinstance(handler, partial) and handler.func is _on_sigterm else None
    if wanted and not ours:
        if handler is signal.SIG_IGN:
            # The process was told to survive SIGTERM; there is no end to drain for.
            return
        # Each knows the one before it: a handler that the program set in between may call an earlier one of ours.
        signal.signal(signal.SIGTERM, partial(_on_sigterm, handler))
    elif ours and not wanted:
        (former,) = ours.args
        signal.signal(signal.SIGTERM, former if former is not None else signal.SIG_DFL)


def _on_sigterm(former: _Handler, number: int, frame: FrameType | None) -> None:
    global _draining_on_sigterm
    if callable(former):
        # It decides what becomes of the process, so nothing is closed yet.
        if not _draining_on_sigterm:
            _draining_on_sigterm = True
            try:
                _wait_for_all()
            finally:
                _draining_on_sigterm = False
        former(number, frame)
        return
    if not _draining_on_sigterm:
        _draining_on_sigterm = True
        _drain_at_exit()
        flush_streams()
    # As it would have been without us, to the exit status. A second SIGTERM during the drain comes here at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
