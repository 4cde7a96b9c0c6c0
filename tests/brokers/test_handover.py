"""`@background(broker=…)`: the contract with an engine, shown on one that is a page of code."""

import asyncio
import copy
import gc
import logging
import re
import sys
import threading
import time

import pytest
import trio

import omniloop
from children import run_child
from omniloop import (
    Engine,
    FullError,
    RefusedError,
    Sent,
    WaitTimeoutError,
    WouldDeadlockError,
    background,
    current_delivery,
)


class Shelf(Engine):
    """Keeps parcels in a list, runs them when told, and refuses them for as long as `down` is set."""

    def __init__(self, at_once=16, waiting=10_000):
        self.at_once, self.waiting = at_once, waiting
        self.parcels, self.results, self.bound = [], {}, {}
        self.down = threading.Event()
        self.failed = threading.Semaphore(0)
        self.sending = self.most = 0

    def bind(self, function):
        self.bound[function.name] = function

    def pack(self, function, call_id, args, kwargs):
        received = copy.deepcopy(args), copy.deepcopy(kwargs)
        function.check(args, kwargs, *received, "Pass something else.")
        return call_id, *received

    async def send(self, function, parcel):
        self.sending += 1
        self.most = max(self.most, self.sending)
        try:
            await asyncio.sleep(0.001)
            if self.down.is_set():
                self.failed.release()
                raise ConnectionError("no route")
            self.parcels.append((function, *parcel))
        finally:
            self.sending -= 1

    async def fetch(self, function, call_id, timeout):
        for _ in range(1 if timeout == 0 else 10_000):
            if call_id in self.results:
                value = self.results[call_id]
                if isinstance(value, BaseException):
                    raise value
                return value
            if timeout is not None and (timeout := timeout - 0.01) <= 0:
                break
            await asyncio.sleep(0.01)
        raise WaitTimeoutError("not yet")

    def work(self):
        """What the worker of a real engine does, in another process."""
        for function, call_id, args, kwargs in self.parcels:
            try:
                self.results[call_id] = omniloop.run(function.run(omniloop.Delivery(call_id, 1), args, kwargs))
            except Exception as error:
                self.results[call_id] = error


@pytest.fixture
def shelf():
    shelf = Shelf()
    yield shelf
    shelf.down.clear()


@pytest.fixture
def stays_down():
    """An outage that outlasts the test's calls: they are taken in the end, so that nothing is left on the shared runtime."""
    shelves = []

    def make(**bounds):
        shelf = Shelf(**bounds)
        shelf.down.set()
        shelves.append(shelf)
        return shelf

    yield make
    for shelf in shelves:
        shelf.down.clear()
    omniloop.flush(timeout=8)


# --- the call ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "A function of `@background(broker=…)` is handed over to an engine, and its value comes back",
    section="Beyond the process",
)
def test_a_call_is_handed_over_and_its_value_comes_back(shelf):
    @background(broker=shelf)
    async def double(number: int) -> int:
        return number * 2

    sent = double(21)
    sent.accepted.result(timeout=5)
    shelf.work()

    assert isinstance(sent, Sent)
    assert sent.result(timeout=5) == 42
    assert [parcel[1] for parcel in shelf.parcels] == [sent.id]


def test_without_the_argument_the_function_runs_in_this_process():
    @background()
    async def double(number: int) -> int:
        return number * 2

    assert double(21).result(timeout=5) == 42


@pytest.mark.promise("A wrong call is refused in the caller, and not in a worker far away")
def test_a_wrong_call_is_refused_in_the_caller(shelf):
    @background(broker=shelf)
    async def double(number: int) -> int: ...

    with pytest.raises(TypeError, match=r"double\(\): missing a required argument: 'number'"):
        double()
    assert omniloop.stats().handing_over == 0


@pytest.mark.promise("What is mutated after a call that was handed over has no effect on it")
def test_what_is_mutated_after_the_call_has_no_effect(shelf):
    @background(broker=shelf)
    async def total(numbers: list) -> int:
        return sum(numbers)

    numbers = [1, 2]
    sent = total(numbers)
    numbers.append(100)
    sent.accepted.result(timeout=5)
    shelf.work()

    assert sent.result(timeout=5) == 3


@pytest.mark.promise(
    "A value that the function would not receive as it was passed is refused in the caller, by the name of its parameter"
)
def test_a_value_that_the_function_would_not_receive_is_refused_by_the_name_of_its_parameter():
    class Listing(Shelf):
        def pack(self, function, call_id, args, kwargs):
            function.check(args, kwargs, tuple(list(a) for a in args), kwargs, "Annotate {name} as {type}.")

    @background(broker=Listing())
    async def total(numbers): ...

    with pytest.raises(
        TypeError, match=r"total\(numbers=\(1, 2\)\) would arrive as \[1, 2\], a list. Annotate numbers as tuple."
    ):
        total((1, 2))


def test_what_the_function_gets_equals_what_was_passed_nan_too(shelf):
    @background(broker=shelf)
    async def keep(*values): ...

    class Plain:
        """No `__eq__`."""

    class Array:
        """Compares item by item, and so has no single truth value."""

        def __eq__(self, other):
            return self

        def __bool__(self):
            raise ValueError("ambiguous")

        __hash__ = None

    with pytest.raises(TypeError, match="would arrive as "):
        keep(Array())
    keep(float("nan"), [float("nan")], {"a": float("nan")}, Plain(), {1: (2, 3)}).accepted.result(timeout=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"daemon": True}, "not cancelled at exit"),
        ({"on_error": print}, "are the engine's"),
        ({"runtime": omniloop.shared_runtime()}, "the runtime that the process shares"),
    ],
)
def test_options_that_mean_nothing_elsewhere_are_refused(shelf, options, message):
    with pytest.raises(ValueError, match=message):
        background(broker=shelf, **options)


def test_what_is_no_engine_is_refused():
    with pytest.raises(TypeError, match=r"'amqp://' is no engine. Give omniloop.ext.taskiq.Taskiq"):

        @background(broker="amqp://")
        async def work(): ...


def test_methods_and_classes_are_refused(shelf):
    with pytest.raises(omniloop.NotAsyncError, match="does not go through a broker"):

        @background(broker=shelf)
        class Mailer:
            async def send(self): ...

    with pytest.raises(omniloop.NotAsyncError, match="does not go through a broker"):

        class Other:
            @background(broker=shelf)
            async def send(self): ...


def test_a_static_method_is_handed_over(shelf):
    class Mailer:
        @staticmethod
        @background(broker=shelf)
        async def send(to): ...

    Mailer.send("ada").accepted.result(timeout=5)

    assert shelf.parcels[0][2] == ("ada",)


# --- the worker's side ------------------------------------------------------------------------------------------------


@pytest.mark.promise("In a worker the body runs on omniloop's loop, and knows its id and how often it was delivered")
def test_the_body_runs_on_omniloops_loop_and_knows_its_id_and_how_often_it_was_delivered(shelf):
    seen = []

    @background(broker=shelf)
    async def work():
        seen.append((threading.current_thread().name, current_delivery()))

    sent = work()
    sent.accepted.result(timeout=5)
    shelf.work()

    assert seen == [("omniloop", (sent.id, 1))]
    assert current_delivery() is None


def test_a_plain_function_runs_in_a_worker_thread(shelf):
    @background(broker=shelf)
    def work() -> tuple:
        return threading.current_thread().name, current_delivery().attempt

    sent = work()
    sent.accepted.result(timeout=5)
    shelf.work()

    name, attempt = sent.result(timeout=5)
    assert name.startswith("omniloop-worker")
    assert attempt == 1


# --- what a call returns ----------------------------------------------------------------------------------------------


def test_the_value_can_be_awaited_on_any_loop_and_the_error_is_that_of_the_function(shelf):
    @background(broker=shelf)
    async def fails():
        raise TimeoutError("its own")

    sent = fails()
    sent.accepted.result(timeout=5)
    shelf.work()

    async def main():
        await sent

    with pytest.raises(TimeoutError, match="its own") as caught:
        asyncio.run(main())
    assert not isinstance(caught.value, WaitTimeoutError)
    with pytest.raises(TimeoutError, match="its own") as caught:
        sent.result(timeout=0)
    assert not isinstance(caught.value, WaitTimeoutError)


@pytest.mark.promise("A wait that times out takes no call back")
@pytest.mark.parametrize("timeout", [0, 0.02])
def test_a_wait_that_times_out_takes_nothing_back(stays_down, timeout):
    shelf = stays_down()

    @background(broker=shelf)
    async def work():
        return "done"

    sent = work()
    with pytest.raises(WaitTimeoutError, match="It goes its way: ask again"):
        sent.result(timeout=timeout)
    shelf.down.clear()
    sent.accepted.result(timeout=5)
    with pytest.raises(WaitTimeoutError):
        sent.result(timeout=timeout)
    shelf.work()

    assert sent.result(timeout=5) == "done"


@pytest.mark.promise("A cancelled waiter takes no call back, and leaves at once")
def test_a_cancelled_waiter_takes_nothing_back_and_leaves_at_once(stays_down):
    shelf = stays_down()

    @background(broker=shelf)
    async def work(): ...

    sent = work()

    async def main():
        for awaitable in (sent, sent.accepted):
            waiter = asyncio.ensure_future(_wait(awaitable))
            await asyncio.sleep(0.01)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(waiter, 1)

    asyncio.run(main())

    assert sent.accepted.cancel() is False
    assert not sent.accepted.done()
    shelf.down.clear()
    sent.accepted.result(timeout=5)


async def _wait(awaitable):
    await awaitable


def test_a_cancelled_scope_of_trio_takes_nothing_back_and_leaves_at_once(stays_down):
    shelf = stays_down()

    @background(broker=shelf)
    async def work(): ...

    sent = work()

    async def main():
        with trio.move_on_after(0.02) as scope:
            await sent.accepted
        shelf.down.clear()
        # The wake-up of the wait that was left comes, and is not taken for another.
        await sent.accepted
        await trio.sleep(0.02)
        return scope.cancelled_caught

    assert trio.run(main)


def test_on_the_loops_own_thread_a_blocking_wait_is_an_error(shelf):
    @background(broker=shelf)
    async def work(): ...

    sent = work()

    async def ask():
        sent.result()

    with pytest.raises(WouldDeadlockError, match="Instead await it"):
        omniloop.run(ask())


def test_a_call_is_fire_and_forget(shelf):
    @background(broker=shelf)
    async def work(): ...

    work()
    gc.collect()
    omniloop.flush(timeout=5)

    assert len(shelf.parcels) == 1


# --- the way to the engine --------------------------------------------------------------------------------------------


@pytest.mark.promise("A broker that is down costs the caller nothing, and gets every call when it is up")
def test_a_broker_that_is_down_costs_the_caller_nothing_and_gets_every_call_when_it_is_up(stays_down, caplog):
    shelf = stays_down()

    @background(broker=shelf)
    async def work(number): ...

    slowest = 0.0
    sent = []
    for number in range(200):
        before = time.perf_counter()
        sent.append(work(number))
        slowest = max(slowest, time.perf_counter() - before)
    # The second comes after the first was told of.
    for _ in range(17):
        assert shelf.failed.acquire(timeout=5)
    assert not any(call.accepted.done() for call in sent)
    shelf.down.clear()
    for call in sent:
        call.accepted.result(timeout=8)

    # The promise is 20 ms; a busy machine is not the call's fault.
    assert slowest < 0.5
    assert sorted(parcel[2][0] for parcel in shelf.parcels) == list(range(200))
    down = [record for record in caplog.records if "does not take the call" in record.getMessage()]
    assert len(down) == 1
    assert "no route" in down[0].getMessage()


@pytest.mark.parametrize("bound", ["at_once", "waiting"])
@pytest.mark.parametrize("number", [0, True, 1.5])
def test_a_bound_that_is_no_number_of_calls_is_refused_by_name(bound, number):
    @background(broker=Shelf(**{bound: number}))
    async def work(): ...

    with pytest.raises(ValueError, match=f"{bound}={number}: give a whole number of 1 or more"):
        work()


@pytest.mark.promise("Only so many calls are sent to an engine at once")
def test_only_so_many_are_sent_at_once():
    shelf = Shelf(at_once=3)

    @background(broker=shelf)
    async def work(number): ...

    for call in [work(number) for number in range(50)]:
        call.accepted.result(timeout=5)

    assert shelf.most == 3


@pytest.mark.promise("A call too many on the way to an engine is refused, and nothing of it is left")
def test_a_call_too_many_is_refused_and_nothing_of_it_is_left(stays_down):
    shelf = stays_down(waiting=5)

    @background(broker=shelf)
    async def work(number): ...

    before = omniloop.stats()
    sent = [work(number) for number in range(5)]
    with pytest.raises(FullError, match="5 calls are on their way to Shelf already"):
        work(5)
    during = omniloop.stats()
    shelf.down.clear()
    for call in sent:
        call.accepted.result(timeout=8)
    omniloop.flush(timeout=5)
    work(6).accepted.result(timeout=5)
    omniloop.flush(timeout=5)
    after = omniloop.stats()

    assert during.handing_over - before.handing_over == 5
    assert during.refused - before.refused == 1
    assert after.handed_over - before.handed_over == 6
    assert after.handing_over == before.handing_over
    assert sorted(parcel[2][0] for parcel in shelf.parcels) == [0, 1, 2, 3, 4, 6]


def test_the_bounds_of_the_runtime_do_not_hold_a_call_up(stays_down):
    shelf = stays_down()

    @background(broker=shelf)
    async def work(number): ...

    omniloop.configure(max_pending=1)
    try:
        for number in range(5):
            work(number)
    finally:
        omniloop.configure(max_pending=None)


def to_the_end():
    import omniloop

    class Down(omniloop.Engine):
        def bind(self, function): ...

        def pack(self, function, call_id, args, kwargs): ...

        async def send(self, function, parcel):
            raise ConnectionError("no route")

        async def fetch(self, function, call_id, timeout): ...

    @omniloop.background(broker=Down(), name="mail")
    async def mail(number): ...

    omniloop.configure(exit_timeout=0.3)
    print(*[mail(number).id for number in range(50)])


@pytest.mark.promise("What an engine has not by `exit_timeout` is named, each call")
def test_what_was_not_handed_over_at_the_end_is_named_each():
    result = run_child(to_the_end)

    assert result.code == 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Down: the process ended before")]
    assert "before these 50 calls" in line
    # Those that were on their way, and those that waited for it.
    assert sorted(name.split()[1] for name in line.partition("over: ")[2].split(", ")) == sorted(result.stdout.split())
    assert "never awaited" not in result.stderr


def thousand():
    import asyncio

    import omniloop

    taken = 0

    class Counts(omniloop.Engine):
        def bind(self, function): ...

        def pack(self, function, call_id, args, kwargs): ...

        async def send(self, function, parcel):
            global taken
            await asyncio.sleep(0.001)
            taken += 1
            if taken == 1000:
                print("all", flush=True)

        async def fetch(self, function, call_id, timeout): ...

    @omniloop.background(broker=Counts(), name="mail")
    async def mail(number): ...

    for number in range(1000):
        mail(number)
    print("last line", flush=True)


@pytest.mark.promise("The program ends when the engine has every call")
def test_the_program_ends_when_the_engine_has_every_call():
    result = run_child(thousand)

    assert (result.stderr, result.code) == ("", 0)
    assert result.stdout.split("\n")[-2] == "all"


def test_the_log_of_an_outage_does_not_flood(stays_down, caplog):
    shelf = stays_down()

    @background(broker=shelf)
    async def work(number): ...

    with caplog.at_level(logging.WARNING, "omniloop"):
        sent = [work(number) for number in range(40)]
        for _ in range(18):
            assert shelf.failed.acquire(timeout=5)
        shelf.down.clear()
        for call in sent:
            call.accepted.result(timeout=8)

    assert _said(caplog) == ["does not take the call", "takes calls again"]


def _said(caplog):
    words = ("does not take the call", "takes calls again")
    return [word for record in caplog.records for word in words if word in record.getMessage()]


class Counter(Engine):
    """Does with each call what its only argument says: a list of errors to raise, one each time, before it is taken."""

    at_once = 2

    def __init__(self):
        self.tries, self.taken, self.sending, self.most = [], [], 0, 0
        self.unreachable = None

    def bind(self, function): ...

    def pack(self, function, call_id, args, kwargs):
        return args

    async def send(self, function, parcel):
        name, errors = parcel
        self.sending += 1
        self.most = max(self.most, self.sending)
        try:
            await asyncio.sleep(0)
            self.tries.append(name)
            if errors:
                raise errors.pop(0)
            self.taken.append(name)
        finally:
            self.sending -= 1

    async def fetch(self, function, call_id, timeout):
        raise LookupError


@pytest.fixture
def counter():
    counter = Counter()
    counter.call = background(broker=counter, name="work")(_work)
    return counter


def _work(name, errors): ...


@pytest.mark.promise("A call that its engine refuses for good fails at the caller, and gives its place to the next")
def test_a_call_that_the_engine_refuses_fails_at_the_caller(counter, caplog):
    before = omniloop.stats().handed_over
    refused = [counter.call("bad", [RefusedError("larger than the server takes")]) for _ in range(3)]
    others = [counter.call(number, []) for number in range(100)]

    for call in others:
        call.accepted.result(timeout=5)
    for call in refused:
        with pytest.raises(RefusedError, match="larger than the server takes"):
            call.accepted.result(timeout=5)
        with pytest.raises(RefusedError):
            call.result(timeout=5)
        assert repr(call).endswith("refused>")
    omniloop.flush(timeout=5)

    assert counter.tries.count("bad") == 3
    assert counter.taken == list(range(100))
    assert omniloop.stats().handed_over - before == 100
    assert omniloop.stats().handing_over == 0
    assert _said(caplog) == []


def test_a_refused_call_that_nobody_asks_for_is_reported(counter, caplog):
    counter.call("bad", [RefusedError("no such queue")])
    omniloop.flush(timeout=5)
    gc.collect()

    assert "no such queue" in caplog.text


@pytest.mark.promise(
    "An error of the call itself is tried five times, holds up no other call, and ends as refused at the caller"
)
@pytest.mark.parametrize("error", [ValueError("not JSON"), TypeError("not bytes"), UnicodeError("no text")], ids=repr)
def test_an_error_of_the_call_itself_ends_as_refused(counter, error):
    bad = [counter.call("bad", [error] * 9) for _ in range(4)]
    others = [counter.call(number, []) for number in range(100)]

    for call in others:
        call.accepted.result(timeout=5)
    tried = counter.tries.count("bad")
    for call in bad:
        with pytest.raises(RefusedError, match=f"in 5 tries. {type(error).__name__}: {error}") as caught:
            call.accepted.result(timeout=8)
        assert caught.value.__cause__ is error

    # The others did not wait for its pauses, of 1.5 s in all.
    assert tried <= 8
    assert counter.tries.count("bad") == 20


@pytest.mark.promise(
    "A cancellation that nobody has asked for, a client library's own, does not end a hand-over: it is tried again"
)
def test_a_stray_cancellation_does_not_end_a_hand_over(counter, caplog):
    call = counter.call("stray", [asyncio.CancelledError("of a task of the client's")] * 2)

    assert call.accepted.result(timeout=8) is None

    assert counter.taken == ["stray"]
    assert "CancelledError" in caplog.text


@pytest.mark.promise("A call that waits to be tried again holds no place of those that are being sent")
def test_a_call_that_waits_to_be_tried_again_holds_no_place(counter):
    blocked = [counter.call("blocked", [Exception("queue full")] * 3) for _ in range(10)]
    others = [counter.call(number, []) for number in range(100)]

    for call in others:
        call.accepted.result(timeout=5)
    taken_before = counter.taken.count("blocked")
    for call in blocked:
        call.accepted.result(timeout=8)

    assert taken_before == 0
    assert counter.taken.count("blocked") == 10
    assert counter.tries.count("blocked") == 40


class Server(Counter):
    """A `Counter` whose connection can be cut."""

    at_once = 4

    def __init__(self):
        super().__init__()
        self.cut = threading.Event()
        self.probes = threading.Semaphore(0)

    async def send(self, function, parcel):
        if self.cut.is_set():
            await asyncio.sleep(0.001)
            self.tries.append("cut")
            self.probes.release()
            raise ConnectionResetError("cut")
        await super().send(function, parcel)


@pytest.mark.promise("While an engine can't be reached one call tries for all, and all follow when it is taken")
def test_while_the_engine_is_unreachable_one_call_tries_for_all(caplog):
    server = Server()
    work = background(broker=server, name="work")(_work)
    server.cut.set()
    calls = [work(number, []) for number in range(100)]
    for _ in range(4 + 3):
        assert server.probes.acquire(timeout=5)
    tried = server.tries.count("cut")
    server.cut.clear()
    for call in calls:
        call.accepted.result(timeout=8)

    # Those that were being sent, then one after the other.
    assert tried == 7
    assert server.most <= 4
    assert sorted(server.taken) == list(range(100))
    assert _said(caplog) == ["does not take the call", "takes calls again"]


@pytest.mark.promise("A call that breaks the connection whenever it is sent does not keep the others from being taken")
def test_a_call_that_breaks_the_connection_does_not_hold_up_the_others(counter, caplog):
    bad = counter.call("bad", [ConnectionResetError("by peer")] * 4)
    for number in range(20):
        counter.call(number, []).accepted.result(timeout=5)
    bad.accepted.result(timeout=8)

    assert [name for name in counter.taken if name != "bad"] == list(range(20))
    # Each time it breaks there is an outage; it is told of once.
    assert _said(caplog) == ["does not take the call", "takes calls again"]


def test_calls_of_the_next_loop_find_the_way_open():
    def program():
        import omniloop

        class Down(omniloop.Engine):
            at_once = 1
            down = True

            def bind(self, function): ...

            def pack(self, function, call_id, args, kwargs): ...

            async def send(self, function, parcel):
                if self.down:
                    raise ConnectionError("no route")

            async def fetch(self, function, call_id, timeout): ...

        engine = Down()

        @omniloop.background(broker=engine, name="mail")
        async def mail(): ...

        lost = mail()
        omniloop.shutdown(timeout=0.2)
        engine.down = False
        mail().accepted.result(timeout=5)
        print(lost.accepted.cancelled())

    result = run_child(program)

    assert (result.stdout, result.code) == ("True\n", 0)
    assert "before these 1 calls were handed over" in result.stderr


# --- annotations ------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "An annotation that is there for type checkers alone does not keep a function from being handed over"
)
def test_an_annotation_for_type_checkers_alone_leaves_the_others_as_they_are(shelf):
    seen = {}

    class Looks(Shelf):
        def bind(self, function):
            seen.update(function.hints)

    program = """
def work(when: "Unknown", count: int = 1, *names: str) -> "Unknown": ...
"""
    if sys.version_info >= (3, 14):
        program = program.replace('"', "")
    names = {"__name__": __name__}
    exec(program, names)
    work = background(broker=Looks())(names["work"])

    work(1, 2, "a").accepted.result(timeout=5)
    assert seen == {"count": int, "names": str}


@pytest.mark.promise("A long wait for hand-overs at the end is told of without the advice to make them daemons")
def test_a_long_wait_for_hand_overs_gives_no_advice_that_is_refused():
    """It said that what never ends is started with `daemon=True`, which `background(broker=…)` refuses."""

    def program():
        class Tells(logging.StreamHandler):
            def emit(self, record):
                super().emit(record)
                omniloop.call_soon(said.set)

        class Slow(omniloop.Engine):
            def bind(self, function): ...

            def pack(self, function, call_id, args, kwargs): ...

            async def send(self, function, parcel):
                await said.wait()

            async def fetch(self, function, call_id, timeout): ...

        @omniloop.background(broker=Slow(), name="mail")
        async def mail(): ...

        said = asyncio.Event()
        logging.getLogger("omniloop").addHandler(Tells())
        mail()

    result = run_child(program, env={"OMNILOOP_EXIT_TIMEOUT": "60"}, remarks=True)

    assert (result.stdout, result.code) == ("", 0)
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(r"omniloop: waits for 1 unfinished for [45]\d s more at the most: mail \w+ → Slow\.", line)
