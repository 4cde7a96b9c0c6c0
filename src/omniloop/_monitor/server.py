"""
Tells other processes of the same user what the loops of this process are doing, from a thread of its own.

A question is one line of JSON, and so is its answer. The thread never asks the loop, so that it answers even while the loop is blocked.
No client can hold up another: connections are non-blocking, the size of a question is limited, and a client that does not read its
answer is dropped. Between clients the thread sleeps in its selector.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import threading
import time
from typing import Any, Final

from .._errors import CannotStartError
from .._life.thread import wait_until_gone
from .._locks import Guard
from .._process import exit, fork
from .._process.threads import new_thread
from .._report import say
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


class _Client:
    """One connection: the bytes received of the next question, and the bytes of the answer that are still to be sent."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.unsent = memoryview(b"")
        self.read_last = 0.0
        self.heard = time.monotonic()
        # True once it has been answered.
        self.asked = False


class Monitor:
    """
    The socket of this process, and the thread that serves it.

    The thread ends before a fork and is started again in the parent. The child has no monitor until its first use of omniloop.
    """

    def __init__(self) -> None:
        self._lock = Guard()
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None
        # The path of the socket; and the file that was created there, to recognise it.
        self._path = ""
        self._file: os.stat_result | None = None
        self._selector: selectors.BaseSelector | None = None
        self._clients: dict[int, _Client] = {}
        # A pair of sockets; a byte sent through it ends the thread.
        self._bell: tuple[socket.socket, socket.socket] | None = None

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
            listened = self._listener is not None
            try:
                if not listened:
                    self._listen()
                    snapshot.watch_failures(True)
                    fork.hold_at_fork(self)
                self._resume()
            except (OSError, RuntimeError) as error:
                if not listened:
                    self._close()
                raise CannotStartError(f"The monitor can't listen: {error}") from error

    def stop(self) -> None:
        """Stop listening, and end the thread."""
        with self._lock:
            self._end_thread()
            self._close()

    def _listen(self) -> None:
        folder = sockets.prepare()
        self._listener = socket.socket(socket.AF_UNIX)
        self._path = self._bind(self._listener, folder)
        self._listener.listen(_MOST_CLIENTS)
        self._listener.setblocking(False)
        os.chmod(self._path, 0o600)
        self._file = os.lstat(self._path)
        self._bell = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._bell[1], selectors.EVENT_READ)

    def _bind(self, listener: socket.socket, folder: str) -> str:
        """Bind *listener* to the first free path for this pid: a process with the same pid in another container may have one."""
        for others in range(_MOST_CONTAINERS):
            path = sockets.socket_path(folder, os.getpid(), others)
            sockets.remove_dead(path)
            try:
                listener.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return path
        raise OSError(errno.EADDRINUSE, f"{_MOST_CONTAINERS} others have the socket's name", folder)

    def _close(self) -> None:
        """Close all descriptors, and remove the socket. The thread must have ended."""
        snapshot.watch_failures(False)
        listener, self._listener = self._listener, None
        self._close_descriptors(listener)
        file, self._file = self._file, None
        if listener is not None and file is not None:
            with contextlib.suppress(OSError):
                # Another process may have created a socket there, after somebody removed ours.
                if os.path.samestat(file, os.lstat(self._path)):
                    os.unlink(self._path)

    def _close_descriptors(self, listener: socket.socket | None) -> None:
        bell, self._bell = self._bell, None
        selector, self._selector = self._selector, None
        clients, self._clients = self._clients, {}
        for opened in (listener, *(bell or ()), selector, *(client.connection for client in clients.values())):
            if opened is not None:
                opened.close()

    def _resume(self) -> None:
        if self._listener is not None and self._thread is None:
            thread = new_thread(self._serve, "omniloop-monitor")
            thread.start()
            self._thread = thread

    def _end_thread(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None and self._bell is not None and thread is not threading.current_thread():
            self._bell[0].send(b"x")
            thread.join(_END_TIMEOUT)
            # Otherwise a fork warns of a thread that has ended, but that the system still counts.
            wait_until_gone([thread.native_id])

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
        """After the fork, in the child: close the descriptors. The socket's path and the connections are the parent's, and stay."""
        # A new lock, because another thread of the parent may have held the old one.
        self._lock = Guard()
        self._thread = None
        # The failures kept so far are the parent's.
        snapshot.watch_failures(False)
        listener, self._listener = self._listener, None
        self._close_descriptors(listener)

    def end(self) -> None:
        """At exit: stop, if all runtimes have ended."""
        if not fork.watched:
            self.stop()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            say("The monitor's thread failed, and answers no more.", error=error)

    def _turn(self) -> bool:
        """Wait for events and handle them. False if the thread is to end."""
        selector, bell, listener = self._selector, self._bell, self._listener
        assert selector is not None and bell is not None and listener is not None
        for key, events in selector.select(1.0 if any(client.unsent for client in self._clients.values()) else None):
            if key.fileobj is bell[1]:
                bell[1].recv(1)
                return False
            if key.fileobj is listener:
                self._accept(listener, selector)
            elif (client := self._clients.get(key.fd)) is not None:
                self._serve_client(client, events, selector)
        for client in list(self._clients.values()):
            if client.unsent and time.monotonic() - client.read_last > _PATIENCE:
                self._drop(client)
        return True

    def _accept(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            time.sleep(_PAUSE)
            return
        connection.setblocking(False)
        client = _Client(connection)
        self._clients[connection.fileno()] = client
        selector.register(connection, selectors.EVENT_READ)
        try:
            sockets.check_peer(connection, os.geteuid())
        except OSError:
            # Another user's process: close without an answer.
            self._drop(client)
            return
        if len(self._clients) > _MOST_CLIENTS:
            # Drop the client that has been silent for longest, first among those that never got an answer: idle ones keep nobody out.
            others = [other for other in self._clients.values() if other is not client]
            self._drop(min(others, key=lambda other: (other.asked, other.heard)))

    def _serve_client(self, client: _Client, events: int, selector: selectors.BaseSelector) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send(client)
            else:
                received = client.connection.recv(_LONGEST_QUESTION)
                if not received:
                    self._drop(client)
                    return
                client.received += received
                client.heard = time.monotonic()
            # Take the next question only when the last answer has been read: otherwise answers would pile up.
            while not client.unsent and b"\n" in client.received:
                line, _, client.received = client.received.partition(b"\n")
                client.unsent = memoryview(_answer(line))
                client.read_last = time.monotonic()
                client.asked = True
                self._send(client)
            if len(client.received) > _LONGEST_QUESTION:
                self._drop(client)
                return
            selector.modify(client.connection, selectors.EVENT_WRITE if client.unsent else selectors.EVENT_READ)
        except BlockingIOError:
            return
        except OSError:
            # The client is gone.
            self._drop(client)

    def _send(self, client: _Client) -> None:
        try:
            while client.unsent:
                client.unsent = client.unsent[client.connection.send(client.unsent) :]
                client.read_last = time.monotonic()
        except BlockingIOError:
            pass

    def _drop(self, client: _Client) -> None:
        assert self._selector is not None
        self._clients.pop(client.connection.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.connection)
        client.connection.close()


def _answer(line: bytes) -> bytes:
    try:
        request: Any = json.loads(line)
        if not isinstance(request, dict):
            raise TypeError(f"A question is a JSON object, and this is none: {request!r:.100}")
        told = snapshot.answer(request)
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps(told, default=repr).encode() + b"\n"


_monitor = Monitor()
fork.forget_after_fork(_monitor.forget)
exit.tell_at_exit(_monitor.end)


def start() -> None:
    """Turn the monitor of this process on. See `Monitor.start`."""
    _monitor.start()


def start_with_runtime() -> None:
    """Like `start`, for the start of a runtime: only logs errors, because the runtime works without a monitor."""
    try:
        start()
    except CannotStartError as error:
        say("%s", error)
    except Exception as error:
        say("The monitor can't listen, because of an error of omniloop's own, which should be reported.", error=error)


def stop() -> None:
    """Turn the monitor of this process off."""
    _monitor.stop()
