"""unsync's own suite, with omniloop in the place of its loop thread, its pools and its future. On demand, see `suites.py`."""

import pytest
from suites import on_demand, outcomes, source_of

pytestmark = on_demand

IN_ITS_PLACE = """
    import asyncio
    import concurrent.futures
    import importlib

    import omniloop

    unsync = importlib.import_module("unsync.unsync")

    async def _loop():
        return asyncio.get_running_loop()

    async def _value(future):
        return await asyncio.wrap_future(future)

    class Unfuture:
        def __class_getitem__(cls, _):
            return cls

        @classmethod
        def from_value(cls, value):
            made = cls()
            made.set_result(value)
            return made

        def __init__(self, work=None):
            self._to_set = concurrent.futures.Future() if work is None else None
            if isinstance(work, omniloop.Task):
                self._task = work
            else:
                self._task = omniloop.go(work if asyncio.iscoroutine(work) else _value(work or self._to_set))

        def __await__(self):
            return self._task.__await__()

        def result(self, timeout=None):
            try:
                return self._task.result(timeout)
            except omniloop.WouldDeadlockError as error:
                raise asyncio.InvalidStateError from error

        def done(self):
            return self._task.done()

        def set_result(self, value):
            self._to_set.set_result(value)

        def then(self, continuation):
            async def both():
                value = continuation(await self)
                return await value if hasattr(value, "__await__") else value

            return Unfuture(both())

    class Threads:
        submit = staticmethod(omniloop.to_thread)

    class Processes:
        submit = staticmethod(omniloop.to_process)

    def no_thread_of_its_own(cls):
        cls._loop = omniloop.run(_loop())

    unsync.unsync_meta._init_loop = no_thread_of_its_own
    unsync.unsync.thread_executor = Threads
    unsync.unsync._process_executor = Processes
    unsync.Unfuture = importlib.import_module("unsync").Unfuture = Unfuture
"""


@pytest.mark.promise(
    "unsync's own tests pass with omniloop in the place of its loop thread, its pools and its future",
    section="The tests of others",
)
def test_unsyncs_tests_pass(tmp_path):
    root = source_of("unsync", tmp_path, "1.4.0")

    passed, failed = outcomes(root, ["test"], IN_ITS_PLACE)

    assert failed == set()
    assert len(passed) == 33
