"""The `blocking` decorator: it makes the sync twin of an async function or class, so that one source serves sync and async callers."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypedDict, TypeVar, Unpack, overload

from .._arguments import check_timeout, close_unstarted
from .._errors import NotAsyncError
from .._shared import chosen
from . import twins

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
S = TypeVar("S")
E = TypeVar("E", bound=bool | None)
R_co = TypeVar("R_co", covariant=True)
A_co = TypeVar("A_co", covariant=True)


class Blocking(Protocol[P, R_co, A_co]):
    """
    The sync twin of a function, made by `blocking`: a call waits for the result. As an attribute of a class it is a method.

    `A_co` is the return type of the async function.

    Example:
        >>> import asyncio
        >>> from omniloop import blocking
        >>> @blocking
        ... async def fetch(number):
        ...     return f"page {number}"
        >>> fetch.options(timeout=5)(3)
        'page 3'
        >>> asyncio.run(fetch.aio(4))
        'page 4'
    """

    @property
    def __name__(self) -> str: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @property
    def aio(self) -> Callable[P, A_co]:
        """The same function for async callers, on any event loop; it runs on omniloop's."""
        ...

    def options(self, *, timeout: float | None) -> Self:
        """The same function with a time limit in seconds for each call, or for each item of an iterator."""
        ...

    @overload
    def __get__(self, obj: None, owner: type | None = None, /) -> Self: ...
    @overload
    def __get__(
        self: Blocking[Concatenate[Any, Q], S, T], obj: object, owner: type | None = None, /
    ) -> Blocking[Q, S, T]: ...


# No function matches two of the overloads below. If one did, and its signature had an `Any`, mypy would choose neither overload and lose
# all types. So one overload covers all awaitables, and one covers all async iterators.

if TYPE_CHECKING:

    class Options(TypedDict, total=False):
        timeout: float | None
        rename: Mapping[str, str] | None
        in_caller: Iterable[str]
        on_loop: Iterable[str]
        reopen: bool
        nested: bool | tuple[type, ...]
        runtime: Any


class Decorator(Protocol):
    """The decorator that `blocking(…)` with options returns. Its types are those of `blocking` itself."""

    @overload
    def __call__(self, fn: type, /) -> Any: ...
    @overload
    def __call__(
        self, fn: Callable[P, AsyncIterator[T]], /
    ) -> Blocking[P, Generator[T, Any, None], AsyncGenerator[T, Any]]: ...
    @overload
    def __call__(
        self, fn: Callable[P, AbstractAsyncContextManager[T, E]], /
    ) -> Blocking[P, AbstractContextManager[T, E], AbstractAsyncContextManager[T, E]]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> Blocking[P, T, Coroutine[Any, Any, T]]: ...


@overload
def blocking(fn: type, /, **options: Unpack[Options]) -> Any: ...
@overload
def blocking(
    fn: Callable[P, AsyncIterator[T]], /, **options: Unpack[Options]
) -> Blocking[P, Generator[T, Any, None], AsyncGenerator[T, Any]]: ...
@overload
def blocking(
    fn: Callable[P, AbstractAsyncContextManager[T, E]], /, **options: Unpack[Options]
) -> Blocking[P, AbstractContextManager[T, E], AbstractAsyncContextManager[T, E]]: ...
@overload
def blocking(
    fn: Callable[P, Awaitable[T]], /, **options: Unpack[Options]
) -> Blocking[P, T, Coroutine[Any, Any, T]]: ...
@overload
def blocking(**options: Unpack[Options]) -> Decorator: ...
def blocking(
    fn: Any = None,
    /,
    *,
    timeout: float | None = None,
    rename: Mapping[str, str] | None = None,
    in_caller: Iterable[str] = (),
    on_loop: Iterable[str] = (),
    reopen: bool = False,
    nested: bool | tuple[type, ...] = True,
    runtime: Any = None,
) -> Any:
    """
    Make the sync twin of an async function or class: ``Database = blocking(AsyncDatabase)``.

    A call runs on the loop and waits, as `run` does; Ctrl-C cancels it. An async generator becomes an iterator that never reads
    ahead, and `async with` becomes `with`. ``.aio`` of a function or method is the same function for async callers, on any event loop.

    A class's twin wraps an object of the class. The object is made on the loop, and its sync methods run there; attributes and
    properties are read in the caller's thread. A returned object with something async, or with attributes that lead to it
    (``client.chat.completions``), is returned as its twin, always the same one; a twin that is passed as an argument arrives as its
    original. Data is returned as it is. An object that the twin's class made or that `with` entered is closed when its twin is
    dropped, and at exit after all work.

    Blocks in each call; not for the loop's own thread. If another event loop runs in the calling thread, that loop is blocked, and a
    `RuntimeWarning` says so, once for each place.

    Args:
        fn: A class, an async function, or a function that returns something to be awaited, entered or iterated over.
        timeout: Seconds for each call, or each item of an iterator; None waits without end. ``f.options(timeout=5)(…)`` sets it for
            one call.
        rename: Other names for methods on the sync face: ``{"aread": "read"}``. `aclose` becomes `close` by default, if the class has
            no `close`.
        in_caller: Names of sync methods that run in the caller's thread, because they need no loop.
        on_loop: Names of attributes and properties that are read on the loop.
        reopen: Make the object anew, with the same arguments, in a forked child and after `shutdown()`, instead of refusing.
        nested: False makes twins only of classes that were passed to `blocking`, and of objects that can be entered or iterated over.
            A tuple names classes whose objects get no twin.
        runtime: The runtime on whose loop the calls run; by default the shared one.

    Raises:
        NotAsyncError: if *fn* is neither a class nor a function.
        TypeError: if *runtime* is no `Runtime`, *nested* names no classes, or an option for classes is given for a function.
        ValueError: if *timeout* is not a number of seconds.
        AttributeError: if *rename* names a method that the class does not have.

    Example:
        >>> import asyncio
        >>> from omniloop import blocking
        >>> async def fetch(number):
        ...     await asyncio.sleep(0.01)
        ...     return f"page {number}"
        >>> get = blocking(fetch, timeout=5)
        >>> get(3)
        'page 3'
    """
    check_timeout(timeout)
    for option, names in {"in_caller": in_caller, "on_loop": on_loop}.items():
        if isinstance(names, str):
            raise TypeError(f"{option}={names!r}: give the names in a list or set.")
    classes = tuple(nested) if isinstance(nested, (tuple, list, set, frozenset)) else ()
    if not isinstance(nested, bool) and not (classes and all(isinstance(each, type) for each in classes)):
        raise TypeError(
            f"nested={nested!r}: give a tuple of the classes to leave alone, or False for all that have no twin."
        )
    options = twins.Options(
        chosen(runtime),
        timeout,
        tuple(sorted((rename or {}).items())),
        frozenset(in_caller),
        frozenset(on_loop),
        bool(reopen),
        classes or bool(nested),
    )
    return partial(_decorate, options) if fn is None else _decorate(options, fn)


def _decorate(options: twins.Options, fn: Any) -> Any:
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(_decorate(options, fn.__func__))
    if isinstance(fn, twins.TwinType):
        return twins.make_class(fn._omniloop_original, options, asked_for=True)
    if inspect.isclass(fn):
        if fn.__module__ == "builtins":
            raise NotAsyncError(f"{fn!r} has nothing async. blocking() takes an async class, or an async function.")
        return twins.make_class(fn, options, asked_for=True)
    if inspect.iscoroutine(fn):
        close_unstarted(fn)
        raise NotAsyncError(f"blocking() takes the function, and was given the coroutine {fn!r}. Use run() for it.")
    if not callable(fn):
        raise NotAsyncError(f"blocking() takes an async function or class, and {fn!r} can't be called.")
    if isinstance(fn, twins.SyncCall):
        return fn
    if options.rename or options.in_caller or options.on_loop or options.reopen:
        raise TypeError(f"{fn!r} is a function, and rename, in_caller, on_loop and reopen are for classes.")
    return twins.SyncCall(fn, options)
