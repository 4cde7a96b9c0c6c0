"""Where gevent has made greenlets of threads, omniloop says what works and what does not."""

import os

import pytest

from children import run_child

pytest.importorskip("gevent")

pytestmark = pytest.mark.skipif(
    os.name == "posix" and not hasattr(os, "fork"), reason="gevent takes it that a Unix forks"
)


@pytest.mark.promise("Under gevent work is done, and a warning says what does not work")
def test_under_gevent_work_is_done_and_a_warning_says_what_does_not_work():
    def program():
        import gevent.monkey

        gevent.monkey.patch_all()
        import asyncio

        from omniloop import go, run

        async def work(value):
            await asyncio.sleep(0.01)
            print(value)
            return value

        print("ran", run(work("run"), timeout=5))
        go(work("forgotten"))

    # asyncio's own loop: uvloop has no place for greenlets.
    child = run_child(program, env={"OMNILOOP_LOOP": "asyncio"}, flags=["-W", "default::RuntimeWarning"])

    assert (child.stdout.split(), child.code) == (["run", "ran", "run", "forgotten"], 0)
    assert child.stderr.count("RuntimeWarning: gevent has patched threading") == 1
