"""
Makes the sync twin of an async function or class: its calls run on the loop, and the caller waits.

1. A call replaces the twins in its arguments by their originals (`_in`).
2. It runs the original function on the loop, and waits.
3. It replaces the objects in the result that need a twin by their twins (`_out`). Each object has one twin for each twin class, looked up
   by the identity of the object.

Only `_there`, `_keep` and the code that they call run on the loop.
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
import types
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_ITERABLE_COROUTINE
from types import FrameType, FunctionType, MethodType, TracebackType
from typing import Any, Final, NamedTuple, TypeVar

from .._arguments import close_unstarted
from .._bridges.enter import AsyncEntered, Entered
from .._errors import ClosedError, ForkedError, OmniloopError, TaskTimeoutError, WouldDeadlockError
from .._life.life import Life, Stage
from .._process import fork
from .._report import caller
from .._runtime import Runtime, within
from .._steps import AsyncSteps, Steps, iterating, trimmed
from .._threads import Guard
from .._work.task import Kind
from . import faces

T = TypeVar("T")

_getframe: Final = sys._getframe

# Classes whose objects are no twins and never have one.
_PLAIN: Final = frozenset({types.NoneType, bool, int, float, complex, str, bytes, bytearray, range, slice, object})
_CONTAINERS: Final = frozenset({list, tuple, dict})
_AS_IS: Final = _PLAIN | _CONTAINERS


class Options(NamedTuple):
    """The options of `blocking`. Twins that come out of a twin have the same options."""

    runtime: Runtime
    timeout: float | None = None
    rename: tuple[tuple[str, str], ...] = ()
    # Names of sync methods that run in the caller's thread, and of attributes that are read on the loop.
    in_caller: frozenset[str] = frozenset()
    on_loop: frozenset[str] = frozenset()
    reopen: bool = False
    # True makes twins of classes that were not passed to `blocking` too; a tuple names the classes whose objects get no twin.
    nested: bool | tuple[type, ...] = True

    def leaves_alone(self, kind: type) -> bool:
        return isinstance(self.nested, tuple) and issubclass(kind, self.nested)


# --- what has a twin --------------------------------------------------------------------------------------------------

# A class holds its twins in an attribute of this name, so that they live as long as the class: a dictionary would keep both for ever.
# Only classes that take no attribute (those in C) have theirs in the dictionary below.
_TWINS: Final = "_omniloop_twins"
_of_fixed: dict[type, list[TwinType]] = {}
# The living twins, by the identities of the original and of the twin's class.
_live: weakref.WeakValueDictionary[tuple[int, int], Twin] = weakref.WeakValueDictionary()
_lock = Guard()


def _forget_lock() -> None:
    global _lock
    # Another thread may have held it at the fork.
    _lock = Guard()


fork.forget_after_fork(_forget_lock)


def known(original: type, options: Options) -> TwinType | None:
    """Find the twin of *original* that `blocking` made with these options, or else the first that it made for the same runtime."""
    asked_for = [
        twin
        for twin in _twins_of(original)
        if twin._omniloop_asked_for and twin._omniloop_options.runtime is options.runtime
    ]
    return next((twin for twin in asked_for if twin._omniloop_options == options), asked_for[0] if asked_for else None)


def _twins_of(original: type) -> list[TwinType]:
    own: list[TwinType] | None = vars(original).get(_TWINS)
    return own or _of_fixed.get(original) or []


def _exactly(original: type, options: Options) -> TwinType | None:
    return next((twin for twin in _twins_of(original) if twin._omniloop_options == options), None)


def _face_of(value: Any, options: Options) -> TwinType | None:
    """
    Find the twin class for *value*; None if it needs none.

    The nearest class in its MRO that was passed to `blocking` decides, and gives the options. Otherwise a twin class is made if *value*
    has something async, or leads to it.
    """
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


def _each(fn: Callable[[Any], Any], value: Any) -> Any:
    """Apply *fn* to the items of a list, tuple or dict (no subclass). Return a copy if an item changes, else the container itself."""
    kind = type(value)
    items = list(value.values() if kind is dict else value)
    made = [fn(item) for item in items]
    if all(map(operator.is_, items, made)):
        return value
    return dict(zip(value, made, strict=True)) if kind is dict else kind(made)


def _in(value: Any) -> Any:
    """Replace a twin by its original, also inside a container."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    return _each(_in_one, value) if kind in _CONTAINERS else _in_one(value)


def _in_one(value: Any) -> Any:
    kind = type(value)
    if type(kind) is TwinType:
        return value._omniloop.here()
    return value._omniloop_original if kind is TwinType else value


def _all_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple([_in(arg) for arg in args]), {key: _in(arg) for key, arg in kwargs.items()}


def _out(value: Any, options: Options, parent: object = None) -> Any:
    """Replace an object that needs a twin by its twin, also inside a container. It keeps its *parent*, as a cursor its connection."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in _CONTAINERS:
        return _each(lambda item: _out_one(item, options, parent), value)
    return _out_one(value, options, parent)


def _out_one(value: Any, options: Options, parent: object) -> Any:
    kind = type(value)
    if kind in _AS_IS or type(kind) is TwinType:
        return value
    if isinstance(value, type):
        return known(value, options) or value
    if kind is types.AsyncGeneratorType:
        return _steps(Steps, value, options, _getframe(), getattr(value, "__qualname__", "an async generator"), parent)
    if kind is _Opened:
        if type(value.value) in _PLAIN:
            return value.value
        opened = _face_of(value.value, options) or make_class(type(value.value), options)
        twin = _enterable(opened)._omniloop_of(value.value, parent)
        twin._omniloop.way_out = value.opening
        return twin
    face = _face_of(value, options)
    return value if face is None else face._omniloop_of(value, parent)


def _steps(kind: Callable[..., T], source: Any, options: Options, frame: FrameType, name: str, parent: object) -> T:
    """Make a sync or async iterator over *source*, which runs on the loop; its items become twins where they need to."""
    return kind(source, options.runtime, frame, name, lambda item: _out(item, options, parent), options.timeout)


class _Trimming:
    """Trims the tracebacks of errors that leave the block: they show the caller, and then the user's own code."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if error is not None:
            error.__traceback__ = trimmed(error.__traceback__)


_trimming: Final = _Trimming()


# --- on the loop ------------------------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    """The value from entering something that can be both awaited and entered, and the manager that leaves it."""

    value: Any
    opening: Any


async def _there(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Any:
    """Call a function that is no coroutine function, and await its result if that is awaitable. Runs on the loop."""
    try:
        result = call(*args, **kwargs)
    except StopIteration as end:
        # From a `__next__`, for example. A coroutine can't raise StopIteration, so it is returned.
        return _Stopped(end)
    kind = type(result)
    if kind in _AS_IS or not hasattr(kind, "__await__"):
        return await result if inspect.isawaitable(result) else result
    if any((id(result), id(face)) in _live for face in _twins_of(kind)):
        # It has a twin already: a method that returns its own object for chaining, for example.
        return result
    if hasattr(kind, "__aenter__"):
        # Allows both `await session.get(…)` and `async with session.get(…)`. In all known libraries (aiohttp, aiosqlite, asyncpg,
        # asyncssh, redis, websockets) entering does what awaiting does, and a later `with` needs the manager to leave it.
        return _Opened(await result.__aenter__(), result)
    if hasattr(kind, "__aiter__"):
        # `async for row in connection.cursor(…)`: after awaiting there would be nothing to iterate over. The twin has `wait()` for that.
        return result
    return await result


class _Stopped(NamedTuple):
    error: StopIteration


async def _stepwise(generator: Generator[Any, Any, Any]) -> AsyncGenerator[Any, Any]:
    """Run the steps of a sync generator on the loop."""
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


# --- a call that waits ------------------------------------------------------------------------------------------------


# The places that have had the warning: one for each place.
_warned: set[tuple[object, int]] = set()


def _warn(frame: FrameType, what: str, instead: str) -> None:
    place = frame.f_code, frame.f_lineno
    if place in _warned:
        return
    _warned.add(place)
    ipython = sys.modules.get("IPython")
    if hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None):
        # No warning in a notebook or a shell: its loop has nothing else to do while a cell runs.
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
    """Tell how *fn* has to be called. Only a function written as `async def` is known to run nothing before it is awaited."""
    flags = fn.__code__.co_flags if isinstance(fn, FunctionType) else 0
    if flags & CO_COROUTINE:
        return NATIVE
    if flags & CO_ASYNC_GENERATOR:
        return GENERATOR
    # A generator function that `types.coroutine` has made awaitable does not count as a generator function.
    return STEPWISE if flags & CO_GENERATOR and not flags & CO_ITERABLE_COROUTINE else OTHER


class SyncCall:
    """The sync twin of a function: a call waits for the result. As an attribute of a class it is a method. Typed as `omniloop.Blocking`."""

    # The twin of which this is a bound method: a call keeps it alive, and is refused after a fork. And whether a call closes the twin.
    _twin: Twin | None = None
    _closes = False
    # The name in messages, the class that it belongs to, and the advice in messages, in the user's own terms.
    _told: str | None = None
    _owner: TwinType | None = None
    _instead: str | None = None

    def __init__(self, fn: Any, options: Options) -> None:
        self._fn = fn
        self._options = options
        self._kind = kind_of(fn)
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self.__qualname__ = getattr(fn, "__qualname__", self.__name__)
        self.__module__ = getattr(fn, "__module__", None) or __name__
        self.__doc__ = getattr(fn, "__doc__", None)

    def _but(self, **changed: Any) -> SyncCall:
        # Not `copy.copy`, which returns the object itself when `__reduce__` returns a name.
        made = SyncCall.__new__(SyncCall)
        made.__dict__.update(self.__dict__, **changed)
        return made

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        # A method that was decorated in the user's own class, which is no twin.
        return self if obj is None else self._but(_fn=MethodType(self._fn, obj))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._call(args, kwargs, caller())
        except BaseException as error:
            # Done by hand, because `with _trimming` would slow down each call. (A bare `raise` adds no frame.)
            error.__traceback__ = trimmed(error.__traceback__)
            raise

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Any:
        options, kind = self._options, self._kind
        runtime = options.runtime
        here = self._is_here(frame)
        if here:
            # On the loop's thread a sync method simply runs; only an async one would have to wait.
            if kind is NATIVE or kind is GENERATOR:
                raise self._deadlock()
            kind = HERE
        fn, args, kwargs = self._begin(args, kwargs)
        if kind is NATIVE:
            return self._came(runtime._run(fn(*args, **kwargs), options.timeout, frame))
        if kind is GENERATOR or kind is STEPWISE:
            items = fn(*args, **kwargs) if kind is GENERATOR else _stepwise(fn(*args, **kwargs))
            return _steps(Steps, items, options, frame, self._title, self._twin)
        if kind is OTHER:
            return self._came(runtime._run(self._named(_there(fn, args, kwargs, options)), options.timeout, frame))
        result = fn(*args, **kwargs)
        if here and inspect.iscoroutine(result):
            result.close()
            raise self._deadlock()
        return self._came(result)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Prepare a call: return the function, and the arguments with originals for twins."""
        args, kwargs = _all_in(args, kwargs)
        if self._twin is not None:
            # After the arguments, because one of them may make the original anew.
            self._twin._omniloop.here()
            if self._closes:
                # The call itself closes the original, so that the keeper must not.
                self._twin._omniloop.is_over()
        return self._fn, args, kwargs

    def _came(self, result: Any) -> Any:
        if type(result) in _PLAIN:
            return result
        if type(result) is _Stopped:
            raise result.error
        return _out(result, self._options, self._twin)

    def _named(self, coro: Any) -> Any:
        coro.__qualname__ = self.__qualname__
        return coro

    # --- messages -----------------------------------------------------------------------------------------------------

    @property
    def _title(self) -> str:
        if self._owner is not None:
            return f"{self._owner.__name__}.{self.__name__}"
        return self._told or str(self.__qualname__).rpartition("<locals>.")[2]

    def _advice(self, keyword: str = "") -> str:
        if self._instead is not None:
            return self._instead
        return f"`{keyword}{self._title}.aio(…)`" if self._title.replace(".", "").isidentifier() else "its `.aio(…)`"

    def _is_here(self, frame: FrameType) -> bool:
        """Tell whether this is the runtime loop's own thread; warn if another event loop runs in this thread."""
        if _is_current(self._options.runtime._current()):
            return True
        if self._kind is not HERE and asyncio._get_running_loop() is not None:
            _warn(frame, f"{self._title}()" if self._instead is None else self._title, self._advice())
        return False

    def _deadlock(self) -> WouldDeadlockError:
        advice = self._advice("async for … in " if self._kind is GENERATOR else "await ")
        what = f"{self._title}()" if self._instead is None else self._title
        return WouldDeadlockError(
            f"{what} would wait, on the loop's own thread, for work that needs this thread. Use {advice} there."
        )

    # --- the other faces ----------------------------------------------------------------------------------------------

    @property
    def aio(self) -> Any:
        """The same function for async callers, on any event loop; it runs on omniloop's."""
        begin: Any = self._iterate if self._kind in {GENERATOR, STEPWISE} else functools.partial(_Pending, self)

        async def await_it(*args: Any, **kwargs: Any) -> Any:
            with _trimming:
                return await self._await(args, kwargs, _getframe())

        def begin_it(*args: Any, **kwargs: Any) -> Any:
            return begin(args, kwargs, caller())

        return functools.update_wrapper(await_it if self._kind is NATIVE else begin_it, self._fn)

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
        options = self._options
        fn, args, kwargs = self._begin(args, kwargs)
        work = fn(*args, **kwargs) if self._kind is NATIVE else self._named(_there(fn, args, kwargs, options))
        waiting = _elsewhere(work, options.runtime, frame)
        try:
            if options.timeout is not None:
                waiting = within(waiting, self._title, options.timeout, None)
            return self._came(await waiting)
        except BaseException as error:
            if isinstance(error, TaskTimeoutError):
                # The error is about this call, which has no handle.
                error.of_handle = False
            close_unstarted(work)
            raise

    def _iterate(self, args: Any, kwargs: Any, frame: FrameType) -> AsyncIterator[Any]:
        fn, args, kwargs = self._begin(args, kwargs)

        def make() -> Any:
            items = fn(*args, **kwargs)
            return iterating(_stepwise(items) if self._kind is STEPWISE else items)

        return _steps(AsyncSteps, make, self._options, frame, self._title, self._twin)

    # --- for help(), inspect and Sphinx -------------------------------------------------------------------------------

    @property
    def __signature__(self) -> inspect.Signature:
        from .annotations import sync_signature

        return sync_signature(self._fn)

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override] # pyright: ignore[reportIncompatibleVariableOverride]
        signature = self.__signature__
        found = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        found["return"] = signature.return_annotation
        return {name: annotation for name, annotation in found.items() if annotation is not inspect.Parameter.empty}

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
    """Await *work* on the runtime's loop, from any loop."""
    if _is_current(runtime._current()):
        return await work
    return await runtime._go(work, frame, when_full="accept")


class _Pending(Coroutine[Any, Any, Any]):
    """The result of calling `.aio` of a sync function: it can be awaited, entered or iterated over, as the function's own result can."""

    def __init__(self, call: SyncCall, args: Any, kwargs: Any, frame: FrameType) -> None:
        self._call, self._made_by = call, (args, kwargs, frame)

    @functools.cached_property
    def _coro(self) -> Any:
        return self._awaited()

    async def _awaited(self) -> Any:
        with _trimming:
            return await self._call._await(*self._made_by)

    def __await__(self) -> Generator[Any, Any, Any]:
        found: Generator[Any, Any, Any] = self._coro.__await__()
        return found

    # `asyncio.run` and `create_task` accept only a coroutine, so it is one too.
    def send(self, value: Any, /) -> Any:
        return self._coro.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coro.throw(*error)

    def close(self) -> None:
        # There is no coroutine if it was never awaited, or was entered instead.
        if "_coro" in vars(self):
            self._coro.close()

    async def __aenter__(self) -> Any:
        call, (args, kwargs, frame) = self._call, self._made_by
        runtime = call._options.runtime
        fn, args, kwargs = call._begin(args, kwargs)
        # The manager is made on the loop too, because the function may need a running loop.
        made = await _elsewhere(_call(fn, *args, **kwargs), runtime, frame)
        self._entered = AsyncEntered(made, runtime, frame)
        return call._came(await self._entered.__aenter__())

    async def __aexit__(self, kind: Any, error: BaseException | None, tb: Any) -> bool:
        return await self._entered.__aexit__(kind, error, tb)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._call._iterate(*self._made_by)


async def _call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)


# --- an object's twin -------------------------------------------------------------------------------------------------


class _Ending(asyncio.Event):
    """Set on the loop when the twin is dropped or its original is closed; *due* says whether the keeper still has to close the original."""

    due = True


@dataclass(slots=True, eq=False)
class _State:
    """The state of a twin: its original, and the runtime and life in which the original lives."""

    face: TwinType
    original: Any
    # The twin that it came out of, which is kept alive: a cursor needs its connection.
    parent: object
    runtime: Runtime
    life: Life
    # Makes the original anew, with *reopen*.
    make: Callable[[], Any] | None = None
    ending: _Ending | None = None
    # The manager that leaves the original, if `_there` has entered it.
    way_out: Any = None
    # One entry for each entering: the ident of the thread (None for async code), and the manager to leave.
    entered: list[tuple[int | None, Any]] = field(default_factory=list)

    def here(self) -> Any:
        """Return the original. Makes it anew if it belongs to another life and *reopen* was given; else ForkedError or ClosedError."""
        life = self.runtime._current()
        if life is self.life and life.stage is not Stage.CLOSED:
            return self.original
        name = self.face.__name__
        if self.make is not None:
            old = self.original
            self.construct(self.make, caller())
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

    def construct(self, make: Callable[[], Any], frame: FrameType) -> None:
        face, runtime = self.face, self.runtime
        if _is_current(runtime._current()):
            # On the loop's own thread: made without waiting.
            self.original = make()
        else:
            coro: Any = _call(make)
            coro.__qualname__ = face._omniloop_original.__qualname__
            self.original = runtime._run(coro, face._omniloop_options.timeout, frame)
        self.life = runtime._current()
        closers = [name for name in ("aclose", "close") if callable(getattr(face._omniloop_original, name, None))]
        if closers:
            self.ending = _Ending()
            name = f"{face._omniloop_original.__qualname__}.{closers[0]}"
            runtime._go(
                _keep(self.original, closers[0], self.ending), frame, name, kind=Kind.KEEPER, when_full="accept"
            )

    def is_over(self) -> None:
        """Have the keeper end without closing the original, because other code has closed it or will."""
        if self.ending is not None:
            self.ending.due = False
            self.drop()

    def drop(self) -> None:
        """Have the keeper close the original if that is still due. Does not wait, because finalisers call it."""
        ending, self.ending = self.ending, None
        if ending is not None:
            with suppress(ForkedError):
                self.life.check_process()
                # Not by cancelling the keeper: a cancellation before its first step would keep it from closing anything.
                self.life.inbox.put(ending.set)


async def _keep(original: Any, closer: str, ending: _Ending) -> None:
    """Close *original* when its twin is dropped, and at the end, after all work."""
    # Cancelled at the end of the runtime. Suppressed, so that the original is closed normally, and no transaction is rolled back.
    with suppress(asyncio.CancelledError):
        await ending.wait()
    if ending.due:
        closed = getattr(original, closer)()
        if inspect.isawaitable(closed):
            await closed


class TwinType(type):
    """The metaclass of the twin classes."""

    _omniloop_original: type
    _omniloop_options: Options
    # Names that a derived class must not override.
    _omniloop_members: set[str]
    # Renamed members: the twin's name by the original's.
    _omniloop_hidden: dict[str, str]
    # True if `blocking` was called for it, False if it was only made for a returned object.
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
            # `Twin` itself, or a derived class with an `__init__` of its own: `inspect` finds that.
            raise AttributeError("__signature__")
        return inspect.signature(cls._omniloop_original)

    @property
    def aio(cls) -> Callable[..., Awaitable[Any]]:
        """Make an instance in async code, on any event loop; it lives on omniloop's."""

        async def make(*args: Any, **kwargs: Any) -> Any:
            return await _elsewhere(_call(lambda: cls(*args, **kwargs)), cls._omniloop_options.runtime, _getframe())

        return make

    def __getattr__(cls, name: str) -> Any:
        # For class constants, nested classes, and the attributes that dataclasses and `match` look for.
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
        # If the twin of a base was made after the twin of the class, Python does not know them as base and class.
        face: type = getattr(subclass, "_omniloop_original", object)
        return (
            "_omniloop_original" in vars(cls)
            and type(subclass) is TwinType
            and issubclass(face, cls._omniloop_original)
        )

    @property
    def _omniloop_face(cls) -> TwinType:
        """The twin class itself, also for a user's class that is derived from it."""
        # Looked for, because a class whose attribute it is itself has IPython's autoreload recurse for ever.
        return next(base for base in cls.__mro__ if "_omniloop_original" in vars(base))  # type: ignore[return-value]

    def __repr__(cls) -> str:
        return super().__repr__() if cls is Twin else f"<blocking class {cls.__module__}.{cls.__qualname__}>"

    def _omniloop_of(cls, original: Any, parent: object = None) -> Any:
        """Return the twin of *original*: always the same one, as long as that twin lives."""
        key = id(original), id(cls._omniloop_face)
        twin: Any
        with _lock:
            twin = _live.get(key)
            if twin is None:
                twin = object.__new__(cls)  # type: ignore[arg-type]
                runtime = cls._omniloop_options.runtime
                state = _State(cls._omniloop_face, original, parent, runtime, runtime._current())
                object.__setattr__(twin, "_omniloop", state)
                _live[key] = twin
            return twin


def _renamed(cls: TwinType, name: str) -> str:
    return f"The sync face of {cls.__name__} has {cls._omniloop_hidden[name]}() for {name}()."


def _enterable(face: TwinType) -> TwinType:
    """Derive from *face* a class whose twins can be entered, for values whose manager `_there` has entered already."""
    if hasattr(face, "__enter__"):
        return face
    found: TwinType | None = vars(face).get("_omniloop_enterable")
    if found is not None:
        return found
    own = {"__enter__": vars(Twin)["_omniloop_enter"], "__exit__": vars(Twin)["_omniloop_exit"]}
    # Outside the lock, because making a class may run a user's metaclass.
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
        # `@blocking` on the class: the module's name is the twin's, so the twin is pickled by that name.
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
        runtime = face._omniloop_options.runtime
        state = _State(face, None, None, runtime, runtime._current())
        object.__setattr__(self, "_omniloop", state)
        args, kwargs = _all_in(args, kwargs)
        make = functools.partial(face._omniloop_original, *args, **kwargs)
        if face._omniloop_options.reopen:
            state.make = make
        name = type(self).__name__
        _call_of(self, make, _told=f"{name}()", _instead=f"`{name}.aio(…)`")._is_here(caller())
        with _trimming:
            state.construct(make, caller())
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
            # Set by a derived class before it calls super().__init__().
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
        # `==` itself falls back to identity where both sides return `NotImplemented`, so bool() never gets that.
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
        return TwinType._omniloop_of, (type(self), self._omniloop.here())

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():
            # A default argument, as in `Resource.__del__`.
            return
        with suppress(AttributeError):
            # AttributeError: `__init__` has failed before there was a state.
            self._omniloop.drop()

    # --- `with` for `async with`; a twin class gets these methods only if its original can be entered ------------------

    def _omniloop_enter(self) -> Any:
        state = self._omniloop
        original = state.here()
        if state.way_out is not None:
            # `_there` has entered it already.
            return self
        _guard(self, "with", caller())
        # A keeper, so that the manager is left after all work, as a made object is closed.
        entered = Entered(original, state.runtime, Kind.KEEPER)
        with _trimming:
            value = entered.__enter__()
        state.is_over()
        state.entered.append((threading.get_ident(), entered))
        return self if value is original else _out(value, state.face._omniloop_options, self)

    def _omniloop_exit(self, kind: Any, error: BaseException | None, tb: TracebackType | None) -> bool:
        state = self._omniloop
        way_out, state.way_out = state.way_out, None
        if way_out is not None:
            call = _dunder(self, way_out.__aexit__, "with")
            return bool(call._call((kind, error, tb), {}, caller()))
        entered = self._omniloop_entered(threading.get_ident())
        with _trimming:
            return bool(entered.__exit__(kind, error, tb))

    async def _omniloop_aenter(self) -> Any:
        state = self._omniloop
        original = state.here()
        entered = AsyncEntered(original, state.runtime, _getframe())
        value = await entered.__aenter__()
        state.is_over()
        state.entered.append((None, entered))
        return self if value is original else _out(value, state.face._omniloop_options, self)

    async def _omniloop_aexit(self, kind: Any, error: BaseException | None, tb: TracebackType | None) -> bool:
        return bool(await self._omniloop_entered(None).__aexit__(kind, error, tb))

    def _omniloop_entered(self, by: int | None) -> Any:
        """Take the last manager that the thread *by* has entered (None for async code); if there is none, the last of another thread."""
        entered = self._omniloop.entered
        mine = [it for it in entered if it[0] == by] or [it for it in entered if None not in (it[0], by)]
        if not mine:
            raise OmniloopError(f"This {type(self).__name__} was never entered. Use it in a `with` statement.")
        entered.remove(mine[-1])
        return mine[-1][1]

    # --- `for` for `async for` ----------------------------------------------------------------------------------------

    def _omniloop_iter(self) -> Iterator[Any]:
        state = self._omniloop
        original, options = state.here(), state.face._omniloop_options
        if hasattr(type(original), "__anext__"):
            # An iterator itself, so that a second `for` continues after a `break`.
            aiter(original)
            # `_add_special` gives the twin's class `__iter__` and `__next__`, which pyright can't see.
            return self  # pyright: ignore[reportReturnType]
        _guard(self, "for", caller())
        return _steps(Steps, original, options, caller(), f"{state.face.__name__}.__aiter__", self)

    def _omniloop_next(self) -> Any:
        original = self._omniloop.here()
        return _dunder(self, _next_or_end, "for")._call((original,), {}, caller())

    def _omniloop_aiter(self) -> AsyncIterator[Any]:
        face, original = self._omniloop.face, self._omniloop.here()
        name, options = f"{face.__name__}.__aiter__", face._omniloop_options
        return _steps(AsyncSteps, lambda: iterating(original), options, caller(), name, self)


async def _next_or_end(iterator: AsyncIterator[Any]) -> Any:
    try:
        return await iterator.__anext__()
    except StopAsyncIteration:
        return _Stopped(StopIteration())


def _is_current(life: Life) -> bool:
    return life.ident == threading.get_ident()


def _call_of(twin: Twin, fn: Any, **told: Any) -> SyncCall:
    """Make a call of *fn* that belongs to *twin*; *told* sets how messages name it."""
    return SyncCall(fn, twin._omniloop.face._omniloop_options)._but(_twin=twin, **told)


def _dunder(twin: Twin, fn: Any, keyword: str) -> SyncCall:
    """Make the call that `with` or `for` makes on a twin."""
    name = f"`{keyword}` on {type(twin).__name__}"
    return _call_of(twin, fn, _told=name, _instead=f"`async {keyword}`", _kind=OTHER)


def _guard(twin: Twin, keyword: str, frame: FrameType) -> None:
    call = _dunder(twin, None, keyword)
    if call._is_here(frame):
        raise call._deadlock()


def _looked_at(twin: Twin, fn: Any, name: str) -> SyncCall:
    """Make a call that reads an attribute on the loop."""
    instead = "`asyncio.to_thread(getattr, …)`"
    return _call_of(twin, fn, __name__=name, _owner=type(twin), _instead=instead, _kind=OTHER)


def _attribute(twin: Twin, name: str, value: Any) -> Any:
    """Turn the value of an attribute into what sync code uses: a call that waits, a twin, or the value itself."""
    if type(value) is types.CoroutineType:
        # The coroutine of an async property.
        return _looked_at(twin, lambda it: it, name)(value)
    if isinstance(value, (FunctionType, MethodType, functools.partial)):
        own = isinstance(value, MethodType) and value.__self__ is twin._omniloop.original
        if own or faces.is_async(value):
            kind = kind_of(value.__func__ if isinstance(value, MethodType) else value)
            return _call_of(twin, value, __name__=name, _owner=type(twin), _kind=kind)
    return _out(value, twin._omniloop.face._omniloop_options, twin)


# --- a class's twin ---------------------------------------------------------------------------------------------------


class _Method(SyncCall):
    """The descriptor in a twin's class for a method of the original; it binds the method to the original object."""

    def __init__(self, shown: str, name: str, raw: Any, cls: type, options: Options) -> None:
        fn = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
        super().__init__(fn._fn if isinstance(fn, SyncCall) else fn, options)
        # The attribute of the original class, and its name there.
        self._raw, self._name = raw, name
        self._closes = name in {"aclose", "close"}
        if name in options.in_caller and self._kind in {OTHER, STEPWISE}:
            self._kind = HERE
        self.__name__ = shown
        if shown != name or not hasattr(self._fn, "__qualname__"):
            self.__qualname__ = f"{getattr(fn, '__qualname__', cls.__qualname__ + '.').rpartition('.')[0]}.{shown}"

    def __get__(self, twin: Any, owner: Any = None) -> Any:
        of_class = isinstance(self._raw, (classmethod, staticmethod))
        if twin is not None and not of_class:
            original = twin._omniloop.here()
            # Binding a plain function here is fast. Other descriptors (partialmethod, a method in C) bind in their own way.
            plain = type(self._fn) is FunctionType
            fn = MethodType(self._fn, original) if plain else getattr(original, self._name)
            return self._but(_fn=fn, _twin=twin, _owner=type(twin))
        # Looked up on the class: the caller passes a twin as the first argument.
        fn = getattr(owner._omniloop_original, self._name) if of_class else self._fn
        call = self._but(_fn=fn, _owner=owner)
        return call if twin is not None else self._function(call)

    def _function(self, call: SyncCall) -> Any:
        """Wrap *call* in a plain function: Sphinx recognises only functions of a class as methods."""

        def function(*args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)

        # It gets the globals of the user's function, in which `typing.get_type_hints` resolves the annotations.
        its_globals = getattr(inspect.unwrap(self._fn), "__globals__", {})
        made: Any = FunctionType(function.__code__, its_globals, closure=function.__closure__)
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(made, name, getattr(self, name))
        with suppress(TypeError, ValueError):
            made.__signature__, made.__annotations__ = call.__signature__, call.__annotations__
        made.aio, made.options = call.aio, call.options
        return made


class _Attribute(property):
    """The descriptor in a twin's class for a property, a slot, or another descriptor with a value. Read in the caller's thread."""

    def __init__(self, name: str, raw: Any, cls: type, options: Options) -> None:
        def get(twin: Twin) -> Any:
            return Twin.__getattr__(twin, name)

        def change(twin: Twin, value: Any) -> None:
            setattr(twin._omniloop.here(), name, _in(value))

        def delete(twin: Twin) -> None:
            delattr(twin._omniloop.here(), name)

        self._raw = raw
        self._of_class: Callable[[], Any] = lambda: _out(getattr(cls, name), options)
        fget = faces.getter_of(raw)
        if fget is not None:
            from .annotations import sync_signature

            get.__name__, get.__qualname__ = name, getattr(fget, "__qualname__", name)
            get.__doc__ = fget.__doc__
            with suppress(TypeError, ValueError):
                signature = get.__signature__ = sync_signature(fget)  # type: ignore[attr-defined]
                get.__annotations__ = {"return": signature.return_annotation}
        super().__init__(get, change, delete)
        # Up to 3.11 the docstring of this class would hide the property's own.
        self.__doc__ = getattr(raw, "__doc__", None)

    def __get__(self, twin: Any, owner: type | None = None) -> Any:
        if twin is None and not hasattr(type(self._raw), "__set__"):
            value = self._of_class()
            # Some descriptors give a value on the class too; for one that returns itself, this descriptor does the same.
            return self if value is self._raw else value
        return super().__get__(twin, owner)


# These run in the caller's thread, because dictionaries, debuggers and formatting call them at any moment.
_LOOKS: Final = frozenset(
    {"__str__", "__format__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bytes__", "__fspath__", "__index__",
     "__int__", "__float__", "__complex__", "__sizeof__"}
)  # fmt: skip
# Names that `Twin` defines itself, or that a twin does not take from its original. (Other attributes that are no descriptors are ignored
# anyway.)
_OWN: Final = frozenset(
    {*dir(object), *vars(Twin), "__dict__", "__annotate__", "__annotate_func__", "__class_getitem__", "__post_init__",
     "__replace__", "__setstate__", "__getnewargs__", "__getnewargs_ex__", "__getinitargs__", "__set_name__", "__await__",
     "__aenter__", "__aexit__", "__enter__", "__exit__", "__aiter__", "__anext__"}
) - _LOOKS  # fmt: skip


def make_class(original: type, options: Options, *, asked_for: bool = False) -> TwinType:
    """
    Return the twin of a class: the same one for the same options.

    *asked_for* marks a class that `blocking` was called for: returned objects prefer such a class (see `_face_of`).
    """
    if asked_for:
        missing = [name for name, _ in options.rename if name not in faces.members(original)]
        if missing:
            raise AttributeError(f"rename={dict(options.rename)!r}: {original.__qualname__} has no {missing[0]}().")
    made = _exactly(original, options)
    if made is None:
        # Outside the lock, because this may run a user's metaclass and descriptors.
        made = _make_class(original, options)
        with _lock:
            if (first := _exactly(original, options)) is None:
                if not (twins := _twins_of(original)):
                    try:
                        type.__setattr__(original, _TWINS, twins)
                    except (TypeError, AttributeError):
                        _of_fixed[original] = twins
                twins.append(made)
            else:
                made = first
    made._omniloop_asked_for |= asked_for
    return made


def _make_class(original: type, options: Options) -> TwinType:
    everything = faces.members(original)
    renamed = {name: shown for name, shown in options.rename if name in everything}
    if "aclose" in everything and "close" not in everything.keys() | set(renamed.values()):
        renamed.setdefault("aclose", "close")
    members: set[str] = set()
    namespace: dict[str, Any] = {
        "__slots__": (),
        "__doc__": original.__doc__,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "_omniloop_original": original,
        "_omniloop_options": options,
        "_omniloop_members": members,
        "_omniloop_hidden": renamed,
        "_omniloop_asked_for": False,
    }
    for cls in reversed(original.__mro__):
        if cls is object or cls.__module__ in {"typing", "abc"}:
            continue
        for name, raw in vars(cls).items():
            shown = renamed.get(name, name)
            # A member whose name a renamed one takes is left out: the renamed member is the one that sync code calls.
            if name in _OWN or isinstance(raw, type) or (shown == name and name in renamed.values()):
                continue
            namespace.pop(shown, None)
            members.discard(shown)
            made = _member(shown, name, raw, original, options)
            if made is not None:
                namespace[shown] = made
                members |= {shown} - _LOOKS
    members.update(_add_special(original, namespace, options))
    bases = tuple(twin for base in original.__bases__ if (twin := _exactly(base, options)))
    return TwinType(original.__name__, bases or (Twin,), namespace)


# Descriptors that bind as methods do, though some of them are not callable themselves.
_BINDING: Final = (
    *(FunctionType, types.BuiltinFunctionType, classmethod, staticmethod, SyncCall),
    *(functools.partialmethod, functools.singledispatchmethod),
)


def _member(shown: str, name: str, raw: Any, original: type, options: Options) -> Any:
    if isinstance(raw, FunctionType) and name in _LOOKS:
        return _look(name, raw)
    binds = hasattr(type(raw), "__get__")
    is_set = hasattr(type(raw), "__set__")
    if isinstance(raw, _BINDING) or (binds and callable(raw) and not is_set):
        return _Method(shown, name, raw, original, options)
    if binds or is_set:
        return _Attribute(name, raw, original, options)
    # A constant of the class, or the default of an instance attribute: `__getattr__` finds it.
    return None


def _look(name: str, raw: Any) -> Any:
    def look(self: Twin, *args: Any) -> Any:
        return raw(self._omniloop.original, *map(_in_one, args))

    functools.update_wrapper(look, raw)
    return look


# For each special method of async code: the twin's special methods, and the methods of `Twin` that implement them.
_SPECIAL: Final[dict[str, dict[str, Any]]] = {
    "__aenter__": {
        "__enter__": Twin._omniloop_enter,
        "__exit__": Twin._omniloop_exit,
        "__aenter__": Twin._omniloop_aenter,
        "__aexit__": Twin._omniloop_aexit,
    },
    "__aiter__": {"__iter__": Twin._omniloop_iter, "__aiter__": Twin._omniloop_aiter},
    "__anext__": {"__next__": Twin._omniloop_next},
}


def _add_special(original: type, namespace: dict[str, Any], options: Options) -> Iterator[str]:
    """Add the special members of a twin class, and yield the names that derived classes must not override."""
    for name, own in _SPECIAL.items():
        if hasattr(original, name):
            namespace.update(own)
            yield from own
    if hasattr(original, "__enter__") and "__enter__" not in namespace:
        for name in ("__enter__", "__exit__"):
            namespace[name] = _Method(name, name, inspect.getattr_static(original, name), original, options)
    if hasattr(original, "__class_getitem__"):
        namespace["__class_getitem__"] = classmethod(types.GenericAlias)
    if "__await__" in dir(original) and "wait" not in dir(original):
        namespace["wait"] = _Method("wait", "__await__", _wait, original, options)
        yield "wait"
    if original.__hash__ is None:
        namespace["__hash__"] = None


async def _wait(self: Any) -> Any:
    """Wait for the object, as async code does with `await`."""
    return await self
