"""
Daemon threads for blocking functions, that still serve while the interpreter ends, and are not starved by their own waits.

What is guaranteed. What was put is called, unless the pool is stopped before, on every version and up to the last exit hook: the first worker
is started together with the loop, because 3.12 starts no thread once main has ended. A worker that waits for a runtime does not count
against the size of its pool: another one takes its place, so that a sync library over an async client, called in a worker, does not keep the
look-up of a host name, which needs a worker too, from running.

Who may touch what. Any thread may put, and no lock is waited for. How many workers are idle is the length of a deque, to which each adds
and removes its own entry. Threads are started by one thread at a time, told by identity as in `life`; who finds that taken leaves a wish in
`_wanted`, and the one that starts looks again after giving it back.

What was tried. The threads of `ThreadPoolExecutor` itself: they are joined, and its queue is shut, before the first `atexit` handler runs, so
that a drain in which any task looks up a host name failed. A pool without replacements: four of six look-ups timed out.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from .._process.fork import forget_after_fork
from .._process.hosts import new_thread

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import ThreadPoolExecutor
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


class Workers(ThreadPoolExecutor):
    """
    The pool of a runtime, and its loop's default executor. asyncio insists on a `ThreadPoolExecutor`; none of that class's
    threads or queues are used, because they are shut before the first `atexit` handler runs.
    """

    def __init__(self, size: int, name: str, on_orphaned: Callable[[], None]) -> None:
        self._size = size
        self._name = name
        self._on_orphaned = on_orphaned
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # An entry for each worker that waits for a job, made and removed by itself; so that submitting takes no lock.
        self._idle: deque[None] = deque()
        self._staff: set[threading.Thread] = set()
        # One for each job that found nobody free. Threads are started by one thread at a time.
        self._wanted: deque[None] = deque()
        self._starting: dict[str, object] = {}
        # Idents of the workers that wait for the runtime: they do not count against the size.
        self._blocked: set[int] = set()
        self._count = 0
        self.closed = False
        # While workers are told to end, what is in the queue says nothing about how many are needed.
        self._stopping = False

    # --- taking work ----------------------------------------------------------------------------------------------

    def put(self, job: Job) -> None:
        """Have a worker call *job*, which must not raise. From any thread."""
        self._jobs.put(job)
        if self._jobs.qsize() > len(self._idle):
            self._grow()

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
                    future.set_exception(error)
            else:
                # In a child that was forked in there, whoever waits is the parent's, and would be woken there.
                if os.getpid() == pid:
                    future.set_result(result)

        try:
            self.put(job)
        except BaseException:
            # No thread can be started. Refused, it must not be called by one that is started later; unless one has it already.
            if future.cancel():
                raise
        return future

    def serve(self, loop: AbstractEventLoop) -> None:
        """Become the default executor of *loop*."""
        try:
            loop.set_default_executor(self)
        except RuntimeError:
            # It could not load the class that it looks for either; see above. asyncio's own name, the same from 3.11 to 3.15.
            loop._default_executor = self  # type: ignore[attr-defined]

    def start_one(self) -> None:
        """Start the first worker; at the interpreter's end 3.12 starts no thread any more, and this one serves."""
        if not self._staff:
            self._start()

    # --- waiting workers ------------------------------------------------------------------------------------------

    def is_worker(self) -> bool:
        """Tell whether the calling thread is one of this pool's."""
        return _pools.get(threading.get_ident()) is self

    def _begin_wait(self) -> bool:
        ident = threading.get_ident()
        self._blocked.add(ident)
        try:
            if len(self._staff) <= len(self._blocked):
                self._start()
            elif not self._jobs.empty():
                self._grow()
        except RuntimeError:
            # "can't start new thread": the interpreter ends, or the limit of the system is reached.
            self._blocked.discard(ident)
            return False
        return True

    def _end_wait(self) -> None:
        self._blocked.discard(threading.get_ident())

    # --- ending ---------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further work. The threads end when their work does; only the runtime waits for that, with a deadline."""
        self.closed = True

    def stop(self, timeout: float) -> list[threading.Thread]:
        """End the workers and join them, *timeout* seconds at the most; returns those that are still busy."""
        self.closed = True
        return self._stop_all(timeout)

    def park(self, timeout: float) -> None:
        """End the workers before a fork. They come back on the next use; nothing is refused."""
        self._stop_all(timeout)
        # What nobody was left to take would end workers of the next generation.
        held: list[Job] = []
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is not None:
                held.append(job)
        self._stopping = False
        for job in held:
            self._jobs.put(job)

    def counts(self) -> dict[str, int]:
        """How many workers there are, may be, have nothing to do, and wait for the runtime; and the jobs that wait. For a look."""
        return {
            "workers": len(self._staff),
            "most": self._size,
            "idle": len(self._idle),
            "waiting_for_the_runtime": len(self._blocked),
            "jobs": self._jobs.qsize(),
        }

    def idents(self) -> list[int | None]:
        """The system's ids of the living workers."""
        return [thread.native_id for thread in list(self._staff)]

    def _stop_all(self, timeout: float) -> list[threading.Thread]:
        self._stopping = True
        self._jobs.put(None)
        return self._join(timeout)

    def _join(self, timeout: float) -> list[threading.Thread]:
        deadline = time.monotonic() + timeout
        left = []
        for thread in list(self._staff):
            if thread is threading.current_thread():
                continue
            try:
                thread.join(max(0.0, deadline - time.monotonic()))
            except RuntimeError:
                # In the middle of its start, by another thread; it ends when it finds nothing to do.
                continue
            if thread.is_alive():
                left.append(thread)
        return left

    # --- threads --------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """Start a worker, if there is room."""
        self._wanted.append(None)
        # Tried, not waited for (a signal handler may submit): who holds it looks again after giving it back.
        # And told by identity, because an interruption right after it took a common lock would leave that taken for ever.
        me = object()
        while self._wanted:
            try:
                if self._starting.setdefault("by", me) is not me:
                    return
                self._wanted.pop()
                if len(self._staff) - len(self._blocked) < self._size:
                    self._start()
            except IndexError:
                # Another thread was served in between.
                pass
            except RuntimeError:
                # "can't start new thread", at the interpreter's end: those that are there will come to it.
                if len(self._staff) <= len(self._blocked):
                    raise
            finally:
                # Without a call, after which a signal handler could raise: no other worker would ever be started.
                if self._starting == {"by": me}:
                    del self._starting["by"]

    def _start(self) -> None:
        self._count += 1
        thread = new_thread(self._serve, f"{self._name}-worker-{self._count}")
        try:
            self._staff.add(thread)
            thread.start()
        except BaseException:
            if thread.ident is None:
                self._staff.discard(thread)
            raise

    def _serve(self) -> None:
        jobs = self._jobs
        pid = os.getpid()
        # Again, should the start have been interrupted.
        self._staff.add(threading.current_thread())
        _pools[threading.get_ident()] = self
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
            del _pools[threading.get_ident()]
            self._staff.discard(threading.current_thread())


# Whose worker a thread is. Of the whole process, because a worker of one runtime may wait for another.
_pools: dict[int, Workers] = {}


def begin_wait() -> bool:
    """
    Called by a thread that is about to wait for a runtime: if it is a worker, another may take its place.

    Returns False where none can start and none is left: what the wait waits for could never run.
    """
    pool = _pools.get(threading.get_ident())
    return pool is None or pool._begin_wait()


def end_wait() -> None:
    """The wait is over; if the place was taken meanwhile, one worker too many ends when it has nothing to do."""
    pool = _pools.get(threading.get_ident())
    if pool is not None:
        pool._end_wait()


# In a forked child only the forking thread is left, and it is nobody's worker.
forget_after_fork(_pools.clear)
