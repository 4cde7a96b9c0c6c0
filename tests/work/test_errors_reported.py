"""Nobody's failure is lost: one that no one asks for is reported once, with where it was submitted; one that is claimed never is."""

import asyncio
import concurrent.futures
import gc
import logging
import threading

import pytest

import omniloop
from children import run_child
from omniloop import Failure, Runtime, go


async def fails(message="of the work"):
    await asyncio.sleep(0)
    raise OSError(message)


async def fails_at_once():
    raise OSError("of the work")


def fails_plainly():
    raise OSError("of the work")


SUBMISSIONS = {
    "go": lambda runtime: runtime.go(fails()),
    "go, at once": lambda runtime: runtime.go(fails_at_once()),
    "call_soon": lambda runtime: runtime.call_soon(fails_plainly),
    "call_later": lambda runtime: runtime.call_later(0, fails_plainly),
    "call_later, async": lambda runtime: runtime.call_later(0, fails),
    "to_thread": lambda runtime: runtime.to_thread(fails_plainly),
}


class Log(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []
        self.came = threading.Event()

    def emit(self, record):
        self.records.append(record)
        self.came.set()


@pytest.fixture
def log():
    handler, logger = Log(), logging.getLogger("omniloop")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def told():
    """A runtime that reports by a hook, and an event for the first report."""
    came, failures = threading.Event(), []

    def hook(failure):
        failures.append(failure)
        came.set()

    with Runtime(name="told", on_error=hook) as runtime:
        runtime.failures, runtime.came = failures, came
        yield runtime


# --- unclaimed --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("A failure that nobody asks for is reported when it happens")
@pytest.mark.parametrize("submit", SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_a_forgotten_failure_is_reported_when_it_happens(told, submit):
    submit(told)

    assert told.came.wait(timeout=5)
    (failure,) = told.failures
    assert isinstance(failure, Failure)
    assert isinstance(failure.exception, OSError)
    assert failure.name.startswith("fails")


@pytest.mark.promise("A flush that is over leaves no report to come")
@pytest.mark.parametrize("how", ["go", "go, at once", "call_soon", "to_thread"])
def test_a_flush_that_is_over_leaves_no_report_to_come(told, how):
    for number in range(1, 60):
        SUBMISSIONS[how](told)
        told.flush(timeout=5)
        assert len(told.failures) == number


def test_a_failure_whose_handle_is_held_is_reported_when_the_handle_is_dropped(told):
    task = told.go(fails())
    concurrent.futures.wait([task], timeout=5)
    told.flush(timeout=5)
    assert told.failures == []

    del task

    assert told.came.wait(timeout=5)
    assert len(told.failures) == 1


def test_a_failure_whose_handle_is_held_is_reported_by_the_drain(told):
    task = told.go(fails())
    told.flush(timeout=5)
    told.shutdown()

    assert len(told.failures) == 1
    del task
    gc.collect()
    assert len(told.failures) == 1


def test_looking_is_not_asking(told):
    """`wait`, `done`, `cancelled`, `running` and a callback alone do not claim."""
    task = told.go(fails())
    task.add_done_callback(lambda task: None)
    concurrent.futures.wait([task], timeout=5)
    assert task.done()
    assert not task.cancelled()
    assert not task.running()
    repr(task)

    del task
    assert told.came.wait(timeout=5)


@pytest.mark.promise("One that somebody asked for is never reported")
@pytest.mark.parametrize(
    "claim",
    [
        lambda task: task.exception(timeout=5),
        lambda task: pytest.raises(OSError, task.result, 5),
        lambda task: pytest.raises(OSError, lambda: asyncio.run(asyncio.wait_for(task, 5))),
        lambda task: pytest.raises(OSError, lambda: asyncio.run(wrapped(task))),
        lambda task: (task.add_done_callback(lambda task: task.exception()), concurrent.futures.wait([task], 5)),
    ],
    ids=["exception", "result", "await", "wrap_future", "callback that asks"],
)
def test_a_claimed_failure_is_never_reported(told, claim):
    task = told.go(fails())
    claim(task)

    del task
    gc.collect()
    told.flush(timeout=5)
    told.shutdown()
    assert told.failures == []


async def wrapped(task):
    return await asyncio.wrap_future(task)


def test_what_run_raises_is_not_reported_too(told):
    with pytest.raises(OSError, match="of the work"):
        told.run(fails())
    told.shutdown()

    assert told.failures == []


def test_a_cancellation_is_no_failure(told):
    task = told.go(asyncio.sleep(60))
    task.cancel()
    concurrent.futures.wait([task], timeout=5)
    del task
    told.shutdown()

    assert told.failures == []


def test_a_failure_after_a_wait_that_timed_out_is_reported(told):
    gate = threading.Event()

    async def fails_later():
        await asyncio.to_thread(gate.wait, 5)
        raise OSError("late")

    with pytest.raises(TimeoutError):
        told.go(fails_later()).result(timeout=0.01)
    gate.set()

    assert told.came.wait(timeout=5)


# --- what the report says ---------------------------------------------------------------------------------------------


@pytest.mark.promise("The report has the traceback and the place of submission")
def test_the_log_has_the_traceback_and_the_place_of_submission(log):
    with Runtime(name="logged") as runtime:
        runtime.go(fails(), name="mine")
        assert log.came.wait(timeout=5)

    (record,) = log.records
    text = logging.Formatter().format(record)
    assert record.levelno == logging.ERROR
    assert "Task 'mine' failed, and nobody asked for its outcome" in text
    assert "test_errors_reported.py" in text.partition("Traceback")[0]
    assert "in test_the_log_has_the_traceback_and_the_place_of_submission" in text.partition("Traceback")[0]
    assert "raise OSError(message)\nOSError: of the work" in text
    assert "in fails" in text
    # Only the work's own frames: those of the machinery help nobody.
    assert "omniloop/_" not in text.partition("Traceback")[2]


@pytest.mark.parametrize("submit", SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_the_hook_gets_the_place_and_a_traceback_without_our_own_frames(told, submit):
    submit(told)
    assert told.came.wait(timeout=5)

    (failure,) = told.failures
    assert failure.site.filename.endswith("test_errors_reported.py")
    assert failure.site.function == "<lambda>"
    assert failure.site.lineno > 1
    frames = []
    traceback = failure.exception.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_globals["__name__"])
        traceback = traceback.tb_next
    assert [name for name in frames if name.startswith("omniloop.")] == []


def test_the_line_of_the_submission_is_the_one_of_the_call(told):
    here = test_the_line_of_the_submission_is_the_one_of_the_call.__code__.co_firstlineno
    told.go(
        fails(),
        name="on line 3 of this test",
    )
    assert told.came.wait(timeout=5)

    assert told.failures[0].site.lineno == here + 2


def test_in_debug_mode_the_report_has_the_whole_stack():
    def program():
        async def fails():
            raise OSError("of the work")

        def inner():
            omniloop.go(fails())

        def outer():
            inner()

        outer()

    result = run_child(
        program,
        env={"PYTHONASYNCIODEBUG": "1"},
    )

    assert result.code == 0
    assert "Submitted from (most recent call last)" in result.stderr
    stack = result.stderr.partition("Submitted from")[2]
    assert stack.index("in outer") < stack.index("in inner")


def test_without_logging_set_up_a_failure_is_seen_on_stderr():
    def program():
        async def fails():
            raise OSError("of the work")

        go(fails())

    result = run_child(program)

    assert result.code == 0
    assert "Task 'fails' failed, and nobody asked for its outcome" in result.stderr
    assert "OSError: of the work" in result.stderr
    assert result.stderr.count("OSError: of the work") == 1


# --- hooks and handlers that fail -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_hook_that_fails_is_logged_together_with_what_it_was_given(log, error):
    def hook(failure):
        raise error("of the hook")

    with Runtime(name="hooked", on_error=hook) as runtime:
        runtime.go(fails())
        runtime.flush(timeout=5)
        assert runtime.go(asyncio.sleep(0, "alive")).result(timeout=5) == "alive"

    assert [type(record.exc_info[1]) for record in log.records] == [error, OSError]


@pytest.mark.promise("A logging handler or a hook that fails does not stop the loop")
@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_logging_handler_that_fails_does_not_stop_the_loop(error):
    """It left the emptying by exception, with the token taken: nothing was ever started again."""

    class Fails(logging.Handler):
        def emit(self, record):
            raise error("of the handler")

    handler, logger = Fails(), logging.getLogger("omniloop")
    logger.addHandler(handler)
    try:
        with Runtime(name="unlogged") as runtime:
            for _ in range(3):
                runtime.go(fails())
                reached = threading.Event()
                runtime.call_soon(reached.set)
                assert reached.wait(timeout=5)
            runtime.flush(timeout=5)
    finally:
        logger.removeHandler(handler)


def test_a_hook_may_submit_work_and_change_the_settings():
    recovered = threading.Event()

    def hook(failure):
        runtime.configure(on_error=None)
        runtime.call_soon(recovered.set)

    with Runtime(name="hooked", on_error=hook) as runtime:
        runtime.go(fails())
        assert recovered.wait(timeout=5)


def test_a_collection_inside_a_logging_handler_that_holds_a_lock_does_not_deadlock():
    """A report from `__del__` itself would take that lock again, and wait for ever."""

    class Locked(logging.Handler):
        def createLock(self):
            self.lock = None

        def handle(self, record):
            with plain_lock:
                held.clear()
                gc.collect()
                records.append(record)
                if len(records) == 3:
                    all_came.set()

    plain_lock, records, held, all_came = threading.Lock(), [], [], threading.Event()
    handler, logger = Locked(), logging.getLogger("omniloop")
    logger.addHandler(handler)
    try:
        with Runtime(name="locked") as runtime:
            held.extend(runtime.go(fails()) for _ in range(2))
            runtime.flush(timeout=5)
            runtime.go(fails())
            assert all_came.wait(timeout=5)
    finally:
        logger.removeHandler(handler)


def test_many_forgotten_failures_are_all_reported_once_each(told):
    for number in range(500):
        told.go(fails(str(number)))
    told.flush(timeout=5)

    assert sorted(int(str(failure.exception)) for failure in told.failures) == list(range(500))


@pytest.mark.promise("The log record of a failure has the task's name and place as fields")
def test_the_log_record_of_a_failure_has_the_tasks_name_and_place_as_fields(caplog):
    with Runtime() as runtime:
        runtime.call_soon(int, "x")
        runtime.flush(timeout=5)

    (record,) = [record for record in caplog.records if record.name == "omniloop"]
    name = "test_the_log_record_of_a_failure_has_the_tasks_name_and_place_as_fields"
    assert (record.omniloop_task, record.omniloop_file, record.omniloop_function) == ("int", __file__, name)
    assert record.omniloop_line > 0
