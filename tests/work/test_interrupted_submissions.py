"""Ctrl-C in a submission, when the loop has the work already: nobody gets the handle, so the work is cancelled, and only once."""

import asyncio
import threading

import pytest

import omniloop
from omniloop import Runtime, _runtime
from omniloop._work.inbox import Inbox


class Work:
    """Work that counts how often it is asked to end, and waits in its clean-up for `release`."""

    def __init__(self):
        self.begun, self.asked = threading.Event(), threading.Event()
        self.requests = 0
        self.release = asyncio.Event()

    async def run(self):
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            while not self.release.is_set():
                try:
                    await self._waits()
                except asyncio.CancelledError:
                    self.requests += 1

    async def _waits(self):
        self.asked.set()
        await self.release.wait()

    async def items(self):
        await self.run()
        yield None


@pytest.fixture
def work(monkeypatch):
    """Work whose submission is interrupted as soon as it has begun."""
    work, put = Work(), Inbox.put
    armed = [True]

    def interrupted(inbox, item):
        delivered = put(inbox, item)
        if armed:
            armed.clear()
            assert work.begun.wait(5)
            raise KeyboardInterrupt
        return delivered

    monkeypatch.setattr(Inbox, "put", interrupted)
    return work


def end(work, runtime):
    """Let the clean-up end, and wait for it."""
    assert work.asked.wait(5)
    runtime.call_soon(work.release.set).result(5)
    runtime.flush(5)


@pytest.mark.promise(
    "Work whose submission Ctrl-C interrupts is asked to end once: its clean-up is left alone", section="Submitting"
)
@pytest.mark.parametrize(
    "submit",
    [
        lambda runtime, work: runtime.go(work.run()),
        lambda runtime, work: runtime.go(work.run(), timeout=60),
        lambda runtime, work: runtime.run(work.run()),
        lambda runtime, work: omniloop.TaskGroup(runtime=runtime, limit=1).go(work.run()),
        lambda runtime, work: next(omniloop.iterate(work.items(), runtime=runtime)),
    ],
    ids=["go", "go with a timeout", "run", "a group with a limit", "iterate"],
)
@pytest.mark.parametrize("bounds", [{}, {"max_pending": 5}], ids=["", "with max_pending"])
def test_work_whose_submission_ctrl_c_interrupts_is_asked_to_end_once(work, submit, bounds):
    with Runtime(name="interrupted", cancel_timeout=0.2, **bounds) as runtime:
        with pytest.raises(KeyboardInterrupt):
            submit(runtime, work)
        end(work, runtime)

    assert work.requests == 0


@pytest.mark.promise(
    "What an interrupted submission leaves is closed where it would start: never while the loop starts it"
)
@pytest.mark.parametrize("options", [{}, {"limit": 1}], ids=["a timeout", "a timeout and a limit"])
def test_what_an_interrupted_submission_leaves_is_closed_on_the_loops_thread(work, options, monkeypatch, runtime):
    closed, close = [], _runtime.close_unstarted
    monkeypatch.setattr(
        _runtime, "close_unstarted", lambda *coros: (closed.append(threading.get_ident()), close(*coros))
    )

    with pytest.raises(KeyboardInterrupt):
        omniloop.background(runtime=runtime, timeout=60, **options)(work.run)()
    loop = runtime.call_soon(threading.get_ident).result(5)
    end(work, runtime)

    assert closed
    assert set(closed) == {loop}
