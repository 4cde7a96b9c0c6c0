"""A queue with a blocking side for threads and an async side on the runtime's loop; the runtime shuts it down at its end."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import weakref
from contextlib import suppress
from functools import partial, partialmethod
from typing import Any, Literal, TypeVar, cast

import janus

from .._arguments import check_count
from .._errors import ForkedError, WrongLoopError
from .._life import waits
from .._life.life import Life
from .._report import caller
from .._runtime import Runtime
from .._shared import chosen
from .._threads import slices
from .._work.task import KEEPER, Task

T = TypeVar("T")


def queue(
    maxsize: int = 0, *, kind: Literal["fifo", "lifo", "priority"] = "fifo", runtime: Runtime | None = None
) -> Queue[T]:  # pyright: ignore[reportInvalidTypeVarUse] - the caller says which: jobs: Queue[int] = queue()
    """
    Make a `janus.Queue` whose async side lives on the loop: ``q.sync_q.put(item)`` in a thread, ``await q.async_q.get()`` in a task.

    The drain shuts the queue down when all other work is done: a caller that still waits gets `janus.SyncQueueShutDown` or
    `janus.AsyncQueueShutDown`. Make a task that takes items for ever a daemon. The queue starts nothing until it is used.

    Args:
        maxsize: How many items it holds before `put` waits; 0 for any number.
        kind: Which item comes out first: the oldest, the newest, or the smallest.
        runtime: The runtime on whose loop the async side lives; by default the shared one.

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
    check_count("maxsize", maxsize, ", or 0 for no bound", least=0)
    if kind not in tuple(_KINDS):
        raise ValueError(f'kind={kind!r}: give "fifo", "lifo" or "priority".')
    made: Queue[T] = _KINDS[kind](maxsize)
    made._runtime = chosen(runtime)
    return made


class Queue(janus.Queue[T]):
    """
    A `janus.Queue` that belongs to a runtime; made by `queue`.

    `sync_q` may be used in any thread; it may wait anywhere but on the loop's own. `async_q` may be used in tasks of the runtime. A
    queue belongs to the process that first used it. In a forked child it refuses, because items would come out in both processes.

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
        # The first one has the queue shut down at the end of its life. Made on first use.
        self._keepers: list[Task[None]] = []
        self._sync_side = cast("janus.SyncQueue[T]", _SyncSide(self, super().sync_q))
        self._async_side = cast("janus.AsyncQueue[T]", _AsyncSide(self, super().async_q))

    @property
    def sync_q(self) -> janus.SyncQueue[T]:  # type: ignore[override]
        """The blocking side."""
        return self._sync_side

    @property
    def async_q(self) -> janus.AsyncQueue[T]:  # type: ignore[override]
        """The async side."""
        return self._async_side

    def __del__(self) -> None:
        for keeper in self._keepers:
            with suppress(ForkedError):
                keeper.cancel()

    def _join(self) -> Life:
        """Return the life that the queue belongs to, joining it on first use; ForkedError if it is the parent process's."""
        if not self._keepers:
            made = self._runtime._go(_keep(), sys._getframe(), "queue", contextvars.Context(), KEEPER)
            self._keepers.append(made)
            if self._keepers[0] is made:
                made.add_done_callback(partial(_shut_down, weakref.ref(self)))
            else:
                # Another thread has joined first.
                made.cancel()
        self._runtime._current()
        life: Life = self._keepers[0]._owner  # type: ignore[assignment]
        if life.foreign:
            raise ForkedError("This queue belongs to the parent process, which has used it. Make one in this process.")
        return life


# janus types the sides of its kinds by private classes. `Queue` types them by the public ones, which promise all that is used here.
class _LifoQueue(Queue[T], janus.LifoQueue[T]):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


class _PriorityQueue(Queue[T], janus.PriorityQueue[T]):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


_KINDS: dict[str, type[Queue[Any]]] = {"fifo": Queue, "lifo": _LifoQueue, "priority": _PriorityQueue}


class _Side:
    """One side of a janus queue; janus' own side answers for all that is not defined here."""

    def __init__(self, parent: Queue[Any], side: Any) -> None:
        self._parent = parent
        self._side = side

    def __getattr__(self, name: str) -> Any:
        return getattr(self._side, name)


class _SyncSide(_Side):
    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self._attempt("put", block, timeout, item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return self._attempt("get", block, timeout)

    put_nowait = partialmethod(put, block=False)
    get_nowait = partialmethod(get, block=False)

    def join(self) -> None:
        parent = self._parent
        parent._join().check_may_wait("sync_q.join()")
        if parent.closed:
            self._side.join()
        else:
            # janus' `join` waits in one piece, without the checks that waits of the package make in between.
            parent._runtime._run(parent.async_q.join(), None, caller())

    def _attempt(self, name: str, block: bool, timeout: float | None, *args: Any) -> Any:
        call = partial(getattr(self._side, name), *args)
        life = self._parent._join()
        try:
            return call(block=False)
        except (janus.SyncQueueFull, janus.SyncQueueEmpty) as error:
            missed: Exception = error
        if not block:
            raise missed
        if timeout is not None and timeout < 0:
            # Has janus raise its own error for a negative timeout.
            return call(timeout=timeout)
        life.check_may_wait(f"sync_q.{name}()")
        with waits.giving_place(f"sync_q.{name}()"):
            for seconds in slices(timeout):
                with suppress(janus.SyncQueueFull, janus.SyncQueueEmpty):
                    return call(timeout=seconds)
        raise missed


class _AsyncSide(_Side):
    async def put(self, item: Any) -> None:
        await self._here().put(item)

    async def get(self) -> Any:
        return await self._here().get()

    async def join(self) -> None:
        await self._here().join()

    def put_nowait(self, item: Any) -> None:
        self._here().put_nowait(item)

    def get_nowait(self) -> Any:
        return self._here().get_nowait()

    def _here(self) -> Any:
        if asyncio._get_running_loop() is not self._parent._join().loop:
            raise WrongLoopError(
                "The async side of this queue lives on the runtime's loop, and another one runs here. Use go(q.async_q.get()), "
                "which can be awaited here."
            )
        return self._side


async def _keep() -> None:
    await asyncio.get_running_loop().create_future()


def _shut_down(this: weakref.ref[Queue[Any]], _: Task[None]) -> None:
    queue = this()
    if queue is not None:
        queue.shutdown()
