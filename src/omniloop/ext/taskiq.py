"""
Hands calls over to a broker of taskiq: RabbitMQ or NATS JetStream; without one, to this process, for tests and a first try.

    def make():
        return AioPikaBroker("amqp://…")

    jobs = Taskiq(make)
    broker = jobs.broker  # the worker: taskiq worker app:broker

    @background(broker=jobs)
    async def welcome(pk: int) -> None: ...

Each process makes its own broker, on omniloop's loop, when the first call is handed over, and a forked child another: a fork is
harmless. The one that a worker listens on is a third, on taskiq's own loop. The body of a function runs on omniloop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from inspect import Parameter
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from taskiq import AsyncBroker, AsyncTaskiqTask, Context, InMemoryBroker, TaskiqDepends
from taskiq.compat import parse_obj_as
from taskiq.exceptions import ResultGetError, ResultIsReadyError, SendTaskError
from taskiq.result_backends.dummy import DummyResultBackend

from omniloop._bridges.resource import resource
from omniloop._brokers.handover import Delivery, Engine, Function
from omniloop._errors import NoResultError, WaitTimeoutError
from omniloop._report import say
from omniloop._shared import go

# How soon to ask the result back end again, in seconds: from the first to the longest pause.
_FIRST_LOOK: Final = 0.01
_LONGEST_LOOK: Final = 0.2

# Seconds after which a broker that does not answer is given up, and the call sent on another connection; and for closing the old one.
_SEND_TIMEOUT: Final = 10.0
_SHUT_TIMEOUT: Final = 2.0

# JetStream's own.
_ACK_WAIT: Final = 30.0

_SAFE: Final = (
    "Use RabbitMQ (taskiq_aio_pika.AioPikaBroker) or NATS JetStream (taskiq_nats.PullBasedJetStreamBroker), which give the calls of a "
    "killed worker to another; or Taskiq(make, lossy=True), if the calls may be lost."
)

# Seen: a worker was killed with calls on it, and they did not come back.
_LOSSY: Final = {
    "taskiq_redis": "takes a call off the list when a worker fetches it: what a killed worker had is lost",
    "taskiq_postgres": "delivers by NOTIFY alone: what a killed worker had, and what comes before the first worker, is lost",
    "taskiq_pg": "loses what a killed worker had",
    "taskiq_nats.NatsBroker": "keeps nothing: what comes while no worker listens is lost",
}
_STREAMS: Final = "takes up the calls of a killed worker only when another call comes in, and by default none that was made before the first worker"


class Taskiq(Engine):
    """
    Any broker of taskiq as the engine of `background(broker=…)`.

    Args:
        make: Makes a broker, with its result back end and middlewares; called in each process, and more than once. None: in memory,
            so that calls live and die with this process.
        at_once: So many calls are being sent at the same time.
        waiting: So many may be on their way; a call beyond that raises `FullError`.
        lossy: Take a broker that was seen to lose calls when a worker is killed.

    Raises:
        TypeError: if *make* is a broker, or can't be called.
    """

    def __init__(
        self,
        make: Callable[[], AsyncBroker] | None = None,
        *,
        at_once: int = Engine.at_once,
        waiting: int = Engine.waiting,
        lossy: bool = False,
    ) -> None:
        if make is not None and (isinstance(make, AsyncBroker) or not callable(make)):
            raise TypeError(
                f"Taskiq({make!r}): give a function that makes the broker, so that each process, and each fork, makes its own: "
                "Taskiq(lambda: AioPikaBroker(url))."
            )
        self.at_once = at_once
        self.waiting = waiting
        self._labels: dict[str, Any] = {}
        self._shared = _Shared(make, lossy)

    def with_labels(self, **labels: Any) -> Taskiq:
        """
        Return the same engine, with labels for the functions that are decorated with it: what taskiq's middlewares and schedulers read.

        As ``@background(broker=jobs.with_labels(retry_on_error=True, max_retries=5))``, or ``delay=60``, or ``schedule=[{"cron": "0 * * * *"}]``.
        """
        other = copy.copy(self)
        other._labels = {**self._labels, **labels}
        return other

    @property
    def broker(self) -> AsyncBroker:
        """The broker that a worker or a scheduler of taskiq listens on: ``taskiq worker app:broker``. Nothing is sent on it."""
        return self._shared.listening()

    @property
    def label(self) -> str:
        """The name of the broker's class."""
        return type(self.broker).__name__

    @property
    def _root(self) -> Engine:
        # Labels share the way.
        return self._shared.root(self)

    def bind(self, function: Function) -> None:
        """
        Register the function with the broker.

        Raises:
            ValueError: if a worker could not find it by its name, or the name is taken.
        """
        self._shared.bind(function, self._labels)

    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Serialise the arguments, and have a look at what would come out in the worker.

        Raises:
            TypeError: if the broker's serialiser can't carry an argument, or changes it and no annotation brings it back.
        """
        broker = self.broker
        kicker = _kicker(broker, function, call_id)
        try:
            wire = broker.formatter.dumps(kicker._prepare_message(*args, **kwargs))
        except Exception as error:
            # Of the serialiser's own kind: pydantic's is a ValueError.
            raise TypeError(
                f"{function.name}{_call(args, kwargs)}: {error}. Pass what JSON knows, such as an id."
            ) from error
        plain = broker.formatter.loads(wire.message)
        function.check(
            args,
            kwargs,
            *_received(function, plain.args, plain.kwargs),
            "Annotate the parameter ({name}: {type}), so that it is brought back, or pass something that JSON knows.",
        )
        return call_id, plain.args, plain.kwargs

    async def send(self, function: Function, parcel: Any) -> None:
        """Send with taskiq's own `kiq`, so that its middlewares run, in the context of the caller."""
        call_id, args, kwargs = parcel
        line = await self._shared.line
        broker = await line.broker()
        try:
            async with asyncio.timeout(_SEND_TIMEOUT):
                await _kicker(broker, function, call_id).kiq(*args, **kwargs)
        except Exception as error:
            line.give_up(broker)
            if isinstance(error, SendTaskError) and error.__cause__ is not None:
                raise error.__cause__ from None
            raise
        if isinstance(broker, InMemoryBroker):
            self._shared.hold(broker)

    async def fetch(self, function: Function, call_id: str, timeout: float | None) -> Any:
        """
        Ask the result back end until it has the result.

        Raises:
            WaitTimeoutError: if *timeout* passed.
            NoResultError: if the broker has no result back end.
        """
        line = await self._shared.line
        deadline = None if timeout is None else time.monotonic() + timeout
        pause, said = _FIRST_LOOK, False
        while True:
            broker = await line.broker()
            if isinstance(broker.result_backend, DummyResultBackend):
                # taskiq itself would say None.
                raise NoResultError(
                    self._shared.no_results
                    or f"{self.label} keeps no results: give it a result back end in the function that makes it, "
                    "broker.with_result_backend(…); or wait for `accepted` only."
                )
            task: AsyncTaskiqTask[Any] = AsyncTaskiqTask(call_id, broker.result_backend, function.hints.get("return"))
            try:
                if await task.is_ready():
                    result = await task.get_result()
                    break
            except (ResultIsReadyError, ResultGetError) as error:
                # The way there, as in `send`.
                line.give_up(broker)
                if not said:
                    say(
                        "The result of %s can't be had now, and is asked for again: %r",
                        function.name,
                        error.__cause__ or error,
                    )
                    said = True
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(f"no result of {call_id} after {timeout} s")
            await asyncio.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(_LONGEST_LOOK, pause * 1.5)
        return result.raise_for_error().return_value


class _Shared:
    """What an engine and its copies with other labels have in common."""

    def __init__(self, make: Callable[[], AsyncBroker] | None, lossy: bool) -> None:
        self._make = make
        self._lossy = lossy
        self._root: Taskiq | None = None
        self._functions: dict[str, tuple[Function, dict[str, Any]]] = {}
        self._listening: AsyncBroker | None = None
        # All that live: a function that is defined later is for them too.
        self._made: WeakSet[AsyncBroker] = WeakSet()
        self._held = False
        self._waits = False
        self.no_results: str | None = None
        # Of each process; opened on first use, closed after all work.
        self.line = resource(contextlib.asynccontextmanager(self._keep))

    def root(self, engine: Taskiq) -> Taskiq:
        if self._root is None:
            self._root = engine
        return self._root

    def listening(self) -> AsyncBroker:
        if self._listening is None:
            self._listening = self._new()
        return self._listening

    def bind(self, function: Function, labels: dict[str, Any]) -> None:
        other = self._functions.get(function.name, (function, labels))[0]
        # The same place in the source is the same function, defined anew: in a notebook, or by a reload.
        if _place(other) != _place(function):
            raise ValueError(
                f"{function.original!r}: another function is called {function.name!r} already, {other.original!r}. Give one of them a name=."
            )
        if self._make is not None and not function.findable:
            raise ValueError(
                f"{function.original!r}: a worker imports the module under another name, and taskiq drops what it does not know. "
                f'Give it a name=, such as @background(broker=…, name="{function.original.__name__}"), or define it in a module that both import.'
            )
        self._functions[function.name] = function, labels
        for broker in list(self._made):
            _register(broker, function, labels)

    def _new(self) -> AsyncBroker:
        if self._make is None:
            # More than taskiq's own 100: a result that is dropped would be waited for without end.
            broker: AsyncBroker = InMemoryBroker(max_stored_results=10_000)
        else:
            broker = self._make()
            if not isinstance(broker, AsyncBroker):
                raise TypeError(f"{self._make!r} returned {broker!r}, which is no broker of taskiq.")
            if not self._lossy:
                _refuse_lossy(broker)
        self._made.add(broker)
        for function, labels in list(self._functions.values()):
            _register(broker, function, labels)
        return broker

    async def _keep(self) -> AsyncIterator[_Line]:
        line = _Line(self.fresh)
        try:
            yield line
        finally:
            await line.close()

    def fresh(self) -> AsyncBroker:
        """A broker to send on."""
        broker = self._new()
        self._keep_apart(broker)
        return broker

    def _keep_apart(self, broker: AsyncBroker) -> None:
        """A result back end that a function did not make anew belongs to another loop, or to the process that forked this one."""
        backend = broker.result_backend
        owner = _owners.setdefault(backend, os.getpid())
        worker = self._listening is not None and self._listening.is_worker_process
        if owner != os.getpid() or (worker and backend is self.listening().result_backend):
            broker.result_backend = DummyResultBackend()
            self.no_results = (
                f"{backend!r} was made once for several loops or processes, and can be used in one of them only. Make it in the function "
                "that makes the broker."
            )

    def hold(self, broker: InMemoryBroker) -> None:
        """Let the drain wait for what runs in memory: taskiq's own tasks are none of the runtime's."""
        self._held = True
        if not self._waits:
            self._waits = True
            go(self._wait(broker), name="calls in memory")

    async def _wait(self, broker: InMemoryBroker) -> None:
        try:
            while self._held:
                self._held = False
                await broker.wait_all()
        finally:
            self._waits = False


class _Line:
    """
    The one connection of a process: a broker that has started up, and another once that has failed.

    The clients reconnect by themselves, but not always, and where a server leaves a call without an answer, as a quorum queue of
    RabbitMQ 3.10 did after it was killed in a burst, they wait for ever. All of this is on the loop's thread.
    """

    def __init__(self, make: Callable[[], AsyncBroker]) -> None:
        self._make = make
        self._broker: AsyncBroker | None = None
        self._lock = asyncio.Lock()
        self._old: list[AsyncBroker] = []

    async def broker(self) -> AsyncBroker:
        # One opens for all.
        async with self._lock:
            await self._shut_old()
            if self._broker is None:
                broker = self._make()
                try:
                    async with asyncio.timeout(_SEND_TIMEOUT):
                        await broker.startup()
                except BaseException:
                    self._old.append(broker)
                    raise
                self._broker = broker
            return self._broker

    def give_up(self, broker: AsyncBroker) -> None:
        """The next one to ask gets another, unless it is not *broker* any more that they get."""
        if self._broker is broker and not isinstance(broker, InMemoryBroker):
            self._broker = None
            self._old.append(broker)

    async def close(self) -> None:
        async with self._lock:
            if self._broker is not None:
                self._old.append(self._broker)
                self._broker = None
            await self._shut_old()

    async def _shut_old(self) -> None:
        while self._old:
            try:
                async with asyncio.timeout(_SHUT_TIMEOUT):
                    await self._old.pop().shutdown()
            except Exception:
                # What could not be opened, or broke, need not be closed in order.
                pass


# By result back end, the process that used it first. Only those that can be referred to weakly, which all of taskiq's are.
_owners: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def _kicker(broker: AsyncBroker, function: Function, call_id: str) -> Any:
    task = broker.find_task(function.name)
    assert task is not None, "bound functions are registered with each broker that is made"
    return task.kicker().with_task_id(call_id)


def _place(function: Function) -> tuple[str, str]:
    return function.original.__module__, function.original.__qualname__


_INJECTED: Final[Any] = TaskiqDepends()


def _register(broker: AsyncBroker, function: Function, labels: dict[str, Any]) -> None:
    async def body(*args: Any, _delivered: Context = _INJECTED, **kwargs: Any) -> Any:
        message = _message_of(_delivered)
        received = _received(function, args, kwargs)
        delivery = Delivery(
            _delivered.message.task_id, 1 if isinstance(_delivered.broker, InMemoryBroker) else _attempt(message)
        )
        async with _extended(message, _delivered.broker):
            return await function.run(delivery, *received)

    # Registering names what it is given after the function, and reads its annotations, which are for later.
    body.__name__ = body.__qualname__ = function.original.__name__
    body.__module__ = function.original.__module__
    body.__annotations__ = {"_delivered": Context}
    broker.register_task(body, task_name=function.name, **labels)


def _received(
    function: Function, args: Iterable[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the function gets of what came out of the serialiser: with its annotations applied, by the same pydantic as taskiq's own."""
    bound = function.signature.bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        hint = function.hints.get(name)
        if hint is None:
            continue
        kind = function.signature.parameters[name].kind
        if kind is Parameter.VAR_POSITIONAL:
            bound.arguments[name] = tuple(_parsed(hint, item) for item in value)
        elif kind is Parameter.VAR_KEYWORD:
            bound.arguments[name] = {key: _parsed(hint, item) for key, item in value.items()}
        else:
            bound.arguments[name] = _parsed(hint, value)
    return bound.args, bound.kwargs


def _parsed(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    try:
        return parse_obj_as(hint, value)
    except Exception:
        # Not what the annotation says, or one that pydantic has no idea of: as it is.
        return value


def _message_of(context: Context) -> Any:
    """The broker's own message, which taskiq does not hand on: what its acknowledgement is a method of."""
    controller = getattr(context, "_ack_controller", None)
    return getattr(getattr(controller, "_ack", None), "__self__", None)


def _attempt(message: Any) -> int | None:
    try:
        if hasattr(message, "in_progress"):
            return int(message.metadata.num_delivered)
        headers = getattr(message, "headers", None)
        if headers is None:
            return None
        # Of quorum queues, which are the default here; a classic queue only tells that it was delivered before.
        return int(headers.get("x-delivery-count", 1 if message.redelivered else 0)) + 1
    except (AttributeError, TypeError, ValueError):
        return None


@contextlib.asynccontextmanager
async def _extended(message: Any, broker: AsyncBroker) -> AsyncIterator[None]:
    """Tell JetStream that the work goes on, as long as it does: else it delivers the call to another worker after `ack_wait`."""
    if not hasattr(message, "in_progress"):
        yield
        return
    wait = getattr(getattr(broker, "consumer_config", None), "ack_wait", None) or _ACK_WAIT

    async def go_on() -> None:
        while True:
            await asyncio.sleep(wait / 3)
            try:
                await message.in_progress()
            except Exception as error:
                # The connection comes back, or the call goes to another worker.
                say("JetStream was not told that a call goes on: %r", error)

    extender = asyncio.create_task(go_on())
    try:
        yield
    finally:
        extender.cancel()


def _refuse_lossy(broker: AsyncBroker) -> None:
    for cls in type(broker).__mro__:
        package = cls.__module__.partition(".")[0]
        reason = _LOSSY.get(f"{package}.{cls.__name__}") or _LOSSY.get(package)
        if reason is None:
            continue
        if package == "taskiq_redis" and "Stream" in cls.__name__:
            reason = _STREAMS
        raise ValueError(f"{type(broker).__name__} {reason}. {_SAFE}")


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    text = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    return f"({text if len(text) <= 80 else text[:77] + '…'})"
