"""
Tells the runtimes of a fork: they hold still before it, go on in the parent, and begin afresh in the child.

What is guaranteed. At the moment of a fork nothing of ours is half done: a loop with work pending stands between two callbacks, one
without has no thread at all. In the parent everything goes on where it stood. In the child every runtime is as if never used, and
what it inherits is neither run, closed, nor finalised there, to the end of its interpreter.

Who may touch what. The hooks run in the thread that forks, with the hooks of other libraries before, between and after them. Any number
of threads may be in the middle of a fork at once, and one of them in several (a hook, or a signal handler, may fork): `_forking` is
the one count of all that. Adding to it and making a loop hold still is one step, taking away and letting the loop go on another
(`_counting`): in between, a second thread would make a loop hold still that is about to go on, and one of the two would be forgotten.

What a hook may not do. In the child there is one thread; a lock that another one held is held for ever, the lock of a module that was
being imported too, and the process may be at its limit of descriptors. So a hook does not import, open, or wait for what another
thread may hold; `prepare` makes what it needs, in the first start. And should one part of it fail, the rest is done all the
same (`_each`): a runtime that were left as the parent's would wait, in the child, for a thread that is not there.

What was tried and does not work. A module global that keeps what was inherited: it is cleared when the interpreter ends, and the parent's
`finally` blocks ran in the child. `import ctypes` in the hook, to make an object immortal: it hung where another thread of the parent
was importing it. Ending the thread before every fork: sqlite3 connections and `threading.local` belong to that thread, so with work
pending it stays.

Programs that fork in C call no hook (uWSGI): `same_process` is looked at in the submit path, and `notice_fork` makes up for the hook.
CPython does not know of such a fork either: the parent's threads are in its lists, and their frames are not to be looked at.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakSet

from .._cpython import incref
from .._locks import Guard
from .._report import can_read_frames

if TYPE_CHECKING:

    class Clock(Protocol):
        """That of a drain."""

        ends: bool
        interruptions: int

        @property
        def began(self) -> float: ...
        @property
        def spent(self) -> float: ...
        def deadline(self, timeout: float | None) -> float | None: ...
        def clean_up(self, timeout: float) -> float: ...

    class Held(Protocol):
        """What holds still for a fork: a life."""

        def has_other_thread(self) -> bool: ...
        def hold_still(self) -> None: ...
        def go_on(self) -> None: ...

    class Other(Protocol):
        """What holds still without a loop. Each thread that forks calls both; a second one waits in the first call."""

        def hold_still(self) -> None: ...
        def go_on(self) -> None: ...

    class Watched(Protocol):
        """What a runtime does when its process forks or ends."""

        def _held_by_fork(self) -> Held: ...
        def _after_fork_in_parent(self) -> None: ...
        def _after_fork_in_child(self) -> None: ...
        def _drain_early(self, clock: Clock) -> bool: ...
        def _drained(self, seconds: float) -> None: ...
        def _started(self) -> int: ...
        def _remaining(self) -> int: ...
        def _tell_failures(self) -> None: ...
        def _drain_at_exit(self, clock: Clock) -> None: ...


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


if TYPE_CHECKING:

    class Mark(Protocol):
        """`mark[0]` is true in the process that set it, and false in a fork of it."""

        def __getitem__(self, index: int, /) -> int: ...
        def __setitem__(self, index: int, value: int, /) -> None: ...


def _make_mark() -> Mark:
    if not hasattr(os, "fork"):
        return [1]
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
_is_child = False
_catching_up: dict[int, threading.RLock] = {}

# What further modules have to forget in a child.
_forgets: list[Callable[[], None]] = []

# What holds still once the loops do: the stores of outboxes.
_others: WeakSet[Other] = WeakSet()

# Thread by thread, the forks that it is in the middle of, and what each holds, lives and others: a life that is in any of them holds still.
_forking: dict[int, list[tuple[list[Held], list[Other]]]] = {}

# Re-entrant, because a signal handler may fork in the middle of a hook.
_counting = Guard()


def is_child() -> bool:
    """Tell whether this process was forked from one that had loaded the package."""
    return _is_child


def is_multiprocessing_child() -> bool:
    """Tell whether this process was started by multiprocessing, which ends its children in its own way."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    return multiprocessing is not None and multiprocessing.parent_process() is not None


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
    with _catching_up.setdefault(pid, Guard()):
        if pid != _pid:
            can_read_frames(False)
            _after_in_child()


def _before() -> None:
    held: list[Held] = []
    others: list[Other] = []
    _forking.setdefault(threading.get_ident(), []).append((held, others))
    _each(
        [
            *(partial(_hold, runtime, held) for runtime in list(watched)),
            *(partial(_hold_other, other, others) for other in list(_others)),
        ]
    )


def _hold_other(other: Other, others: list[Other]) -> None:
    # Without `_counting`: a second thread that forks waits in here for the first, which needs that.
    other.hold_still()
    others.append(other)


def _hold(runtime: Watched, held: list[Held]) -> None:
    # Noted, because the runtime may end it, and begin another, before the fork is over.
    thing = runtime._held_by_fork()
    if not thing.has_other_thread():
        # On the loop's own thread it holds still by itself.
        return
    with _counting:
        first = not _is_held(thing)
        held.append(thing)
        if first:
            thing.hold_still()


def _is_held(thing: Held) -> bool:
    return any(thing in held for forks in list(_forking.values()) for held, _ in forks)


def _after_in_parent() -> None:
    forks = _forking.get(threading.get_ident(), [])
    # None where omniloop was imported in the middle of the fork.
    _, others = forks[-1] if forks else ([], [])
    _each([*(other.go_on for other in others), _let_go_on, *(it._after_fork_in_parent for it in list(watched))])


def _let_go_on() -> None:
    """Let go on what the last fork of this thread holds, and no other."""
    ident = threading.get_ident()
    with _counting:
        forks = _forking.get(ident, [])
        held, _ = forks.pop() if forks else ([], [])
        if not forks:
            _forking.pop(ident, None)
        _each(thing.go_on for thing in held if not _is_held(thing))


def _hook_in_child() -> None:
    # Also where another's hook was the first to look, which took this for a fork that calls none.
    can_read_frames(True)
    _after_in_child()


def _after_in_child() -> None:
    global _pid, _counting, _is_child, _holding
    if same_process[0]:
        # Another's fork hook, before this one, was the first to look.
        return
    _pid = os.getpid()
    _is_child, _holding = True, False
    _forking.clear()
    _others.clear()
    # Another thread may have held it.
    _counting = Guard()
    try:
        _each([*_forgets, *(runtime._after_fork_in_child for runtime in list(watched))])
    finally:
        # At last: until then others wait in `notice_fork`.
        same_process[0] = 1
        _catching_up.clear()


def _each(steps: Iterable[Callable[[], None]]) -> None:
    """Do all of *steps*, whatever one of them raises; then raise the first error, which CPython writes to stderr."""
    first: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:
            first = first or error
    if first is not None:
        raise first


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_hook_in_child)


def forget_after_fork(forget: Callable[[], None]) -> None:
    """Have *forget* called in every child that is forked from now on, before the runtimes begin afresh; in the order of these calls."""
    _forgets.append(forget)


def hold_at_fork(other: Other) -> None:
    """Have *other* hold still in every fork of this process; not in those of a child, which makes another. Referred to weakly."""
    _others.add(other)


# CPython's own, by which an object gets a reference that is never given back; see `prepare`.
_add_reference: Callable[[object], object] | None = None

# Where there is no such function; and whether a thread holds it.
_inherited: Final[list[object]] = []
_holding = False


def prepare() -> None:
    """Make what the hooks need, before anything is made that a child could inherit: there it may be too late. May be called again."""
    global _add_reference
    if _add_reference is None:
        try:
            _add_reference = incref()
        except (ImportError, OSError):
            # Not built, as on PyPy; or there is no descriptor left, and the next start tries again.
            hold_inherited()


def keep_for_ever(thing: object) -> None:
    """
    Never let go of *thing*, not even when the interpreter ends.

    For what a child inherits: destroying a parent's suspended coroutine would run its `finally` blocks in the child. A
    module global is cleared at finalisation; a reference that is never given back is not.
    """
    (_add_reference or _inherited.append)(thing)


def hold_inherited() -> None:
    """
    Where CPython's function is not to be had, have the frame of a thread that never ends hold what this child inherited.

    In its first use, or at its end, and not in the hook of the fork: PyPy crashes where a thread is started there.
    """
    global _holding
    if _inherited and not _holding:
        _holding = True
        # No thread to be had: held as long as the module is.
        with suppress(RuntimeError):
            _thread.start_new_thread(_hold_on, (_inherited,))


def _hold_on(things: list[object]) -> None:
    never = threading.Lock()
    never.acquire()
    never.acquire()
    del things
