"""Serves the live view to a browser: one page, on this machine only, protected by a token in its URL."""

from __future__ import annotations

import contextlib
import hmac
import json
import math
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
from .figures import FIGURES, figures

# Seconds during which an answer is reused for other tabs. Each page asks once a second.
_FRESH: Final = 0.9

_PAGE: Final = pathlib.Path(__file__).with_name("page.html")


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
        # Held while the process is asked: one question at a time, whose answer serves all tabs.
        self._asking = threading.Lock()
        self._last: dict[str, Any] | None = None
        self._told: dict[str, Any] = {}
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
                    self._told = {"problem": str(error)}
                else:
                    told = {"command": command_of(snapshot), "figures": figures(snapshot, self._last)}
                    self._told = {**snapshot, **told}
                    self._last = snapshot
                self._asked = time.monotonic()
            return self._told


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
        if self.headers.get("Host") not in [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]:
            return self._send(421, "text/plain", "Ask by the address that the command printed.\n")
        _, token, *rest = [*self.path.split("/"), ""]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            return self._send(403, "text/plain", "The address has a token, which the command printed.\n")
        if rest == ["snapshot", ""]:
            return self._send(200, "application/json", json.dumps(self.server.snapshot()))
        if rest != ["", ""]:
            return self._send(404, "text/plain", "There is no such page.\n")
        nonce = secrets.token_urlsafe(12)
        page = _PAGE.read_text(encoding="utf-8").replace("NONCE", nonce).replace("FIGURES", json.dumps(FIGURES))
        allowed = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
        return self._send(200, "text/html; charset=utf-8", page, allowed)

    def _send(self, code: int, kind: str, text: str, allowed: str = "") -> None:
        content = text.encode()
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Content-Security-Policy": f"default-src 'none'; {allowed}base-uri 'none'; form-action 'none'",
        }
        self.send_response(code)
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: each request would be a line."""
