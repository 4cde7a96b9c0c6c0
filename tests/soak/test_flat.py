"""
Everything at once, for a long time: memory, descriptors, threads and objects stay as they are.

By slope, and not by two points: after each of some forty rounds all is at rest and counted, and the line through the last two thirds of the
counts may not rise by more than a fiftieth. `OMNILOOP_SOAK_SECONDS` says how long it goes on (5 by default). The slopes are judged from a
minute on, and that of resident memory from ten: until then it is modules, pools and the allocator that settle.
"""

import asyncio
import collections
import contextlib
import contextvars
import gc
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time

import pytest

import omniloop
from children import run_child

SECONDS = float(os.environ.get("OMNILOOP_SOAK_SECONDS", "5"))

# Seconds, from which on counts are judged, and resident memory.
SETTLED, LONG = 60, 600


def rise(values):
    """How far the line through *values* rises from the first to the last, as a part of their mean; the slope is the median of all pairs'."""
    points = list(enumerate(values))
    slope = statistics.median((b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(points, 2))
    return slope * (len(values) - 1) / statistics.mean(values)


@pytest.mark.promise(
    "However long everything goes on at once, with forks, processes and several loops, memory, descriptors, threads and objects stay as they are",
    section="At exit",
)
@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_nothing_grows_while_everything_goes_on_at_once():
    seconds, rounds = SECONDS, 40

    def program():
        async def yields(times=1):
            for _ in range(times):
                await asyncio.sleep(0)
            return times

        async def fails():
            await asyncio.sleep(0)
            raise LookupError("on purpose")

        async def never():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)

        async def counts():
            for number in range(20):
                yield number
                await asyncio.sleep(0)

        at = contextvars.ContextVar("at", default=0)

        @contextlib.asynccontextmanager
        async def sets():
            token = at.set(at.get() + 1)
            try:
                yield at.get()
            finally:
                at.reset(token)

        async def echo(reader, writer):
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        @contextlib.asynccontextmanager
        async def served():
            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            async with server:
                yield server.sockets[0].getsockname()[1]

        async def asks(port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"hello\n")
            answer = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return answer

        async def a_process():
            process = await asyncio.create_subprocess_exec("true")
            return await process.wait()

        # uvloop runs its own fork handler in the child of a fork that another thread makes while it starts a process: on 3.14
        # that child dies in `os.fork` ("PyMutex_Unlock: unlocking mutex that is not locked"), without omniloop as well.
        spawning = threading.Lock()

        class Client:
            def __init__(self):
                self.calls = 0

            async def get(self, number):
                self.calls += 1
                await asyncio.sleep(0)
                return number

            async def pages(self):
                for number in range(3):
                    yield number

            async def __aenter__(self):
                return self

            async def __aexit__(self, *error):
                await asyncio.sleep(0)

        SyncClient = omniloop.blocking(Client)

        reported = itertools.count()
        settings = {"on_error": lambda failure: next(reported), "cancel_timeout": 20, "slow_callback": None}
        omniloop.configure(**settings)
        runtimes = [omniloop.shared_runtime()]
        try:
            import uvloop
        except ImportError:
            pass
        else:
            runtimes.append(omniloop.Runtime(name="uvloop", loop_factory=uvloop.new_event_loop, **settings))
        servers = {runtime: omniloop.resource(served, runtime=runtime) for runtime in runtimes}

        @omniloop.background
        async def in_background(number):
            return await yields(number)

        @omniloop.background
        def in_a_thread(number):
            return number

        from omniloop.ext.outbox import Outbox

        folder = tempfile.TemporaryDirectory()
        outbox = Outbox(os.path.join(folder.name, "jobs.sqlite"))

        @omniloop.background(broker=outbox)
        async def kept(number):
            await asyncio.sleep(0)
            return number

        def forgets(runtime, rng):
            for _ in range(rng.randrange(200)):
                runtime.go(yields(rng.randrange(3)))
            runtime.go(fails())
            runtime.call_soon(int)

        def waits(runtime, rng):
            assert runtime.run(yields(3)) == 3
            with contextlib.suppress(LookupError):
                runtime.run(fails())

        def times_out(runtime, rng):
            with contextlib.suppress(omniloop.TaskTimeoutError):
                runtime.run(never(), timeout=0.002)
            with contextlib.suppress(TimeoutError):
                runtime.go(never(), timeout=0.002).result()

        def cancels(runtime, rng):
            tasks = [runtime.go(never()) for _ in range(20)]
            for task in tasks:
                task.cancel()

        def groups(runtime, rng):
            with omniloop.TaskGroup(limit=4, runtime=runtime) as group:
                for _ in range(20):
                    group.go(yields(2))
            with contextlib.suppress(BaseExceptionGroup), omniloop.TaskGroup(runtime=runtime) as group:
                group.go(never())
                group.go(fails())

        def iterates(runtime, rng):
            for number in omniloop.iterate(counts(), runtime=runtime):
                if number == rng.randrange(20):
                    break

        def enters(runtime, rng):
            with omniloop.enter(sets(), runtime=runtime) as depth, omniloop.enter(sets(), runtime=runtime) as deeper:
                assert deeper == depth + 1

        def uses_a_resource(runtime, rng):
            assert servers[runtime].run(asks, timeout=30) == b"hello\n"

        def maps(runtime, rng):
            assert sorted(omniloop.map(yields, range(20), limit=5, ordered=False, runtime=runtime)) == [*range(20)]

        def in_the_background(runtime, rng):
            assert in_background(2).result() == 2
            assert in_a_thread(3).result() == 3

        def a_twin(runtime, rng):
            with SyncClient() as client:
                assert client.get(3) == 3
                assert [*client.pages()] == [0, 1, 2]

        def a_queue(runtime, rng):
            jobs = omniloop.queue(5, runtime=runtime)

            async def takes():
                return [await jobs.async_q.get() for _ in range(20)]

            task = runtime.go(takes())
            for number in range(20):
                jobs.sync_q.put(number)
            assert task.result() == [*range(20)]
            jobs.close()

        def every(runtime, rng):
            turned = threading.Event()
            handle = runtime.every(0.001, turned.set)
            assert turned.wait(30)
            handle.cancel()
            runtime.call_later(1000, int).cancel()
            assert runtime.call_later(0.001, int).result() == 0

        def threads(runtime, rng):
            assert [task.result() for task in [runtime.to_thread(int, number) for number in range(10)]] == [*range(10)]

        def processes(runtime, rng):
            if rng.random() < 0.05:
                with spawning:
                    runtime.run(a_process())
            if runtime is runtimes[0] and rng.random() < 0.3:
                assert omniloop.to_process(pow, 2, 10).result() == 1024
                if rng.random() < 0.05:
                    omniloop.to_process(time.sleep, 100).cancel()

        def an_outbox(runtime, rng):
            assert kept(4).result(timeout=60) == 4

        def another_loop(runtime, rng):
            async def awaits():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(runtime.go(never()), 0.001)
                return await runtime.go(yields(2))

            assert asyncio.run(awaits()) == 2

        def a_runtime(runtime, rng):
            if rng.random() < 0.1:
                with omniloop.Runtime(name="own", **settings) as own:
                    own.go(yields())
                    assert own.run(yields(2)) == 2

        acts = [
            forgets,
            waits,
            times_out,
            cancels,
            groups,
            iterates,
            enters,
            uses_a_resource,
            maps,
            in_the_background,
            a_twin,
            a_queue,
            every,
            threads,
            processes,
            an_outbox,
            another_loop,
            a_runtime,
        ]
        problems = []
        done = dict.fromkeys((act.__name__ for act in acts), 0)

        def goes_on(number, until):
            rng = random.Random(f"{number}/{until}")
            try:
                while time.monotonic() < until:
                    act = rng.choice(acts)
                    act(rng.choice(runtimes), rng)
                    done[act.__name__] += 1
            except BaseException as error:
                problems.append(error)
                raise

        def forks():
            with spawning:
                pid = os.fork()
            if not pid:
                code = 1
                try:
                    code = 0 if all(runtime.run(yields(2), timeout=30) == 2 for runtime in runtimes) else 2
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code:
                problems.append(f"a child ended with {code}")

        def look():
            for runtime in runtimes:
                runtime.flush(60)
            for _ in range(3):
                gc.collect()
            with open("/proc/self/statm") as file:
                pages = int(file.read().split()[1])
            return {
                "memory": pages * os.sysconf("SC_PAGESIZE"),
                "descriptors": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
                "objects": len(gc.get_objects()),
                "blocks": sys.getallocatedblocks(),
            }

        looks, forked, next_fork = [], 0, time.monotonic()
        kinds = []
        began = time.monotonic()
        for number in range(rounds):
            until = began + seconds * (number + 1) / rounds
            workers = [threading.Thread(target=goes_on, args=(worker, until)) for worker in range(4)]
            for worker in workers:
                worker.start()
            if time.monotonic() >= next_fork:
                next_fork += 60
                forks()
                forked += 1
            for worker in workers:
                worker.join()
            del workers
            looks.append(look())
            if problems:
                break
            if number in (rounds // 3, rounds - 1):
                kinds.append(collections.Counter(type(thing).__qualname__ for thing in gc.get_objects()))
            if number % 10 == 9:
                omniloop.shutdown(60)
        for runtime in runtimes:
            runtime.shutdown(60)
        more = (kinds[1] - kinds[0]).most_common(10) if len(kinds) == 2 else []
        print(json.dumps([looks, more, done, forked, next(reported)]), file=sys.stderr)
        assert not problems, problems
        print("over")

    result = run_child(
        program,
        flags=["-W", "ignore::DeprecationWarning"],
        timeout=SECONDS + 110,
    )

    assert (result.stdout, result.code) == ("over\n", 0), result.stderr
    looks, more, done, forked, reported = json.loads(result.stderr.splitlines()[-1])
    settled = looks[len(looks) // 3 :]
    rises = {what: rise([look[what] for look in settled]) for what in settled[0]}
    print(f"{SECONDS:g} s, {forked} forks, {reported} failures reported; {done}")
    for what, by in rises.items():
        print(f"{what}: {by:+.2%} by slope, {[look[what] for look in looks]}")
    print(f"more objects of these: {more}")
    assert all(done.values()), done
    assert reported > 0
    if SECONDS < LONG:
        del rises["memory"]
    if SECONDS < SETTLED:
        rises.clear()
    assert all(by <= 0.02 for by in rises.values()), (rises, looks)
