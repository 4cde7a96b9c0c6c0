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
import inspect
import itertools
import math
import os
import re
import ssl
import traceback
import warnings
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextvars import copy_context
from functools import partial
from inspect import BoundArguments, Parameter
from typing import Any, Final
from weakref import WeakKeyDictionary

from omniloop._bridges.resource import resource
from omniloop._brokers.batches import Batches
from omniloop._brokers.handover import Delivery, Engine, Function, caused, pauses, signature_of, was_cancelled
from omniloop._brokers.workshop import Workshop
from omniloop._errors import NoResultError, RefusedError, WaitTimeoutError
from omniloop._report import say
from omniloop._shared import go
from omniloop._threads import time
from omniloop.ext import needs

with needs("taskiq"):
    from taskiq import AsyncBroker, AsyncTaskiqTask, BrokerMessage, Context, InMemoryBroker, TaskiqDepends
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


class Taskiq(Workshop[AsyncBroker]):
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
        super().__init__(make or _in_memory, "the broker: Taskiq(lambda: AioPikaBroker(url))", at_once, waiting)
        self._is_local = make is None
        self._lossy = lossy
        # One for each process: opened on first use, closed after all work.
        self._line = resource(lambda: _Line(self._to_send_on), _Line.close)

    def with_labels(self, **labels: Any) -> Taskiq:
        """
        Return the same engine, with labels for the functions decorated with it. Taskiq's middlewares and schedulers read them.

        As ``@background(broker=jobs.with_labels(retry_on_error=True, max_retries=5))``, or ``delay=60``, or ``schedule=[{"cron": "0 * * * *"}]``.
        """
        return self._with(labels)

    @property
    def broker(self) -> AsyncBroker:
        """The broker that a worker or a scheduler of taskiq listens on: ``taskiq worker app:broker``. Nothing is sent on it."""
        return self._listening()

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
        super().bind(function)

    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Serialise the arguments, and check what would arrive in the worker.

        Raises:
            TypeError: if the broker's serialiser can't carry an argument, or changes it and no annotation restores it.
        """
        try:
            message = _packed(self.broker, function, call_id, args, kwargs)
            plain = self.broker.formatter.loads(message.message)
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
        Send the call, in the context of the caller. If the broker has middlewares, taskiq's own `kiq` sends it.

        Raises:
            RefusedError: if the server will never take the call: it is too large, its queue does not exist, access is denied.
        """
        try:
            call_id, args, kwargs = parcel
            # From an outbox it comes without its message.
            message = getattr(parcel, "message", None) or _packed(self.broker, function, call_id, args, kwargs)
        except (TypeError, ValueError, AttributeError):
            raise function._not_of(self, parcel) from None
        line = await self._line

        async def kick(connection: _Connection) -> None:
            if len(message.message) > line.limit:
                raise RefusedError(f"{len(message.message)} bytes are more than the {line.limit} that the server takes")
            if connection.broker.middlewares:
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
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        waits, said = pauses(_FIRST_LOOK, _LONGEST_LOOK), False
        while True:
            pause = next(waits)
            connection = await line.open()
            backend = connection.broker.result_backend
            if isinstance(backend, DummyResultBackend):
                # taskiq itself would return None.
                advice = "give it a result back end in the function that makes it, broker.with_result_backend(…)"
                none = f"{self.label} keeps no results: {advice}; or wait for `accepted` only."
                raise NoResultError(getattr(backend, "why_none", none))
            task: AsyncTaskiqTask[Any] = AsyncTaskiqTask(call_id, backend, function.hints.get("return"))
            try:
                result = await task.get_result() if await task.is_ready() else None
            except (ResultIsReadyError, ResultGetError) as error:
                # The connection has failed: take another one, as `send` does.
                connection.give_up()
                result, pause = None, _LOOK_AFTER_ERROR
                if not said:
                    message = "The result of %s can't be had now, and is asked for again: %r"
                    say(message, function.name, error.__cause__ or error)
                    said = True
            if result is not None:
                return result.raise_for_error().return_value
            if (left := deadline - time.monotonic()) <= 0:
                raise WaitTimeoutError(f"no result of {call_id} after {timeout} s")
            await asyncio.sleep(min(pause, left))

    # --- the brokers --------------------------------------------------------------------------------------------------

    def _prepare(self, made: AsyncBroker) -> None:
        if not isinstance(made, AsyncBroker):
            raise TypeError(f"{self._make!r} returned {made!r}, which is no broker of taskiq.")
        for cls in type(made).__mro__:
            for name, reason in () if self._lossy else _LOSSY.items():
                if f"{_package(cls)}.{cls.__name__}".startswith(name):
                    raise ValueError(f"{type(made).__name__} {reason}. {_SAFE}")
        if getattr(made, "pull_consume_timeout", 0) is None:
            # Never wanted: see `_PULL_TIMEOUT`.
            vars(made)["pull_consume_timeout"] = _PULL_TIMEOUT
        if isinstance(made, InMemoryBroker):
            # Run its calls as work of the runtime, whose end waits for them. Taskiq would make tasks that the runtime does not know.
            vars(made)["kick"] = partial(_run_here, made)

    def _register(self, made: AsyncBroker, name: str, body: Callable[..., Any], options: dict[str, Any]) -> None:
        names = body.__name__, body.__qualname__
        made.register_task(body, task_name=name, **options)
        # Taskiq renames what it registers, and puts it into its module by that name: a new one, and a longer one, for each broker.
        body.__name__, body.__qualname__ = names

    def _body(self, function: Function) -> Callable[..., Any]:
        """What taskiq calls in the worker. Takes the parameters with `TaskiqDepends` out of the signature of *function*."""
        injected = _injected(function)

        async def body(*args: Any, _delivered: Context = _DELIVERED, **kwargs: Any) -> Any:
            received = _received(function, args, kwargs, injected)
            message = _message_of(_delivered)
            extender = asyncio.create_task(_extend(message, _delivered.broker))
            try:
                return await function.run(
                    Delivery(_delivered.message.task_id, _attempt(_delivered, message)), *received
                )
            finally:
                extender.cancel()

        # Taskiq reads the name and the annotations of the function that it registers. Only those of injected parameters are for taskiq
        # to apply; `_received` applies the others.
        body.__name__ = body.__qualname__ = function.original.__name__
        body.__module__ = function.original.__module__
        body.__annotations__ = {"_delivered": Context, **{name: it.annotation for name, it in injected.items()}}
        if injected:
            # For the caller they are optional, and by keyword only.
            optional = [it.replace(default=None) for it in injected.values()]
            function.signature = _with_keywords(function.signature, optional)
            vars(body)["__signature__"] = _with_keywords(inspect.signature(body), injected.values())
        return body

    def _to_send_on(self) -> AsyncBroker:
        broker, listening = self._fresh(), self.broker
        # A result back end that the user's function did not make anew belongs to another loop, or to the parent process.
        backend = broker.result_backend
        elsewhere = listening.is_worker_process and backend is listening.result_backend
        if elsewhere or _owners.setdefault(backend, os.getpid()) != os.getpid():
            broker.result_backend = DummyResultBackend()
            vars(broker.result_backend)["why_none"] = (
                f"{backend!r} was made once for several loops or processes, and can be used in one of them only. Make it in the "
                "function that makes the broker."
            )
        return broker


async def _run_here(broker: InMemoryBroker, message: BrokerMessage) -> None:
    go(broker.receiver.callback(message=message.message), name=f"{message.task_name} {message.task_id} in memory")


# More than taskiq's default of 100, because a dropped result would be waited for without end.
_in_memory: Final = partial(InMemoryBroker, max_stored_results=10_000)


# For each result back end, the process that used it first. The back ends must allow weak references; all of taskiq's do.
_owners: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


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
        self.kick = _kick_of(broker)
        self.given_up = False
        self._senders = self._errors_in_a_row = 0

    async def send(self, kick: Callable[[_Connection], Awaitable[Any]]) -> None:
        """Send a call by *kick*. Gives the connection up if the error is the connection's. Raises what `_meaning` makes of the error."""
        self._senders += 1
        try:
            async with asyncio.timeout(_SEND_TIMEOUT):
                await kick(self)
            self._errors_in_a_row = 0
        except (Exception, asyncio.CancelledError) as raised:
            if isinstance(raised, RefusedError) or was_cancelled(raised):
                raise
            error = _meaning(raised, self.broker)
            self._errors_in_a_row += 1
            if isinstance(error, (ConnectionError, _InDoubtError)) or self._errors_in_a_row >= _ERRORS_IN_A_ROW:
                # Also for a closed channel, which raises its old error in every call until it is open again.
                self.give_up()
            raise error from error.__cause__
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
        except BaseException as raised:
            await _shut(broker)
            if not isinstance(raised, Exception):
                raise
            error = _meaning(raised, broker, ConnectionError)
            cause = error.__cause__
            if not isinstance(error, ConnectionError):
                self._refused_until = time.monotonic() + _REFUSED_FOR
                error = RefusedError(f"{error}. Mend what the broker is made with, or the server.")
            raise error from cause
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
    package = _package(type(broker))
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


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _kick_of(broker: AsyncBroker) -> Callable[[BrokerMessage], Awaitable[None]]:
    """Return what sends a message on *broker*. For a list of Redis it sends many at a time, on one client instead of one for each."""
    if _package(type(broker)) != "taskiq_redis":
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

# What an error means: RefusedError, if the call will never be taken; ConnectionError, if the server can't be reached; None: a trouble of
# this call alone, which may pass. The first pattern decides that matches the package of the error, its class, or one of its base classes,
# and its words: "aiormq.DeliveryError: …".
_Meaning = type[RefusedError | ConnectionError | _InDoubtError] | None
_MEANINGS: Final[Mapping[str, _Meaning]] = {
    r"taskiq_aio_pika\.(IncorrectRoutingKey|QueueNotDeclared|ExchangeNotDeclared)Error:": RefusedError,
    # A queue of RabbitMQ whose node is down comes back; a virtual host that is not found, or refused to the user, stays refused, while
    # one that is down or at a limit is refused only for now.
    r"aiormq\..* down or inaccessible": ConnectionError,
    r"aiormq\..*NOT_ALLOWED - .*(not found|refused for user)": RefusedError,
    r"aiormq\.(Probable)?AuthenticationError:": RefusedError,
    r"aiormq\.(Channel(PreconditionFailed|AccessRefused|NotFoundEntity)|PublishError):": _InDoubtError,
    # A full queue.
    r"aiormq\.DeliveryError:": None,
    r"aiormq\.(ChannelInvalidStateError|AMQPError):": ConnectionError,
    r"(?i)nats\..*(authorization violation|permissions violation for publish)": RefusedError,
    # BadRequestError: for example a message larger than the stream takes.
    r"nats\.(MaxPayload|BadSubject|BadHeader|BadRequest|Authorization|InvalidUserCredentials)Error:": RefusedError,
    r"nats\.(NoStreamResponse|NotFound)Error:": _InDoubtError,
    r"nats\.(Connection(Closed|Reconnecting|Draining)|StaleConnection|NoServers)Error:": ConnectionError,
    # Redis has no class for a key of another type, nor for a message larger than `proto-max-bulk-len`.
    r"redis\..*(WRONGTYPE|Protocol error: invalid bulk length)": RefusedError,
    r"redis\.(Authentication|NoPermission)Error:": RefusedError,
    # ReadOnlyError: the server was the primary, and is a replica now.
    r"redis\.(ReadOnly|Connection|Timeout)Error:": ConnectionError,
    # asyncio's `writelines` on a connection that was just lost, on 3.12.
    r"builtins\.AttributeError: .*'_add_writer'": ConnectionError,
}

# The text of RabbitMQ's error.
_SIZE_LIMIT: Final = re.compile(r"larger than configured max size (\d+)")


def _named(error: BaseException, words: str) -> _Meaning:
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, ssl.SSLCertVerificationError):
            return RefusedError
        below = below.__cause__ or below.__context__
    for cls in type(error).__mro__:
        for pattern, meaning in _MEANINGS.items():
            # A server's words may be several lines.
            if re.match(pattern, f"{_package(cls)}.{cls.__name__}: {words}", re.DOTALL):
                return meaning
    return ConnectionError if isinstance(error, (OSError, EOFError)) else None


def _is_unreachable(error: Exception) -> bool:
    return _named(error, str(error)) is ConnectionError


def _meaning(error: BaseException, broker: AsyncBroker, unknown: _Meaning = None) -> BaseException:
    """Return the error that *error* of a client library means, with the library's words and it as the cause; or *error* itself."""
    if isinstance(error, SendTaskError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, TimeoutError):
        # nats-py only notes such an error, and goes on waiting.
        noted = getattr(getattr(broker, "client", None), "last_error", None)
        if noted is not None and _named(noted, str(noted)) is RefusedError:
            error = noted
    words = str(error)
    if type(error).__name__ == "InvalidFrameError":
        # RabbitMQ says why it closes a connection. aiormq reports only an unexpected answer, so take the reason from its frame.
        for frame, _ in list(traceback.walk_tb(error.__traceback__))[-1:]:
            words = getattr(frame.f_locals.get("frame"), "reply_text", words)
    meaning = _named(error, words) or unknown
    return error if meaning is None else caused(meaning(f"{type(error).__name__}: {words}"), error)


def _kicker(broker: AsyncBroker, function: Function, call_id: str) -> Any:
    task: Any = broker.find_task(function.name)
    return task.kicker().with_task_id(call_id)


def _packed(
    broker: AsyncBroker, function: Function, call_id: str, args: Iterable[Any], kwargs: Mapping[str, Any]
) -> BrokerMessage:
    return broker.formatter.dumps(_kicker(broker, function, call_id)._prepare_message(*args, **kwargs))


# What taskiq is to pass to each body: the context of the call.
_DELIVERED: Final[Any] = TaskiqDepends()


def _injected(function: Function) -> dict[str, Parameter]:
    """The parameters that taskiq fills in, marked by their default or by `Annotated`. Taskiq's own code finds them."""
    original = function.original
    with warnings.catch_warnings():
        # If it can't resolve an annotation, it only warns, and injects nothing.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            graph: Any = DependencyGraph(original)
        except Exception as error:
            may_depend = any(
                type(it.default).__name__ in ("Dependency", "Depends") or "Depends" in str(it.annotation)
                for it in function.signature.parameters.values()
            )
            if may_depend or not isinstance(error, (RuntimeWarning, NameError)):
                raise ValueError(
                    f"{original!r}: what taskiq is to inject can't be resolved where the function is decorated: {error}. Import what its "
                    "annotations name, not for type checkers alone."
                ) from error
            return {}
    ours = [its for parent, its in graph.dependencies.items() if parent.dependency is original]
    return {it.param_name: it.signature.replace(kind=Parameter.KEYWORD_ONLY) for it in itertools.chain(*ours)}


def _with_keywords(signature: inspect.Signature, more: Iterable[Parameter]) -> inspect.Signature:
    """Return *signature* with the parameters *more*, which are by keyword only; they may be among its others."""
    all_ = {**signature.parameters, **{it.name: it for it in more}}
    return signature.replace(parameters=sorted(all_.values(), key=lambda it: it.kind))


def _received(
    function: Function, args: Iterable[Any], kwargs: Mapping[str, Any], filled: Collection[str] = ()
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """
    Return the arguments that the function gets: those from the serialiser, with the annotations applied by taskiq's pydantic; and what
    taskiq has *filled* in, in the function's own order of parameters.
    """
    bound = function.signature.bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        hint = None if name in filled else function.hints.get(name)
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
        bound = BoundArguments(signature_of(function.original), bound.arguments)
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


def _attempt(context: Context, message: Any) -> int | None:
    labels = context.message.labels
    try:
        if isinstance(context.broker, InMemoryBroker):
            attempt = 1
        elif hasattr(message, "in_progress"):
            attempt = int(message.metadata.num_delivered)
        else:
            # Quorum queues, the default here, count deliveries. A classic queue only tells that the message was delivered before.
            attempt = int(message.headers.get("x-delivery-count", 1 if message.redelivered else 0)) + 1
    except (AttributeError, TypeError, ValueError):
        return None
    # Taskiq's retry middlewares and its `requeue` send a failed call as a new message, so add the deliveries before that.
    return attempt + int(labels.get("_retries", 0)) + int(labels.get("X-Taskiq-requeue", 0))


async def _extend(message: Any, broker: AsyncBroker) -> None:
    """Tell JetStream regularly that the work goes on. Otherwise it gives the call to another worker after `ack_wait`."""
    wait = getattr(getattr(broker, "consumer_config", None), "ack_wait", None) or _ACK_WAIT
    while hasattr(message, "in_progress"):
        await asyncio.sleep(wait / 3)
        try:
            await message.in_progress()
        except Exception as error:
            # Either the connection comes back in time, or JetStream gives the call to another worker.
            say("JetStream was not told that a call goes on: %r", error)


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    text = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    return f"({text if len(text) <= 80 else text[:77] + '…'})"
