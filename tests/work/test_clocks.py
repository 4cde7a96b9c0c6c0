"""Timers and turns of `every` over a week, while the wall clock is set, and on a machine that slept."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import omniloop
from children import run_child
from omniloop.testing import Clock

WEEK = 7 * 86400.0


@pytest.mark.promise("Over a week `every` takes each turn, at its time and once", section="Periodic")
@pytest.mark.parametrize("interval", [60.7, 3600, 86400 / 7])
def test_each_turn_of_a_week_is_taken_at_its_time(interval):
    clock = Clock()
    turns = []
    with clock.new_runtime() as runtime:
        began = clock.time()
        runtime.every(interval, lambda: turns.append(clock.time() - began))
        end_of_day = runtime.call_at(began + 86400, clock.time)

        clock.advance(WEEK)

        assert end_of_day.result(timeout=20) - began == pytest.approx(86400)

    assert turns == pytest.approx([turn * interval for turn in range(1, int(WEEK / interval) + 1)])


@pytest.mark.promise("A wall clock that is set, back or forward, moves no timer, turn or time limit")
@pytest.mark.parametrize("by", [-86400, -3600, 3600, 86400])
def test_a_wall_clock_that_is_set_moves_nothing(by):
    """As at the end of daylight saving time on a machine that keeps local time, or when the machine first asks for the time."""

    def program():
        began = time.monotonic()
        seconds, nanoseconds = time.time, time.time_ns
        turns = threading.Semaphore(0)
        later = omniloop.call_at(time.monotonic() + 0.5, str, "later")
        soon = omniloop.call_later(0.1, str, "soon")
        beat = omniloop.every(0.05, turns.release)
        time.time = lambda: seconds() + by
        time.time_ns = lambda: nanoseconds() + by * 10**9

        assert all(turns.acquire(timeout=20) for _ in range(3))
        assert (soon.result(timeout=20), later.result(timeout=20)) == ("soon", "later")
        assert time.monotonic() - began >= 0.5
        try:
            omniloop.run(asyncio.sleep(3600), timeout=0.05)
        except omniloop.TaskTimeoutError:
            print("limits hold")
        beat.cancel()

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("limits hold\n", "", 0)


@pytest.mark.promise(
    "On a machine that slept, or a process that was stopped, the turns of `every` that were missed are left out, and nothing is said to have blocked"
)
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process by a signal")
def test_a_process_that_was_stopped_takes_no_burst_of_turns():
    source = """
import sys, time
import omniloop

INTERVAL = 0.05
at = []
began = time.monotonic()
beat = omniloop.every(INTERVAL, lambda: at.append(time.monotonic() - began))
missed = omniloop.call_later(0.5, time.monotonic)
while len(at) < 3:
    time.sleep(0.01)
print("ready", flush=True)
sys.stdin.readline()
seen = len(at)
while len(at) < seen + 5:
    time.sleep(0.01)
beat.cancel()
assert missed.result(timeout=20) - began >= 0.5
slept = max(later - before for before, later in zip(at, at[1:]))
# All of those that were missed, made up for, would be forty more.
print("slept", slept >= 2, "left out", len(at) <= (at[-1] - slept) / INTERVAL + 3)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        os.kill(child.pid, signal.SIGSTOP)
        # Not by `waitid`, which PyPy lacks.
        os.waitpid(child.pid, os.WUNTRACED)
        # Long enough for forty turns, and for the limit of `slow_callback`.
        time.sleep(2.1)
        os.kill(child.pid, signal.SIGCONT)
        stdout, stderr = child.communicate("\n", timeout=40)
    finally:
        child.kill()

    assert (stdout, stderr, child.returncode) == ("slept True left out True\n", "", 0)
