"""
Makes the sync twin of an async function or class: what is called on it runs on the loop, and the caller waits.

A twin of an object wraps it, and is the only one of it: what comes out is looked up by the identity of the original. Calls go in
with the originals, and come out with the twins. Nothing here runs on the loop but `_there`, `_keep` and what they call.
"""

from __future__ import annotations

import asyncio
import copy
import copyreg
import functools
import inspect
import operator
import sys
import threading
import warnings
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import closing, suppress
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_ITERABLE_COROUTINE
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CoroutineType,
    FrameType,
    FunctionType,
    GenericAlias,
    MethodType,
    NoneType,
    TracebackType,
)
from typing import Any, Final, NamedTuple

from .._arguments import close_unstarted
from .._bridges.enter import AsyncEntered, Entered
from .._caller import caller
from .._errors import ClosedError, ForkedError, OmniloopError, TaskTimeoutError, WouldDeadlockError
from .._life.life import Life, Stage
from .._locks import Guard
from .._process import fork
from .._runtime import Runtime
from .._steps import AsyncSteps, Steps, iterating, trimmed
from .._work.deadline import within
from .._work.task import Kind
from . import faces

_getframe: Final = sys._getframe

# What neither is a twin nor can have one.
_PLAIN: Final = frozenset({NoneType, bool, int, float, complex, str, bytes, bytearray, range, slice, object})
_CONTAINERS: Final = frozenset({list, tuple, dict})


class Options(NamedTuple):
    """What was said when the twin was made; what comes out of it has the same."""

    runtime: Runtime
    timeout: float | None = None
    rename: tuple[tuple[str, str], ...] = ()
    # Names of sync methods that run in the caller's thread, and of attributes that are looked at on the loop.
    in_caller: frozenset[str] = frozenset()
    on_loop: frozenset[str] = frozenset()
    reopen: bool = False
    # Whether what needs a twin comes out as one though nobody has asked for it; or the classes that are left alone.
    nested: bool | tuple[type, ...] = True

    def leaves_alone(self, kind: type) -> bool:
        return isinstance(self.nested, tuple) and issubclass(kind, self.nested)


# --- what has a twin --------------------------------------------------------------------------------------------------

# The twins of a class are kept in the class, under this name, and live as long: a dictionary would keep both for ever. Those of
# a class that can't be added to (one in C) are kept so.
_TWINS: Final = "_omniloop_twins"
_of_fixed: dict[type, list[TwinType]] = {}
# The twin of each object that came out, by the identities of both, and only as long as it lives.
_live: weakref.WeakValueDictionary[tuple[int, int], Twin] = weakref.WeakValueDictionary()
_lock = Guard()


def _forget_lock() -> None:
    global _lock
    # Another thread may have held it at the fork.
    _lock = Guard()


fork.forget_after_fork(_forget_lock)


def known(original: type, options: Options) -> TwinType | None:
    """The twin of *original* that was asked for with these options, or else for the same runtime."""
    found: TwinType | None = None
    for twin in _twins_of(original):
        if twin._omniloop_asked_for and twin._omniloop_options.runtime is options.runtime:
            if twin._omniloop_options == options:
                return twin
            found = found or twin
    return found


def _twins_of(original: type) -> list[TwinType]:
    own: list[TwinType] | None = vars(original).get(_TWINS)
    return own or _of_fixed.get(original) or []


def _exactly(original: type, options: Options) -> TwinType | None:
    return next((twin for twin in _twins_of(original) if twin._omniloop_options == options), None)


def _face_of(value: Any, options: Options) -> TwinType | None:
    """The twin for *value*: its class's own; of the nearest base that has one, a twin as that one is; or one that it needs."""
    kind = type(value)
    if options.leaves_alone(kind):
        return None
    for base in kind.__mro__:
        found = known(base, options)
        if found is not None:
            return found if base is kind else make_class(kind, found._omniloop_options)
    if faces.opens(kind) or (options.nested and (faces.is_faced(kind) or faces.leads(value))):
        return make_class(kind, options)
    return None


def _in(value: Any) -> Any:
    """The original for a twin, also in an exact list, tuple or dict."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in _CONTAINERS:
        items: Iterable[Any] = value.values() if kind is dict else value
        if any(isinstance(type(item), TwinType) or type(item) is TwinType for item in items):
            return {key: _in_one(item) for key, item in value.items()} if kind is dict else kind(map(_in_one, value))
        return value
    return _in_one(value)


def _all_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple([_in(arg) for arg in args]), {key: _in(arg) for key, arg in kwargs.items()}


def _in_one(value: Any) -> Any:
    kind = type(value)
    if type(kind) is TwinType:
        return value._omniloop.here()
    if kind is TwinType:
        return value._omniloop_original
    return value


def _out(value: Any, options: Options, parent: object = None) -> Any:
    """The twin for what has one, also in an exact list, tuple or dict, which is copied then, and only then."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in _CONTAINERS:
        if not value:
            return value
        items = list(value.values() if kind is dict else value)
        twins = [_out_one(item, options, parent) for item in items]
        if all(map(operator.is_, items, twins)):
            return value
        return dict(zip(value, twins, strict=True)) if kind is dict else kind(twins)
    return _out_one(value, options, parent)


def _out_one(value: Any, options: Options, parent: object) -> Any:
    kind = type(value)
    if kind in _PLAIN or kind in _CONTAINERS or type(kind) is TwinType:
        return value
    if isinstance(value, type):
        return known(value, options) or value
    if kind is _Opened:
        if type(value.value) in _PLAIN:
            return value.value
        opened = _face_of(value.value, options) or make_class(type(value.value), options)
        twin = _enterable(opened)._omniloop_of(value.value, parent)
        twin._omniloop.way_out = value.opening
        return twin
    if kind is AsyncGeneratorType:
        name = getattr(value, "__qualname__", "an async generator")
        return Steps(value, options.runtime, _getframe(), name, _outward(options, parent), options.timeout)
    face = _face_of(value, options)
    return value if face is None else face._omniloop_of(value, parent)


def _outward(options: Options, parent: object) -> Callable[[Any], Any]:
    # The parent is held: what came out of it needs it.
    return lambda value: _out(value, options, parent)


# --- on the loop ------------------------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    """What came out of something that can be both awaited and entered, and the way to leave it."""

    value: Any
    opening: Any


async def _there(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options) -> Any:
    """Call a function that is no coroutine function on the loop; what it returns is awaited, if it can be."""
    try:
        result = call(*args, **kwargs)
    except StopIteration as end:
        # A `__next__`, say. No coroutine can raise it.
        return _Stopped(end)
    kind = type(result)
    if kind in _PLAIN or kind in _CONTAINERS or not hasattr(kind, "__await__"):
        return await result if inspect.isawaitable(result) else result
    if _has_live_twin(result):
        # A method that returns its own object, say, for chaining.
        return result
    if hasattr(kind, "__aenter__"):
        # Both `await session.get(…)` and `async with session.get(…)`. Entering does what awaiting does, in all that is known
        # (aiohttp, aiosqlite, asyncpg, asyncssh, redis, websockets), and `with` needs the way out of it afterwards.
        return _Opened(await result.__aenter__(), result)
    if hasattr(kind, "__aiter__"):
        # `async for row in connection.cursor(…)`: awaiting would leave nothing to iterate over. Its twin has `wait()`.
        return result
    return await result


class _Stopped(NamedTuple):
    error: StopIteration


async def _stepwise(generator: Generator[Any, Any, Any]) -> AsyncGenerator[Any, Any]:
    """The steps of a sync generator, taken on the loop."""
    take: Callable[[Any], Any] = generator.send
    value: Any = None
    with closing(generator):
        while True:
            try:
                item = take(value)
            except StopIteration:
                return
            try:
                take, value = generator.send, (yield item)
            except GeneratorExit:
                raise
            except BaseException as error:
                take, value = generator.throw, error


def _has_live_twin(original: Any) -> bool:
    return any((id(original), id(face)) in _live for face in _twins_of(type(original)))


# --- a call that waits ------------------------------------------------------------------------------------------------


# Where the warning was given: once a place.
_warned: set[tuple[object, int]] = set()


def _warn(frame: FrameType, what: str, instead: str) -> None:
    place = frame.f_code, frame.f_lineno
    if place in _warned:
        return
    _warned.add(place)
    ipython = sys.modules.get("IPython")
    if hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None):
        # A notebook or a shell: its loop has nothing else to do while a cell runs.
        return
    warnings.warn_explicit(
        f"{what} blocks the event loop that runs in this thread. Use {instead} here.",
        RuntimeWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
    )


NATIVE: Final = "native"
GENERATOR: Final = "generator"
STEPWISE: Final = "stepwise"
OTHER: Final = "other"
HERE: Final = "here"


def kind_of(fn: Any) -> str:
    """How *fn* is called: only a coroutine function written as such runs nothing before it is awaited."""
    flags = fn.__code__.co_flags if isinstance(fn, FunctionType) else 0
    if flags & CO_COROUTINE:
        return NATIVE
    if flags & CO_ASYNC_GENERATOR:
        return GENERATOR
    # A generator that `types.coroutine` made awaitable is none.
    return STEPWISE if flags & CO_GENERATOR and not flags & CO_ITERABLE_COROUTINE else OTHER


class SyncCall:
    """The sync twin of one function: a call waits. As an attribute of a class it is a method. Typed as `omniloop.Blocking`."""

    def __init__(
        self,
        fn: Any,
        options: Options,
        *,
        twin: Twin | None = None,
        name: str | None = None,
        title: str | None = None,
        owner: TwinType | None = None,
        instead: str | None = None,
        kind: str | None = None,
    ) -> None:
        self._fn = fn
        self._options = options
        self._kind = kind or kind_of(fn)
        # Of what it is a bound method: kept alive, and refused after a fork.
        self._twin = twin
        self.__name__ = name or getattr(fn, "__name__", type(fn).__name__)
        self.__qualname__ = getattr(fn, "__qualname__", self.__name__)
        self.__module__ = getattr(fn, "__module__", None) or __name__
        self.__doc__ = getattr(fn, "__doc__", None)
        # What messages call it, and what they advise: by what the user has written.
        self._told, self._owner, self._instead = title, owner, instead

    @property
    def _title(self) -> str:
        if self._owner is not None:
            return f"{self._owner.__name__}.{self.__name__}"
        return self._told or str(self.__qualname__).rpartition("<locals>.")[2]

    def _but(self, **changed: Any) -> SyncCall:
        # Not by `copy`, which takes what is pickled by its name for a constant.
        made = SyncCall.__new__(SyncCall)
        made.__dict__.update(self.__dict__, **changed)
        return made

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        # Decorated in a class of the user's own, which is no twin.
        return self if obj is None else self._but(_fn=MethodType(self._fn, obj))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._call(args, kwargs, caller())
        except BaseException as error:
            # Whoever reads the traceback sees the caller, and then the user's own code. (A bare `raise` adds no frame.)
            error.__traceback__ = trimmed(error.__traceback__)
            raise

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Any:
        options, twin, fn, kind = self._options, self._twin, self._fn, self._kind
        runtime = options.runtime
        life = runtime._current()
        here = _is_current(life)
        if here:
            # A sync method runs there anyway, unless there is something to wait for.
            if kind is NATIVE or kind is GENERATOR:
                raise self._deadlock()
            kind = HERE
        elif kind is not HERE and asyncio._get_running_loop() is not None:
            _warn(frame, f"{self._title}()" if self._instead is None else self._title, self._advice())
        args, kwargs = _all_in(args, kwargs)
        if twin is not None:
            # After the arguments: one of them may be what makes it anew.
            twin._omniloop.here()
        if kind is NATIVE:
            result = runtime._run(fn(*args, **kwargs), options.timeout, frame)
        elif kind is GENERATOR or kind is STEPWISE:
            items = fn(*args, **kwargs)
            items = items if kind is GENERATOR else _stepwise(items)
            return Steps(items, runtime, frame, self._title, _outward(options, twin), options.timeout)
        elif kind is HERE:
            result = fn(*args, **kwargs)
            if here and inspect.iscoroutine(result):
                result.close()
                raise self._deadlock()
        else:
            result = runtime._run(self._named(_there(fn, args, kwargs, options)), options.timeout, frame)
        if type(result) in _PLAIN:
            return result
        if type(result) is _Stopped:
            raise result.error
        return _out(result, options, twin)

    def _named(self, coro: Any) -> Any:
        coro.__qualname__ = self.__qualname__
        return coro

    def _advice(self, keyword: str = "") -> str:
        if self._instead is not None:
            return self._instead
        if self._title.replace(".", "").isidentifier():
            return f"`{keyword}{self._title}.aio(…)`"
        return "its `.aio(…)`"

    def _deadlock(self) -> WouldDeadlockError:
        advice = self._advice("async for … in " if self._kind is GENERATOR else "await ")
        return WouldDeadlockError(
            f"{self._title}() would wait, on the loop's own thread, for work that needs this thread. Use {advice} there."
        )

    # --- the other faces ----------------------------------------------------------------------------------------------

    @property
    def aio(self) -> Any:
        """The same function for async callers, on any event loop; it runs on omniloop's."""
        fn = self._fn
        call: Any
        if self._kind is GENERATOR or self._kind is STEPWISE:

            def iterate(*args: Any, **kwargs: Any) -> Any:
                return self._iterate(args, kwargs, caller())

            call = iterate
        elif self._kind is NATIVE:

            async def await_it(*args: Any, **kwargs: Any) -> Any:
                try:
                    return await self._await(args, kwargs, _getframe())
                except BaseException as error:
                    error.__traceback__ = trimmed(error.__traceback__)
                    raise

            call = await_it
        else:

            def begin(*args: Any, **kwargs: Any) -> Any:
                return _Pending(self, args, kwargs, caller())

            call = begin
        functools.update_wrapper(call, fn)
        return call

    def options(self, *, timeout: float | None) -> SyncCall:
        """
        The same function with a time limit for each call, or each item of an iterator: ``fetch.options(timeout=5)(url)``.

        Args:
            timeout: Seconds to wait. None waits without end.
        """
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
            raise TypeError(f"timeout={timeout!r}: give seconds as a number, or None to wait without end.")
        return self._but(_options=self._options._replace(timeout=timeout))

    async def _await(self, args: Any, kwargs: Any, frame: FrameType) -> Any:
        options, twin, fn = self._options, self._twin, self._fn
        args, kwargs = _all_in(args, kwargs)
        if twin is not None:
            twin._omniloop.here()
        work = fn(*args, **kwargs) if self._kind is NATIVE else self._named(_there(fn, args, kwargs, options))
        waiting = _elsewhere(work, options.runtime, frame)
        try:
            if options.timeout is None:
                result = await waiting
            else:
                result = await within(waiting, self._title, options.timeout, None)
        except BaseException as error:
            if isinstance(error, TaskTimeoutError):
                # Of this call, which has no handle.
                error.of_handle = False
            close_unstarted(work)
            error.__traceback__ = trimmed(error.__traceback__)
            raise
        if type(result) is _Stopped:
            raise result.error
        return _out(result, options, twin)

    def _iterate(self, args: Any, kwargs: Any, frame: FrameType) -> AsyncIterator[Any]:
        fn, options, twin, stepwise = self._fn, self._options, self._twin, self._kind is STEPWISE
        args, kwargs = _all_in(args, kwargs)
        if twin is not None:
            twin._omniloop.here()

        def make() -> Any:
            items = fn(*args, **kwargs)
            return iterating(_stepwise(items) if stepwise else items)

        return AsyncSteps(make, options.runtime, frame, self._title, _outward(options, twin), options.timeout)

    # --- what help(), inspect and Sphinx see --------------------------------------------------------------------------

    @property
    def __signature__(self) -> inspect.Signature:
        from .annotations import sync_signature

        return sync_signature(self._fn)

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override] # pyright: ignore[reportIncompatibleVariableOverride]
        signature = self.__signature__
        found = {
            name: parameter.annotation
            for name, parameter in signature.parameters.items()
            if parameter.annotation is not parameter.empty
        }
        if signature.return_annotation is not signature.empty:
            found["return"] = signature.return_annotation
        return found

    @property
    def __globals__(self) -> dict[str, Any]:
        # For typing.get_type_hints.
        found: dict[str, Any] = getattr(inspect.unwrap(self._fn), "__globals__", {})
        return found

    def __repr__(self) -> str:
        of = "" if self._twin is None else f" of {self._twin!r}"
        return f"<blocking {self.__qualname__}{of}>"

    def __reduce__(self) -> Any:
        if self._twin is not None:
            return getattr, (self._twin, self.__name__)
        return self.__qualname__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SyncCall) and (self._fn, self._options) == (other._fn, other._options)

    def __hash__(self) -> int:
        return hash(self._fn)


async def _elsewhere(work: Any, runtime: Runtime, frame: FrameType) -> Any:
    """Await *work* on the runtime's loop, whichever this one is."""
    if _is_current(runtime._current()):
        return await work
    return await runtime._go(work, None, None, Kind.WORK, frame, "accept")


class _Pending(Coroutine[Any, Any, Any]):
    """What `.aio` of a sync function returns: await it, enter it, iterate over it, as with what the function returns."""

    def __init__(self, call: SyncCall, args: Any, kwargs: Any, frame: FrameType) -> None:
        self._call, self._args, self._kwargs, self._frame = call, args, kwargs, frame
        self._entered: AsyncEntered[Any] | None = None

    @functools.cached_property
    def _coro(self) -> Any:
        return self._call._await(self._args, self._kwargs, self._frame)

    def __await__(self) -> Generator[Any, Any, Any]:
        found: Generator[Any, Any, Any] = self._coro.__await__()
        return found

    # A coroutine too, as `asyncio.run` and `create_task` want one.
    def send(self, value: Any, /) -> Any:
        return self._coro.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coro.throw(*error)

    def close(self) -> None:
        # What was never awaited, or is entered, has none.
        if "_coro" in vars(self):
            self._coro.close()

    def _make(self) -> Any:
        call = self._call
        if call._twin is not None:
            call._twin._omniloop.here()
        args, kwargs = _all_in(self._args, self._kwargs)
        return call._fn(*args, **kwargs)

    async def __aenter__(self) -> Any:
        call = self._call
        # Made on the loop too: it may look for a running one.
        made = await _elsewhere(_call(self._make), call._options.runtime, self._frame)
        self._entered = AsyncEntered(made, call._options.runtime, self._frame)
        value = await self._entered.__aenter__()
        return _out(value, call._options, call._twin)

    async def __aexit__(self, kind: Any, error: BaseException | None, tb: Any) -> bool:
        assert self._entered is not None
        return await self._entered.__aexit__(kind, error, tb)

    def __aiter__(self) -> AsyncIterator[Any]:
        call = self._call
        options = call._options
        return AsyncSteps(
            lambda: iterating(self._make()),
            options.runtime,
            self._frame,
            call._title,
            _outward(options, call._twin),
            options.timeout,
        )


async def _call(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


# --- an object's twin -------------------------------------------------------------------------------------------------


class _Ending:
    """Whether the original is still to be closed by us; what the keeper and the twin both know."""

    __slots__ = ("_wake", "due", "over")

    def __init__(self) -> None:
        self.due = True
        # Touched on the loop alone.
        self.over = False
        self._wake: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        if not self.over:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def come(self) -> None:
        self.over = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class _State:
    """What a twin knows: its original, and where that lives."""

    __slots__ = (
        "ending", "entered", "face", "life", "make", "original", "parent", "runtime", "way_out",
    )  # fmt: skip

    def __init__(self, face: TwinType, original: Any, parent: object) -> None:
        self.face = face
        self.runtime = face._omniloop_options.runtime
        self.original = original
        self.life: Life = self.runtime._current()
        # What it came out of, which it needs: a cursor its connection.
        self.parent = parent
        # With what it is made anew.
        self.make: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.ending: _Ending | None = None
        # Of what was both awaited and entered.
        self.way_out: Any = None
        # Who entered it: the thread, and the way out.
        self.entered: list[tuple[int, Entered[Any]]] = []

    def here(self) -> Any:
        """The original, if it can be used here and now."""
        life = self.runtime._current()
        if life is self.life and life.stage is not Stage.CLOSED:
            return self.original
        return self._elsewhere()

    def _elsewhere(self) -> Any:
        name = self.face.__name__
        if self.make is not None:
            args, kwargs = self.make
            old = self.original
            self.construct(args, kwargs, caller(2))
            with _lock:
                twin = _live.pop((id(old), id(self.face)), None)
                if twin is not None:
                    _live[id(self.original), id(self.face)] = twin
            if self.life.foreign:
                fork.keep_for_ever(old)
            return self.original
        if self.life.foreign:
            raise ForkedError(
                f"This {name} belongs to the parent process. Make it in this process, or use blocking(…, reopen=True)."
            )
        raise ClosedError(f"This {name} lived on a loop that has ended. Make it anew, or use blocking(…, reopen=True).")

    def construct(self, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> None:
        face, runtime = self.face, self.runtime
        original = face._omniloop_original
        if _is_current(runtime._current()):
            # Nothing to wait for.
            self.original = original(*args, **kwargs)
        else:
            coro: Any = _call(lambda: original(*args, **kwargs))
            coro.__qualname__ = original.__qualname__
            self.original = runtime._run(coro, face._omniloop_options.timeout, frame)
        self.life = runtime._current()
        closer = face._omniloop_closer
        if closer is not None:
            self.ending = _Ending()
            name = f"{original.__qualname__}.{closer}"
            runtime._go(_keep(self.original, closer, self.ending), name, None, Kind.KEEPER, frame, "accept")

    def is_over(self) -> None:
        """It is closed, or left, or somebody else sees to it."""
        if self.ending is not None:
            self.ending.due = False
            self.drop()

    def drop(self) -> None:
        """Have it closed, if it still is to be. Asks only: a finaliser must not wait."""
        ending, self.ending = self.ending, None
        if ending is not None:
            with suppress(ForkedError):
                self.life.check_process()
                # Not a cancellation, which would come before the keeper has begun, if it comes at once.
                self.life.inbox.put(ending.come)


async def _keep(original: Any, closer: str, ending: _Ending) -> None:
    """Close *original* when its twin is dropped, and at the end, after all work."""
    # Cancelled at the end of the runtime. An error that goes in would make a transaction roll back.
    with suppress(asyncio.CancelledError):
        await ending.wait()
    if ending.due:
        closed = getattr(original, closer)()
        if inspect.isawaitable(closed):
            await closed


class TwinType(type):
    """The class of the twins of classes."""

    _omniloop_original: type
    _omniloop_options: Options
    # The twin itself, where a user's class is derived from it.
    _omniloop_face: TwinType
    _omniloop_closer: str | None
    # What may not be overridden, and under which name the original has it.
    _omniloop_members: dict[str, str]
    # What has another name here.
    _omniloop_hidden: dict[str, str]
    # By a call of `blocking`, not because something came out.
    _omniloop_asked_for: bool

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> TwinType:
        faces = [base for base in bases if isinstance(base, TwinType) and base.__name__ != "Twin"]
        if faces and "_omniloop_original" not in namespace:
            _check_derived(name, faces, namespace)
        return super().__new__(mcs, name, bases, namespace, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        init = inspect.getattr_static(cls, "__init__")
        if init is not vars(Twin)["__init__"] or cls is Twin:
            # Of a class that is derived from a twin.
            raise AttributeError("__signature__")
        return inspect.signature(cls._omniloop_original)

    @property
    def aio(cls) -> Callable[..., Awaitable[Any]]:
        """Make one in async code, on any event loop; it lives on omniloop's."""

        async def make(*args: Any, **kwargs: Any) -> Any:
            return await _elsewhere(_call(lambda: cls(*args, **kwargs)), cls._omniloop_options.runtime, _getframe())

        return make

    def __getattr__(cls, name: str) -> Any:
        # Constants of the class, nested classes, and what dataclasses and `match` look for.
        if name.startswith("_omniloop"):
            raise AttributeError(name)
        if name in cls._omniloop_hidden:
            raise AttributeError(_renamed(cls, name))
        return _out(getattr(cls._omniloop_original, name), cls._omniloop_options)

    def __instancecheck__(cls, instance: object) -> bool:
        return cls.__subclasscheck__(type(instance))

    def __subclasscheck__(cls, subclass: type) -> bool:
        if super().__subclasscheck__(subclass):
            return True
        # The twins of a class and of its base are no class and base, where the base's was made later.
        return (
            type(subclass) is TwinType
            and "_omniloop_original" in vars(cls)
            and cls is not Twin
            and subclass is not Twin
            and issubclass(subclass._omniloop_original, cls._omniloop_original)
        )

    def __repr__(cls) -> str:
        return super().__repr__() if cls is Twin else f"<blocking class {cls.__module__}.{cls.__qualname__}>"

    def _omniloop_of(cls, original: Any, parent: object = None) -> Any:
        """The twin of *original*: the same one, as long as it lives."""
        key = id(original), id(cls._omniloop_face)
        twin: Any
        with _lock:
            twin = _live.get(key)
            if twin is None:
                twin = object.__new__(cls)  # type: ignore[arg-type]
                object.__setattr__(twin, "_omniloop", _State(cls._omniloop_face, original, parent))
                _live[key] = twin
            return twin


def _renamed(cls: TwinType, name: str) -> str:
    return f"The sync face of {cls.__name__} has {cls._omniloop_hidden[name]}() for {name}()."


def _enterable(face: TwinType) -> TwinType:
    """A class derived from *face* whose twins can be entered: of what came out of something that could be."""
    if hasattr(face, "__enter__"):
        return face
    found: TwinType | None = vars(face).get("_omniloop_enterable")
    if found is not None:
        return found
    own = {"__enter__": vars(Twin)["_omniloop_enter"], "__exit__": vars(Twin)["_omniloop_exit"]}
    # Outside of the lock: a metaclass may be the user's.
    made = TwinType(face.__name__, (face,), {"__slots__": (), "__module__": face.__module__, **own})
    with _lock:
        first: TwinType = vars(face).get("_omniloop_enterable") or made
        type.__setattr__(face, "_omniloop_enterable", first)
    return first


def _check_derived(name: str, faces: list[TwinType], namespace: dict[str, Any]) -> None:
    originals = {face._omniloop_original for face in faces}
    if len({face for face in originals if not any(face is not o and issubclass(o, face) for o in originals)}) > 1:
        raise TypeError(
            f"class {name} is derived from the twins of several classes, and an instance can wrap one object only. Derive an async "
            "class from all of them, and use blocking() on that."
        )
    for face in faces:
        for member in namespace:
            if member in face._omniloop_members:
                raise TypeError(
                    f"class {name} overrides {member}(), which the original would not call. Override it in a subclass of "
                    f"{face._omniloop_original.__qualname__}, and use blocking() on that."
                )


def _reduce_class(cls: TwinType) -> Any:
    if "_omniloop_original" not in vars(cls):
        return cls.__qualname__
    found: Any = sys.modules.get(cls.__module__)
    with suppress(AttributeError):
        for part in cls.__qualname__.split("."):
            found = getattr(found, part)
    if found is cls:
        # Decorated: the original has no name of its own.
        return cls.__qualname__
    options = cls._omniloop_options
    return _twin_of, (cls._omniloop_original, cls._omniloop_asked_for, *options[2:])


def _twin_of(original: type, asked_for: bool, *options: Any) -> TwinType:
    from .._shared import shared_runtime

    return make_class(original, Options(shared_runtime(), None, *options), asked_for=asked_for)


copyreg.pickle(TwinType, _reduce_class)


class Twin(metaclass=TwinType):
    """The base of all twins of classes."""

    __slots__ = ("__weakref__", "_omniloop")

    _omniloop: _State

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        face = type(self)._omniloop_face
        state = _State.__new__(_State)
        _State.__init__(state, face, None, None)
        object.__setattr__(self, "_omniloop", state)
        args, kwargs = _all_in(args, kwargs)
        if face._omniloop_options.reopen:
            state.make = args, kwargs
        frame = caller()
        if asyncio._get_running_loop() is not None and not _is_current(state.life):
            name = type(self).__name__
            _warn(frame, f"{name}()", f"`{name}.aio(…)`")
        try:
            state.construct(args, kwargs, frame)
        except BaseException as error:
            error.__traceback__ = trimmed(error.__traceback__)
            raise
        with _lock:
            _live[id(state.original), id(face)] = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_omniloop"):
            raise AttributeError(
                f"This {type(self).__name__} was not made: its __init__() must call super().__init__() first."
            )
        state = self._omniloop
        options = state.face._omniloop_options
        if name in state.face._omniloop_hidden:
            raise AttributeError(_renamed(state.face, name))
        if name in options.on_loop:
            return _looked_at(self, getattr, name)(state.here(), name)
        return _attribute(self, name, getattr(state.here(), name))

    def __setattr__(self, name: str, value: Any) -> None:
        own = inspect.getattr_static(type(self), name, None)
        if name == "_omniloop" or hasattr(type(own), "__set__"):
            object.__setattr__(self, name, value)
            return
        try:
            original = self._omniloop.here()
        except AttributeError:
            # A derived class, before it calls super().__init__().
            object.__setattr__(self, name, value)
            return
        setattr(original, name, _in(value))

    def __delattr__(self, name: str) -> None:
        own = inspect.getattr_static(type(self), name, None)
        if hasattr(type(own), "__delete__"):
            object.__delattr__(self, name)
        else:
            delattr(self._omniloop.here(), name)

    def __repr__(self) -> str:
        return repr(self._omniloop.original)

    def __eq__(self, other: object) -> bool:
        # bool(): `NotImplemented` from both sides is decided by identity, as ever.
        return self is other or bool(self._omniloop.original == _in_one(other))

    def __hash__(self) -> int:
        return hash(self._omniloop.original)

    def __dir__(self) -> Iterable[str]:
        return sorted({*object.__dir__(self), *dir(self._omniloop.original)} - {"_omniloop"})

    def __copy__(self) -> Any:
        return type(self)._omniloop_of(copy.copy(self._omniloop.here()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)._omniloop_of(copy.deepcopy(self._omniloop.here(), memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (type(self), self._omniloop.here())

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():
            # As a resource's.
            return
        with suppress(AttributeError):
            # It was made.
            self._omniloop.drop()

    # --- a sync face on `async with`; only classes that have one -------------------------------------------------------

    def _omniloop_enter(self) -> Any:
        state = self._omniloop
        options = state.face._omniloop_options
        original = state.here()
        if state.way_out is not None:
            # Entered when it came out.
            return self
        _guard(self, "with", caller())
        # Ended after all work, as what is made is.
        entered = Entered(original, state.runtime, Kind.KEEPER)
        try:
            value = entered.__enter__()
        except BaseException as error:
            error.__traceback__ = trimmed(error.__traceback__)
            raise
        state.is_over()
        state.entered.append((threading.get_ident(), entered))
        return self if value is original else _out(value, options, self)

    def _omniloop_exit(self, kind: Any, error: BaseException | None, tb: TracebackType | None) -> bool:
        state = self._omniloop
        way_out, state.way_out = state.way_out, None
        if way_out is not None:
            call = _dunder(self, way_out.__aexit__, "with")
            return bool(call._call((kind, error, tb), {}, caller()))
        me = threading.get_ident()
        entered = state.entered
        # Of those that this thread entered the last; it may be handed to another thread, to be left there.
        mine = [entry for entry in entered if entry[0] == me] or entered
        if not mine:
            raise OmniloopError(f"This {type(self).__name__} was never entered. Use it in a `with` statement.")
        entered.remove(mine[-1])
        try:
            return mine[-1][1].__exit__(kind, error, tb)
        except BaseException as raised:
            if raised is not error:
                raised.__traceback__ = trimmed(raised.__traceback__)
            raise

    async def _omniloop_aenter(self) -> Any:
        state = self._omniloop
        original = state.here()
        entered = AsyncEntered(original, state.runtime, _getframe())
        value = await entered.__aenter__()
        state.is_over()
        state.entered.append((0, entered))  # type: ignore[arg-type]
        return self if value is original else _out(value, state.face._omniloop_options, self)

    async def _omniloop_aexit(self, kind: Any, error: BaseException | None, tb: TracebackType | None) -> bool:
        entered: Any = next(entry for entry in reversed(self._omniloop.entered) if entry[0] == 0)
        self._omniloop.entered.remove(entered)
        return bool(await entered[1].__aexit__(kind, error, tb))

    # --- and on `async for` -------------------------------------------------------------------------------------------

    def _omniloop_iter(self) -> Iterator[Any]:
        state = self._omniloop
        original, options = state.here(), state.face._omniloop_options
        if hasattr(type(original), "__anext__"):
            # An iterator itself, which may be gone on with after a `break`.
            aiter(original)
            # Its own `__iter__` and `__next__` are made with its class, where pyright can't see them.
            return self  # pyright: ignore[reportReturnType]
        frame = caller()
        _guard(self, "for", frame)
        name = f"{state.face.__name__}.__aiter__"
        return Steps(original, state.runtime, frame, name, _outward(options, self), options.timeout)

    def _omniloop_next(self) -> Any:
        original = self._omniloop.here()
        return _dunder(self, _next_or_end, "for")._call((original,), {}, caller())

    def _omniloop_aiter(self) -> AsyncIterator[Any]:
        state = self._omniloop
        original, options = state.here(), state.face._omniloop_options
        name = f"{state.face.__name__}.__aiter__"
        out = _outward(options, self)
        return AsyncSteps(lambda: iterating(original), state.runtime, caller(), name, out, options.timeout)


async def _next_or_end(iterator: AsyncIterator[Any]) -> Any:
    try:
        return await iterator.__anext__()
    except StopAsyncIteration:
        return _Stopped(StopIteration())


def _rebuilt(cls: TwinType, original: Any) -> Any:
    return cls._omniloop_of(original)


def _is_current(life: Life) -> bool:
    return life.ident == threading.get_ident()


def _guard(twin: Twin, keyword: str, frame: FrameType) -> None:
    name = type(twin).__name__
    if _is_current(twin._omniloop.life):
        raise WouldDeadlockError(
            f"{name} would be waited for on the loop's own thread, which it needs. Use `async {keyword}` there."
        )
    if asyncio._get_running_loop() is not None:
        _warn(frame, f"`{keyword}` on {name}", f"`async {keyword}`")


def _dunder(twin: Twin, fn: Any, keyword: str) -> SyncCall:
    """What `with` and `for` call of a twin."""
    name = f"`{keyword}` on {type(twin).__name__}"
    options = twin._omniloop.face._omniloop_options
    return SyncCall(fn, options, twin=twin, title=name, instead=f"`async {keyword}`", kind=OTHER)


def _looked_at(twin: Twin, fn: Any, name: str) -> SyncCall:
    """What looks at an attribute on the loop."""
    options = twin._omniloop.face._omniloop_options
    return SyncCall(
        fn, options, twin=twin, name=name, owner=type(twin), instead="`asyncio.to_thread(getattr, …)`", kind=OTHER
    )


def _attribute(twin: Twin, name: str, value: Any) -> Any:
    """What sync code sees of an attribute's value."""
    if type(value) is CoroutineType:
        # An async property.
        return _looked_at(twin, _same, name)(value)
    if isinstance(value, (FunctionType, MethodType, functools.partial)):
        own = isinstance(value, MethodType) and value.__self__ is twin._omniloop.original
        if own or faces.is_async(value):
            fn = value.__func__ if isinstance(value, MethodType) else value
            options = twin._omniloop.face._omniloop_options
            return SyncCall(value, options, twin=twin, name=name, owner=type(twin), kind=kind_of(fn))
    return _out(value, twin._omniloop.face._omniloop_options, twin)


def _same(value: Any) -> Any:
    return value


# --- a class's twin ---------------------------------------------------------------------------------------------------


class _Method:
    """What a twin's class holds for a method of the original."""

    def __init__(self, shown: str, name: str, raw: Any, cls: type, options: Options) -> None:
        # Under which the original has it.
        self._name = name
        fn = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
        if isinstance(fn, SyncCall):
            fn = fn._fn
        self._fn = fn
        self._binds = "class" if isinstance(raw, classmethod) else "none" if isinstance(raw, staticmethod) else "object"
        self._options = options
        self._cls = cls
        kind = kind_of(fn)
        self._kind = HERE if kind in {OTHER, STEPWISE} and name in options.in_caller else kind
        self.__name__ = shown
        self.__qualname__ = getattr(fn, "__qualname__", f"{cls.__qualname__}.{shown}")
        if shown != name:
            self.__qualname__ = self.__qualname__.rpartition(".")[0] + "." + shown
        self.__module__ = getattr(fn, "__module__", cls.__module__)
        self.__doc__ = getattr(fn, "__doc__", None)
        # A function binds in C; what else there is (partialmethod, a method in C) binds as it likes.
        self._plain = isinstance(fn, FunctionType)

    def __get__(self, twin: Twin | None, owner: TwinType | None = None) -> Any:
        if self._binds == "object" and twin is not None:
            original = twin._omniloop.here()
            fn = MethodType(self._fn, original) if self._plain else getattr(original, self._name)
            return self._call(fn, type(twin), twin)
        assert owner is not None
        # Without an object it is called with a twin as its first argument.
        call = self._call(
            self._fn if self._binds == "object" else getattr(owner._omniloop_original, self._name), owner, None
        )
        return self._function(call) if twin is None else call

    def _call(self, fn: Any, owner: TwinType, twin: Twin | None) -> SyncCall:
        return SyncCall(fn, self._options, twin=twin, kind=self._kind, name=self.__name__, owner=owner)

    def _function(self, call: SyncCall) -> Any:
        """*call* as a function: Sphinx takes only a function of a class for a method."""
        made = _as_function(call.__call__, getattr(inspect.unwrap(self._fn), "__globals__", {}))
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(made, name, getattr(self, name))
        with suppress(TypeError, ValueError):
            made.__signature__ = call.__signature__
            made.__annotations__ = call.__annotations__
        made.aio, made.options = call.aio, call.options
        return made

    @property
    def __signature__(self) -> inspect.Signature:
        from .annotations import sync_signature

        return sync_signature(self._fn)


class _Attribute(property):
    """What a twin's class holds for a property, a slot, or another descriptor that yields a value: looked at in the caller's thread."""

    def __init__(self, name: str, raw: Any, cls: type, options: Options) -> None:
        def get(twin: Twin) -> Any:
            return Twin.__getattr__(twin, name)

        def change(twin: Twin, value: Any) -> None:
            setattr(twin._omniloop.here(), name, _in(value))

        def delete(twin: Twin) -> None:
            delattr(twin._omniloop.here(), name)

        self._of_class: Callable[[], Any] = lambda: _out(getattr(cls, name), options)
        self._raw = raw
        fget = faces.getter_of(raw)
        if fget is not None:
            from .annotations import sync_signature

            get.__name__, get.__qualname__ = name, getattr(fget, "__qualname__", name)
            get.__doc__ = fget.__doc__
            with suppress(TypeError, ValueError):
                signature = get.__signature__ = sync_signature(fget)  # type: ignore[attr-defined]
                get.__annotations__ = {"return": signature.return_annotation}
        settable = not isinstance(raw, property) or raw.fset is not None
        deletable = not isinstance(raw, property) or raw.fdel is not None
        super().__init__(get, change if settable else None, delete if deletable else None)
        # Up to 3.11 that of this class would hide it otherwise.
        self.__doc__ = getattr(raw, "__doc__", None)

    def __get__(self, twin: Any, owner: type | None = None) -> Any:
        if twin is None and not hasattr(type(self._raw), "__set__"):
            value = self._of_class()
            # A property of the class has a value there too; others say what they are.
            return self if value is self._raw else value
        return super().__get__(twin, owner)


def _as_function(call: Callable[..., Any], its_globals: dict[str, Any]) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    # With the globals of the user's function, in which `typing.get_type_hints` looks for what its annotations name.
    return FunctionType(function.__code__, its_globals, closure=function.__closure__)


# Called by dictionaries, debuggers and formatting, at any moment: they run in the caller's thread.
_LOOKS: Final = frozenset(
    {"__str__", "__format__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bytes__", "__fspath__", "__index__",
     "__int__", "__float__", "__complex__", "__sizeof__"}
)  # fmt: skip
# What the twin has itself, or what is none of its.
_OWN: Final = frozenset(
    {*dir(object), *vars(Twin), "__new__", "__init__", "__del__", "__getattr__", "__getattribute__", "__setattr__",
     "__delattr__", "__slots__", "__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__annotations__",
     "__annotate__", "__annotate_func__", "__annotations_cache__", "__class_getitem__", "__orig_bases__", "__parameters__",
     "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__post_init__",
     "__replace__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__", "__copy__", "__deepcopy__", "__init_subclass__",
     "__subclasshook__", "__set_name__", "__await__", "__aenter__", "__aexit__", "__enter__", "__exit__", "__aiter__",
     "__anext__", "__firstlineno__", "__static_attributes__", "__type_params__", "__protocol_attrs__", "_is_protocol",
     "_is_runtime_protocol", _TWINS, "__non_callable_proto_members__", "__getinitargs__"}
) - _LOOKS  # fmt: skip


def make_class(original: type, options: Options, *, asked_for: bool = False) -> TwinType:
    """The twin of a class; the same one for the same options. Objects that come out are twins of those that were asked for first."""
    made = _exactly(original, options)
    if made is None:
        # Outside of the lock: a metaclass and descriptors may be the user's.
        made = _make_class(original, options, asked_for)
        with _lock:
            made = _exactly(original, options) or _noted(original, made)
    elif asked_for:
        _check_renames(original, options)
    made._omniloop_asked_for |= asked_for
    return made


def _noted(original: type, made: TwinType) -> TwinType:
    """Note *made* among the twins of *original*; with the lock held."""
    twins = original.__dict__.get(_TWINS)
    if twins is None:
        twins = []
        try:
            type.__setattr__(original, _TWINS, twins)
        except (TypeError, AttributeError):
            twins = _of_fixed.setdefault(original, twins)
    twins.append(made)
    return made


def _check_renames(original: type, options: Options) -> None:
    everything = faces.members(original)
    for name, _ in options.rename:
        if name not in everything:
            raise AttributeError(f"rename={dict(options.rename)!r}: {original.__qualname__} has no {name}().")


def _make_class(original: type, options: Options, asked_for: bool) -> TwinType:
    if asked_for:
        _check_renames(original, options)
    everything = faces.members(original)
    renamed = {name: shown for name, shown in options.rename if name in everything}
    if "aclose" in everything and "close" not in everything.keys() | set(renamed.values()):
        renamed.setdefault("aclose", "close")
    bases = _bases(original, options)
    namespace: dict[str, Any] = {
        "__slots__": (),
        "__doc__": original.__doc__,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "_omniloop_original": original,
        "_omniloop_options": options,
        "_omniloop_closer": next(
            (name for name in ("aclose", "close") if callable(getattr(original, name, None))), None
        ),
        "_omniloop_members": {},
        "_omniloop_hidden": renamed,
        "_omniloop_asked_for": False,
    }
    members: dict[str, str] = namespace["_omniloop_members"]
    for cls in reversed(original.__mro__):
        if cls is object or cls.__module__ in {"typing", "abc"}:
            continue
        for name, raw in vars(cls).items():
            if name in _OWN or isinstance(raw, type):
                continue
            shown = renamed.get(name, name)
            if shown == name and name in renamed.values():
                # What takes its name is the sync face of it.
                continue
            made = _member(shown, name, raw, original, options)
            if made is None:
                namespace.pop(shown, None)
                members.pop(shown, None)
                continue
            namespace[shown] = made
            if name not in _LOOKS:
                members[shown] = name
    _add_special(original, namespace, members)
    made_class = TwinType(original.__name__, bases, namespace)
    made_class._omniloop_face = made_class
    return made_class


def _bases(original: type, options: Options) -> tuple[type, ...]:
    found = [twin for base in original.__bases__ if (twin := _exactly(base, options))]
    return tuple(found) or (Twin,)


# What binds as a method does, and can't be called itself.
_BINDING: Final = (
    FunctionType,
    classmethod,
    staticmethod,
    SyncCall,
    functools.partialmethod,
    functools.singledispatchmethod,
)


def _member(shown: str, name: str, raw: Any, original: type, options: Options) -> Any:
    if isinstance(raw, FunctionType) and name in _LOOKS:
        return _look(name, raw)
    binds = hasattr(type(raw), "__get__")
    if isinstance(raw, (*_BINDING, BuiltinFunctionType)) or (
        binds and callable(raw) and not hasattr(type(raw), "__set__")
    ):
        return (_Closing if name in {"aclose", "close"} else _Method)(shown, name, raw, original, options)
    if binds or hasattr(type(raw), "__set__"):
        return _Attribute(name, raw, original, options)
    # A constant of the class, or the default of an instance's attribute.
    return None


def _look(name: str, raw: Any) -> Any:
    def look(self: Twin, *args: Any) -> Any:
        return raw(self._omniloop.original, *map(_in_one, args))

    functools.update_wrapper(look, raw)
    return look


class _Closing(_Method):
    """A method that closes the original: then nothing is left for us to close."""

    def _call(self, fn: Any, owner: TwinType, twin: Twin | None) -> SyncCall:
        made = super()._call(fn, owner, twin)
        if twin is not None:
            state = twin._omniloop

            def close(*args: Any, **kwargs: Any) -> Any:
                state.is_over()
                return fn(*args, **kwargs)

            made._fn, made._kind = functools.update_wrapper(close, fn), OTHER
        return made


def _add_special(original: type, namespace: dict[str, Any], members: dict[str, str]) -> None:
    special = vars(Twin)
    pairs: list[tuple[str, str, str]] = []
    if hasattr(original, "__aenter__"):
        pairs += [("__enter__", "enter", "__aenter__"), ("__exit__", "exit", "__aexit__")]
        pairs += [("__aenter__", "aenter", "__aenter__"), ("__aexit__", "aexit", "__aexit__")]
    elif hasattr(original, "__enter__"):
        for name in ("__enter__", "__exit__"):
            namespace[name] = _Method(
                name, name, inspect.getattr_static(original, name), original, namespace["_omniloop_options"]
            )
    if hasattr(original, "__aiter__"):
        pairs += [("__iter__", "iter", "__aiter__"), ("__aiter__", "aiter", "__aiter__")]
    if hasattr(original, "__anext__"):
        pairs += [("__next__", "next", "__anext__")]
    for shown, own, name in pairs:
        namespace[shown] = special[f"_omniloop_{own}"]
        members[shown] = name
    if hasattr(original, "__class_getitem__"):
        namespace["__class_getitem__"] = classmethod(GenericAlias)
    if "__await__" in dir(original) and "wait" not in dir(original):
        namespace["wait"] = _Method("wait", "__await__", _wait, original, namespace["_omniloop_options"])
        members["wait"] = "__await__"
    if original.__hash__ is None:
        namespace["__hash__"] = None


async def _wait(self: Any) -> Any:
    """Wait for it, where async code awaits it."""
    return await self
