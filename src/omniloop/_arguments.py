"""Turns what a user passes into something that can be started, or raises an error that names the call that was meant."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, ContextVar
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE
from types import CoroutineType, FunctionType
from typing import Any, Final, TypeVar

from . import _hooks
from ._errors import NotAsyncError
from ._settings import MOST_SECONDS

T = TypeVar("T")

# The flags of a function's code that rule it out.
NOT_EVEN_ASYNC: Final = CO_ASYNC_GENERATOR
NOT_PLAIN: Final = CO_ASYNC_GENERATOR | CO_COROUTINE


def as_coroutine(coro: object, loop: asyncio.AbstractEventLoop | None, call: str = "go") -> Coroutine[Any, Any, Any]:
    """Return *coro*, or a coroutine that awaits it; NotAsyncError if it can't be awaited on *loop*. *call* is what the user called."""
    if isinstance(coro, CoroutineType):
        if coro.cr_running or coro.cr_suspended:
            # Not closed: it belongs to whoever runs it.
            raise NotAsyncError(
                f"{coro!r} already runs. A coroutine can be started once; make a new one by calling its function again."
            )
        return coro
    if inspect.iscoroutinefunction(coro):
        name = _name(coro)
        raise NotAsyncError(f"{coro!r} is a coroutine function. Call it: {call}({name}(…)).")
    if inspect.isasyncgen(coro):
        raise NotAsyncError(
            f"{coro!r} is an async generator. Use iterate() to consume it, or go() on a coroutine that does."
        )
    if inspect.isasyncgenfunction(coro):
        raise NotAsyncError(
            f"{coro!r} is an async generator function. Call it and pass the result to iterate(): iterate({_name(coro)}(…))."
        )
    if asyncio.isfuture(coro):
        if coro.get_loop() is not loop:
            if type(coro).__name__ == "_GatheringFuture":
                raise NotAsyncError(
                    f"{coro!r} belongs to the event loop that gather() was called on, and can be awaited only there. Start each "
                    "with go() and ask the tasks for their results, or use TaskGroup or map(); or call gather() in a coroutine."
                )
            raise NotAsyncError(
                f"{coro!r} belongs to another event loop, and can be awaited only there. Pass the coroutine itself, before it is made a task."
            )
        return _await(coro)
    if isinstance(coro, Awaitable):
        return _await(coro)
    if inspect.isawaitable(coro):
        return _await(coro)
    if isinstance(coro, concurrent.futures.Future):
        raise NotAsyncError(
            f"{coro!r} is a concurrent.futures.Future, which can't be awaited. It already runs: call its result()."
        )
    if callable(coro):
        name = _name(coro)
        if getattr(coro, "_is_background", False):
            raise NotAsyncError(f"{name} is a @background function, which starts by itself. Call it: {name}(…).")
        raise NotAsyncError(
            f"{coro!r} is a plain function. Use call_soon({name}, …) to run it on the loop, or to_thread({name}, …) if it blocks."
        )
    if coro is None:
        raise NotAsyncError(
            f"None can't be awaited. Pass a coroutine: {call}(fetch(url)). A plain function was called, perhaps, and has run already."
        )
    raise NotAsyncError(f"{coro!r} can't be awaited. Pass a coroutine: {call}(fetch(url)).")


_ENDLESS: Final = (math.inf, -math.inf)

# The arguments of the calls that do not take the function first and its arguments after it.
_USAGE: Final = {
    "call_later": "delay, fn, *args",
    "call_at": "when, fn, *args",
    "every": "interval, fn",
    "map": "fn, items",
}


def check_function(fn: object, call: str, or_async: bool = False) -> None:
    """Raise NotAsyncError if *call* can't run *fn*."""
    flags = fn.__code__.co_flags if type(fn) is FunctionType else NOT_PLAIN
    if not flags & (NOT_EVEN_ASYNC if or_async else NOT_PLAIN):
        return
    if inspect.iscoroutine(fn):
        fn.close()
        way = "Pass the async function itself" if or_async else "Use go() for it"
        raise NotAsyncError(f"{call}() takes a function, and was given the coroutine {fn!r}. {way}.")
    if not callable(fn):
        raise NotAsyncError(
            f"{call}() takes a function, and {fn!r} can't be called. Use {call}({_USAGE.get(call, 'fn, *args')})."
        )
    if inspect.isasyncgenfunction(fn):
        raise NotAsyncError(
            f"{call}() runs functions, and {fn!r} is an async generator function, which does nothing when called. Use iterate({_name(fn)}(…))."
        )
    if not or_async and is_async(fn):
        raise not_plain(call, _name(fn))


def is_async(fn: object) -> bool:
    """Tell whether calling *fn*, a function or an object that can be called, makes a coroutine."""
    # B004 takes this for a check whether *fn* can be called.
    call = getattr(type(fn), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(call)


def not_plain(call: str, name: str) -> NotAsyncError:
    """Return the error for an async function where a plain one is meant."""
    return NotAsyncError(f"{call}() runs plain functions, and {name} is async. Use go({name}(…)).")


def check_timeout(timeout: object) -> None:
    """Raise ValueError if *timeout* is neither None nor a number of seconds; a negative number counts as 0."""
    if timeout is None or (isinstance(timeout, (int, float)) and (timeout in _ENDLESS or abs(timeout) <= MOST_SECONDS)):
        return
    raise ValueError(f"timeout={timeout!r}: give seconds as a number, or None to wait without end.")


def check_count(name: str, value: object, also: str = "", least: int = 1) -> None:
    """Raise ValueError if *value* is not a whole number of *least* or more. *also* says what else may be given."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number of 1 or more{also}.")


_MISSING: Final = object()


def carried(before: Context, after: Context) -> dict[ContextVar[Any], Any]:
    """
    Return the variables that were set between two looks at a context, and that may be set in another context.

    Leaves out omniloop's own variables, which describe a task and whose names all begin alike, and values that belong to a thread.
    """
    guest = _hooks.waits()
    return {
        variable: value
        for variable, value in after.items()
        if before.get(variable, _MISSING) is not value
        and not variable.name.startswith("omniloop")
        and not (guest is not None and guest.is_thread_bound(value))
    }


def checked_name(name: object, coro: object) -> str:
    """Return *name*; if it is not a string, close *coro* and raise TypeError."""
    if isinstance(name, str):
        return name
    close_unstarted(coro)
    raise TypeError(f"name={name!r}: give a string, or None for the name of the coroutine.")


def close_unstarted(*coros: object) -> None:
    """Close coroutines that are refused, so that no "never awaited" warning follows. A running one is left to whoever runs it."""
    for coro in coros:
        if isinstance(coro, CoroutineType) and not coro.cr_running and not coro.cr_suspended:
            coro.close()


async def _await(coro: Awaitable[T]) -> T:
    return await coro


def _name(work: object) -> str:
    return getattr(work, "__name__", None) or type(work).__name__


F = TypeVar("F", bound=Callable[..., Any])


def one_argument(fn: F) -> F:
    """
    Hide the `*misplaced` of *fn* from help(), inspect and the docs.

    It is there so that `run(coro, 5)` raises an error that says what was meant, and closes its coroutine. Python itself would say only how
    many arguments there are, and the coroutine would warn later that it was never awaited.
    """
    signature = inspect.signature(fn)
    shown = [it for it in signature.parameters.values() if it.kind is not it.VAR_POSITIONAL]
    vars(fn)["__signature__"] = signature.replace(parameters=shown)
    return fn


def misplaced_arguments(call: str, coro: object, misplaced: tuple[object, ...]) -> TypeError:
    """Return the error for arguments after the one that *call* takes. Closes those that are coroutines."""
    close_unstarted(coro, *misplaced)
    first = misplaced[0]
    if inspect.isroutine(coro):
        given = ", ".join(repr(each) for each in misplaced)
        way = f"Call it: {call}({_name(coro)}({given}))."
        if not is_async(coro) and not getattr(coro, "_is_background", False):
            way = f"Use call_soon({_name(coro)}, {given}), or to_thread() if it blocks."
        return TypeError(
            f"{call}() takes a coroutine, and was given the function {_name(coro)} with its arguments. {way}"
        )
    if inspect.isawaitable(first):
        return TypeError(
            f"{call}() takes one coroutine, and was given {1 + len(misplaced)}. "
            "Start each with a go() of its own and ask the tasks for their results, or use TaskGroup or map()."
        )
    option = "name" if isinstance(first, str) else "timeout"
    return TypeError(
        f"{call}() takes one coroutine, and was given {first!r} too. Name what it is: {call}({_name(coro)}(…), {option}={first!r})."
    )


def name_of(thing: object) -> str:
    """Return the name of a function, a coroutine or another callable for logs and messages."""
    return getattr(thing, "__qualname__", None) or type(thing).__name__
