"""
Runs CPU-bound functions in processes of their own: a crash or a cancellation ends one piece of work, and no other.

A process has one call at a time, sent over a socket pair of which the loop itself reads one end, by the calls that every loop of
asyncio's has (`sock_recv`, `sock_sendall`; Windows' has no `add_reader`): no thread stands between, and whoever dies or is killed takes
only its own call along. (An executor of one process each, as `concurrent.futures` has them, did the same with two threads and four
hand-overs for each call: 556 ms for 200 calls, against 36 for one executor of two processes.) All of it is touched on the loop's
thread alone, but for `_Worker.start`, which takes milliseconds and runs in a worker thread.

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
import select
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
        self._elsewhere = None if executor is None else _checked_executor(executor)
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
        call = _Call(payload, asyncio.get_running_loop())
        # Held by the call alone, and no longer than until it is sent.
        del payload
        reply = await self._current_staff().call(call, name)
        if len(reply) > _LARGE:
            return await asyncio.to_thread(_unpack, reply, name)
        return _unpack(reply, name)

    def _current_staff(self) -> _Staff:
        """The processes of this life of the runtime; a parent's, or those before a shutdown, are left alone."""
        life = self._runtime._current()
        if self._staff is None or self._keeper is None or self._keeper.done() or self._life is not life:
            staff = _Staff(self._size)
            self._life, self._staff = life, staff
            self._keeper = self._runtime._go(staff.keep(), sys._getframe(), "processes", contextvars.Context(), KEEPER)
        return self._staff


# --- the processes ----------------------------------------------------------------------------------------------------

# The number of the call, and the length of what follows, before each message.
_HEADER: Final = struct.Struct("!QQ")

# Bytes. What is larger is unpickled in a worker thread: 64 KiB of small objects take the loop about a millisecond.
_LARGE: Final = 64 * 1024

# How the processes are called, and how one ends that could not import the script.
_PROCESS: Final = "omniloop-process"
_UNGUARDED: Final = 86

_CHUNK: Final = 16 * 1024
_LARGEST_CHUNK: Final = 1024 * 1024

# Seconds between the first two looks whether a process is gone; each next pause is twice as long, up to the other.
_LOOK_AGAIN: Final = 0.001
_LONGEST_PAUSE: Final = 0.25


class _Call:
    """A call on its way: it waits for a process, then has one, then its reply."""

    __slots__ = ("payload", "reply", "worker")

    def __init__(self, payload: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self.payload = payload
        self.worker: _Worker | None = None
        # The whole message of the process, its header included; empty if it sent none. None has the caller go on: see `_Staff.call`.
        self.reply: asyncio.Future[bytes | bytearray | None] = loop.create_future()


class _Staff:
    """The processes of one life, and the calls that wait for one."""

    def __init__(self, size: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._size = size
        # How many more processes there may be.
        self._free = size
        self._idle: list[_Worker] = []
        self._waiting: deque[_Call] = deque()
        self._starting = 0
        # Those whose process may still be there.
        self.alive: set[_Worker] = set()
        _staffs.add(self)

    async def call(self, call: _Call, name: str) -> bytes | bytearray:
        """Have a process make the call; its reply."""
        if self._idle:
            self._begin(self._idle.pop(), call)
        elif self._free:
            self._free -= 1
            call.reply.set_result(None)
        else:
            self._waiting.append(call)
        try:
            while (message := await call.reply) is None:
                call.reply = self._loop.create_future()
                if call.worker is None:
                    # There is a place for another process.
                    await self._start(call, name)
                else:
                    await call.worker.go_on(call)
            if message:
                return message
            assert call.worker is not None
            raise await call.worker.death(name)
        except BaseException:
            self._give_up(call)
            raise

    async def keep(self) -> None:
        """Until the end of this life; then end the processes, and wait until they have ended."""
        try:
            await self._loop.create_future()
        finally:
            self._size = 0
            for worker in self._idle:
                # It reads the end of the socket, and ends.
                worker.close()
            pause = _LOOK_AGAIN
            while self.alive or self._starting:
                for worker in self.alive.difference(self._idle):
                    # Whoever waits for its reply reads the end of the socket.
                    worker.kill()
                await asyncio.sleep(pause)
                self._look()
                pause = min(2 * pause, _LONGEST_PAUSE)

    # --- which process makes a call -----------------------------------------------------------------------------------

    def _begin(self, worker: _Worker, call: _Call) -> None:
        """Have an idle process make the call."""
        if worker.is_clean():
            worker.begin(call)
        else:
            # It died while it rested, or something else has written there.
            self._lose(worker)
            call.reply.set_result(None)

    async def _start(self, call: _Call, name: str) -> None:
        """Start a process for the call, in the place that it has; if it can't be, others may come to the call."""
        worker = _Worker(self._loop, self._give)
        # In a thread, because starting a process takes milliseconds.
        starting = self._loop.run_in_executor(None, worker.start)
        self._starting += 1
        # In an empty context: as a callback it would keep alive that of whoever made the call.
        starting.add_done_callback(partial(self._started, worker), context=contextvars.Context())
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            starting.add_done_callback(lambda _: self._give(worker if worker in self.alive else None))
            raise
        if (error := starting.exception()) is None:
            worker.begin(call)
        elif self._free + 1 < self._size:
            self._free += 1
            self._waiting.append(call)
        else:
            self._give(None)
            made = CannotStartError(
                f"No process can be started for {name}: {error}. Submit it again when there is room."
            )
            raise made from error

    def _started(self, worker: _Worker, starting: asyncio.Future[None]) -> None:
        self._starting -= 1
        if not starting.cancelled() and starting.exception() is None:
            self.alive.add(worker)
            worker.watch()

    def _give(self, worker: _Worker | None) -> None:
        """*worker*, or the place of one, is free for the next call."""
        if not self._size:
            if worker is not None:
                self._lose(worker)
            return
        while self._waiting:
            call = self._waiting.popleft()
            if not call.reply.done():
                if worker is None:
                    call.reply.set_result(None)
                else:
                    # At once: what waits would come to it two turns of the loop later.
                    worker.begin(call)
                return
        if worker is None:
            self._free += 1
        else:
            self._idle.append(worker)

    def _give_up(self, call: _Call) -> None:
        """Nobody waits for *call* any more. What computes can be stopped in no other way than this."""
        told = call.reply.done() and not call.reply.cancelled()
        if call.worker is None:
            if told:
                # It had a place.
                self._give(None)
        elif not (told and call.reply.result()):
            # Else it is at the next call already.
            self._lose(call.worker)
            self._give(None)

    # --- their end ----------------------------------------------------------------------------------------------------

    def _lose(self, worker: _Worker) -> None:
        """Kill a process: it takes no more calls."""
        worker.close()
        worker.kill()
        self._look(_LOOK_AGAIN)

    def _look(self, pause: float | None = None) -> None:
        """Forget the processes that have ended; with a *pause* look again, while there are some that were killed."""
        self.alive -= {worker for worker in self.alive if worker.has_ended()}
        if pause is not None and pause < _LONGEST_PAUSE and any(worker.killed for worker in self.alive):
            self._loop.call_later(pause, self._look, 2 * pause, context=contextvars.Context())


class _Worker:
    """One process, and our end of the socket pair over which it gets one call at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, is_free: Callable[[_Worker], None]) -> None:
        self.killed = False
        self._loop = loop
        self._is_free = is_free
        self._process: multiprocessing.process.BaseProcess | None = None
        # None when it takes no more calls.
        self._sock: socket.socket | None = None
        self._calls = 0
        # None while it rests.
        self._call: _Call | None = None
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._most = _CHUNK
        # Whether the loop calls `_read`.
        self._reads = False
        # Readable when the process has ended, whoever else has its end of the socket; -1 where there is none.
        self._pidfd = -1

    def start(self) -> None:
        """Start the process. In a worker thread."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=_serve, args=(theirs, _main_file), name=_PROCESS)
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        # multiprocessing would wait at exit for this process, before the drain that may still need it; and in a forked child for one that
        # is the parent's.
        _cpython.joined_at_exit(multiprocessing.process).discard(process)
        self._process, self._sock = process, ours

    def watch(self) -> None:
        """Have the loop tell of replies, and of the process's end: where it can, and else `sock_recv` waits for each."""
        assert self._process is not None and self._process.pid is not None and self._sock is not None
        loop = self._loop
        with suppress(AttributeError, NotImplementedError, OSError):
            # One for the life of the process: to add and remove one for each reply took half as long again as a call (uvloop).
            loop.add_reader(self._sock.fileno(), self._read)
            self._reads = True
            # The socket's end comes only when the last fork of the process has ended, too.
            self._pidfd = os.pidfd_open(self._process.pid)
            loop.add_reader(self._pidfd, self._has_ended)

    def _has_ended(self) -> None:
        if self._sock is not None:
            # Whoever reads it gets what the process wrote before, and then the end.
            _shut(self._sock)
        self.has_ended()

    def is_clean(self) -> bool:
        """Tell whether there is nothing to read: neither the end, nor what something else has written."""
        return self._sock is not None and not _is_readable(self._sock)

    def begin(self, call: _Call) -> None:
        """Send a call; its future gets what comes back."""
        assert self._sock is not None
        self._calls += 1
        self._call, call.worker = call, self
        self._received, self._most = bytearray(), _CHUNK
        message = _HEADER.pack(self._calls, len(call.payload)) + call.payload
        call.payload = b""
        try:
            sent = self._sock.send(message)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # Nobody reads any more.
            self._end_call(b"")
            return
        self._unsent = memoryview(message)[sent:]
        if self._unsent or not self._reads:
            call.reply.set_result(None)

    async def go_on(self, call: _Call) -> None:
        """Do what the loop does not by itself: send the rest, and read where it calls no `_read`."""
        try:
            if self._unsent and self._sock is not None:
                unsent, self._unsent = self._unsent, memoryview(b"")
                await self._loop.sock_sendall(self._sock, unsent)
            while not self._reads and self._sock is not None and not call.reply.done():
                self._take_in(await self._loop.sock_recv(self._sock, self._most))
        except OSError:
            self.close()
        if self._sock is None and not call.reply.done():
            # It ended while nobody waited.
            call.reply.set_result(b"")

    def _read(self) -> None:
        assert self._sock is not None
        try:
            chunk = self._sock.recv(self._most)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""
        self._take_in(chunk)

    def _take_in(self, chunk: bytes) -> None:
        if self._call is None or not chunk:
            # At rest, it has died, or something else has written there.
            self._end_call(b"")
            return
        received: bytes | bytearray = chunk
        if self._received:
            self._received += chunk
            received = self._received
        missing = _HEADER.size
        if len(received) >= missing:
            number, length = _HEADER.unpack_from(received)
            missing = _HEADER.size + length - len(received)
            if number != self._calls or missing <= 0:
                # Of another number is what something else has written.
                self._end_call(received if number == self._calls and not missing else b"")
                return
        self._most = min(max(_CHUNK, missing), _LARGEST_CHUNK)
        if not self._received:
            self._received += chunk

    def _end_call(self, message: bytes | bytearray) -> None:
        call, self._call = self._call, None
        self._received = bytearray()
        if call is not None and not call.reply.done():
            call.reply.set_result(message)
            if message:
                self._is_free(self)
                return
        self.close()

    async def death(self, name: str) -> ProcessDiedError:
        """The error that says of what the process died, or that it is to be killed."""
        assert self._process is not None
        pause = _LOOK_AGAIN
        # The socket is closed a moment before the process is gone.
        while (code := self._process.exitcode) is None and pause < _LONGEST_PAUSE:
            await asyncio.sleep(pause)
            pause *= 2
        error = ProcessDiedError(f"The process that ran {name} ended before it was done: {_reason(code)}")
        error.exitcode = code
        return error

    def close(self) -> None:
        """Take no more calls. A process that reads the end of the socket ends by itself."""
        sock, self._sock = self._sock, None
        if sock is not None:
            if self._reads:
                self._loop.remove_reader(sock.fileno())
            # For a forked child, which has the same socket, too.
            _shut(sock)
            sock.close()

    def kill(self) -> None:
        self.killed = True
        if self._process is not None:
            self._process.kill()

    def has_ended(self) -> bool:
        """Tell whether the process is gone, and have the system forget it then."""
        if self._process is not None and self._process.exitcode is None:
            return False
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        return True

    def close_inherited(self) -> None:
        """In a forked child: let go of what is the parent's."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
        if self._sock is not None:
            self._sock.close()


def _is_readable(sock: socket.socket) -> bool:
    if not hasattr(select, "poll"):
        # Windows.
        return bool(select.select([sock], (), (), 0)[0])
    # A third of what a `recv` costs that finds nothing and raises.
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        # The other end is gone already.
        sock.shutdown(socket.SHUT_RDWR)


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
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = ", as the system does it where memory runs out" if name == "SIGKILL" else ""
    return f"it was killed by {name}{memory}."


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


def _unpack(reply: bytes | bytearray, name: str) -> Any:
    """What the other process made of the call, by its message: returned, or raised."""
    try:
        content = pickle.loads(memoryview(reply)[_HEADER.size + 1 :])
    except Exception as error:
        raise NotPicklableError(
            f"The result of {name} can't be received from another process: {type(error).__qualname__}: {error}."
        ) from error
    if reply[_HEADER.size] == _VALUE[0]:
        return content
    try:
        raise content[0] from _RemoteTraceback(content[1])
    finally:
        # This frame is in the traceback that the error holds.
        del content


# --- executors of the caller's ----------------------------------------------------------------------------------------


def _checked_executor(executor: object) -> concurrent.futures.Executor:
    if isinstance(executor, concurrent.futures.Executor):
        return executor
    raise TypeError(
        f"executor={executor!r}: give a concurrent.futures.Executor, or None for processes of the pool's own."
    )


def _own_options(executor: concurrent.futures.Executor) -> dict[str, Any]:
    """What has *executor* run each call: that of a dask client takes the result of an equal one, unless it is told not to."""
    allowed, chosen_ = getattr(executor, "_allowed_kwargs", ()), getattr(executor, "_kwargs", {})
    return {"pure": False} if "pure" in allowed and "pure" not in chosen_ else {}


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
    # `concurrent.futures` ends its pools early in the exit: the drain has to come before that.
    exit.drain_before_pools()
    submitted: concurrent.futures.Future[Any] = concurrent.futures.Future()
    # Else a cancellation of the waiter would take it away.
    submitted.set_running_or_notify_cancel()
    # First, because it may refuse: what the executor has could not be taken back.
    task = runtime._go(_wait_elsewhere(submitted, name), frame, name)
    try:
        # Here and not on the loop: it may start processes, or threads, which on 3.12.0 to 3.12.2 no longer start in the drain.
        future = executor.submit(fn, *args, **kwargs, **_own_options(executor))
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
            number, length = _HEADER.unpack(header)
            payload = _receive(sock, length)
            if payload is None:
                return
            reply = _run(payload)
            del payload
            sock.sendall(_HEADER.pack(number, len(reply)) + reply)
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


def _cpus() -> int:
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1


# Making it starts nothing.
_shared_pool = ProcessPool()
