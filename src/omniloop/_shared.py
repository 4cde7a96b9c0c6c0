"""The runtime that the whole process shares, and the plain functions over it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import IO, TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, TypeVarTuple, Unpack

from ._runtime import FROM_SETTINGS, FromSettings, Runtime
from ._work.task import Task

if TYPE_CHECKING:
    from ._settings import Changes
    from ._stats import Stats

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
P = ParamSpec("P")

_getframe: Final = sys._getframe

# Making it starts nothing; its settings are read from the environment on first use.
_runtime: Final = Runtime._make_shared()


def shared_runtime() -> Runtime:
    """Return the runtime that the module's functions use. It stays the same; after `shutdown()` it starts afresh."""
    return _runtime


def chosen(runtime: Runtime | None) -> Runtime:
    """Return *runtime*, or the shared one for None; TypeError if it is none."""
    if runtime is None:
        return _runtime
    if isinstance(runtime, Runtime):
        return runtime
    raise TypeError(f"runtime={runtime!r}: give a Runtime, or None for the one that the process shares.")


def go(coro: Awaitable[T], *, name: str | None = None, context: Context | None = None, daemon: bool = False) -> Task[T]:
    """`Runtime.go` on the runtime that the whole process shares."""
    return _runtime._go(coro, name, context, daemon, _getframe(1))


def try_go(
    coro: Awaitable[T], *, name: str | None = None, context: Context | None = None, daemon: bool = False
) -> Task[T] | None:
    """`Runtime.try_go` on the runtime that the whole process shares."""
    return _runtime._try_go(coro, name, context, daemon, _getframe(1))


def call_soon(fn: Callable[[*Ts], T], *args: *Ts, context: Context | None = None) -> Task[T]:
    """`Runtime.call_soon` on the runtime that the whole process shares."""
    return _runtime._call_soon(fn, args, context, _getframe(1))


def call_later(delay: float, fn: Callable[[*Ts], Any], *args: *Ts, context: Context | None = None) -> Task[Any]:
    """`Runtime.call_later` on the runtime that the whole process shares."""
    return _runtime._call_later(delay, fn, args, context, _getframe(1))


def call_at(when: float, fn: Callable[[*Ts], Any], *args: *Ts, context: Context | None = None) -> Task[Any]:
    """`Runtime.call_at` on the runtime that the whole process shares."""
    return _runtime._call_at(when, fn, args, context, _getframe(1))


def every(
    interval: float, fn: Callable[[], object], *, jitter: float = 0, immediately: bool = False, name: str | None = None
) -> Task[None]:
    """`Runtime.every` on the runtime that the whole process shares."""
    return _runtime._every(interval, fn, jitter, immediately, name, _getframe(1))


def to_thread(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
    """`Runtime.to_thread` on the runtime that the whole process shares."""
    return _runtime._to_thread(fn, args, kwargs, _getframe(1))


def run(coro: Awaitable[T], *, timeout: float | None = None) -> T:
    """`Runtime.run` on the runtime that the whole process shares."""
    return _runtime._run(coro, timeout, _getframe(1))


def flush(timeout: float | None = None, *, progress: bool = False) -> None:
    """`Runtime.flush` on the runtime that the whole process shares."""
    _runtime.flush(timeout, progress=progress)


def shutdown(timeout: float | None | FromSettings = FROM_SETTINGS) -> None:
    """`Runtime.shutdown` on the runtime that the whole process shares; the next use starts afresh. Not for libraries."""
    _runtime.shutdown(timeout)


def configure(**settings: Unpack[Changes]) -> None:
    """`Runtime.configure` on the runtime that the whole process shares. For programs: a library leaves the settings alone."""
    _runtime.configure(**settings)


def tasks() -> list[Task[Any]]:
    """`Runtime.tasks` of the runtime that the whole process shares."""
    return _runtime.tasks()


def stats() -> Stats:
    """`Runtime.stats` of the runtime that the whole process shares."""
    return _runtime.stats()


def dump(file: IO[str] | None = None) -> None:
    """`Runtime.dump` of the runtime that the whole process shares."""
    _runtime.dump(file)
