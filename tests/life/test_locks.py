"""`omniloop._locks`: whatever interrupts a caller's thread, and wherever, no lock stays taken."""

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

    from omniloop._clock import holding
    from omniloop._locks import Guard

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
    from omniloop._locks import Guard

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
