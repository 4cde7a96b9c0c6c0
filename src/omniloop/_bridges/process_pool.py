"""Runs CPU-bound functions in processes of their own: a crash or a cancellation ends one piece of work, and no other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import multiprocessing.process
import multiprocessing.spawn
import os
import pickle
import sys
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, Final, ParamSpec, TypeVar, final

from .._arguments import check_function
from .._errors import CannotStartError, NotPicklableError, ProcessDiedError
from .._life.life import Life
from .._process import exit, fork, signals
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import KEEPER, Task

try:
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
except RuntimeError as error:
    # It registers an exit hook when it is loaded.
    raise CannotStartError(
        f"Processes can't be used any more: {error}. Write `from omniloop import to_process` at the top of the module."
    ) from error

T = TypeVar("T")
P = ParamSpec("P")


def to_process(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
    """
    Run a CPU-bound function in another process; return its handle at once. `ProcessPool.to_process` on one that all share.

    The function and its arguments are sent as they are now, so that both have to be picklable, and the function importable: in a
    script below ``if __name__ == "__main__":``, since each process imports it. Processes start on first use, as many as there are
    CPUs. Waited for at exit like other work. Cancelling it kills its process; so does the end of the time for draining.

    Raises:
        NotAsyncError: if *fn* is async, or can't be called.
        NotPicklableError: if *fn* or an argument can't be sent to another process. From the handle, if it can't be received there, or
            if the result can't be sent back.
        ProcessDiedError: from the handle, if the process ended before the work was done. Other work is not touched.
        ClosedError: if the runtime is shut down, or the interpreter ends.
        CannotStartError: if no process can be started here: in one that is just importing the script, for one.
    """
    return _shared_pool._submit(fn, args, kwargs, sys._getframe(1))


@final
class ProcessPool:
    """
    Processes for CPU-bound functions; they start on first use, and end after the drain of their runtime.

    Args:
        max_workers: How many work at once, by default as many as there are CPUs. Further work waits, first in, first out.
        runtime: What they belong to; by default the shared one.

    Raises:
        ValueError: if *max_workers* is not a whole number of 1 or more.
        TypeError: if *runtime* is no `Runtime`.
    """

    def __init__(self, max_workers: int | None = None, *, runtime: Runtime | None = None) -> None:
        if max_workers is not None and (
            not isinstance(max_workers, int) or isinstance(max_workers, bool) or max_workers < 1
        ):
            raise ValueError(f"max_workers={max_workers!r}: give a whole number of 1 or more.")
        self._size = max_workers or _cpus()
        self._runtime = chosen(runtime)
        # Touched on the loop's thread alone.
        self._life: Life | None = None
        self._staff: _Staff | None = None
        self._keeper: Task[None] | None = None

    def to_process(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """
        Run a CPU-bound function in one of these processes; return its handle at once. See `omniloop.to_process`.

        Raises:
            NotAsyncError: if *fn* is async, or can't be called.
            NotPicklableError: if *fn* or an argument can't be sent to another process.
            ClosedError: if the runtime is shut down, or the interpreter ends.
            CannotStartError: if no process can be started here.
        """
        return self._submit(fn, args, kwargs, sys._getframe(1))

    def _submit(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Task[T]:
        check_function(fn, "to_process")
        name = getattr(fn, "__qualname__", None) or type(fn).__name__
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise CannotStartError(
                f'to_process({name}) was called while a new process imports the script. Put it below `if __name__ == "__main__":`.'
            )
        try:
            payload = bytes(ForkingPickler.dumps((fn, args, kwargs)))
        except Exception as error:
            raise NotPicklableError(
                f"to_process({name}) can't send the function and its arguments to another process: {error}. Use a function at the top "
                "of a module, and plain data."
            ) from error
        # Here and not on the loop: by then the program may have come to its end.
        _hook_exit()
        return self._runtime._go(self._work(payload, name), name, None, False, frame)

    async def _work(self, payload: bytes, name: str) -> Any:
        staff = self._current_staff()
        async with staff.places:
            try:
                executor, future = await staff.start(payload)
            except _CannotStart:
                if staff.is_over:
                    raise ProcessDiedError(_OVER.format(name)) from None
                # At the interpreter's end what was accepted is done all the same.
                return await asyncio.to_thread(_run, payload)
            try:
                value = await asyncio.wrap_future(future)
            except BrokenProcessPool as error:
                raise ProcessDiedError((_OVER if staff.is_over else _DIED).format(name)) from error
            finally:
                staff.give_back(executor, future)
            if isinstance(value, _NotReceived):
                raise NotPicklableError(f"The result of {name} can't be received from another process: {value}.")
            return value

    def _current_staff(self) -> _Staff:
        """The processes of this life of the runtime; a parent's, or those before a shutdown, are left alone."""
        life = self._runtime._current()
        if self._staff is None or self._keeper is None or self._keeper.done() or self._life is not life:
            staff = _Staff(self._size)
            self._life, self._staff = life, staff
            self._keeper = self._runtime._go(staff.keep(), "processes", contextvars.Context(), KEEPER, sys._getframe())
        return self._staff


_DIED: Final = "The process that ran {} ended before it was done: it crashed, was killed, or ran out of memory."
_OVER: Final = "{} was not done when the time for draining was over, and its process was killed."


class _CannotStart(Exception):
    """The interpreter ends: it starts neither processes nor, on 3.12.0 to 3.12.2, the thread that listens to one."""


class _Staff:
    """
    The processes of one life, each in an executor of its own: `concurrent.futures` fails all the work of an executor that one process
    of it crashed, and can't cancel what runs.
    """

    def __init__(self, size: int) -> None:
        self.places = asyncio.Semaphore(size)
        self.idle: list[ProcessPoolExecutor] = []
        self.busy: set[ProcessPoolExecutor] = set()
        self.pid = os.getpid()
        # The time for draining was.
        self.is_over = False
        _staffs.add(self)

    async def start(self, payload: bytes) -> tuple[ProcessPoolExecutor, concurrent.futures.Future[Any]]:
        """Begin the work in an idle process, or in a new one."""
        while self.idle:
            executor = self.idle.pop()
            try:
                future = executor.submit(_run_and_pack, payload)
            except BrokenProcessPool:
                # It died while it had nothing to do.
                continue
            except RuntimeError as error:
                raise _CannotStart from error
            self.busy.add(executor)
            return executor, future
        executor = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(_main_file,)
        )
        self.busy.add(executor)
        # In a thread, because starting a process takes milliseconds.
        starting = asyncio.get_running_loop().run_in_executor(None, self._submit_first, executor, payload)
        try:
            return executor, await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(lambda done: self._kill(executor, done))
            raise
        except RuntimeError as error:
            # Its process may run, without the thread that would listen to it.
            self._kill(executor)
            raise _CannotStart from error

    def _submit_first(self, executor: ProcessPoolExecutor, payload: bytes) -> concurrent.futures.Future[Any]:
        future = executor.submit(_run_and_pack, payload)
        # After the start: who killed it meanwhile found no process, or it is seen here.
        if executor not in self.busy:
            self._kill(executor)
        return future

    def give_back(self, executor: ProcessPoolExecutor, future: concurrent.futures.Future[Any]) -> None:
        """The work has ended, or nobody waits for it any more."""
        if not future.done():
            self._kill(executor)
            return
        self.busy.discard(executor)
        if not future.cancelled() and not isinstance(future.exception(), BrokenProcessPool):
            self.idle.append(executor)

    async def keep(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.kill_busy()
            # In a thread, because it waits for them to end.
            await asyncio.to_thread(self.end_idle)

    def end_idle(self) -> None:
        """End those that have nothing to do, and wait until they have ended."""
        idle, self.idle = self.idle, []
        processes = [process for executor in idle for process in (executor._processes or {}).values()]
        for executor in idle:
            executor.shutdown(wait=False)
        # All at a time; and not by the executors, which after that wait for nothing any more.
        for process in processes:
            process.join()

    def kill_busy(self) -> None:
        for executor in list(self.busy):
            self._kill(executor)

    def _kill(self, executor: ProcessPoolExecutor, started: asyncio.Future[Any] | None = None) -> None:
        if started is not None and not started.cancelled():
            # Retrieved: nobody else asks.
            started.exception()
        self.busy.discard(executor)
        if sys.version_info >= (3, 14):
            executor.kill_workers()
        else:
            # The same, by the name that it has had since 3.2.
            for process in list((executor._processes or {}).values()):
                process.kill()
            executor.shutdown(wait=False, cancel_futures=True)


# --- exit -------------------------------------------------------------------------------------------------------------

_staffs: weakref.WeakSet[_Staff] = weakref.WeakSet()
_hooked_pid: int | None = None


def _hook_exit() -> None:
    """
    End what is left when the drain at exit is over, before `concurrent.futures` waits for it without a deadline.

    It does so as early as the interpreter allows, and then refuses work; so the drain has to come before that, too.
    """
    global _hooked_pid
    if _hooked_pid != os.getpid():
        _hooked_pid = os.getpid()
        exit.after_early_drain(_end_all)


def _end_all() -> None:
    for staff in list(_staffs):
        if staff.pid == os.getpid():
            staff.is_over = staff.is_over or bool(staff.busy)
            staff.kill_busy()
            staff.end_idle()


def _forget_parents() -> None:
    """In a forked child: multiprocessing would try, at its exit, to join processes that are not its own."""
    # Its own name, the same from 3.4 to 3.15. The executors stay as they are: they are the parent's.
    children: set[Any] = getattr(multiprocessing.process, "_children", set())
    for staff in list(_staffs):
        for executor in [*staff.idle, *staff.busy]:
            children.difference_update((executor._processes or {}).values())


fork.forget_after_fork(_forget_parents)


def _script() -> str | None:
    """The script that runs as `__main__`. multiprocessing looks for it too late: it is forgotten where the script has ended."""
    main = sys.modules.get("__main__")
    path: str | None = getattr(main, "__file__", None)
    return os.path.abspath(path) if path is not None and getattr(main, "__spec__", None) is None else None


_main_file = _script()


# --- in the other process ---------------------------------------------------------------------------------------------


def _begin(main_file: str | None) -> None:
    signals.ignore_interrupts()
    if main_file is not None:
        # Does nothing if multiprocessing did it already.
        multiprocessing.spawn.import_main_path(main_file)


def _run(payload: bytes) -> Any:
    try:
        fn, args, kwargs = pickle.loads(payload)
    except Exception as error:
        raise NotPicklableError(
            f"The function and its arguments can't be received in another process: {error}. A function has to be importable there; what "
            "is defined at a prompt or in a notebook is not."
        ) from None
    try:
        return fn(*args, **kwargs)
    except Exception as error:
        _check_sendable(error)
        raise


def _run_and_pack(payload: bytes) -> Any:
    value = _run(payload)
    try:
        # Here and not by the executor, whose error would be a bare one of pickle's.
        return _Packed(bytes(ForkingPickler.dumps(value)))
    except Exception as error:
        raise NotPicklableError(
            f"The function returned {value!r}, which can't be sent to another process: {error}. Return plain data."
        ) from error


class _Packed:
    """What comes out in the other process as the value that was packed."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (self._payload,)


class _NotReceived(str):
    """Why a value could not be unpacked; an error there would end the executor, and be lost."""

    __slots__ = ()


def _unpack(payload: bytes) -> Any:
    try:
        return pickle.loads(payload)
    except Exception as error:
        return _NotReceived(f"{type(error).__qualname__}: {error}")


def _check_sendable(error: Exception) -> None:
    """An error that can be sent but not received would break the executor, and its text be lost."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception as reason:
        raise NotPicklableError(
            f"The function raised {type(error).__qualname__}: {error}, which itself can't be sent between processes ({reason})."
        ) from error


def _cpus() -> int:
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1


# Making it starts nothing.
_shared_pool = ProcessPool()
