"""
Hands calls over to Procrastinate, a queue in PostgreSQL; with Django, within the transaction in which the call is made.

    jobs = Procrastinate()  # in a Django project that has procrastinate.contrib.django
    jobs = Procrastinate(lambda: App(connector=PsycopgConnector(conninfo=url)))  # without Django

With Django a call in sync code is written by Django's own connection: a rollback sends nothing, and a commit loses nothing.

The jobs of a killed worker run again. Procrastinate itself leaves them in the state "doing" until a task of the user retries them;
this module registers such a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Generator
from datetime import datetime
from functools import partial
from typing import Any, Final

from omniloop._bridges.resource import resource
from omniloop._brokers.batches import Batches
from omniloop._brokers.handover import Delivery, Engine, Function, Way, due
from omniloop._brokers.workshop import Workshop
from omniloop._errors import NoResultError, RefusedError
from omniloop._report import say
from omniloop.ext import needs

with needs("procrastinate"):
    from procrastinate import App, JobContext, PsycopgConnector
    from procrastinate.exceptions import AlreadyEnqueued, TaskAlreadyRegistered

# Seconds to wait for a connection.
_LOGIN_TIMEOUT: Final = 10.0

# The task that retries the jobs of killed workers.
_RETRY_STALLED = "omniloop:retry_stalled"


class Procrastinate(Engine):
    """
    Procrastinate as the engine of `background(broker=…)`.

    It keeps no results: a function that has one writes it into the database.

    Args:
        make: Makes an `App` with a connector for async code, in each process. None: the app of `procrastinate.contrib.django`.
        stalled_after: Seconds without a heartbeat after which a worker counts as dead, and its jobs run again. Must be well above the
            `update_heartbeat_interval` of the workers, which is 10 seconds by default.
        at_once: How many calls are being sent at the same time, at most.
        waiting: How many calls may be on their way; a call beyond that raises `FullError`.

    Raises:
        TypeError: if *make* is an app, or can't be called.
        ValueError: if *stalled_after* is not a number of seconds, 2 or more.
    """

    can_defer = True

    def __init__(
        self,
        make: Callable[[], App] | None = None,
        *,
        stalled_after: float = 30.0,
        at_once: int = Engine.at_once,
        waiting: int = Engine.waiting,
    ) -> None:
        if isinstance(stalled_after, bool) or not isinstance(stalled_after, (int, float)) or not stalled_after >= 2:
            raise ValueError(f"stalled_after={stalled_after!r}: give seconds as a number of 2 or more.")
        self.at_once = at_once
        self.waiting = waiting
        # `with_options` makes shallow copies: they share everything but the options.
        self._ways: dict[int, Way] = {}
        self._options: dict[str, Any] = {}
        self._django = make is None
        self._apps = _Apps(make or _djangos, stalled_after, self._django)
        self._sending = resource(contextlib.asynccontextmanager(self._apps.opened))

    def with_options(self, **options: Any) -> Procrastinate:
        """
        Return the same engine, with options of Procrastinate's `App.task` for the functions that are decorated with it.

        As ``@background(broker=jobs.with_options(retry=5, queue="mail"))``.
        """
        other = copy.copy(self)
        other._options = {**self._options, **options}
        return other

    @property
    def app(self) -> App:
        """The app that a worker runs: ``procrastinate --app=app.jobs.app worker``, or with Django ``manage.py procrastinate worker``."""
        return self._apps.listening

    @property
    def label(self) -> str:
        """The name of the engine."""
        return "Procrastinate"

    def bind(self, function: Function) -> None:
        """
        Register the function as a task.

        Raises:
            ValueError: if a worker could not find the function by its name, or the name is taken.
        """
        function._check_findable()
        self._apps.bind(function, self._options)
        if self._django:
            # Made now, because Procrastinate's worker for Django lists the tasks when it starts.
            _ = self.app

    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Serialise the arguments. With Django, in sync code, write the job by Django's connection, in the current transaction if any.

        Raises:
            TypeError: if an argument can't be carried as JSON.
        """
        text = function._as_json(args, kwargs, nan=False)
        if "\\u0000" in text:
            raise TypeError(f"{function.name}(): PostgreSQL's JSON has no character 0. Pass the text without it.")
        call = {"call_id": call_id, **dict(zip(("args", "kwargs"), json.loads(text), strict=True))}
        if self._django and asyncio._get_running_loop() is None:
            self.app.configure_task(function.name, schedule_at=due.get()).defer(**call)
            return None
        moment = due.get()
        # Only JSON types, because an outbox stores the parcel as JSON.
        return call, moment and moment.isoformat()

    async def send(self, function: Function, parcel: Any) -> None:
        """
        Write the job, unless `pack` has. Jobs that come at the same time are written in one statement.

        Raises:
            RefusedError: if PostgreSQL or Procrastinate will never take it: access is denied, its tables do not exist, another job has
                its `queueing_lock`.
        """
        if parcel is None:
            return
        try:
            call, text = parcel
            name, _ = function.name, call["call_id"]
            moment = text and datetime.fromisoformat(text)
        except (TypeError, ValueError, KeyError):
            raise function._not_of(self, parcel) from None
        try:
            if self._django:
                from .django import database

                async with database():
                    await self.app.configure_task(name, schedule_at=moment).defer_async(**call)
            else:
                jobs = await self._sending
                await jobs.send(name, call, moment)
        except Exception as error:
            raise _named(error, function) from error

    async def fetch(self, function: Function, call_id: str, timeout: float | None) -> Any:
        """
        Refuse: there are no results.

        Raises:
            NoResultError: always.
        """
        raise NoResultError(
            "Procrastinate keeps no results: have the function write into the database what it has to say; or wait for `accepted` only."
        )


class _Jobs:
    """An open app, and for each task the jobs that are being written to the database."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lots: dict[str, Batches[dict[str, Any]]] = {}

    async def send(self, name: str, call: dict[str, Any], moment: Any) -> None:
        try:
            if moment is not None:
                # A batch has one schedule for all its jobs, so a job with its own is written alone.
                await self._app.configure_task(name, schedule_at=moment).defer_async(**call)
                return
            lot = self._lots.get(name) or self._lots.setdefault(
                name, Batches(partial(self._write, name), _is_unreachable)
            )
            await lot.send(call)
        except Exception as error:
            if type(_cause(error)).__name__ == "PoolTimeout":
                await _log_in(self._app)
            raise

    async def _write(self, name: str, calls: list[dict[str, Any]]) -> None:
        await self._app.configure_task(name).batch_defer_async(*calls)


async def _log_in(app: App) -> None:
    """Connect once, so that a failure raises its reason. The pool would go on trying in vain, and only log the reason."""
    if not isinstance(app.connector, PsycopgConnector):
        return
    from psycopg import AsyncConnection, OperationalError

    arguments = app.connector._pool_args
    address, options = arguments.get("conninfo", ""), arguments.get("kwargs") or {}
    # Given as functions, they are for the pool to call: no check then.
    if isinstance(address, str) and isinstance(options, dict):
        async with asyncio.timeout(_LOGIN_TIMEOUT):
            try:
                await (await AsyncConnection.connect(address, **options)).close()
            except OperationalError as error:
                code = error.sqlstate or await _code_of(error.pgconn)
                if code.startswith(_FOR_GOOD) if code else _NO_LOGIN.search(str(error)):
                    raise RefusedError(
                        f"{error}\nMend the address that its app is made with, or the rights in PostgreSQL."
                    ) from error
                raise


async def _code_of(failed: Any) -> str | None:
    """
    The SQLSTATE with which the server refuses the login *failed*; None if it can't be had.

    The message is in the server's language. libpq keeps the code to itself, but from version 18 on writes it into a trace; so log in
    once more with one. It is in memory, because it may have the password, and works on Linux only.
    """
    from psycopg import pq, waiting
    from psycopg.conninfo import make_conninfo

    waits: dict[int, waiting.Wait] = {
        pq.PollingStatus.READING: waiting.Wait.R,
        pq.PollingStatus.WRITING: waiting.Wait.W,
    }

    def login(trace: int) -> Generator[tuple[int, waiting.Wait], waiting.Ready | int, None]:
        options = {option.keyword.decode(): option.val.decode() for option in failed.info if option.val}
        connection = pq.PGconn.connect_start(make_conninfo(**options).encode())
        try:
            connection.trace(trace)
            while (state := connection.connect_poll()) in waits:
                yield connection.socket, waits[state]
            connection.untrace()
        finally:
            connection.finish()

    with contextlib.suppress(Exception), open(os.memfd_create("login"), "rb") as trace:
        await waiting.wait_conn_async(login(trace.fileno()))
        trace.seek(0)
        if found := re.search(rb'ErrorResponse\t.* C "(\w{5})"', trace.read()):
            return found[1].decode()
    return None


# --- what went wrong ----------------------------------------------------------------------------------------------------

# The classes of SQLSTATE with which the same statement will fail again: data, integrity, logins, privileges and names, limits.
_FOR_GOOD: Final = ("22", "23", "28", "3D", "42", "54")

# The words of a login that fails again, where there is no SQLSTATE: those of the server, if it speaks English, and those of its client.
_NO_LOGIN: Final = re.compile(
    r"password authentication failed|no password supplied|(role|database) \".*\" does not exist|no pg_hba\.conf entry|"
    r"not permitted to log in|permission denied for database|certificate|does not support SSL"
)


def _cause(error: BaseException | None) -> BaseException | None:
    """The error of psycopg, or of another driver, that caused Procrastinate's *error*; None if there is none."""
    while error is not None and type(error).__module__.partition(".")[0] not in _DRIVERS:
        error = error.__cause__
    return error


_DRIVERS: Final = ("psycopg", "psycopg_pool", "asyncpg", "aiopg", "psycopg2")


def _is_unreachable(error: BaseException) -> bool:
    cause = _cause(error)
    return cause is not None and not (getattr(cause, "sqlstate", None) or "").startswith(_FOR_GOOD)


def _named(error: Exception, function: Function) -> Exception:
    """Return the error that `Engine.send` is to raise for *error*."""
    cause = _cause(error)
    if isinstance(error, (AlreadyEnqueued, RefusedError)):
        # Not its cause, which is PostgreSQL's error about an index, or about a login.
        reason = str(error)
    elif cause is None:
        return error
    elif _is_unreachable(error):
        return ConnectionError(str(error.__cause__ or error))
    else:
        reason = str(error.__cause__ or error)
    return RefusedError(f"Procrastinate refuses the call of {function.name}: {reason}")


# --- the apps -----------------------------------------------------------------------------------------------------------


def _djangos() -> App:
    from procrastinate.contrib.django import app

    return app


class _Apps(Workshop[App]):
    def __init__(self, make: Callable[[], App], stalled_after: float, django: bool) -> None:
        super().__init__(make, "the app")
        self._stalled_after = stalled_after
        self._django = django

    async def opened(self) -> AsyncIterator[_Jobs]:
        app = self.make()
        await _log_in(app)
        async with app.open_async():
            yield _Jobs(app)

    def register(self, made: App, function: Function, options: dict[str, Any]) -> None:
        async def body(context: JobContext, call_id: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
            delivery = Delivery(call_id, context.job.attempts + 1)
            if not self._django:
                return await function.run(delivery, tuple(args), kwargs)
            from .django import database

            # Closes the connections that the function opens by Django's ORM.
            async with database():
                return await function.run(delivery, tuple(args), kwargs)

        try:
            made.task(name=function.name, pass_context=True, **options)(body)
        except TaskAlreadyRegistered:
            # The function was defined again, by a reload.
            made.tasks[function.name].func = body

    def prepare(self, made: App) -> None:
        """Register the task with which a worker retries the jobs of dead workers."""
        seconds = self._stalled_after

        async def retry_stalled(context: JobContext, timestamp: int) -> None:
            manager = context.app.job_manager
            for job in await manager.get_stalled_jobs(seconds_since_heartbeat=seconds):
                say("Procrastinate: the worker of job %s (%s) is gone; it runs again.", job.id, job.task_name)
                await manager.retry_job(job)
            # The finished jobs of this task itself.
            await manager.delete_old_jobs(nb_hours=1, queue="omniloop_stalled")

        # Another engine may have registered the task with the same app.
        with contextlib.suppress(TaskAlreadyRegistered):
            task = made.task(
                name=_RETRY_STALLED, pass_context=True, queue="omniloop_stalled", queueing_lock=_RETRY_STALLED
            )(retry_stalled)
            # The sixth field of the cron line is for seconds.
            made.periodic(cron=f"* * * * * */{max(1, min(30, int(seconds / 2)))}")(task)
