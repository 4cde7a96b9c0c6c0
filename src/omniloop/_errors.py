"""The errors a user can meet: one class per thing that would be handled differently, under one base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class OmniloopError(Exception):
    """The base of all errors of omniloop's own."""


class NotAsyncError(OmniloopError, TypeError):
    """What was handed over is not the kind of thing this call takes; the message names the call that was meant."""


class ClosedError(OmniloopError, RuntimeError):
    """The runtime is shut down, or the interpreter ends: nothing more is accepted."""


class _LimitError(OmniloopError):
    """A time limit that was given to omniloop has passed."""

    def __init__(self, *args: object, task: Any = None) -> None:
        super().__init__(*args)
        self._task: Callable[[], Any] = lambda: task

    @property
    def task(self) -> Any:
        """
        The `Task` that is meant; None where that is no single one (a group, a flush), and where nobody holds it any more.

        The handle of work that failed with this error is not kept alive by it.
        """
        return self._task()

    def __reduce__(self) -> tuple[Any, ...]:
        # A handle stays in its process.
        return type(self), self.args


class WaitTimeoutError(_LimitError, TimeoutError):
    """
    The wait timed out, and only the wait: the work goes on. A `TimeoutError` that the work itself raised is never of this class.

    Its ``task`` is the handle that was waited for; None if that is no single one.
    """


class TaskTimeoutError(_LimitError, TimeoutError):
    """
    The work was not done within the ``timeout`` that it was given, and was cancelled, or never started.

    Its ``task`` is the handle of that work, by which a limit of one's own is told from one inside the work; None for a group's.
    """

    # Raised in the work of a handle, which makes itself known when the error comes out of it.
    of_handle = False


class WouldDeadlockError(OmniloopError, RuntimeError):
    """This wait could never end, because the thread that waits is one that the work needs."""


class ForkedError(OmniloopError, RuntimeError):
    """This work belongs to the parent process; a forked child can neither wait for it nor cancel it."""


class LoopDiedError(OmniloopError, RuntimeError):
    """The thread of the loop ended before the work was done."""


class CannotStartError(OmniloopError, RuntimeError):
    """No thread or loop can be started here: the interpreter ends, or it is one that forbids daemon threads."""


class AlreadyRunningError(OmniloopError, RuntimeError):
    """A setting that shapes the thread was changed while the thread runs."""


class SettingError(OmniloopError, ValueError):
    """The value of a setting, or of its environment variable, is not one that it can have."""


class FullError(OmniloopError, RuntimeError):
    """As many tasks are unfinished as `max_pending` allows, and this call may not wait for room."""


class RefusedError(OmniloopError, RuntimeError):
    """The engine of a broker will never take this call: the message has its reason, and trying again would not help."""


class WrongLoopError(OmniloopError, RuntimeError):
    """What lives on the runtime's loop was used on another one, which would never hear of its end."""


class NotPicklableError(OmniloopError, TypeError):
    """A function, its arguments, or what came out of it can't be sent to another process and back."""


class NoResultError(OmniloopError, LookupError):
    """The engine that the call was handed over to keeps no results, or no longer that of this call."""


class ProcessDiedError(OmniloopError, RuntimeError):
    """
    The process that ran the work ended before the work was done; the message says of what.

    Attributes:
        exitcode: The process's exit code, negative for the number of the signal that killed it; None if that is not known.
    """

    exitcode: int | None = None


for _error in list(globals().values()):
    if isinstance(_error, type) and issubclass(_error, OmniloopError):
        # As tracebacks show it, and as pickle finds it: where one imports it from.
        _error.__module__ = "omniloop"


def can_be_thrown(error: BaseException, name: str) -> BaseException:
    """
    Return *error*, or a RuntimeError in the place of a StopIteration.

    That can't be thrown into a coroutine: on 3.11 and 3.12 whoever awaited it hung for ever.
    """
    if not isinstance(error, StopIteration):
        return error
    instead = RuntimeError(f"{name} raised StopIteration")
    instead.__cause__ = error
    return instead


def how_to_install(extra: str) -> str:
    """The command that installs what the package's *extra* asks for, whatever the package itself came from."""
    # Dear to import, and only for an error.
    import re
    import shlex
    from importlib.metadata import PackageNotFoundError, requires

    try:
        asked = [line.partition(";") for line in requires("omniloop") or ()]
    except PackageNotFoundError:
        asked = []
    needed = [shlex.quote(what.strip()) for what, _, when in asked if re.search(rf"extra == ['\"]{extra}['\"]", when)]
    return "pip install " + (" ".join(needed) or shlex.quote(f"omniloop[{extra}]"))
