"""However much is poured in, the loop keeps turning: its timers and sockets wait for a batch, and a batch is bounded in time."""

import asyncio
import gc
import socket
import statistics
import threading
import time

import pytest

from omniloop import Runtime

POURED = 200_000

# Seconds that the loop's thread has itself computed until the timer or the answer came: how long it then waits for a core, or for
# its turn among the interpreter's threads, is not the loop's doing. A batch is 2 ms; a loop that began with all that was poured in
# would be late by all of it, half a second and more.
LATE_MOSTLY = 0.02
LATE_EVER = 0.2

pytestmark = pytest.mark.alone


async def noop():
    pass


@pytest.fixture(autouse=True)
def _no_collections():
    """A full collection looks at all that was poured in, for 0.2 s: a pause of the interpreter's, and not what is asked here."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def pouring():
    """A runtime, and the thread that will pour."""
    with Runtime(name="poured into") as runtime:
        runtime.run(noop())

        def pour():
            for _ in range(POURED):
                runtime.go(noop())

        yield runtime, threading.Thread(target=pour)


@pytest.mark.promise("While a thread pours in 200,000 coroutines, a timer on the loop is in time")
def test_a_timer_is_in_time_while_a_thread_pours_in_coroutines(pouring):
    runtime, thread = pouring
    late = []
    done = threading.Event()

    async def tick():
        while not done.is_set():
            begun = time.thread_time()
            await asyncio.sleep(0.002)
            late.append(time.thread_time() - begun)

    ticker = runtime.go(tick())
    thread.start()
    thread.join()
    done.set()
    ticker.result(timeout=20)

    assert statistics.median(late) < LATE_MOSTLY
    assert max(late) < LATE_EVER


@pytest.mark.promise("So is the answer of an echo server")
@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="reads another thread's clock")
def test_an_echo_server_answers_while_a_thread_pours_in_coroutines(pouring):
    runtime, thread = pouring
    late, read = [], []

    async def echo(reader, writer):
        while data := await reader.read(100):
            read.append(time.thread_time())
            writer.write(data)
        writer.close()

    clock = runtime.call_soon(lambda: time.pthread_getcpuclockid(threading.get_ident())).result()
    server = runtime.run(asyncio.start_server(echo, "127.0.0.1", 0))
    with socket.create_connection(server.sockets[0].getsockname(), timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread.start()
        while thread.is_alive():
            begun = time.clock_gettime(clock)
            client.sendall(b"ping")
            assert client.recv(100) == b"ping"
            late.append(read[-1] - begun)
    runtime.call_soon(server.close).result(timeout=5)
    runtime.run(server.wait_closed())

    assert statistics.median(late) < LATE_MOSTLY
    # This thread, too, waits for its turn: now and then between the look at the clock and the question.
    assert statistics.quantiles(late, n=10)[-1] < LATE_EVER


@pytest.mark.promise(
    "What is submitted keeps the loop from the rest for a bounded time, and not for a bounded count; where coroutines do not start eagerly, up to Python 3.11, for at most 64 first steps until the loop has seen how long they take"
)
@pytest.mark.parametrize("kind", ["functions", "coroutines"])
def test_a_batch_is_bounded_in_time_and_not_in_count(runtime, kind):
    """A hundred items of a millisecond each: the loop goes round after every second or third of them, once it has seen the first."""
    turns = []
    loop = runtime.call_soon(asyncio.get_running_loop).result()
    begin, ended = threading.Event(), threading.Event()

    def turn():
        turns.append(time.thread_time())
        if not ended.is_set():
            loop.call_soon(turn)

    def spin():
        until = time.thread_time() + 0.001
        while time.thread_time() < until:
            pass

    async def spin_first():
        spin()

    # All of it is in the inbox before the loop comes to the first.
    runtime.call_soon(begin.wait)
    runtime.call_soon(turn)
    for _ in range(100):
        if kind == "functions":
            runtime.call_soon(spin)
        else:
            runtime.go(spin_first())
    runtime.call_soon(ended.set)
    for _ in range(10):
        # Of spare wake-ups each had a batch of its own in every turn.
        runtime._life.inbox.wake_reader()
    begin.set()
    runtime.flush()

    assert len(turns) > 20
    assert max(later - sooner for sooner, later in zip(turns, turns[1:])) < LATE_EVER
