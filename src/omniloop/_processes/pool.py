"""
Runs CPU-bound functions in processes of their own: a crash or a cancellation ends one piece of work, and no other.

A process has one call at a time, sent over a socket pair of which the loop itself has one end, as a connection that every loop of
asyncio's can have: no thread stands between, and whoever dies or is killed takes only its own call along. (An executor of one process
each, as `concurrent.futures` has them, did the same with two threads and four hand-overs for each call: 556 ms for 200 calls, against 36
for one executor of two processes.) All of it is touched on the loop's thread alone, but for the making of a `_Worker`, which takes
milliseconds and runs in a worker thread. A keeper starts the processes, forgets those that have ended, and ends all in the end.

Each message begins with the number of its call: what else was written into the socket, while a process was at rest or in the middle of a
call, ends that process, and is taken for nobody's reply.
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
from .._caller import caller
from .._errors import CannotStartError, NotPicklableError, ProcessDiedError, can_be_thrown
from .._life.life import Life
from .._life.workers import resolve
from .._process import exit, fork, signals
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import KEEPER, Task

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
        ProcessDiedError: from the handle, if the process ended before the work was done; it says of what. Other work is not touched.
        ClosedError: if the runtime is shut down, or the interpreter ends.
        CannotStartError: if no process can be started here: in one that is just importing the script, for one. From the handle, if
            the system has no room for one.

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
        max_workers: How many work at once, by default as many as there are CPUs. Further work waits, first in, first out.
        executor: Runs the calls instead of processes of this pool's own: any `concurrent.futures.Executor`, one whose processes are on
            other machines too. It stays the caller's to shut down. What can be sent, and what a crash takes along, is then as the
            executor has it, and a call that runs can't be cancelled. (Each call runs, also where a dask client would take the result of
            an equal one.)
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
        if executor is not None and not isinstance(executor, concurrent.futures.Executor):
            raise TypeError(
                f"executor={executor!r}: give a concurrent.futures.Executor, or None for processes of the pool's own."
            )
        self._elsewhere = executor
        self._size = max_workers or _cpus()
        self._runtime = chosen(runtime)
        # Touched on the loop's thread alone.
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
                # One of ours ends without a word: the call that it was started for says it, once.
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
        # Held by the call alone, and no longer than until it is sent.
        del payload
        reply = await self._current_staff().make(call)
        if len(reply) > _LARGE:
            return await asyncio.to_thread(_unpack, reply, name)
        return _unpack(reply, name)

    def _current_staff(self) -> _Staff:
        """The processes of this life of the runtime; a parent's, or those before a shutdown, are left alone."""
        life, staff = self._runtime._current(), self._staff
        if staff is None or staff.life is not life or not staff.size:
            staff = self._staff = _Staff(life, self._size)
            self._runtime._go(staff.keep(), sys._getframe(), "processes", contextvars.Context(), KEEPER)
        return staff


# --- the processes ----------------------------------------------------------------------------------------------------

# The number of the call, and the length of what follows, before each message.
_HEADER: Final = struct.Struct("!QQ")

# Bytes. What is larger is unpickled in a worker thread: 64 KiB of small objects take the loop about a millisecond.
_LARGE: Final = 64 * 1024

# How the processes are called, and how one ends that could not import the script.
_PROCESS: Final = "omniloop-process"
_UNGUARDED: Final = 86

# Bytes that a message may take without a buffer of its own: a transport's would be 256 KiB, made anew for each read.
_CHUNK: Final = 16 * 1024

# Seconds between the first two looks whether a process is gone; each next pause is twice as long, up to the other.
_LOOK_AGAIN: Final = 0.001
_LONGEST_PAUSE: Final = 0.25


class _Call:
    """A call on its way: it waits for a process, then has one, then its reply."""

    __slots__ = ("name", "payload", "reply", "worker")

    def __init__(self, payload: bytes, name: str) -> None:
        self.payload = payload
        self.name = name
        self.worker: _Worker | None = None
        # The whole message of the process, its header included; None if it ended without one.
        self.reply: asyncio.Future[bytes | bytearray | None] = asyncio.get_running_loop().create_future()


class _Staff:
    """The processes of one life, and the calls that wait for one."""

    def __init__(self, life: Life, size: int) -> None:
        self.life = life
        # How many there may be; 0 when the end has begun.
        self.size = size
        self.waiting: deque[_Call] = deque()
        # Those that take calls, those of them that have none, and those whose process may still be there.
        self.serving: set[_Worker] = set()
        self.idle: list[_Worker] = []
        self.alive: set[_Worker] = set()
        self._starting: asyncio.Future[_Worker] | None = None
        # Wakes the keeper.
        self._due: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        _staffs.add(self)

    async def make(self, call: _Call) -> bytes | bytearray:
        """Have a process make the call; its reply."""
        self.waiting.append(call)
        self.hand_out()
        try:
            message = await call.reply
        except asyncio.CancelledError:
            if call.worker is not None and (call.worker.call is call or call.worker.closed):
                # What computes can be stopped in no other way than this.
                call.worker.kill()
            raise
        if message:
            return message
        assert call.worker is not None
        raise await call.worker.death(call.name)

    def next_call(self) -> _Call | None:
        """The next of the calls that wait, if there is one."""
        while self.waiting:
            call = self.waiting.popleft()
            # Else it was cancelled.
            if not call.reply.done():
                return call
        return None

    def hand_out(self) -> None:
        """Give the calls that wait to the processes that have none; have more started for the others."""
        while self.waiting and self.idle:
            worker = self.idle.pop()
            if not worker.is_clean():
                # It died while it rested, or something else has written there.
                worker.kill()
            elif (call := self.next_call()) is not None:
                worker.begin(call)
            else:
                self.idle.append(worker)
        if self.waiting:
            resolve(self._due)

    def lose(self, worker: _Worker) -> None:
        """*worker* takes no more calls: another may take its place."""
        self.serving.discard(worker)
        if worker in self.idle:
            self.idle.remove(worker)
        resolve(self._due)

    async def keep(self) -> None:
        """Start processes where they are due, and forget those that have ended; at the end of this life end all, and wait for that."""
        pause = None
        try:
            while True:
                self._due = asyncio.get_running_loop().create_future()
                while self.waiting and not self.idle and len(self.serving) < self.size and await self._start():
                    self.hand_out()
                pause = self._look(pause)
                # By no `asyncio.timeout`, whose cancellation the end would take for its own.
                await asyncio.wait([self._due], timeout=pause)
        finally:
            self.size = 0
            if self._starting is not None:
                await asyncio.wait([self._starting])
                with suppress(Exception):
                    self.alive.add(self._starting.result())
            for worker in self.idle.copy():
                # It reads the end of the connection, and ends.
                worker.close()
            pause = None
            while pause := self._look(pause):
                for worker in self.alive:
                    if not worker.closed:
                        worker.kill()
                await asyncio.sleep(pause)

    async def _start(self) -> bool:
        """Start one more process; False if that failed, and those that there are have to do."""
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
        """Forget the processes that have ended; when to look again for those that are to end."""
        self.alive = {worker for worker in self.alive if worker.process.exitcode is None}
        if not self.alive or (self.size and self.alive <= self.serving):
            return None
        return min(2 * pause, _LONGEST_PAUSE) if pause else _LOOK_AGAIN


class _Worker(asyncio.BufferedProtocol):
    """One process, and our end of the connection over which it gets one call at a time."""

    def __init__(self, staff: _Staff) -> None:
        """Start the process. In a worker thread."""
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
        # multiprocessing would wait at exit for this process, before the drain that may still need it; and in a forked child for one that
        # is the parent's.
        _cpython.joined_at_exit(multiprocessing.process).discard(self.process)
        self._transport: asyncio.Transport | None = None
        self.closed = False
        self._calls = 0
        # None while it rests.
        self.call: _Call | None = None
        # What has come of a message, the whole of which has room in it as soon as its length is known.
        self._buffer = self._small = bytearray(_CHUNK)
        self._filled = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def is_clean(self) -> bool:
        """Tell whether there is nothing to read: neither the end, nor what something else has written."""
        with suppress(ConnectionError):
            try:
                self.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return True
        return False

    def begin(self, call: _Call) -> None:
        """Send a call; its future gets what comes back."""
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
            # Something else has written there.
            self.close()
        elif self._filled == size:
            reply = self._buffer if self._buffer is not self._small else self._buffer[:size]
            self._buffer, self._filled = self._small, 0
            self.call = None
            if not call.reply.done():
                call.reply.set_result(reply)
            # At once: what waits would come to it two turns of the loop later.
            if (following := self._staff.next_call()) is not None:
                self.begin(following)
            else:
                self._staff.idle.append(self)
        elif len(self._buffer) < size:
            # Room for the whole of it.
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
        """The error that says of what the process died, or that it is killed."""
        pause = _LOOK_AGAIN
        try:
            # The connection is closed a moment before the process is gone.
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
                # For a forked child, which has the same connection, too. The other end may be gone already.
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
    """In a forked child: a process of the parent's would not see the parent's end as long as the child holds the socket."""
    for staff in list(_staffs):
        for worker in list(staff.alive):
            _let_go(worker.sock)


def _let_go(sock: socket.socket) -> None:
    """In a forked child: close what is the parent's, whoever refers to it."""
    if (number := sock.detach()) >= 0:
        os.close(number)


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


def _unpack(reply: bytes | bytearray, name: str) -> Any:
    """What the other process made of the call, by its message: returned, or raised."""
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
        # This frame is in the traceback that the error holds.
        del failure


# --- executors of the caller's ----------------------------------------------------------------------------------------


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
        # That of a dask client would take the result of an equal call.
        kwargs = {"pure": False, **kwargs}
    # `concurrent.futures` ends its pools early in the exit: the drain has to come before that.
    exit.drain_before_pools()
    submitted: concurrent.futures.Future[Any] = concurrent.futures.Future()
    # Else a cancellation of the waiter would take it away.
    submitted.set_running_or_notify_cancel()
    # First, because it may refuse: what the executor has could not be taken back.
    task = runtime._go(_wait_elsewhere(submitted, name), frame, name)
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
    future = await asyncio.wrap_future(submitted)
    # Not by `wrap_future`: on 3.11 and 3.12 it hangs where the call raised StopIteration.
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
    """Make one call after the other, until the parent closes the socket or is gone."""
    signals.ignore_interrupts()
    # Whoever waits for it would see its end only when the last fork of this process has ended, too.
    fork.forget_after_fork(partial(_let_go, sock))
    if main_file is not None:
        # Does nothing if multiprocessing did it already.
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
    """Make the call; the message that says what came of it: the value, or None with the error and its traceback as text."""
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
        # Less this frame.
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
        # One that can be sent but not received would be lost, and its text with it.
        pickle.loads(packed)
        return packed
    except Exception as reason:
        why = f"The function raised {type(error).__qualname__}: {error}, which itself can't be sent between processes ({reason})."
        return pickle.dumps((None, NotPicklableError(why), text))


def _cpus() -> int:
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1


# Making it starts nothing.
_shared_pool = ProcessPool()
