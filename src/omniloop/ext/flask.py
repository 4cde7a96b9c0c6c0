"""
Provides `guard`: work that reads the body, or changes the session, of a request that is over gets an error that says what to do.

`go` gives the work a copy of the caller's context, so `request`, `g`, `session` and `current_app` are usable there, even after the
response. The request's connection is not: by then it serves another request, or is closed. Without the guard, a form that is first
read after the response is empty, or reading fails with "Bad file descriptor"; and changes of the session are lost silently.
"""

from __future__ import annotations

import io
from typing import NoReturn

from omniloop._errors import OmniloopError
from omniloop.ext import needs

with needs("flask"):
    from flask import Flask, request, session


class RequestEndedError(OmniloopError, RuntimeError):
    """Work on the loop used a part of its request that is gone since the response."""


def guard(app: Flask) -> None:
    """
    Make work that outlives its request get `RequestEndedError` from the body, the uploaded files and changes of the session.

    A form or JSON that the view has read is still there, and the session can still be read.
    """
    app.teardown_request(_end)


def _end(error: BaseException | None) -> None:
    # `request` and `session` are werkzeug's proxies, but typed as the objects behind them.
    state = request._get_current_object().__dict__  # type: ignore[attr-defined]
    # The unread body, under both of its names.
    request.environ["wsgi.input"] = state["stream"] = _Ended("body")
    for _, files in state["files"].lists() if "files" in state else ():
        for file in files:
            file.close()
            file.stream = _Ended("uploaded file")
    # A session that Flask saves reports its changes by `on_update`; one without it has saved itself.
    ended = session._get_current_object()  # type: ignore[attr-defined]
    if hasattr(ended, "on_update"):
        ended.on_update = _refuse_change


class _Ended(io.RawIOBase):
    """A stream that can't be read any more."""

    def __init__(self, what: str) -> None:
        self._what = what

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> NoReturn:
        raise RequestEndedError(
            f"The request is over, and the {self._what} that was not read is gone. Read it in the view, and hand the value over: "
            "go(work(request.get_data()))."
        )

    def close(self) -> None:
        """Stay open, because a closed stream would raise another error."""


def _refuse_change(ended: object) -> NoReturn:
    raise RequestEndedError(
        "The request is over, and its session was sent with the response: this change is lost. Write it in the view, or keep "
        "what the work finds out in a database."
    )
