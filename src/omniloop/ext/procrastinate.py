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
import os
import re
from collections.abc import AsyncIterator, Callable, Generator
from datetime import datetime
from typing import Any, Final

from omniloop._bridges.resource import resource
from omniloop._brokers.batches import Batches
from omniloop._brokers.handover import Delivery, Engine, Function, due
from omniloop._brokers.workshop import Workshop
from omniloop._errors import NoResultError, RefusedError
from omniloop._report import say
from omniloop.ext import needs

with needs("procrastinate"):
    from procrastinate import App, JobContext, PsycopgConnector
    from procrastinate.exceptions import AlreadyEnqueued, TaskAlreadyRegistered

# Seconds to wait for a connection.
_LOGIN_TIMEOUT: Final = 10.0

# The task that retries the jobs of killed workers, and its queue.
_RETRY_STALLED: Final = "omniloop:retry_stalled"
_STALLED: Final = "omniloop_stalled"


class Procrastinate(Workshop[App]):
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
        super().__init__(make or _djangos, "the app", at_once, waiting)
        self._stalled_after = stalled_after
        self._django = make is None
        # The app that jobs are written with, and for each task the jobs that are being written.
        self._sending = resource(contextlib.asynccontextmanager(self._opened))

    def with_options(self, **options: Any) -> Procrastinate:
        """
        Return the same engine, with options of Procrastinate's `App.task` for the functions that are decorated with it.

        As ``@background(broker=jobs.with_options(retry=5, queue="mail"))``.
        """
        return self._with(options)

    @property
    def app(self) -> App:
        """The app that a worker runs: ``procrastinate --app=app.jobs.app worker``, or with Django ``manage.py procrastinate worker``."""
        return self._listening()

    def bind(self, function: Function) -> None:
        """
        Register the function as a task.

        Raises:
            ValueError: if a worker could not find the function by its name, or the name is taken.
        """
        function._check_findable()
        super().bind(function)
        if self._django:
            # Made now, because Procrastinate's worker for Django lists the tasks when it starts.
            _ = self.app

    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Serialise the arguments. With Django, in sync code, write the job by Django's connection, in the current transaction if any.

        Raises:
            TypeError: if an argument can't be carried as JSON.
        """
        text, (received_args, received_kwargs) = function._as_json(args, kwargs, nan=False)
        if "\\u0000" in text:
            raise TypeError(f"{function.name}(): PostgreSQL's JSON has no character 0. Pass the text without it.")
        call = {"call_id": call_id, "args": received_args, "kwargs": received_kwargs}
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
                async with self._database():
                    await self.app.configure_task(name, schedule_at=moment).defer_async(**call)
                return
            app, lots = await self._sending
            try:
                if moment is not None:
                    # A batch has one schedule for all its jobs, so a job with its own is written alone.
                    await app.configure_task(name, schedule_at=moment).defer_async(**call)
                else:
                    await (lots.get(name) or lots.setdefault(name, _lot(app, name))).send(call)
            except Exception as error:
                if type(_cause(error)).__name__ == "PoolTimeout":
                    await _log_in(app)
                raise
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

    # --- the apps -----------------------------------------------------------------------------------------------------

    async def _opened(self) -> AsyncIterator[tuple[App, dict[str, Batches[dict[str, Any]]]]]:
        app = self._fresh()
        await _log_in(app)
        async with app.open_async():
            yield app, {}

    def _database(self) -> contextlib.AbstractAsyncContextManager[None]:
        """With Django, what closes the connections that its ORM opens."""
        if not self._django:
            return contextlib.nullcontext()
        from .django import database

        return database()

    def _body(self, function: Function) -> Callable[..., Any]:
        async def body(context: JobContext, call_id: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
            async with self._database():
                return await function.run(Delivery(call_id, context.job.attempts + 1), tuple(args), kwargs)

        return body

    def _register(self, made: App, name: str, body: Callable[..., Any], options: dict[str, Any]) -> None:
        try:
            made.task(name=name, pass_context=True, **options)(body)
        except TaskAlreadyRegistered:
            # The function was defined again, by a reload.
            made.tasks[name].func = body

    def _prepare(self, made: App) -> None:
        """Register the task with which a worker retries the jobs of dead workers."""
        seconds = self._stalled_after

        async def retry_stalled(context: JobContext, timestamp: int) -> None:
            manager = context.app.job_manager
            for job in await manager.get_stalled_jobs(seconds_since_heartbeat=seconds):
                say("Procrastinate: the worker of job %s (%s) is gone; it runs again.", job.id, job.task_name)
                await manager.retry_job(job)
            # The finished jobs of this task itself.
            await manager.delete_old_jobs(nb_hours=1, queue=_STALLED)

        # Another engine may have registered the task with the same app.
        with contextlib.suppress(TaskAlreadyRegistered):
            options: Any = {"name": _RETRY_STALLED, "queueing_lock": _RETRY_STALLED, "queue": _STALLED}
            task = made.task(pass_context=True, **options)(retry_stalled)
            # The sixth field of the cron line is for seconds.
            made.periodic(cron=f"* * * * * */{max(1, min(30, int(seconds / 2)))}")(task)


def _djangos() -> App:
    from procrastinate.contrib.django import app

    return app


def _lot(app: App, name: str) -> Batches[dict[str, Any]]:
    return Batches(lambda calls: app.configure_task(name).batch_defer_async(*calls), _is_unreachable)


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
                if not (code.startswith(_FOR_GOOD) if code else _NO_LOGIN.search(str(error))):
                    raise
                advice = "Mend the address that its app is made with, or the rights in PostgreSQL."
                raise RefusedError(f"{error}\n{advice}") from error


async def _code_of(failed: Any) -> str | None:
    """
    The SQLSTATE with which the server refuses the login *failed*; None if it can't be had.

    The message is in the server's language. libpq keeps the code to itself, but from version 18 on writes it into a trace; so log in
    once more with one. It is in memory, because it may have the password, and works on Linux only.
    """
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import PGconn, PollingStatus
    from psycopg.waiting import Ready, Wait, wait_conn_async

    waits: dict[int, Wait] = {PollingStatus.READING: Wait.R, PollingStatus.WRITING: Wait.W}

    def login(trace: int) -> Generator[tuple[int, Wait], Ready | int, None]:
        options = {option.keyword.decode(): option.val.decode() for option in failed.info if option.val}
        connection = PGconn.connect_start(make_conninfo(**options).encode())
        try:
            connection.trace(trace)
            while (state := connection.connect_poll()) in waits:
                yield connection.socket, waits[state]
            connection.untrace()
        finally:
            connection.finish()

    with contextlib.suppress(Exception), open(os.memfd_create("login"), "rb") as trace:
        await wait_conn_async(login(trace.fileno()))
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
    reason = error.__cause__ or error
    if isinstance(error, (AlreadyEnqueued, RefusedError)):
        # Not its cause, which is PostgreSQL's error about an index, or about a login.
        reason = error
    elif _cause(error) is None:
        return error
    elif _is_unreachable(error):
        return ConnectionError(str(reason))
    return RefusedError(f"Procrastinate refuses the call of {function.name}: {reason}")
