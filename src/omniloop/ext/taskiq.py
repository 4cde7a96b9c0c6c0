"""
Hands calls over to a broker of taskiq: RabbitMQ or NATS JetStream; without one, to this process, for tests and a first try.

    def make():
        return AioPikaBroker("amqp://…")

    jobs = Taskiq(make)
    broker = jobs.broker  # the worker: taskiq worker app:broker

    @background(broker=jobs)
    async def welcome(pk: int) -> None: ...

Each process makes a broker of its own to send on, on omniloop's loop, when it hands over its first call. A forked child makes another,
so that forks are harmless. The broker that a worker listens on is separate, and runs on taskiq's loop; the functions themselves run on
omniloop's.
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
from omniloop._brokers.batches import Batches
from omniloop._brokers.handover import Delivery, Engine, Function, Way, signature_of, was_cancelled
from omniloop._brokers.workshop import Workshop
from omniloop._errors import NoResultError, RefusedError, WaitTimeoutError
from omniloop._report import say
from omniloop._shared import go
from omniloop._threads import time
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

# Seconds between two questions to the result back end: the first pause, the longest one, and the one after an error.
_FIRST_LOOK: Final = 0.01
_LONGEST_LOOK: Final = 0.2
_LOOK_AFTER_ERROR: Final = 1.0

# Seconds to wait for a broker's answer, after which the call is sent on another connection; and seconds to wait for the old one to close.
_SEND_TIMEOUT: Final = 10.0
_SHUT_TIMEOUT: Final = 2.0

# After this many errors of calls in a row a connection is given up too: a client may report a lost connection by an unknown error.
_ERRORS_IN_A_ROW: Final = 5

# Seconds during which a server that has refused the login is not asked again: all waiting calls are refused at once, not one every 10 s.
_REFUSED_FOR: Final = 5.0

# Seconds that a worker's request to JetStream waits for calls, unless the broker sets its own. Without a limit, a request that a
# restarted server has forgotten would wait for ever, and the worker would take no more calls.
_PULL_TIMEOUT: Final = 5.0

# More than other engines have: RabbitMQ confirms a message only when it is on disk, and one connection carries many at a time. Measured
# with 16, 32, 64 and 128: none was quicker than 32 (RabbitMQ 3.10, NATS 2.9).
_AT_ONCE: Final = 32

# JetStream's default, in seconds.
_ACK_WAIT: Final = 30.0

_SAFE: Final = (
    "Use RabbitMQ (taskiq_aio_pika.AioPikaBroker) or NATS JetStream (taskiq_nats.PullBasedJetStreamBroker), which give the calls of a "
    "killed worker to another; or Taskiq(make, lossy=True), if the calls may be lost."
)

# Brokers seen to lose the calls of a killed worker.
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
        make: Makes a broker, with its result back end and middlewares; called in each process, and more than once. None is a broker
            in memory, whose calls are lost when this process ends.
        at_once: How many calls are being sent at the same time, on one connection.
        waiting: How many calls may be on their way; a call beyond that raises `FullError`.
        lossy: Accept a broker that was seen to lose calls when a worker is killed.

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
        # `with_labels` makes shallow copies: they share everything but the labels.
        self._ways: dict[int, Way] = {}
        self._labels: dict[str, Any] = {}
        self._is_local = make is None
        self._brokers = _Brokers(make or _in_memory, lossy)
        # One for each process: opened on first use, closed after all work.
        self._line = resource(contextlib.asynccontextmanager(self._brokers.line))

    def with_labels(self, **labels: Any) -> Taskiq:
        """
        Return the same engine, with labels for the functions decorated with it. Taskiq's middlewares and schedulers read them.

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

        Parameters with `TaskiqDepends` are filled in by taskiq, in the worker.

        Raises:
            ValueError: if a worker could not find the function by its name, the name is taken, or a dependency can't be resolved.
        """
        if not self._is_local:
            function._check_findable()
        injected = _injected(function)
        if injected:
            # For the caller these parameters are optional, and by keyword only.
            function.signature = _without(function.signature, injected)
        self._brokers.bind(function, self._labels)

    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Serialise the arguments, and check what would arrive in the worker.

        Raises:
            TypeError: if the broker's serialiser can't carry an argument, or changes it and no annotation restores it.
        """
        try:
            message, plain = _packed(self.broker, function, call_id, args, kwargs)
        except Exception as error:
            # Each serialiser raises errors of its own: pydantic's is a ValueError.
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
        Send the call, in the context of the caller. If the broker has middlewares for sending, taskiq's own `kiq` sends it.

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
                # taskiq itself would return None.
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
                # The connection has failed: take another one, as `send` does.
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


# More than taskiq's default of 100, because a dropped result would be waited for without end.
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
            # Never wanted: see `_PULL_TIMEOUT`.
            vars(made)["pull_consume_timeout"] = _PULL_TIMEOUT
        if isinstance(made, InMemoryBroker):
            # Run its calls as work of the runtime, whose end waits for them. Taskiq would make tasks that the runtime does not know.
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
        """Make a broker to send on."""
        broker, listening = self.make(), self.listening
        # A result back end that the user's function did not make anew belongs to another loop, or to the parent process.
        backend = broker.result_backend
        elsewhere = listening.is_worker_process and backend is listening.result_backend
        if elsewhere or _owners.setdefault(backend, os.getpid()) != os.getpid():
            broker.result_backend = _Elsewhere(backend)
        return broker


# For each result back end, the process that used it first. The back ends must allow weak references; all of taskiq's do.
_owners: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class _Elsewhere(DummyResultBackend[Any]):
    def __init__(self, backend: object) -> None:
        self.why = (
            f"{backend!r} was made once for several loops or processes, and can be used in one of them only. Make it in the function "
            "that makes the broker."
        )


class _Parcel(tuple[str, list[Any], dict[str, Any]]):  # noqa: SLOT001 - a tuple can't have any
    """A call as an outbox stores it. *message* is the serialised call, which only the process that packed it has."""

    message: BrokerMessage


class _InDoubtError(Exception):
    """
    An error that may be this call's or not.

    The server closed the channel with all calls on it, or something is missing that the broker makes when it starts up.
    """


class _Connection:
    """A broker that has started up. Once it is given up, it is shut down when the last call on it has ended."""

    def __init__(self, broker: AsyncBroker) -> None:
        self.broker = broker
        self._senders = 0
        self.given_up = False
        self._errors_in_a_row = 0
        # Whether a middleware sees or changes what is sent.
        self.hooked = any(
            type(it).pre_send is not TaskiqMiddleware.pre_send or type(it).post_send is not TaskiqMiddleware.post_send
            for it in broker.middlewares
        )
        self.kick = _kick_of(broker)

    async def send(self, kick: Callable[[_Connection], Awaitable[Any]]) -> None:
        """Send a call by *kick*. Gives the connection up if the error is the connection's. Raises as the verdict on the error says."""
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
                # Also for a closed channel, which raises its old error in every call until it is open again.
                self.give_up()
            if verdict is None:
                raise cause from None
            raise verdict(words) from cause
        finally:
            self._senders -= 1
            self._shut_if_done()

    def give_up(self) -> None:
        """Have the next calls use another connection."""
        if not self.given_up and not isinstance(self.broker, InMemoryBroker):
            self.given_up = True
            self._shut_if_done()

    def _shut_if_done(self) -> None:
        if self.given_up and not self._senders:
            go(_shut(self.broker), name="close a connection that has failed")


class _Line:
    """
    The connection of a process: a broker that has started up, replaced by a new one when it fails.

    The client libraries reconnect by themselves, but not always. They wait for ever if a server leaves a call without an answer, as a
    quorum queue of RabbitMQ 3.10 did after it was killed in a burst. So the connection is replaced when it fails or does not answer;
    calls that are still being sent on the old one may end there. All of this is for the loop's thread.
    """

    def __init__(self, make: Callable[[], AsyncBroker]) -> None:
        self._make = make
        self._opening: asyncio.Task[_Connection] | None = None
        # The context of the resource, because the client's background tasks belong to the connection, not to the call that opened it.
        self._context = copy_context()
        self._refused_until = -math.inf
        self._alone = asyncio.Lock()
        # The largest message in bytes, once a server has told it. A larger one would close the channel, and is refused here.
        self.limit: float = math.inf

    async def send(self, kick: Callable[[_Connection], Awaitable[Any]]) -> None:
        """Send a call by *kick*; in doubt, once more on a connection of its own. See `_Connection.send`."""
        connection = await self.open()
        try:
            await connection.send(kick)
        except _InDoubtError as error:
            if match := _SIZE_LIMIT.search(str(error)):
                self.limit = int(match[1])
            # If the call fails again on a connection of its own, the error is the call's.
            async with self._alone:
                connection = await self._open()
                try:
                    await connection.send(kick)
                except _InDoubtError as error:
                    raise RefusedError(*error.args) from error.__cause__
                finally:
                    connection.give_up()

    async def open(self) -> _Connection:
        """Return the connection. One task opens it for all callers; if that fails, all get the error."""
        while True:
            if self._opening is None or self._is_over(self._opening):
                self._opening = asyncio.create_task(self._open(), context=self._context)
            connection = await asyncio.shield(self._opening)
            if not connection.given_up:
                # Otherwise another caller has given it up since, and the next turn opens a new one.
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
            # A connection that is still being opened is not waited for.
            opening.cancel()
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await _shut(opening.result().broker)


async def _start_up(broker: Any) -> None:
    await broker.startup()
    package = _package(broker)
    if package == "taskiq_aio_pika":
        # RabbitMQ returns a message that no queue takes. The broker's own channel would take that for a success.
        from omniloop.ext._rabbitmq import Channel

        broker.write_conn.CHANNEL_CLASS = Channel
        broker.write_channel = await broker.write_conn.channel(on_return_raises=True)
    elif package == "taskiq_redis" and hasattr(broker, "connection_pool"):
        # Connect once now, to see the reason of a failure. The client itself connects on first use, and then retries for longer than a
        # call may take, whatever the reason.
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        connection = broker.connection_pool.make_connection()
        connection.retry = Retry(NoBackoff(), 0)
        try:
            await connection.connect()
        finally:
            await connection.disconnect()


async def _shut(broker: AsyncBroker) -> None:
    # A broker that could not start up, or has failed, need not shut down without errors.
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_SHUT_TIMEOUT):
            await broker.shutdown()


def _package(broker: object) -> str:
    return type(broker).__module__.partition(".")[0]


def _kick_of(broker: AsyncBroker) -> Callable[[BrokerMessage], Awaitable[None]]:
    """Return what sends a message on *broker*. For a list of Redis it sends many at a time, on one client instead of one for each."""
    if _package(broker) != "taskiq_redis":
        return broker.kick
    from redis.asyncio import Redis
    from taskiq_redis import ListQueueBroker

    if not isinstance(broker, ListQueueBroker) or type(broker).kick is not ListQueueBroker.kick:
        return broker.kick
    client = Redis(connection_pool=broker.connection_pool)
    queues: dict[str, Batches[bytes]] = {}

    async def push(queue: str, messages: list[bytes]) -> None:
        await client.lpush(queue, *messages)

    def kick(message: BrokerMessage) -> Awaitable[None]:
        name = message.labels.get("queue_name") or broker.queue_name
        queue = queues.get(name) or queues.setdefault(name, Batches(partial(push, name), _is_unreachable))
        return queue.send(message.message)

    return kick


# --- what went wrong ----------------------------------------------------------------------------------------------------

# What an error means. RefusedError: the call will never be taken. ConnectionError: the server can't be reached. None: a trouble of this
# call alone, which may pass. Looked up by the package of the error, and by the names of its class and base classes in MRO order.
_Verdict = type[RefusedError | ConnectionError | _InDoubtError] | None
_VERDICTS: Final[Mapping[str, Mapping[_Verdict, tuple[str, ...]]]] = {
    "taskiq_aio_pika": {
        RefusedError: ("IncorrectRoutingKeyError", "QueueNotDeclaredError", "ExchangeNotDeclaredError"),
    },
    "aiormq": {
        RefusedError: ("ProbableAuthenticationError", "AuthenticationError"),
        _InDoubtError: ("ChannelPreconditionFailed", "ChannelAccessRefused", "ChannelNotFoundEntity", "PublishError"),
        # A full queue.
        None: ("DeliveryError",),
        ConnectionError: ("ChannelInvalidStateError", "AMQPError"),
    },
    "nats": {
        # BadRequestError: for example a message larger than the stream takes.
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
        # ReadOnlyError: the server was the primary, and is a replica now.
        ConnectionError: ("ReadOnlyError", "ConnectionError", "TimeoutError"),
    },
}

# Errors whose text tells more than their class. RabbitMQ: a queue whose node is down comes back; a virtual host that is not found, or
# refused to the user, stays refused, while one that is down or at a limit is refused only for now. Redis has no class for a key of
# another type, nor for a message larger than `proto-max-bulk-len`.
_WORDS: Final[Mapping[str, tuple[tuple[re.Pattern[str], _Verdict], ...]]] = {
    "aiormq": (
        (re.compile("down or inaccessible"), ConnectionError),
        (re.compile(r"NOT_ALLOWED - .*(not found|refused for user)"), RefusedError),
    ),
    "redis": ((re.compile("WRONGTYPE|Protocol error: invalid bulk length"), RefusedError),),
    "nats": ((re.compile("(?i)authorization violation|permissions violation for publish"), RefusedError),),
}

# The text of RabbitMQ's error.
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
    """Return the verdict on *error*, the error that tells the reason, and the text of that."""
    if isinstance(error, SendTaskError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, TimeoutError):
        # nats-py only notes such an error, and goes on waiting.
        noted = getattr(getattr(broker, "client", None), "last_error", None)
        if noted is not None and _named_verdict(noted, str(noted)) is RefusedError:
            error = noted
    words = str(error)
    if type(error).__name__ == "InvalidFrameError" and (innermost := _innermost(error.__traceback__)) is not None:
        # RabbitMQ says why it closes a connection. aiormq reports only an unexpected answer, so take the reason from its frame.
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
    """Return a call as it is sent, and the message that the worker's serialiser would make of it."""
    message = broker.formatter.dumps(_kicker(broker, function, call_id)._prepare_message(*args, **kwargs))
    return message, broker.formatter.loads(message.message)


_INJECTED: Final[Any] = TaskiqDepends()


def _injected(function: Function) -> dict[str, Parameter]:
    """The parameters that taskiq fills in, marked by their default or by `Annotated`. Taskiq's own code finds them."""
    original = function.original
    with warnings.catch_warnings():
        # If it can't resolve an annotation, it only warns, and injects nothing.
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
    """Return *signature* with the parameters that taskiq fills in moved to the end, as optional ones."""
    kept = [it for name, it in signature.parameters.items() if name not in injected]
    rest = [kept.pop()] if kept and kept[-1].kind is Parameter.VAR_KEYWORD else []
    return signature.replace(parameters=[*kept, *(it.replace(default=None) for it in injected.values()), *rest])


def _register(broker: AsyncBroker, function: Function, labels: dict[str, Any]) -> None:
    injected = _injected(function)

    async def body(*args: Any, _delivered: Context = _INJECTED, **kwargs: Any) -> Any:
        message = _message_of(_delivered)
        filled = {name: kwargs.pop(name) for name in injected if name in kwargs}
        received = _received(function, args, kwargs, filled)
        labels = _delivered.message.labels
        # Taskiq's retry middlewares and its `requeue` send a failed call as a new message, so add the deliveries before that.
        before = int(labels.get("_retries", 0)) + int(labels.get("X-Taskiq-requeue", 0))
        attempt = 1 if isinstance(_delivered.broker, InMemoryBroker) else _attempt(message)
        delivery = Delivery(_delivered.message.task_id, None if attempt is None else attempt + before)
        async with _extended(message, _delivered.broker):
            return await function.run(delivery, *received)

    # Taskiq reads the name and the annotations of the function that it registers. Only those of injected parameters are for taskiq to
    # apply; `_received` applies the others.
    body.__name__ = body.__qualname__ = function.original.__name__
    body.__module__ = function.original.__module__
    body.__annotations__ = {"_delivered": Context, **{name: it.annotation for name, it in injected.items()}}
    if injected:
        signature = inspect.signature(body)
        *first, last = signature.parameters.values()
        vars(body)["__signature__"] = signature.replace(parameters=[*first, *injected.values(), last])
    broker.register_task(body, task_name=function.name, **labels)


def _received(
    function: Function, args: Iterable[Any], kwargs: Mapping[str, Any], filled: Mapping[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """
    Return the arguments that the function gets: those from the serialiser, with the annotations applied by taskiq's pydantic; and what
    taskiq has *filled* in, in the function's own order of parameters.
    """
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
    if filled:
        bound = BoundArguments(signature_of(function.original), OrderedDict({**bound.arguments, **filled}))
    return bound.args, bound.kwargs


def _parsed(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    try:
        return parse_obj_as(hint, value)
    except Exception:
        # The value does not fit the annotation, or pydantic does not know the annotation: leave the value as it is.
        return value


def _message_of(context: Context) -> Any:
    """Return the broker's own message, which taskiq does not hand on: the object whose method is the acknowledgement."""
    controller = getattr(context, "_ack_controller", None)
    return getattr(getattr(controller, "_ack", None), "__self__", None)


def _attempt(message: Any) -> int | None:
    try:
        if hasattr(message, "in_progress"):
            return int(message.metadata.num_delivered)
        headers = getattr(message, "headers", None)
        if headers is None:
            return None
        # Quorum queues, the default here, count deliveries. A classic queue only tells that the message was delivered before.
        return int(headers.get("x-delivery-count", 1 if message.redelivered else 0)) + 1
    except (AttributeError, TypeError, ValueError):
        return None


@contextlib.asynccontextmanager
async def _extended(message: Any, broker: AsyncBroker) -> AsyncIterator[None]:
    """Tell JetStream regularly that the work goes on. Otherwise it gives the call to another worker after `ack_wait`."""
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
                # Either the connection comes back in time, or JetStream gives the call to another worker.
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
