"""
Runs CPU-bound functions in processes of their own: a crash or a cancellation ends one call, and no other.

A process runs one call at a time, so that a process that dies or is killed takes only its own call along. The call is sent over a socket
pair. The loop itself has one end of it, as a connection that every asyncio loop supports, without a thread in between. (Tried: a
`concurrent.futures` executor with a single process for each of them. That costs two threads and four hand-overs for each call: 556 ms
for 200 calls, against 36 for one executor of two processes.)

Everything runs on the loop's thread, except the making of a `_Worker`, which takes milliseconds and runs in a worker thread. A keeper task
starts the processes, forgets those that have ended, and ends all of them at the end of the runtime's life.

Each message begins with the number of its call. Any other bytes in the socket, from an idle process or in the middle of a call, end that
process, and are never taken for a reply.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import multiprocessing.process
import multiprocessing.spawn
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, Final, ParamSpec, TypeVar, final

from .. import _cpython
from .._arguments import check_function, name_of
from .._errors import CannotStartError, NotPicklableError, ProcessDiedError, can_be_thrown
from .._life.life import Life
from .._life.workers import resolve
from .._process import exit, fork, signals
from .._report import caller
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import KEEPER, Task

T = TypeVar("T")
P = ParamSpec("P")


def to_process(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
    """
    Run a CPU-bound function in another process; return its handle at once. This is `ProcessPool.to_process` on a shared pool.

    The function and its arguments are pickled at once, so both have to be picklable, and the function importable. In a script the call
    belongs below ``if __name__ == "__main__":``, because each process imports the script. Processes start on first use, as many as
    there are CPUs. The exit waits for the work as for other work. Cancelling the work kills its process; so does the end of the time
    for draining.

    Raises:
        NotAsyncError: if *fn* is async, or can't be called.
        NotPicklableError: if *fn* or an argument can't be pickled. From the handle, if the other process can't unpickle it, or if the
            result can't be sent back.
        ProcessDiedError: from the handle, if the process ended before the work was done; the message says why. Other work goes on.
        ClosedError: if the runtime is shut down, or the interpreter ends.
        CannotStartError: if no process can be started here, for example in a process that is just importing the script. From the
            handle, if the system has no room for another process.

    Example:
        >>> import math
        >>> from omniloop import to_process
        >>> to_process(math.factorial, 20).result(timeout=60)  # in a script: below `if __name__ == "__main__":`
        2432902008176640000
    """
    return _shared_pool._submit(fn, args, kwargs, caller())


@final
class ProcessPool:
    """
    Processes for CPU-bound functions; they start on first use, and end after the drain of their runtime.

    Args:
        max_workers: How many processes work at once, by default as many as there are CPUs. Further work waits, first in, first out.
        executor: Runs the calls instead of this pool's own processes: any `concurrent.futures.Executor`, also one whose processes are
            on other machines. Shutting it down stays the caller's job. The executor then decides what can be sent and what a crash
            ends, and a running call can't be cancelled. (Each call runs, even where a dask client would reuse the result of an equal
            call.)
        runtime: The runtime that the processes belong to; by default the shared one.

    Raises:
        ValueError: if *max_workers* is not a whole number of 1 or more, or is given together with *executor*, which has its own.
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
        if executor is not None and not isinstance(executor, concurrent.futures.Executor):
            raise TypeError(
                f"executor={executor!r}: give a concurrent.futures.Executor, or None for processes of the pool's own."
            )
        self._elsewhere = executor
        cpus: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
        self._size = max_workers or cpus() or 1
        self._runtime = chosen(runtime)
        # Used on the loop's thread only.
        self._staff: _Staff | None = None

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
            return _submit_elsewhere(self._runtime, self._elsewhere, fn, args, kwargs, caller())
        return self._submit(fn, args, kwargs, caller())

    def _submit(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Task[T]:
        check_function(fn, "to_process")
        name = name_of(fn)
        process = multiprocessing.current_process()
        if _cpython.is_being_imported_by(process):
            why = f'to_process({name}) was called while a new process imports the script. Put it below `if __name__ == "__main__":`.'
            if process.name == _PROCESS:
                # A process of this pool exits silently: the handle of the call that it was started for reports the mistake, once.
                unguarded = SystemExit(why)
                unguarded.code = _UNGUARDED
                raise unguarded
            raise CannotStartError(why)
        try:
            payload = bytes(ForkingPickler.dumps((fn, args, kwargs)))
        except Exception as error:
            raise NotPicklableError(
                f"to_process({name}) can't send the function and its arguments to another process: {error}. Use a function at the top "
                "of a module, and plain data."
            ) from error
        return self._runtime._go(self._work(payload, name), frame, name)

    async def _work(self, payload: bytes, name: str) -> Any:
        call = _Call(payload, name)
        # Only the call keeps the payload, and it drops it once sent.
        del payload
        # The processes of the current life: those of the parent process, or from before a shutdown, are left alone.
        life, staff = self._runtime._current(), self._staff
        if staff is None or staff.life is not life or not staff.size:
            staff = self._staff = _Staff(life, self._size)
            self._runtime._go(staff.keep(), sys._getframe(), "processes", contextvars.Context(), KEEPER)
        reply = await staff.make(call)
        if len(reply) > _LARGE:
            return await asyncio.to_thread(_unpack, reply, name)
        return _unpack(reply, name)


# --- the processes ----------------------------------------------------------------------------------------------------

# Begins each message: the number of its call, and the length of its body.
_HEADER: Final = struct.Struct("!QQ")

# Bytes. A larger reply is unpickled in a worker thread: 64 KiB of small objects take about a millisecond on the loop.
_LARGE: Final = 64 * 1024

# The name of each process, and the exit code of one that calls to_process() while it imports the script.
_PROCESS: Final = "omniloop-process"
_UNGUARDED: Final = 86

# Bytes of the buffer that is reused for small messages. Without it the transport would make a new one of 256 KiB for each read.
_CHUNK: Final = 16 * 1024

# Seconds between the first two checks for a process that has ended. Each next pause is twice as long, up to the longest.
_LOOK_AGAIN: Final = 0.001
_LONGEST_PAUSE: Final = 0.25


class _Call:
    """A call: it waits for a process, is sent to one, and gets its reply."""

    __slots__ = ("name", "payload", "reply", "worker")

    def __init__(self, payload: bytes, name: str) -> None:
        self.payload = payload
        self.name = name
        self.worker: _Worker | None = None
        # The process's whole message, with its header; None if the process ended without one.
        self.reply: asyncio.Future[bytes | bytearray | None] = asyncio.get_running_loop().create_future()


class _Staff:
    """The processes of one life, and the calls that wait for a process."""

    def __init__(self, life: Life, size: int) -> None:
        self.life = life
        # The most processes; 0 once the end of the life has begun.
        self.size = size
        self.waiting: deque[_Call] = deque()
        # The workers that take calls, those of them without a call, and all whose process may not have ended yet.
        self.serving: set[_Worker] = set()
        self.idle: list[_Worker] = []
        self.alive: set[_Worker] = set()
        self._starting: asyncio.Future[_Worker] | None = None
        # Wakes the keeper.
        self._due: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        _staffs.add(self)

    async def make(self, call: _Call) -> bytes | bytearray:
        """Have a process make the call, and return its reply."""
        self.waiting.append(call)
        self.hand_out()
        try:
            message = await call.reply
        except asyncio.CancelledError:
            if call.worker is not None and (call.worker.call is call or call.worker.closed):
                # Nothing else stops a function that computes.
                call.worker.kill()
            raise
        if message:
            return message
        assert call.worker is not None
        raise await call.worker.death(call.name)

    def next_call(self) -> _Call | None:
        """Take the next waiting call; None if there is none."""
        while self.waiting:
            call = self.waiting.popleft()
            # A reply that is done already was cancelled.
            if not call.reply.done():
                return call
        return None

    def hand_out(self) -> None:
        """Give the waiting calls to idle processes; wake the keeper to start more for the rest."""
        while self.waiting and self.idle:
            worker = self.idle.pop()
            if not worker.is_clean():
                # The process died while it was idle, or other code has written into its socket.
                worker.kill()
            elif (call := self.next_call()) is not None:
                worker.begin(call)
            else:
                self.idle.append(worker)
        if self.waiting:
            resolve(self._due)

    def lose(self, worker: _Worker) -> None:
        """Note that *worker* takes no more calls, and wake the keeper, which may start another."""
        self.serving.discard(worker)
        if worker in self.idle:
            self.idle.remove(worker)
        resolve(self._due)

    async def keep(self) -> None:
        """Start processes when calls wait, and forget those that have ended; at the end of this life, end all and wait for that."""
        pause = None
        try:
            while True:
                self._due = asyncio.get_running_loop().create_future()
                while self.waiting and not self.idle and len(self.serving) < self.size and await self._start():
                    self.hand_out()
                pause = self._look(pause)
                # Not `asyncio.timeout`: its cancellation could not be told from the one that ends this task.
                await asyncio.wait([self._due], timeout=pause)
        finally:
            self.size = 0
            if self._starting is not None:
                await asyncio.wait([self._starting])
                with suppress(Exception):
                    self.alive.add(self._starting.result())
            for worker in self.idle.copy():
                # An idle process reads the end of the connection, and exits.
                worker.close()
            pause = None
            while pause := self._look(pause):
                for worker in self.alive:
                    if not worker.closed:
                        worker.kill()
                await asyncio.sleep(pause)

    async def _start(self) -> bool:
        """Start one more process. False if that failed and other processes serve; if none does, the next call gets the error."""
        loop = asyncio.get_running_loop()
        try:
            # In a thread, because starting a process takes milliseconds.
            self._starting = loop.run_in_executor(None, _Worker, self)
            await asyncio.wait([self._starting])
            worker = self._starting.result()
        except Exception as error:
            if self.serving:
                return False
            if (call := self.next_call()) is not None:
                why = f"No process can be started for {call.name}: {error}. Submit it again when there is room."
                made = CannotStartError(why)
                made.__cause__ = error
                call.reply.set_exception(made)
            return True
        self.alive.add(worker)
        await loop.create_connection(lambda: worker, sock=worker.sock)
        self.serving.add(worker)
        self.idle.append(worker)
        return True

    def _look(self, pause: float | None) -> float | None:
        """Forget the processes that have ended; return the seconds until the next check, or None if no process is expected to end."""
        self.alive = {worker for worker in self.alive if worker.process.exitcode is None}
        if not self.alive or (self.size and self.alive <= self.serving):
            return None
        return min(2 * pause, _LONGEST_PAUSE) if pause else _LOOK_AGAIN


class _Worker(asyncio.BufferedProtocol):
    """One process, and this side's end of the connection that carries its calls, one at a time."""

    def __init__(self, staff: _Staff) -> None:
        """Start the process. Blocks for milliseconds, so it runs in a worker thread."""
        self._staff = staff
        self.sock, theirs = socket.socketpair()
        try:
            context = multiprocessing.get_context("spawn")
            self.process = context.Process(target=_serve, args=(theirs, _main_file), name=_PROCESS)
            self.process.start()
        except BaseException:
            self.sock.close()
            raise
        finally:
            theirs.close()
        # multiprocessing would join this process at exit, before the drain, which may still need it. A forked child would join the
        # parent's process.
        _cpython.joined_at_exit(multiprocessing.process).discard(self.process)
        self._transport: asyncio.Transport | None = None
        self.closed = False
        self._calls = 0
        # None while the process is idle.
        self.call: _Call | None = None
        # The received part of a message. The buffer grows to the size of the whole message once the length is known.
        self._buffer = self._small = bytearray(_CHUNK)
        self._filled = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def is_clean(self) -> bool:
        """Tell whether the socket has nothing to read: neither its end, nor bytes from other code."""
        with suppress(ConnectionError):
            try:
                self.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return True
        return False

    def begin(self, call: _Call) -> None:
        """Send a call; its future gets the reply."""
        self._calls += 1
        self.call, call.worker = call, self
        assert self._transport is not None
        self._transport.write(_HEADER.pack(self._calls, len(call.payload)) + call.payload)
        call.payload = b""

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        call = self.call
        if call is not None and self._filled < _HEADER.size:
            return
        number, length = _HEADER.unpack_from(self._buffer)
        size = _HEADER.size + length
        if call is None or number != self._calls or self._filled > size:
            # Other code has written into the socket.
            self.close()
        elif self._filled == size:
            reply = self._buffer if self._buffer is not self._small else self._buffer[:size]
            self._buffer, self._filled = self._small, 0
            self.call = None
            if not call.reply.done():
                call.reply.set_result(reply)
            # Sent at once: through `hand_out` the next call would come two turns of the loop later.
            if (following := self._staff.next_call()) is not None:
                self.begin(following)
            else:
                self._staff.idle.append(self)
        elif len(self._buffer) < size:
            # The whole message needs a larger buffer.
            received, self._buffer = self._buffer, bytearray(size)
            self._buffer[: self._filled] = received[: self._filled]

    def connection_lost(self, exc: Exception | None) -> None:
        self.close()
        call, self.call = self.call, None
        if call is not None and not call.reply.done():
            call.reply.set_result(None)
        else:
            self.process.kill()

    async def death(self, name: str) -> ProcessDiedError:
        """Make the error that says why the process ended; kill the process if it still runs."""
        pause = _LOOK_AGAIN
        try:
            # The connection closes a moment before the exit code is known.
            while (code := self.process.exitcode) is None and pause < _LONGEST_PAUSE:
                await asyncio.sleep(pause)
                pause *= 2
        finally:
            self.process.kill()
        error = ProcessDiedError(f"The process that ran {name} ended before it was done: {_reason(code)}")
        error.exitcode = code
        return error

    def close(self) -> None:
        """Take no more calls. A process that reads the end of the connection ends by itself."""
        if not self.closed:
            self.closed = True
            with suppress(OSError):
                # `close` alone would leave the connection open in a forked child, which shares it. OSError: the other end may be gone.
                self.sock.shutdown(socket.SHUT_RDWR)
            (self.sock.close if self._transport is None else self._transport.abort)()
            self._staff.lose(self)

    def kill(self) -> None:
        self.call = None
        self.process.kill()
        self.close()


def _reason(code: int | None) -> str:
    if code is None:
        return "it closed its connection, or something else wrote there, and it was killed."
    if code == _UNGUARDED:
        return (
            "it imports the script, which calls to_process() there too. Put the call below "
            '`if __name__ == "__main__":`.'
        )
    if code >= 0:
        return f"it ended with exit code {code}."
    known = {number.value: number.name for number in signal.Signals}
    name = known.get(-code, f"signal {-code}")
    memory = ", as the system does it where memory runs out" if name == "SIGKILL" else ""
    return f"it was killed by {name}{memory}."


_staffs: weakref.WeakSet[_Staff] = weakref.WeakSet()


def _forget_parents() -> None:
    """Close the parent's sockets in a forked child: while the child holds them, the parent's processes would not notice its end."""
    for staff in list(_staffs):
        for worker in list(staff.alive):
            _let_go(worker.sock)


def _let_go(sock: socket.socket) -> None:
    """Close a parent's socket in a forked child, even while other objects refer to it."""
    if (number := sock.detach()) >= 0:
        os.close(number)


fork.forget_after_fork(_forget_parents)


def _script() -> str | None:
    """Return the path of the script that runs as `__main__`. Read early: once the script has ended, multiprocessing finds none."""
    main = sys.modules.get("__main__")
    path: str | None = getattr(main, "__file__", None)
    return os.path.abspath(path) if path is not None and getattr(main, "__spec__", None) is None else None


_main_file = _script()


class _RemoteTraceback(Exception):
    """The traceback of the other process, as text: the cause of the error that comes from there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _unpack(reply: bytes | bytearray, name: str) -> Any:
    """Return the result, or raise the error, that the other process has sent."""
    try:
        value, *failure = pickle.loads(memoryview(reply)[_HEADER.size :])
    except Exception as error:
        raise NotPicklableError(
            f"The result of {name} can't be received from another process: {type(error).__qualname__}: {error}."
        ) from error
    if not failure:
        return value
    try:
        raise failure[0] from _RemoteTraceback(failure[1])
    finally:
        # The error's traceback refers to this frame: breaks the cycle.
        del failure


# --- the caller's own executors ---------------------------------------------------------------------------------------


def _submit_elsewhere(
    runtime: Runtime,
    executor: concurrent.futures.Executor,
    fn: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    frame: FrameType,
) -> Task[T]:
    check_function(fn, "to_process")
    name = name_of(fn)
    if "pure" in getattr(executor, "_allowed_kwargs", ()) and "pure" not in getattr(executor, "_kwargs", ()):
        # A dask client would reuse the result of an equal call.
        kwargs = {"pure": False, **kwargs}
    # `concurrent.futures` shuts its pools down early in the exit: the drain has to come first.
    exit.drain_before_pools()
    submitted: concurrent.futures.Future[Any] = concurrent.futures.Future()
    # A running future can't be cancelled; otherwise a cancelled waiter would cancel it.
    submitted.set_running_or_notify_cancel()
    # Before the executor gets the call, because this may refuse, and the call could not be taken back then.
    task = runtime._go(_wait_elsewhere(submitted, name), frame, name)
    try:
        # In the caller's thread, because submitting may start processes, and threads, which on 3.12.0 to 3.12.2 no longer start in the
        # drain.
        future = executor.submit(fn, *args, **kwargs)
        submitted.set_result(future)
        if task.cancelled():
            # Cancelled before the task could see the future, so only this code can cancel it.
            future.cancel()
    except BaseException as error:
        submitted.set_exception(error)
        if not isinstance(error, Exception):
            # Ctrl-C, for example.
            raise
    return task


async def _wait_elsewhere(submitted: concurrent.futures.Future[Any], name: str) -> Any:
    future = await asyncio.wrap_future(submitted)
    # `wrap_future(future)` hangs on 3.11 and 3.12 if the call raised StopIteration, so a second future only signals the end.
    ended: concurrent.futures.Future[None] = concurrent.futures.Future()
    ended.set_running_or_notify_cancel()
    future.add_done_callback(lambda _: ended.set_result(None))
    try:
        await asyncio.wrap_future(ended)
    except asyncio.CancelledError:
        future.cancel()
        raise
    try:
        return future.result()
    except StopIteration as error:
        raise can_be_thrown(error, name) from error
    except concurrent.futures.CancelledError as error:
        raise asyncio.CancelledError(*error.args) from None
    except concurrent.futures.BrokenExecutor as error:
        raise ProcessDiedError(f"The executor that ran {name} broke before it was done: {error}") from error


# --- in the other process ---------------------------------------------------------------------------------------------


def _serve(sock: socket.socket, main_file: str | None) -> None:
    """Make one call after another, until the parent process closes the socket or ends."""
    signals.ignore_interrupts()
    # A fork of this process closes the socket: the parent would notice this process's end only when its forks have ended too.
    fork.forget_after_fork(partial(_let_go, sock))
    if main_file is not None:
        # Does nothing if multiprocessing has imported the script already.
        multiprocessing.spawn.import_main_path(main_file)
    stream = sock.makefile("rb")
    # The parent may be killed in the middle of a message.
    with suppress(OSError):
        while len(header := stream.read(_HEADER.size)) == _HEADER.size:
            number, length = _HEADER.unpack(header)
            reply = _run(stream.read(length))
            sock.sendall(_HEADER.pack(number, len(reply)) + reply)
            del reply


def _run(payload: bytes) -> bytes:
    """Make the call, and return the message: the value, or None with the error and its traceback as text."""
    try:
        fn, args, kwargs = pickle.loads(payload)
    except Exception as error:
        return _pack_error(
            NotPicklableError(
                f"The function and its arguments can't be received in another process: {error}. A function has to be importable there; "
                "what is defined at a prompt or in a notebook is not."
            )
        )
    del payload
    try:
        value = fn(*args, **kwargs)
    except BaseException as error:
        # Drops this function's own frame.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        return _pack_error(error)
    try:
        return bytes(ForkingPickler.dumps((value,)))
    except Exception as error:
        return _pack_error(
            NotPicklableError(
                f"The function returned {value!r}, which can't be sent to another process: {error}. Return plain data."
            )
        )


def _pack_error(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        packed = pickle.dumps((None, error, text))
        # Tried here, because an error that can be pickled but not unpickled would be lost, and its traceback with it.
        pickle.loads(packed)
        return packed
    except Exception as reason:
        why = f"The function raised {type(error).__qualname__}: {error}, which itself can't be sent between processes ({reason})."
        return pickle.dumps((None, NotPicklableError(why), text))


# Making it starts nothing.
_shared_pool = ProcessPool()
