"""
Tells other processes of the same user what the loops of this process are doing, from a thread of its own.

A question is one line of JSON, and so is its answer. The thread never asks the loop, so that it answers even while the loop is blocked.
No client can hold up another: each is a task on a loop of the thread's own, the size of a question is limited, and a client that does
not read its answer is dropped. Between clients the thread sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import functools
import json
import os
import socket
import threading
import time
from typing import Final

from .._errors import CannotStartError
from .._process import exit, fork
from .._report import say
from .._threads import Guard, join, new_thread
from . import snapshot, sockets

# Bytes of one question. The longest one of our own commands has 60.
_LONGEST_QUESTION: Final = 4096
_MOST_CLIENTS: Final = 32
# Containers that share one directory and each have a process with the same pid.
_MOST_CONTAINERS: Final = 100
# Seconds that an answer may wait to be read.
_PATIENCE: Final = 5.0
# Seconds to wait for the thread to end: it may be busy with one answer.
_END_TIMEOUT: Final = 2.0
# Seconds to wait after a connection could not be accepted for want of a file descriptor.
_PAUSE: Final = 0.2


class Monitor:
    """
    The socket of this process, and the thread that serves it.

    The thread ends before a fork and is started again in the parent. The child has no monitor until its first use of omniloop.
    """

    def __init__(self) -> None:
        self._lock = Guard()
        self._listener: socket.socket | None = None
        # The socket's file as it was created, to recognise it.
        self._file: os.stat_result | None = None
        # The thread, and its own loop, which ends with it, and so is never inherited by a forked child.
        self._serving: tuple[threading.Thread, asyncio.AbstractEventLoop] | None = None
        # The clients: whether each was answered, and when it was last heard. Used on the thread's loop only.
        self._clients: dict[asyncio.StreamWriter, tuple[bool, float]] = {}

    # --- on and off ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """
        Start to listen, unless it does already.

        Raises:
            CannotStartError: if there is no socket or thread to be had, or others than the user may enter the socket's directory.
        """
        if (why := sockets.lacking()) is not None:
            raise CannotStartError(why)
        with self._lock:
            try:
                if self._listener is None:
                    self._listen()
                    snapshot.watch_failures(True)
                    fork.hold_at_fork(self)
                self._resume()
            except (OSError, RuntimeError) as error:
                # Without a thread: one that serves is not started again.
                self._close()
                raise CannotStartError(f"The monitor can't listen: {error}") from error

    def start_with_runtime(self) -> None:
        """Like `start`, for the start of a runtime: only logs errors, because the runtime works without a monitor."""
        try:
            self.start()
        except CannotStartError as error:
            say("%s", error)
        except Exception as error:
            say(
                "The monitor can't listen, because of an error of omniloop's own, which should be reported.",
                error=error,
            )

    def stop(self) -> None:
        """Stop listening, and end the thread."""
        with self._lock:
            self._end_thread()
            self._close()

    def _listen(self) -> None:
        folder = sockets.prepare()
        self._listener = listener = socket.socket(socket.AF_UNIX)
        # The first free path for this pid: a process with the same pid in another container may have one.
        for others in range(_MOST_CONTAINERS):
            path = sockets.socket_path(folder, os.getpid(), others)
            sockets.remove_dead(path)
            try:
                listener.bind(path)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        else:
            raise OSError(errno.EADDRINUSE, f"{_MOST_CONTAINERS} others have the socket's name", folder)
        self._file = os.lstat(path)
        listener.listen(_MOST_CLIENTS)
        listener.setblocking(False)
        os.chmod(path, 0o600)

    def _close(self) -> None:
        """Stop to listen, and remove the socket. The thread must have ended."""
        snapshot.watch_failures(False)
        listener, self._listener = self._listener, None
        if listener is not None:
            # An OSError, or the name of another file: somebody has removed ours, and another process may have created one there.
            with listener, contextlib.suppress(OSError):
                path = listener.getsockname()
                if self._file is not None and os.path.samestat(self._file, os.lstat(path)):
                    os.unlink(path)

    def _resume(self) -> None:
        if self._listener is None or self._serving is not None:
            return
        # A loop keeps the context that it was made in: here that of the first submitter.
        loop = contextvars.Context().run(asyncio.SelectorEventLoop)
        # Answers take their time: debug mode would remark about each.
        loop.set_debug(False)
        thread = new_thread(functools.partial(self._serve, loop, self._listener), "omniloop-monitor")
        try:
            thread.start()
        except BaseException:
            loop.close()
            raise
        self._serving = thread, loop

    def _end_thread(self) -> None:
        thread, loop = self._serving or (None, None)
        self._serving = None
        if thread is not None and loop is not None and thread is not threading.current_thread():
            # Closed already, if the thread has failed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_cancel_all)
            join(thread, _END_TIMEOUT)

    # --- forks, and the end -------------------------------------------------------------------------------------------

    def hold_still(self) -> None:
        """Before a fork: end the thread. A second thread that forks waits here for the first."""
        self._lock.acquire()
        self._end_thread()

    def go_on(self) -> None:
        """After the fork, in the parent: start the thread again."""
        # Python 3.13 counts threads only after this hook, and so warns of this one, as of any thread that a fork hook starts.
        try:
            self._resume()
        except RuntimeError as error:
            say("The monitor's thread can't be started again after a fork, and answers no more: %s", error)
        finally:
            self._lock.release()

    def forget(self) -> None:
        """After the fork, in the child: close the socket. Its path is the parent's, and stays."""
        # A new lock, because another thread of the parent may have held the old one.
        self._lock = Guard()
        self._serving = None
        # The failures kept so far are the parent's.
        snapshot.watch_failures(False)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def end(self) -> None:
        """At exit: stop, if all runtimes have ended."""
        if not fork.watched:
            self.stop()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _serve(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        try:
            with contextlib.closing(loop), contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(self._accept(loop, listener))
        except Exception as error:
            say("The monitor's thread failed, and answers no more.", error=error)

    async def _accept(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        async with asyncio.TaskGroup() as clients:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                    clients.create_task(self._answer_all(connection))
                except OSError:
                    await asyncio.sleep(_PAUSE)

    async def _answer_all(self, connection: socket.socket) -> None:
        # The client is another user's, and gets no answer; or it is gone, does not read, or asks a question without end.
        with contextlib.suppress(OSError, ValueError), connection:
            sockets.check_peer(connection, os.geteuid())
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=_LONGEST_QUESTION)
            # Take the next question only when all of the last answer has been read: otherwise answers would pile up.
            writer.transport.set_write_buffer_limits(0)
            if len(self._clients) >= _MOST_CLIENTS:
                # Drop the client that has been silent for longest, first among those that never got an answer: idle ones keep nobody out.
                silent = min(self._clients, key=self._clients.__getitem__)
                del self._clients[silent]
                silent.transport.abort()
            self._clients[writer] = False, time.monotonic()
            try:
                while line := await reader.readline():
                    writer.write(_answer(line))
                    async with asyncio.timeout(_PATIENCE):
                        await writer.drain()
                    self._clients[writer] = True, time.monotonic()
            finally:
                self._clients.pop(writer, None)
                writer.transport.abort()
                await writer.wait_closed()


def _cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


def _answer(line: bytes) -> bytes:
    try:
        told = snapshot.answer(json.loads(line.rstrip(b"\n")))
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps(told, default=repr).encode() + b"\n"


_monitor = Monitor()
fork.forget_after_fork(_monitor.forget)
exit.tell_at_exit(_monitor.end)

# What the core calls.
start = _monitor.start
start_with_runtime = _monitor.start_with_runtime
stop = _monitor.stop
