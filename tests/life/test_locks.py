"""`omniloop._threads`: whatever interrupts a caller's thread, and wherever, no lock stays taken."""

import signal

import pytest

from children import run_child

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")

# For a busy machine.
LONG = 60.0


def interrupted_locks():
    import random
    import signal
    from threading import RLock

    from omniloop._threads import Guard, holding

    class Interrupted(BaseException): ...

    def interrupt(*_):
        raise Interrupted

    signal.signal(signal.SIGALRM, interrupt)
    left = [0, 0]
    for _ in range(200):
        for at, lock in enumerate((Guard(), RLock())):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-4))
                while True:
                    with holding(lock) if at else lock:
                        pass
            except Interrupted:
                pass
            left[at] += lock._is_owned()
    print(*left, flush=True)


def test_an_interruption_finds_the_lock_free_or_in_the_block():
    # Of a plain RLock 3.14 leaves half of them taken.
    assert run_child(interrupted_locks, timeout=LONG).stdout == "0 0\n"


def test_a_guard_is_a_re_entrant_lock():
    from omniloop._threads import Guard

    lock = Guard()
    with lock:
        with lock:
            assert lock._is_owned()
        assert lock._is_owned()
    assert not lock._is_owned()
    with pytest.raises(LookupError), lock:
        raise LookupError
    assert not lock._is_owned()


def interrupted_waits():
    import random
    import signal
    import warnings

    import omniloop

    warnings.simplefilter("ignore")

    class Interrupted(BaseException): ...

    def interrupt(*_):
        raise Interrupted

    async def nothing(): ...

    omniloop.run(nothing())
    signal.signal(signal.SIGALRM, interrupt)
    for _ in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-4))
            while True:
                omniloop.go(nothing()).result()
        except Interrupted:
            pass
    omniloop.go(nothing()).result(timeout=30)
    print("alive", flush=True)


@pytest.mark.promise(
    "A wait that is interrupted, at whatever point, stops neither the loop nor anybody else's wait", section="Waiting"
)
def test_the_loop_goes_on_wherever_a_wait_is_interrupted():
    result = run_child(interrupted_waits, timeout=LONG)

    assert result.stdout == "alive\n", result.stderr
    assert result.code == 0, result.stderr


def interrupted_flushes():
    import asyncio
    import random
    import signal
    import time

    import omniloop

    class Interrupted(BaseException): ...

    def interrupt(*_):
        raise Interrupted

    async def nothing(): ...

    def flush():
        # An end to it, because what is raised in a finaliser is lost.
        until = time.monotonic() + 0.01
        while time.monotonic() < until:
            try:
                omniloop.flush(0)
            except omniloop.WaitTimeoutError:
                pass

    lasting = omniloop.go(asyncio.sleep(600))
    signal.signal(signal.SIGALRM, interrupt)
    for _ in range(3000):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-4))
            # A function: a jump back of a loop that stands here may be no part of this block (3.13).
            flush()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            pass
    omniloop.go(nothing()).result(timeout=20)
    lasting.cancel()
    print("alive", flush=True)


@pytest.mark.promise(
    "A `flush()` or `shutdown()` that is interrupted, at whatever point, does not block the loop", section="Waiting"
)
def test_the_loop_goes_on_wherever_a_request_to_it_is_interrupted():
    """On 3.14 an interruption left the lock of the request taken, and the loop waited for it without end."""
    result = run_child(interrupted_flushes, timeout=LONG)

    assert result.stdout == "alive\n", result.stderr
    assert result.code == 0, result.stderr


def interrupted_shutdowns():
    import sys
    import threading

    import omniloop

    class Interrupted(BaseException): ...

    runtime = omniloop.Runtime()
    runtime.shutdown()
    left = [0]

    def trace(frame, event, arg):
        # Where the function that has acquired the lock returns to the one that is to note it.
        if not frame.f_code.co_filename.endswith("_threads.py"):
            return None
        if event == "return":
            left[0] -= 1
            if not left[0]:
                raise Interrupted
        return trace

    for interrupted in range(1, 12):
        left[0] = interrupted
        sys.settrace(trace)
        try:
            runtime.shutdown(None)
        except Interrupted:
            pass
        finally:
            sys.settrace(None)
        other = threading.Thread(target=runtime.shutdown, args=(None,), daemon=True)
        other.start()
        other.join(10)
        if other.is_alive():
            break
    else:
        # Interrupted at each of them, and then at none.
        print("ended" if left[0] > 0 else "too few", flush=True)


@pytest.mark.promise(
    "A `shutdown()` that is interrupted while it begins does not make that of another thread wait for ever",
    section="Waiting",
)
def test_another_shutdown_does_not_wait_for_one_that_was_interrupted():
    result = run_child(interrupted_shutdowns, timeout=LONG)

    assert result.stdout == "ended\n", result.stderr
    assert result.code == 0, result.stderr
