"""
`guard`: what work can't have of a request that is over raises an error that says what to do.

`go` hands on a copy of the caller's context, so that `request`, `g`, `session` and `current_app` are there in the work as well, and
stay there. The request's connection does not: after the response it serves another request, or none. Without the guard a form that
is first read then is empty, or the read fails with "Bad file descriptor"; and what is written to the session is lost without a word.
"""

from __future__ import annotations

import io
from typing import NoReturn

from omniloop._errors import OmniloopError
from omniloop.ext import needs

with needs("flask"):
    from flask import Flask, request, session


class RequestEndedError(OmniloopError, RuntimeError):
    """Work on the loop asked for something of its request that ended with the response."""


def guard(app: Flask) -> None:
    """
    Have the body, the uploaded files and the session of a request that is over raise `RequestEndedError`, in work that outlives it.

    What the view has read, of the form or the JSON, is still there, and so is what can be read of the session.
    """
    app.teardown_request(_end)


def _end(error: BaseException | None) -> None:
    # Both are werkzeug's proxies, typed as what they stand for.
    state = request._get_current_object().__dict__  # type: ignore[attr-defined]
    # What was not read of the body, by whichever of its names.
    request.environ["wsgi.input"] = state["stream"] = _Ended("body")
    for _, files in state["files"].lists() if "files" in state else ():
        for file in files:
            file.close()
            file.stream = _Ended("uploaded file")
    # Every session that can be saved tells of its changes by this; another has saved itself.
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
        """Not closed, because a closed stream has an error of its own."""


def _refuse_change(ended: object) -> NoReturn:
    raise RequestEndedError(
        "The request is over, and its session was sent with the response: this change is lost. Write it in the view, or keep "
        "what the work finds out in a database."
    )
