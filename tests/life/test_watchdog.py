"""A callback that blocks the loop is told of while it blocks, once, and when it ends; an idle loop is not looked at."""

import asyncio
import logging
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from children import run_child
from omniloop import CannotStartError, Runtime, configure, go
from omniloop._seen import watchdog
from omniloop._seen.watchdog import Usage, usage_of


class Told(logging.Handler):
    """Collects what the watchdog says, and lets a test wait for it."""

    def __init__(self):
        super().__init__()
        self.messages = []
        self._more = threading.Condition()

    def emit(self, record):
        with self._more:
            self.messages.append(record.getMessage())
            self._more.notify_all()

    def wait_for(self, count):
        """Until *count* messages tell of `hold_the_loop_here` and of its end: a busy machine may hold up the loop as well."""
        with self._more:
            return self._more.wait_for(lambda: len(self.of_the_callback()) >= count, timeout=20)

    def of_the_callback(self):
        """One blockage is over before another begins, so that the message after the first is of its end."""
        about = [number for number, message in enumerate(self.messages) if "hold_the_loop_here" in message]
        return [message for number in about for message in self.messages[number : number + 2]]


@pytest.fixture
def told():
    handler = Told()
    logger = logging.getLogger("omniloop")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_factory(request):
    return None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop


def hold_the_loop_here(gate):
    assert gate.wait(timeout=30)


async def hold(gate):
    hold_the_loop_here(gate)


@pytest.mark.promise(
    "A callback that blocks the loop longer than `slow_callback` is told of while it blocks, with its stack"
)
def test_a_callback_that_blocks_is_told_of_with_its_stack_while_it_blocks(told, loop_factory):
    gate = threading.Event()
    with Runtime(slow_callback=0.05, loop_factory=loop_factory) as runtime:
        task = runtime.go(hold(gate))

        assert told.wait_for(1)
        assert not task.done()

        gate.set()
        task.result(timeout=5)

    blocks = told.of_the_callback()[0]
    assert "has blocked the loop for" in blocks
    # The stack begins where the loop calls out: its own machinery tells nothing.
    assert "run_forever" not in blocks


@pytest.mark.promise("It is told of once, and again when it is over, with its length")
def test_one_blockage_is_told_of_once_and_its_length_when_it_is_over(told, loop_factory):
    gate = threading.Event()
    with Runtime(slow_callback=0.05, loop_factory=loop_factory) as runtime:
        runtime.go(hold(gate))
        assert told.wait_for(1)
        # Several times the limit: another look would tell again.
        assert not gate.wait(timeout=0.3)
        gate.set()

        assert told.wait_for(2)
        runtime.flush(timeout=5)

    blocks, goes_on = told.of_the_callback()
    assert "has blocked the loop for" in blocks
    assert "The loop goes on, after a callback blocked it for" in goes_on


@pytest.mark.promise("Every further blockage is told of as well")
def test_every_blockage_is_told_of(told, loop_factory):
    with Runtime(slow_callback=0.05, loop_factory=loop_factory) as runtime:
        for count in (1, 2, 3):
            gate = threading.Event()
            task = runtime.go(hold(gate))
            assert told.wait_for(2 * count - 1)
            gate.set()
            task.result(timeout=5)
            assert told.wait_for(2 * count)


@pytest.mark.promise("The watchdog is off with `slow_callback=None`, and may be turned on while the loop runs")
def test_the_watchdog_is_off_with_none_and_can_be_turned_on_while_the_loop_runs(told):
    with Runtime(name="unwatched", slow_callback=None) as runtime:
        runtime.run(noop())
        assert "unwatched-watchdog" not in {thread.name for thread in threading.enumerate()}

        runtime.configure(slow_callback=0.05)
        gate = threading.Event()
        task = runtime.go(hold(gate))
        assert told.wait_for(1)
        gate.set()
        task.result(timeout=5)


@pytest.mark.promise("It sees what blocks in the very turn of the loop in which it is turned on")
def test_it_sees_what_blocks_in_the_turn_in_which_it_is_turned_on(told, monkeypatch):
    """The loop told it when the next turn began, and this one did not end."""
    within, submitted, blocks, gate = (threading.Event() for _ in range(4))
    look = watchdog.Watchdog._look

    def look_late(self, has_moved):
        blocks.wait(5)
        return look(self, has_moved)

    monkeypatch.setattr(watchdog.Watchdog, "_look", look_late)

    def turn():
        within.set()
        submitted.wait(5)
        # Longer than a batch: what was submitted meanwhile comes in the next turn, together with the watchdog.
        time.sleep(0.01)

    async def block():
        blocks.set()
        hold_the_loop_here(gate)

    with Runtime(name="unwatched", slow_callback=None) as runtime:
        runtime.call_soon(turn)
        within.wait(5)
        runtime.configure(slow_callback=0.05)
        task = runtime.go(block())
        submitted.set()
        assert told.wait_for(1)
        gate.set()
        task.result(timeout=5)


@pytest.mark.promise("Where the watchdog's thread can't be started, `configure` says so, and its next call starts it")
def test_a_watchdog_that_can_not_be_started_is_told_and_started_by_the_next_call(monkeypatch):
    def no_room(thread):
        raise RuntimeError("can't start new thread")

    with Runtime(name="no room", slow_callback=None) as runtime:
        runtime.run(noop())
        monkeypatch.setattr(threading.Thread, "start", no_room)
        with pytest.raises(CannotStartError, match=r"^The watchdog can't be started: can't start new thread\.$"):
            runtime.configure(slow_callback=1)
        monkeypatch.undo()
        runtime.configure(slow_callback=1)

        assert "no room-watchdog" in {thread.name for thread in threading.enumerate()}


def test_short_callbacks_are_not_told_of(told):
    with Runtime(slow_callback=5.0) as runtime:
        for _ in range(100):
            runtime.run(noop())

    assert told.messages == []


@pytest.mark.promise("An idle runtime wakes no thread")
@pytest.mark.skipif(sys.platform != "linux", reason="counts context switches in /proc")
def test_the_watchdog_and_the_loop_do_not_wake_up_while_idle():
    """Where nothing happens, neither thread is switched to: looked at over half a second, ten times the watchdog's period, some times."""
    with Runtime(name="idle", slow_callback=0.05) as runtime:
        runtime.run(noop())
        ids = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("idle")]
        assert len(ids) == 3
        counts = []
        # On a busy machine the last look comes late. Who polls is switched to each time.
        while 0 not in counts and len(counts) < 20:
            before = switches(ids)
            threading.Event().wait(0.5)
            counts.append(switches(ids) - before)

        assert min(counts) == 0


def switches(ids):
    total = 0
    for native_id in ids:
        status = Path(f"/proc/{os.getpid()}/task/{native_id}/status").read_text()
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("voluntary"))
    return total


async def noop():
    pass


@pytest.mark.parametrize("slow", [math.inf, 1e308])
def test_a_limit_of_ages_never_says_anything(caplog, slow):
    """The watchdog's thread ended with an OverflowError."""
    ended = []
    former, threading.excepthook = threading.excepthook, ended.append
    try:
        with Runtime(slow_callback=slow) as runtime:
            runtime.run(asyncio.sleep(0.01))
    finally:
        threading.excepthook = former

    assert (ended, caplog.messages) == ([], [])


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_the_system_says_what_a_thread_had():
    me = threading.get_ident(), threading.get_native_id()
    before = usage_of(*me)
    until = time.thread_time() + 0.05
    while time.thread_time() < until:
        pass
    after = usage_of(*me)

    assert 0.04 < after.cpu - before.cpu < 5
    assert usage_of(None, None) is None
    assert usage_of(me[0], 2**22 + 1) is None


def of(wall, cpu=0.0, others=0.0, queue=0.0, wakes=0, place=(1, 1)):
    return Usage(wall, cpu, others, queue, wakes, place)


@pytest.mark.parametrize(
    ("then", "why"),
    [
        (of(1, cpu=0.9), None),
        (of(1, cpu=0.6, queue=0.4), None),
        (of(1), None),
        # It sleeps, or waits for a lock, while others compute.
        (of(1, others=2.0), None),
        (of(1, cpu=0.1, queue=0.8), "the machine has more to do than it has cores for"),
        (of(1, cpu=0.2, others=0.8, place=(1, 9)), "other threads keep the interpreter busy"),
        (of(1, cpu=0.0, others=1.0, wakes=190), "other threads keep the interpreter busy"),
    ],
)
def test_what_a_thread_had_of_the_machine_tells_blocked_from_starved(then, why):
    assert then.held_up(of(0)) == why


@pytest.mark.promise("A loop that answers before the watchdog's thread goes on is not blamed")
def test_a_loop_that_answers_at_once_is_not_blamed(told):
    """The answer came before the question was noted, and an idle loop was blamed, with an empty stack."""
    uvloop = pytest.importorskip("uvloop")
    with Runtime(slow_callback=0.1, loop_factory=uvloop.new_event_loop) as runtime:
        task = runtime.go(asyncio.sleep(0.8))
        thread = runtime._current().thread
        post = thread.post

        def post_and_lose_the_core(fn, *args):
            post(fn, *args)
            if "watchdog" in threading.current_thread().name:
                time.sleep(0.005)

        thread.post = post_and_lose_the_core
        task.result(timeout=5)
        del thread.post

    assert [message for message in told.messages if "has blocked" in message] == []


@pytest.mark.promise("A loop is not blamed whose thread had not begun at the watchdog's first look")
def test_a_thread_that_begins_late_is_not_blamed(told, monkeypatch):
    """There was nothing to compare with."""
    had = iter([None, of(0)])
    monkeypatch.setattr(watchdog.Watchdog, "_usage", lambda self: next(had, of(1, cpu=0.1, queue=0.8)))
    gate = threading.Event()
    with Runtime(slow_callback=0.05) as runtime:
        task = runtime.go(hold(gate))
        with told._more:
            assert told._more.wait_for(lambda: told.messages, timeout=20)
        gate.set()
        task.result(timeout=5)

    assert "the machine has more to do than it has cores for" in told.messages[0]


@pytest.mark.heavy
@pytest.mark.timeout(60)
@pytest.mark.promise(
    "On a starved machine no callback is blamed that does not block; that the loop gets too little time is said once"
)
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no core can be chosen here")
@pytest.mark.parametrize("by", ["processes", "threads"])
def test_on_a_starved_machine_no_callback_is_blamed(by):
    """Dozens of "has blocked the loop" about code that did not block, at a load of 10 to 25."""

    def program():
        # All on one core, with more that is busy than it can serve.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        if by == "processes":
            spin = [sys.executable, "-c", "while True: pass"]
            busy = [subprocess.Popen(spin) for _ in range(6)]
        else:
            over = threading.Event()

            def compute():
                while not over.is_set():
                    pass

            for _ in range(5):
                threading.Thread(target=compute, daemon=True).start()
        configure(slow_callback=0.1)
        said = []
        logger = logging.getLogger("omniloop")
        logger.propagate = False
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())
        logger.addHandler(handler)

        async def innocent():
            for _ in range(12):
                # 20 ms of computing: no fault, were there a core for it.
                until = time.thread_time() + 0.02
                while time.thread_time() < until:
                    pass
                await asyncio.sleep(0.001)

        go(innocent()).result()
        if by == "processes":
            for one in busy:
                one.kill()
        else:
            over.set()
        print("blamed:", [line for line in said if "has blocked" in line])
        print(
            "starved:",
            [line.partition("because")[2].partition(":")[2][:16] for line in said if "too little time" in line],
        )

    result = run_child(program, timeout=55)

    assert (result.stderr, result.code) == ("", 0)
    blamed, starved = result.stdout.splitlines()
    assert blamed == "blamed: []"
    # Of the processes it is the machine; of the threads it may be either, where the machine is busy as well.
    assert starved.count("the machine has") + starved.count("other threads k") <= 1
    assert by == "threads" or "other threads k" not in starved


@pytest.mark.timeout(60)
@pytest.mark.promise("A callback that blocks is told of on a starved machine, too")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no core can be chosen here")
def test_a_callback_that_blocks_is_told_of_on_a_starved_machine(told):
    gate = threading.Event()
    core = {min(os.sched_getaffinity(0))}
    spin = f"import os; os.sched_setaffinity(0, {core}); exec('while True: pass')"
    busy = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(4)]
    try:
        with Runtime(slow_callback=0.05) as runtime:
            runtime.call_soon(os.sched_setaffinity, 0, core).result(timeout=20)
            task = runtime.go(hold(gate))

            assert told.wait_for(1)

            gate.set()
            task.result(timeout=20)
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert "has blocked the loop for" in told.of_the_callback()[0]
