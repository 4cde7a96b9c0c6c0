"""asgiref's own suite with `run` in the place of `async_to_sync`. On demand, see `suites.py`."""

import pytest
from suites import on_demand, only_by_design, outcomes, source_of

pytestmark = on_demand

pytest.importorskip("pytest_asyncio")

IN_ITS_PLACE = """
import functools

import asgiref.sync
import omniloop


def async_to_sync(function=None, *, force_new_loop=False):
    if function is None:
        return async_to_sync

    @functools.wraps(function)
    def call(*args, **kwargs):
        return omniloop.run(function(*args, **kwargs))

    return call


asgiref.sync.async_to_sync = async_to_sync
"""

_OWN_LOOP = "the coroutine runs on omniloop's loop and thread, never on the loop of the server or on one of its own"
_NO_WAY_BACK = "changes of the context do not come back to the caller"
_THEIR_LOOPS_FUTURES = "a future or a task of one loop is awaited on the other"
_FUNCTION = "run() takes the coroutine and not the function: nothing is wrapped, and there is nothing to warn of"

BY_DESIGN = {
    "test_async_to_sync_to_async": _OWN_LOOP,
    "test_async_to_sync_to_async_decorator": _OWN_LOOP,
    "test_thread_sensitive_double_nested_async": _OWN_LOOP,
    "test_async_single_thread_context_success_share_context": _OWN_LOOP,
    "test_async_single_thread_context_matches_from_async_thread": _OWN_LOOP,
    "test_async_to_sync_contextvars": _NO_WAY_BACK,
    "test_local_thread_to_async": _NO_WAY_BACK,
    "test_local_task_to_sync_to_task": _NO_WAY_BACK,
    "test_local_many_layers": _NO_WAY_BACK,
    "test_inner_shield_sync_middleware": _THEIR_LOOPS_FUTURES,
    "test_inner_shield_sync_and_async_middleware": _THEIR_LOOPS_FUTURES,
    "test_inner_shield_sync_and_async_middleware_sync_task": _THEIR_LOOPS_FUTURES,
    "test_async_to_sync_fail_non_function": _FUNCTION,
    "test_async_to_sync_fail_sync": _FUNCTION,
    "test_async_to_sync_method_self_attribute": _FUNCTION,
    "test_async_to_sync_in_async": "run() works where a loop runs in the calling thread, as in a notebook, and blocks that loop",
}
# It awaits a task of omniloop's loop on another, which works if the task is done by then.
EITHER_WAY = {"test_two_nested_tasks_with_asyncio_run"}


@pytest.mark.promise(
    "Of asgiref's own suite, with `run` for `async_to_sync`, fails by design what fails",
    section="Frameworks and servers",
)
def test_of_asgirefs_suite_only_that_fails_which_is_meant_to(tmp_path):
    root = source_of("asgiref", tmp_path)

    passed, failed = outcomes(root, ["tests"], IN_ITS_PLACE)

    passed, failed = ({test.rpartition("::")[2] for test in tests} for tests in (passed, failed))
    only_by_design(passed - EITHER_WAY, failed - EITHER_WAY, BY_DESIGN)
    assert len(passed) >= 100
