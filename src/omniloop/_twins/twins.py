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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import closing, suppress
from types import FrameType, FunctionType, MethodType, TracebackType
from typing import Any, Final, NamedTuple

from .._arguments import close_unstarted
from .._bridges.enter import AsyncEntered, Entered
from .._errors import ClosedError, ForkedError, OmniloopError, TaskTimeoutError, WouldDeadlockError
from .._life.life import Stage
from .._process import fork
from .._report import caller
from .._runtime import Runtime, within
from .._steps import AsyncSteps, Steps, iterating, trimming
from .._threads import Guard
from .._work.task import KEEPER
from . import faces

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

    def is_here(self) -> bool:
        """Tell whether this is the thread of the runtime's loop."""
        return self.runtime._current().ident == threading.get_ident()


# --- what has a twin --------------------------------------------------------------------------------------------------

# A class holds its twins in an attribute, so that they live as long as the class: a dictionary would keep both for ever. Only classes
# that take no attribute (those in C) have theirs here.
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
    found = [twin for twin in _twins_of(original) if twin._omniloop_asked_for]
    found = [twin for twin in found if twin._omniloop_options.runtime is options.runtime]
    return min(found, key=lambda twin: twin._omniloop_options != options, default=None)


def _twins_of(original: type) -> list[TwinType]:
    own: list[TwinType] | None = vars(original).get("_omniloop_twins")
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
            return make_class(kind, found._omniloop_options)
    if faces.opens(kind) or (options.nested and (faces.is_faced(kind) or faces.leads(value))):
        return make_class(kind, options)
    return None


def _each(fn: Callable[[Any], Any], value: Any) -> Any:
    """Apply *fn* to *value*, or to the items of a list, tuple or dict (no subclass); the container is copied only if an item changes."""
    kind = type(value)
    if kind not in _CONTAINERS:
        return fn(value)
    items = list(value.values() if kind is dict else value)
    made = [fn(item) for item in items]
    if all(map(operator.is_, items, made)):
        return value
    return dict(zip(value, made, strict=True)) if kind is dict else kind(made)


def _in(value: Any) -> Any:
    """Replace a twin by its original, also inside a container."""
    return value if type(value) in _PLAIN else _each(_in_one, value)


def _in_one(value: Any) -> Any:
    kind = type(value)
    if type(kind) is TwinType:
        return value._omniloop.here()
    return value._omniloop_original if kind is TwinType else value


def _all_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple([_in(arg) for arg in args]), {key: _in(arg) for key, arg in kwargs.items()}


def _out(value: Any, options: Options, parent: object = None) -> Any:
    """Replace an object that needs a twin by its twin, also inside a container. It keeps its *parent*, as a cursor its connection."""
    return value if type(value) in _PLAIN else _each(lambda item: _out_one(item, options, parent), value)


def _out_one(value: Any, options: Options, parent: object) -> Any:
    kind = type(value)
    if kind in _AS_IS or type(kind) is TwinType:
        return value
    if isinstance(value, type):
        return known(value, options) or value
    if kind is types.AsyncGeneratorType:
        return _iterate(value, options, _getframe(), getattr(value, "__qualname__", "an async generator"), parent)
    if kind is _Opened:
        opened = value.value
        if type(opened) in _PLAIN:
            return opened
        face = _enterable(_face_of(opened, options) or make_class(type(opened), options))
        twin = face._omniloop_of(opened, parent)
        twin._omniloop.way_out = value.opening
        return twin
    found = _face_of(value, options)
    return value if found is None else found._omniloop_of(value, parent)


def _iterate(source: Any, options: Options, frame: FrameType, name: str, parent: object, kind: Any = Steps) -> Any:
    """Make an iterator, a sync one by default, over *source*, which runs on the loop; its items become twins where they need to."""
    if kind is Steps:
        options.runtime._current().check_may_wait(name, "use `async for` there")
    drive = functools.partial(iterating, source)
    steps = kind(
        drive, options.runtime, frame, name, out=lambda item: _out(item, options, parent), timeout=options.timeout
    )
    return steps._start() if kind is Steps else steps


# --- on the loop ------------------------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    """The value from entering something that can be both awaited and entered, and the manager that leaves it."""

    value: Any
    opening: Any


async def _there(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
    step: Callable[[], Any] = functools.partial(next, generator)
    with closing(generator):
        while True:
            try:
                item = step()
            except StopIteration:
                return
            try:
                step = functools.partial(generator.send, (yield item))
            except GeneratorExit:
                raise
            except BaseException as error:
                step = functools.partial(generator.throw, error)


async def _next_or_end(iterator: AsyncIterator[Any]) -> Any:
    try:
        return await iterator.__anext__()
    except StopAsyncIteration:
        return _Stopped(StopIteration())


async def _call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)


async def wait(self: Any) -> Any:
    """Wait for the object, as async code does with `await`."""
    return await self


async def _elsewhere(work: Any, options: Options, frame: FrameType) -> Any:
    """Await *work* on the runtime's loop, from any loop."""
    return await (work if options.is_here() else options.runtime._go(work, frame, when_full="accept"))


# --- a call that waits ------------------------------------------------------------------------------------------------


# The places that have had the warning: one for each place.
_warned: set[tuple[object, int]] = set()

# How a function has to be called: by what it is written as, and otherwise on the loop, or in the caller's thread.
NATIVE, GENERATOR, STEPWISE = inspect.CO_COROUTINE, inspect.CO_ASYNC_GENERATOR, inspect.CO_GENERATOR
OTHER, HERE = 0, -1
_YIELDING: Final = (GENERATOR, STEPWISE)


def kind_of(fn: Any) -> int:
    """Tell how *fn* has to be called. Only a function written as `async def` is known to run nothing before it is awaited."""
    fn = fn.__func__ if isinstance(fn, MethodType) else fn
    flags = fn.__code__.co_flags if isinstance(fn, FunctionType) else 0
    # A generator function that `types.coroutine` has made awaitable does not count as a generator function.
    return OTHER if flags & inspect.CO_ITERABLE_COROUTINE else flags & (NATIVE | GENERATOR | STEPWISE)


class SyncCall:
    """The sync twin of a function: a call waits for the result. As an attribute of a class it is a method. Typed as `omniloop.Blocking`."""

    # The twin of which this is a bound method: a call keeps it alive, and is refused after a fork. And whether a call closes the twin.
    _twin: Twin | None = None
    _closes = False
    # The class that it belongs to, and the advice in messages if this is no call in the user's own terms.
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
        with trimming:
            return self._call(args, kwargs, caller())

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Any:
        here = self._is_here(frame)
        if not here and self._kind != HERE:
            if self._kind in _YIELDING:
                return self._steps(args, kwargs, frame, Steps)
            return self._came(self._options.runtime._run(self._work(args, kwargs), self._options.timeout, frame))
        # On the loop's thread a sync method simply runs; only an async one would have to wait.
        if self._kind in (NATIVE, GENERATOR):
            raise self._deadlock()
        args, kwargs = self._begin(args, kwargs)
        result = self._fn(*args, **kwargs)
        if here and inspect.iscoroutine(result):
            result.close()
            raise self._deadlock()
        return self._came(result)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Prepare a call: return the arguments with originals for twins."""
        args, kwargs = _all_in(args, kwargs)
        if self._twin is not None:
            # After the arguments, because one of them may make the original anew.
            self._twin._omniloop.here()
            if self._closes:
                # The call itself closes the original.
                self._twin._omniloop.end_keeper(due=False)
        return args, kwargs

    def _work(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what is to run on the loop: an async generator for a function that yields, and else a coroutine."""
        args, kwargs = self._begin(args, kwargs)
        if self._kind == OTHER:
            work: Any = _there(self._fn, args, kwargs)
            work.__qualname__ = self.__qualname__
            return work
        work = self._fn(*args, **kwargs)
        return _stepwise(work) if self._kind == STEPWISE else work

    def _steps(self, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType, kind: Any) -> Any:
        return _iterate(self._work(args, kwargs), self._options, frame, self._title, self._twin, kind)

    def _came(self, result: Any) -> Any:
        if type(result) is _Stopped:
            raise result.error
        return _out(result, self._options, self._twin)

    # --- messages -----------------------------------------------------------------------------------------------------

    @property
    def _title(self) -> str:
        if self._owner is not None:
            return f"{self._owner.__name__}.{self.__name__}"
        return str(self.__qualname__).rpartition("<locals>.")[2]

    def _advice(self, keyword: str = "") -> tuple[str, str]:
        """Return what messages call this, and what they tell to use instead."""
        title = self._title
        if self._instead is not None:
            return title, self._instead
        is_named = title.replace(".", "").isidentifier()
        return f"{title}()", f"`{keyword}{title}.aio(…)`" if is_named else "its `.aio(…)`"

    def _is_here(self, frame: FrameType) -> bool:
        """Tell whether this is the runtime loop's own thread; warn, once a place, if another event loop runs in this thread."""
        if self._options.is_here():
            return True
        if self._kind == HERE or asyncio._get_running_loop() is None:
            return False
        place = frame.f_code, frame.f_lineno
        # Not in a notebook or a shell: its loop has nothing else to do while a cell runs. (IPython has a `ps1` too.)
        if place not in _warned and not hasattr(sys, "ps1"):
            _warned.add(place)
            what, instead = self._advice()
            words = f"{what} blocks the event loop that runs in this thread. Use {instead} here."
            module = frame.f_globals.get("__name__")
            warnings.warn_explicit(words, RuntimeWarning, frame.f_code.co_filename, frame.f_lineno, module)
        return False

    def _deadlock(self) -> WouldDeadlockError:
        what, instead = self._advice("async for … in " if self._kind == GENERATOR else "await ")
        return WouldDeadlockError(
            f"{what} would wait, on the loop's own thread, for work that needs this thread. Use {instead} there."
        )

    # --- the other faces ----------------------------------------------------------------------------------------------

    @property
    def aio(self) -> Any:
        """The same function for async callers, on any event loop; it runs on omniloop's."""

        async def await_it(*args: Any, **kwargs: Any) -> Any:
            with trimming:
                return await self._await(args, kwargs, _getframe())

        def begin_it(*args: Any, **kwargs: Any) -> Any:
            if self._kind in _YIELDING:
                return self._steps(args, kwargs, caller(), AsyncSteps)
            return _Pending(self, args, kwargs, caller())

        return functools.update_wrapper(await_it if self._kind == NATIVE else begin_it, self._fn)

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
        work, timeout = None, self._options.timeout
        with trimming:
            try:
                work = self._work(args, kwargs)
                waiting = _elsewhere(work, self._options, frame)
                if timeout is not None:
                    waiting = within(waiting, self._title, timeout, None)
                return self._came(await waiting)
            except BaseException as error:
                if isinstance(error, TaskTimeoutError):
                    # The error is about this call, which has no handle.
                    error.of_handle = False
                close_unstarted(work)
                raise

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
        return self.__qualname__ if self._twin is None else (getattr, (self._twin, self.__name__))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SyncCall) and (self._fn, self._options) == (other._fn, other._options)

    def __hash__(self) -> int:
        return hash(self._fn)


class _Pending(Coroutine[Any, Any, Any]):
    """The result of calling `.aio` of a sync function: it can be awaited, entered or iterated over, as the function's own result can."""

    def __init__(self, call: SyncCall, args: Any, kwargs: Any, frame: FrameType) -> None:
        self._call, self._args, self._kwargs, self._frame = call, args, kwargs, frame

    @functools.cached_property
    def _coro(self) -> Any:
        return self._call._await(self._args, self._kwargs, self._frame)

    def __await__(self) -> Generator[Any, None, Any]:
        found: Generator[Any, None, Any] = self._coro.__await__()
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
        call = self._call
        args, kwargs = call._begin(self._args, self._kwargs)
        # The manager is made on the loop too, because the function may need a running loop.
        made = await _elsewhere(_call(call._fn, *args, **kwargs), call._options, self._frame)
        self._entered = AsyncEntered(made, call._options.runtime, self._frame)
        return call._came(await self._entered.__aenter__())

    async def __aexit__(self, kind: Any, error: BaseException | None, tb: Any) -> bool:
        return await self._entered.__aexit__(kind, error, tb)

    def __aiter__(self) -> Any:
        return self._call._but(_kind=GENERATOR)._steps(self._args, self._kwargs, self._frame, AsyncSteps)


# --- an object's twin -------------------------------------------------------------------------------------------------


class _Ending(asyncio.Event):
    """Set on the loop when the twin is dropped or its original is closed; *due* says whether the keeper still has to close the original."""

    due = True


class _State:
    """The state of a twin: its original, and the life of the runtime in which the original lives."""

    # Makes the original anew, with *reopen*.
    make: Callable[[], Any] | None = None
    ending: _Ending | None = None
    # The manager that leaves the original, if `_there` has entered it.
    way_out: Any = None

    def __init__(self, face: TwinType, original: Any = None, parent: object = None) -> None:
        self.face, self.original, self.options = face, original, face._omniloop_options
        # The twin that it came out of, which is kept alive: a cursor needs its connection.
        self.parent = parent
        self.life = self.options.runtime._current()
        # One entry for each entering: the ident of the thread (None for async code), and the manager to leave.
        self.entered: list[tuple[int | None, Any]] = []

    def here(self) -> Any:
        """Return the original. Makes it anew if it belongs to another life and *reopen* was given; else ForkedError or ClosedError."""
        life = self.options.runtime._current()
        if life is self.life and life.stage is not Stage.CLOSED:
            return self.original
        name = self.face.__name__
        if self.make is not None:
            old, foreign = self.original, self.life.foreign
            self.construct(self.make, caller())
            with _lock:
                twin = _live.pop((id(old), id(self.face)), None)
                if twin is not None:
                    _live[id(self.original), id(self.face)] = twin
            if foreign:
                fork.keep_for_ever(old)
            return self.original
        if self.life.foreign:
            raise ForkedError(
                f"This {name} belongs to the parent process. Make it in this process, or use blocking(…, reopen=True)."
            )
        raise ClosedError(f"This {name} lived on a loop that has ended. Make it anew, or use blocking(…, reopen=True).")

    def construct(self, make: Callable[[], Any], frame: FrameType) -> None:
        options, cls = self.options, self.face._omniloop_original
        if options.is_here():
            # On the loop's own thread: made without waiting.
            self.original = make()
        else:
            coro: Any = _call(make)
            coro.__qualname__ = cls.__qualname__
            self.original = options.runtime._run(coro, options.timeout, frame)
        self.life = options.runtime._current()
        closer = next((name for name in ("aclose", "close") if callable(getattr(cls, name, None))), None)
        if closer is not None:
            self.ending = _Ending()
            keeping = _keep(self.original, closer, self.ending)
            name = f"{cls.__qualname__}.{closer}"
            options.runtime._go(keeping, frame, name, kind=KEEPER, when_full="accept")

    def end_keeper(self, *, due: bool) -> None:
        """Have the keeper end, without a wait, because finalisers call it. Unless *due* it closes nothing: other code has, or will."""
        ending, self.ending = self.ending, None
        if ending is not None:
            ending.due = due
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
    _omniloop_asked_for = False

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> TwinType:
        twins = [base for base in bases if isinstance(base, TwinType) and hasattr(base, "_omniloop_original")]
        if twins and "_omniloop_original" not in namespace:
            originals = [twin._omniloop_original for twin in twins]
            if not any(all(issubclass(one, each) for each in originals) for one in originals):
                raise TypeError(
                    f"class {name} is derived from the twins of several classes, and an instance can wrap one object only. Derive an "
                    "async class from all of them, and use blocking() on that."
                )
            for twin in twins:
                for member in twin._omniloop_members & namespace.keys():
                    raise TypeError(
                        f"class {name} overrides {member}(), which the original would not call. Override it in a subclass of "
                        f"{twin._omniloop_original.__qualname__}, and use blocking() on that."
                    )
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
            return await _elsewhere(_call(lambda: cls(*args, **kwargs)), cls._omniloop_options, _getframe())

        return make

    def __getattr__(cls, name: str) -> Any:
        # For class constants, nested classes, and the attributes that dataclasses and `match` look for.
        if name.startswith("_omniloop"):
            raise AttributeError(name)
        cls._omniloop_check_shown(name)
        return _out(getattr(cls._omniloop_original, name), cls._omniloop_options)

    def _omniloop_check_shown(cls, name: str) -> None:
        shown = cls._omniloop_hidden.get(name)
        if shown is not None:
            raise AttributeError(f"The sync face of {cls.__name__} has {shown}() for {name}().")

    def __instancecheck__(cls, instance: object) -> bool:
        return cls.__subclasscheck__(type(instance))

    def __subclasscheck__(cls, subclass: type) -> bool:
        # If the twin of a base was made after the twin of the class, Python does not know them as base and class.
        face: type = getattr(subclass, "_omniloop_original", object)
        are_faces = "_omniloop_original" in vars(cls) and type(subclass) is TwinType
        return super().__subclasscheck__(subclass) or (are_faces and issubclass(face, cls._omniloop_original))

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
        with _lock:
            twin: Any = _live.get(key)
            if twin is None:
                twin = _live[key] = object.__new__(cls)  # type: ignore[arg-type]
                twin._omniloop = _State(cls._omniloop_face, original, parent)
            return twin


def _enterable(face: TwinType) -> TwinType:
    """Derive from *face* a class whose twins can be entered, for values whose manager `_there` has entered already."""
    if hasattr(face, "__enter__"):
        return face
    with _lock:
        found: TwinType | None = vars(face).get("_omniloop_enterable")
        if found is None:
            own = {"__enter__": Twin._omniloop_enter, "__exit__": Twin._omniloop_exit}
            found = TwinType(face.__name__, (face,), {"__slots__": (), "__module__": face.__module__, **own})
            type.__setattr__(face, "_omniloop_enterable", found)
        return found


def _reduce_class(cls: TwinType) -> Any:
    found = None
    with suppress(AttributeError):
        found = operator.attrgetter(cls.__qualname__)(sys.modules.get(cls.__module__))
    if found is cls or "_omniloop_original" not in vars(cls):
        # `@blocking` on the class: the module's name is the twin's, so the twin is pickled by that name. So is a derived class.
        return cls.__qualname__
    return _twin_of, (cls._omniloop_original, cls._omniloop_asked_for, *cls._omniloop_options[2:])


def _twin_of(original: type, asked_for: bool, *options: Any) -> TwinType:
    from .._shared import shared_runtime

    return make_class(original, Options(shared_runtime(), None, *options), asked_for=asked_for)


copyreg.pickle(TwinType, _reduce_class)


class Twin(metaclass=TwinType):
    """The base of all twins of classes."""

    __slots__ = ("__weakref__", "_omniloop")

    _omniloop: _State

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        face, name = type(self)._omniloop_face, type(self).__name__
        state = self._omniloop = _State(face)
        args, kwargs = _all_in(args, kwargs)
        make = functools.partial(face._omniloop_original, *args, **kwargs)
        state.make = make if state.options.reopen else None
        _call_of(self, make, __qualname__=f"{name}()", _instead=f"`{name}.aio(…)`")._is_here(caller())
        with trimming:
            state.construct(make, caller())
        with _lock:
            _live[id(state.original), id(face)] = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_omniloop"):
            raise AttributeError(
                f"This {type(self).__name__} was not made: its __init__() must call super().__init__() first."
            )
        state = self._omniloop
        state.face._omniloop_check_shown(name)
        original = state.here()
        if name in state.options.on_loop:
            return _looked_at(self, name, getattr)(original, name)
        value = getattr(original, name)
        if type(value) is types.CoroutineType:
            # The coroutine of an async property.
            return _looked_at(self, name, lambda: value)()
        if isinstance(value, (FunctionType, MethodType, functools.partial)):
            own = isinstance(value, MethodType) and value.__self__ is original
            if own or faces.is_async(value):
                return _call_of(self, value, __name__=name, _owner=type(self))
        return _out(value, state.options, self)

    def __setattr__(self, name: str, value: Any) -> None:
        own = inspect.getattr_static(type(self), name, None)
        if hasattr(type(own), "__set__") or not hasattr(self, "_omniloop"):
            # Without a state it is set by a derived class, before that calls super().__init__().
            object.__setattr__(self, name, value)
        else:
            setattr(self._omniloop.here(), name, _in(value))

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

    def __reduce_ex__(self, protocol: Any) -> Any:
        return TwinType._omniloop_of, (type(self), self._omniloop.here())

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # A default argument, as in `Resource.__del__`. There is no state if `__init__` has failed before.
        if not is_finalizing() and hasattr(self, "_omniloop"):
            self._omniloop.end_keeper(due=True)

    # --- `with` for `async with`; a twin class gets these methods only if its original can be entered ------------------

    def _omniloop_enter(self) -> Any:
        original = self._omniloop.here()
        if self._omniloop.way_out is not None:
            # `_there` has entered it already.
            return self
        _guard(self, "with", caller())
        # A keeper, so that the manager is left after all work, as a made object is closed.
        entered = Entered(original, self._omniloop.options.runtime, KEEPER)
        with trimming:
            return self._omniloop_inside(threading.get_ident(), entered, entered.__enter__())

    async def _omniloop_aenter(self) -> Any:
        entered = AsyncEntered(self._omniloop.here(), self._omniloop.options.runtime, _getframe())
        return self._omniloop_inside(None, entered, await entered.__aenter__())

    def _omniloop_inside(self, by: int | None, entered: Any, value: Any) -> Any:
        state = self._omniloop
        # Leaving closes the original.
        state.end_keeper(due=False)
        state.entered.append((by, entered))
        return self if value is state.original else _out(value, state.options, self)

    def _omniloop_exit(self, kind: Any, error: BaseException | None, tb: TracebackType | None) -> bool:
        way_out, self._omniloop.way_out = self._omniloop.way_out, None
        if way_out is not None:
            return bool(_dunder(self, way_out.__aexit__, "with")._call((kind, error, tb), {}, caller()))
        entered = self._omniloop_left(threading.get_ident())
        with trimming:
            return bool(entered.__exit__(kind, error, tb))

    async def _omniloop_aexit(self, kind: Any, error: BaseException | None, tb: TracebackType | None) -> bool:
        return bool(await self._omniloop_left(None).__aexit__(kind, error, tb))

    def _omniloop_left(self, by: int | None) -> Any:
        """Take the last manager that the thread *by* has entered (None for async code); if there is none, the last of another thread."""
        entered = self._omniloop.entered
        mine = [it for it in entered if it[0] == by] or [it for it in entered if None not in (it[0], by)]
        if not mine:
            raise OmniloopError(f"This {type(self).__name__} was never entered. Use it in a `with` statement.")
        entered.remove(mine[-1])
        return mine[-1][1]

    # --- `for` for `async for` ----------------------------------------------------------------------------------------

    def _omniloop_iter(self) -> Any:
        original = self._omniloop.here()
        if hasattr(type(original), "__anext__"):
            # An iterator itself, so that a second `for` continues after a `break`.
            aiter(original)
            return self
        _guard(self, "for", caller())
        return self._omniloop_steps(Steps, caller())

    def _omniloop_next(self) -> Any:
        original = self._omniloop.here()
        return _dunder(self, _next_or_end, "for")._call((original,), {}, caller())

    def _omniloop_aiter(self) -> Any:
        return self._omniloop_steps(AsyncSteps, caller())

    def _omniloop_steps(self, kind: Any, frame: FrameType) -> Any:
        state = self._omniloop
        return _iterate(state.here(), state.options, frame, f"{state.face.__name__}.__aiter__", self, kind)


def _call_of(twin: Twin, fn: Any, **told: Any) -> SyncCall:
    """Make a call of *fn* that belongs to *twin*; *told* sets how messages name it."""
    return SyncCall(fn, twin._omniloop.options)._but(_twin=twin, **told)


def _looked_at(twin: Twin, name: str, fn: Any) -> SyncCall:
    """Make a call that reads an attribute on the loop."""
    return _call_of(twin, fn, __name__=name, _owner=type(twin), _instead="`asyncio.to_thread(getattr, …)`")


def _dunder(twin: Twin, fn: Any, keyword: str) -> SyncCall:
    """Make the call that `with` or `for` makes on a twin."""
    return _call_of(twin, fn, __qualname__=f"`{keyword}` on {type(twin).__name__}", _instead=f"`async {keyword}`")


def _guard(twin: Twin, keyword: str, frame: FrameType) -> None:
    call = _dunder(twin, None, keyword)
    if call._is_here(frame):
        raise call._deadlock()


# --- a class's twin ---------------------------------------------------------------------------------------------------


class _Method(SyncCall):
    """The descriptor in a twin's class for a method of the original; it binds the method to the original object."""

    def __init__(self, shown: str, name: str, raw: Any, cls: type, options: Options) -> None:
        # Its name in the original class.
        self._name, self._of_class = name, isinstance(raw, (classmethod, staticmethod))
        fn = raw.__func__ if self._of_class else raw
        super().__init__(fn._fn if isinstance(fn, SyncCall) else fn, options)
        self._closes = name in {"aclose", "close"}
        if name in options.in_caller and self._kind in {OTHER, STEPWISE}:
            self._kind = HERE
        self.__name__, self.__qualname__ = shown, f"{cls.__qualname__}.{shown}"

    def __get__(self, twin: Any, owner: Any = None) -> Any:
        if twin is not None and not self._of_class:
            original = twin._omniloop.here()
            # Binding a plain function here is fast. Other descriptors (partialmethod, a method in C) bind in their own way.
            plain = type(self._fn) is FunctionType
            fn = MethodType(self._fn, original) if plain else getattr(original, self._name)
            return self._but(_fn=fn, _twin=twin, _owner=type(twin))
        # Looked up on the class: the caller passes a twin as the first argument.
        fn = getattr(owner._omniloop_original, self._name) if self._of_class else self._fn
        call = self._but(_fn=fn, _owner=owner)
        return call if twin is not None else self._function(call)

    def _function(self, call: SyncCall) -> Any:
        """Wrap *call* in a plain function: Sphinx recognises only functions of a class as methods."""

        def function(*args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)

        # It gets the globals of the user's function, in which `typing.get_type_hints` resolves the annotations.
        made: Any = FunctionType(function.__code__, self.__globals__, closure=function.__closure__)
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

        self._raw = raw
        self._of_class: Callable[[], Any] = lambda: _out(getattr(cls, name), options)
        fget = faces.getter_of(raw)
        if fget is not None:
            from .annotations import sync_signature

            functools.update_wrapper(get, fget)
            with suppress(TypeError, ValueError):
                signature = get.__signature__ = sync_signature(fget)  # type: ignore[attr-defined]
                get.__annotations__ = {"return": signature.return_annotation}
        super().__init__(
            get,
            lambda twin, value: setattr(twin._omniloop.here(), name, _in(value)),
            lambda twin: delattr(twin._omniloop.here(), name),
        )
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
     "__aenter__", "__aexit__", "__aiter__", "__anext__", "__deepcopy__"}
) - _LOOKS  # fmt: skip
# The special methods that a twin class has if its original has the one before the colon; `Twin` has them as `_omniloop_enter`, for example.
_SPECIAL: Final = {
    "__aenter__": ["enter", "exit", "aenter", "aexit"],
    "__aiter__": ["iter", "aiter"],
    "__anext__": ["next"],
}


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
            made = _exactly(original, options) or made
            if not (twins := _twins_of(original)):
                try:
                    type.__setattr__(original, "_omniloop_twins", twins)
                except (TypeError, AttributeError):
                    _of_fixed[original] = twins
            if made not in twins:
                twins.append(made)
    made._omniloop_asked_for |= asked_for
    return made


def _make_class(original: type, options: Options) -> TwinType:
    everything = faces.members(original)
    renamed = {name: shown for name, shown in options.rename if name in everything}
    if "aclose" in everything and "close" not in everything.keys() | set(renamed.values()):
        renamed.setdefault("aclose", "close")
    if "__await__" in everything:
        everything.setdefault("wait", wait)
    members: dict[str, Any] = {}
    for name, raw in everything.items():
        shown = renamed.get(name, name)
        # A member whose name a renamed one takes is left out: the renamed member is the one that sync code calls.
        taken = shown == name and name in renamed.values()
        if not (taken or name in _OWN or isinstance(raw, type) or raw is vars(object).get(name)):
            made = _member(shown, name, raw, original, options)
            if made is not None:
                members[shown] = made
    for name in _SPECIAL.keys() & everything.keys():
        members |= {f"__{each}__": getattr(Twin, f"_omniloop_{each}") for each in _SPECIAL[name]}
    # Sync ones of the original's own: only a `with` on the twin itself calls them, so that a derived class may have its own.
    own_ways = set() if "__aenter__" in everything else {"__enter__", "__exit__"}
    namespace: dict[str, Any] = {
        "__slots__": (),
        "__doc__": original.__doc__,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "_omniloop_original": original,
        "_omniloop_options": options,
        "_omniloop_members": members.keys() - _LOOKS - own_ways,
        "_omniloop_hidden": renamed,
        # In each class, because a class would inherit it from the twin of a base.
        "_omniloop_asked_for": False,
    }
    if "__class_getitem__" in everything:
        namespace["__class_getitem__"] = classmethod(types.GenericAlias)
    if original.__hash__ is None:
        namespace["__hash__"] = None
    bases = tuple(twin for base in original.__bases__ if (twin := _exactly(base, options)))
    return TwinType(original.__name__, bases or (Twin,), {**members, **namespace})


# Descriptors that bind as methods do, though they are not callable themselves.
_BINDING: Final = (classmethod, functools.partialmethod, functools.singledispatchmethod)


def _member(shown: str, name: str, raw: Any, original: type, options: Options) -> Any:
    if isinstance(raw, FunctionType) and name in _LOOKS:

        def look(self: Twin, *args: Any) -> Any:
            return raw(self._omniloop.original, *map(_in_one, args))

        return functools.update_wrapper(look, raw)
    binds = hasattr(type(raw), "__get__")
    is_set = hasattr(type(raw), "__set__")
    if isinstance(raw, _BINDING) or (binds and callable(raw) and not is_set):
        return _Method(shown, name, raw, original, options)
    # Otherwise a constant of the class, or the default of an instance attribute: `__getattr__` finds it.
    return _Attribute(name, raw, original, options) if binds or is_set else None
