"""
The life of a runtime, in any order: start, go, cancel, wait, flush, fork, shut down, and start again.

`OMNILOOP_SOAK_SECONDS` says how much of it (5 by default). A failure prints the shortest order of steps that leads to it.
"""

import asyncio
import concurrent.futures
import os
import threading
import warnings

import pytest
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule

from omniloop import ClosedError, ForkedError, Runtime, Task, WaitTimeoutError

SECONDS = float(os.environ.get("OMNILOOP_SOAK_SECONDS", "5"))

# Admission a wait that should end by itself.
SOON = 8

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SECONDS * 20 + 60)]


class Wrong(Exception):
    pass


class Piece:
    """A piece of work, and what is to come out of it."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.cleaned_up = 0
        self.task: Task[str]
        self.expected = "pending"

    async def waits(self) -> str:
        try:
            await self.event.wait()
            return "released"
        finally:
            await asyncio.sleep(0)
            self.cleaned_up += 1


class Life(RuleBasedStateMachine):
    pieces = Bundle("pieces")

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Piece] = []
        self.runtime: Runtime | None = None

    @initialize()
    def start(self) -> None:
        self.runtime = Runtime(name="machine", cancel_timeout=SOON, slow_callback=None, on_error=lambda failure: None)

    @precondition(lambda self: self.runtime is None)
    @rule()
    def start_again(self) -> None:
        self.start()

    # --- submitting -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.runtime is not None)
    @rule(target=pieces, daemon=strategies.booleans())
    def go_and_wait_inside(self, daemon: bool) -> Piece:
        piece = Piece()
        piece.task = self.runtime.go(piece.waits(), daemon=daemon)
        piece.daemon = daemon
        self.waiting.append(piece)
        return piece

    @precondition(lambda self: self.runtime is not None)
    @rule(kind=strategies.sampled_from(["returns", "raises", "exits", "in a thread", "a call", "later"]))
    def go_and_end(self, kind: str) -> None:
        async def work() -> str:
            await asyncio.sleep(0)
            if kind == "raises":
                raise Wrong
            if kind == "exits":
                raise SystemExit
            return kind

        match kind:
            case "in a thread":
                task = self.runtime.to_thread(str, kind)
            case "a call":
                task = self.runtime.call_soon(str, kind)
            case "later":
                task = self.runtime.call_later(0, str, kind)
            case _:
                task = self.runtime.go(work())
        error = task.exception(timeout=SOON)
        assert type(error) is {"raises": Wrong, "exits": SystemExit}.get(kind, type(None))
        assert error is not None or task.result() == kind

    # --- what becomes of it ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.runtime is not None)
    @rule(piece=pieces)
    def release(self, piece: Piece) -> None:
        if piece.expected == "pending":
            self.runtime.call_soon(piece.event.set)
            piece.expected = "released"
            self.waiting.remove(piece)
        self.outcome(piece)

    @rule(piece=pieces)
    def cancel(self, piece: Piece) -> None:
        assert piece.task.cancel() is (piece.expected == "pending")
        if piece.expected == "pending":
            piece.expected = "cancelled"
            self.waiting.remove(piece)
        self.outcome(piece)

    @rule(piece=pieces)
    def outcome(self, piece: Piece) -> None:
        if piece.expected == "pending":
            with pytest.raises(WaitTimeoutError):
                piece.task.result(timeout=0)
        elif piece.expected == "released":
            assert piece.task.result(timeout=SOON) == "released"
            assert piece.cleaned_up == 1
        else:
            with pytest.raises(concurrent.futures.CancelledError):
                piece.task.result(timeout=SOON)
            assert piece.cleaned_up <= 1

    @precondition(lambda self: self.runtime is not None)
    @rule()
    def flush(self) -> None:
        if all(piece.daemon for piece in self.waiting):
            self.runtime.flush(timeout=SOON)
        else:
            with pytest.raises(WaitTimeoutError):
                self.runtime.flush(timeout=0.005)

    # --- fork and end ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.runtime is not None and hasattr(os, "fork"))
    @rule()
    def fork(self) -> None:
        with warnings.catch_warnings():
            # With work pending the loop's thread stays, and CPython says so.
            warnings.simplefilter("ignore" if self.waiting else "error", DeprecationWarning)
            pid = os.fork()
        if not pid:
            code = 1
            try:
                code = self.child()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def child(self) -> int:
        for piece in self.waiting:
            try:
                piece.task.result(timeout=1)
            except ForkedError:
                continue
            return 2
        if self.runtime.tasks():
            return 3
        return 0 if self.runtime.run(asyncio.sleep(0, "works"), timeout=SOON) == "works" else 4

    @precondition(lambda self: self.runtime is not None)
    @rule()
    def shut_down(self) -> None:
        runtime, self.runtime = self.runtime, None
        runtime.shutdown(timeout=0)
        for piece in self.waiting:
            piece.expected = "cancelled"
            assert piece.task.done()
            self.outcome(piece)
        self.waiting.clear()
        with pytest.raises(ClosedError):
            runtime.go(asyncio.sleep(0))
        assert runtime.tasks() == []
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("machine")]

    def teardown(self) -> None:
        if self.runtime is not None:
            self.shut_down()


Life.TestCase.settings = settings(
    max_examples=max(5, int(SECONDS * 4)),
    stateful_step_count=30,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

TestLife = pytest.mark.promise(
    "In any order of start, go, cancel, wait, flush, fork and shutdown each piece of work comes out as it should"
)(Life.TestCase)
