"""
anyio's own tests of `BlockingPortal`, with a `Runtime` in its place. On demand, see `suites.py`.

The rest of its `test_from_thread.py` is about anyio's worker threads, which call back into the loop that started them.
"""

import sys

import pytest
from suites import on_demand, only_by_design, outcomes, source_of

pytestmark = on_demand

IN_ITS_PLACE = """
    import concurrent.futures
    import importlib.util
    import sys
    import types
    from contextlib import contextmanager
    from functools import partial
    from inspect import isawaitable

    import anyio.from_thread
    import omniloop

    # Their conftest makes certificates with it, for other tests.
    if importlib.util.find_spec("trustme") is None:
        sys.modules["trustme"] = types.ModuleType("trustme")
        sys.modules["trustme"].CA = None


    class BlockingPortal:
        def __init__(self, name=None, loop_factory=None):
            self.runtime = omniloop.Runtime(**({"name": name} if name else {}), loop_factory=loop_factory)
            self._stopped = False

        async def __aenter__(self):
            return self

        async def __aexit__(self, kind, *_):
            await anyio.to_thread.run_sync(self.close, kind is not None)

        def close(self, cancel_remaining=False):
            self._stopped = True
            self.runtime.shutdown(0 if cancel_remaining else None)

        async def stop(self, cancel_remaining=False):
            self._stopped = True
            if cancel_remaining:
                for task in self.runtime.tasks():
                    task.cancel()

        def start_task_soon(self, func, *args, name=None):
            if self._stopped:
                raise RuntimeError("This portal is not running")

            async def call():
                value = func(*args)
                return await value if isawaitable(value) else value

            return self.runtime.go(call(), name=name)

        def call(self, func, *args):
            return self.start_task_soon(func, *args).result()

        async def call_async(self, func, *args, abandon_on_cancel=False):
            return await self.start_task_soon(func, *args)

        def start_task(self, func, *args, name=None):
            ready = concurrent.futures.Future()
            status = types.SimpleNamespace(started=lambda value=None: ready.set_result(value))

            def ended(task):
                if not ready.done():
                    ready.set_exception(task.exception() or RuntimeError("Task exited without a call of started()"))

            task = self.start_task_soon(partial(func, task_status=status), *args, name=name)
            task.add_done_callback(ended)
            return task, ready.result()

        def wrap_async_context_manager(self, manager):
            return omniloop.enter(manager, runtime=self.runtime)


    @contextmanager
    def start_blocking_portal(backend="asyncio", backend_options=None, *, name=None):
        if backend != "asyncio":
            raise NotImplementedError(backend)
        portal = BlockingPortal(name, (backend_options or {}).get("loop_factory"))
        failed = True
        try:
            yield portal
            failed = False
        finally:
            portal.close(failed)


    anyio.from_thread.BlockingPortal = BlockingPortal
    anyio.from_thread.start_blocking_portal = start_blocking_portal
"""

_ASYNCIO = ("asyncio", "asyncio+uvloop", "asyncio+eager")
_CALLERS = (*_ASYNCIO, "trio")


def _listed(reason, names, parameters):
    cases = [f"[{each}]" if each else "" for each in parameters]
    return {f"test_from_thread.py::{name}{case}": reason for name in names.split() for case in cases}


_ON_TRIO = "the portal's loop would be trio's, and a runtime's is asyncio's"
_OWN_LOOP = "the portal serves the caller's own loop and thread; a runtime always has its own"

BY_DESIGN = {
    **_listed(_OWN_LOOP, "TestBlockingPortal::test_call_corofunc TestBlockingPortal::test_call_non_corofunc", _CALLERS),
    **_listed(_OWN_LOOP, "TestBlockingPortal::test_call_portal_from_event_loop_thread", _CALLERS),
    **_listed(
        _ON_TRIO,
        """
        TestBlockingPortal::test_call_async_corofunc
        TestBlockingPortal::test_call_async_context_variable
        TestBlockingPortal::test_call_async_cancellation
        TestBlockingPortal::test_call_async_cancellation_does_not_block
        TestBlockingPortal::test_future_cancellation_does_not_block
        """,
        [f"{caller}-trio" for caller in _CALLERS],
    ),
    **_listed(
        _ON_TRIO,
        "TestBlockingPortal::test_call_async_cancellation_cleanup",
        [
            f"{caller}-{raises}-{abandon}-trio"
            for caller in _CALLERS
            for raises in (False, True)
            for abandon in (False, True)
        ],
    ),
    **_listed(_ON_TRIO, "TestBlockingPortal::test_from_async", [f"{caller}-trio" for caller in _ASYNCIO]),
    **_listed(
        _ON_TRIO,
        """
        TestBlockingPortal::test_start_with_new_event_loop
        TestBlockingPortal::test_start_with_thread_name
        TestBlockingPortal::test_call_stopped_portal
        TestBlockingPortal::test_start_task_soon
        TestBlockingPortal::test_start_task_soon_non_corofunc
        TestBlockingPortal::test_start_task_soon_cancel_later
        TestBlockingPortal::test_start_task_soon_cancel_immediately
        TestBlockingPortal::test_start_task_soon_cancel_after_stop
        TestBlockingPortal::test_start_task_soon_with_name
        TestBlockingPortal::test_async_context_manager_success
        TestBlockingPortal::test_async_context_manager_error
        TestBlockingPortal::test_async_context_manager_error_ignore
        TestBlockingPortal::test_async_context_manager_exception_in_task_group
        TestBlockingPortal::test_start_no_value
        TestBlockingPortal::test_start_with_value
        TestBlockingPortal::test_start_non_corofunc
        TestBlockingPortal::test_start_crash_before_started_call
        TestBlockingPortal::test_start_crash_after_started_call
        TestBlockingPortal::test_start_no_started_call
        TestBlockingPortal::test_start_with_name
        TestBlockingPortal::test_contextvar_propagation_sync
        TestBlockingPortal::test_contextvar_propagation_async
        TestBlockingPortalProvider::test_exception_passed_to_portal_cm
        """,
        ["trio"],
    ),
    **_listed(
        "who awaits a task, and is cancelled, waits until it has ended: there is no `abandon_on_cancel`",
        "TestBlockingPortal::test_call_async_cancellation_cleanup",
        [f"{caller}-{raises}-True-asyncio" for caller in _CALLERS for raises in (False, True)],
    ),
    **_listed(
        "the same: it waits for the task, whose loop is blocked, and so for its value",
        "TestBlockingPortal::test_call_async_cancellation_does_not_block",
        [f"{caller}-asyncio" for caller in _CALLERS],
    ),
    **_listed("a runtime's thread has its name", "TestBlockingPortal::test_start_without_thread_name", _CALLERS),
    **_listed("there are no backends", "TestBlockingPortal::test_start_with_nonexistent_backend", [""]),
    **_listed(
        "`concurrent.futures.CancelledError` is an error as any other, and is reported if nobody asks for it",
        "TestBlockingPortal::test_asyncio_run_sync_called",
        _ASYNCIO,
    ),
}
if sys.version_info < (3, 14):
    BY_DESIGN |= _listed(
        "asyncio itself names a task after an eager factory has run its first step",
        "TestBlockingPortal::test_start_task_soon_with_name TestBlockingPortal::test_start_with_name",
        ["asyncio+eager"],
    )
# What is cancelled before it starts never runs, so that there is nothing to clean up; it may have started by then.
EITHER_WAY = _listed(
    "cancelled at once", "TestBlockingPortal::test_start_task_soon_cancel_immediately", _ASYNCIO
).keys()


@pytest.mark.promise(
    "anyio's own tests of its `BlockingPortal` pass with a `Runtime`, but for what is another way by design",
    section="The tests of others",
)
def test_anyios_tests_of_its_portal_pass_but_for_what_is_another_way(tmp_path):
    root = source_of("anyio", tmp_path)

    passed, failed = outcomes(
        root,
        ["tests/test_from_thread.py"],
        IN_ITS_PLACE,
        "-o",
        "addopts=",
        "-p",
        "anyio",
        "-p",
        "no:asyncio",
        "-k",
        "TestBlockingPortal",
    )

    only_by_design(passed - EITHER_WAY, failed - EITHER_WAY, BY_DESIGN)
    assert len(passed) >= 120
