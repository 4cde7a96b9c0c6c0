"""
Lets work on the loop use Django's ORM: `go_on_commit` starts work after the commit, `database` closes the connections of work.

Django's async ORM makes its calls in one thread, one after the other. For work on the loop that is a thread of omniloop, one for the
whole process: it serves until the last drain is over, while asgiref's own is shut down before that. A forked worker has its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context, copy_context
from types import CodeType
from typing import Any, Final

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.db import close_old_connections, transaction

from omniloop._arguments import as_coroutine, close_unstarted
from omniloop._brokers.handover import Sent
from omniloop._errors import NotAsyncError
from omniloop._guests.asgiref import SyncThread, bring_along
from omniloop._report import caller
from omniloop._shared import shared_runtime
from omniloop._work.task import Task


def go_on_commit(
    work: Awaitable[Any] | Callable[[], Awaitable[Any]], *, using: str | None = None, name: str | None = None
) -> None:
    """
    Start a coroutine on the loop when the current transaction is committed, as `transaction.on_commit`; without one, at once.

    After a rollback nothing is started, and the coroutine is closed. The work may use Django's async ORM: it runs in `database()`,
    and in a copy of the caller's context. For sync code, in the thread that has the transaction.

    Args:
        work: A coroutine; or a function that makes one, called after the commit.
        using: The alias of the database whose transaction is meant.
        name: A name for logs and `tasks()`. By default the name of the coroutine.

    Raises:
        NotAsyncError: if *work* is neither. If it is a function that returns no coroutine, the commit raises the error.
        ClosedError: if there is no transaction, and the interpreter is ending.
    """
    frame = caller()
    if not callable(work):
        work = as_coroutine(work, None)
    on_commit = _OnCommit(work, name, copy_context(), frame.f_code, frame.f_lasti)
    try:
        transaction.on_commit(on_commit, using=using)
    except BaseException:
        # Not left to `__del__`: the traceback keeps this frame alive in a cycle, which is torn down in no certain order.
        close_unstarted(work)
        raise


class _OnCommit:
    """
    The callback that Django calls after the commit, or drops after a rollback.

    If it, or its run, is dropped before the coroutine has started, the coroutine is closed, so that no "never awaited" warning follows.
    """

    def __init__(self, work: Any, name: str | None, context: Context, code: CodeType, lasti: int) -> None:
        self._work = work
        self._name = name
        self._context = context
        self._code = code
        self._lasti = lasti

    def __call__(self) -> None:
        if callable(self._work):
            made = self._context.run(self._work)
            if isinstance(made, Sent):
                # The call was handed over: the end of the program waits for that, and nobody needs the value.
                return
            if not isinstance(made, Awaitable):
                raise NotAsyncError(
                    f"{self._work!r} returned {made!r}. Give go_on_commit() a coroutine, or a function that makes one; a plain "
                    "function belongs into transaction.on_commit()."
                )
            self._work = as_coroutine(made, None)
        # Start the ORM's thread now. From 3.12 on no thread can be started while the interpreter ends, and the work may need it then.
        with suppress(RuntimeError):
            SyncThread.workers()
        runtime = shared_runtime()
        name = self._name or getattr(self._work, "__qualname__", None)
        task: Task[None] = Task(runtime, self._run(), None, self._context, sys._getframe(), name)
        # Report the work as submitted where go_on_commit() was called, not where the transaction ended.
        task._code, task._lasti = self._code, self._lasti
        runtime._submit(task)

    async def _run(self) -> None:
        async with database():
            await self._work

    def __del__(self) -> None:
        close_unstarted(self._work)


@asynccontextmanager
async def database() -> AsyncIterator[None]:
    """
    An async context manager for work on the loop that uses Django's ORM. Its end closes database connections, as a request's does.

    Connections stay open while other such work uses them, and as long as `CONN_MAX_AGE` says. The work has the language and the
    time zone that were active where it was submitted.
    """
    # The language and the time zone of the submitter.
    bring_along(threading.get_ident())
    # Set both of the places where asgiref's versions look for the thread of sync code. The caller's context may name a thread that
    # ends with the request, and the work may run longer.
    AsyncToSync.executors.current = None
    here = ThreadSensitiveContext()
    SyncToAsync.context_to_thread_executor[here] = SyncThread(shared_runtime()._life.workers)
    token = SyncToAsync.thread_sensitive_context.set(here)
    # The users in this process, not in its parent. No lock: adding and discarding are atomic, and the thread runs one call at a time.
    users = _users.setdefault(os.getpid(), set())
    users.add(here)
    try:
        yield
    finally:
        users.discard(here)
        SyncToAsync.thread_sensitive_context.reset(token)
        # In the ORM's thread, because a connection may be closed only in the thread that opened it.
        if not users and SyncThread.is_started():
            await asyncio.wrap_future(SyncThread.workers().submit(close_old_connections))


_users: Final[dict[int, set[ThreadSensitiveContext]]] = {}
