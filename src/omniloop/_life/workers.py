"""
Daemon threads for blocking functions: they serve until the interpreter ends, and do not starve when workers wait for workers.

What is guaranteed. A job that was put is called, unless the pool is stopped first, on every version and up to the last exit hook. For that
the first worker is started together with the loop, because 3.12 starts no thread once main has ended.

A worker that waits for a runtime does not count against the size of the pool: another takes its place. Without that, workers that call a
sync library over an async client would block the look-up of a host name, which needs a worker too. At most `max_waiting_workers` are
replaced; beyond that, queued jobs stand still until a wait ends. Calls that the loop asks of its executor are served even then, by one
further worker, which does nothing else and ends when nothing is asked. A wait is an error only if jobs stand still, every worker waits, and
nothing that they wait for could ever end: see `why_endless`.

Which thread may do what. Any thread may put a job, and never waits for a lock. The number of idle workers is the length of a deque, in
which each idle worker has an entry of its own. Any thread may start a worker. If several do so at once, there may be one too many: a worker
makes no call before it has seen that it has a place. The loop's calls are in `_asked`, and each has a job in the queue that takes the oldest
of them; that job or the further worker takes it, whichever comes first.

What was tried. The threads of `ThreadPoolExecutor` itself: they are joined, and its queue is shut, before the first `atexit` handler runs,
so that a drain in which any task looks up a host name failed. A pool without replacements: four of six look-ups timed out. Replacements
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
from itertools import count
from queue import Empty, SimpleQueue
from threading import Lock
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .. import _cpython
from .._arguments import name_of, not_plain
from .._errors import CannotStartError, can_be_thrown
from .._process.exit import end_orphan
from .._process.fork import forget_after_fork
from .._threads import join, new_thread, time, why_no_thread
from .._work.leftovers import chain_of, rank_of
from .._work.task import SUCCEEDED, Task, traceback_without
from .thread import LoopThread

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import ThreadPoolExecutor

    from .._work.ledger import Ledger
else:
    try:
        from concurrent.futures.thread import ThreadPoolExecutor
    except RuntimeError:
        # "can't register atexit after shutdown": main has ended, and a thread that outlives it is the first to import that module.
        ThreadPoolExecutor = Executor

P = ParamSpec("P")
T = TypeVar("T")

# A job may return a function, which the worker calls once it refers to nothing of the job any more.
Job = Callable[[], Callable[[], None] | None]


class ThreadWork:
    """The call that a worker makes for a task of `to_thread`. One thread alone can claim it: the worker, or the one that ends the task."""

    __slots__ = ("__name__", "__qualname__", "_over", "_ticket", "call", "ident", "pool")

    def __init__(self, fn: object, call: Callable[[], Any]) -> None:
        self.__name__ = self.__qualname__ = name_of(fn)
        self.call = call
        # The ident of the thread that makes the call, once it does.
        self.ident: int | None = None
        # Acquired by the thread that claims the call, and never released.
        self._ticket = Lock()
        # The pool that makes the call; and, if the loop waits for that, the future to resolve once the worker has let go of it.
        self.pool: Workers | None = None
        self._over: asyncio.Future[None] | None = None

    def claim(self) -> bool:
        return self._ticket.acquire(False)

    def cancel(self, task: Task[Any], args: tuple[object, ...]) -> bool:
        """End *task* as cancelled; False if the call was claimed already."""
        if not self.claim():
            return False
        self.let_go()
        task._end_cancelled(args)
        return True

    def make(self, held: list[Task[Any]]) -> Callable[[], None]:
        """Make the call. Returns a function to call once no frame refers to the task any more."""
        task = held[0]
        over = partial(self._end, held)
        if not self.claim() or task._outcome() is not None:
            return over
        task._since = time.monotonic()
        self.ident = threading.get_ident()
        try:
            # A task that is not done has a context.
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
            # The frames of the error refer to this frame, as their caller. With these variables the task would live until a garbage
            # collection.
            del task, self, held
        return over

    def _end(self, held: list[Task[Any]]) -> None:
        # If nobody holds the handle, these are the last references: the failure is then put aside for the report before a flush learns that
        # the call is over.
        held.clear()
        self.let_go()

    def let_go(self) -> None:
        """Note that the call is over, or that nobody makes it."""
        if (pool := self.pool) is not None:
            pool.ledger.in_threads.pop(self, None)
            # After the pop. The loop makes the future before it looks: so either the future is seen here, or the loop sees that this call
            # is gone.
            if self._over is not None:
                with suppress(RuntimeError):
                    # The loop is closed, and nothing waits there.
                    pool.thread.post(resolve, self._over)

    def over(self, ledger: Ledger) -> asyncio.Future[None] | None:
        """Return a future that is done when the worker has let go of the call; None if it has already. For the loop's thread."""
        if self._over is None:
            self._over = ledger.loop.create_future()
        return self._over if self in ledger.in_threads else None


def resolve(waiter: asyncio.Future[None]) -> None:
    """Resolve the waiter if it is still pending. For its loop."""
    if not waiter.done():
        waiter.set_result(None)


class Workers(ThreadPoolExecutor):
    """
    The pool of a runtime, and its loop's default executor.

    asyncio insists on a `ThreadPoolExecutor`. None of that class's threads or queues are used, because they are shut before the first
    `atexit` handler runs.
    """

    # The thread and the ledger of the life that has this pool.
    thread: LoopThread
    ledger: Ledger

    def __init__(self, name: str) -> None:
        # How many may make calls at once; and how many that wait for a runtime are replaced. None means no bound, and no further worker
        # for what the loop asks. Set before the first start.
        self.size = 1
        self.most_waiting: int | None = None
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # An entry for each idle worker, which adds and removes it itself, so that submitting takes no lock.
        self._idle: deque[None] = deque()
        self._staff: set[threading.Thread] = set()
        # Those that have not seen yet that they have a place: they make nothing but the loop's calls.
        self._placeless: set[threading.Thread] = set()
        self._numbers = count(1)
        # Held by a worker that looks whether it is one too many.
        self._leaving = Lock()
        # The loop's calls, the oldest first.
        self._asked: deque[Job] = deque()
        # The workers that wait for a runtime, by ident, each with the task that it waits for, or None if that is unknown.
        self._blocked: dict[int, Task[Any] | None] = {}
        self.closed = False
        # While workers are told to end, the length of the queue does not say how many are needed.
        self._stopping = False

    # --- taking work ----------------------------------------------------------------------------------------------

    def put(self, job: Job) -> None:
        """
        Have a worker call *job*, which must not raise. From any thread.

        CannotStartError if there is no worker and none can be started.
        """
        self._jobs.put(job)
        if self._jobs.qsize() > len(self._idle):
            try:
                self._grow()
            except RuntimeError as error:
                raise CannotStartError(f"omniloop can't start a worker thread here: {why_no_thread(error)}") from error

    def make(self, task: Task[Any], call: ThreadWork) -> bool:
        """Have a worker make the *call* of a task; False if this pool's life has ended."""
        call.pool = self
        inbox, in_threads = self.ledger.inbox, self.ledger.in_threads
        try:
            in_threads[call] = task
            # After the entry was added: closing first sets the mark and then fails what it finds here. If it has found this call, the
            # ticket decides.
            if inbox.closed:
                in_threads.pop(call, None)
                # If the closing thread has the ticket, it fails the task, which counts as accepted; otherwise the next life gets the task.
                return not call.claim()
            if not self.thread.runs:
                # After a fork while idle. When main has ended, 3.12 starts no thread, and the drain needs the loop's.
                inbox.wake_reader()
            self.put(partial(call.make, [task]))
        except BaseException:
            if call.claim():
                call.let_go()
            raise
        task._owner.tally.count(*(("aside", "marked") if rank_of(task) else ("aside",)))
        return True

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run *fn* in a worker, for asyncio's `run_in_executor` and `asyncio.to_thread`."""
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
                # In a child that *fn* has forked, the waiters are the parent's, and must not be woken.
                if os.getpid() == pid:
                    future.set_result(result)

        # For `_may_end`.
        future.pool = self  # type: ignore[attr-defined]
        self._asked.append(job)
        try:
            self.put(self._take_asked)
        except BaseException:
            # A refused call must not be made by a worker that starts later. If a worker already has it, it is not refused.
            if future.cancel():
                raise
        return future

    def serve(self, loop: AbstractEventLoop) -> None:
        """Become the default executor of *loop*."""
        try:
            loop.set_default_executor(self)
        except RuntimeError:
            # The loop can't load the class that it checks for; see the import above.
            _cpython.set_default_executor(loop, self)

    def _take_asked(self) -> None:
        """Make the oldest call that the loop asked for, if any is left."""
        try:
            job = self._asked.popleft()
        except IndexError:
            return
        job()

    def start_one(self) -> None:
        """Start the first worker. It serves at the interpreter's end too, when 3.12 starts no more threads."""
        if not self._staff:
            self._grow()

    def catch_up(self) -> None:
        """Start workers for what was put before the pool had its size, or when a start that failed had ended them."""
        for _ in range(self._jobs.qsize()):
            self._grow()

    # --- waiting workers ------------------------------------------------------------------------------------------

    def is_worker(self) -> bool:
        """Tell whether the calling thread is one of this pool's."""
        return pools.get(threading.get_ident()) is self

    def begin_wait(self, task: Task[Any] | None) -> bool:
        """
        Note that the calling worker is about to wait for *task* (None: unknown), and let another take its place.

        Returns False if jobs are queued, no worker is left for them, and no thread can be started.
        """
        self._blocked[threading.get_ident()] = task
        try:
            if len(self._staff) <= len(self._blocked) or not self._jobs.empty():
                self._grow()
        except RuntimeError:
            # "can't start new thread": the interpreter ends, or the system's limit is reached.
            return self._jobs.empty()
        return True

    def end_wait(self) -> None:
        """Note that the wait is over. If the place was taken meanwhile, one surplus worker ends as soon as it is idle."""
        self._blocked.pop(threading.get_ident(), None)

    def _stands(self) -> bool:
        """Tell whether jobs are queued, all workers wait, and no further worker can be started."""
        if self._jobs.empty() or len(self._blocked) < len(self._staff):
            return False
        # In case an earlier start failed only for the moment.
        with suppress(RuntimeError):
            self._grow()
        return len(self._blocked) >= len(self._staff)

    def _may_end(self, waited_for: Task[Any]) -> bool:
        """Tell whether anything could still end *waited_for*, given that this pool's queue stands still."""
        # What is in this queue stands too, or in a worker that waits for something else and is checked itself.
        return any(not parts and getattr(end, "pool", None) is not self for end, parts in chain_of([waited_for]))

    # --- ending ---------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further work. The threads end with their current work; only the runtime waits for that, with a deadline."""
        self.closed = True

    def stop(self, timeout: float) -> list[threading.Thread]:
        """End the workers and join them, *timeout* seconds at most; return those that are still busy."""
        self.closed = True
        return self._end_threads(timeout)

    def park(self, timeout: float) -> None:
        """End the workers before a fork. They start again on the next use, and nothing is refused."""
        try:
            self._end_threads(timeout)
        finally:
            self._stopping = False
            # A leftover end marker would end a worker of the next generation.
            for _ in range(self._jobs.qsize()):
                with suppress(Empty):
                    if (job := self._jobs.get_nowait()) is not None:
                        self._jobs.put(job)

    def counts(self) -> dict[str, int]:
        """Return the numbers of workers: present, allowed, idle, waiting for the runtime; and of queued jobs. A snapshot."""
        return {
            "workers": len(self._staff),
            "most": self.size,
            "idle": len(self._idle),
            "waiting_for_the_runtime": len(self._blocked),
            "jobs": self._jobs.qsize(),
        }

    def _end_threads(self, timeout: float) -> list[threading.Thread]:
        self._stopping = True
        self._jobs.put(None)
        deadline = time.monotonic() + timeout
        return [thread for thread in list(self._staff) if not join(thread, deadline - time.monotonic())]

    # --- threads --------------------------------------------------------------------------------------------------

    def _grow_if_asked(self) -> None:
        if self._asked and not self._stopping:
            with suppress(RuntimeError):
                self._grow()

    def _grow(self) -> None:
        """Start a worker, if there is room. If other threads do so at once, a worker that is one too many ends."""
        places = self._places()
        # One more while the loop asks for something.
        if len(self._staff) >= places and (not self._asked or self.most_waiting is None or self._placeless):
            return
        thread = new_thread(self._serve, f"{self._name}-worker-{next(self._numbers)}")
        try:
            self._staff.add(thread)
            self._placeless.add(thread)
            thread.start()
        except BaseException as error:
            if thread.ident is None:
                self._staff.discard(thread)
                self._placeless.discard(thread)
            # "can't start new thread", at the interpreter's end. If a worker is free it will get to the job.
            if not isinstance(error, RuntimeError) or len(self._staff) <= len(self._blocked):
                raise

    def _places(self) -> int:
        """Return how many workers may make calls, or wait."""
        blocked = len(self._blocked)
        return self.size + (blocked if self.most_waiting is None else min(blocked, self.most_waiting))

    def _leaves(self) -> bool:
        """Tell whether the calling worker is one too many and ends: the place of one that waited was taken meanwhile, or two began at once."""
        me = threading.current_thread()
        with self._leaving:
            if len(self._staff) <= self._places():
                return False
            # First out, and then the look: whoever comes second of this one and of a worker that begins to wait, which looks whether
            # another is left, sees the other.
            self._staff.discard(me)
            if len(self._staff) >= self._places():
                return True
            self._staff.add(me)
            return False

    def _serve(self) -> None:
        jobs = self._jobs
        pid = os.getpid()
        me = threading.current_thread()
        # Again, in case the start was interrupted.
        self._staff.add(me)
        self._placeless.add(me)
        pools[threading.get_ident()] = self
        try:
            while True:
                if me in self._placeless and self._asked and len(self._staff) > self._places():
                    # Without a place of its own it makes only the loop's calls.
                    job: Job | None = self._take_asked
                elif me in self._placeless and self._leaves():
                    return
                else:
                    if me in self._placeless:
                        self._placeless.discard(me)
                        self._grow_if_asked()
                    try:
                        job = jobs.get_nowait()
                    except Empty:
                        if self._stopping or self._leaves():
                            return
                        self._idle.append(None)
                        job = jobs.get()
                        self._idle.pop()
                        if not self._stopping and jobs.qsize() > len(self._idle):
                            # A thread that put a job just before this relied on this worker being idle.
                            self._grow()
                if job is None:
                    # Passed on to the next worker: after an interrupted start their number is not known.
                    jobs.put(None)
                    return
                over = job()
                if os.getpid() != pid:
                    # The job has forked, and this is the child, which has returned from it: no other thread is here to end it.
                    end_orphan()
                # So that what the job refers to does not live until the next job comes.
                del job
                if over is not None:
                    over()
                    del over
        finally:
            del pools[threading.get_ident()]
            self._staff.discard(me)
            self._placeless.discard(me)
            # What the loop asked for just before this relied on this worker.
            self._grow_if_asked()


# The pool of each worker, by the thread's ident. For the whole process, because a worker of one runtime may wait for another.
pools: dict[int, Workers] = {}


def why_endless(ident: int | None, task: Task[Any]) -> str | None:
    """
    Return the reason if this worker's wait for *task* can never end, because all workers of its pool wait for work that needs one of them.

    Only the worker that began to wait last gets it, and the next one if that does not help: an error for each would be more than needed.
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
        # "deque mutated during iteration": something still moves.
        return None
    return (
        f"would never end: all {len(blocked)} worker threads of {pool._name!r} wait, for work that waits for a worker thread, and no other "
        "is started. Raise max_workers or max_waiting_workers, by configure(); or await such work instead of waiting for it in a worker."
    )


# In a forked child only the forking thread is left, and it is no worker.
forget_after_fork(pools.clear)
