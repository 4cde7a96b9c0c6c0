"""`tasks` and `dump` tell what is accepted and not done: name, age, where it was submitted, where it waits."""

import asyncio
import concurrent.futures
import io
import threading

from omniloop import Runtime


async def waits(gate):
    await gate.wait()


async def outer(gate):
    await waits(gate)


def test_tasks_holds_every_handle_that_is_not_done_whatever_it_is(runtime):
    gate, go_on = runtime.call_soon(asyncio.Event).result(timeout=5), threading.Event()
    started = threading.Event()
    tasks = [
        runtime.go(outer(gate)),
        runtime.go(outer(gate), daemon=True),
        runtime.call_later(60, int),
        runtime.every(60, int),
        runtime.to_thread(lambda: (started.set(), go_on.wait(5))),
    ]
    assert started.wait(timeout=5)
    runtime.call_soon(int).result(timeout=5)
    assert set(runtime.tasks()) == set(tasks)

    blocked, unblock = threading.Event(), threading.Event()
    runtime.call_soon(lambda: (blocked.set(), unblock.wait(5)))
    assert blocked.wait(timeout=5)
    waiting = [runtime.go(outer(gate)), runtime.call_later(1, int)]
    assert set(waiting) <= set(runtime.tasks())
    unblock.set()

    go_on.set()
    runtime.call_soon(gate.set)
    for task in (*tasks, *waiting):
        task.cancel()
    concurrent.futures.wait([*tasks, *waiting], timeout=5)
    assert runtime.tasks() == []


def test_dump_names_each_with_its_age_its_place_of_submission_and_where_it_waits(runtime):
    gate = runtime.call_soon(asyncio.Event).result(timeout=5)
    runtime.go(outer(gate), name="mine")
    runtime.call_soon(int).result(timeout=5)
    file = io.StringIO()

    runtime.dump(file)

    first, line = file.getvalue().splitlines()
    assert first == "tested: 1 unfinished"
    assert line.startswith("  mine, for 0.")
    assert "test_introspection.py" in line
    assert "in test_dump_names_each_with_its_age" in line
    # The innermost frame of its own source, or of asyncio's.
    assert "in Event.wait" in line
    runtime.call_soon(gate.set)


def test_dump_goes_to_stderr(runtime, capsys):
    runtime.dump()

    assert capsys.readouterr().err == "tested: 0 unfinished\n"


def test_looking_starts_nothing():
    runtime = Runtime(name="unused")

    assert runtime.tasks() == []
    assert repr(runtime) == "<Runtime 'unused', 0 unfinished>"
    assert "unused" not in {thread.name for thread in threading.enumerate()}
    runtime.shutdown()
    assert repr(runtime) == "<Runtime 'unused', 0 unfinished, shut down>"


def test_looking_while_much_comes_and_goes(runtime):
    async def work():
        await asyncio.sleep(0)

    def submit():
        while not over.is_set():
            for _ in range(50):
                runtime.go(work())
                runtime.to_thread(int)
            runtime.flush(timeout=5)

    over = threading.Event()
    thread = threading.Thread(target=submit)
    thread.start()
    for _ in range(200):
        runtime.tasks()
        runtime.dump(io.StringIO())
    over.set()
    thread.join(timeout=9)
    assert not thread.is_alive()


def test_where_a_task_waits_is_told_by_the_users_own_line():
    """The innermost line is the standard library's, and the same for all that sleep."""

    async def sleeps():
        await asyncio.sleep(30)

    with Runtime(exit_timeout=0) as runtime:
        task = runtime.go(sleeps())
        runtime.call_soon(int).result(timeout=5)
        # On 3.11 a coroutine starts a turn later.
        runtime.run(asyncio.sleep(0))
        out = io.StringIO()
        runtime.dump(out)
        task.cancel()

    assert f'waits at File "{__file__}", line' in out.getvalue()
    assert "sleeps, in sleep" in out.getvalue()


def test_dump_tells_a_daemon_and_what_waits_for_nothing(runtime):
    """A call in a worker thread "waits at in a worker thread"."""
    go_on, started = threading.Event(), threading.Event()

    def block():
        started.set()
        go_on.wait(timeout=5)

    runtime.go(asyncio.sleep(60), daemon=True, name="serves")
    runtime.to_thread(block)
    runtime.call_later(60, print)
    out = io.StringIO()
    try:
        assert started.wait(timeout=5)
        runtime.call_soon(int).result(timeout=5)
        runtime.dump(out)
    finally:
        go_on.set()

    lines = out.getvalue().splitlines()
    assert any(line.startswith("  serves (daemon), for ") and ", waits at File " in line for line in lines)
    assert any("block" in line and line.endswith(", runs in a worker thread") for line in lines)
    assert any("print" in line and line.endswith(", not started") for line in lines)
