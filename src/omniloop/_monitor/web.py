"""Serves the live view to a browser: one page, on this machine only, protected by a token in its URL."""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import os
import pathlib
import secrets
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from .client import NoAnswerError, asked, command_of
from .figures import FIGURES, Figures

# Seconds during which an answer is reused for other tabs. Each page asks once a second.
_FRESH: Final = 0.9

_PAGE: Final = os.path.join(os.path.dirname(__file__), "page.html")


def run(pid: int, port: int, *, browse: bool) -> None:
    """Serve the view of the process *pid* until Ctrl-C."""
    try:
        server = Server(pid, port)
    except OSError as error:
        raise NoAnswerError(f"The port {port} can't be used: {error}. Without --port a free one is taken.") from None
    with server:
        print(f"{server.url}\nCtrl-C ends it. Who has the address can see what the process {pid} does.", flush=True)
        with opened_in_browser(server.url) if browse else contextlib.nullcontext():
            server.serve_forever()


@contextlib.contextmanager
def opened_in_browser(url: str) -> Iterator[None]:
    """Open *url* in a browser, through a file that only the user can read: the browser's command line, which all can read, has no token."""
    with tempfile.TemporaryDirectory(prefix="omniloop-web-") as folder:
        path = pathlib.Path(folder, "open.html")
        path.touch(0o600)
        path.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={url}">')
        webbrowser.open(path.as_uri())
        yield


class Server(ThreadingHTTPServer):
    """Serves one process's view."""

    daemon_threads = True

    def __init__(self, pid: int, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.pid = pid
        self.token = secrets.token_urlsafe(18)
        self._figures = Figures()
        # Held while the process is asked: one question at a time, whose answer serves all tabs.
        self._asking = threading.Lock()
        self._last: dict[str, Any] = {}
        self._asked = -math.inf

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def snapshot(self) -> dict[str, Any]:
        """The process's answer, with its command and figures. Reuses the last answer for `_FRESH` seconds, for other tabs."""
        with self._asking:
            if time.monotonic() - self._asked > _FRESH:
                try:
                    snapshot = asked(self.pid, "snapshot")
                except NoAnswerError as error:
                    self._last = {"problem": str(error)}
                else:
                    figures = self._figures.of(snapshot)
                    self._last = {**snapshot, "command": command_of(snapshot), "figures": figures}
                self._asked = time.monotonic()
            return self._last


class _Handler(BaseHTTPRequestHandler):
    # A narrower type than in the base class, because only `Server` makes handlers.
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version = "omniloop"
    sys_version = ""
    # Seconds after which a silent connection is closed, because each holds a thread.
    timeout = 30

    def do_GET(self) -> None:
        # Against DNS rebinding: a foreign page could make its own host name resolve to this address, and then read the answers. The Host
        # header shows that name.
        if self.headers.get("Host") not in (
            f"127.0.0.1:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self._send(421, "text/plain", b"Ask by the address that the command printed.\n")
            return
        _, token, *rest = [*self.path.split("/"), ""]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._send(403, "text/plain", b"The address has a token, which the command printed.\n")
            return
        match rest:
            case ["", ""]:
                nonce = secrets.token_urlsafe(12)
                with open(_PAGE, encoding="utf-8") as file:
                    page = file.read().replace("NONCE", nonce).replace("FIGURES", json.dumps(FIGURES))
                self._send(200, "text/html; charset=utf-8", page.encode(), nonce)
            case ["snapshot", ""]:
                self._send(200, "application/json", json.dumps(self.server.snapshot()).encode())
            case _:
                self._send(404, "text/plain", b"There is no such page.\n")

    def _send(self, code: int, kind: str, content: bytes, nonce: str = "") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        allowed = (
            f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
            if nonce
            else ""
        )
        self.send_header("Content-Security-Policy", f"default-src 'none'; {allowed}base-uri 'none'; form-action 'none'")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: each request would be a line."""
