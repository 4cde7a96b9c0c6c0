"""
Hands calls over to Procrastinate: a queue in PostgreSQL, and with Django in the very transaction that the call is made in.

    jobs = Procrastinate()  # in a Django project that has procrastinate.contrib.django
    jobs = Procrastinate(lambda: App(connector=PsycopgConnector(conninfo=url)))  # without Django

With Django a call in sync code is written by Django's own connection: a rollback sends nothing, and a commit loses nothing. The jobs
of a worker that was killed come back: Procrastinate leaves them in "doing" unless a task of the user's own retries them, and here
that task is set up.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from functools import partial
from typing import Any

from omniloop._bridges.resource import resource
from omniloop._brokers.handover import Delivery, Engine, Function, due
from omniloop._brokers.together import Together
from omniloop._errors import NoResultError, RefusedError
from omniloop._report import say
from omniloop.ext import needs

with needs("procrastinate"):
    from procrastinate import App, JobContext
    from procrastinate.exceptions import AlreadyEnqueued, TaskAlreadyRegistered

# The task that brings back what a killed worker had.
_RETRY_STALLED = "omniloop:retry_stalled"


class Procrastinate(Engine):
    """
    Procrastinate as the engine of `background(broker=…)`.

    It keeps no results: what a function has to say belongs into the database.

    Args:
        make: Makes an `App` with a connector for async code, in each process. None: the app of `procrastinate.contrib.django`.
        stalled_after: Seconds without a sign of life after which a worker is taken for dead, and its jobs run again. Workers give
            one every `update_heartbeat_interval` seconds, 10 if nothing else is said: it must be well below.
        at_once: So many calls are being sent at the same time.
        waiting: So many may be on their way; a call beyond that raises `FullError`.

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
        if make is not None and (isinstance(make, App) or not callable(make)):
            raise TypeError(
                f"Procrastinate({make!r}): give a function that makes the app, so that each process, and each fork, makes its own."
            )
        if isinstance(stalled_after, bool) or not isinstance(stalled_after, (int, float)) or not stalled_after >= 2:
            raise ValueError(f"stalled_after={stalled_after!r}: give seconds as a number of 2 or more.")
        self.at_once = at_once
        self.waiting = waiting
        self._options: dict[str, Any] = {}
        self._shared = _Shared(make, stalled_after)

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
        return self._shared.working()

    @property
    def label(self) -> str:
        """The name of the engine."""
        return "Procrastinate"

    @property
    def _root(self) -> Engine:
        return self._shared.root(self)

    def bind(self, function: Function) -> None:
        """
        Register the function as a task.

        Raises:
            ValueError: if a worker could not find it by its name, or the name is taken.
        """
        if not function.findable:
            raise ValueError(
                f"{function.original!r}: a worker imports the module under another name. Give it a name=, such as "
                f'@background(broker=…, name="{function.original.__name__}"), or define it in a module that both import.'
            )
        self._shared.bind(function, self._options)

    def pack(self, function: Function, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Serialise the arguments; with Django, in sync code, write the job by Django's connection, in its transaction if there is one.

        Raises:
            TypeError: if an argument can't be carried as JSON.
        """
        try:
            text = json.dumps({"call_id": call_id, "args": args, "kwargs": kwargs}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{function.name}(): {error}. Pass what JSON knows, such as an id.") from None
        if "\\u0000" in text:
            raise TypeError(f"{function.name}(): PostgreSQL's JSON has no character 0. Pass the text without it.")
        call = json.loads(text)
        function.check(args, kwargs, tuple(call["args"]), call["kwargs"], "Pass something that JSON knows.")
        if self._shared.django and asyncio._get_running_loop() is None:
            self._shared.working().configure_task(function.name, schedule_at=due.get()).defer(**call)
            return None
        moment = due.get()
        # In JSON, because an outbox writes it down.
        return call, moment and moment.isoformat()

    async def send(self, function: Function, parcel: Any) -> None:
        """
        Write the job, unless the caller has; those that come together in one statement.

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
            raise RefusedError(
                f"{function.name}: what is to be sent was packed for another engine than {self.label}: {parcel!r:.100}. Hand it over "
                "with that engine, or drop it."
            ) from None
        try:
            if self._shared.django:
                from .django import database

                async with database():
                    await self._shared.working().configure_task(name, schedule_at=moment).defer_async(**call)
            else:
                jobs = await self._shared.sending
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
    """An app that is open, and what is on its way into the database, by the name of the task."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lots: dict[str, Together[dict[str, Any]]] = {}

    async def send(self, name: str, call: dict[str, Any], moment: Any) -> None:
        if moment is not None:
            # Of the statement, and not of the job.
            await self._app.configure_task(name, schedule_at=moment).defer_async(**call)
            return
        lot = self._lots.get(name)
        if lot is None:
            lot = self._lots[name] = Together(partial(self._write, name), _is_unreachable)
        await lot.send(call)

    async def _write(self, name: str, calls: list[dict[str, Any]]) -> None:
        await self._app.configure_task(name).batch_defer_async(*calls)


# The classes of SQLSTATE that say that the same statement will fail again: data, integrity, privileges and names, limits.
_FOR_GOOD = ("22", "23", "42", "54")


def _state(error: BaseException) -> str | None:
    """The SQLSTATE of psycopg's error below Procrastinate's; empty if the server has said none, None if it is no such error."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__module__.partition(".")[0] in ("psycopg", "psycopg_pool", "asyncpg", "aiopg", "psycopg2"):
            return getattr(cause, "sqlstate", None) or ""
        cause = cause.__cause__
    return None


def _is_unreachable(error: BaseException) -> bool:
    state = _state(error)
    return state is not None and not state.startswith(_FOR_GOOD)


def _named(error: Exception, function: Function) -> Exception:
    """*error* as `Engine.send` is to raise it."""
    state = _state(error)
    if isinstance(error, AlreadyEnqueued):
        # Its cause is PostgreSQL's, about an index.
        return RefusedError(f"Procrastinate refuses the call of {function.name}: {error}")
    reason = error.__cause__ or error
    if (state or "").startswith(_FOR_GOOD):
        return RefusedError(f"Procrastinate refuses the call of {function.name}: {reason}")
    return error if state is None else ConnectionError(str(reason))


class _Shared:
    """What an engine and its copies with other options have in common."""

    def __init__(self, make: Callable[[], App] | None, stalled_after: float) -> None:
        self.django = make is None
        self._make = make
        self._stalled_after = stalled_after
        self._root: Procrastinate | None = None
        self._functions: dict[str, tuple[Function, dict[str, Any]]] = {}
        self._working: App | None = None
        self.sending = resource(contextlib.asynccontextmanager(self._open))

    def root(self, engine: Procrastinate) -> Procrastinate:
        if self._root is None:
            self._root = engine
        return self._root

    def bind(self, function: Function, options: dict[str, Any]) -> None:
        other = self._functions.get(function.name)
        if other is not None and other[0].original.__qualname__ != function.original.__qualname__:
            raise ValueError(
                f"{function.original!r}: another function is called {function.name!r} already, {other[0].original!r}. Give one of "
                "them a name=."
            )
        self._functions[function.name] = function, options
        if self.django or self._working is not None:
            self._register(self.working(), function, options)

    def working(self) -> App:
        if self._working is None:
            if self._make is None:
                from procrastinate.contrib.django import app

                self._working = app
            else:
                self._working = self._make()
            for function, options in self._functions.values():
                self._register(self._working, function, options)
            self._retry_stalled(self._working)
        return self._working

    async def _open(self) -> AsyncIterator[_Jobs]:
        assert self._make is not None
        app = self._make()
        for function, options in self._functions.values():
            self._register(app, function, options)
        async with app.open_async():
            yield _Jobs(app)

    def _register(self, app: App, function: Function, options: dict[str, Any]) -> None:
        django = self.django

        async def body(context: JobContext, call_id: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
            delivery = Delivery(call_id, context.job.attempts + 1)
            if not django:
                return await function.run(delivery, tuple(args), kwargs)
            from .django import database

            # Its ORM closes at the end what it has opened.
            async with database():
                return await function.run(delivery, tuple(args), kwargs)

        try:
            app.task(name=function.name, pass_context=True, **options)(body)
        except TaskAlreadyRegistered:
            # Defined anew, by a reload.
            app.tasks[function.name].func = body

    def _retry_stalled(self, app: App) -> None:
        seconds = self._stalled_after

        async def retry_stalled(context: JobContext, timestamp: int) -> None:
            manager = context.app.job_manager
            for job in await manager.get_stalled_jobs(seconds_since_heartbeat=seconds):
                say("Procrastinate: the worker of job %s (%s) is gone; it runs again.", job.id, job.task_name)
                await manager.retry_job(job)
            # Its own traces.
            await manager.delete_old_jobs(nb_hours=1, queue="omniloop_stalled")

        try:
            task = app.task(
                name=_RETRY_STALLED, pass_context=True, queue="omniloop_stalled", queueing_lock=_RETRY_STALLED
            )(retry_stalled)
        except TaskAlreadyRegistered:
            # By another engine of the same app.
            return
        every = max(1, min(30, int(seconds / 2)))
        # The sixth field is that of seconds.
        app.periodic(cron=f"* * * * * */{every}")(task)
