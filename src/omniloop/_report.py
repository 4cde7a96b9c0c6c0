"""Says what went wrong where nobody else would hear it: through logging, or through the user's hook."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from types import CodeType, FrameType
from typing import Any, Final

from ._clock import time
from ._cpython import AWAITS_FUTURE, closed_at_exit, has_gil

logger = logging.getLogger("omniloop")

# Characters of a name that are shown. A name may be put together from what strangers send, and be of any length.
_LONGEST_NAME: Final = 200


def shown(name: str, most: int = _LONGEST_NAME) -> str:
    """
    *name* as every text shows it that a person reads: on one line, and *most* characters of it.

    What can't be printed (a line break, an escape sequence, a mark that turns the direction of writing, half a surrogate pair) is
    written out, as `repr` does: else a name could write lines of its own into a log, and command the terminal.
    """
    start = name[:most]
    if not start.isprintable():
        start = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in start)
    return start if len(name) <= most and len(start) <= most else f"{start[: most - 1]}…"


def shown_lines(text: str) -> str:
    """*text*, which may be a traceback, with each of its lines as `shown` has it, whole."""
    return "\n".join(shown(line, sys.maxsize) for line in text.split("\n"))


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

    @property
    def key(self) -> tuple[object, int]:
        """Equal for the same place."""
        return self._code, self._lasti

    def short(self) -> str:
        """One line, stack or not."""
        return f'File "{shown(self.filename, sys.maxsize)}", line {self.lineno}, in {shown(self.function)}'

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

    Example:
        >>> from omniloop import Runtime
        >>> async def fail():
        ...     raise LookupError("no such account")
        >>> failures = []
        >>> with Runtime(on_error=failures.append) as runtime:
        ...     task = runtime.go(fail())
        >>> failures[0].name, failures[0].exception
        ('fail', LookupError('no such account'))
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
        return f"<Failure '{shown(self.name)}': {self.exception!r}>"


# Equal failures that come within so many seconds are one group in the log.
STORM: Final = 1.0


class Storms:
    """
    Groups equal failures in the log, and nowhere else: of those from one place and of one type within a second the first is shown at
    once, and the last, with how many there were, when the second is over. From any thread that may log.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[object, ...], _Group] = {}
        # Not held while anything is logged: a handler that hangs would hold up whoever logs next, and the exit at last. Re-entrant,
        # because a signal handler may log in the middle.
        self._lock = threading.RLock()

    def log(self, failure: Failure) -> bool:
        """Log *failure*, or keep it. True if it is the first that is kept of its group: call `log_kept` in a second."""
        if failure.site is None:
            _log(str(failure), failure.exception, failure)
            return False
        kind = type(failure.exception)
        # By its identity: a metaclass may compare in its own way.
        key = (*failure.site.key, id(kind))
        now = time.monotonic()
        with self._lock:
            group = self._groups.get(key)
            if group is not None and now - group.began < STORM:
                group.kept += 1
                group.last = failure
                return group.kept == 1
            over = self._take_over(now)
            self._groups[key] = _Group(now, kind)
        _log_last(over)
        _log(str(failure), failure.exception, failure)
        return False

    def log_kept(self, at_once: bool = False) -> None:
        """Log the last of each group whose second is over; *at_once*: of all."""
        now = time.monotonic()
        with self._lock:
            over = self._take_over(now, at_once)
        _log_last(over)

    def _take_over(self, now: float, at_once: bool = False) -> list[_Group]:
        over = [key for key, group in self._groups.items() if at_once or now - group.began >= STORM]
        return [self._groups.pop(key) for key in over]


class _Group:
    """Equal failures: when the first was logged, how many were kept since, and the last of them."""

    __slots__ = ("began", "kept", "kind", "last")

    def __init__(self, began: float, kind: type[BaseException]) -> None:
        self.began = began
        # Kept, so that no other class gets its identity.
        self.kind = kind
        self.kept = 0
        self.last: Failure | None = None


def _log_last(groups: list[_Group]) -> None:
    for group in groups:
        if group.last is not None:
            others = f"{group.kept - 1} more like the one before within a second, and: " if group.kept > 1 else ""
            _log(f"{others}{group.last}", group.last.exception, group.last)


# Shown every failure, besides: the monitor's, where it is on.
watchers: list[Callable[[Failure], None]] = []


def report(failure: Failure, hook: Hook | None, storms: Storms) -> bool:
    """
    Give *failure* to its own hook, to *hook*, or to logging; a hook that fails is logged together with what it was given.

    True if it is kept by *storms*, as the first of its group.
    """
    for watch in watchers:
        watch(failure)
    hook = failure.hook or hook
    if hook is not None:
        try:
            hook(failure)
        except BaseException as error:
            # A hook must not take the loop down, whatever it raises: SystemExit would end `run_forever`.
            _log("The on_error hook failed", error, failure)
        else:
            return False
    return storms.log(failure)


def _log(message: str, error: BaseException, failure: Failure) -> None:
    site = failure.site
    # Fields of the record, for those who sort and count: formatters and handlers find them as its attributes.
    fields = {
        "omniloop_task": failure.name,
        "omniloop_file": None if site is None else site.filename,
        "omniloop_line": None if site is None else site.lineno,
        "omniloop_function": None if site is None else site.function,
    }
    say("%s", message, level=logging.ERROR, error=error, fields=fields)


def say(
    message: str,
    *args: object,
    level: int = logging.WARNING,
    error: BaseException | None = None,
    fields: Mapping[str, object] | None = None,
) -> None:
    """Log; where a handler fails, say it on stderr. With stderr closed, be silent: logging's own words on its failure raise."""
    try:
        if _hurried and threading.get_ident() in _hurried and _skip_hung():
            _write_line(message % args)
        logger.log(level, message, *args, exc_info=error, extra=fields)
    except (Exception, SystemExit):
        try:
            traceback.print_exc()
            print(message % args, file=sys.stderr)
            if error is not None:
                traceback.print_exception(error)
        except Exception:
            pass


# --- handlers that hang -----------------------------------------------------------------------------------------------

# A handler of logging holds its lock while it writes. One that hangs in the loop's thread (a full pipe) hangs whoever logs after that,
# and at last `logging.shutdown`, which waits for each lock. So a thread that ends the process tries the locks, for so long:
_PATIENCE: Final = 0.5

# The threads that do, with how often they are inside `hurried`.
_hurried: dict[int, int] = {}


@contextmanager
def hurried() -> Iterator[None]:
    """Around what ends a runtime or the process: what this thread logs waits only briefly for a handler that another one holds."""
    ident = threading.get_ident()
    _hurried[ident] = _hurried.get(ident, 0) + 1
    try:
        yield
    finally:
        _hurried[ident] -= 1
        if not _hurried[ident]:
            del _hurried[ident]


def _skip(record: logging.LogRecord) -> bool:
    """The filter of a handler that hangs: it is asked before the lock is taken."""
    return threading.get_ident() not in _hurried


def _skip_hung() -> bool:
    """Have each handler that another thread holds skip what this one logs; True if there is any."""
    handlers: list[logging.Handler | None] = []
    at: logging.Logger | None = logger
    while at is not None:
        handlers += at.handlers
        at = at.parent if at.propagate else None
    hung = False
    for handler in handlers or [logging.lastResort]:
        lock = handler.lock if handler is not None else None
        if handler is None or lock is None:
            continue
        # Waited for once: it hung a moment ago.
        if lock.acquire(timeout=0 if _skip in handler.filters else _PATIENCE):
            lock.release()
            handler.removeFilter(_skip)
        else:
            handler.addFilter(_skip)
            hung = True
    return hung


def leave_out_hung(idents: Iterable[int]) -> None:
    """Take handlers in which one of the threads *idents* hangs out of the list of those that logging waits for, and closes, at exit."""
    for ident in idents:
        frame = frame_of(ident)
        while frame is not None:
            handler = frame.f_locals.get("self")
            closed = closed_at_exit(logging)
            for reference in list(closed) if isinstance(handler, logging.Handler) else []:
                if reference() is handler:
                    closed.remove(reference)
                    _write_line(
                        f"omniloop: a {type(handler).__name__} of logging hangs in a thread that did not end, and is not closed: "
                        "the exit would wait for it for ever."
                    )
            frame = frame.f_back


def _write_line(text: str) -> None:
    """Write to stderr, past all that could hang: what does not fit into a pipe that nobody reads is left out."""
    try:
        _, writable, _ = select.select([], [_STDERR], [], 0)
        if writable:
            # So much of it a pipe takes in one go.
            os.write(_STDERR, (text + "\n").encode(errors="backslashreplace")[:_PIPE])
    except (OSError, ValueError):
        pass


_STDERR: Final = 2
_PIPE: Final[int] = getattr(select, "PIPE_BUF", 512)


def frames_of(coro: Any) -> Iterator[FrameType]:
    """The frames of a suspended coroutine and of what it awaits, the innermost last."""
    while coro is not None:
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None) or getattr(coro, "ag_frame", None)
        if frame is not None and frame.f_code is not AWAITS_FUTURE:
            yield frame
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None) or getattr(coro, "ag_await", None)


def innermost(coro: Any) -> str:
    """Where a suspended coroutine waits: in the user's code, and in what of the standard library that has come to."""
    return _place(frames_of(coro)) or "not started"


def thread_place(ident: int | None) -> str:
    """Where a thread that makes a call of the user's is, likewise. Empty if the thread is gone."""
    frames: list[FrameType] = []
    frame = frame_of(ident)
    while frame is not None:
        if not str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
            frames.append(frame)
        frame = frame.f_back
    return _place(reversed(frames))


def _place(frames: Iterable[FrameType]) -> str:
    """The innermost of the user's frames, and of all; empty if there is none."""
    frame: FrameType | None = None
    own: FrameType | None = None
    for frame in frames:
        if not _is_library(frame.f_code.co_filename):
            own = frame
    if frame is None:
        return ""
    own = own or frame
    place = str(Site(own.f_code, own.f_lasti))
    return place if own is frame else f"{place}, in {shown(frame.f_code.co_qualname)}"


def _is_library(filename: str) -> bool:
    return filename.startswith(_LIBRARY) and "site-packages" not in filename


# Where the standard library is: its lines would make all tasks look alike.
_LIBRARY: Final = os.path.dirname(os.__file__) + os.sep


# In a fork that called no hooks CPython still counts the parent's threads: it would read stacks that are gone, and crash.
_can_read_frames = True


def frames_of_threads() -> Mapping[int, FrameType]:
    """What each thread is in, by its ident; nothing where that can't be read."""
    return sys._current_frames() if _can_read_frames else {}


def frame_of(ident: int | None) -> FrameType | None:
    """What the thread *ident* is in; None if it is gone, or can't be read."""
    return None if ident is None else frames_of_threads().get(ident)


def can_read_frames(they_are_of_living_threads: bool) -> None:
    """Note, in a child, whether CPython has been told of the fork."""
    global _can_read_frames
    _can_read_frames = they_are_of_living_threads


def thread_stack(ident: int | None) -> str:
    """The stack of a living thread, as text; of a loop's thread only what the loop called. Empty if the thread is gone."""
    frame = frame_of(ident)
    if frame is None:
        return ""
    stack = traceback.extract_stack(frame)
    # uvloop's own frames are not seen, so that there the last of the machinery is the one that calls it.
    machinery = max((at for at, entry in enumerate(stack) if entry.name in ("run_forever", "_run")), default=-1)
    return "".join(traceback.format_list(stack[machinery + 1 :]))


# 3.13 without a GIL gives frames that go on changing, and are freed, while they are looked at: once an `f_code` was an object of another
# type. Mended in 3.14. There only the stack of a thread that seems to be blocked is looked at, which is to be told of.
CAN_LOOK_AT_WHAT_RUNS: Final = sys.version_info >= (3, 14) or has_gil()
