"""A process that is stopped and continued, as a host of functions freezes and thaws it."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from children import child_environment
from programs import source_of

FREEZE = 1.5


@contextlib.contextmanager
def frozen_while_ready(program) -> Iterator[subprocess.Popen[str]]:
    """Run *program* until it says that it is ready, and stop it for a while."""
    child = subprocess.Popen(
        [sys.executable, "-c", source_of(program)],
        env=child_environment({"OMNILOOP_SLOW_CALLBACK": "0.5"}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGSTOP)
        # No order is made by this: the time that passes is what the test is about.
        time.sleep(FREEZE)
        child.send_signal(signal.SIGCONT)
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
@pytest.mark.timeout(40)
@pytest.mark.promise(
    "After a freeze no missed turn of `every` is made up for, and what came due is called once", section="Periodic"
)
def test_after_a_freeze_no_missed_turn_is_made_up_for():
    def program():
        import asyncio
        import itertools
        import sys
        import time

        import omniloop

        turns, late = [], []
        start = time.monotonic()
        job = omniloop.every(0.1, lambda: turns.append(time.monotonic() - start))
        omniloop.call_later(0.5, lambda: late.append(time.monotonic() - start))

        async def pending():
            await asyncio.sleep(0.7)
            return "done"

        task = omniloop.go(pending())
        print("ready", flush=True)
        sys.stdin.readline()
        job.cancel()
        omniloop.flush()
        # The freeze is the longest pause. Fifteen turns were missed in it, and only the time beside it has turns: with one to begin
        # each stretch, and one for what each was late.
        end = time.monotonic() - start
        pause = max(after - before for before, after in itertools.pairwise([0.0, *turns, end]))
        print(len(turns) <= (end - pause) / 0.1 + 4, len(late), task.result())

    with frozen_while_ready(program) as child:
        # It runs a little, and then is told to end.
        stdout, stderr = child.communicate("\n", timeout=30)

    assert (stdout, stderr, child.returncode) == ("True 1 done\n", "", 0)
