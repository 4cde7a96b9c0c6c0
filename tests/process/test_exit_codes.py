"""The exit code is the main thread's to say: what becomes of background work does not change it."""

import asyncio
import os
import signal
import sys

import pytest

import omniloop
from children import run_child


async def fails():
    raise LookupError("no such account")


async def hangs():
    await asyncio.Event().wait()


async def leaves():
    sys.exit(3)


def comes_to_its_end():
    omniloop.go(asyncio.sleep(0))


def a_task_fails_unasked():
    omniloop.go(fails())


def a_task_is_dropped_at_the_deadline():
    omniloop.configure(exit_timeout=0.05)
    omniloop.go(hangs())


def an_error_comes_out_of_run():
    omniloop.run(fails())


def main_leaves_with_a_code():
    omniloop.go(asyncio.sleep(0.01))
    sys.exit(3)


def a_task_leaves_unasked():
    omniloop.go(leaves())


def a_task_leaves_and_is_asked_for():
    omniloop.run(leaves())


def ctrl_c():
    omniloop.go(asyncio.sleep(0.01))
    os.kill(os.getpid(), signal.SIGINT)
    omniloop.run(hangs())


def sigterm():
    omniloop.configure(sigterm="drain")
    omniloop.go(asyncio.sleep(0.01))
    os.kill(os.getpid(), signal.SIGTERM)
    omniloop.run(asyncio.sleep(5))


@pytest.mark.promise(
    "What becomes of background work does not change the exit code, which the main thread says", section="At exit"
)
@pytest.mark.parametrize(
    ("program", "code"),
    [
        (comes_to_its_end, 0),
        (a_task_fails_unasked, 0),
        (a_task_is_dropped_at_the_deadline, 0),
        (an_error_comes_out_of_run, 1),
        (main_leaves_with_a_code, 3),
        (a_task_leaves_unasked, 0),
        (a_task_leaves_and_is_asked_for, 3),
        # As of a process that a signal ended; a shell says 130 and 143.
        (ctrl_c, -signal.SIGINT),
        (sigterm, -signal.SIGTERM),
    ],
)
def test_the_exit_code_is_that_of_the_main_thread(program, code):
    assert run_child(program).code == code
