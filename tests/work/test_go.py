"""`go` takes work from anywhere, returns at once, and what it took is done; also if it was interrupted in the middle."""

import asyncio
import atexit
import contextlib
import gc
import itertools
import logging
import os
import signal
import sys
import threading
import time

import pytest

import omniloop
from children import run_child
from omniloop import ClosedError, Runtime, call_soon, flush, go

# Fewer of its calls can be seen, and so interrupted, than of asyncio's own loop.
ON_UVLOOP = os.environ.get("OMNILOOP_LOOP") == "uvloop"


async def where():
    await asyncio.sleep(0)
    return threading.get_ident()


# --- from where -------------------------------------------------------------------------------------------------------


def in_a_plain_thread(act):
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(timeout=5)


def in_another_running_loop(act):
    async def main():
        act()

    asyncio.run(main())


def in_another_running_uvloop(act):
    uvloop = pytest.importorskip("uvloop")

    async def main():
        act()

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def in_a_coroutine_on_the_own_loop(act):
    async def main():
        act()

    places_runtime.go(main()).result(timeout=5)


def in_a_callback_on_the_own_loop(act):
    places_runtime.call_soon(act).result(timeout=5)


def in_a_worker_thread(act):
    places_runtime.to_thread(act).result(timeout=5)


def in_a_done_callback(act):
    over = threading.Event()

    def callback(task):
        act()
        over.set()

    places_runtime.go(where()).add_done_callback(callback)
    assert over.wait(timeout=5)


def in_a_signal_handler(act):
    if not hasattr(signal, "raise_signal") or threading.current_thread() is not threading.main_thread():
        pytest.skip("signal handlers run in the main thread")
    before = signal.signal(signal.SIGINT, lambda number, frame: act())
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def in_a_finaliser(act):
    class Dropped:
        def __init__(self):
            self.myself = self

        def __del__(self):
            act()
            finalised.set()

    finalised = threading.Event()
    Dropped()
    gc.collect()
    # PyPy may be collecting in another thread already, and come to it a moment later.
    assert finalised.wait(5)


def in_a_logging_handler(act):
    class Submits(logging.Handler):
        def emit(self, record):
            act()

    logger = logging.getLogger("test_go")
    handler = Submits()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        logger.error("a record")
    finally:
        logger.removeHandler(handler)


PLACES = [
    in_a_plain_thread,
    in_another_running_loop,
    in_another_running_uvloop,
    in_a_coroutine_on_the_own_loop,
    in_a_callback_on_the_own_loop,
    in_a_worker_thread,
    in_a_done_callback,
    in_a_signal_handler,
    in_a_finaliser,
    in_a_logging_handler,
]

places_runtime: Runtime


@pytest.mark.promise(
    "Work is taken from anywhere: a plain thread, another loop (uvloop too), the own loop, a worker, a done callback, a signal handler, a finaliser, a logging handler"
)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_work_is_taken_from_anywhere_and_done_on_the_loops_thread(runtime, place):
    global places_runtime
    places_runtime = runtime
    taken = []

    place(lambda: taken.append(runtime.go(where())))

    (task,) = taken
    assert task.result(timeout=5) == runtime.call_soon(threading.get_ident).result(timeout=5)


@pytest.mark.promise("The very first submission may come from any of these places")
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_the_very_first_submission_may_come_from_anywhere(place):
    global places_runtime
    with Runtime(name="places") as places_runtime, Runtime(name="first") as first:
        taken = []

        place(lambda: taken.append(first.go(where())))

        assert taken.pop().result(timeout=5)


def test_an_atexit_handler_may_submit_whenever_it_was_registered():
    def program():
        async def work(what):
            await asyncio.sleep(0.01)
            print(what, "done", flush=True)

        def late(what):
            go(work(what))

        atexit.register(late, "before the import:")  # Runs after omniloop's own handler.
        from omniloop import go

        # Imported here, also where imports are lazy.
        go.__name__
        atexit.register(late, "after the import:")
        # 3.12.1 starts no thread any more at exit.
        go(work("in the main part:")).result()

    result = run_child(program)

    assert "after the import: done" in result.stdout
    # Runs last: refused with an error that says so, or done.
    assert "before the import: done" in result.stdout or "ClosedError" in result.stderr
    assert "never awaited" not in result.stderr


@pytest.mark.promise("`go` never runs the work inside the call")
def test_go_returns_before_the_work_has_begun_even_on_the_loops_own_thread(runtime):
    async def inner():
        order.append("inner")

    async def outer():
        task = runtime.go(inner())
        order.append("outer goes on")
        await task

    order = []
    runtime.go(outer()).result(timeout=5)

    assert order == ["outer goes on", "inner"]


def test_a_finalisers_work_does_not_run_in_the_middle_of_other_work(runtime):
    class Dropped:
        def __del__(self):
            tasks.append(runtime.go(note("the finaliser's")))

    async def note(what):
        order.append(what)

    async def work():
        order.append("begins")
        Dropped()
        order.append("ends")

    order, tasks = [], []
    runtime.go(work()).result(timeout=5)
    tasks[0].result(timeout=5)

    assert order == ["begins", "ends", "the finaliser's"]


@pytest.mark.alone
@pytest.mark.heavy
def test_work_may_start_work_that_starts_work_ten_thousand_deep(runtime):
    reached = threading.Event()

    async def nest(depth):
        if depth:
            runtime.go(nest(depth - 1))
        else:
            reached.set()

    runtime.go(nest(10_000))

    assert reached.wait(timeout=9)


def test_a_loop_that_gets_work_without_end_still_serves_its_timers(runtime):
    over = threading.Event()

    async def again():
        if not over.is_set():
            runtime.go(again())

    runtime.go(again())
    timer = runtime.call_later(0.01, over.set)

    timer.result(timeout=5)
    runtime.flush(timeout=5)


# --- what it takes ----------------------------------------------------------------------------------------------------


class Awaitable:
    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return "awaited"


def test_any_awaitable_is_taken(runtime):
    assert runtime.go(Awaitable()).result(timeout=5) == "awaited"
    assert runtime.go(runtime.go(Awaitable())).result(timeout=5) == "awaited"


def test_a_future_of_the_own_loop_is_taken(runtime):
    async def own():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, "of the own loop")
        return await runtime.go(future)

    assert runtime.go(own()).result(timeout=5) == "of the own loop"


@pytest.mark.parametrize("value", [None, False, ValueError("returned"), asyncio.CancelledError()], ids=repr)
def test_whatever_is_returned_is_the_result(runtime, value):
    async def work():
        await asyncio.sleep(0)
        return value

    assert runtime.go(work()).result(timeout=5) is value


def test_a_coroutine_that_is_returned_is_the_result_and_is_not_run(runtime):
    async def work():
        return inner

    inner = where()
    result = runtime.go(work()).result(timeout=5)

    assert result is inner
    result.close()


def test_a_thousand_submissions_from_each_of_eight_threads_all_run_once(runtime):
    async def work(number):
        if number % 3:
            await asyncio.sleep(0)
        done.append(number)

    def submit(start):
        for number in range(start, start + 1000):
            runtime.go(work(number))

    done = []
    threads = [threading.Thread(target=submit, args=(1000 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=9)
    runtime.flush(timeout=9)

    assert sorted(done) == list(range(8000))


# --- the task factory that the user set -------------------------------------------------------------------------------


def counting_factory(made):
    def factory(loop, coro, **options):
        made.append(coro.__qualname__)
        return asyncio.Task(coro, loop=loop, **options)

    return factory


@pytest.mark.promise("A task factory that you set is honoured, and one that fails harms no other work")
def test_a_task_factory_that_the_user_set_makes_the_tasks(runtime):
    made = []
    runtime.call_soon(lambda: asyncio.get_running_loop().set_task_factory(counting_factory(made))).result(timeout=5)

    assert runtime.go(where()).result(timeout=5)
    assert runtime.call_later(0, where).result(timeout=5)
    assert made == ["where", "where"]


@pytest.mark.promise("It makes what starts right after it was set")
def test_a_task_factory_makes_what_starts_right_after_it_was_set(runtime):
    """What came in one batch with the setting was started without it; so was what came right after `call_soon(set_it).result()`, on a quick loop."""
    made, gate = [], threading.Event()

    def set_it():
        asyncio.get_running_loop().set_task_factory(counting_factory(made))

    runtime.call_soon(gate.wait)
    runtime.call_soon(set_it)
    task = runtime.go(where())
    gate.set()

    assert task.result(timeout=5)
    assert made == ["where"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.eager_task_factory is new in 3.12")
@pytest.mark.skipif(
    os.environ.get("OMNILOOP_LOOP") == "uvloop", reason="uvloop calls it with what 3.13.0 does not take"
)
def test_an_eager_task_factory_is_honoured(runtime):
    async def immediate():
        return "at once"

    async def fails():
        raise SystemExit(3)

    runtime.call_soon(lambda: asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)).result(timeout=5)

    assert runtime.go(immediate()).result(timeout=5) == "at once"
    assert runtime.go(where()).result(timeout=5)
    with pytest.raises(SystemExit):
        runtime.go(fails()).result(timeout=5)


class AsksForTooMuch(asyncio.Task):
    def add_done_callback(self, callback):
        """As no task of asyncio's own: without *context*."""


@pytest.mark.parametrize("made", [lambda loop, coro, **options: None, lambda loop, coro, **options: 1 / 0])
def test_a_task_factory_that_fails_is_the_failure_of_its_task_and_harms_no_other(runtime, made):
    runtime.call_soon(lambda: asyncio.get_running_loop().set_task_factory(made)).result(timeout=5)

    with pytest.raises(Exception):
        runtime.go(where()).result(timeout=5)

    runtime.call_soon(lambda: asyncio.get_running_loop().set_task_factory(None)).result(timeout=5)
    assert runtime.go(where()).result(timeout=5)


def test_a_task_that_breaks_the_emptying_does_not_stop_what_comes_after_it(runtime):
    """The emptying ended with the error, its token taken: nothing that was submitted later was ever started."""
    told = []

    def factory(loop, coro, **options):
        return (
            AsksForTooMuch(coro, loop=loop, **options)
            if coro.__qualname__ == "where"
            else asyncio.Task(coro, loop=loop)
        )

    def set_up():
        asyncio.get_running_loop().set_task_factory(factory)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))

    runtime.call_soon(set_up).result(timeout=5)
    broken, after = runtime.go(where()), runtime.go(asyncio.sleep(0, "after"))

    with pytest.raises(TypeError):
        broken.result(timeout=5)
    assert after.result(timeout=5) == "after"
    assert told == []


# --- poison -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("No error of a task can stop the runtime, `SystemExit` and `KeyboardInterrupt` included")
@pytest.mark.parametrize("poison", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, BaseException])
@pytest.mark.parametrize("suspends", [False, True])
def test_no_error_of_a_task_can_stop_the_runtime(runtime, poison, suspends):
    async def work():
        if suspends:
            await asyncio.sleep(0)
        raise poison("of the work")

    thread = runtime.call_soon(threading.get_ident).result(timeout=5)
    tasks = [runtime.go(work()) for _ in range(3)]

    for task in tasks:
        with pytest.raises(poison) as caught:
            task.result(timeout=5)
        assert type(caught.value) is poison
    assert runtime.call_soon(threading.get_ident).result(timeout=5) == thread


def test_a_task_can_not_stop_or_close_the_loop(runtime):
    async def stops():
        asyncio.get_running_loop().stop()

    async def closes():
        asyncio.get_running_loop().close()

    with pytest.raises(omniloop.OmniloopError, match=r"shutdown\(\)"):
        runtime.go(stops()).result(timeout=5)
    with pytest.raises(RuntimeError):
        runtime.go(closes()).result(timeout=5)
    assert runtime.go(where()).result(timeout=5)


# --- interrupted ------------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    """What the signal handlers here raise."""


class RaiseAt:
    """Raises once, at the n-th line of the package's own code that this thread comes to: as a signal handler would."""

    def __init__(self, point, act):
        self.left = point
        self.raised = False
        self._act = act

    def _look(self, frame, event, arg):
        if self.raised or not frame.f_globals.get("__name__", "").startswith("omniloop."):
            return None
        if event == "line":
            self._count()
        return self._look

    def _count(self):
        self.left -= 1
        if self.left < 0:
            self.raised = True
            self._set(None)
            self._act()
            raise Interrupted

    _set, _get = staticmethod(sys.settrace), staticmethod(sys.gettrace)

    def __enter__(self):
        self._former = self._get()
        self._set(self._look)
        return self

    def __exit__(self, *args):
        self._set(self._former)


class RaiseAfterCall(RaiseAt):
    """The same after the n-th call of a function in C: there CPython runs the handlers, in asyncio's own code too."""

    _set, _get = staticmethod(sys.setprofile), staticmethod(sys.getprofile)

    def _look(self, frame, event, arg):
        ours = frame.f_globals.get("__name__", "").startswith(("omniloop.", "asyncio."))
        if not self.raised and ours and event == "c_return":
            self._count()


def interrupted_everywhere(submit, act=lambda: None, how=RaiseAt):
    """Call *submit* with an interruption at its first line, at its second, and so on to its last; yield in between."""
    for point in itertools.count():
        with how(point, act) as interruption:
            try:
                submit()
            except Interrupted:
                pass
        yield point
        if not interruption.raised:
            return


@pytest.mark.promise("A signal handler that raises, anywhere in a submission, does not put the runtime to sleep")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("how", [RaiseAt, RaiseAfterCall])
@pytest.mark.parametrize("call", ["go", "call_soon"])
def test_a_runtime_survives_a_signal_handler_that_raises_anywhere_in_a_submission(runtime, call, how):
    """A handler that raised between the taking of the wake-up token and the wake-up left the runtime asleep for ever."""
    runs = []

    async def interrupted():
        runs.append(1)

    def submit():
        if call == "go":
            runtime.go(interrupted())
        else:
            runtime.call_soon(runs.append, 1)

    runtime.flush(timeout=5)
    for point in interrupted_everywhere(submit, how=how):
        before = len(runs)
        # Without a wait, which would wake the loop by itself.
        reached = threading.Event()
        runtime.call_soon(reached.set)
        assert reached.wait(timeout=5), f"asleep after an interruption at line {point}"
        assert len(runs) <= before + 1

    assert point > 2


@pytest.mark.promise("What a signal handler submitted before it raised is started")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("how", [RaiseAt, RaiseAfterCall])
@pytest.mark.parametrize("call", ["go", "to_thread", "cancel", "wake for a failure"])
def test_what_a_signal_handler_submitted_before_it_raised_is_not_left_asleep(runtime, call, how):
    """The handler's own submission found the token taken, relied on the wake-up of the frame below, and that was torn down."""

    async def interrupted():
        pass

    def submit():
        if call == "go":
            runtime.go(interrupted())
        elif call == "to_thread":
            runtime.to_thread(int)
        elif call == "cancel":
            runtime.go(asyncio.sleep(0)).cancel()
        else:
            runtime._life.inbox.wake_reader(if_resting=True)

    def handler():
        nonlocal reached
        reached = threading.Event()
        runtime.call_soon(reached.set)

    def rest():
        runtime.flush(timeout=5)
        while runtime._life.inbox.is_due():
            # Else the next submission would not have to wake anybody.
            time.sleep(0)

    reached = threading.Event()
    reached.set()
    rest()
    for point in interrupted_everywhere(submit, handler, how):
        assert reached.wait(timeout=5), f"left asleep by an interruption at line {point}"
        rest()

    # uvloop wakes its loop by one call in C.
    assert point >= (1 if ON_UVLOOP else 3)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_submission_near_the_recursion_limit_does_not_leave_the_runtime_asleep(runtime):
    """The wake-up failed for want of frames, and so did the giving back of its token: nothing was run any more."""

    def submit_below(frames):
        if frames:
            submit_below(frames - 1)
        else:
            # A plain function, which needs the fewest frames on the way to the inbox.
            runtime.call_soon(lambda: None)

    refused = 0
    runtime.flush(timeout=5)
    depth = sys.getrecursionlimit()
    while True:
        depth -= 1
        while runtime._life.inbox.is_due():
            # Else this one needs no wake-up.
            time.sleep(0)
        try:
            submit_below(depth)
        except RecursionError:
            refused += 1
        else:
            break
        reached = threading.Event()
        runtime.call_soon(reached.set)
        assert reached.wait(timeout=5), f"asleep after a submission {depth} frames deep"

    assert refused > 5


@pytest.mark.promise("Nor does one that raises anywhere in the start of the runtime")
@pytest.mark.filterwarnings("ignore")
# Hundreds of starts: 20 s without a GIL on a machine that does nothing else.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [RaiseAt, RaiseAfterCall])
@pytest.mark.parametrize("call", ["go", "to_thread"])
@pytest.mark.parametrize("submits", [False, True])
def test_a_runtime_survives_a_signal_handler_that_raises_anywhere_in_its_start(call, submits, how):
    """What the handler had submitted was never run where `to_thread` had made the start; nor was there an end to shutdown()."""
    if how is RaiseAfterCall and sys.version_info < (3, 12):
        pytest.skip("3.11 now and then calls a traceback where a profile function has raised")

    async def interrupted():
        pass

    def new_runtime():
        return Runtime(name="interrupted")

    def submit():
        if call == "go":
            runtime.go(interrupted())
        else:
            runtime.to_thread(int)

    def submit_one_more():
        reached.clear()
        runtime.call_soon(reached.set)

    reached = threading.Event()
    runtime = new_runtime()
    for point in interrupted_everywhere(submit, submit_one_more if submits else lambda: None, how):
        if not submits or point == 0:
            submit_one_more()
        assert reached.wait(timeout=5), f"asleep after an interruption at line {point} of the start"
        if how is RaiseAfterCall:
            # No start seems to go on.
            assert not runtime._life._starter
        # Nothing is left over that a shutdown has to wait for.
        runtime.flush(timeout=5)
        runtime.shutdown(timeout=1)
        runtime = new_runtime()

    runtime.shutdown()
    # A loop whose making was interrupted: let the collector say so here.
    gc.collect()
    assert point > (14 if ON_UVLOOP else 20)


@pytest.mark.alone
@pytest.mark.heavy
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_a_runtime_survives_a_storm_of_real_signals_whose_handler_submits_and_raises():
    """In a child, because the handler's error may come out anywhere: in pytest's own hooks as well."""

    def program():
        class Interrupted(Exception):
            pass

        async def work():
            await asyncio.sleep(0)

        def handler(number, frame):
            nested.append(go(work()))
            raise Interrupted

        def submit(delay):
            # One signal, at any point of this.
            before = len(nested)
            signal.setitimer(signal.ITIMER_REAL, delay)
            while len(nested) == before:
                go(work())

        nested = []
        go(work())
        flush(5)
        signal.signal(signal.SIGALRM, handler)
        for turn in range(200):
            try:
                submit(0.0001 + turn * 0.000001)
            except Interrupted:
                pass
        reached = threading.Event()
        call_soon(reached.set)
        print(reached.wait(5), [task.result(5) for task in nested] == [None] * 200)

    child = run_child(program)

    assert (child.stdout, child.code) == ("True True\n", 0), child.stderr


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_runtime_that_is_shut_down_refuses_and_closes_the_coroutine():
    runtime = Runtime(name="over")
    runtime.shutdown()
    coro = where()

    with pytest.raises(ClosedError, match="'over' is shut down"):
        runtime.go(coro)

    assert coro.cr_frame is None


class CallAt(RaiseAt):
    """Calls, and does not raise: as a signal handler that submits and comes back."""

    def _count(self):
        with contextlib.suppress(Interrupted):
            super()._count()


@pytest.mark.promise(
    "The start of the runtime is left to the frame that makes it, wherever a signal handler submits in it"
)
@pytest.mark.parametrize("call", ["go", "to_thread"])
def test_a_signal_handler_that_submits_anywhere_in_a_start_leaves_the_start_to_the_frame_below(call):
    """One that started the runtime as well would leave two loops, and threads for both."""

    async def running_loop():
        return asyncio.get_running_loop()

    def handler():
        submitted.append(runtime.go(running_loop()))
        # As a wait does; the submission alone finds the token taken.
        runtime._life.inbox.wake_reader()

    for point in itertools.count():
        runtime, submitted = Runtime(name="started"), []
        with CallAt(point, handler) as call_at:
            if call == "go":
                submitted.append(runtime.go(running_loop()))
            else:
                runtime.to_thread(int)
        submitted.append(runtime.go(running_loop()))
        loops = {task.result(timeout=5) for task in submitted}
        threads = [thread.name for thread in threading.enumerate() if thread.name == "started"]
        runtime.shutdown()

        assert (len(loops), threads) == (1, ["started"]), f"two starts, after a submission at line {point}"
        if not call_at.raised:
            break

    assert point > 20


def test_a_wait_that_has_interrupted_a_submission_makes_sure_of_its_wake_up(runtime, monkeypatch):
    """In a signal handler or a finaliser: it took a second where the frame below had the wake-up still to make."""
    # For this wait a second is never over.
    monkeypatch.setattr("omniloop._life.waits.LOOK_UP", 60)
    runtime.run(where())
    for point in itertools.count():
        got = []
        while runtime._life.inbox.is_due():
            # Until the loop rests, no submission has to wake it.
            time.sleep(0)
        with CallAt(point, lambda: got.append(runtime.run(where(), timeout=20))) as call_at:
            runtime.go(where())
        assert len(got) == call_at.raised
        if not call_at.raised:
            break

    assert point > 10


# A start for each of its lines: 11 s on PyPy, on a machine that does nothing else.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("wait", ["run", "flush", "shutdown"])
def test_a_wait_anywhere_in_a_start_is_told_or_done(wait):
    """In a signal handler, a finaliser or a hook: it waited for ever for a thread that only the frame below could have started."""

    def handler():
        try:
            if wait == "run":
                runtime.run(where())
            else:
                getattr(runtime, wait)()
            outcomes.append("done")
        except (omniloop.WouldDeadlockError, ClosedError) as error:
            outcomes.append(type(error).__name__)

    outcomes = []
    # The start has hundreds of lines.
    for point in itertools.count(step=1 if wait == "shutdown" else 7):
        runtime = Runtime(name="started")
        with CallAt(point, handler) as call_at, contextlib.suppress(ClosedError):
            submitted = runtime.go(where())
            call_at.__exit__()
            assert submitted.result(timeout=5)
        runtime.shutdown(timeout=5)
        if not call_at.raised:
            break

    assert point > 20
    assert "WouldDeadlockError" in outcomes and "done" in outcomes
