"""
Daemon threads for blocking functions, that still serve while the interpreter ends, and are not starved by their own waits.

What is guaranteed. What was put is called, unless the pool is stopped before, on every version and up to the last exit hook: the first worker
is started together with the loop, because 3.12 starts no thread once main has ended. A worker that waits for a runtime does not count
against the size of its pool: another one takes its place, so that a sync library over an async client, called in a worker, does not keep the
look-up of a host name, which needs a worker too, from running. So many are replaced at the most; then the queue stands until a wait ends.
What the loop asks of its executor is served also then, by one worker more, which does nothing else and ends when nothing is asked. A wait
is an error only where the queue stands, every worker waits, and none of what they wait for could ever end: see `why_endless`.

Who may touch what. Any thread may put, and no lock is waited for. How many workers are idle is the length of a deque, to which each adds
and removes its own entry. Threads are started by one thread at a time (`thread.Starter`); who finds one at it leaves a wish in `_wanted`, and
the one that starts looks again afterwards. What the loop asks is in `_asked`, and a job in the queue says so: the
first to come, that job or the worker that is kept for it, takes it.

What was tried. The threads of `ThreadPoolExecutor` itself: they are joined, and its queue is shut, before the first `atexit` handler runs, so
that a drain in which any task looks up a host name failed. A pool without replacements: four of six look-ups timed out. Replacements
without a bound: 1,007 threads for four. An error at the bound: 264 of 300 calls failed that a pool without replacements gets done.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .. import _cpython
from .._arguments import name_of, not_plain
from .._clock import join, time
from .._errors import CannotStartError, can_be_thrown
from .._process.fork import forget_after_fork
from .._process.threads import new_thread, why_no_thread
from .._work.leftovers import rank_of
from .._work.task import DAEMON, SUCCEEDED, Task, traceback_without
from .thread import LoopThread, Starter

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import ThreadPoolExecutor

    from .._work.ledger import Ledger
else:
    try:
        from concurrent.futures.thread import ThreadPoolExecutor
    except RuntimeError:
        # "can't register atexit after shutdown": main has ended, and a thread that outlives it is the first to load it.
        ThreadPoolExecutor = Executor

P = ParamSpec("P")
T = TypeVar("T")

# What it returns, if anything, is called when nothing of the job is referred to any more.
Job = Callable[[], Callable[[], None] | None]


class ThreadWork:
    """The call that a worker is to make for a task of `to_thread`: whoever claims it first, the worker or who ends it, has it."""

    __slots__ = ("__name__", "__qualname__", "_over", "_ticket", "call", "ident", "pool")

    def __init__(self, fn: object, call: Callable[[], Any]) -> None:
        self.__name__ = self.__qualname__ = name_of(fn)
        self.call = call
        # Of the thread that makes the call, once it does.
        self.ident: int | None = None
        # Taken by whoever claims it.
        self._ticket = Lock()
        # Of the worker that is to make it. And what is resolved when that has let go of it, if the loop waits for that.
        self.pool: Workers | None = None
        self._over: asyncio.Future[None] | None = None

    def claim(self) -> bool:
        return self._ticket.acquire(False)

    def cancel(self, task: Task[Any], args: tuple[object, ...]) -> bool:
        """End *task* as cancelled, unless the call is made; False then."""
        if not self.claim():
            return False
        self.let_go()
        task._end_cancelled(args)
        return True

    def make(self, held: list[Task[Any]]) -> Callable[[], None]:
        """Make the call; what is returned is to be called when no frame refers to the task any more."""
        task = held[0]
        over = partial(self._end, held)
        if not self.claim() or task._outcome() is not None:
            return over
        task._since = time.monotonic()
        self.ident = threading.get_ident()
        try:
            # What is not done has a context.
            value = task._context.run(self.call)  # type: ignore[union-attr]
            if type(value) is CoroutineType:
                value.close()
                raise not_plain("to_thread", self.__name__)
        except BaseException as error:
            error.__traceback__ = traceback_without(error, 1)
            task._fail(error)
        else:
            task._settle(SUCCEEDED, value)
        finally:
            # The error's frames refer to this one, as their caller; left here, the task would live until a garbage collection.
            del task, self, held
        return over

    def _end(self, held: list[Task[Any]]) -> None:
        # The last references, if nobody holds the handle: a failure is put aside for the report before a flush hears that the
        # call is over.
        held.clear()
        self.let_go()

    def let_go(self) -> None:
        """Nobody makes the call, or it is over."""
        if (pool := self.pool) is not None:
            pool.ledger.in_threads.pop(self, None)
            # After that: either the future is seen here, or who made it sees that this is gone.
            if self._over is not None:
                with suppress(RuntimeError):
                    # The loop is closed: nobody waits there.
                    pool.thread.post(resolve, self._over)

    def over(self, ledger: Ledger) -> asyncio.Future[None] | None:
        """A future that is done when the worker has let go of this; None if it has. For the loop."""
        if self._over is None:
            self._over = ledger.loop.create_future()
        return self._over if self in ledger.in_threads else None


def resolve(waiter: asyncio.Future[None]) -> None:
    """Resolve the waiter if it is still pending. For its loop."""
    if not waiter.done():
        waiter.set_result(None)


class Workers(ThreadPoolExecutor):
    """
    The pool of a runtime, and its loop's default executor. asyncio insists on a `ThreadPoolExecutor`; none of that class's
    threads or queues are used, because they are shut before the first `atexit` handler runs.
    """

    # Of the life whose pool it is.
    thread: LoopThread
    ledger: Ledger

    def __init__(self, size: int, name: str, on_orphaned: Callable[[], None], most_waiting: int | None = None) -> None:
        """*most_waiting* that wait for a runtime are replaced; None is without a bound, and none is kept for what a loop asks."""
        self._size = size
        self._most_waiting = most_waiting
        self._name = name
        self._on_orphaned = on_orphaned
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # An entry for each worker that waits for a job, made and removed by itself; so that submitting takes no lock.
        self._idle: deque[None] = deque()
        self._staff: set[threading.Thread] = set()
        # One for each job that found nobody free.
        self._wanted: deque[None] = deque()
        self._starter = Starter()
        # What the loop asks, oldest first; and the one worker that is kept for that, where all others have something to do.
        self._asked: deque[Job] = deque()
        self._kept: set[threading.Thread] = set()
        # What the loop asks and is not done, a worker may be at it.
        self._unanswered: set[Future[Any]] = set()
        # The workers that wait for a runtime, by ident, with the task that they wait for; None where that can't be told.
        self._blocked: dict[int, Task[Any] | None] = {}
        self._count = 0
        self.closed = False
        # While workers are told to end, what is in the queue says nothing about how many are needed.
        self._stopping = False

    # --- taking work ----------------------------------------------------------------------------------------------

    def put(self, job: Job) -> None:
        """Have a worker call *job*, which must not raise. From any thread. CannotStartError if there is none, and no thread can be started."""
        self._jobs.put(job)
        if self._jobs.qsize() > len(self._idle):
            try:
                self._grow()
            except RuntimeError as error:
                raise CannotStartError(f"omniloop can't start a worker thread here: {why_no_thread(error)}") from error

    def make(self, task: Task[Any], call: ThreadWork) -> bool:
        """Have a worker make the *call* of a task; False if the life whose pool this is has ended."""
        call.pool = self
        inbox, in_threads = self.ledger.inbox, self.ledger.in_threads
        try:
            in_threads[call] = task
            # After the adding: closing sets the mark first, and then looks whether anything is here. If it has looked already, it
            # fails what it found: who has the ticket decides.
            if inbox.closed:
                in_threads.pop(call, None)
                # Without the ticket it is the closing thread's to fail, and counts as accepted; with it, the next life gets the task.
                return not call.claim()
            if self.thread.ident is None:
                # After an idle fork. When main has ended 3.12 starts no thread, and the drain needs the loop's.
                inbox.wake_reader()
            self.put(partial(call.make, [task]))
        except BaseException:
            if call.claim():
                call.let_go()
            raise
        task._owner.tally.count(*(("aside", "marked") if rank_of(task) else ("aside",)))
        return True

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """What asyncio's `run_in_executor` and `asyncio.to_thread` call."""
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown of the runtime")
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            pid = os.getpid()
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                if os.getpid() == pid:
                    future.set_exception(can_be_thrown(error, "The call"))
            else:
                # In a child that was forked in there, whoever waits is the parent's, and would be woken there.
                if os.getpid() == pid:
                    future.set_result(result)

        self._unanswered.add(future)
        future.add_done_callback(self._unanswered.discard)
        self._asked.append(job)
        try:
            self.put(self._take_asked)
        except BaseException:
            # Refused, it must not be called by a worker that is started later; unless one has it already.
            if future.cancel():
                raise
        return future

    def serve(self, loop: AbstractEventLoop) -> None:
        """Become the default executor of *loop*."""
        try:
            loop.set_default_executor(self)
        except RuntimeError:
            # It could not load the class that it looks for either; see above.
            _cpython.set_default_executor(loop, self)

    def _take_asked(self) -> None:
        """Make the oldest call that the loop asked for, if it is not made yet."""
        try:
            job = self._asked.popleft()
        except IndexError:
            return
        job()

    def start_one(self) -> None:
        """Start the first worker; at the interpreter's end 3.12 starts no thread any more, and this one serves."""
        if not self._staff:
            self._start(self._serve, self._staff)

    # --- waiting workers ------------------------------------------------------------------------------------------

    def is_worker(self) -> bool:
        """Tell whether the calling thread is one of this pool's."""
        return pools.get(threading.get_ident()) is self

    def begin_wait(self, task: Task[Any] | None) -> bool:
        """
        The calling worker is about to wait for *task*, or for whom knows what: another may take its place.

        Returns False where something stands in the queue, no worker is left for it, and no thread can be started.
        """
        self._blocked[threading.get_ident()] = task
        me = threading.current_thread()
        if me in self._kept and self._has_room():
            # One of those that wait, like any other: the next one may be kept.
            self._staff.add(me)
            self._kept.discard(me)
        try:
            if len(self._staff) <= len(self._blocked) or not self._jobs.empty():
                self._grow()
        except RuntimeError:
            # "can't start new thread": the interpreter ends, or the limit of the system is reached.
            return self._jobs.empty()
        return True

    def end_wait(self) -> None:
        """The wait is over; if the place was taken meanwhile, one worker too many ends when it has nothing to do."""
        self._blocked.pop(threading.get_ident(), None)

    def _stands(self) -> bool:
        """Tell whether all workers wait, and what is in the queue stands until a wait ends; no other worker can be started."""
        if self._jobs.empty() or len(self._blocked) < len(self._all()):
            return False
        # Should a start have failed for the moment.
        with suppress(RuntimeError):
            self._grow()
        return len(self._blocked) >= len(self._all())

    def _may_end(self, waited_for: Task[Any]) -> bool:
        """Tell whether anything is left that could end *waited_for*, where this pool stands."""
        standing = self._futures_of_asked()
        seen: set[int] = set()
        found: list[Any] = [waited_for]
        while found:
            it = found.pop()
            if id(it) in seen:
                continue
            seen.add(id(it))
            if isinstance(it, Task):
                work = it._work
                if isinstance(work, asyncio.Task):
                    found.append(work)
                elif not isinstance(work, ThreadWork) or it._kind is DAEMON or work.pool is not self:
                    # It is done, or not started, or on the loop, or in a thread of its own. Else it stands in this queue; or in a
                    # worker, which waits for something else, and is looked at itself.
                    return True
                continue
            future = _cpython.waiter_of(it)
            if future is None:
                # It runs, or is about to.
                return True
            if id(future) in standing:
                continue
            next_ones = (
                [future]
                if isinstance(future, asyncio.Task)
                # `gather`, and the bridge to a task of a runtime.
                else _cpython.gathered(future) or [getattr(future, "_task", None)]
            )
            known = [each for each in next_ones if isinstance(each, (asyncio.Task, Task))]
            if len(known) < len(next_ones):
                return True
            found += [each for each in known if not each.done()]
        return False

    def _futures_of_asked(self) -> set[int]:
        """The asyncio futures, by id, of what the loop has asked: `asyncio.wrap_future` has told the pool's which is whose."""
        found: set[int] = set()
        for future in list(self._unanswered):
            for callback in _cpython.done_callbacks_of(future):
                for cell in getattr(callback, "__closure__", None) or ():
                    if isinstance(cell.cell_contents, asyncio.Future):
                        found.add(id(cell.cell_contents))
        return found

    # --- ending ---------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further work. The threads end when their work does; only the runtime waits for that, with a deadline."""
        self.closed = True

    def stop(self, timeout: float) -> list[threading.Thread]:
        """End the workers and join them, *timeout* seconds at the most; returns those that are still busy."""
        self.closed = True
        return self._end_threads(timeout)

    def park(self, timeout: float) -> None:
        """End the workers before a fork. They come back on the next use; nothing is refused."""
        self._end_threads(timeout)
        self._stopping = False
        # What nobody was left to take would end workers of the next generation.
        for _ in range(self._jobs.qsize()):
            with suppress(Empty):
                if (job := self._jobs.get_nowait()) is not None:
                    self._jobs.put(job)

    def counts(self) -> dict[str, int]:
        """How many workers there are, may be, have nothing to do, and wait for the runtime; and the jobs that wait. For a look."""
        return {
            "workers": len(self._all()),
            "most": self._size,
            "idle": len(self._idle),
            "waiting_for_the_runtime": len(self._blocked),
            "jobs": self._jobs.qsize(),
        }

    def idents(self) -> list[int | None]:
        """The system's ids of the living workers."""
        return [thread.native_id for thread in self._all()]

    def _all(self) -> list[threading.Thread]:
        return [*list(self._staff), *list(self._kept)]

    def _end_threads(self, timeout: float) -> list[threading.Thread]:
        self._stopping = True
        self._jobs.put(None)
        deadline = time.monotonic() + timeout
        left = []
        for thread in self._all():
            # In the middle of its start, by another thread, it ends when it finds nothing to do.
            with suppress(RuntimeError):
                if thread is not threading.current_thread() and not join(thread, deadline - time.monotonic()):
                    left.append(thread)
        return left

    # --- threads --------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """Start a worker, if there is room."""
        self._wanted.append(None)
        while self._wanted and self._starter.start(self._start_wanted):
            pass

    def _start_wanted(self) -> None:
        try:
            self._wanted.pop()
            if self._has_room():
                self._start(self._serve, self._staff)
            elif self._asked and not self._kept and self._most_waiting is not None:
                self._start(self._serve_asked, self._kept)
        except IndexError:
            # Another thread was served in between.
            pass
        except RuntimeError:
            # "can't start new thread", at the interpreter's end: those that are there will come to it.
            if len(self._staff) <= len(self._blocked):
                raise

    def _has_room(self) -> bool:
        blocked = len(self._blocked)
        return len(self._staff) < self._size + (
            blocked if self._most_waiting is None else min(blocked, self._most_waiting)
        )

    def _start(self, serve: Callable[[], None], among: set[threading.Thread]) -> None:
        self._count += 1
        thread = new_thread(serve, f"{self._name}-worker-{self._count}")
        try:
            among.add(thread)
            thread.start()
        except BaseException:
            if thread.ident is None:
                among.discard(thread)
            raise

    def _serve_asked(self) -> None:
        """Do what the loop asks, and nothing else, until nothing is asked."""
        me, pid = threading.current_thread(), os.getpid()
        pools[threading.get_ident()] = self
        try:
            # Not any more, if a wait made it one of the others.
            while me in self._kept and self._asked:
                self._take_asked()
                if os.getpid() != pid:
                    self._on_orphaned()
        finally:
            del pools[threading.get_ident()]
            self._staff.discard(me)
            self._kept.discard(me)
            # Who asked just before this counted on it.
            if self._asked and not self._stopping:
                with suppress(RuntimeError):
                    self._grow()

    def _serve(self) -> None:
        jobs = self._jobs
        pid = os.getpid()
        # Again, should the start have been interrupted.
        self._staff.add(threading.current_thread())
        pools[threading.get_ident()] = self
        try:
            while True:
                try:
                    job = jobs.get_nowait()
                except Empty:
                    if self._stopping or len(self._staff) - len(self._blocked) > self._size:
                        return
                    self._idle.append(None)
                    job = jobs.get()
                    self._idle.pop()
                    if not self._stopping and jobs.qsize() > len(self._idle):
                        # Who put a job just before this counted on this worker, as one that waits.
                        self._grow()
                if job is None:
                    # For the next one: how many there are is not known, if a start was interrupted.
                    jobs.put(None)
                    return
                over = job()
                if os.getpid() != pid:
                    # The child of a fork that was made inside the job, and came back from it: nobody else is here to end it.
                    self._on_orphaned()
                # What the job refers to must not live until the next one comes.
                del job
                if over is not None:
                    over()
                    del over
        finally:
            del pools[threading.get_ident()]
            self._staff.discard(threading.current_thread())


# Whose worker a thread is, by its ident. Of the whole process, because a worker of one runtime may wait for another.
pools: dict[int, Workers] = {}


def is_waiting_worker() -> bool:
    """Tell whether the calling thread is a worker, of any pool."""
    return threading.get_ident() in pools


def why_endless(ident: int | None, task: Task[Any]) -> str | None:
    """
    Whether the wait of this worker for *task* could never end: all of its pool's workers wait for what needs one of them.

    Said to the one that began to wait last, and to the next if that does not help: an error for each would be more than it takes.
    """
    pool = pools.get(threading.get_ident())
    if pool is None or not pool._stands():
        return None
    try:
        blocked = list(pool._blocked.items())
        if not blocked or blocked[-1][0] != threading.get_ident():
            return None
        if any(waited_for is None or pool._may_end(waited_for) for _, waited_for in blocked):
            return None
    except RuntimeError:
        # "deque mutated during iteration": something moves.
        return None
    return (
        f"would never end: all {len(blocked)} worker threads of {pool._name!r} wait, for work that waits for a worker thread, and no other "
        "is started. Raise max_workers or max_waiting_workers, by configure(); or await such work instead of waiting for it in a worker."
    )


# In a forked child only the forking thread is left, and it is nobody's worker.
forget_after_fork(pools.clear)
