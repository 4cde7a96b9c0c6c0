"""Whole runtimes, in every order of one protocol's steps: the start, the tickets, the groups, the places, the resources, the fork mark."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from explorer import Copy, Edit, Loop, in_every_order, spawn, unexplored

LIFE = "_life.life"
THREAD = "_life.thread"
DRAIN = "_life.drain"
WORKERS = "_life.workers"
LEDGER = "_work.ledger"
GROUPS = "_bridges.groups"
ADMISSION = "_admission"
RESOURCE = "_bridges.resource"
FORK = "_process.fork"


async def value() -> str:
    return "value"


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


class Served:
    """A runtime whose loop is the scheduler's; knows how many were made."""

    def __init__(self, copy: Copy, kind: type[Loop] = Loop, **settings: Any) -> None:
        self.loops = 0
        self.kind = kind
        self.runtime = copy.omniloop.Runtime(
            name="explored",
            loop_factory=self.make_loop,
            slow_callback=None,
            max_workers=1,
            on_error=lambda failure: None,
            **settings,
        )

    def make_loop(self) -> Loop:
        self.loops += 1
        return self.kind()


class StartedLoop(Loop):
    """When it runs, the start is over, and one order of what follows is enough."""

    def run_forever(self) -> None:
        with unexplored():
            super().run_forever()


@contextmanager
def served(copy: Copy, *, running: bool = True, **settings: Any) -> Iterator[Served]:
    with unexplored():
        it = Served(copy, **settings)
        if running:
            it.runtime.run(value())
    yield it
    with unexplored():
        it.runtime.shutdown()


@in_every_order(
    f"{LIFE} {THREAD}",
    soak_only=True,
    a_start_that_does_not_look_whether_another_starts=Edit(
        LIFE,
        'if self._starter.setdefault("by", me) is me:\n',
        'if self._starter.setdefault("by", me):\n',
    ),
)
def test_of_threads_that_start_a_runtime_at_once_one_does(copy: Copy) -> None:
    with served(copy, running=False, kind=StartedLoop) as it:
        tasks: list[Any] = []

        # Who waits for something wakes the loop, due or not, and so starts it even while another does.
        threads = [spawn(lambda: tasks.append(it.runtime.go(value()))), spawn(it.runtime._life.inbox.wake_reader)]
        for thread in threads:
            thread.join()

        with unexplored():
            assert [task.result() for task in tasks] == ["value"]
        assert it.loops == 1


@in_every_order(
    WORKERS,
    a_ticket_that_is_looked_at_and_then_taken=Edit(
        WORKERS,
        "return self._ticket.acquire(False)\n",
        "free = not self._ticket.locked()\n        self._ticket.acquire(False)\n        return free\n",
    ),
)
def test_the_worker_or_the_canceller_has_the_ticket(copy: Copy) -> None:
    work = copy.parts[WORKERS].ThreadWork(print, print)
    claimed: list[bool] = []

    threads = [spawn(lambda: claimed.append(work.claim())) for _ in range(2)]
    for thread in threads:
        thread.join()

    assert sorted(claimed) == [False, True]


@in_every_order(
    THREAD,
    a_thread_that_looks_at_the_mark_before_it_gives_the_lock_back=(
        Edit(
            THREAD,
            "            self._running.release()\n",
            "            late = self._to_close\n            self._running.release()\n",
        ),
        Edit(THREAD, "if run.leaving and self._to_close and", "if run.leaving and late and"),
    ),
    a_closing_that_sets_its_mark_too_late=Edit(
        THREAD,
        "        self._to_close = True\n        if self._running.acquire(False):\n",
        "        free = self._running.acquire(False)\n        self._to_close = True\n        if free:\n",
    ),
)
def test_a_loop_whose_thread_comes_back_late_is_closed_by_one_of_the_two(copy: Copy) -> None:
    closed: list[str] = []

    class Late(copy.parts[THREAD].LoopThread):  # type: ignore[misc,name-defined]
        def own(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop = loop
            self.run = copy.parts[THREAD].Run()
            self.run.leaving = True

        def _finish_late(self) -> None:
            closed.append("by its thread")

    class Lying(asyncio.AbstractEventLoop):
        def close(self) -> None:
            closed.append("by who ended it")

    late = Late("late", print, print)
    late.own(Lying())
    threads = [spawn(late._main, late.run, None, print), spawn(late.close)]
    for thread in threads:
        thread.join()

    assert len(closed) == 1


@in_every_order(
    DRAIN,
    an_answer_that_looks_and_then_takes=Edit(
        DRAIN,
        "        if self._life.asked.pop(self, False):\n            self.value",
        "        if self in self._life.asked:\n            self._life.asked.pop(self, False)\n            self.value",
    ),
)
def test_a_request_to_the_loop_has_one_answer(copy: Copy) -> None:
    asked = copy.parts[DRAIN].Asked(types.SimpleNamespace(asked={}, loop=None), asyncio.sleep)

    # The loop, and the end of the life.
    threads = [spawn(asked.answer, "the loop's"), spawn(asked.answer, "the end's"), spawn(asked.give_up)]
    for thread in threads:
        thread.join()

    assert asked.gate.acquire(False) == (asked.value is not None)


@in_every_order(
    f"{LIFE} {WORKERS}",
    heavy=True,
    a_worker_that_asks_for_no_ticket=Edit(
        WORKERS, "if not self.claim() or task._outcome() is not None:", "if task._outcome() is not None:"
    ),
)
def test_a_call_in_a_thread_is_made_or_cancelled(copy: Copy) -> None:
    with served(copy) as it:
        made: list[str] = []
        task = it.runtime.to_thread(made.append, "call")
        cancelled: list[bool] = []

        thread = spawn(lambda: cancelled.append(task.cancel()))
        thread.join()
        with unexplored():
            concurrent.futures.wait([task])

        assert cancelled == [not made]
        assert task.cancelled() == (not made)


@in_every_order(
    WORKERS,
    workers_that_look_at_once_and_then_leave=(
        Edit(WORKERS, "        with self._leaving:\n", "        if True:\n"),
        Edit(
            WORKERS,
            "            self._staff.discard(me)\n            if len(self._staff) >= self._places():\n                return True\n",
            "            if len(self._staff) > self._places():\n                self._staff.discard(me)\n                return True\n",
        ),
    ),
)
def test_of_workers_that_begin_at_once_as_many_stay_as_have_a_place(copy: Copy) -> None:
    pool = copy.parts[WORKERS].Workers("explored")

    def is_idle() -> None:
        pool._staff.add(threading.current_thread())
        pool._leaves()

    threads = [spawn(is_idle) for _ in range(2)]
    for thread in threads:
        thread.join()

    assert len(pool._staff) == 1


@in_every_order(
    WORKERS,
    a_worker_that_leaves_after_its_look=Edit(
        WORKERS,
        "            self._staff.discard(me)\n            if len(self._staff) >= self._places():\n                return True\n",
        "            if len(self._staff) > self._places():\n                self._staff.discard(me)\n                return True\n",
    ),
)
def test_when_one_worker_leaves_and_the_other_begins_to_wait_another_is_there(copy: Copy) -> None:
    pool = copy.parts[WORKERS].Workers("explored")
    wanted: list[str] = []
    pool._grow = lambda: wanted.append("another")

    def is_idle() -> None:
        pool._staff.add(threading.current_thread())
        pool._leaves()

    def waits() -> None:
        pool._staff.add(threading.current_thread())
        pool.begin_wait(None)

    threads = [spawn(is_idle), spawn(waits)]
    for thread in threads:
        thread.join()

    assert len(pool._staff) > len(pool._blocked) or wanted


@in_every_order(
    f"{LIFE} {LEDGER}",
    heavy=True,
    a_cancellation_that_only_leaves_a_note=Edit(
        LIFE,
        "            ledger.cancelled_early[task] = args\n",
        "            ledger.cancelled_early[task] = args\n            return True\n",
    ),
    a_note_that_is_left_after_the_loop_was_told=(
        Edit(LIFE, "            ledger.cancelled_early[task] = args\n", "            pass\n"),
        Edit(
            LIFE,
            "        if self.inbox.put(partial(ledger.cancel, task, msg)):\n",
            "        told = self.inbox.put(partial(ledger.cancel, task, msg))\n        ledger.cancelled_early[task] = args\n"
            "        if told:\n",
        ),
    ),
)
def test_a_cancellation_reaches_the_work_before_its_start_in_it_and_after_it(copy: Copy) -> None:
    with served(copy) as it:
        task = it.runtime.go(for_ever())
        asked: list[bool] = []

        thread = spawn(lambda: asked.append(task.cancel()))
        thread.join()
        with unexplored():
            left = concurrent.futures.wait([task], timeout=5).not_done
            noted = list(it.runtime._life.ledger.cancelled_early)
            for other in left:
                other.cancel()

        assert asked == [True]
        assert not left
        assert task.cancelled()
        assert noted == []


@in_every_order(
    GROUPS,
    heavy=True,
    an_end_that_looks_before_it_takes_the_lock=Edit(
        GROUPS,
        "            with self._lock:\n                if not self._unfinished:",
        "            empty = not self._unfinished\n            with self._lock:\n                if empty:",
    ),
    a_submission_without_a_ticket=Edit(
        GROUPS,
        "                    self._unfinished[ticket] = None\n",
        "                    pass\n",
    ),
)
def test_what_is_started_while_a_group_ends_is_done_or_refused(copy: Copy) -> None:
    with served(copy) as it:
        group = copy.omniloop.TaskGroup(runtime=it.runtime)
        over: list[str] = []
        late: list[bool] = []

        async def work() -> None:
            await asyncio.sleep(0)
            late.append(bool(over))

        def start() -> None:
            try:
                group.go(work())
            except copy.omniloop.ClosedError:
                pass

        def end() -> None:
            group.__exit__(None, None, None)
            over.append("the block has ended")

        with unexplored():
            group.__enter__()
        threads = [spawn(start), spawn(end)]
        for thread in threads:
            thread.join()
        with unexplored():
            it.runtime.flush()

        assert late in ([], [False])


@in_every_order(
    GROUPS,
    heavy=True,
    a_submission_that_does_not_look_again_for_a_cancellation=Edit(
        GROUPS,
        "            if refuses:\n                # In between, by another thread.\n                task.cancel()\n",
        "",
    ),
)
def test_what_is_started_while_a_group_is_cancelled_is_cancelled_or_refused(copy: Copy) -> None:
    with served(copy) as it:
        group = copy.omniloop.TaskGroup(runtime=it.runtime)

        tasks: list[Any] = []

        def start() -> None:
            try:
                tasks.append(group.go(for_ever()))
            except copy.omniloop.ClosedError:
                pass

        with unexplored():
            group.__enter__()
        threads = [spawn(start), spawn(group.cancel)]
        for thread in threads:
            thread.join()
        with unexplored():
            left = concurrent.futures.wait(tasks, timeout=5).not_done
            for task in left:
                task.cancel()
            group.__exit__(None, None, None)
        assert not left


@in_every_order(
    ADMISSION,
    a_wait_for_room_that_does_not_look_again=Edit(
        ADMISSION,
        "                self._queue.append((task, gate))\n                self._seat()\n",
        "                self._queue.append((task, gate))\n",
    ),
)
def test_who_waits_for_room_gets_it_when_there_is_some(copy: Copy) -> None:
    bounds = copy.parts[ADMISSION].Admission()
    bounds.resize(1)
    assert bounds.admit("first", Patient(), "block")

    def take_a_place() -> None:
        assert bounds.admit("second", Patient(), "block")
        assert list(bounds._places) == ["second"]
        bounds.leave("second")

    threads = [spawn(take_a_place), spawn(bounds.leave, "first")]
    for thread in threads:
        thread.join()

    assert not bounds._places


class Patient:
    """A life that lets everybody wait."""

    workers = types.SimpleNamespace(is_worker=lambda: False)

    def wait(self, task: Any, wait_here: Any, timeout: float | None) -> bool:
        return bool(wait_here(-1))


class Client:
    """Counts who uses it when it is closed."""

    def __init__(self) -> None:
        self.open = True
        self.used_when_closed = False

    async def use(self) -> str:
        await asyncio.sleep(0)
        self.used_when_closed |= not self.open
        return "used"

    async def aclose(self) -> None:
        self.open = False


@in_every_order(
    RESOURCE,
    heavy=True,
    a_closing_that_does_not_wait_for_users=Edit(
        RESOURCE, "while users := client.users - {but}:", "while users := set():"
    ),
)
def test_a_resource_is_used_while_it_is_open_or_refuses(copy: Copy) -> None:
    with served(copy) as it:
        clients: list[Client] = []

        def make() -> Client:
            clients.append(Client())
            return clients[-1]

        resource = copy.omniloop.resource(make, runtime=it.runtime)
        came: list[str] = []

        def use() -> None:
            try:
                came.append(resource.run(lambda client: client.use()))
            except copy.omniloop.ClosedError:
                came.append("refused")

        threads = [spawn(use), spawn(resource.close)]
        for thread in threads:
            thread.join()

        assert came in (["used"], ["refused"])
        assert len(clients) == came.count("used")
        assert not any(client.open or client.used_when_closed for client in clients)


@in_every_order(
    FORK,
    a_thread_that_goes_on_while_another_catches_up=Edit(
        FORK, "    with _catching_up.setdefault(pid, Guard()):\n", "    if True:\n"
    ),
)
def test_threads_that_notice_a_fork_at_once_catch_up_once_and_before_they_go_on(copy: Copy) -> None:
    fork = copy.parts[FORK]
    begun: list[str] = []
    found: list[int] = []

    class Watched:
        def _after_fork_in_child(self) -> None:
            begun.append("afresh")

    def notice() -> None:
        fork.notice_fork()
        found.append(len(begun))

    with unexplored():
        fork.watched.add(Watched())
        # As the child of a fork that called no hooks finds it.
        fork.same_process[0] = 0
        fork._pid = -1

    threads = [spawn(notice) for _ in range(2)]
    for thread in threads:
        thread.join()
    with unexplored():
        fork.watched.clear()

    assert found == [1, 1]
