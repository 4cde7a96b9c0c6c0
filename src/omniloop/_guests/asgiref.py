"""
If asgiref is loaded: decides which thread makes the calls of `sync_to_async` in work on the loop, so that none waits for ever.

The core leaves its blocking waits to `run` below, through a hook. `run` uses `Waiting`, or `Caller` if asgiref takes part in the calling code.

    1. In work that a thread waits for with `run`, that thread makes the calls, as with `async_to_sync`: under Django it has the database
       connection, and with it the open transaction.
    2. In any other work one thread of the process makes them, unless a `ThreadSensitiveContext` names another.

asgiref's own single thread can't be used. The mark that it is in use travels in a copied context, and raises ("would deadlock") long after
its caller is gone; the thread is shut down before the last drain; and in a forked child it is dead.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeGuard, TypeVar

from .. import _hooks
from .._arguments import close_unstarted
from .._cpython import threads_of
from .._life import waits
from .._life.workers import Workers
from .._process import fork
from .._report import frames_of
from .._threads import time
from .._work.task import Task

if TYPE_CHECKING:
    from types import FrameType

    from .._life.life import Life
    from .._runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")


def _sync() -> Any:
    """Return the module `asgiref.sync` if it is completely loaded. Imports nothing."""
    module = sys.modules.get("asgiref.sync")
    # The last name in the module: another thread may be in the middle of the import.
    return module if hasattr(module, "sync_to_async") else None


# --- in work that nobody waits for ------------------------------------------------------------------------------------


class SyncThread(Executor):
    """The thread of this process that makes the calls. If it can't be started, because the interpreter ends, the pool *spare* makes them."""

    # By process id: a forked child inherits neither the thread nor, safely, its connections.
    _by_process: dict[int, Workers] = {}  # noqa: RUF012

    def __init__(self, spare: Executor) -> None:
        self._spare = spare

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        # asgiref submits in the context of the work.
        waiting = _waiting.get(None)
        if waiting is not None and (future := waiting.take(lambda: fn(*args, **kwargs))) is not None:
            return future
        try:
            return self.workers().submit(fn, *args, **kwargs)
        except RuntimeError:
            return self._spare.submit(fn, *args, **kwargs)

    @classmethod
    def is_started(cls) -> bool:
        """Tell whether the thread has made any call."""
        pool = cls._by_process.get(os.getpid())
        return pool is not None and bool(pool.counts()["workers"])

    @classmethod
    def workers(cls) -> Workers:
        """Return the pool of one thread, started. RuntimeError if it can't be started: from 3.12 on when the interpreter ends."""
        pool = cls._by_process.setdefault(os.getpid(), Workers("omniloop-sync"))
        pool.start_one()
        return pool


def serve(loop: asyncio.AbstractEventLoop, spare: Executor) -> None:
    """Make `sync_to_async` in work on *loop* use that thread, unless its context names another."""
    if (sync := _sync()) is None or loop in sync.AsyncToSync.loop_thread_executors:
        return
    sync.AsyncToSync.loop_thread_executors.setdefault(loop, SyncThread(spare))


def leave(loop: asyncio.AbstractEventLoop) -> None:
    """Forget *loop*, which is over. asgiref has no weak references to loops: it would keep the loop and all that belongs to it alive."""
    if (sync := _sync()) is not None:
        sync.AsyncToSync.loop_thread_executors.pop(loop, None)


# --- in work that a thread waits for ----------------------------------------------------------------------------------


class _Call:
    def __init__(self, future: Future[Any], call: Callable[[], Any]) -> None:
        self.future = future
        self._call = call
        self._pid = os.getpid()

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        # asgiref leaves notes of this call in the thread, which would hide its notes of an outer call. They are restored below.
        notes = _sync().SyncToAsync.threadlocal.__dict__
        around = notes.copy()
        try:
            result = self._call()
        except BaseException as error:
            if os.getpid() != self._pid:
                # In a child that was forked in the call, SystemExit for example. The callers that wait are the parent's.
                raise
            self.future.set_exception(error)
        else:
            if os.getpid() == self._pid:
                self.future.set_result(result)
        finally:
            notes.update(around)
            for name in notes.keys() - around.keys():
                del notes[name]


class Waiting:
    """
    A thread that waits in `run`, and meanwhile makes the calls that the awaited work sends to it. It pays for this only if a call comes.

    It is in the context of the work, and so in that of all work started there. Any thread may send calls; the rest is for the thread that
    waits.
    """

    __slots__ = ("_gate", "calls", "in_call", "over", "task")

    def __init__(self) -> None:
        self.task: Task[Any]
        # Guarded by the lock of the task's meeting, as `over` is.
        self.calls: deque[Any] = deque()
        # The wait is over, and takes no more calls.
        self.over = False
        # Whether the thread is making a call, and so takes no other.
        self.in_call = False
        self._gate: threading.Lock | None = None

    def take(self, call: Callable[[], Any]) -> Future[Any] | None:
        """Have the waiting thread make *call*; None if it no longer waits."""
        made = _Call(Future(), call)
        with self.task._meet().lock:
            if self.over:
                return None
            self.calls.append(made)
            self.notify()
        return made.future

    def notify(self) -> None:
        """Under the lock: have the waiting thread look for calls."""
        gates = self.task._meet().gates
        # Released once each time that it was added: a free lock can't be released.
        if self._gate is not None and self._gate in gates:
            gates.remove(self._gate)
            self._gate.release()

    def wait_here(self, timeout: float) -> bool:
        """Wait as `Task._wait_here` does, and meanwhile make the calls that come."""
        deadline = time.monotonic() + timeout
        meeting = self.task._meet()
        # A new gate for each wait: the gate of an interrupted wait is still among those that the outcome releases.
        self._gate = gate = threading.Lock()
        gate.acquire()
        while True:
            with meeting.lock:
                waits_for_gate = not self.calls
                if waits_for_gate:
                    if meeting.outcome is not None:
                        return True
                    meeting.gates.append(gate)
            # Decided by what was seen under the lock: a gate that was added must be acquired, because it will be released.
            if waits_for_gate and not gate.acquire(timeout=max(0.0, min(timeout, deadline - time.monotonic()))):
                with meeting.lock:
                    if gate in meeting.gates:
                        meeting.gates.remove(gate)
                        return False
                # Released at this very moment.
                gate.acquire()
            self._make_calls()

    def end(self) -> None:
        """Make the calls that are left, and take no more."""
        # A child that was forked while the task was waited for has left the wait by an exception: the calls are the parent's.
        fork.notice_fork()
        if not self.task._owner.foreign:
            with self.task._meet().lock:
                self.over = True
            self._make_calls()

    def _make_calls(self) -> None:
        while self.calls:
            call = self.calls.popleft()
            self.in_call = True
            try:
                with waits.paused():
                    call.run()
            finally:
                self.in_call = False
            del call
            self.task._check_process()


class Caller(Executor):
    """
    The same thread as the executor that asgiref finds in the context of the work, and prefers to any other.

    Calls that come after the wait go to the outer wait of this thread, if there is one, or else to the thread of the process.
    """

    def __init__(self, waiting: Waiting, spare: Executor) -> None:
        self.waiting = waiting
        self.thread = threading.get_ident()
        self._spare = spare
        # The names `_old_executor`, `_work_ready`, `_work_items` and `_broken` are those of asgiref's own executor. If its wait, inside of
        # this one, has ended, it passes calls on by them.
        self._old_executor: Any = getattr(_sync().AsyncToSync.executors, "current", None)
        self._work_ready = self
        self._work_items = waiting.calls

    @property
    def _broken(self) -> bool:
        return self.waiting.over

    def __enter__(self) -> Self:
        self.waiting.task._meet().lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.waiting.task._meet().lock.release()

    def notify(self) -> None:
        self.waiting.notify()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if threading.get_ident() == self.thread:
            raise RuntimeError(
                "This thread would wait for itself: sync_to_async() is used below the sync code that it calls."
            )
        if (future := self.waiting.take(lambda: fn(*args, **kwargs))) is not None:
            return future
        # RuntimeError: the outer wait is over, too.
        with suppress(RuntimeError):
            if self._old_executor is not None:
                future = self._old_executor.submit(fn, *args, **kwargs)
        return future or SyncThread(self._spare).submit(fn, *args, **kwargs)


_waiting: ContextVar[Waiting] = ContextVar("omniloop_waiting")


def _is_in_the_way(sync: Any, loop: asyncio.AbstractEventLoop | None) -> bool:
    """Tell whether asgiref takes part in the calling code: another thread makes its calls, or this one does for another loop."""
    # The loop of the last call that was made in this thread, if there was one.
    other: Any = getattr(sync.SyncToAsync.threadlocal, "main_event_loop", None)
    return (
        (other is not None and other is not loop and other.is_running())
        or sync.SyncToAsync.thread_sensitive_context.get(None) is not None
        or getattr(sync.AsyncToSync.executors, "current", None) is not None
    )


def bring_along(ident: int | None) -> None:
    """
    Make the values of asgiref's `Local` in the calling context, such as Django's language, visible in the thread *ident*.

    From asgiref 3.12 on a `Local` belongs to the thread that has set it, and is empty in a copy of the context in another thread.
    """
    for variable, value in copy_context().items():
        if is_thread_bound(value):
            variable.set(type(value)(ident, value.data))


def is_thread_bound(value: object) -> TypeGuard[Any]:
    """Tell whether *value* is the value of a `Local`: see `bring_along`."""
    storage = getattr(sys.modules.get("asgiref.local"), "_Storage", None)
    return storage is not None and isinstance(value, storage)


# --- the hook ---------------------------------------------------------------------------------------------------------


def run(runtime: Runtime, coro: Any, timeout: float | None, frame: FrameType) -> Task[Any]:
    """Have *runtime* do work whose sync code is to run in this thread, which waits for it."""
    try:
        life, sync = _serving(runtime), _sync()
        if life is None or sync is None:
            # The core refuses the work and says why; or another thread is in the middle of loading asgiref.
            return runtime._run_task(Task(runtime, coro, None, None, frame), timeout)
        if life.loop is not None:
            # asgiref may have been loaded after the loop was made.
            serve(life.loop, life.workers)
        # Django's sync code refuses to run in a thread where a loop runs; there the thread of the process makes the calls.
        waiting = None if asyncio._get_running_loop() is not None else Waiting()
        context = copy_context()
        executor = None if waiting is None or not _is_in_the_way(sync, life.loop) else Caller(waiting, life.workers)
        context.run(_carry, sync, life.ident, waiting, executor)
    except BaseException:
        close_unstarted(coro)
        raise
    task: Task[Any] = Task(runtime, coro, None, context, frame)
    # If the `sync_to_async` that called this sync code is cancelled, asgiref cancels and awaits the first task in this list, on the caller's
    # loop; a handle can be awaited on any loop.
    tasks = getattr(sync.SyncToAsync.threadlocal, "task_context", None)
    if waiting is not None:
        waiting.task = task
    try:
        if tasks is not None:
            tasks.append(task)
        return runtime._run_task(task, timeout, None if waiting is None else waiting.wait_here)
    finally:
        if tasks is not None and task in tasks:
            tasks.remove(task)
        if waiting is not None:
            waiting.end()


def _carry(sync: Any, ident: int | None, waiting: Waiting | None, executor: Caller | None) -> None:
    """In the context of the work: have its sync code go to *executor* if asgiref takes part, and to *waiting* otherwise."""
    if executor is not None:
        sync.AsyncToSync.executors.current = executor
    elif waiting is not None:
        _waiting.set(waiting)
    bring_along(ident)


def _serving(runtime: Runtime) -> Life | None:
    """Return the life that will run what is submitted now, its thread started; None if it would be refused."""
    life = runtime._current()
    if life.inbox.closed:
        if not runtime._renew(life):
            return None
        life = runtime._current()
    if life.ident is None:
        life.inbox.wake_reader()
        # Another thread may be starting it.
        life.wait_for_start()
    return life


_hooks.waits.take(sys.modules[__name__])


# --- a wait that could never end --------------------------------------------------------------------------------------


def _why_endless(ident: int | None, task: Task[Any]) -> str | None:
    work, sync = task._work, _sync()
    if sync is None or not hasattr(sync.SyncToAsync.threadlocal, "main_event_loop"):
        # This thread has made no call of `sync_to_async`.
        return None
    if isinstance(work, asyncio.Task) and _waits_for_this_thread(work.get_coro()):
        return (
            "would never end: it waits in sync_to_async() for a call that asgiref makes in this very thread. Wait with run(), which makes "
            "such calls meanwhile; or, in Django, use omniloop.ext.django.database() in the work."
        )
    return None


waits.look_in_long_waits(_why_endless)


def _waits_for_this_thread(coro: Any) -> bool:
    """Tell whether *coro* waits in `sync_to_async` for a call that only the calling thread could make."""
    if (sync := _sync()) is None:
        return False
    code = sync.SyncToAsync.__call__.__code__
    executor: Any = None
    for frame in frames_of(coro):
        if frame.f_code is code:
            executor = frame.f_locals.get("executor")
    if isinstance(executor, Caller):
        # Between two calls the thread waits for the next one.
        return executor.thread == threading.get_ident() and executor.waiting.in_call
    # The thread of asgiref's own executor, or the only thread of a standard one.
    threads = {getattr(executor, "_work_thread", None)} | threads_of(executor)
    return threads - {None} == {threading.current_thread()}
