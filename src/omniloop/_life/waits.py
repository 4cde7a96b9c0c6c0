"""
Blocks a thread until work on the loop is done, the one way to do so; raises the reason if that could never be.

Every call that blocks until the loop has done something comes through here: from a handle, a group, a queue, `flush` or `shutdown()`. It
checks, in this order:

1. The loop's own thread, and a thread in the middle of a fork, can't wait for the loop.
2. If the loop has no thread at the moment, one is started.
3. A worker that waits gives up its place in the pool to another worker, which may do the very work that it waits for. If all workers wait
   for each other, the last one to begin gets an error within a second.
4. A circle of threads that wait for each other's loops never ends. Each thread records what it waits for *before* it looks, so that if two
   close a circle at once, at least one of them sees it.
5. A wait longer than a second looks whether the loop waits for an import that this thread is in the middle of, or for the event loop that
   this thread runs itself. Like every wait it wakes once a second (see `_threads`).

The records of 4 are a dictionary with one entry a thread, which only that thread writes; so there is no lock.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol

from .. import _hooks
from .._arguments import check_timeout
from .._cpython import begun_by, done_callbacks_of, ended_by, is_of_importlib, module_lock, ready
from .._errors import WouldDeadlockError
from .._process import fork
from .._report import CAN_LOOK_AT_WHAT_RUNS, Site, callers, frame_of, frames_of_threads, shown
from .._threads import LOOK_UP, slices
from . import workers

if TYPE_CHECKING:
    from .._work.inbox import Inbox
    from .._work.ledger import Ledger
    from .._work.task import Task

    class Waited(Protocol):
        """The life that is waited for. It can't be named here, because its module imports this one."""

        name: str
        inbox: Inbox

        @property
        def ident(self) -> int | None: ...
        def check_process(self) -> None: ...
        @property
        def ledger(self) -> Ledger: ...
        @property
        def workers(self) -> workers.Workers: ...
        def starts_below(self) -> bool: ...


# Takes the ident of the loop's thread and the task; returns why the calling thread's wait for it would never end, or None.
Why = Callable[["int | None", "Task[Any]"], "str | None"]

# The checks of a long wait.
_looks: list[Why] = [workers.why_endless]


def look_in_long_waits(why_endless: Why) -> None:
    """Call *why_endless*, with growing pauses, in every long wait."""
    _looks.append(why_endless)


# After how many seconds a wait makes sure that the loop's thread was woken.
_SOON: Final = 0.01

# The ident of each waiting thread, and that of the loop's thread that it waits for.
_waits: dict[int, int] = {}


def check_may_wait(
    life: Waited,
    what: str | Task[Any],
    instead: str = "call it from another thread, or await the work itself",
    by_host: bool = False,
) -> _hooks.Host | None:
    """
    Raise if this thread can't wait for the loop: `WouldDeadlockError`, or `ForkedError` if the life was the parent process's.

    Returns the host if its loop runs in this thread and can go on while the thread waits *by_host*; else None. A host can't do that during
    a task's first step, because nothing else is started before that ends.
    """
    life.check_process()
    if (ident := life.ident) is None and life.starts_below():
        raise WouldDeadlockError(
            f"{_title(what)} would wait for a loop whose thread is being started by the very code that this call has interrupted. "
            "Instead submit the work, and ask for its outcome later."
        )
    if ident == threading.get_ident():
        if (host := _hooks.host()) is None:
            raise WouldDeadlockError(
                f"{_title(what)} would wait, on the loop's own thread, for work that needs this thread. Instead {instead}."
            )
        if by_host and host.can_wait() and life.ledger.beginning is None:
            return host
        raise WouldDeadlockError(
            f"{_title(what)} would block the one thread that there is, which does the work. {host.INSTEAD}"
        )
    if fork.is_forking() and fork.forks(threading.get_ident()):
        raise WouldDeadlockError(
            f"{_title(what)} would wait for the loop, which holds still until this thread has forked."
        )
    return None


def wait(life: Waited, task: Task[Any], wait_here: Callable[[float], bool], timeout: float | None) -> bool:
    """
    Block until *wait_here*, which takes seconds, returns True.

    Returns False if *timeout* passed first. 0 asks without waiting, also on the loop's own thread.
    """
    check_timeout(timeout)
    if timeout is not None and timeout <= 0:
        life.check_process()
        return wait_here(0)
    if (host := check_may_wait(life, task, "await it", by_host=True)) is not None:
        done: asyncio.Future[None] = host.loop().create_future()
        task._when_done(lambda: None if done.done() else done.set_result(None))
        host.wait(done, timeout)
        return wait_here(0)
    return wait_unasked(life, task, wait_here, timeout)


def wait_unasked(life: Waited, task: Task[Any], wait_here: Callable[[float], bool], timeout: float | None) -> bool:
    """As `wait`, for a thread that was asked by `check_may_wait` before it submitted the work."""
    if (ident := life.ident) is None:
        life.inbox.wake_reader()
        ident = life.ident
    me = threading.get_ident()
    pool = workers.pools.get(me)
    try:
        if pool is not None:
            pool.begin_wait(task)
        if not _begin(me, ident):
            raise WouldDeadlockError(f"{_title(task)} would never end: the thread that runs it waits for this one.")
        seconds = math.inf if timeout is None else max(timeout, 0.0)
        if wait_here(min(seconds, _SOON)):
            return True
        if seconds <= _SOON:
            return False
        if not task._is_started():
            # In case the wake-up is still to come, from a frame of this thread that a signal handler or a finaliser has interrupted.
            life.inbox.wake_reader()
        return wait_here(min(seconds - _SOON, LOOK_UP)) or (
            seconds > LOOK_UP and _wait_long(life, task, wait_here, seconds - LOOK_UP)
        )
    finally:
        _waits.pop(me, None)
        if pool is not None:
            pool.end_wait()


@contextmanager
def waiting_for_all(life: Waited, what: str) -> Iterator[None]:
    """
    Wrap a wait for all of the work: raise if it could never end, and record it, so that a thread that would close a circle with it gets an
    error.
    """
    check_may_wait(life, what)
    if life.workers.is_worker():
        raise WouldDeadlockError(
            f"{what} in a worker thread of the same runtime would wait for itself. Call it from another thread."
        )
    me = threading.get_ident()
    try:
        if not _begin(me, life.ident):
            raise WouldDeadlockError(f"{what} would never end: the loop {life.name!r} waits for this thread.")
        yield
    finally:
        _waits.pop(me, None)


@contextmanager
def giving_place(what: str | None = None) -> Iterator[None]:
    """
    Wrap a wait for the other end of a queue: if the caller is a worker, another worker may take its place meanwhile.

    Raises `WouldDeadlockError`, if *what* is given, when jobs are queued, no worker is left for them, and no thread can be started.
    """
    pool = workers.pools.get(threading.get_ident())
    if pool is None:
        yield
        return
    try:
        if not pool.begin_wait(None) and what is not None:
            raise WouldDeadlockError(
                f"{what} would block the last worker thread, and no other can be started to end the wait."
            )
        yield
    finally:
        pool.end_wait()


def _wait_long(life: Waited, task: Task[Any], wait_here: Callable[[float], bool], timeout: float) -> bool:
    for count, seconds in enumerate(slices(timeout), 1):
        # With growing pauses: after 1, 2, 4, 8 … seconds.
        if count & (count - 1) == 0:
            for why_endless in _looks:
                if (why := why_endless(life.ident, task)) is not None:
                    raise WouldDeadlockError(f"{_title(task)} {why}")
        if wait_here(seconds):
            return True
    return False


# --- which thread waits for which -------------------------------------------------------------------------------------


def _begin(me: int, ident: int | None) -> bool:
    """
    Record that this thread, *me*, waits for the thread *ident*; False if that closes a circle. The caller removes the record.

    Waits are not nested, because signal handlers and finalisers do not wait.
    """
    if ident is None:
        return True
    _waits[me] = ident
    seen: set[int] = set()
    link: int | None = ident
    while link != me and link in _waits and link not in seen:
        seen.add(link)
        link = _waits.get(link)
    return link != me


@contextmanager
def paused() -> Iterator[None]:
    """Wrap code that runs in the middle of a wait and may itself wait."""
    me = threading.get_ident()
    waited_for = _waits.pop(me, None)
    try:
        yield
    finally:
        if waited_for is not None:
            _waits[me] = waited_for


# In a forked child only the forking thread is left, and it does not wait.
fork.forget_after_fork(_waits.clear)


# --- imports ----------------------------------------------------------------------------------------------------------


def _needs_an_import(ident: int | None, task: Task[Any]) -> str | None:
    """
    Return the reason if the thread *ident* waits for the lock of a module that the calling thread imports, or that no thread of this
    process does.

    In a forked child CPython does not clear the module locks: one that another thread held at the fork is held forever. This is read off
    the frames, because importlib keeps no public record.
    """
    if not fork.is_child() and not _imports(sys._getframe()):
        return None
    threads = frames_of_threads()
    for frame in callers(None if ident is None else threads.get(ident)):
        if (lock := module_lock(frame)) is not None:
            owner = getattr(lock, "owner", None)
            if owner == threading.get_ident():
                return (
                    "while importing would never end: the loop waits for this very import. "
                    "Wait after the import, or import that module first."
                )
            # A thread of this process may have the same ident by now; but it imports nothing.
            if owner is not None and fork.is_child() and not _imports(threads.get(owner)):
                return (
                    f"would never end: it imports {getattr(lock, 'name', 'a module')!r}, which another thread was in the middle of "
                    "importing when this process was forked, and which so can never be imported here. Import it before the fork, at "
                    "the top of the program."
                )
    return None


look_in_long_waits(_needs_an_import)


def _imports(frame: FrameType | None) -> bool:
    return any(map(is_of_importlib, callers(frame)))


# --- a loop of the caller's own ---------------------------------------------------------------------------------------


_BLOCKS: Final = (Future.result.__code__, Future.exception.__code__)


def _needs_my_loop(ident: int | None, task: Task[Any]) -> str | None:
    """
    Return the reason if the thread *ident* blocks, without a timeout, on something that it gave to the calling thread's loop by
    `run_coroutine_threadsafe`.

    Nothing else runs in the thread *ident* meanwhile, so that no timeout or cancellation can end *task* if it runs on that loop. A
    coroutine that *awaits* something of this thread, and a worker, may still have either; they are not checked.
    """
    mine = asyncio._get_running_loop()
    if mine is None or not CAN_LOOK_AT_WHAT_RUNS or not isinstance(task._work, asyncio.Task | Coroutine):
        # No loop runs here, or the task is done, or runs in a worker, which needs no loop to end.
        return None
    inside = frame_of(ident)
    frame = None if inside is None else inside.f_back
    if inside is None or frame is None or inside.f_code is not threading.Condition.wait.__code__:
        return None
    if frame.f_code not in _BLOCKS or frame.f_locals.get("timeout") is not None:
        return None
    future = frame.f_locals.get("self")
    # `done()` is asked last: while the future is not done, its thread has not left the wait.
    if not isinstance(future, Future) or not _is_for(mine, future) or future.done():
        return None
    caller = frame.f_back or frame
    return (
        f"would never end: the thread that runs it blocks at {Site(caller.f_code, caller.f_lasti).short()}, until this thread's own event "
        "loop has done something, and that waits here. Await it here instead (await go(…)); or send there, and do not wait for the answer."
    )


def _is_for(loop: object, future: Future[Any]) -> bool:
    """Tell whether *future* comes from `run_coroutine_threadsafe` and only *loop* can end it."""
    sources = map(ended_by, done_callbacks_of(future))
    if any(asyncio.isfuture(source) and source.get_loop() is loop for source in sources):
        return True
    try:
        # The due callbacks, where asyncio's own loops show them. On another loop a call that has not begun can't be seen.
        return any(begun_by(handle) is future for handle in list(ready(loop) or ()))
    except RuntimeError:
        # "deque mutated during iteration", on a build without a GIL.
        return False


look_in_long_waits(_needs_my_loop)


def _title(what: str | Task[Any]) -> str:
    # Built only for an error message: it would cost 0.4 µs a wait.
    return what if isinstance(what, str) else f"Waiting for '{shown(what.get_name())}'"
