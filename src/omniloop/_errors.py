"""The errors a user can meet: one class for each case that a caller would handle differently, under one base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class OmniloopError(Exception):
    """The base of all of omniloop's own errors."""


class NotAsyncError(OmniloopError, TypeError):
    """The argument is not of the kind that this call takes; the message names the call that was meant."""


class ClosedError(OmniloopError, RuntimeError):
    """The runtime is shut down, or the interpreter ends: no more work is accepted."""


class _LimitError(OmniloopError):
    """A time limit that was given to omniloop has passed."""

    def __init__(self, *args: object, task: Any = None) -> None:
        super().__init__(*args)
        self._task: Callable[[], Any] = lambda: task

    @property
    def task(self) -> Any:
        """
        The `Task` whose limit has passed. None if there is no single one (a group, a flush), or if nobody holds it any more.

        The error does not keep the handle of work alive that failed with it.
        """
        return self._task()

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the handle, which stays in its process.
        return type(self), self.args


class WaitTimeoutError(_LimitError, TimeoutError):
    """
    The wait timed out, and only the wait: the work goes on. A `TimeoutError` that the work itself raised is never of this class.

    Its ``task`` is the handle that was waited for; None if there is no single one.
    """


class TaskTimeoutError(_LimitError, TimeoutError):
    """
    The work was not done within the ``timeout`` that it was given, and was cancelled, or never started.

    Its ``task`` is the handle of that work; it tells the limit of this work from a limit inside it. None for a group's limit.
    """

    # True if it was raised inside the work of a handle; the handle sets `task` when the error comes out of it.
    of_handle = False


class WouldDeadlockError(OmniloopError, RuntimeError):
    """This wait could never end, because the work needs the very thread that waits."""


class ForkedError(OmniloopError, RuntimeError):
    """This work belongs to the parent process; a forked child can neither wait for it nor cancel it."""


class LoopDiedError(OmniloopError, RuntimeError):
    """The thread of the loop ended before the work was done."""


class CannotStartError(OmniloopError, RuntimeError):
    """No thread or loop can be started here: the interpreter ends, or it is one that forbids daemon threads."""


class AlreadyRunningError(OmniloopError, RuntimeError):
    """A setting that shapes the thread was changed while the thread runs."""


class SettingError(OmniloopError, ValueError):
    """A setting, or its environment variable, can't have this value."""


class FullError(OmniloopError, RuntimeError):
    """As many tasks are unfinished as `max_pending` allows, and this call may not wait for room."""


class RefusedError(OmniloopError, RuntimeError):
    """The engine of a broker will never take this call: the message gives its reason, and trying again would not help."""


class WrongLoopError(OmniloopError, RuntimeError):
    """An object of the runtime's loop was used on another loop, which would never learn of its end."""


class NotPicklableError(OmniloopError, TypeError):
    """A function, its arguments, or its outcome can't be sent to another process and back."""


class NoResultError(OmniloopError, LookupError):
    """The engine of this call keeps no results, or no longer keeps the result of this call."""


class ProcessDiedError(OmniloopError, RuntimeError):
    """
    The process that ran the work ended before the work was done; the message gives the cause.

    Attributes:
        exitcode: The process's exit code, negative for the number of the signal that killed it; None if that is not known.
    """

    exitcode: int | None = None


for _error in list(globals().values()):
    if isinstance(_error, type) and issubclass(_error, OmniloopError):
        # The module that users import it from, which tracebacks and pickle show.
        _error.__module__ = "omniloop"


def can_be_thrown(error: BaseException, name: str) -> BaseException:
    """
    Return *error*, or a RuntimeError in place of a StopIteration.

    A StopIteration can't be thrown into a coroutine: on 3.11 and 3.12 whoever awaited it hung for ever.
    """
    if not isinstance(error, StopIteration):
        return error
    instead = RuntimeError(f"{name} raised StopIteration")
    instead.__cause__ = error
    return instead


def how_to_install(extra: str) -> str:
    """Return the command that installs the requirements of *extra*, wherever the package itself was installed from."""
    # Imported here, because they are expensive and needed only for an error.
    import re
    import shlex
    from importlib.metadata import PackageNotFoundError, requires

    try:
        asked = [line.partition(";") for line in requires("omniloop") or ()]
    except PackageNotFoundError:
        asked = []
    needed = [shlex.quote(what.strip()) for what, _, when in asked if re.search(rf"extra == ['\"]{extra}['\"]", when)]
    return "pip install " + (" ".join(needed) or shlex.quote(f"omniloop[{extra}]"))
