"""The `background` decorator: calling the function starts it in the background and returns its task."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, overload

from .._arguments import check_timeout, is_async, name_of
from .._brokers.handover import Engine, Sent, checked_function, checked_options, handed_over
from .._errors import NotAsyncError
from .._limiter import by_result, go_limited, limiter, to_thread_limited
from .._report import Hook, caller
from .._runtime import Runtime
from .._shared import chosen
from .._work.task import FAILED, Kind, Task, copied

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")


class _Options(NamedTuple):
    daemon: bool
    name: str | None
    context: Context | None
    timeout: float | None
    limit: int | None
    on_error: Hook | None
    runtime: Runtime
    broker: Engine | None = None


# `overload-overlap`, here and below: a class is a callable too, and the first overload that matches is the right one.
class Decorator(Protocol):
    """The decorator that `background(…)` with options returns. Its types are those of `background` itself."""

    @overload
    def __call__(self, fn: type[C], /) -> type[C]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, Task[T]]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> Callable[P, Task[T]]: ...


class HandOver(Protocol):
    """The decorator that `background(broker=…)` returns."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, Sent[T]]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> Callable[P, Sent[T]]: ...


@overload
def background(fn: type[C], /) -> type[C]: ...  # type: ignore[overload-overlap]
@overload
def background(fn: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, Task[T]]: ...
@overload
def background(fn: Callable[P, T], /) -> Callable[P, Task[T]]: ...
@overload
def background(
    *,
    name: str | None = None,
    context: Context | None = None,
    daemon: bool = False,
    timeout: float | None = None,
    limit: int | None = None,
    on_error: Hook | None = None,
    runtime: Runtime | None = None,
) -> Decorator: ...
@overload
def background(*, broker: Engine, name: str | None = None, limit: int | None = None) -> HandOver: ...
def background(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    context: Context | None = None,
    daemon: bool = False,
    timeout: float | None = None,
    limit: int | None = None,
    on_error: Hook | None = None,
    runtime: Runtime | None = None,
    broker: Engine | None = None,
) -> Any:
    """
    Decorate a function so that calling it starts it in the background, and returns its `Task` at once.

    An async function runs on the loop, as with `go`: ``await f()`` only waits, on any event loop, and a bare ``f()`` is fire and
    forget. A plain function runs in a worker thread, as with `to_thread`. So does a callable that does not say whether it is async
    (a lambda, a partial, a callable object); if it returns an awaitable, that is awaited on the loop. Methods, class methods and
    static methods can be decorated too. Decorating a class decorates every public async method that it defines. Signature and
    docstring are kept.

    Args:
        name: For logs and `tasks()`. By default the name of the function.
        context: Run in a copy of this context instead of a copy of each caller's.
        daemon: Cancel the work at exit instead of waiting for it. A plain function then runs in a daemon thread of its own, which
            counts toward no bound. At exit, or when its handle is cancelled, nobody waits for the thread any more, and the log names it
            if it still runs.
        timeout: Seconds from each call. A call that is not done by then is cancelled, and fails with `TaskTimeoutError`. A plain
            function needs *daemon* for this: nothing can interrupt a thread, so the thread is left running.
        limit: How many calls run at once. The others wait their turn, in order, each in its caller's context. Each function has its
            own count. A running call that awaits another call of the same function may wait for ever.
        on_error: Called with the `Failure` of a call that failed and whose error nobody asked for, instead of the hook of
            `configure`.
        runtime: Run on this runtime instead of the one that the process shares.
        broker: Hand each call over to this engine, which keeps it beyond the process, instead of running it here. Calling the function
            then returns a `Sent`, and the function runs in the engine's worker. Not together with *daemon*, *on_error* and
            *runtime*; *limit* counts in the worker.

    Raises:
        NotAsyncError: if a call of *fn* would not run work: *fn* is a coroutine, a generator function, or a class without a public
            async method, or can't be called.
        TypeError: if an option is of the wrong type.
        ValueError: if *limit* is below 1, if *timeout* is not a number of seconds or is given for a plain function without *daemon*, or
            if *broker* can't carry the function.

    Example:
        >>> import asyncio
        >>> from omniloop import background
        >>> @background
        ... async def notify(name):
        ...     await asyncio.sleep(0.01)
        ...     return f"told {name}"
        >>> task = notify("ada")  # is on its way
        >>> task.result(timeout=5)
        'told ada'
    """
    if not isinstance(daemon, bool):
        raise TypeError(f"daemon={daemon!r}: give True or False.")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name={name!r}: give a string, or None for the function's own name.")
    if on_error is not None and not callable(on_error):
        raise TypeError(f"on_error={on_error!r}: give a callable that takes a Failure, or None.")
    if context is not None:
        # Only checks that it is a context: each call makes its own copy.
        copied(context, None)
    check_timeout(timeout)
    limiter(limit)
    if broker is not None:
        checked_options(daemon=daemon, on_error=on_error, runtime=runtime, context=context, timeout=timeout)
    options = _Options(daemon, name, context, timeout, limit, on_error, chosen(runtime), broker)
    return partial(_decorate, options) if fn is None else _decorate(options, fn)


def _decorate(options: _Options, fn: Any) -> Any:
    if options.broker is not None and isinstance(fn, (classmethod, type)):
        checked_function(fn)
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(_decorate(options, fn.__func__))
    if inspect.isclass(fn):
        return _decorate_class(options, fn)
    if inspect.iscoroutine(fn):
        fn.close()
        raise NotAsyncError(f"@background decorates a function, and was given the coroutine {fn!r}. Use go() for it.")
    if not callable(fn):
        raise NotAsyncError(f"@background decorates a function, a method or a class, and {fn!r} can't be called.")
    if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
        raise NotAsyncError(
            f"{fn!r} is a generator function, which does nothing when called. Decorate a function that consumes it."
        )
    if getattr(fn, "_is_background", False):
        raise NotAsyncError(f"{fn!r} is decorated with @background already.")
    if options.broker is not None:
        checked_function(fn)
        here = _decorate(options._replace(broker=None), fn)
        return _finish(fn, handed_over(options.broker, fn, options.name, here))
    if options.timeout is not None and not options.daemon and not is_async(fn):
        raise ValueError(
            f"timeout={options.timeout!r}: {fn!r} is a plain function, and nothing can interrupt its thread. Give daemon=True as well: "
            "then the thread is left."
        )
    return _finish(fn, _starting(options, fn))


def _decorate_class(options: _Options, cls: type) -> type:
    public = {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("_")
        and is_async(value.__func__ if isinstance(value, (classmethod, staticmethod)) else value)
    }
    if not public:
        raise NotAsyncError(f"{cls!r} defines no public async method for @background to decorate.")
    for name, value in public.items():
        setattr(cls, name, _decorate(options, value))
    return cls


def _starting(options: _Options, fn: Callable[..., Any]) -> Callable[..., Task[Any]]:
    daemon, name, context, timeout, limit, on_error, runtime, _ = options
    limited = limiter(limit)
    start: Callable[..., Task[Any]]
    if is_async(fn):
        kind = Kind.DAEMON if daemon else Kind.WORK

        def start(*args: Any, **kwargs: Any) -> Task[Any]:
            coro = fn(*args, **kwargs)
            options: Any = {"context": context, "kind": kind, "timeout": timeout}
            return _tell(go_limited(runtime, limited, coro, caller(), name, **options), on_error)
    else:
        call = by_result(runtime, fn)

        def start(*args: Any, **kwargs: Any) -> Task[Any]:
            options: Any = {"context": context, "daemon": daemon, "timeout": timeout}
            work = partial(call, *args, **kwargs)
            return _tell(to_thread_limited(runtime, limited, work, caller(), name or name_of(fn), **options), on_error)

    return start


def _tell(task: Task[T], on_error: Hook | None) -> Task[T]:
    if on_error is not None:

        def hand_over() -> None:
            ending, value = task._ended()
            if ending is FAILED:
                value.failure.hook = on_error

        task._when_done(hand_over)
    return task


def _finish(fn: Callable[..., Any], start: Callable[..., Any]) -> Callable[..., Any]:
    functools.update_wrapper(start, fn)
    # `inspect.markcoroutinefunction` and its asyncio forerunner set these marks on the original. The decorated function is no
    # coroutine function: calling it returns a task.
    for mark in ("_is_coroutine_marker", "_is_coroutine"):
        vars(start).pop(mark, None)
    vars(start)["_is_background"] = True
    return start
