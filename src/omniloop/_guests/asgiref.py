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
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, TypeGuard, TypeVar

from .. import _hooks
from .._arguments import close_unstarted
from .._clock import time
from .._cpython import threads_of
from .._life import waits
from .._life.workers import Workers
from .._process import fork
from .._process.exit import end_orphan
from .._report import frames_of

if TYPE_CHECKING:
    from types import FrameType

    from .._life.life import Life
    from .._runtime import Runtime
    from .._work.task import Task

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
        return pool is not None and bool(pool.idents())

    @classmethod
    def workers(cls) -> Workers:
        """Return the pool of one thread, started. RuntimeError if it can't be started: from 3.12 on when the interpreter ends."""
        pool = cls._by_process.setdefault(os.getpid(), Workers(1, "omniloop-sync", end_orphan))
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


class Caller(Executor):
    """
    A thread that waits in `run`, and meanwhile makes the calls that the awaited work sends to it.

    Calls that come after the wait go to the outer wait of this thread, if there is one, or else to the thread of the process.
    """

    def __init__(self, spare: Executor) -> None:
        self._thread = threading.get_ident()
        self._spare = spare
        # Names of asgiref's own executor: asgiref reads them when that executor ends itself.
        self._work_ready = threading.Condition(threading.Lock())
        self._work_items: deque[Any] = deque()
        self._broken = False
        # Whether the thread is making a call, and so takes no other.
        self._in_call = False
        self._task: Task[Any]
        self._old_executor: Any = getattr(_sync().AsyncToSync.executors, "current", None)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if threading.get_ident() == self._thread:
            raise RuntimeError(
                "This thread would wait for itself: sync_to_async() is used below the sync code that it calls."
            )
        call = _Call(Future(), lambda: fn(*args, **kwargs))
        with self._work_ready:
            if not self._broken:
                self._work_items.append(call)
                self._work_ready.notify()
                return call.future
        if self._old_executor is not None:
            try:
                future: Future[T] = self._old_executor.submit(fn, *args, **kwargs)
            except RuntimeError:
                # The outer wait is over, too.
                pass
            else:
                return future
        return SyncThread(self._spare).submit(fn, *args, **kwargs)

    def begin(self, task: Task[Any]) -> None:
        """Set the *task* that is waited for."""
        self._task = task
        task._when_done(self._wake)

    def wait_here(self, timeout: float) -> bool:
        """Wait as `Task._wait_here` does, and meanwhile make the calls that come."""
        deadline = time.monotonic() + timeout if timeout >= 0 else None
        while True:
            with self._work_ready:
                while not self._work_items:
                    if self._task.done():
                        return True
                    left = None if deadline is None else min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
                    if left is not None and left <= 0:
                        return False
                    self._work_ready.wait(left)
                call = self._work_items.popleft()
            with waits.paused():
                self._make(call)
            del call

    def _wake(self) -> None:
        with self._work_ready:
            self._work_ready.notify()

    def end(self) -> None:
        """Make the calls that are left, and send later ones elsewhere."""
        while not _is_parents(self._task):
            with self._work_ready:
                if not self._work_items:
                    self._broken = True
                    return
                call = self._work_items.popleft()
            self._make(call)

    def _make(self, call: _Call) -> None:
        self._in_call = True
        try:
            call.run()
        finally:
            self._in_call = False
        self._task._check_process()


class Waiting:
    """
    A thread that waits in `run` where asgiref takes no part in the calling code: it pays for this only if a call comes.

    It is in the context of the work, and so in that of all work started there. Submitting is for the loop's thread, the rest for the thread
    that waits.
    """

    __slots__ = ("_calls", "_gate", "_over", "_task")

    def __init__(self) -> None:
        self._calls: deque[_Call] = deque()
        self._over = False
        self._task: Task[Any]
        self._gate: threading.Lock | None = None

    def context(self, ident: int | None) -> Context:
        """Return a copy of the caller's context for work in the thread *ident*, with this object in it."""
        context = context_for(ident)
        context.run(_waiting.set, self)
        return context

    def begin(self, task: Task[Any]) -> Task[Any]:
        """Set the *task* that is waited for, and return it."""
        self._task = task
        return task

    def take(self, call: Callable[[], Any]) -> Future[Any] | None:
        """Have the waiting thread make *call*; None if it no longer waits."""
        made = _Call(Future(), call)
        meeting = self._task._meet()
        with meeting.lock:
            if self._over:
                return None
            self._calls.append(made)
            # Released once each time that it was added: a free lock can't be released.
            gate: Any = self._gate
            wakes = gate in meeting.gates
            if wakes:
                meeting.gates.remove(gate)
        if wakes:
            gate.release()
        return made.future

    def wait_here(self, timeout: float) -> bool:
        """Wait as `Task._wait_here` does, and meanwhile make the calls that come."""
        deadline = time.monotonic() + timeout
        meeting = self._task._meet()
        # A new gate for each wait: the gate of an interrupted wait is still among those that the outcome releases.
        self._gate = gate = threading.Lock()
        gate.acquire()
        while True:
            with meeting.lock:
                waits_for_gate = not self._calls
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
        if _is_parents(self._task):
            return
        with self._task._meet().lock:
            self._over = True
        self._make_calls()

    def _make_calls(self) -> None:
        while self._calls:
            call = self._calls.popleft()
            with waits.paused():
                call.run()
            del call
            self._task._check_process()


def _is_parents(task: Task[Any]) -> bool:
    """Tell whether this process is a child that was forked while *task* was waited for, and that left the wait by an exception."""
    fork.notice_fork()
    return task._owner.foreign


_waiting: ContextVar[Waiting] = ContextVar("omniloop_waiting")


def is_in_the_way(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Tell whether asgiref takes part in the calling code: another thread makes its calls, or this one does for another loop."""
    sync = _sync()
    return (
        asyncio._get_running_loop() is not None
        or _waits_here(sync, loop)
        or sync.SyncToAsync.thread_sensitive_context.get(None) is not None
        or getattr(sync.AsyncToSync.executors, "current", None) is not None
    )


def _waits_here(sync: Any, loop: asyncio.AbstractEventLoop | None) -> bool:
    """Tell whether another loop waits for this thread, which is making a call of `sync_to_async` for it."""
    # The loop of the last call that was made in this thread, if there was one.
    other: Any = getattr(sync.SyncToAsync.threadlocal, "main_event_loop", None)
    return other is not None and other is not loop and other.is_running()


def context_for(ident: int | None, caller: Caller | None = None) -> Context:
    """Return a copy of the calling context for work in the thread *ident*; its sync code goes to *caller*, if given."""
    context = copy_context()
    if caller is not None:
        context.run(setattr, _sync().AsyncToSync.executors, "current", caller)
    context.run(bring_along, ident)
    return context


@contextmanager
def cancelled_with_the_caller(task: object) -> Iterator[None]:
    """If the `sync_to_async` that called this sync code is cancelled, have *task* asked to end, and its clean-up awaited."""
    # asgiref cancels and awaits the tasks in this list, on the caller's loop; a handle can be awaited on any loop.
    tasks = getattr(_sync().SyncToAsync.threadlocal, "task_context", None)
    if tasks is None:
        yield
        return
    tasks.append(task)
    try:
        yield
    finally:
        tasks.remove(task)


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
        life = _serving(runtime)
        if life is None or _sync() is None:
            # The core refuses the work and says why; or another thread is in the middle of loading asgiref.
            return runtime._run_task(runtime._make_task(coro, None, None, frame), timeout)
        pool, loop, ident = life.workers, life.loop, life.ident
    except BaseException:
        close_unstarted(coro)
        raise
    if loop is not None:
        # asgiref may have been loaded after the loop was made.
        serve(loop, pool)
    if not is_in_the_way(loop):
        waiting = Waiting()
        task = waiting.begin(runtime._make_task(coro, None, waiting.context(ident), frame))
        try:
            return runtime._run_task(task, timeout, waiting.wait_here)
        finally:
            waiting.end()
    # Django's sync code refuses to run in a thread where a loop runs; there the thread of the process makes the calls.
    caller = None if asyncio._get_running_loop() is not None else Caller(pool)
    task = runtime._make_task(coro, None, context_for(ident, caller), frame)
    if caller is not None:
        caller.begin(task)
    try:
        with cancelled_with_the_caller(task):
            return runtime._run_task(task, timeout, None if caller is None else caller.wait_here)
    finally:
        if caller is not None:
            caller.end()


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


def _is_of_asgiref() -> bool:
    """Tell whether the calling thread has made calls of `sync_to_async`. A long wait of any other thread needs no look."""
    sync = _sync()
    return sync is not None and hasattr(sync.SyncToAsync.threadlocal, "main_event_loop")


def _why_endless(ident: int | None, task: Task[Any]) -> str | None:
    work = task._work
    if isinstance(work, asyncio.Task) and _waits_for_this_thread(work.get_coro()):
        return (
            "would never end: it waits in sync_to_async() for a call that asgiref makes in this very thread. Wait with run(), which makes "
            "such calls meanwhile; or, in Django, use omniloop.ext.django.database() in the work."
        )
    return None


waits.look_in_long_waits(_is_of_asgiref, _why_endless)


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
        return executor._thread == threading.get_ident() and executor._in_call
    # The thread of asgiref's own executor, or the only thread of a standard one.
    threads = {getattr(executor, "_work_thread", None)} | threads_of(executor)
    return threads - {None} == {threading.current_thread()}
