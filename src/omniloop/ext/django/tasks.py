"""
Runs Django's tasks in this process, on the loop and in worker threads; or, with a `broker`, hands them over to an engine.

Django's signals are sent in order: `task_enqueued`, `task_started`, `task_finished`. The process that runs a task fills in its
`TaskResult`, and sets the status last, so that a result whose status says finished is complete.
"""

# Django 5, which Python 3.11 gets, has no tasks.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context, copy_context
from traceback import format_exception
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, close_old_connections, transaction
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone
from django.utils.crypto import get_random_string
from django.utils.json import normalize_json
from django.utils.module_loading import import_string

from omniloop import Engine, NoResultError, Sent, WaitTimeoutError, background, current_delivery, go, to_thread
from omniloop._brokers.handover import due
from omniloop._guests.asgiref import bring_along
from omniloop._starting import limiter

from .orm import database

_KEPT: Final = 1000


class OmniloopBackend(BaseTaskBackend):  # type: ignore[misc,unused-ignore]
    """
    A backend for Django's `TASKS`. Runs async tasks concurrently on the loop and sync tasks in worker threads, in this process.

    `enqueue` returns at once, and may be called in any thread: in a view, a script, or code on a running loop. The task has the language
    and the time zone of the caller. Its database connections are closed after it, as at the end of a request. The end of the process
    waits for enqueued tasks, as for all work. Django's own logger, `django.tasks`, logs failures.

    A result is kept and filled in in this process: look at it again later, or call `get_result`. Priorities are refused with
    `InvalidTask`, and so is `run_after`, unless the *broker* supports it.

    The options, in `OPTIONS`:

    - *on_commit*: True, or the alias of a database: inside `transaction.atomic()` a task is enqueued at the commit, and never after a
      rollback. False, the default, enqueues it at once.
    - *limit*: how many tasks run at a time; others wait in order. None, the default, means no limit.
    - *timeout*: seconds that a task may run. After that it is cancelled, and fails with `TimeoutError`. A sync function can't be
      cancelled: it runs to its end, and its outcome is ignored. None, the default, means no limit.
    - *keep_results*: how many results of finished tasks are kept for `get_result`, 1,000 by default; older ones are dropped.
    - *broker*: an engine, such as `omniloop.ext.outbox.Outbox(…)`, or the dotted path of one, or of a function that makes one. The tasks
      are handed over to it, outlive this process, and run in its workers. *limit* and *timeout* can't be combined with it.

    Raises:
        ImproperlyConfigured: of `django.core.exceptions`, by `enqueue`, if an option is wrong; `manage.py check` reports it earlier.
    """

    supports_async_task = True
    supports_get_result = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._worker_id = get_random_string(32)
        self._problems = list(_problems(self.options))
        limit = None if self._problems else self.options.get("limit")
        self._in_turn = limiter(limit)
        self._results = _Results(self.options.get("keep_results", _KEPT))
        self._handed_over: dict[Callable[..., Any], Callable[..., Sent[Any]]] = {}

    def check(self, **kwargs: Any) -> list[Any]:
        """Return the errors in the options, for `manage.py check`."""
        return [
            checks.Error(f"TASKS[{self.alias!r}]['OPTIONS']: {problem}", hint=hint, id="omniloop.E001")
            for problem, hint in self._problems
        ]

    def validate_task(self, task: Task) -> None:
        """Refuse a task that this backend can't run. Also called when `@task` decorates a function, also in workers."""
        super().validate_task(task)
        if self._engine is not None:
            self._function_of(task)

    def enqueue(self, task: Task, args: Any, kwargs: Any) -> TaskResult:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start a task, or have the commit start it. Returns at once; with a *broker* the call is packed here and sent by the loop."""
        result = self._new_result(task, args, kwargs)
        start = functools.partial(self._announce_and_start, result, copy_context())
        if (alias := self._commit_alias()) is None:
            start()
        else:
            transaction.on_commit(start, using=alias)
        return result

    async def aenqueue(self, task: Task, args: Any, kwargs: Any) -> TaskResult:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do as `enqueue`, from async code, on any loop."""
        if self._commit_alias() is not None:
            # The transaction belongs to the thread that `sync_to_async` uses.
            return await sync_to_async(self.enqueue, thread_sensitive=True)(task, args, kwargs)
        result = self._new_result(task, args, kwargs)
        context = copy_context()
        handed_over = self._hand_over(result, context)
        await task_enqueued.asend(type(self), task_result=result)
        if not handed_over:
            self._start(result, context)
        return result

    def get_result(self, result_id: str) -> TaskResult:
        """
        Return the result of a task that this process enqueued. With a *broker* it asks the engine once, and blocks for the answer.

        Raises:
            TaskResultDoesNotExist: of `django.tasks.exceptions`, if the task was not enqueued here or is not committed yet, or if its
                result was dropped for newer ones.
        """
        result, sent = self._results.get(result_id)
        if sent is not None and not result.is_finished:
            try:
                _succeed(result, sent.result(timeout=0))
            except (WaitTimeoutError, NoResultError):
                # The task is not done yet, or the engine keeps no results.
                pass
            except Exception as error:
                _fail(result, error)
        return result

    async def aget_result(self, result_id: str) -> TaskResult:
        """Do as `get_result`, from async code, on any loop."""
        _, sent = self._results.get(result_id)
        return self.get_result(result_id) if sent is None else await to_thread(self.get_result, result_id)

    def _new_result(self, task: Task, args: Any, kwargs: Any) -> TaskResult:
        if self._problems:
            problem, hint = self._problems[0]
            raise ImproperlyConfigured(f"TASKS[{self.alias!r}]['OPTIONS']: {problem} {hint}")
        self.validate_task(task)
        return _result_of(task, get_random_string(32), args, kwargs, self.alias)

    def _commit_alias(self) -> str | None:
        on_commit = self.options.get("on_commit", False)
        return DEFAULT_DB_ALIAS if on_commit is True else on_commit or None

    def _announce_and_start(self, result: TaskResult, context: Context) -> None:
        handed_over = self._hand_over(result, context)
        # Async receivers can't be waited for where a loop runs. There the work on omniloop's loop sends the signal first.
        announced = asyncio._get_running_loop() is None
        if announced:
            task_enqueued.send(type(self), task_result=result)
        if not handed_over:
            self._start(result, context, announced)
        elif not announced:
            go(task_enqueued.asend(type(self), task_result=result), name=f"task_enqueued of {result.task.module_path}")

    # --- in this process ----------------------------------------------------------------------------------------------

    def _start(self, result: TaskResult, context: Context, announced: bool = True) -> None:
        go(self._work(result, announced), name=result.task.module_path, context=context)

    async def _work(self, result: TaskResult, announced: bool) -> None:
        run = self._run(result, self.options.get("timeout"))
        try:
            if not announced:
                await task_enqueued.asend(type(self), task_result=result)
            error = await (run if self._in_turn is None else self._in_turn(run))
        except BaseException as error:
            # A receiver of a signal failed; or the task was cancelled before its turn, because the process ends.
            if not result.is_finished:
                _fail(result, error)
            raise
        finally:
            # If it was cancelled before its turn: prevents the warning that the coroutine was never awaited.
            run.close()
            self._results.finished(result)
        if not (error is None or isinstance(error, (Exception, SystemExit))):
            raise error

    async def _run(self, result: TaskResult, timeout: float | None) -> BaseException | None:
        """Run a task with Django's signals and database handling. Returns the error of its function, already logged by Django."""
        async with database():
            now = timezone.now()
            result.worker_ids.append(self._worker_id)
            _set(result, started_at=now, last_attempted_at=now, status=TaskResultStatus.RUNNING)
            await self._send(task_started, result)
            try:
                value = normalize_json(await _call(result, timeout))
            except BaseException as error:
                _fail(result, error)
                # Inside the `except` block, because Django's logger reads the error that is being handled.
                await self._send(task_finished, result)
                return error
            _succeed(result, value)
            await self._send(task_finished, result)
            return None

    async def _send(self, signal: Any, result: TaskResult) -> None:
        # Not `asend`: up to Django 6.0 it runs the receivers in tasks of their own, where no error is being handled.
        await sync_to_async(signal.send)(type(self), task_result=result)

    # --- with a broker ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _engine(self) -> Engine | None:
        """The engine that *broker* names, imported on first use: settings are loaded before the modules that they name."""
        broker = None if self._problems else self.options.get("broker")
        engine: Any = import_string(broker) if isinstance(broker, str) else broker
        if engine is None or isinstance(engine, Engine):
            return engine
        made = engine() if callable(engine) else engine
        if not isinstance(made, Engine):
            raise ImproperlyConfigured(
                f"TASKS[{self.alias!r}]['OPTIONS']: broker={broker!r} gives {made!r}, which is no engine. Give the dotted path of one, "
                "or of a function that makes one."
            )
        return made

    @property
    def supports_defer(self) -> bool:  # type: ignore[override,unused-ignore]
        """Whether `run_after` is supported: if the engine can defer calls."""
        return self._engine is not None and self._engine.can_defer

    def _hand_over(self, result: TaskResult, context: Context) -> bool:
        """Hand the call over if there is a broker, and tell whether there is. Marks the result as enqueued in either case."""
        if self._engine is None:
            _set(result, enqueued_at=timezone.now())
            self._results.add(result, None)
            return False
        context.run(due.set, result.task.run_after)
        sent = context.run(self._function_of(result.task), *result.args, **result.kwargs)
        # The engine and its workers know the call by this id.
        _set(result, id=sent.id, enqueued_at=timezone.now())
        self._results.add(result, sent)
        return True

    def _function_of(self, task: Task) -> Callable[..., Sent[Any]]:
        """The function of *task*, bound to the engine, so that a worker that imports the module finds it."""
        if (function := self._handed_over.get(task.func)) is None:
            function = self._handed_over.setdefault(task.func, self._bound(task))
        return function

    def _bound(self, task: Task) -> Callable[..., Sent[Any]]:
        assert self._engine is not None

        async def call(*args: Any, **kwargs: Any) -> Any:
            delivery = current_delivery()
            result = _result_of(task, delivery.id if delivery else get_random_string(32), args, kwargs, self.alias)
            # Django counts the worker ids for the `attempt` of the task's context: make it that of the delivery.
            result.worker_ids.extend(["?"] * ((delivery.attempt or 1) - 1 if delivery else 0))
            if (error := await self._run(result, None)) is not None:
                raise error
            return result._return_value

        functools.update_wrapper(call, task.func)
        del call.__wrapped__  # type: ignore[attr-defined]
        signature = inspect.signature(task.func)
        if task.takes_context:
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        call.__signature__ = signature  # type: ignore[attr-defined]
        handed_over: Callable[..., Sent[Any]] = background(broker=self._engine, name=task.module_path)(call)
        return handed_over


class _Results:
    """The results of one backend in this process: all unfinished ones, and the *keep* newest finished ones."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[TaskResult, Sent[Any] | None]] = {}
        self._finished: deque[str] = deque()

    def add(self, result: TaskResult, sent: Sent[Any] | None) -> None:
        self._entries[result.id] = result, sent
        if sent is not None:
            # With a broker nothing tells here when a task has finished, so its result counts as finished from the start.
            self.finished(result)

    def finished(self, result: TaskResult) -> None:
        with self._lock:
            self._finished.append(result.id)
            if len(self._finished) > self._keep:
                del self._entries[self._finished.popleft()]

    def get(self, result_id: str) -> tuple[TaskResult, Sent[Any] | None]:
        if (entry := self._entries.get(result_id)) is None:
            raise TaskResultDoesNotExist(result_id)
        return entry


def _result_of(task: Task, result_id: str, args: Any, kwargs: Mapping[str, Any], alias: str) -> TaskResult:
    fields: Any = {"task": task, "id": result_id, "args": list(args), "kwargs": dict(kwargs), "backend": alias}
    times = dict.fromkeys(("enqueued_at", "started_at", "last_attempted_at", "finished_at"))
    return TaskResult(status=TaskResultStatus.READY, errors=[], worker_ids=[], **fields, **times)


def _set(result: TaskResult, **fields: Any) -> None:
    """Set fields of a result, which is a frozen dataclass, in the given order. Callers pass the status last."""
    for name, value in fields.items():
        object.__setattr__(result, name, value)


def _succeed(result: TaskResult, value: Any) -> None:
    _set(result, _return_value=value, finished_at=timezone.now(), status=TaskResultStatus.SUCCESSFUL)


def _fail(result: TaskResult, error: BaseException) -> None:
    path = f"{type(error).__module__}.{type(error).__qualname__}"
    result.errors.append(TaskError(exception_class_path=path, traceback="".join(format_exception(error))))
    _set(result, finished_at=timezone.now(), status=TaskResultStatus.FAILED)


async def _call(result: TaskResult, timeout: float | None) -> Any:
    task = result.task
    args = ([TaskContext(task_result=result)] if task.takes_context else []) + list(result.args)
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            if inspect.iscoroutinefunction(task.func):
                return await task.func(*args, **result.kwargs)
            return await to_thread(_in_thread, task.func, args, result.kwargs)
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"{task.module_path} took longer than its time limit of {timeout} s.") from None
        raise


def _in_thread(fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    bring_along(threading.get_ident())
    # As at the start and the end of a request: reopens broken connections, and applies CONN_MAX_AGE.
    close_old_connections()
    try:
        return fn(*args, **kwargs)
    finally:
        close_old_connections()


def _problems(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each error in the options, with a hint what to do."""
    for name, value in options.items():
        if name not in _OPTIONS:
            yield f"there is no option {name!r}.", f"The options are {', '.join(_OPTIONS)}."
        elif not _OPTIONS[name][0](value):
            yield f"{name}={value!r}.", _OPTIONS[name][1]
        elif name in ("limit", "timeout") and value is not None and options.get("broker") is not None:
            yield f"{name} is not for tasks of a broker.", "Its workers decide: set it there."


def _positive(*kinds: Any) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, kinds) and not isinstance(value, bool) and value > 0)


# What each option may be, and what to give.
_OPTIONS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "broker": (
        lambda value: value is None or isinstance(value, (str, Engine)) or callable(value),
        "Give an engine, or the dotted path of one or of a function that makes one.",
    ),
    "keep_results": (lambda value: type(value) is int and value >= 0, "Give a whole number of 0 or more."),
    "limit": (_positive(int), "Give a whole number of 1 or more, or None for no limit."),
    "on_commit": (lambda value: isinstance(value, (bool, str)), "Give True, False, or the alias of a database."),
    "timeout": (_positive(int, float), "Give seconds, more than 0, or None for no limit."),
}
