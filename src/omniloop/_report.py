"""Says what went wrong where nobody else would hear it: through logging, or through the user's hook."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from itertools import islice
from types import CodeType, FrameType
from typing import Any, Final

logger = logging.getLogger("omniloop")


class Site:
    """A place in the source: kept as code and offset, and made into a line number only when somebody asks."""

    __slots__ = ("_code", "_lasti", "stack")

    def __init__(self, code: CodeType | None, lasti: int, stack: traceback.StackSummary | None = None) -> None:
        self._code = code
        self._lasti = lasti
        self.stack = stack

    @property
    def filename(self) -> str:
        return self._code.co_filename if self._code else "<unknown>"

    @property
    def function(self) -> str:
        return self._code.co_qualname if self._code else "<unknown>"

    @property
    def lineno(self) -> int:
        if self._code is None:
            return 0
        positions = next(islice(self._code.co_positions(), max(self._lasti, 0) // 2, None), (None,))
        return positions[0] or self._code.co_firstlineno

    def short(self) -> str:
        """One line, stack or not."""
        return f'File "{self.filename}", line {self.lineno}, in {self.function}'

    def __str__(self) -> str:
        if self.stack is None:
            return self.short()
        return self.short() + "\nSubmitted from (most recent call last):\n" + "".join(self.stack.format()).rstrip()


Hook = Callable[["Failure"], object]


class Failure:
    """
    An error that nobody asked for: what the hook of `configure(on_error=…)` is given.

    Attributes:
        exception: The error itself, with its traceback.
        name: The name of the task, or what else went wrong.
        site: Where it was submitted: `filename`, `lineno`, `function`, and `stack` in debug mode. None if there is no such place.
        message: The line that is logged where no hook is set.
    """

    __slots__ = ("exception", "hook", "message", "name", "site")

    def __init__(self, message: str, exception: BaseException, name: str, site: Site | None = None) -> None:
        self.message = message
        self.exception = exception
        self.name = name
        self.site = site
        # Told instead of the one of the settings.
        self.hook: Hook | None = None

    def __str__(self) -> str:
        return self.message if self.site is None else f"{self.message}\nSubmitted at: {self.site}"

    def __repr__(self) -> str:
        return f"<Failure {self.name!r}: {self.exception!r}>"


def report(failure: Failure, hook: Hook | None) -> None:
    """Give *failure* to its own hook, to *hook*, or to logging; a hook that fails is logged together with what it was given."""
    hook = failure.hook or hook
    if hook is not None:
        try:
            hook(failure)
        except BaseException as error:
            # A hook must not take the loop down, whatever it raises: SystemExit would end `run_forever`.
            _log("The on_error hook failed", error)
        else:
            return
    _log(str(failure), failure.exception)


def _log(message: str, error: BaseException) -> None:
    say("%s", message, level=logging.ERROR, error=error)


def say(message: str, *args: object, level: int = logging.WARNING, error: BaseException | None = None) -> None:
    """Log; where a handler fails, say it on stderr. With stderr closed, be silent: logging's own words on its failure raise."""
    try:
        logger.log(level, message, *args, exc_info=error)
    except (Exception, SystemExit):
        try:
            traceback.print_exc()
            print(message % args, file=sys.stderr)
            if error is not None:
                traceback.print_exception(error)
        except Exception:
            pass


def innermost(coro: Any) -> str:
    """Where a suspended coroutine waits: in the user's code, and in what of the standard library that has come to."""
    frame: FrameType | None = None
    own: FrameType | None = None
    while coro is not None:
        frame = (
            getattr(coro, "cr_frame", None)
            or getattr(coro, "gi_frame", None)
            or getattr(coro, "ag_frame", None)
            or frame
        )
        if frame is not None and not _is_library(frame.f_code.co_filename):
            own = frame
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None) or getattr(coro, "ag_await", None)
    if frame is None:
        return "not started"
    own = own or frame
    place = str(Site(own.f_code, own.f_lasti))
    return place if own is frame else f"{place}, in {frame.f_code.co_qualname}"


def _is_library(filename: str) -> bool:
    return filename.startswith(_LIBRARY) and "site-packages" not in filename


# Where the standard library is: its lines would make all tasks look alike.
_LIBRARY: Final = os.path.dirname(os.__file__) + os.sep


def thread_stack(ident: int | None) -> str:
    """The stack of a living thread, as text; of a loop's thread only what the loop called. Empty if the thread is gone."""
    frame = sys._current_frames().get(ident) if ident is not None else None
    if frame is None:
        return ""
    stack = traceback.extract_stack(frame)
    # uvloop's own frames are not seen, so that there the last of the machinery is the one that calls it.
    machinery = max((at for at, entry in enumerate(stack) if entry.name in ("run_forever", "_run")), default=-1)
    return "".join(traceback.format_list(stack[machinery + 1 :]))


def called_frame(ident: int | None) -> FrameType | None:
    """What the loop in the thread *ident* has called: the same frame as long as that goes on. None if the loop is not in a call."""
    frame = sys._current_frames().get(ident) if ident is not None else None
    called: FrameType | None = None
    while frame is not None and frame.f_code.co_name not in ("run_forever", "_run", "_run_once"):
        called, frame = frame, frame.f_back
    return None if called is None or called.f_globals.get("__name__") == "selectors" else called
