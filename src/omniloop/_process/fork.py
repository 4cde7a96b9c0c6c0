"""Tells the runtimes of a fork: they hold still before it, go on in the parent, and begin afresh in the child."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:

    class Held(Protocol):
        """What holds still for a fork."""

        def before_fork(self) -> None: ...
        def after_fork_in_parent(self) -> None: ...

    class Watched(Protocol):
        """What a runtime does when its process forks or ends."""

        def _held_by_fork(self) -> Held: ...
        def _after_fork_in_parent(self) -> None: ...
        def _after_fork_in_child(self) -> None: ...
        def _drain_early(self, since: float) -> bool: ...
        def _count_drain(self, since: float) -> None: ...
        def _started(self) -> int: ...
        def _tell_failures(self) -> None: ...
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

# The runtimes that are in use: told of forks, and of the end.
watched: set[Watched] = set()

_pid = os.getpid()
_catching_up: dict[int, threading.RLock] = {}

# What further modules have to forget in a child.
_forgets: list[Callable[[], None]] = []

# Thread by thread, the forks that it is in the middle of, and what each holds. Other libraries' fork hooks run in between, and
# meanwhile another thread may end what is held, and begin anew.
_forking: dict[int, list[list[Held]]] = {}


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


def _before() -> None:
    ident = threading.get_ident()
    held: list[Held] = []
    _forking.setdefault(ident, []).append(held)
    for runtime in list(watched):
        held.append(runtime._held_by_fork())
        held[-1].before_fork()


def _after_in_parent() -> None:
    ident = threading.get_ident()
    held = _forking[ident].pop()
    if not _forking[ident]:
        del _forking[ident]
    for thing in held:
        thing.after_fork_in_parent()
    for runtime in list(watched):
        runtime._after_fork_in_parent()


def _after_in_child() -> None:
    global _pid
    if same_process[0]:
        # Another's fork hook, before this one, was the first to look.
        return
    _pid = os.getpid()
    _forking.clear()
    for forget in _forgets:
        forget()
    for runtime in list(watched):
        runtime._after_fork_in_child()
    # At last: until then others wait in `notice_fork`.
    same_process[0] = 1
    _catching_up.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def forget_after_fork(forget: Callable[[], None]) -> None:
    """Have *forget* called in every child that is forked from now on, before anything else is done there."""
    _forgets.append(forget)


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
