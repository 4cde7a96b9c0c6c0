"""A queue with two sides: a blocking one for threads, and an async one on the runtime's loop; it ends with the runtime."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, TypeVar

import janus

from .._clock import LOOK_UP, slices
from .._errors import ForkedError, WrongLoopError
from .._life import waits
from .._life.life import Life
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import KEEPER, Task

T = TypeVar("T")
R = TypeVar("R")


def queue(
    maxsize: int = 0, *, kind: Literal["fifo", "lifo", "priority"] = "fifo", runtime: Runtime | None = None
) -> Queue[T]:  # pyright: ignore[reportInvalidTypeVarUse] - the caller says which: jobs: Queue[int] = queue()
    """
    Make a `janus.Queue` whose async side lives on the loop: ``q.sync_q.put(item)`` in a thread, ``await q.async_q.get()`` in a task.

    The drain shuts it down when all other work is done: whoever still waits then gets `janus.SyncQueueShutDown` or
    `janus.AsyncQueueShutDown`. A task that takes items for ever is best a daemon. Starts nothing until it is used.

    Args:
        maxsize: How many items it holds before `put` waits; 0 for any number.
        kind: Which item comes out first: the oldest, the newest, or the smallest.
        runtime: On whose loop; by default on the shared one's.

    Raises:
        ValueError: if *maxsize* is not a whole number of 0 or more, or there is no such *kind*.
        TypeError: if *runtime* is no `Runtime`.

    Example:
        >>> from omniloop import go, queue
        >>> jobs = queue()
        >>> async def consume():
        ...     return await jobs.async_q.get()
        >>> task = go(consume())
        >>> jobs.sync_q.put("a job")
        >>> task.result(timeout=5)
        'a job'
    """
    if not isinstance(maxsize, int) or isinstance(maxsize, bool) or maxsize < 0:
        raise ValueError(f"maxsize={maxsize!r}: give a whole number of 1 or more, or 0 for no bound.")
    if kind not in tuple(_KINDS):
        raise ValueError(f'kind={kind!r}: give "fifo", "lifo" or "priority".')
    runtime = chosen(runtime)
    made: Queue[T] = _KINDS[kind](maxsize)
    made._runtime = runtime
    return made


class Queue(janus.Queue[T]):
    """
    A `janus.Queue` that is joined to a runtime; made by `queue`.

    Its `sync_q` may be used in any thread, where it may wait anywhere but on the loop's own; its `async_q` in tasks of the runtime.
    A queue belongs to the process that first used it; in a child it refuses, as what was put in would come out twice.

    Example:
        >>> from omniloop import go, queue
        >>> replies = queue(maxsize=10)
        >>> async def produce():
        ...     await replies.async_q.put("a reply")
        >>> task = go(produce())
        >>> replies.sync_q.get(timeout=5)
        'a reply'
    """

    _runtime: Runtime

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self._sync_side = _SyncSide(self)
        self._keeper: Task[None] | None = None
        self._joining = threading.Lock()

    @property
    def sync_q(self) -> _SyncSide[T]:
        """The blocking side."""
        return self._sync_side

    def __del__(self) -> None:
        if self._keeper is not None:
            with suppress(ForkedError):
                self._keeper.cancel()

    def _join(self) -> Life:
        """Join the runtime's life on first use; ForkedError if that was the parent process's."""
        life = self._runtime._current()
        keeper = self._keeper
        if keeper is None:
            # Outside of the lock: this may start the runtime, and call the user's `loop_factory`.
            made = self._runtime._go(_keep(), sys._getframe(), "queue", contextvars.Context(), KEEPER)
            with self._joining:
                keeper = self._keeper = self._keeper or made
            if keeper is made:
                made.add_done_callback(partial(_shut_down, weakref.ref(self)))
            else:
                # Another thread was first.
                made.cancel()
            life = self._runtime._current()
        if keeper is not None and keeper._owner is not life and not self._is_shutdown:
            raise ForkedError("This queue belongs to the parent process, which has used it. Make one in this process.")
        return life

    def _get_loop(self) -> asyncio.AbstractEventLoop:
        # Each call of the async side comes here.
        life = self._join()
        loop = asyncio._get_running_loop()
        if loop is None or loop is not life.loop:
            raise WrongLoopError(
                "The async side of this queue lives on the runtime's loop, and another one runs here. Use go(q.async_q.get()), "
                "which can be awaited here."
            )
        self._loop = loop
        return loop

    @contextmanager
    def _waiting(self, call: str) -> Iterator[None]:
        self._join().check_may_wait(call)
        with waits.giving_place(call):
            yield


class _LifoQueue(Queue[T], janus.LifoQueue[T]):
    pass


class _PriorityQueue(Queue[T], janus.PriorityQueue[T]):
    pass


_KINDS: dict[str, type[Queue[Any]]] = {"fifo": Queue, "lifo": _LifoQueue, "priority": _PriorityQueue}


# janus' own class for it, since 0.4; a rewrite of its protocol would be thirteen methods that only pass on.
class _SyncSide(janus._SyncQueueProxy[T]):
    _parent: Queue[T]

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        self._parent._join()
        try:
            super().put(item, block=False)
        except janus.SyncQueueFull:
            if not block:
                raise
            self._wait("sync_q.put()", timeout, partial(super().put, item, True))

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        self._parent._join()
        try:
            return super().get(block=False)
        except janus.SyncQueueEmpty:
            if not block:
                raise
            return self._wait("sync_q.get()", timeout, partial(super().get, True))

    def join(self) -> None:
        parent = self._parent
        # janus' own, whose join() does not look up.
        with parent._waiting("sync_q.join()"), parent._sync_tasks_done:
            parent._sync_tasks_done_waiting += 1
            try:
                while parent._unfinished_tasks:
                    parent._sync_tasks_done.wait(LOOK_UP)
            finally:
                parent._sync_tasks_done_waiting -= 1

    def _wait(self, call: str, timeout: float | None, attempt: Callable[[float | None], R]) -> R:
        """Make the *attempt*, with seconds, until there is room or an item, or *timeout* passed."""
        if timeout is not None and timeout < 0:
            # janus' own error for it.
            return attempt(timeout)
        missed: Exception | None = None
        with self._parent._waiting(call):
            for seconds in slices(timeout):
                try:
                    return attempt(seconds)
                except (janus.SyncQueueFull, janus.SyncQueueEmpty) as error:
                    missed = error
        # There is one slice at least.
        assert missed is not None
        raise missed


async def _keep() -> None:
    await asyncio.get_running_loop().create_future()


def _shut_down(this: weakref.ref[Queue[Any]], _: Task[None]) -> None:
    queue = this()
    if queue is not None:
        queue.shutdown()
