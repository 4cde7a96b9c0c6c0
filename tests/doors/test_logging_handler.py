"""`omniloop.ext.logging.AsyncHandler`: records reach an async sink, in order, at exit too, and never come back to it."""

import asyncio
import atexit
import gc
import logging
import logging.config
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from children import run_child
from omniloop import Runtime, configure, go
from omniloop.ext import logging as omniloop_logging
from omniloop.ext.logging import AsyncHandler


class Sink:
    """Collects what it is given; waits, if told to, between the first call and its end."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.records: list[logging.LogRecord] = []
        self.called = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    @property
    def messages(self) -> list[str]:
        return [message for batch in self.batches for message in batch]

    async def __call__(self, records: list[logging.LogRecord]) -> None:
        self.called.set()
        while not self.go_on.is_set():
            await asyncio.sleep(0.001)
        self.batches.append([record.getMessage() for record in records])
        self.records.extend(records)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime() as runtime:
        yield runtime


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("test_logging_handler")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture
def sink() -> Sink:
    return Sink()


def attach(logger: logging.Logger, sink: object, runtime: Runtime, **options: int) -> AsyncHandler:
    handler = AsyncHandler(sink, runtime=runtime, **options)
    logger.addHandler(handler)
    return handler


def test_records_reach_the_sink_in_order(logger, sink, runtime):
    handler = attach(logger, sink, runtime)

    for number in range(1_000):
        logger.info("record %d", number)
    handler.flush()

    assert sink.messages == [f"record {number}" for number in range(1_000)]
    assert handler.dropped == 0


@pytest.mark.promise("`AsyncHandler` hands records to an async sink, in order, from any number of threads")
def test_records_of_many_threads_all_arrive(logger, sink, runtime):
    handler = attach(logger, sink, runtime)

    def log(name: str) -> None:
        for number in range(500):
            logger.info("%s %d", name, number)

    threads = [threading.Thread(target=log, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.flush()

    for name in "abcd":
        assert [m for m in sink.messages if m[0] == name] == [f"{name} {number}" for number in range(500)]
    assert len(sink.messages) == 2_000


def test_what_gathers_while_the_sink_is_busy_comes_in_one_batch(logger, sink, runtime):
    handler = attach(logger, sink, runtime, batch=3)
    sink.go_on.clear()

    logger.info("first")
    assert sink.called.wait(timeout=5)
    for number in range(5):
        logger.info("%d", number)
    sink.go_on.set()
    handler.flush()

    assert sink.batches == [["first"], ["0", "1", "2"], ["3", "4"]]


@pytest.mark.promise("Its queue is bounded; what is dropped is counted")
def test_a_full_queue_drops_the_newest_and_counts_them(logger, sink, runtime):
    handler = attach(logger, sink, runtime, capacity=2)
    sink.go_on.clear()

    logger.info("under way")
    assert sink.called.wait(timeout=5)
    for number in range(5):
        logger.info("%d", number)
    sink.go_on.set()
    handler.flush()

    assert sink.messages == ["under way", "0", "1"]
    assert handler.dropped == 3


@pytest.mark.promise("A record is formatted when it is logged")
def test_a_record_is_formatted_at_once_and_keeps_nothing_alive(logger, sink, runtime):
    handler = attach(logger, sink, runtime)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    changing = ["before"]

    sink.go_on.clear()
    logger.warning("%s", changing)
    changing[:] = ["after"]
    try:
        int("x")
    except ValueError:
        logger.exception("failed")
    sink.go_on.set()
    handler.flush()

    assert sink.messages[0] == "WARNING ['before']"
    assert "ValueError: invalid literal" in sink.messages[1]
    assert all(record.args is None and record.exc_info is None for record in sink.records)


def test_a_record_that_can_not_be_formatted_is_told_of_as_logging_does(logger, sink, runtime, capsys):
    handler = attach(logger, sink, runtime)

    # Not by the logger, which pytest's own handler listens to.
    handler.handle(logger.makeRecord("name", logging.INFO, __file__, 1, "%d", ("no number",), None))
    logger.info("the next")
    handler.flush()

    assert sink.messages == ["the next"]
    assert "--- Logging error ---" in capsys.readouterr().err


@pytest.mark.promise("A sink that logs does not feed itself")
def test_a_sink_that_logs_does_not_feed_itself(logger, runtime):
    calls = []

    async def in_a_task() -> None:
        logger.info("from a task of the sink")

    async def sink(records: list[logging.LogRecord]) -> None:
        calls.append([record.getMessage() for record in records])
        logger.info("sending %d records", len(records))
        await asyncio.create_task(in_a_task())
        await asyncio.to_thread(logger.info, "from a thread of the sink")

    handler = attach(logger, sink, runtime)
    logger.info("one")
    handler.flush()
    logger.info("two")
    handler.flush()

    assert calls == [["one"], ["two"]]


@pytest.mark.promise("A sink that fails is tried again with the same records, in order")
def test_a_sink_that_fails_is_tried_again_with_the_same_records_in_order(logger, runtime, capsys):
    seen, arrived = [], threading.Event()

    async def sink(records: list[logging.LogRecord]) -> None:
        seen.append([record.getMessage() for record in records])
        if len(seen) <= 2:
            raise ConnectionError("collector is away")
        if seen[-1][-1] == "199":
            arrived.set()

    handler = attach(logger, sink, runtime, batch=100)
    for number in range(200):
        logger.info("%d", number)
    assert arrived.wait(timeout=8)

    assert seen[0] == seen[1]
    assert [message for batch in seen[2:] for message in batch] == [str(number) for number in range(200)]
    assert handler.dropped == 0


@pytest.mark.promise("A sink that fails is told of on stderr in a line, once a second at most, and not for each record")
def test_a_sink_that_fails_is_told_of_in_a_line(logger, runtime, capsys):
    calls = []

    async def sink(records: list[logging.LogRecord]) -> None:
        calls.append(len(records))
        raise ConnectionError("collector is away")

    handler = attach(logger, sink, runtime, batch=1)
    started = time.monotonic()
    for number in range(200):
        logger.info("%d", number)
    handler.flush()
    handler.close()
    seconds = time.monotonic() - started

    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 2 + seconds
    assert all(line.startswith("omniloop: The log sink failed") for line in lines)
    assert all("ConnectionError: collector is away" in line for line in lines)
    assert "200 so far." in lines[-1]
    assert handler.dropped == 200


def test_who_waits_in_flush_does_not_wait_for_the_pauses_of_a_sink_that_fails(logger, runtime, capsys, monkeypatch):
    monkeypatch.setattr("omniloop.ext.logging._BACK_OFF", (60,) * 5)
    seen, called = [], threading.Event()

    async def sink(records: list[logging.LogRecord]) -> None:
        seen.append([record.getMessage() for record in records])
        called.set()
        if len(seen) == 1:
            raise ConnectionError("collector is away")

    handler = attach(logger, sink, runtime)
    logger.info("first")
    assert called.wait(timeout=5)
    logger.info("second")
    handler.flush()

    assert sorted({message for batch in seen for message in batch}) == ["first", "second"]


@pytest.mark.promise("`AsyncHandler` says on stderr how many records it dropped, once a second at most")
def test_dropped_records_are_told_of_once_a_second_at_most(logger, sink, runtime, capsys):
    handler = attach(logger, sink, runtime, capacity=2)
    sink.go_on.clear()

    logger.info("under way")
    assert sink.called.wait(timeout=5)
    for number in range(1_002):
        logger.info("%d", number)
    sink.go_on.set()
    handler.flush()
    handler.close()

    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[-1].endswith("log records were dropped, 1,000 so far.")
    assert sum(int(re.match(r"omniloop: ([\d,]+) log", line)[1].replace(",", "")) for line in lines) == 1_000


def test_omniloops_own_reports_go_through_it(sink, runtime):
    """The failure of a task is logged on the loop's thread, where the sink runs too."""
    own = logging.getLogger("omniloop")
    handler = attach(own, sink, runtime)
    try:

        async def fail() -> None:
            raise LookupError("not there")

        runtime.go(fail())
        runtime.flush(timeout=5)
        handler.flush()
    finally:
        own.removeHandler(handler)

    assert len(sink.messages) == 1
    assert "LookupError: not there" in sink.messages[0]


def test_logging_on_the_loop_and_flushing_there_does_not_hang(logger, sink, runtime):
    handler = attach(logger, sink, runtime)

    async def work() -> None:
        logger.info("from the loop")
        handler.flush()

    runtime.run(work(), timeout=5)
    handler.flush()

    assert sink.messages == ["from the loop"]


@pytest.mark.promise("Signal handlers, finalisers and the loop itself may log through it")
def test_a_signal_handler_and_a_finaliser_may_log(logger, sink, runtime):
    handler = attach(logger, sink, runtime)

    finalised = []

    class Loud:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            logger.info("finalised")
            finalised.append(1)

    former = signal.signal(signal.SIGUSR1, lambda number, frame: logger.info("signalled"))
    # Collected here alone: what is finalised while the handler itself works, on the loop's thread, is left out on purpose.
    gc.disable()
    try:
        for _ in range(100):
            Loud()
            signal.raise_signal(signal.SIGUSR1)
        gc.collect()
    finally:
        gc.enable()
        signal.signal(signal.SIGUSR1, former)
    assert len(finalised) == 100
    handler.flush()

    assert sorted(sink.messages) == ["finalised"] * 100 + ["signalled"] * 100


def test_dict_config_can_make_one(sink):
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"async": {"()": AsyncHandler, "sink": sink, "level": "WARNING"}},
            "loggers": {"test_dict_config": {"handlers": ["async"], "propagate": False}},
        }
    )
    logger = logging.getLogger("test_dict_config")

    logger.warning("shipped")
    logger.info("below the level")
    handler = logger.handlers.pop()
    handler.close()

    assert sink.messages == ["shipped"]


@pytest.mark.parametrize("options", [{"capacity": 0}, {"capacity": 1.5}, {"batch": -1}])
def test_a_bound_that_is_no_number_is_refused_by_name(sink, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}={options[name]}: give a whole number of 1 or more"):
        AsyncHandler(sink, **options)


def test_a_sink_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="sink=None can't be called"):
        AsyncHandler(None)


# The logger of the programs; its handler is made in them.
app = logging.getLogger("app")


async def prints(records):
    await asyncio.sleep(0.05)
    print(*(record.getMessage() for record in records), flush=True)


def child():
    app.setLevel("INFO")
    app.addHandler(AsyncHandler(prints))


def test_the_last_records_are_delivered_at_exit():
    def program():
        for n in range(250):
            app.info("%d", n)
        app.info("end")

    result = run_child(child, program)

    assert result.stdout.split() == [*map(str, range(250)), "end"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("The last records are delivered at exit, those of draining work too")
def test_what_draining_work_logs_at_exit_is_delivered_too():
    def program():
        async def work():
            await asyncio.sleep(0.1)
            app.info("late")

        go(work())

    result = run_child(child, program)

    assert result[:3] == ("late\n", "", 0)


@pytest.mark.promise("What comes after the last drain goes to stderr, if it is a warning or worse")
def test_what_is_logged_after_the_drain_goes_to_stderr_if_it_is_bad():
    def registered_first_and_so_run_last():
        atexit.register(lambda: (app.error("too late"), app.info("nobody minds"), print(app.handlers[0].dropped)))

    result = run_child(registered_first_and_so_run_last, child)

    assert result[:3] == ("2\n", "too late\n", 0)


def test_a_sink_that_hangs_costs_the_deadline_and_its_records_are_counted():
    def registered_first_and_so_run_last():
        atexit.register(lambda: print(app.handlers[0].dropped))

    def program():
        async def hang(records):
            await asyncio.sleep(60)

        app.handlers[0]._sink = hang
        configure(exit_timeout=0.1)
        app.error("never sent")

    result = run_child(registered_first_and_so_run_last, child, program)

    assert (result.stdout, result.code) == ("1\n", 0)
    assert "log delivery" in result.stderr
    # `exit_timeout` is 25 s.
    assert result.seconds < 15


@pytest.mark.promise("A forked child delivers its own records and none of its parent's")
def test_a_forked_child_delivers_its_own_records_and_none_of_the_parents():
    def program():
        app.info("parent's")
        pid = os.fork()
        if pid == 0:
            app.info("child's")
        else:
            assert os.waitpid(pid, 0)[1] == 0

    result = run_child(
        child,
        program,
        flags=["-W", "ignore::DeprecationWarning"],
    )

    assert sorted(result.stdout.splitlines()) == ["child's", "parent's"]
    assert (result.stderr, result.code) == ("", 0)


@pytest.mark.promise("A sink that is away does not hold up the exit")
def test_a_sink_that_is_away_does_not_hold_up_the_exit():
    def program():
        async def away(records):
            raise ConnectionError("collector is away")

        app.addHandler(AsyncHandler(away))
        for n in range(2_000):
            app.error("%d", n)

    result = run_child(program)

    lines = result.stderr.splitlines()
    assert (result.stdout, result.code) == ("", 0)
    # One a second at most, and one at the end.
    assert 1 <= len(lines) <= 3 + result.seconds, result.stderr
    assert lines[-1].endswith("log records were dropped, 2,000 so far.")
    # `exit_timeout` is 25 s.
    assert result.seconds < 15


def test_what_is_dropped_is_counted_from_several_threads_and_in_the_middle_of_a_count(monkeypatch):
    """`+=` loses some where another thread, or a signal handler, comes in between."""
    count = omniloop_logging._Count(7)

    def add():
        barrier.wait(5)
        for _ in range(5_000):
            count.add(1)

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=add) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        values = [count.value]
        while any(thread.is_alive() for thread in threads):
            values.append(count.value)
        for thread in threads:
            thread.join(9)
    finally:
        sys.setswitchinterval(interval)

    assert count.value == 20_007
    # It never goes down.
    assert values == sorted(values)
    assert len(count._parts) < 2_000
