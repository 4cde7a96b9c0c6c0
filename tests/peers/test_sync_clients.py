"""
Other libraries' own tests, with sync twins in the place of what they test: those of httpx's sync client, and those of synchronicity.

On demand: `OMNILOOP_PEERS=1 python -m pytest -m peers`; see `suites.py`.
"""

import pytest
from suites import on_demand, only_by_design, outcomes, source_of

pytestmark = on_demand


HTTPX = [
    f"tests/client/test_{name}.py"
    for name in (
        "client",
        "auth",
        "cookies",
        "event_hooks",
        "headers",
        "properties",
        "proxies",
        "queryparams",
        "redirects",
    )
]
TWIN_OF_HTTPX = """
    import httpx
    from omniloop import blocking

    httpx.Client = blocking(httpx.AsyncClient)
    blocking(httpx.Response, rename={
        "aread": "read", "aiter_bytes": "iter_bytes", "aiter_text": "iter_text", "aiter_lines": "iter_lines",
        "aiter_raw": "iter_raw", "aclose": "close",
    })
"""
# The client underneath is the async one, and takes what that takes.
NOT_WITH_AN_ASYNC_CLIENT = {
    # An async body is refused by the sync client; this one takes it.
    "test_client.py::test_cannot_stream_async_request",
    # A sync transport, or mount, has no `aclose`.
    "test_client.py::test_context_managed_transport",
    "test_client.py::test_context_managed_transport_and_mount",
    "test_proxies.py::test_sync_proxy_close",
    # The class of the transport is that of the async one.
    "test_proxies.py::test_socks_proxy",
    # It calls the async half of an auth object, and hooks that are awaited.
    "test_auth.py::test_sync_auth",
    "test_event_hooks.py::test_event_hooks",
    "test_event_hooks.py::test_event_hooks_with_redirect",
    # A sync generator as the body.
    "test_redirects.py::test_cannot_redirect_streaming_body",
}


@pytest.mark.promise(
    "The sync twin of httpx's async client passes httpx's own tests of its sync client, but for those that hand it sync transports, hooks or bodies"
)
def test_the_twin_of_the_async_client_passes_the_tests_of_the_sync_client(tmp_path):
    # Its tests import them.
    for name in ("chardet", "trustme"):
        pytest.importorskip(name)
    root = source_of("httpx", tmp_path)

    passed, failed = outcomes(root, HTTPX, "", "-p", "no:asyncio")
    with_twin, without = outcomes(root, HTTPX, TWIN_OF_HTTPX, "-p", "no:asyncio")

    assert len(passed) > 200
    # Those that need the network fail with either.
    assert without - failed <= NOT_WITH_AN_ASYNC_CLIENT
    assert len(with_twin) >= len(passed) - len(NOT_WITH_AN_ASYNC_CLIENT)


SYNCHRONICITY = [
    f"test/{name}_test.py"
    for name in (
        "synchronicity",
        "generators",
        "asynccontextmanager",
        "exception",
        "getattr",
        "pickle",
        "translate",
        "tracebacks",
    )
]
# Its names, as somebody who comes from there would translate them.
AS_SYNCHRONICITY = """
    import asyncio, sys, types
    from contextlib import asynccontextmanager
    import synchronicity, synchronicity.async_wrap
    from omniloop import blocking, run

    async def _loop():
        return asyncio.get_running_loop()

    class Synchronizer:
        def __init__(self, *args, **kwargs): ...
        def create_blocking(self, obj, name=None, target_module=None):
            made = blocking(obj)
            if name or not isinstance(obj, type):
                made.__name__ = name or "blocking_" + obj.__name__
            return made
        wrap = create_blocking
        def _get_loop(self):
            return run(_loop())
        def _close_loop(self): ...

    synchronicity.Synchronizer = Synchronizer
    synchronicity.async_wrap.asynccontextmanager = asynccontextmanager
"""
_FUTURES = "`_future=True` gives a future: here `go(f.aio(…))` does"
_NAMES = "the twin keeps the name of the original"
_BARE = "`.aio` of a function that is not async, or is wrapped when called, is no coroutine function"
_ITERATOR = "the iterator is a class of ours and no generator"
_FINALISER = "an iterator that is dropped half-way closes, and nobody waits for that: a finaliser must not block"
_OWN = "of synchronicity's own settings, hooks and insides"
_FRAMES = "counts synchronicity's own frames in a traceback"
# What is another way here, by design; everything else has to pass.
OTHERWISE = {
    "synchronicity_test.py::test_function_sync_future": _FUTURES,
    "synchronicity_test.py::test_function_many_parallel_sync_futures": _FUTURES,
    "synchronicity_test.py::test_sync_lambda_returning_coroutine_sync_futures": _FUTURES,
    "synchronicity_test.py::test_class_sync_futures": _FUTURES,
    "exception_test.py::test_function_raises_sync_futures": _FUTURES,
    "exception_test.py::test_function_raises_with_cause_sync_futures": _FUTURES,
    "translate_test.py::test_translate": _NAMES,
    "synchronicity_test.py::test_function_async_as_function_attribute": _BARE,
    "synchronicity_test.py::test_function_returning_coroutine": _BARE,
    "synchronicity_test.py::test_sync_inline_func_returning_coroutine_async": _BARE,
    "exception_test.py::test_function_raises_async_syncwrap": _BARE,
    "exception_test.py::test_function_raises_with_cause_async_syncwrap": _BARE,
    "exception_test.py::test_wrapped_function_raises_async": _BARE,
    "synchronicity_test.py::test_generator_sync": _ITERATOR,
    "synchronicity_test.py::test_generator_async": _ITERATOR,
    "synchronicity_test.py::test_non_async_aiter": _ITERATOR,
    "synchronicity_test.py::test_run_async_gen_runs_aclose": _FINALISER,
    "synchronicity_test.py::test_run_async_gen_runs_aclose_async": _FINALISER,
    "synchronicity_test.py::test_async_cancel_completes_successfully_still_cancels": "what swallows a cancellation keeps its value",
    "synchronicity_test.py::test_no_input_translation": _OWN,
    "synchronicity_test.py::test_no_output_translation": _OWN,
    "synchronicity_test.py::test_blocking_in_async_callback": _OWN,
    "synchronicity_test.py::test_synchronizer_unexpected_thread_death": _OWN,
    "asynccontextmanager_test.py::test_asynccontextmanager_with_in_async": "`with` on the loop of the caller is refused there",
    "getattr_test.py::test_getattr": "a `__getattr__` that is async is no attribute access",
    "tracebacks_test.py::test_full_traceback_flag": _FRAMES,
    "tracebacks_test.py::test_sync_to_async_gen": _FRAMES,
    "tracebacks_test.py::test_async_to_async_gen": _FRAMES,
    "tracebacks_test.py::test_async_to_async_ctx_mgr": _FRAMES,
}


@pytest.mark.promise("synchronicity's own tests pass with twins, but for what is another way by design")
def test_the_tests_of_synchronicity_pass_but_for_what_is_another_way(tmp_path):
    pytest.importorskip("pytest_asyncio")
    root = source_of("synchronicity", tmp_path)
    # For a plugin that checks their docs.
    (root / "conftest.py").unlink()

    passed, failed = outcomes(root, SYNCHRONICITY, AS_SYNCHRONICITY)

    only_by_design(passed, failed, OTHERWISE)
    assert len(passed) >= 45
