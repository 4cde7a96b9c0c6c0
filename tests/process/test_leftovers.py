"""What work leaves on the loop by asyncio's own means is held, and the end waits for it: in child interpreters, as the programs of newcomers are."""

import asyncio
import contextlib
import gc
import os
import re
import sys
import threading
import time
import weakref

import pytest

import omniloop
from children import run_child
from omniloop import aiterate, go, run

UVLOOP = os.environ.get("OMNILOOP_LOOP") == "uvloop"


@pytest.mark.promise("A task that work leaves on the loop is done when the program has ended", section="At exit")
@pytest.mark.parametrize("make", ["create_task", "ensure_future", "TaskGroup", "one that starts another"])
@pytest.mark.parametrize("factory", ["no factory", "the user's factory"])
def test_a_task_that_work_leaves_on_the_loop_is_done_when_the_program_has_ended(make, factory):
    """It was cancelled without a word: the first program of whoever puts `omniloop.run` in the place of `asyncio.run`."""

    def program():
        async def child(name):
            await asyncio.sleep(0.3)
            print(name, "done")

        async def starts_another():
            await asyncio.sleep(0.05)
            asyncio.create_task(child("the other"))

        async def group():
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child("one of a group"))

        async def main():
            if factory != "no factory":
                loop = asyncio.get_running_loop()
                loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options))
            match make:
                case "create_task":
                    asyncio.create_task(child("task"))
                case "ensure_future":
                    asyncio.ensure_future(child("future"))
                case "TaskGroup":
                    asyncio.create_task(group())
                case _:
                    asyncio.create_task(starts_another())
            print("main done")

        run(main())

    result = run_child(program)

    assert (result.stderr, result.code) == ("", 0)
    first, second = result.stdout.splitlines()
    assert first == "main done" and second.endswith(" done")


@pytest.mark.promise("Also one of three seconds, and a garbage collection at any moment loses none")
def test_a_task_of_three_seconds_is_done_and_held():
    def program():
        async def child():
            future = asyncio.get_running_loop().create_future()
            reference = weakref.ref(asyncio.current_task())
            asyncio.create_task(wakes(weakref.ref(future), reference))
            # This task and the future refer to each other, and nobody else to them, but the loop.
            await future
            print("woken")

        async def wakes(future, task):
            await asyncio.sleep(0.1)
            gc.collect()
            print("alive", task() is not None)
            await asyncio.sleep(2.9)
            future().set_result(None)

        async def main():
            asyncio.create_task(child())

        run(main())

    result = run_child(program)

    assert result[:3] == ("alive True\nwoken\n", "", 0)
    assert result.seconds > 3


@pytest.mark.promise(
    "Also one whose items, or whose manager, come from elsewhere: from a generator, a twin, or a thread"
)
@pytest.mark.parametrize("source", ["a generator", "a twin's generator", "a twin's manager", "aiterate"])
def test_a_task_that_waits_for_an_item_from_elsewhere_is_done(source):
    """After half a second it was given up, and that was said of none but the generator."""

    def program():
        async def numbers():
            for number in range(2):
                await asyncio.sleep(0.8)
                yield number

        def blocks():
            for number in range(2):
                time.sleep(0.8)
                yield number

        class Manager:
            async def __aenter__(self):
                await anext(numbers())

            async def __aexit__(self, *_):
                await asyncio.sleep(0.8)

        async def child():
            if source == "a twin's manager":
                async with omniloop.blocking(Manager)():
                    pass
            else:
                twin = omniloop.blocking(numbers).aio
                make = {"a generator": numbers, "a twin's generator": twin, "aiterate": lambda: aiterate(blocks())}
                assert [item async for item in make[source]()] == [0, 1]
            print("done")

        async def main():
            asyncio.create_task(child())

        run(main())

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("done\n", "", 0)


@pytest.mark.promise(
    "A source of `aiterate` that blocks a task which was left is waited for as any, and the task is named"
)
def test_a_task_whose_source_blocks_is_named():
    def program():
        omniloop.configure(leftover_timeout=1)

        def blocks():
            threading.Event().wait()
            yield

        async def child():
            async for _ in aiterate(blocks()):
                pass

        async def main():
            asyncio.create_task(child())

        run(main())

    result = run_child(program, remarks=True)

    assert (result.stdout, result.code) == ("", 0)
    assert "1 left on the loop when their time was over, and cancelled:" in result.stderr
    assert "child" in result.stderr


@pytest.mark.promise(
    "The logging worker of a library finishes its queue, and a reader that never ends costs half a second"
)
def test_a_worker_finishes_its_queue_and_a_reader_that_never_ends_costs_half_a_second():
    def program():
        omniloop.configure(leftover_timeout=20)

        async def main():
            queue = asyncio.Queue()

            async def worker():
                while True:
                    record = await queue.get()
                    # What it waits for is known to nobody.
                    sent = asyncio.Event()
                    asyncio.get_running_loop().call_later(0.1, sent.set)
                    await sent.wait()
                    print("sent", record)

            asyncio.create_task(worker())
            asyncio.create_task(asyncio.Event().wait())
            for number in range(4):
                queue.put_nowait(number)

        run(main())

    result = run_child(program, remarks=True)

    assert (result.stdout, result.code) == ("sent 0\nsent 1\nsent 2\nsent 3\n", 0)
    # The reader was waited for in vain. The worker, at an empty queue, has done all that it was given.
    assert "1 left on the loop when their time was over, and cancelled:" in result.stderr
    assert "worker" not in result.stderr
    assert result.seconds < 10


@pytest.mark.promise("A task that is older than `leftover_timeout` is not waited for, and not named")
def test_an_old_one_is_not_waited_for():
    def program():
        omniloop.configure(leftover_timeout=0.2)

        async def main():
            asyncio.create_task(asyncio.sleep(60))
            asyncio.create_task(asyncio.Event().wait())
            await asyncio.sleep(0.4)

        run(main())
        print("end")

    result = run_child(program)

    assert result[:3] == ("end\n", "", 0)


@pytest.mark.promise("What does not end within `leftover_timeout` is cancelled and named, once")
@pytest.mark.parametrize("chain", ["create_task", "go", "to_thread", "awaits go"])
def test_a_chain_without_end_ends_with_its_time(chain):
    def program():
        omniloop.configure(leftover_timeout=0.5)

        def blocking():
            time.sleep(0.02)

        async def link():
            while True:
                await asyncio.sleep(0.02)
                match chain:
                    case "create_task":
                        asyncio.create_task(link())
                        return
                    case "go":
                        go(asyncio.sleep(0.02))
                    case "to_thread":
                        await omniloop.to_thread(blocking)
                    case _:
                        await go(asyncio.sleep(0.02))

        async def main():
            asyncio.create_task(link())

        run(main())
        print("end")

    result = run_child(program)

    assert (result.stdout, result.code) == ("end\n", 0)
    assert re.search(r"[1-9] left on the loop when their time was over, and cancelled:", result.stderr)
    assert result.stderr.count("cancelled:") == 1
    assert "the time for draining was over" not in result.stderr
    # Not without end; a busy machine takes some seconds to come and go.
    assert result.seconds < 20


@pytest.mark.promise("A chain of them that ends is done to its last")
@pytest.mark.parametrize("chain", ["create_task", "go", "to_thread"])
def test_a_chain_that_ends_is_done(chain):
    def program():
        async def link(number):
            await asyncio.sleep(0.03)
            if number == 10:
                print("the last")
                return
            match chain:
                case "create_task":
                    asyncio.create_task(link(number + 1))
                case "go":
                    go(work(number))
                case _:
                    await omniloop.to_thread(time.sleep, 0.01)
                    asyncio.create_task(link(number + 1))

        async def work(number):
            asyncio.create_task(link(number + 1))

        async def main():
            asyncio.create_task(link(0))

        run(main())

    result = run_child(program)

    assert result[:3] == ("the last\n", "", 0)


@pytest.mark.promise("What a daemon, a turn of `every` or a resource's opening makes is no leftover")
@pytest.mark.parametrize("maker", ["daemon", "every", "resource"])
def test_what_daemons_and_resources_make_is_no_leftover(maker):
    def program():
        omniloop.configure(leftover_timeout=20)
        made = threading.Event()

        async def makes():
            asyncio.create_task(asyncio.sleep(15))
            made.set()
            return Client()

        class Client:
            async def aclose(self):
                pass

        async def forever():
            await makes()
            await asyncio.Event().wait()

        match maker:
            case "daemon":
                go(forever(), daemon=True)
            case "every":
                ticking = omniloop.every(0.01, makes)
            case _:
                client = omniloop.resource(makes)
                client.run(lambda client: asyncio.sleep(0))
        made.wait(5)
        print("end")

    result = run_child(program)

    assert result[:3] == ("end\n", "", 0)
    assert result.seconds < 10


@pytest.mark.promise("What a source leaves that is iterated over, and a manager that is entered, is waited for")
@pytest.mark.parametrize("way", ["iterate", "enter", "twin's for", "twin's async for", "twin's async with"])
def test_what_an_iteration_and_a_manager_leave_is_done(way):
    """They end as daemons do, and what they left was taken for a daemon's: the log of a stream was lost."""

    def program():
        async def log():
            await asyncio.sleep(0.3)
            print("logged")

        @omniloop.blocking
        class Stream:
            async def __aiter__(self):
                asyncio.create_task(log())
                yield "item"

            async def __aenter__(self):
                asyncio.create_task(log())

            async def __aexit__(self, *error):
                pass

            async def items(self):
                asyncio.create_task(log())
                yield "item"

        async def items():
            asyncio.create_task(log())
            yield "item"

        @contextlib.asynccontextmanager
        async def manager():
            asyncio.create_task(log())
            yield

        async def all_of(items):
            return [item async for item in items]

        async def enter(manager):
            async with manager:
                pass

        match way:
            case "iterate":
                list(omniloop.iterate(items()))
            case "enter":
                with omniloop.enter(manager()):
                    pass
            case "twin's for":
                list(Stream().items())
            case "twin's async for":
                asyncio.run(all_of(Stream().items.aio()))
            case _:
                asyncio.run(enter(Stream()))

    result = run_child(program)

    assert result[:3] == ("logged\n", "", 0)


@pytest.mark.promise("An `exit_timeout` below it is kept")
def test_an_exit_timeout_below_it_is_kept():
    def program():
        omniloop.configure(exit_timeout=0.3, cancel_timeout=0.2, leftover_timeout=20)

        async def main():
            asyncio.create_task(asyncio.sleep(15))

        run(main())

    result = run_child(program)

    assert (result.stdout, result.code) == ("", 0)
    assert "1 left on the loop when their time was over, and cancelled:" in result.stderr
    assert result.seconds < 10


@pytest.mark.promise("A hundred thousand of them are waited for as one is")
def test_a_hundred_thousand_are_waited_for():
    def program():
        done = 0

        async def child():
            nonlocal done
            await asyncio.sleep(1)
            done += 1

        async def main():
            for _ in range(100_000):
                asyncio.create_task(child())

        class End:
            # Where imports are lazy, `os` could not be imported any more.
            def __del__(self, write=os.write):
                write(1, f"{done}\n".encode())

        sys.modules["at the end"] = End()
        omniloop.configure(slow_callback=None)
        run(main())

    result = run_child(program, timeout=60)

    assert result[:3] == ("100000\n", "", 0)


@pytest.mark.promise("A client that was opened a moment before the end costs it half a second")
def test_a_stream_left_open_costs_half_a_second():
    def program():
        omniloop.configure(leftover_timeout=20)

        async def main():
            async def serve(reader, writer):
                await reader.read()
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            kept.append((server, writer, asyncio.create_task(reader.read())))

        kept = []
        run(main())
        start = time.monotonic()
        omniloop.shutdown()
        print(time.monotonic() - start)

    result = run_child(program, remarks=True)

    assert result.code == 0
    assert 0.5 <= float(result.stdout) < 10


@pytest.mark.promise("What the tasks of unfinished work submit is waited for, however old they are")
@pytest.mark.parametrize("way", ["gather", "TaskGroup", "wait", "await"])
def test_the_tasks_of_unfinished_work_are_no_leftovers(way):
    """They were made by `create_task` too, and what they submitted past the time was cancelled with them."""

    def program():
        omniloop.configure(leftover_timeout=0.1)

        async def last():
            await asyncio.sleep(0.3)
            print("the last")

        async def child():
            await asyncio.sleep(0.5)
            go(last())

        async def work():
            match way:
                case "gather":
                    await asyncio.gather(child())
                case "TaskGroup":
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(child())
                case "wait":
                    await asyncio.wait([asyncio.create_task(child())])
                case _:
                    await asyncio.create_task(child())

        go(work())
        time.sleep(0.3)

    result = run_child(program)

    assert result[:3] == ("the last\n", "", 0)
