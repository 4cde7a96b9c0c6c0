"""
The hooks around a fork: every runtime holds still before it, goes on in the parent, and begins afresh in the child.

What is guaranteed. At the moment of a fork nothing of ours is half done: a loop with pending work stands between two callbacks, and a loop
without any has no thread. In the parent everything goes on where it stopped. In the child every runtime is as if never used; what it
inherits is neither run, closed nor finalised there, to the end of its interpreter.

Which thread may do what. The hooks run in the thread that forks, with the hooks of other libraries before, between and after them. Any
number of threads may fork at once, and one thread may be in several forks (a hook or a signal handler may fork): `_forking` is the one
record of them all. Recording a fork and holding a loop is one step, removing the record and letting the loop go is another (`_counting`).
In between, a second thread could hold a loop that is just let go, and one of the two would be forgotten.
A loop whose callback forks is not waited for by a fork in another thread: the callback may need `_counting`, or a loop held by the other.

What a hook must not do. The child has one thread. A lock that another thread held is locked forever, including the lock of a module that
was being imported, and the process may be at its limit of descriptors. So a hook does not import, open, or wait for anything that another
thread may hold; `prepare` makes what the hooks need, in the first start. If one step of a hook fails, the others are done nevertheless
(`_each`): a runtime that was left as the parent's would wait, in the child, for a thread that does not exist.

What was tried and does not work. Keeping what was inherited in a module global: it is cleared when the interpreter ends, and the parent's
`finally` blocks ran in the child. `import ctypes` in the hook, to make an object immortal: it hung if another thread of the parent was
importing it. Ending the thread before every fork: sqlite3 connections and `threading.local` belong to that thread, so with pending work it
stays.

Programs that fork in C call no hooks (uWSGI). So the submit path looks at `same_process`, and `notice_fork` makes up for the hooks. CPython
does not know of such a fork either: its lists still contain the parent's threads, whose frames must not be looked at.
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
from .._report import can_read_frames
from .._threads import Guard

if TYPE_CHECKING:

    class Clock(Protocol):
        """The clock of a drain."""

        ends: bool
        interruptions: int

        @property
        def began(self) -> float: ...
        @property
        def spent(self) -> float: ...
        def deadline(self, timeout: float | None) -> float | None: ...
        def clean_up(self, timeout: float) -> float: ...

    class Held(Protocol):
        """A thing that holds still for a fork: a life."""

        def forks_itself(self) -> None: ...
        def has_other_thread(self) -> bool: ...
        def hold_still(self) -> None: ...
        def go_on(self) -> None: ...

    class Other(Protocol):
        """A thing without a loop that holds still for a fork. Each thread that forks calls both; a second one waits in the first call."""

        def hold_still(self) -> None: ...
        def go_on(self) -> None: ...

    class Watched(Protocol):
        """The methods of a runtime that a fork or the end of the process calls."""

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
# Linux's number, from asm-generic/mman-common.h; the mmap module has no name for it.
_MADV_WIPEONFORK: Final = 18


class _ByPid:
    """The mark if no page can be wiped: true in the process that made it. A look costs 0.15 µs."""

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
            # The kernel zeroes this page in a fork. A look costs 15 ns, os.getpid() 150.
            page = mmap.mmap(-1, _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_MADV_WIPEONFORK)
        except (OSError, ValueError):
            # Before Linux 4.14.
            return _ByPid()
        page[0] = 1
        return page
    return _ByPid()


# The submit path looks here, for programs that fork in C and call no hook (uWSGI).
same_process: Final = _make_mark()

# The runtimes in use, which are told of forks and of the end.
watched: set[Watched] = set()

_pid = os.getpid()
_is_child = False
_catching_up: dict[int, threading.RLock] = {}

# What other modules have to forget in a child.
_forgets: list[Callable[[], None]] = []

# The stores of outboxes, which hold still after the loops do.
_others: WeakSet[Other] = WeakSet()

# For each thread, the forks that it is in, with the lives and the others that each holds. A life that is in any of them holds still.
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


def forks(ident: int | None) -> bool:
    """Tell whether the thread *ident* is between the hooks of a fork."""
    return ident in _forking


def notice_fork() -> None:
    """Do what the hooks would have done, after a fork that called none. Threads that notice it at once wait for the first."""
    if same_process[0]:
        return
    pid = os.getpid()
    # A lock of this process alone: one inherited from a parent could be held forever by a thread that is not here. Re-entrant, because the
    # code below looks too, and so may a signal handler.
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
            # First: what follows waits for `_counting`, which a fork in another thread holds while it waits for this callback.
            *(runtime._held_by_fork().forks_itself for runtime in list(watched)),
            *(partial(_hold, runtime, held) for runtime in list(watched)),
            *(partial(_hold_other, other, others) for other in list(_others)),
            _wait_for_starts,
        ]
    )


def _wait_for_starts() -> None:
    # Again: a start that has begun while others were waited for may be importing a module, which the child could then never import.
    for runtime in list(watched):
        runtime._held_by_fork().has_other_thread()


def _hold_other(other: Other, others: list[Other]) -> None:
    # Without `_counting`: a second thread that forks waits in here for the first, which needs that lock.
    other.hold_still()
    others.append(other)


def _hold(runtime: Watched, held: list[Held]) -> None:
    # The life is recorded, because the runtime may end it and begin another before the fork is over.
    thing = runtime._held_by_fork()
    if not thing.has_other_thread():
        # A fork on the loop's own thread holds the loop by itself.
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
    # Empty if omniloop was imported in the middle of the fork.
    _, others = forks[-1] if forks else ([], [])
    _each([*(other.go_on for other in others), _let_go_on, *(it._after_fork_in_parent for it in list(watched))])


def _let_go_on() -> None:
    """Let the lives go on that only this thread's latest fork holds."""
    ident = threading.get_ident()
    with _counting:
        forks = _forking.get(ident, [])
        held, _ = forks.pop() if forks else ([], [])
        if not forks:
            _forking.pop(ident, None)
        _each(thing.go_on for thing in held if not _is_held(thing))


def _hook_in_child() -> None:
    # Needed also if the hook of another library came first, noticed the fork, and took it for one without hooks.
    can_read_frames(True)
    _after_in_child()


def _after_in_child() -> None:
    global _pid, _counting, _is_child, _holding
    if same_process[0]:
        # The hook of another library, before this one, has noticed the fork.
        return
    _pid = os.getpid()
    _is_child, _holding = True, False
    _forking.clear()
    _others.clear()
    # Another thread of the parent may have held it.
    _counting = Guard()
    try:
        _each([*_forgets, *(runtime._after_fork_in_child for runtime in list(watched))])
    finally:
        # Last, because until then other threads wait in `notice_fork`.
        same_process[0] = 1
        _catching_up.clear()


def _each(steps: Iterable[Callable[[], None]]) -> None:
    """Do all of *steps*, whatever they raise; then raise the first error, which CPython writes to stderr."""
    first: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:
            first = first or error
    if first is not None:
        raise first


if hasattr(os, "register_at_fork"):
    # Its hook takes a lock before a fork, which a callback that forks would wait for while our hook waits for that callback: so ours is
    # to come first, which is registered later. In a `try`, where no import is lazy. RuntimeError: see `_life.workers`.
    try:
        import concurrent.futures.thread  # noqa: F401
    except RuntimeError:
        pass
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_hook_in_child)


def forget_after_fork(forget: Callable[[], None]) -> None:
    """Have *forget* called in every child forked from now on, before the runtimes begin afresh. Called in the order of registration."""
    _forgets.append(forget)


def hold_at_fork(other: Other) -> None:
    """Have *other* hold still in every fork of this process. It is referred to weakly, and a child forgets it."""
    _others.add(other)


# CPython's function that adds a reference which is never given back; see `prepare`.
_add_reference: Callable[[object], object] | None = None

# What a child keeps if that function is missing; and whether a thread holds it.
_inherited: Final[list[object]] = []
_holding = False


def prepare() -> None:
    """
    Make what the hooks need, before anything exists that a child could inherit. May be called again.

    In the child it may be too late for that.
    """
    global _add_reference
    if _add_reference is None:
        try:
            _add_reference = incref()
        except (ImportError, OSError):
            # Not CPython, or built without it; or no descriptor is left, and the next start tries again.
            hold_inherited()


def keep_for_ever(thing: object) -> None:
    """
    Keep *thing* forever, even when the interpreter ends.

    For what a child inherits: destroying a suspended coroutine of the parent would run its `finally` blocks in the child. A module global
    is cleared at finalisation; a reference that is never given back is not.
    """
    (_add_reference or _inherited.append)(thing)


def hold_inherited() -> None:
    """
    If CPython's function is missing, keep what this child inherited in the frame of a thread that never ends.

    Called on the child's first use or at its end, and not in the fork's hook: PyPy crashes if a thread is started there.
    """
    global _holding
    if _inherited and not _holding:
        _holding = True
        # If no thread can be started, it is kept as long as the module.
        with suppress(RuntimeError):
            _thread.start_new_thread(_hold_on, (_inherited,))


def _hold_on(things: list[object]) -> None:
    never = threading.Lock()
    never.acquire()
    never.acquire()
    del things
