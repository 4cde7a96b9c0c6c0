"""
Answers, on a thread of its own, who of the same user asks what the loops of this process do.

One line of JSON is a question, one line the answer. Nothing here is ever asked of the loop, so that a blocked one is answered for as
well; and nothing a client does holds up another: no call on its connection waits, what it sends is bounded, and one that does not
read is dropped. The thread sleeps in the selector until somebody comes.
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
from . import places, snapshot

# Bytes of one question: the longest that is asked has 60.
_LONGEST_QUESTION: Final = 4096
_MOST_CLIENTS: Final = 32
# That share one directory and have a process of one number each.
_MOST_CONTAINERS: Final = 100
# Seconds that an answer may wait to be read.
_PATIENCE: Final = 5.0
# Seconds that ending the thread may take: one answer, at the most.
_END_TIMEOUT: Final = 2.0
# Seconds to wait where no connection can be taken, because there is no descriptor for it.
_PAUSE: Final = 0.2


class _Client:
    """One connection: what came and is no whole question yet, and what waits to be read."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.unsent = memoryview(b"")
        self.read_last = 0.0
        self.heard = time.monotonic()
        # Whether it ever had an answer.
        self.asked = False


class Monitor:
    """
    The socket of this process, and its thread.

    The thread ends before a fork, begins again in the parent, and is not there in the child, which gets another at its first use.
    """

    def __init__(self) -> None:
        self._lock = Guard()
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None
        # Where it is, and which file that was.
        self._path = ""
        self._file: os.stat_result | None = None
        self._selector: selectors.BaseSelector | None = None
        self._clients: dict[int, _Client] = {}
        # A byte in it ends the thread.
        self._bell: tuple[socket.socket, socket.socket] | None = None

    # --- on and off ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """
        Listen, if it does not already.

        Raises:
            CannotStartError: if no socket or no thread is to be had, or the directory for the socket is not the user's alone.
        """
        if (why := places.lacking()) is not None:
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
        folder = places.prepare()
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
        """Give *listener* a name: with a number more for each container in which a process of the same number listens."""
        for others in range(_MOST_CONTAINERS):
            path = places.socket_path(folder, os.getpid(), others)
            places.remove_dead(path)
            try:
                listener.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return path
        raise OSError(errno.EADDRINUSE, f"{_MOST_CONTAINERS} others have the socket's name", folder)

    def _close(self) -> None:
        """Close all that is open, and remove the socket; the thread has ended, or is the parent's."""
        snapshot.watch_failures(False)
        listener, self._listener = self._listener, None
        self._close_descriptors(listener)
        file, self._file = self._file, None
        if listener is not None and file is not None:
            with contextlib.suppress(OSError):
                # Not what another process has made there since somebody removed it.
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
            # Else a fork would be warned of a thread that is not there any more.
            wait_until_gone([thread.native_id])

    # --- forks, and the end -------------------------------------------------------------------------------------------

    def hold_still(self) -> None:
        """Before a fork; a second thread that forks waits here for the first."""
        self._lock.acquire()
        self._end_thread()

    def go_on(self) -> None:
        """After it, in the parent."""
        # Python 3.13 counts the threads only after this, and warns of the one: a plain thread of a fork hook is warned of there, too.
        try:
            self._resume()
        except RuntimeError as error:
            say("The monitor's thread can't be started again after a fork, and answers no more: %s", error)
        finally:
            self._lock.release()

    def forget(self) -> None:
        """In the child: nothing is removed, and nobody is told; the name is the parent's, and so are the connections."""
        # Another thread may have held it.
        self._lock = Guard()
        self._thread = None
        # Those that were kept are the parent's.
        snapshot.watch_failures(False)
        listener, self._listener = self._listener, None
        self._close_descriptors(listener)

    def end(self) -> None:
        """At the last, when all runtimes have ended."""
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
        """Wait for whoever comes, and serve it; False at the end."""
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
            places.check_peer(connection, os.geteuid())
        except OSError:
            # Not a word to a stranger.
            self._drop(client)
            return
        if len(self._clients) > _MOST_CLIENTS:
            # Of those that never asked, and then of the others, the one that was silent for longest: it keeps nobody out.
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
            # The next question when the answer to the last is read: else answers would pile up.
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
            # It is gone.
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
    """As `start`, in the start of a runtime, which goes on without a monitor."""
    try:
        start()
    except CannotStartError as error:
        say("%s", error)
    except Exception as error:
        say("The monitor can't listen, because of an error of omniloop's own, which should be reported.", error=error)


def stop() -> None:
    """Turn the monitor of this process off."""
    _monitor.stop()
