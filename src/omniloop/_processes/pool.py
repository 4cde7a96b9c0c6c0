"""
Runs CPU-bound functions in processes of their own: a crash or a cancellation ends one piece of work, and no other.

A process has one call at a time, sent over a socket pair that the loop itself reads: no thread stands between, and whoever dies or is
killed takes only its own call along. (An executor of one process each, as `concurrent.futures` has them, did the same with two threads
and four hand-overs for each call: 556 ms for 200 calls, against 36 for one executor of two processes.) All of it is touched on the
loop's thread alone, but for `_Worker.start`, which takes milliseconds and runs in a worker thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import multiprocessing.process
import multiprocessing.spawn
import os
import pickle
import socket
import struct
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, Final, ParamSpec, TypeVar, final, overload

from .._arguments import check_function
from .._errors import CannotStartError, NotPicklableError, ProcessDiedError
from .._life.life import Life
from .._process import exit, fork, signals
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import KEEPER, Kind, Task

T = TypeVar("T")
P = ParamSpec("P")


# The wider one first: to a type checker the other takes `executor` as one of the function's own arguments.
@overload
def to_process(
    fn: Callable[..., T], /, *args: Any, executor: concurrent.futures.Executor, **kwargs: Any
) -> Task[T]: ...
@overload
def to_process(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...
def to_process(fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Task[T]:
    """
    Run a CPU-bound function in another process; return its handle at once. `ProcessPool.to_process` on one that all share.

    The function and its arguments are sent as they are now, so that both have to be picklable, and the function importable: in a
    script below ``if __name__ == "__main__":``, since each process imports it. Processes start on first use, as many as there are
    CPUs. Waited for at exit like other work. Cancelling it kills its process; so does the end of the time for draining.

    Args:
        executor: Runs the call instead: any `concurrent.futures.Executor`, one whose processes are on other machines too. What can be
            sent, and what a crash takes along, is then as the executor has it, and a call that runs can't be cancelled. (A function
            with a parameter of this name gets it by way of `functools.partial`.)

    Raises:
        NotAsyncError: if *fn* is async, or can't be called.
        TypeError: if *executor* is none.
        NotPicklableError: if *fn* or an argument can't be sent to another process. From the handle, if it can't be received there, or
            if the result can't be sent back.
        ProcessDiedError: from the handle, if the process ended before the work was done. Other work is not touched.
        ClosedError: if the runtime is shut down, or the interpreter ends.
        CannotStartError: if no process can be started here: in one that is just importing the script, for one. From the handle, if
            the system has no room for one.

    Example:
        >>> import math
        >>> from omniloop import to_process
        >>> to_process(math.factorial, 20).result(timeout=60)  # in a script: below `if __name__ == "__main__":`
        2432902008176640000
    """
    if "executor" in kwargs:
        elsewhere = _checked_executor(kwargs.pop("executor"), "to_process")
        return _submit_elsewhere(_shared_pool._runtime, elsewhere, fn, args, kwargs, sys._getframe(1))
    return _shared_pool._submit(fn, args, kwargs, sys._getframe(1))


@final
class ProcessPool:
    """
    Processes for CPU-bound functions; they start on first use, and end after the drain of their runtime.

    Args:
        max_workers: How many work at once, by default as many as there are CPUs. Further work waits, first in, first out.
        executor: Runs the calls instead of processes of this pool's own: see `omniloop.to_process`. It stays the caller's to shut down.
        runtime: What they belong to; by default the shared one.

    Raises:
        ValueError: if *max_workers* is not a whole number of 1 or more, or given together with *executor*, which has its own.
        TypeError: if *runtime* is no `Runtime`, or *executor* no `concurrent.futures.Executor`.

    Example:
        >>> import math
        >>> from omniloop import ProcessPool
        >>> pool = ProcessPool(max_workers=2)
        >>> pool.to_process(math.factorial, 20).result(timeout=60)  # in a script: below `if __name__ == "__main__":`
        2432902008176640000
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        executor: concurrent.futures.Executor | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        if max_workers is not None and (
            not isinstance(max_workers, int) or isinstance(max_workers, bool) or max_workers < 1
        ):
            raise ValueError(f"max_workers={max_workers!r}: give a whole number of 1 or more.")
        if max_workers is not None and executor is not None:
            raise ValueError(
                f"max_workers={max_workers!r} says how many processes the pool starts, and executor={executor!r} that it starts none. "
                "Give one of them."
            )
        self._elsewhere = None if executor is None else _checked_executor(executor, "ProcessPool")
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
        if self._elsewhere is not None:
            return _submit_elsewhere(self._runtime, self._elsewhere, fn, args, kwargs, sys._getframe(1))
        return self._submit(fn, args, kwargs, sys._getframe(1))

    def _submit(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Task[T]:
        check_function(fn, "to_process")
        name = _name_of(fn)
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
        return self._runtime._go(self._work(payload, name), name, None, Kind.WORK, frame)

    async def _work(self, payload: bytes, name: str) -> Any:
        call = _Call(payload, name)
        # Held by the call alone, and no longer than until it is sent.
        del payload
        reply = await self._current_staff().run(call)
        if len(reply) > _LARGE:
            return await asyncio.to_thread(_unpack, reply, name)
        return _unpack(reply, name)

    def _current_staff(self) -> _Staff:
        """The processes of this life of the runtime; a parent's, or those before a shutdown, are left alone."""
        life = self._runtime._current()
        if self._staff is None or self._keeper is None or self._keeper.done() or self._life is not life:
            staff = _Staff(self._size)
            self._life, self._staff = life, staff
            self._keeper = self._runtime._go(staff.keep(), "processes", contextvars.Context(), KEEPER, sys._getframe())
        return self._staff


# --- the processes ----------------------------------------------------------------------------------------------------

# The length of what follows, before each message.
_HEADER: Final = struct.Struct("!Q")

# Bytes. What is larger is unpickled in a worker thread: 64 KiB of small objects take the loop about a millisecond.
_LARGE: Final = 64 * 1024

_CHUNK: Final = 64 * 1024
_LARGEST_CHUNK: Final = 1024 * 1024

# Seconds between two looks at a process whose pipes are closed already; only where the system has no pidfd.
_LOOK_AGAIN: Final = 0.005


class _Call:
    """A call on its way: it waits for a process, then has one, then its future has the reply."""

    __slots__ = ("future", "name", "payload", "worker")

    def __init__(self, payload: bytes, name: str) -> None:
        self.payload = payload
        self.name = name
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.worker: _Worker | None = None


class _Staff:
    """The processes of one life, and the calls that wait for one."""

    def __init__(self, size: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._size = size
        self._waiting: deque[_Call] = deque()
        self._idle: list[_Worker] = []
        # Those that take calls: idle, busy, or just starting.
        self._workers: set[_Worker] = set()
        # Those whose process is there.
        self.alive: set[_Worker] = set()
        # What `keep` waits for in the end.
        self._all_gone: asyncio.Future[None] | None = None
        _staffs.add(self)

    async def run(self, call: _Call) -> bytes:
        """Have a process make the call; its reply."""
        if self._idle:
            self._idle.pop().begin(call)
        else:
            self._waiting.append(call)
            self._hire()
        try:
            return await call.future
        except asyncio.CancelledError:
            # What computes can be stopped in no other way. One that waits is left out when its turn comes.
            call.payload = b""
            if call.worker is not None:
                call.worker.kill()
            raise

    def is_free(self, worker: _Worker) -> None:
        """*worker* has made its call: here is the next, if there is one."""
        call = self._next()
        if call is not None:
            worker.begin(call)
        else:
            self._idle.append(worker)

    def is_lost(self, worker: _Worker, undone: _Call | None = None) -> None:
        """*worker* takes no more calls; *undone* is one that it never got."""
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        if undone is not None:
            self._waiting.appendleft(undone)
        self._hire()

    def is_gone(self, worker: _Worker) -> None:
        """The process of *worker* has ended."""
        self.alive.discard(worker)
        self._look_whether_all_are_gone()

    def could_not_start(self, worker: _Worker, call: _Call, error: BaseException) -> None:
        self._workers.discard(worker)
        self._look_whether_all_are_gone()
        if call.future.done():
            self._hire()
        elif self._workers:
            # These will come to it.
            self._waiting.appendleft(call)
        else:
            call.future.set_exception(_cannot_start(call.name, error))
            self._hire()

    async def keep(self) -> None:
        """Until the end of this life; then end the processes, and wait until they have ended."""
        try:
            await self.loop.create_future()
        finally:
            self._size = 0
            for worker in list(self._workers):
                worker.end()
            self._all_gone = self.loop.create_future()
            self._look_whether_all_are_gone()
            await self._all_gone

    def _look_whether_all_are_gone(self) -> None:
        if self._all_gone is not None and not self.alive and not self._workers and not self._all_gone.done():
            self._all_gone.set_result(None)

    def _next(self) -> _Call | None:
        while self._waiting:
            call = self._waiting.popleft()
            if not call.future.done():
                return call
        return None

    def _hire(self) -> None:
        """Start processes for what waits, as long as there is room for another."""
        while len(self._workers) < self._size and (call := self._next()) is not None:
            worker = _Worker(self, call)
            self._workers.add(worker)
            # In a thread, because starting a process takes milliseconds.
            starting = self.loop.run_in_executor(None, worker.start)
            starting.add_done_callback(worker.started)


class _Worker:
    """One process, and our end of the socket pair over which it gets one call at a time."""

    def __init__(self, staff: _Staff, first: _Call) -> None:
        self._staff = staff
        self._loop = staff.loop
        self._call: _Call | None = first
        first.worker = self
        self._process: multiprocessing.process.BaseProcess | None = None
        # None when it takes no more calls: it was told to end, or is dead.
        self._sock: socket.socket | None = None
        # Readable when the process has ended: a pidfd of ours, or where there is none, the end of a pipe that the process holds.
        self._sentinel = -1
        self._pidfd = -1
        self._told_to_stop = False
        self._received = bytearray()
        self._unsent = memoryview(b"")

    # --- starting -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process. In a worker thread."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, _main_file))
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        # Its own name, the same from 3.4 to 3.15. multiprocessing would wait at exit for this process, before the drain that may still
        # need it; and in a forked child for one that is the parent's.
        getattr(multiprocessing.process, "_children", set()).discard(process)
        self._process, self._sock = process, ours

    def started(self, starting: asyncio.Future[None]) -> None:
        call = self._call
        assert call is not None
        error = starting.exception()
        if error is not None:
            self._call = call.worker = None
            self._staff.could_not_start(self, call, error)
            return
        assert self._process is not None and self._process.pid is not None and self._sock is not None
        self._staff.alive.add(self)
        try:
            self._sentinel = self._pidfd = os.pidfd_open(self._process.pid)
        except (AttributeError, OSError):
            # Not Linux, or before 5.3, or no descriptor left. A process that forked is then seen to be dead when its last fork is.
            self._sentinel = self._process.sentinel
        # In an empty context: theirs would keep alive that of whoever made the first call.
        empty = contextvars.Context()
        empty.run(self._loop.add_reader, self._sentinel, self._has_ended)
        empty.run(self._loop.add_reader, self._sock.fileno(), self._read)
        if self._told_to_stop or call.future.done():
            self.kill()
        else:
            self.begin(call)

    # --- one call -----------------------------------------------------------------------------------------------------

    def begin(self, call: _Call) -> None:
        """Send a call; its future gets the reply."""
        assert self._sock is not None
        self._call, call.worker = call, self
        message = memoryview(_HEADER.pack(len(call.payload)) + call.payload)
        call.payload = b""
        try:
            sent = self._sock.send(message)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # It died while it had nothing to do.
            self._call = call.worker = None
            call.payload = bytes(message[_HEADER.size :])
            self._lose(call)
            return
        if sent < len(message):
            self._unsent = message[sent:]
            contextvars.Context().run(self._loop.add_writer, self._sock.fileno(), self._write)

    def _write(self) -> None:
        assert self._sock is not None
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # Nobody reads any more; what the process has to say about that is about to be read.
            self._unsent = memoryview(b"")
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        if self._sock is None:
            return
        received = self._received
        missing = _HEADER.unpack_from(received)[0] - len(received) if len(received) >= _HEADER.size else 0
        try:
            chunk = self._sock.recv(min(max(_CHUNK, missing), _LARGEST_CHUNK))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""
        if not chunk:
            # It has ended, or closed what is not its own: no call can reach it any more.
            self.kill()
            return
        received += chunk
        if len(received) >= _HEADER.size and len(received) - _HEADER.size >= _HEADER.unpack_from(received)[0]:
            self._received = bytearray()
            self._reply(bytes(memoryview(received)[_HEADER.size :]))

    def _reply(self, reply: bytes) -> None:
        call, self._call = self._call, None
        if call is None:
            # Something else wrote into the socket: what comes next would be the reply to another call.
            self.kill()
            return
        call.worker = None
        if not call.future.done():
            call.future.set_result(reply)
        self._staff.is_free(self)

    # --- ending -------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Tell an idle process to end; kill one that is at work, or is just starting."""
        if self._call is not None:
            self.kill()
        else:
            self._lose()

    def kill(self) -> None:
        """Kill the process; its call, if somebody still waits for that, fails when it is dead."""
        self._told_to_stop = True
        if self._process is not None and self._sentinel >= 0:
            self._process.kill()
            self._lose()

    def _lose(self, undone: _Call | None = None) -> None:
        """Take no more calls. A process that reads the end of the socket ends by itself."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(sock.fileno())
        self._loop.remove_writer(sock.fileno())
        # For a forked child, which has the same socket, too.
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # It is dead already.
            pass
        sock.close()
        self._staff.is_lost(self, undone)

    def _has_ended(self) -> None:
        assert self._process is not None
        # What it wrote before, if it came to that; a whole reply makes it an idle one.
        while self._sock is not None and self._call is not None:
            before = len(self._received)
            self._read()
            if len(self._received) <= before:
                break
        self._loop.remove_reader(self._sentinel)
        if self._process.is_alive():
            # The pipe is closed a moment before the process is gone.
            self._loop.call_later(_LOOK_AGAIN, self._has_ended)
            return
        self._close_pidfd()
        call, self._call = self._call, None
        if call is not None:
            call.worker = None
            if not call.future.done():
                call.future.set_exception(ProcessDiedError(_DIED.format(call.name)))
        self._lose()
        self._staff.is_gone(self)

    def close_inherited(self) -> None:
        """In a forked child: let go of what is the parent's."""
        self._close_pidfd()
        if self._sock is not None:
            self._sock.close()

    def _close_pidfd(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)


_DIED: Final = "The process that ran {} ended before it was done: it crashed, was killed, or ran out of memory."


def _cannot_start(name: str, error: BaseException) -> CannotStartError:
    made = CannotStartError(f"No process can be started for {name}: {error}. Submit it again when there is room.")
    made.__cause__ = error
    return made


_staffs: weakref.WeakSet[_Staff] = weakref.WeakSet()


def _forget_parents() -> None:
    """In a forked child: a process of the parent's would not see the parent's end as long as the child holds the socket."""
    for staff in list(_staffs):
        for worker in list(staff.alive):
            worker.close_inherited()


fork.forget_after_fork(_forget_parents)


def _script() -> str | None:
    """The script that runs as `__main__`. multiprocessing looks for it too late: it is forgotten where the script has ended."""
    main = sys.modules.get("__main__")
    path: str | None = getattr(main, "__file__", None)
    return os.path.abspath(path) if path is not None and getattr(main, "__spec__", None) is None else None


_main_file = _script()


class _RemoteTraceback(Exception):
    """The traceback of the other process, as text: shown as the cause of the error that came from there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _unpack(reply: bytes, name: str) -> Any:
    """What the other process made of the call: returned, or raised."""
    try:
        content = pickle.loads(memoryview(reply)[1:])
    except Exception as error:
        raise NotPicklableError(
            f"The result of {name} can't be received from another process: {type(error).__qualname__}: {error}."
        ) from error
    if reply[:1] == _VALUE:
        return content
    try:
        raise content[0] from _RemoteTraceback(content[1])
    finally:
        # This frame is in the traceback that the error holds.
        del content


# --- executors of the caller's ----------------------------------------------------------------------------------------


def _checked_executor(executor: object, call: str) -> concurrent.futures.Executor:
    if isinstance(executor, concurrent.futures.Executor):
        return executor
    raise TypeError(
        f"executor={executor!r}: {call}() takes a concurrent.futures.Executor here. A function's own parameter of that name is given "
        "by functools.partial(fn, executor=…)."
    )


def _submit_elsewhere(
    runtime: Runtime,
    executor: concurrent.futures.Executor,
    fn: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    frame: FrameType,
) -> Task[T]:
    check_function(fn, "to_process")
    name = _name_of(fn)
    # `concurrent.futures` ends its pools early in the exit: the drain has to come before that.
    exit.drain_before_pools()
    submitted: concurrent.futures.Future[Any] = concurrent.futures.Future()
    # Else a cancellation of the waiter would take it away.
    submitted.set_running_or_notify_cancel()
    # First, because it may refuse: what the executor has could not be taken back.
    task = runtime._go(_wait_elsewhere(submitted, name), name, None, Kind.WORK, frame)
    try:
        # Here and not on the loop: it may start processes, or threads, which on 3.12.0 to 3.12.2 no longer start in the drain.
        future = executor.submit(fn, *args, **kwargs)
        submitted.set_result(future)
        if task.cancelled():
            # Meanwhile, and so nobody else takes it back.
            future.cancel()
    except BaseException as error:
        submitted.set_exception(error)
        if not isinstance(error, Exception):
            # Ctrl-C.
            raise
    return task


async def _wait_elsewhere(submitted: concurrent.futures.Future[Any], name: str) -> Any:
    try:
        return await asyncio.wrap_future(await asyncio.wrap_future(submitted))
    except concurrent.futures.BrokenExecutor as error:
        raise ProcessDiedError(f"The executor that ran {name} broke before it was done: {error}") from error


# --- in the other process ---------------------------------------------------------------------------------------------

_VALUE: Final = b"v"
_ERROR: Final = b"e"


def _serve(sock: socket.socket, main_file: str | None) -> None:
    """Make one call after the other, until the parent closes the socket or is gone."""
    signals.ignore_interrupts()
    if main_file is not None:
        # Does nothing if multiprocessing did it already.
        multiprocessing.spawn.import_main_path(main_file)
    try:
        while (header := _receive(sock, _HEADER.size)) is not None:
            payload = _receive(sock, _HEADER.unpack(header)[0])
            if payload is None:
                return
            reply = _run(payload)
            del payload
            sock.sendall(_HEADER.pack(len(reply)) + reply)
            del reply
    except OSError:
        # The parent was killed in the middle of a message.
        pass


def _receive(sock: socket.socket, size: int) -> bytearray | None:
    """Exactly *size* bytes; None if the other end was closed."""
    received = bytearray(size)
    view = memoryview(received)
    while view:
        count = sock.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return received


def _run(payload: bytearray) -> bytes:
    """Make the call; the message that says what came of it."""
    try:
        fn, args, kwargs = pickle.loads(payload)
    except Exception as error:
        return _pack_error(
            NotPicklableError(
                f"The function and its arguments can't be received in another process: {error}. A function has to be importable there; "
                "what is defined at a prompt or in a notebook is not."
            )
        )
    try:
        value = fn(*args, **kwargs)
    except BaseException as error:
        # Less this frame.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        return _pack_error(error)
    try:
        return _VALUE + bytes(ForkingPickler.dumps(value))
    except Exception as error:
        return _pack_error(
            NotPicklableError(
                f"The function returned {value!r}, which can't be sent to another process: {error}. Return plain data."
            )
        )


def _pack_error(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        packed = pickle.dumps((error, text))
        # One that can be sent but not received would be lost, and its text with it.
        pickle.loads(packed)
    except Exception as reason:
        packed = pickle.dumps(
            (
                NotPicklableError(
                    f"The function raised {type(error).__qualname__}: {error}, which itself can't be sent between processes ({reason})."
                ),
                text,
            )
        )
    return _ERROR + packed


def _name_of(fn: object) -> str:
    return getattr(fn, "__qualname__", None) or type(fn).__name__


def _cpus() -> int:
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1


# Making it starts nothing.
_shared_pool = ProcessPool()
