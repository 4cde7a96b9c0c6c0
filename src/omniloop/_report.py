"""Writes errors that nobody else would learn of to logging, equal ones in groups, or gives them to the user's hook."""

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

from ._cpython import AWAITS_FUTURE, closed_at_exit, generator_of, has_gil
from ._threads import time

logger = logging.getLogger("omniloop")

# Characters of a name that are shown. A name may contain what strangers send, and be of any length.
_LONGEST_NAME: Final = 200


def shown(name: str, most: int = _LONGEST_NAME) -> str:
    """
    Return *name* as every text for a person shows it: on one line, and at most *most* characters.

    Characters that can't be printed (a line break, an escape sequence, a mark that turns the direction of writing, half a surrogate pair)
    are escaped, as in `repr`. Otherwise a name could write lines of its own into a log, and control the terminal.
    """
    start = name[:most]
    if not start.isprintable():
        start = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in start)
    return start if len(name) <= most and len(start) <= most else f"{start[: most - 1]}…"


def shown_lines(text: str) -> str:
    """Return *text*, which may be a traceback, with each line escaped as by `shown`, but not shortened."""
    return "\n".join(shown(line, sys.maxsize) for line in text.split("\n"))


def caller(depth: int = 1) -> FrameType:
    """
    Return the frame that called the asking function; if no Python code called it, that function's own frame.

    A greenlet, a bare thread or a C library may call any public function.
    """
    try:
        return sys._getframe(depth + 1)
    except ValueError:
        # No frame below: this is the first function of a greenlet, or of a thread started by `_thread`.
        return sys._getframe(1)


class Site:
    """A place in the source: kept as code and offset, and turned into a line number only when somebody asks."""

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
        """A key that is equal for equal places."""
        return self._code, self._lasti

    def short(self) -> str:
        """Return the place as one line, without the stack."""
        return f'File "{shown(self.filename, sys.maxsize)}", line {self.lineno}, in {shown(self.function)}'

    def __str__(self) -> str:
        if self.stack is None:
            return self.short()
        return self.short() + "\nSubmitted from (most recent call last):\n" + "".join(self.stack.format()).rstrip()


Hook = Callable[["Failure"], object]


class Failure:
    """
    An error that nobody asked for: the argument of the hook of `configure(on_error=…)`.

    Attributes:
        exception: The error itself, with its traceback.
        name: The name of the task, or what else went wrong.
        site: Where it was submitted: `filename`, `lineno`, `function`, and `stack` in debug mode. None if it was not submitted anywhere.
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
        # Called instead of the hook of the settings.
        self.hook: Hook | None = None

    def __str__(self) -> str:
        return self.message if self.site is None else f"{self.message}\nSubmitted at: {self.site}"

    def __repr__(self) -> str:
        return f"<Failure '{shown(self.name)}': {self.exception!r}>"


# Equal failures that come within so many seconds are one group in the log.
STORM: Final = 1.0


class Storms:
    """
    Groups equal failures in the log, and nowhere else: failures from one place and of one type within a second. The first is logged at once;
    the last, with the number of the others, when the second is over. From any thread that may log.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[object, ...], _Group] = {}
        # Not held while anything is logged: a handler that hangs would block the next thread that logs, and finally the exit.
        # Re-entrant, because a signal handler may log in the middle.
        self._lock = threading.RLock()

    def log(self, failure: Failure) -> bool:
        """Log *failure*, or keep it. True if it is the first that its group keeps: call `log_kept` in a second."""
        if failure.site is None:
            _log(str(failure), failure.exception, failure)
            return False
        kind = type(failure.exception)
        # The identity of the class, because a metaclass may define equality.
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
        """Log the last failure of each group whose second is over; with *at_once*, of all groups."""
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
        # A reference, so that no other class gets the same identity.
        self.kind = kind
        self.kept = 0
        self.last: Failure | None = None


def _log_last(groups: list[_Group]) -> None:
    for group in groups:
        if group.last is not None:
            others = f"{group.kept - 1} more like the one before within a second, and: " if group.kept > 1 else ""
            _log(f"{others}{group.last}", group.last.exception, group.last)


# Called with every failure, besides the hook: the monitor's watcher, where the monitor is on.
watchers: list[Callable[[Failure], None]] = []


def report(failure: Failure, hook: Hook | None, storms: Storms) -> bool:
    """
    Give *failure* to its own hook, to *hook*, or to logging. If a hook fails, its error and *failure* are both logged.

    True if *storms* keeps it as the first of its group.
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
    # Extra fields of the log record: formatters and handlers read them as its attributes, to sort and count.
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
    """Log; if a handler fails, write to stderr instead. If stderr is closed, be silent: even logging's own error message raises then."""
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

# A logging handler holds its lock while it writes. A handler that hangs in the loop's thread (a full pipe) blocks every thread that
# logs after that, and finally `logging.shutdown`, which acquires each lock. So a thread that ends the process tries the locks first,
# for at most so many seconds:
_PATIENCE: Final = 0.5

# The threads that are inside `hurried`, and how deep.
_hurried: dict[int, int] = {}


@contextmanager
def hurried() -> Iterator[None]:
    """For code that ends a runtime or the process: logging in this thread waits only briefly for a handler that another thread holds."""
    ident = threading.get_ident()
    _hurried[ident] = _hurried.get(ident, 0) + 1
    try:
        yield
    finally:
        _hurried[ident] -= 1
        if not _hurried[ident]:
            del _hurried[ident]


def _skip(record: logging.LogRecord) -> bool:
    """The filter that is added to a handler that hangs: logging asks it before it takes the lock."""
    return threading.get_ident() not in _hurried


def _skip_hung() -> bool:
    """Make each handler that another thread holds skip what this thread logs; True if there is such a handler."""
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
        # Only the first try waits: a handler that hung a moment ago is tried without waiting.
        if lock.acquire(timeout=0 if _skip in handler.filters else _PATIENCE):
            lock.release()
            handler.removeFilter(_skip)
        else:
            handler.addFilter(_skip)
            hung = True
    return hung


def leave_out_hung(idents: Iterable[int]) -> None:
    """Remove handlers in which a thread of *idents* hangs from the list of those that logging waits for, and closes, at exit."""
    for ident in idents:
        for frame in callers(frame_of(ident)):
            handler = frame.f_locals.get("self")
            closed = closed_at_exit(logging)
            for reference in list(closed) if isinstance(handler, logging.Handler) else []:
                if reference() is handler:
                    closed.remove(reference)
                    _write_line(
                        f"omniloop: a {type(handler).__name__} of logging hangs in a thread that did not end, and is not closed: "
                        "the exit would wait for it for ever."
                    )


def _write_line(text: str) -> None:
    """Write to stderr without any chance to hang: what does not fit into a pipe that nobody reads is left out."""
    try:
        _, writable, _ = select.select([], [_STDERR], [], 0)
        if writable:
            # A pipe takes this much at once.
            os.write(_STDERR, (text + "\n").encode(errors="backslashreplace")[:_PIPE])
    except (OSError, ValueError):
        pass


_STDERR: Final = 2
_PIPE: Final[int] = getattr(select, "PIPE_BUF", 512)


def frames_of(coro: Any) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine and of what it awaits, the innermost last."""
    while coro is not None:
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None) or getattr(coro, "ag_frame", None)
        if frame is not None and frame.f_code is not AWAITS_FUTURE:
            yield frame
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None) or getattr(coro, "ag_await", None)
        coro = generator_of(coro) or coro


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield *frame* and those that have called it, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def innermost(coro: Any) -> str:
    """Return where a suspended coroutine waits: the innermost place in the user's code, and the function it has come to in the standard library."""
    return _place(frames_of(coro)) or "not started"


def thread_place(ident: int | None) -> str:
    """Return where a thread that makes a call of the user's is, in the same form. Empty if the thread is gone."""
    frames = callers(frame_of(ident))
    return _place(
        reversed([it for it in frames if not str(it.f_globals.get("__name__")).startswith(f"{__package__}.")])
    )


def _place(frames: Iterable[FrameType]) -> str:
    """Return the innermost of the user's frames, and the innermost of all; empty if there is no frame."""
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


# The folder of the standard library. Its lines would make all tasks look alike.
_LIBRARY: Final = os.path.dirname(os.__file__) + os.sep


# After a fork that called no hooks CPython still counts the parent's threads: it would read stacks that are gone, and crash.
_can_read_frames = True


def frames_of_threads() -> Mapping[int, FrameType]:
    """Return the current frame of each thread, by its ident; empty if frames can't be read."""
    return sys._current_frames() if _can_read_frames else {}


def frame_of(ident: int | None) -> FrameType | None:
    """Return the current frame of the thread *ident*; None if the thread is gone, or frames can't be read."""
    return None if ident is None else frames_of_threads().get(ident)


def can_read_frames(they_are_of_living_threads: bool) -> None:
    """Note, in a child, whether CPython knows of the fork, so that all frames are of living threads."""
    global _can_read_frames
    _can_read_frames = they_are_of_living_threads


def thread_stack(ident: int | None) -> str:
    """Return the stack of a living thread, as text; of a loop's thread only what the loop called. Empty if the thread is gone."""
    frame = frame_of(ident)
    if frame is None:
        return ""
    stack = traceback.extract_stack(frame)
    # uvloop's own frames do not appear: there the last frame of the machinery is that of `LoopThread._run`.
    machinery = max((at for at, entry in enumerate(stack) if entry.name in ("run_forever", "_run")), default=-1)
    return "".join(traceback.format_list(stack[machinery + 1 :]))


# On 3.13 without a GIL, frames go on changing, and are freed, while they are read: once an `f_code` was an object of another type.
# Fixed in 3.14. There only the stack of a thread that seems to be blocked is read, because it is to be reported.
CAN_LOOK_AT_WHAT_RUNS: Final = sys.version_info >= (3, 14) or has_gil()
