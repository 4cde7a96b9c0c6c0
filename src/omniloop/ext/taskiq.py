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
import inspect
import math
import os
import re
import ssl
import typing
import warnings
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import copy_context
from functools import partial
from inspect import BoundArguments, Parameter, Signature
from types import TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary

from omniloop._bridges.resource import resource
from omniloop._brokers.handover import Delivery, Engine, Function, Way, signature_of, was_cancelled
from omniloop._brokers.together import Together
from omniloop._brokers.workshop import Workshop
from omniloop._clock import time
from omniloop._errors import NoResultError, RefusedError, WaitTimeoutError
from omniloop._report import say
from omniloop._shared import go
from omniloop.ext import needs

with needs("taskiq"):
    from taskiq import (
        AsyncBroker,
        AsyncTaskiqTask,
        BrokerMessage,
        Context,
        InMemoryBroker,
        TaskiqDepends,
        TaskiqMiddleware,
    )
    from taskiq.compat import parse_obj_as
    from taskiq.exceptions import ResultGetError, ResultIsReadyError, SendTaskError
    from taskiq.result_backends.dummy import DummyResultBackend
    from taskiq_dependencies import DependencyGraph

# How soon to ask the result back end again, in seconds: from the first to the longest pause.
_FIRST_LOOK: Final = 0.01
_LONGEST_LOOK: Final = 0.2
_LOOK_AFTER_ERROR: Final = 1.0

# Seconds after which a broker that does not answer is given up, and the call sent on another connection; and for closing the old one.
_SEND_TIMEOUT: Final = 10.0
_SHUT_TIMEOUT: Final = 2.0

# So many errors of calls in a row, and no success, give a connection up as well: a client may have no name for what it lost.
_ERRORS_IN_A_ROW: Final = 5

# So long a server that has refused to let us in is not asked again: the calls that wait are refused as well, and not one every 10 s.
_REFUSED_FOR: Final = 5.0

# Seconds that a worker's request to JetStream waits for calls, if the broker says nothing. Without an end a request that a restarted
# server has forgotten waits for ever, and the worker takes nothing more.
_PULL_TIMEOUT: Final = 5.0

# More than other engines': a confirmation of RabbitMQ takes as long as its disk, and a connection carries many. Of 16, 32, 64 and 128
# none was quicker than 32 (RabbitMQ 3.10, NATS 2.9).
_AT_ONCE: Final = 32

# JetStream's own.
_ACK_WAIT: Final = 30.0

_SAFE: Final = (
    "Use RabbitMQ (taskiq_aio_pika.AioPikaBroker) or NATS JetStream (taskiq_nats.PullBasedJetStreamBroker), which give the calls of a "
    "killed worker to another; or Taskiq(make, lossy=True), if the calls may be lost."
)

# Seen: a worker was killed with calls on it, and they did not come back.
_LOSSY: Final = {
    "taskiq_redis.RedisStream": "takes up the calls of a killed worker only when another call comes in, and by default none that was made before the first worker",
    "taskiq_redis.": "takes a call off the list when a worker fetches it: what a killed worker had is lost",
    "taskiq_postgres.": "delivers by NOTIFY alone: what a killed worker had, and what comes before the first worker, is lost",
    "taskiq_pg.": "loses what a killed worker had",
    "taskiq_nats.NatsBroker": "keeps nothing: what comes while no worker listens is lost",
}


class Taskiq(Engine):
    """
    Any broker of taskiq as the engine of `background(broker=…)`.

    Args:
        make: Makes a broker, with its result back end and middlewares; called in each process, and more than once. None: in memory,
            so that calls live and die with this process.
        at_once: So many calls are being sent at the same time, on one connection.
        waiting: So many may be on their way; a call beyond that raises `FullError`.
        lossy: Take a broker that was seen to lose calls when a worker is killed.

    Raises:
        TypeError: if *make* is a broker, or can't be called.
    """

    def __init__(
        self,
        make: Callable[[], AsyncBroker] | None = None,
        *,
        at_once: int = _AT_ONCE,
        waiting: int = Engine.waiting,
        lossy: bool = False,
    ) -> None:
        self.at_once = at_once
        self.waiting = waiting
        # Copies with other labels share the way, and all but the labels.
        self._ways: dict[int, Way] = {}
        self._labels: dict[str, Any] = {}
        self._is_local = make is None
        self._brokers = _Brokers(make or _in_memory, lossy)
        # Of each process; opened on first use, closed after all work.
        self._line = resource(contextlib.asynccontextmanager(self._brokers.line))

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
        return self._brokers.listening

    @property
    def label(self) -> str:
        """The name of the broker's class."""
        return type(self.broker).__name__

    def bind(self, function: Function) -> None:
        """
        Register the function with the broker.

        Parameters that `TaskiqDepends` fills in are resolved by taskiq, in the worker.

        Raises:
            ValueError: if a worker could not find it by its name, the name is taken, or a dependency can't be resolved.
        """
        if not self._is_local:
            function._check_findable()
        injected = _injected(function)
        if injected:
            # The caller may give them, by name, and need not.
            function.signature = _without(function.signature, injected)
        self._brokers.bind(function, self._labels)

    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Serialise the arguments, and have a look at what would come out in the worker.

        Raises:
            TypeError: if the broker's serialiser can't carry an argument, or changes it and no annotation brings it back.
        """
        try:
            message, plain = _packed(self.broker, function, call_id, args, kwargs)
        except Exception as error:
            # Of the serialiser's own kind: pydantic's is a ValueError.
            raise TypeError(
                f"{function.name}{_call(args, kwargs)}: {error}. Pass what JSON knows, such as an id."
            ) from error
        function.check(
            args,
            kwargs,
            *_received(function, plain.args, plain.kwargs),
            "Annotate the parameter ({name}: {type}), so that it is brought back, or pass something that JSON knows.",
        )
        parcel = _Parcel((call_id, plain.args, plain.kwargs))
        parcel.message = message
        return parcel

    async def send(self, function: Function, parcel: Any) -> None:
        """
        Send it, in the context of the caller; where the broker has middlewares, with taskiq's own `kiq`.

        Raises:
            RefusedError: if the server will never take the call: it is too large, its queue does not exist, access is denied.
        """
        try:
            call_id, args, kwargs = parcel
            message = (
                parcel.message
                if isinstance(parcel, _Parcel)
                else _packed(self.broker, function, call_id, args, kwargs)[0]
            )
        except (TypeError, ValueError, AttributeError):
            raise function._not_of(self, parcel) from None
        line = await self._line

        async def kick(connection: _Connection) -> None:
            if len(message.message) > line.limit:
                raise RefusedError(f"{len(message.message)} bytes are more than the {line.limit} that the server takes")
            if connection.hooked:
                await _kicker(connection.broker, function, call_id).kiq(*args, **kwargs)
            else:
                await connection.kick(message)

        try:
            await line.send(kick)
        except RefusedError as error:
            raise RefusedError(f"{self.label} refuses the call of {function.name}: {error}") from error.__cause__

    async def fetch(self, function: Function, call_id: str, timeout: float | None) -> Any:
        """
        Ask the result back end until it has the result.

        Raises:
            WaitTimeoutError: if *timeout* passed.
            NoResultError: if the broker has no result back end.
        """
        line = await self._line
        deadline = None if timeout is None else time.monotonic() + timeout
        pause, said = _FIRST_LOOK, False
        while True:
            connection = await line.open()
            backend = connection.broker.result_backend
            if isinstance(backend, DummyResultBackend):
                # taskiq itself would say None.
                raise NoResultError(
                    backend.why
                    if isinstance(backend, _Elsewhere)
                    else f"{self.label} keeps no results: give it a result back end in the function that makes it, "
                    "broker.with_result_backend(…); or wait for `accepted` only."
                )
            task: AsyncTaskiqTask[Any] = AsyncTaskiqTask(call_id, backend, function.hints.get("return"))
            try:
                if await task.is_ready():
                    result = await task.get_result()
                    break
            except (ResultIsReadyError, ResultGetError) as error:
                # The way there, as in `send`.
                connection.give_up()
                pause = _LOOK_AFTER_ERROR
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
            pause = min(max(_LONGEST_LOOK, pause), pause * 1.5)
        return result.raise_for_error().return_value


async def _run_here(broker: InMemoryBroker, message: BrokerMessage) -> None:
    go(broker.receiver.callback(message=message.message), name=f"{message.task_name} {message.task_id} in memory")


# More than taskiq's own 100: a result that is dropped would be waited for without end.
_in_memory: Final = partial(InMemoryBroker, max_stored_results=10_000)


class _Brokers(Workshop[AsyncBroker]):
    def __init__(self, make: Callable[[], AsyncBroker], lossy: bool) -> None:
        super().__init__(make, "the broker: Taskiq(lambda: AioPikaBroker(url))")
        self._lossy = lossy

    def prepare(self, made: AsyncBroker) -> None:
        if not isinstance(made, AsyncBroker):
            raise TypeError(f"{self._make!r} returned {made!r}, which is no broker of taskiq.")
        if not self._lossy:
            _refuse_lossy(made)
        if getattr(made, "pull_consume_timeout", 0) is None:
            # Nobody can want it: see there.
            vars(made)["pull_consume_timeout"] = _PULL_TIMEOUT
        if isinstance(made, InMemoryBroker):
            # As its own, and waited for at the end: taskiq's tasks are none of the runtime's.
            vars(made)["kick"] = partial(_run_here, made)

    def register(self, made: AsyncBroker, function: Function, options: dict[str, Any]) -> None:
        _register(made, function, options)

    async def line(self) -> AsyncIterator[_Line]:
        line = _Line(self._fresh)
        try:
            yield line
        finally:
            await line.close()

    def _fresh(self) -> AsyncBroker:
        """A broker to send on."""
        broker, listening = self.make(), self.listening
        # What a function did not make anew belongs to another loop, or to the process that forked this one.
        backend = broker.result_backend
        elsewhere = listening.is_worker_process and backend is listening.result_backend
        if elsewhere or _owners.setdefault(backend, os.getpid()) != os.getpid():
            broker.result_backend = _Elsewhere(backend)
        return broker


# By result back end, the process that used it first. Only those that can be referred to weakly, which all of taskiq's are.
_owners: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class _Elsewhere(DummyResultBackend[Any]):
    def __init__(self, backend: object) -> None:
        self.why = (
            f"{backend!r} was made once for several loops or processes, and can be used in one of them only. Make it in the function "
            "that makes the broker."
        )


class _Parcel(tuple[str, list[Any], dict[str, Any]]):  # noqa: SLOT001 - a tuple can't have any
    """A call as an outbox writes it down; *message* is what was serialised of it in this process."""

    message: BrokerMessage


class _InDoubtError(Exception):
    """A channel was closed under all that are on it, or what a broker makes when it starts up is missing: whose error is it?"""


class _Connection:
    """A broker that has started up. It is shut when it was given up and nobody sends on it any more."""

    def __init__(self, broker: AsyncBroker) -> None:
        self.broker = broker
        self._senders = 0
        self.given_up = False
        self._errors_in_a_row = 0
        # Somebody wants to see, or to change, what is sent.
        self.hooked = any(
            type(it).pre_send is not TaskiqMiddleware.pre_send or type(it).post_send is not TaskiqMiddleware.post_send
            for it in broker.middlewares
        )
        self.kick = _kick_of(broker)

    async def send(self, kick: Callable[[_Connection], Awaitable[Any]]) -> None:
        """Kick; an error of the connection is its last. Raises what the error's verdict says."""
        self._senders += 1
        try:
            async with asyncio.timeout(_SEND_TIMEOUT):
                await kick(self)
            self._errors_in_a_row = 0
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, RefusedError) or was_cancelled(error):
                raise
            verdict, cause, words = _verdict(error, self.broker)
            self._errors_in_a_row += 1
            if verdict not in (RefusedError, None) or self._errors_in_a_row >= _ERRORS_IN_A_ROW:
                # A closed channel too: until it is open again it raises the old error to whoever comes.
                self.give_up()
            if verdict is None:
                raise cause from None
            raise verdict(words) from cause
        finally:
            self._senders -= 1
            self._shut_if_done()

    def give_up(self) -> None:
        """The next to send gets another connection."""
        if not self.given_up and not isinstance(self.broker, InMemoryBroker):
            self.given_up = True
            self._shut_if_done()

    def _shut_if_done(self) -> None:
        if self.given_up and not self._senders:
            go(_shut(self.broker), name="close a connection that has failed")


class _Line:
    """
    The one connection of a process: a broker that has started up, and another once that has failed.

    The clients reconnect by themselves, but not always, and where a server leaves a call without an answer, as a quorum queue of
    RabbitMQ 3.10 did after it was killed in a burst, they wait for ever. It is changed for errors of the connection, and those who
    still send on the old one end in peace. All of this is on the loop's thread.
    """

    def __init__(self, make: Callable[[], AsyncBroker]) -> None:
        self._make = make
        self._opening: asyncio.Task[_Connection] | None = None
        # Of the resource: what the client leaves on the loop is the connection's, and no work's.
        self._context = copy_context()
        self._refused_until = -math.inf
        self._alone = asyncio.Lock()
        # Bytes, once a server has told: one that is larger closes the channel, and is not sent a second time.
        self.limit: float = math.inf

    async def send(self, kick: Callable[[_Connection], Awaitable[Any]]) -> None:
        """Kick, on the connection or on another one: see `_Connection.send`."""
        connection = await self.open()
        try:
            await connection.send(kick)
        except _InDoubtError as error:
            if match := _SIZE_LIMIT.search(str(error)):
                self.limit = int(match[1])
            # On a connection of its own it is known whose error it is.
            async with self._alone:
                connection = await self._open()
                try:
                    await connection.send(kick)
                except _InDoubtError as error:
                    raise RefusedError(*error.args) from error.__cause__
                finally:
                    connection.give_up()

    async def open(self) -> _Connection:
        """The connection; one opens it for all, and all have the error if that fails."""
        while True:
            if self._opening is None or self._is_over(self._opening):
                self._opening = asyncio.create_task(self._open(), context=self._context)
            connection = await asyncio.shield(self._opening)
            if not connection.given_up:
                # Else by one who was told of it before.
                return connection

    def _is_over(self, opening: asyncio.Task[_Connection]) -> bool:
        if not opening.done():
            return False
        if opening.cancelled() or opening.exception() is not None:
            return time.monotonic() >= self._refused_until
        return opening.result().given_up

    async def _open(self) -> _Connection:
        broker = self._make()
        try:
            async with asyncio.timeout(_SEND_TIMEOUT):
                await _start_up(broker)
        except BaseException as error:
            await _shut(broker)
            if not isinstance(error, Exception):
                raise
            verdict, cause, words = _verdict(error, broker)
            if verdict in (ConnectionError, None):
                raise ConnectionError(words) from cause
            self._refused_until = time.monotonic() + _REFUSED_FOR
            raise RefusedError(f"{words}. Mend what the broker is made with, or the server.") from cause
        return _Connection(broker)

    async def close(self) -> None:
        if (opening := self._opening) is not None:
            # One that is not open by now is not waited for.
            opening.cancel()
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await _shut(opening.result().broker)


async def _start_up(broker: Any) -> None:
    await broker.startup()
    package = _package(broker)
    if package == "taskiq_aio_pika":
        # RabbitMQ gives back what no queue takes; the broker's own channel would take that for a success.
        from omniloop.ext._rabbitmq import Channel

        broker.write_conn.CHANNEL_CLASS = Channel
        broker.write_channel = await broker.write_conn.channel(on_return_raises=True)
    elif package == "taskiq_redis" and hasattr(broker, "connection_pool"):
        # Once: it connects when it is first used, and then tries on for longer than a call may take, whatever the reason is.
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        connection = broker.connection_pool.make_connection()
        connection.retry = Retry(NoBackoff(), 0)
        try:
            await connection.connect()
        finally:
            await connection.disconnect()


async def _shut(broker: AsyncBroker) -> None:
    # What could not be opened, or broke, need not be closed in order.
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_SHUT_TIMEOUT):
            await broker.shutdown()


def _package(broker: object) -> str:
    return type(broker).__module__.partition(".")[0]


def _kick_of(broker: AsyncBroker) -> Callable[[BrokerMessage], Awaitable[None]]:
    """How a message is sent on *broker*; to a list of Redis many at a time, on one client and not on one for each."""
    if _package(broker) != "taskiq_redis":
        return broker.kick
    from redis.asyncio import Redis
    from taskiq_redis import ListQueueBroker

    if not isinstance(broker, ListQueueBroker) or type(broker).kick is not ListQueueBroker.kick:
        return broker.kick
    client = Redis(connection_pool=broker.connection_pool)
    queues: dict[str, Together[bytes]] = {}

    async def push(queue: str, messages: list[bytes]) -> None:
        await client.lpush(queue, *messages)

    def kick(message: BrokerMessage) -> Awaitable[None]:
        name = message.labels.get("queue_name") or broker.queue_name
        queue = queues.get(name) or queues.setdefault(name, Together(partial(push, name), _is_unreachable))
        return queue.send(message.message)

    return kick


# --- what went wrong ----------------------------------------------------------------------------------------------------

# What an error says: RefusedError, the call will never be taken; ConnectionError, the server can't be reached; None, trouble of this call
# alone, for now. By the package that it comes from, and by the names of its class and those above it, the nearest first.
_Verdict = type[RefusedError | ConnectionError | _InDoubtError] | None
_VERDICTS: Final[Mapping[str, Mapping[_Verdict, tuple[str, ...]]]] = {
    "taskiq_aio_pika": {
        RefusedError: ("IncorrectRoutingKeyError", "QueueNotDeclaredError", "ExchangeNotDeclaredError"),
    },
    "aiormq": {
        RefusedError: ("ProbableAuthenticationError", "AuthenticationError"),
        _InDoubtError: ("ChannelPreconditionFailed", "ChannelAccessRefused", "ChannelNotFoundEntity", "PublishError"),
        # A queue that is full.
        None: ("DeliveryError",),
        ConnectionError: ("ChannelInvalidStateError", "AMQPError"),
    },
    "nats": {
        # A bad request: larger than the stream takes, say.
        RefusedError: (
            *("MaxPayloadError", "BadSubjectError", "BadHeaderError", "BadRequestError"),
            *("AuthorizationError", "InvalidUserCredentialsError"),
        ),
        _InDoubtError: ("NoStreamResponseError", "NotFoundError"),
        ConnectionError: (
            *("ConnectionClosedError", "ConnectionReconnectingError", "ConnectionDrainingError"),
            *("StaleConnectionError", "NoServersError"),
        ),
    },
    "redis": {
        RefusedError: ("AuthenticationError", "NoPermissionError"),
        # Read only: of a server that was the first, and is not any more.
        ConnectionError: ("ReadOnlyError", "ConnectionError", "TimeoutError"),
    },
}

# Where the words tell more than the class. Of RabbitMQ, a queue whose node is down, and comes back; and a virtual host that it refuses to
# open, of which a limit, or one that is down, is only for now. Redis has no class for a key of another kind, nor for a message that is
# larger than `proto-max-bulk-len`.
_WORDS: Final[Mapping[str, tuple[tuple[re.Pattern[str], _Verdict], ...]]] = {
    "aiormq": (
        (re.compile("down or inaccessible"), ConnectionError),
        (re.compile(r"NOT_ALLOWED - .*(not found|refused for user)"), RefusedError),
    ),
    "redis": ((re.compile("WRONGTYPE|Protocol error: invalid bulk length"), RefusedError),),
    "nats": ((re.compile("(?i)authorization violation|permissions violation for publish"), RefusedError),),
}

# RabbitMQ's words.
_SIZE_LIMIT: Final = re.compile(r"larger than configured max size (\d+)")


def _named_verdict(error: BaseException, words: str) -> _Verdict:
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, ssl.SSLCertVerificationError):
            return RefusedError
        below = below.__cause__ or below.__context__
    for cls in type(error).__mro__:
        package = cls.__module__.partition(".")[0]
        for pattern, verdict in _WORDS.get(package, ()):
            if pattern.search(words):
                return verdict
        for verdict, names in _VERDICTS.get(package, {}).items():
            if cls.__name__ in names:
                return verdict
    return ConnectionError if isinstance(error, (OSError, EOFError)) else None


def _is_unreachable(error: Exception) -> bool:
    return _named_verdict(error, str(error)) is ConnectionError


def _verdict(error: BaseException, broker: AsyncBroker) -> tuple[_Verdict, BaseException, str]:
    """Also the error that tells the reason, and its words."""
    if isinstance(error, SendTaskError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, TimeoutError):
        # What nats-py only notes, and waits on.
        noted = getattr(getattr(broker, "client", None), "last_error", None)
        if noted is not None and _named_verdict(noted, str(noted)) is RefusedError:
            error = noted
    words = str(error)
    if type(error).__name__ == "InvalidFrameError" and (innermost := _innermost(error.__traceback__)) is not None:
        # RabbitMQ closes a connection, and says why; aiormq says only that this was not the answer that it has expected.
        words = getattr(innermost.tb_frame.f_locals.get("frame"), "reply_text", words)
    return _named_verdict(error, words), error, f"{type(error).__name__}: {words}"


def _innermost(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _kicker(broker: AsyncBroker, function: Function, call_id: str) -> Any:
    task = broker.find_task(function.name)
    assert task is not None, "bound functions are registered with each broker that is made"
    return task.kicker().with_task_id(call_id)


def _packed(
    broker: AsyncBroker, function: Function, call_id: str, args: Iterable[Any], kwargs: Mapping[str, Any]
) -> tuple[BrokerMessage, Any]:
    """A call as it is sent, and as it comes out of the serialiser."""
    message = broker.formatter.dumps(_kicker(broker, function, call_id)._prepare_message(*args, **kwargs))
    return message, broker.formatter.loads(message.message)


_INJECTED: Final[Any] = TaskiqDepends()


def _injected(function: Function) -> dict[str, Parameter]:
    """Its parameters that taskiq fills in: by default, or by `Annotated`; as taskiq finds them."""
    original = function.original
    with warnings.catch_warnings():
        # It warns, and goes on without, where an annotation can't be resolved.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            graph = DependencyGraph(original)
        except Exception as error:
            if not isinstance(error, (RuntimeWarning, NameError)) or _may_depend(function):
                raise ValueError(
                    f"{original!r}: what taskiq is to inject can't be resolved where the function is decorated: {error}. Import what its "
                    "annotations name, not for type checkers alone."
                ) from error
            return {}
    names = {it.param_name for parent, its in graph.dependencies.items() if parent.dependency is original for it in its}
    hints = typing.get_type_hints(original, include_extras=True) if names else {}
    return {
        name: parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints.get(name, Parameter.empty))
        for name, parameter in signature_of(original).parameters.items()
        if name in names
    }


def _may_depend(function: Function) -> bool:
    return any(
        type(it.default).__name__ in ("Dependency", "Depends") or "Depends" in str(it.annotation)
        for it in function.signature.parameters.values()
    )


def _without(signature: Signature, injected: Mapping[str, Parameter]) -> Signature:
    """*signature* with those that taskiq fills in at its end, and left away as a rule."""
    kept = [it for name, it in signature.parameters.items() if name not in injected]
    rest = [kept.pop()] if kept and kept[-1].kind is Parameter.VAR_KEYWORD else []
    return signature.replace(parameters=[*kept, *(it.replace(default=None) for it in injected.values()), *rest])


def _register(broker: AsyncBroker, function: Function, labels: dict[str, Any]) -> None:
    injected = _injected(function)

    async def body(*args: Any, _delivered: Context = _INJECTED, **kwargs: Any) -> Any:
        message = _message_of(_delivered)
        filled = {name: kwargs.pop(name) for name in injected if name in kwargs}
        received = _received(function, args, kwargs)
        if filled:
            received = _all_of(function, received, filled)
        labels = _delivered.message.labels
        # Taskiq's middlewares, and its `requeue`, send a call that failed as a new message.
        before = int(labels.get("_retries", 0)) + int(labels.get("X-Taskiq-requeue", 0))
        attempt = 1 if isinstance(_delivered.broker, InMemoryBroker) else _attempt(message)
        delivery = Delivery(_delivered.message.task_id, None if attempt is None else attempt + before)
        async with _extended(message, _delivered.broker):
            return await function.run(delivery, *received)

    # Registering names what it is given after the function, and reads its annotations, which are for later.
    body.__name__ = body.__qualname__ = function.original.__name__
    body.__module__ = function.original.__module__
    body.__annotations__ = {"_delivered": Context, **{name: it.annotation for name, it in injected.items()}}
    if injected:
        signature = inspect.signature(body)
        *first, last = signature.parameters.values()
        vars(body)["__signature__"] = signature.replace(parameters=[*first, *injected.values(), last])
    broker.register_task(body, task_name=function.name, **labels)


def _all_of(
    function: Function, received: tuple[tuple[Any, ...], dict[str, Any]], filled: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """With what taskiq has filled in, each where the function itself has it."""
    bound = function.signature.bind(*received[0], **received[1])
    order = signature_of(function.original)
    whole = BoundArguments(order, OrderedDict({**bound.arguments, **filled}))
    return whole.args, whole.kwargs


def _received(
    function: Function, args: Iterable[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the function gets of what came out of the serialiser: with its annotations applied, by the same pydantic as taskiq's own."""
    bound = function.signature.bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        hint = function.hints.get(name)
        if hint is None or hint is type(value):
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
        name = f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
        for lossy, reason in _LOSSY.items():
            if name.startswith(lossy):
                raise ValueError(f"{type(broker).__name__} {reason}. {_SAFE}")


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    text = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    return f"({text if len(text) <= 80 else text[:77] + '…'})"
