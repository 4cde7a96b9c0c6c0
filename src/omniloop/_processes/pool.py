"""
Runs CPU-bound functions in processes of their own: a crash or a cancellation ends one call, and no other.

A process runs one call at a time, so that a process that dies or is killed takes only its own call along. The call is sent over a socket
pair. The loop itself has one end of it, as a connection that every asyncio loop supports, without a thread in between. (Tried: a
`concurrent.futures` executor with a single process for each of them. That costs two threads and four hand-overs for each call: 556 ms
for 200 calls, against 36 for one executor of two processes.)

Everything runs on the loop's thread, except the start of a process, which takes milliseconds and runs in a worker thread. Each process has
a task of its own, which starts it, waits until its connection is lost, and then for its end. A keeper closes all connections at the end of
the runtime's life, and waits for these tasks.

Each message begins with the number of its call. Any other bytes in the socket, from an idle process or in the middle of a call, end that
process, and are never taken for a reply.
"""

from __future__ import annotations

import asyncio
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
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, InvalidStateError
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, Final, ParamSpec, TypeVar, final

from .. import _cpython
from .._arguments import check_count, check_function, name_of
from .._errors import CannotStartError, NotPicklableError, ProcessDiedError, can_be_thrown
from .._life.life import Life
from .._life.workers import resolve
from .._process import exit, fork, signals
from .._report import caller
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import KEEPER, Task, traceback_without

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
        self, max_workers: int | None = None, *, executor: Executor | None = None, runtime: Runtime | None = None
    ) -> None:
        if max_workers is not None:
            check_count("max_workers", max_workers)
            if executor is not None:
                raise ValueError(
                    f"max_workers={max_workers!r} says how many processes the pool starts, and executor={executor!r} that it starts none. "
                    "Give one of them."
                )
        if executor is not None and not isinstance(executor, Executor):
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
        return self._submit(fn, args, kwargs, caller())

    def _submit(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Task[T]:
        check_function(fn, "to_process")
        name = name_of(fn)
        if self._elsewhere is not None:
            return self._submit_elsewhere(fn, args, kwargs, frame)
        process = multiprocessing.current_process()
        if _cpython.is_being_imported_by(process):
            if process.name == _PROCESS:
                # A process of this pool exits silently: the handle of the call that it was started for reports the mistake, once.
                raise SystemExit(_UNGUARDED)
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
        return self._runtime._go(self._work(payload, name), frame, name)

    async def _work(self, payload: bytes, name: str) -> Any:
        # The processes of the current life: those of the parent process, or from before a shutdown, are left alone.
        life, staff = self._runtime._current(), self._staff
        if staff is None or staff.life is not life or not staff.size:
            staff = self._staff = _Staff(life, self._size)
            self._runtime._go(staff.keep(), sys._getframe(), "processes", contextvars.Context(), KEEPER)
        reply: _Reply = asyncio.get_running_loop().create_future()
        staff.waiting.append((reply, name, payload))
        # Kept there alone, until it is sent.
        del payload
        try:
            staff.hand_out()
            message = await reply
        except BaseException:
            staff.give_up(reply)
            raise
        finally:
            # The traceback of the error in it refers to this frame: breaks the cycle.
            del reply
        if len(message) > _LARGE:
            return await asyncio.to_thread(_unpack, message, name)
        return _unpack(message, name)

    def _submit_elsewhere(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> Task[T]:
        executor: Any = self._elsewhere
        name = name_of(fn)
        if "pure" in getattr(executor, "_allowed_kwargs", ()) and "pure" not in getattr(executor, "_kwargs", ()):
            # A dask client would reuse the result of an equal call.
            kwargs = {"pure": False, **kwargs}
        # `concurrent.futures` shuts its pools down early in the exit: the drain has to come first.
        exit.drain_before_pools()
        # The executor's future once it is submitted, for who is cancelled; and again once it is done.
        submitted: list[Future[T]] = []
        ended: Future[Future[T]] = Future()
        # A running future can't be cancelled; otherwise a cancelled waiter would cancel it.
        ended.set_running_or_notify_cancel()

        def end(future: Future[T]) -> None:
            # Ctrl-C may have come just after the executor took the call.
            with suppress(InvalidStateError):
                ended.set_result(future)

        async def outcome() -> T:
            try:
                # `wrap_future` of the executor's own future hangs on 3.11 and 3.12 if the call raised StopIteration.
                future = await asyncio.wrap_future(ended)
            except asyncio.CancelledError:
                for future in submitted:
                    future.cancel()
                raise
            try:
                return future.result()
            except StopIteration as error:
                raise can_be_thrown(error, name) from error
            except CancelledError as error:
                raise asyncio.CancelledError(*error.args) from None
            except BrokenExecutor as error:
                raise ProcessDiedError(f"The executor that ran {name} broke before it was done: {error}") from error

        # Before the executor gets the call, because this may refuse, and the call could not be taken back then.
        task = self._runtime._go(outcome(), frame, name)
        try:
            # In the caller's thread, because submitting may start processes, and threads, which on 3.12.0 to 3.12.2 no longer start in
            # the drain.
            submitted.append(executor.submit(fn, *args, **kwargs))
            submitted[0].add_done_callback(end)
            if task.cancelled():
                # Perhaps before it could see the future.
                submitted[0].cancel()
        except BaseException as error:
            # Ctrl-C may come when the call is over already.
            with suppress(InvalidStateError):
                ended.set_exception(error)
            if not isinstance(error, Exception):
                # Ctrl-C, for example.
                raise
        return task


# --- the processes ----------------------------------------------------------------------------------------------------

# Gets a process's whole message, with its header.
_Reply = asyncio.Future[bytearray]

# Begins each message: the number of its call, and the length of its body.
_HEADER: Final = struct.Struct("!QQ")

# Bytes. A larger reply is unpickled in a worker thread: 64 KiB of small objects take about a millisecond on the loop.
_LARGE: Final = 64 * 1024

# The longest pause, in seconds, between two looks for the end of a killed process.
_LONGEST_PAUSE: Final = 0.25

# The name of each process, and the exit code of one that calls to_process() while it imports the script.
_PROCESS: Final = "omniloop-process"
_UNGUARDED: Final = 86


class _Staff:
    """The processes of one life, and the calls that wait for a process."""

    def __init__(self, life: Life, size: int) -> None:
        self.life = life
        # The most processes; 0 once the end of the life has begun.
        self.size = size
        # Each with its name and what is sent; the future of one that was cancelled is done.
        self.waiting: deque[tuple[_Reply, str, bytes]] = deque()
        # Those that take calls; and the idle ones of these, in the order in which they became so.
        self.processes: set[_Process] = set()
        self.idle: dict[_Process, None] = {}
        # One at a time, so that no more are started than are needed.
        self.is_starting = False
        # One for each process, from its start to its end.
        self.tasks: set[asyncio.Task[None]] = set()

    def next_call(self) -> tuple[_Reply, str, bytes] | None:
        """Take the next waiting call; None if there is none."""
        while self.waiting:
            call = self.waiting.popleft()
            if not call[0].done():
                return call
        return None

    def give_up(self, reply: _Reply) -> None:
        """End the process that makes the call, if one does: nothing else stops a function that computes."""
        for process in self.processes:
            if process.reply is reply:
                process.close()

    def hand_out(self) -> None:
        """Have idle processes make the waiting calls, and start another process for the rest."""
        while self.waiting and self.idle:
            process, _ = self.idle.popitem()
            if process.is_clean():
                process.make_next()
            else:
                # It died while it was idle, or other code has written into its socket.
                process.close()
        if self.waiting and len(self.processes) < self.size and not self.is_starting:
            # Nothing that lives as long as the process is to keep the context of this call.
            contextvars.Context().run(self.start)

    def start(self) -> None:
        self.is_starting = True
        # No work, and nothing that work has left: the runtime's own.
        task = self.life.ledger.leftovers.help(self.run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def keep(self) -> None:
        """Wait for the end of the life, which cancels this; then end all processes."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.size = 0
            for process in self.processes:
                process.close()
            if self.tasks:
                await asyncio.wait(self.tasks)

    async def run(self) -> None:
        """Start a process, and wait until it has ended."""
        loop = asyncio.get_running_loop()
        try:
            # In a thread, because starting a process takes milliseconds.
            process = await loop.run_in_executor(None, _Process, self)
            await loop.create_connection(lambda: process, sock=process.sock)
            self.is_starting = False
        except Exception as error:
            self.is_starting = False
            # While others serve, the calls wait for those.
            if not self.processes and (call := self.next_call()) is not None:
                reply, name, _ = call
                failed = CannotStartError(
                    f"No process can be started for {name}: {error}. Submit it again when there is room."
                )
                failed.__cause__ = error
                reply.set_exception(failed)
                self.hand_out()
            return
        try:
            if self.size:
                process.make_next()
                self.hand_out()
                await process.lost
        finally:
            await process.end()


class _Process(asyncio.BufferedProtocol):
    """One process, and this side's end of the connection that carries its calls, one at a time."""

    transport: asyncio.Transport
    # Of the call that it makes; None while it is idle.
    reply: _Reply | None = None
    name = ""

    def __init__(self, staff: _Staff) -> None:
        """Start the process. Blocks for milliseconds, so it runs in a worker thread."""
        self.staff = staff
        self.sock, theirs = socket.socketpair()
        _sockets.add(self.sock)
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
        self.number = 0
        # The received part of a message, and what each read fills. (A transport that makes a new buffer for each took 35 µs more.)
        self.received = bytearray()
        self.buffer = memoryview(bytearray(256 * 1024))

    def is_clean(self) -> bool:
        """Tell whether the socket has nothing to read: neither its end, nor bytes from other code."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        return False

    def is_gone(self) -> bool:
        """Tell whether the system has no such process any more: where SIGCHLD is ignored, no exit code is ever known."""
        if sys.platform == "win32":
            # There 0 would be Ctrl-C.
            return False
        try:
            os.kill(self.process.pid or 0, 0)
        except (ProcessLookupError, PermissionError):
            # Perhaps the number is by now that of another user's process.
            return True
        return False

    def make_next(self) -> None:
        """Make the next waiting call, or become idle."""
        if (call := self.staff.next_call()) is None:
            self.reply = None
            self.staff.idle[self] = None
        else:
            self.reply, self.name, payload = call
            self.number += 1
            self.transport.write(_HEADER.pack(self.number, len(payload)) + payload)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.staff.processes.add(self)
        self.lost = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]
        if self.reply is None:
            # Other code has written into the socket; below, too.
            self.close()
        elif len(self.received) >= _HEADER.size:
            number, length = _HEADER.unpack_from(self.received)
            missing = _HEADER.size + length - len(self.received)
            if number != self.number or missing < 0:
                self.close()
            elif missing == 0:
                message, self.received = self.received, bytearray()
                if not self.reply.done():
                    self.reply.set_result(message)
                self.make_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self.staff.processes.discard(self)
        self.staff.idle.pop(self, None)
        # First, so that the process is ended whatever comes of the rest.
        resolve(self.lost)
        self.staff.hand_out()

    def close(self) -> None:
        """Close the connection, and so take no more calls. Whoever waits for that ends the process."""
        with suppress(OSError):
            # `close` alone would leave the connection open in a forked child, which shares it. OSError: the other end may be gone.
            self.sock.shutdown(socket.SHUT_RDWR)
        self.transport.abort()

    async def end(self) -> None:
        """Close the connection, and wait for the end of the process. Fails its call with the reason."""
        self.close()
        pause = 0.001
        # The connection closes a moment before the exit code is known, which only a call asks for.
        while (code := self.process.exitcode) is None and self.reply and not self.reply.done() and pause < 0.5:
            await asyncio.sleep(pause)
            pause *= 2
        self.process.kill()
        if self.reply is not None and not self.reply.done():
            error = ProcessDiedError(f"The process that ran {self.name} ended before it was done: {_reason(code)}")
            error.exitcode = code
            self.reply.set_exception(error)
        pause = 0.001
        while self.process.exitcode is None and not self.is_gone():
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


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


def _close_in_fork() -> None:
    """Close, in a forked child, what its parent has open, even while other objects refer to it."""
    for sock in list(_sockets):
        if (number := sock.detach()) >= 0:
            os.close(number)


# While a fork has this side's end of a connection, the other side does not notice the end of this process.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
fork.forget_after_fork(_close_in_fork)


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


def _unpack(message: bytearray, name: str) -> Any:
    """Return the result, or raise the error, that the other process has sent."""
    try:
        value, *failure = pickle.loads(memoryview(message)[_HEADER.size :])
    except (Exception, SystemExit) as error:
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


# --- in the other process ---------------------------------------------------------------------------------------------


def _serve(sock: socket.socket, main_file: str | None) -> None:
    """Make one call after another, until the parent process closes the socket or ends."""
    signals.ignore_interrupts()
    _sockets.add(sock)
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
        try:
            fn, args, kwargs = pickle.loads(payload)
        except (Exception, SystemExit) as error:
            # A module that is imported for it may exit. That would end the caller, too.
            why = f"it exits with {error}" if isinstance(error, SystemExit) else error
            raise NotPicklableError(
                f"The function and its arguments can't be received in another process: {why}. A function has to be importable there; "
                "what is defined at a prompt or in a notebook is not."
            ) from error
        del payload
        value = fn(*args, **kwargs)
        try:
            return bytes(ForkingPickler.dumps((value,)))
        except Exception as error:
            raise NotPicklableError(
                f"The function returned {value!r}, which can't be sent to another process: {error}. Return plain data."
            ) from error
    except BaseException as error:
        # Without this function's own frame.
        error.__traceback__ = traceback_without(error, 1)
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
