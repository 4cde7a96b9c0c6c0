"""`tasks` and `dump` tell what is accepted and not done: name, age, where it was submitted, where it waits."""

import asyncio
import concurrent.futures
import io
import json
import os
import re
import sys
import threading
import time

import pytest

import omniloop
from children import run_child
from omniloop import Runtime
from omniloop._report import CAN_LOOK_AT_WHAT_RUNS


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

    first, line, *chain = file.getvalue().splitlines()
    assert first == "tested: 1 unfinished"
    assert line.startswith("  mine, for ")
    assert "test_introspection.py" in line
    assert "in test_dump_names_each_with_its_age" in line
    # The innermost frame of its own source, or of asyncio's.
    assert "in Event.wait" in line
    # And how it has come to that.
    assert [line.rpartition(", in ")[2] for line in chain] == ["outer", "waits", "Event.wait"]
    runtime.call_soon(gate.set)


def dumped(runtime, **how):
    # On 3.11 a coroutine starts a turn later.
    runtime.run(asyncio.sleep(0.01))
    file = io.StringIO()
    runtime.dump(file, **how)
    return file.getvalue()


@pytest.mark.promise("`dump()` groups equal tasks: 5,000 that leak are a screen", section="The live view")
def test_dump_groups_equal_tasks(runtime):
    gate = runtime.call_soon(asyncio.Event).result(timeout=5)
    first = runtime.go(outer(gate))
    for _ in range(4999):
        runtime.go(outer(gate))
    runtime.go(waits(gate), name="another")
    for _ in range(2):
        runtime.go(waits(gate), daemon=True)

    lines = dumped(runtime).splitlines()
    runtime.call_soon(gate.set)
    first.result(timeout=5)

    assert lines[0] == "tested: 5003 unfinished"
    # Those of another line are others, the largest group is the first.
    heads = [line.partition(", ")[0] for line in lines[1:] if not line.startswith("      ")]
    assert heads == ["  4999x outer", "  2x waits (daemon)", "  outer", "  another"]
    assert ", the oldest for " in lines[1]
    assert len(lines) < 20


def test_dump_of_many_different_tasks_is_a_screen_too(runtime):
    gate = runtime.call_soon(asyncio.Event).result(timeout=5)
    for number in range(500):
        scope = {}
        exec(f"async def job_{number}(gate): await gate.wait()", scope)
        runtime.go(scope[f"job_{number}"](gate))

    text = dumped(runtime)
    runtime.call_soon(gate.set)

    assert len(text.splitlines()) < 200
    assert text.splitlines()[-1] == "  and 460 more, in 460 groups"


@pytest.mark.promise("Tasks that wait at one place are one group, though their names differ", section="The live view")
def test_dump_groups_what_waits_at_one_place_though_the_names_differ(runtime):
    """Twenty that waited for one lock were twenty blocks."""
    gate = runtime.call_soon(asyncio.Event).result(timeout=5)

    async def starts():
        await asyncio.gather(*(asyncio.create_task(waits(gate), name=f"part {number}") for number in range(3)))

    for number in range(20):
        runtime.go(outer(gate), name=f"order {number}")
    runtime.go(starts())

    text = dumped(runtime)
    told = json.loads(dumped(runtime, json=True))
    runtime.call_soon(gate.set)

    assert "\n  20x order 0, order 1, order 2, …, the oldest for " in text
    assert text.count("order ") == 3 and text.count(", in outer\n") == 1
    parts = re.search(r"\n      3x (part \d), (part \d), (part \d), an asyncio task", text)
    assert set(parts.groups()) == {"part 0", "part 1", "part 2"}
    assert [task["name"] for task in told["groups"][0]["tasks"]] == [f"order {number}" for number in range(10)]


@pytest.mark.skipif(not CAN_LOOK_AT_WHAT_RUNS, reason="frames of other threads are not safe to look at here")
@pytest.mark.promise("`dump()` shows the stack of a call in a worker thread", section="The live view")
def test_dump_shows_the_stack_of_a_call_in_a_worker_thread(runtime):
    """It said that the call ran in a worker thread."""
    started, go_on = threading.Semaphore(0), threading.Event()

    def blocks():
        started.release()
        go_on.wait(9)

    def calls(how):
        how()

    for _ in range(3):
        runtime.to_thread(calls, blocks)
    for _ in range(3):
        assert started.acquire(timeout=9)
    # All of them are in the wait, and no longer on the way to it.
    until = time.monotonic() + 9
    while "3x " not in (text := dumped(runtime)):
        assert time.monotonic() < until
    told = json.loads(dumped(runtime, json=True))
    go_on.set()

    assert "runs in a worker thread\n" in text
    functions = [site["function"].rpartition(".")[2] for site in told["groups"][0]["chain"]]
    assert functions[:3] == ["calls", "blocks", "wait"]
    lines = [line.strip() for line in text.splitlines()]
    assert any(line.startswith(f'File "{__file__}", line ') and line.endswith("blocks") for line in lines)


@pytest.mark.promise(
    "`dump()` shows whom a task waits for, and the tasks that it has started with asyncio's own means",
    section="The live view",
)
def test_dump_shows_whom_a_task_waits_for_and_what_it_has_started(runtime):
    gate = runtime.call_soon(asyncio.Event).result(timeout=5)

    async def group():
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(waits(gate))
            tasks.create_task(outer(gate), name="special")

    async def gathers():
        await asyncio.gather(waits(gate), waits(gate))

    async def follows(task):
        await task

    async def leaves():
        strays.append(asyncio.create_task(waits(gate)))

    strays = []
    runtime.go(group(), name="group")
    followed = runtime.go(gathers(), name="gathers")
    runtime.go(follows(followed), name="follows")
    runtime.go(leaves())

    text = dumped(runtime)
    runtime.call_soon(gate.set)
    runtime.flush(timeout=5)

    # A task's line has two spaces before it, what belongs to it more.
    blocks = re.split(r"\n  (?=\S)", text)
    of = {re.split("[ ,]", block, maxsplit=1)[0]: block for block in blocks}
    assert "\n      3x waits, an asyncio task, waits at File" in of["group"]
    assert "\n      special, an asyncio task, waits at File" in of["group"]
    assert "\n      2x waits, an asyncio task, waits at File" in of["gathers"]
    assert "waits for waits and 1 more" in of["gathers"]
    assert "\n      waits for gathers\n      waits for waits and 1 more" in of["follows"]
    assert of["besides"].startswith(
        "besides, started with asyncio's own means: 1\n    waits, an asyncio task, waits at File"
    )
    assert " (left by work)\n" in of["besides"]


def test_tasks_that_wait_for_each_other_end_the_chain():
    def program():
        async def circle():
            async def one():
                await second

            async def other():
                await first

            first = asyncio.create_task(one(), name="first")
            second = asyncio.create_task(other(), name="second")
            await first

        omniloop.go(circle(), daemon=True)
        omniloop.run(asyncio.sleep(0.05))
        omniloop.dump(sys.stdout)
        sys.stdout.flush()
        # asyncio can't cancel them: it would go round for ever.
        os._exit(0)

    result = run_child(program)

    assert result.code == 0
    assert result.stderr == ""
    assert "waits for first\n      waits for second\n" in result.stdout


@pytest.mark.promise("`dump(json=True)` gives programs the same", section="The live view")
def test_dump_gives_programs_the_same(runtime):
    gate = runtime.call_soon(asyncio.Event).result(timeout=5)
    for _ in range(3):
        runtime.go(outer(gate), name="mine", daemon=True)

    told = json.loads(dumped(runtime, json=True))
    runtime.call_soon(gate.set)

    (group,) = told["groups"]
    assert (told["name"], told["unfinished"]) == ("tested", 3)
    assert (group["name"], group["kind"], group["count"]) == ("mine", "daemon", 3)
    assert group["submitted"]["function"] == "test_dump_gives_programs_the_same"
    assert group["submitted"]["file"] == __file__
    assert [site["function"] for site in group["chain"]] == ["outer", "waits", "Event.wait"]
    assert [task["name"] for task in group["tasks"]] == ["mine"] * 3
    assert group["oldest"] == max(task["age"] for task in group["tasks"])


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


FORGED = ["a\n  forged", "\x1b[2Jred", "\u202eeulb", "half\udc80", "x" * 10_000_000]
SHOWN = [r"a\n  forged", r"\x1b[2Jred", r"\u202eeulb", r"half\udc80", "x" * 199 + "…"]


@pytest.mark.promise(
    "A name is shown on one line, without commands to the terminal, and 200 characters of it", section="The live view"
)
@pytest.mark.parametrize(("name", "shown"), [*zip(FORGED, SHOWN, strict=True)], ids=[name[:8] for name in SHOWN])
def test_a_name_can_not_forge_lines_wherever_it_is_shown(runtime, failures, name, shown):
    """A name with a newline wrote lines of its own into `dump()`, and one with half a surrogate pair made it raise."""

    async def fails():
        raise LookupError

    def tell(*, json=False):
        file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        runtime.dump(file, json=json)
        file.seek(0)
        return file.read()

    gate = runtime.call_soon(asyncio.Event).result(timeout=5)

    async def starts():
        await asyncio.gather(asyncio.create_task(outer(gate), name=name), asyncio.create_task(outer(gate), name=name))

    task = runtime.go(starts(), name=name)
    runtime.run(asyncio.sleep(0.01))
    text, told = tell(), json.loads(tell(json=True))
    runtime.go(fails(), name=name)
    with pytest.raises(omniloop.WaitTimeoutError) as timed_out:
        task.result(timeout=0)
    with pytest.raises(omniloop.TaskTimeoutError) as too_late:
        runtime.go(fails(), name=name, timeout=0).result(timeout=5)
    with pytest.raises(omniloop.TaskTimeoutError) as cut_off:
        runtime.go(asyncio.sleep(60), name=name, timeout=0.01).result(timeout=5)
    runtime.call_soon(gate.set)
    runtime.flush(timeout=5)

    assert f"\n  {shown}, for " in text and f"\n      2x {shown}, an asyncio task" in text
    assert f"\n      waits for {shown} and 1 more\n" in text
    assert "forged" not in [line.strip() for line in text.splitlines()] and len(text) < 5_000
    assert told["groups"][0]["name"] == told["groups"][0]["tasks"][0]["name"] == shown
    assert task.get_name() == name
    assert f"'{shown}'" in repr(task)
    assert str(timed_out.value).startswith(f"{shown} was not done")
    assert str(too_late.value).startswith(f"{shown} was not started")
    # On a busy machine it may not even be started.
    assert str(cut_off.value).startswith((f"{shown} was not done", f"{shown} was not started"))
    assert failures[0].message == f"Task '{shown}' failed, and nobody asked for its outcome"
    assert failures[0].name == name


def test_an_unfinished_works_name_can_not_forge_lines_in_the_exits_warning():
    def program():
        omniloop.configure(exit_timeout=0.01, cancel_timeout=0)

        async def work():
            await asyncio.sleep(60)

        omniloop.go(work(), name="a\nforged: all is well\x1b[2J")

    result = run_child(program)

    assert r"a\nforged: all is well\x1b[2J" in result.stderr
    assert "\nforged" not in result.stderr and "\x1b" not in result.stderr
