"""The `background` decorator: calling the function starts it in the background and returns its task."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from .._arguments import check_timeout, is_async
from .._brokers.handover import Engine, Sent, checked_function, checked_options, handed_over
from .._errors import NotAsyncError
from .._report import Hook, caller
from .._runtime import Runtime
from .._shared import chosen
from .._starting import limiter, starting
from .._work.task import FAILED, Task, copied

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")


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
    decorate: Any = partial(
        _decorate,
        broker=broker,
        on_error=on_error,
        runtime=chosen(runtime),
        name=name,
        context=context,
        daemon=daemon,
        timeout=timeout,
        limit=limit,
    )
    return decorate if fn is None else decorate(fn)


def _decorate(fn: Any, *, broker: Engine | None, on_error: Hook | None, **options: Any) -> Any:
    again: Any = partial(_decorate, broker=broker, on_error=on_error, **options)
    if broker is not None and isinstance(fn, (classmethod, type)):
        checked_function(fn)
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(again(fn.__func__))
    if inspect.isclass(fn):
        public = {
            name: value
            for name, value in vars(fn).items()
            if not name.startswith("_")
            and is_async(value.__func__ if isinstance(value, (classmethod, staticmethod)) else value)
        }
        if not public:
            raise NotAsyncError(f"{fn!r} defines no public async method for @background to decorate.")
        for name, value in public.items():
            setattr(fn, name, again(value))
        return fn
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
    if options["timeout"] is not None and not options["daemon"] and not is_async(fn):
        raise ValueError(
            f"timeout={options['timeout']!r}: {fn!r} is a plain function, and nothing can interrupt its thread. Give daemon=True as well: "
            "then the thread is left."
        )
    start = starting(fn=fn, **options)

    def decorated(*args: Any, **kwargs: Any) -> Any:
        task = start(caller(), *args, **kwargs)
        if on_error is not None:
            task._when_done(partial(_hand_over, task, on_error))
        return task

    decorated = _like(fn, decorated)
    if broker is None:
        return decorated
    checked_function(fn)
    return _like(fn, handed_over(broker, fn, options["name"], decorated))


def _hand_over(task: Task[Any], on_error: Hook) -> None:
    ending, value = task._ended()
    if ending is FAILED:
        value.failure.hook = on_error


def _like(fn: Callable[..., Any], start: Callable[..., Any]) -> Callable[..., Any]:
    functools.update_wrapper(start, fn)
    # `inspect.markcoroutinefunction` and its asyncio forerunner set these marks on the original. The decorated function is no
    # coroutine function: calling it returns a task.
    for mark in ("_is_coroutine_marker", "_is_coroutine"):
        vars(start).pop(mark, None)
    vars(start)["_is_background"] = True
    return start
