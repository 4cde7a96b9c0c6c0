"""CPU-bound work in processes: a crash or a cancellation ends one piece of work, and no other."""

import asyncio
import concurrent.futures
import contextlib
import errno
import gc
import multiprocessing
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import omniloop
from children import child_environment, without_remarks
from omniloop import NotAsyncError, NotPicklableError, ProcessDiedError, ProcessPool, Runtime, go, to_process
from programs import source_of


# A process imports this module: what it runs stands at the top.
def square(number):
    return number * number


def pid():
    return os.getpid()


def fail(words):
    raise LookupError(words)


def return_a_lock():
    return threading.Lock()


class Odd:
    """Can be sent, but not received."""

    def __reduce__(self):
        return int, ("odd",)


class Leaving:
    """Ends the process that receives it, as the import of a module may."""

    def __reduce__(self):
        return sys.exit, (3,)


def return_what_leaves():
    return Leaving()


def return_oddly():
    return Odd()


class OddError(Exception):
    """Can be sent, but not received: it is made anew with its one argument."""

    def __init__(self, code, words):
        super().__init__(f"{code} {words}")


def fail_oddly():
    raise OddError(7, "odd")


def crash(code):
    os._exit(code)


def leave():
    sys.exit(3)


def tell_and_block(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def meet(folder, count):
    """Wait until as many are at it at once."""
    (Path(folder) / str(os.getpid())).touch()
    until = time.monotonic() + 30
    while len(os.listdir(folder)) < count and time.monotonic() < until:
        time.sleep(0.005)
    return len(os.listdir(folder))


@pytest.fixture(scope="module")
def runtime():
    with Runtime(name="module") as made:
        yield made


@pytest.fixture(scope="module")
def pool(runtime):
    """For all tests here, because a process takes 0.1 s to start."""
    return ProcessPool(2, runtime=runtime)


@pytest.fixture(autouse=True)
def _no_runtime_is_left_behind():
    """The one of the module is meant to."""


def pid_in(path):
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if text := path.read_text():
                return int(text)
        time.sleep(0.005)
    raise AssertionError("the process did not start")


def is_gone(number):
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.005)
    return False


@pytest.mark.promise(
    "`to_process` runs a function in another process; its handle can be waited for and awaited like any other"
)
def test_the_result_comes_back_from_another_process(pool):
    assert pool.to_process(square, 7).result(timeout=40) == 49
    assert pool.to_process(pid).result(timeout=40) != os.getpid()


def test_the_handle_can_be_awaited_on_any_loop(pool):
    async def work():
        return await pool.to_process(square, number=3)

    assert asyncio.run(work()) == 9


@pytest.mark.promise("As many work at once as there are processes, and the others wait")
def test_as_many_work_at_once_as_there_are_processes_and_the_others_wait(pool, tmp_path):
    met = [pool.to_process(meet, str(tmp_path), 2) for _ in range(3)]

    assert [task.result(timeout=40) for task in met] == [2, 2, 2]


@pytest.mark.promise("An error comes back, with the other process's traceback")
def test_an_error_comes_back_with_the_other_processs_traceback(pool):
    with pytest.raises(LookupError, match="not there") as caught:
        pool.to_process(fail, "not there").result(timeout=40)

    assert "in fail" in str(caught.value.__cause__)


@pytest.mark.promise("An error that can't be received comes out as text, and the processes go on")
def test_an_error_that_cannot_be_received_comes_out_as_text_and_the_processes_go_on(pool):
    with pytest.raises(NotPicklableError, match="OddError: 7 odd"):
        pool.to_process(fail_oddly).result(timeout=40)

    assert pool.to_process(square, 2).result(timeout=40) == 4


@pytest.mark.promise("A result that can't be sent back is an error that says so")
@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (return_a_lock, r"The function returned <unlocked .*lock.*>, which can't be sent .* Return plain data"),
        (return_oddly, r"The result of return_oddly can't be received .*: ValueError: invalid literal"),
        (return_what_leaves, r"The result of return_what_leaves can't be received .*: SystemExit: 3"),
    ],
)
def test_a_result_that_cannot_be_sent_back_is_an_error_that_says_so_and_the_processes_go_on(pool, fn, words):
    """The one was a bare TypeError of pickle's, the other a crash that there was not."""
    with pytest.raises(NotPicklableError, match=words):
        pool.to_process(fn).result(timeout=40)

    assert pool.to_process(square, 2).result(timeout=40) == 4


@pytest.mark.promise("An import that exits in the other process is an error that says so, and ends no other program")
def test_what_exits_while_it_is_received_is_an_error_that_says_so(pool):
    with pytest.raises(NotPicklableError, match="can't be received in another process: it exits with 3"):
        pool.to_process(square, Leaving()).result(timeout=40)

    assert pool.to_process(square, 2).result(timeout=40) == 4


def test_a_function_that_exits_fails_its_own_work(pool):
    with pytest.raises(SystemExit):
        pool.to_process(leave).result(timeout=40)


@pytest.mark.promise("A crash fails its own work only, and another process takes the place")
def test_a_crash_fails_its_own_work_only_and_another_process_comes(pool, tmp_path):
    others = pool.to_process(meet, str(tmp_path), 2)
    with pytest.raises(
        ProcessDiedError, match=r"The process that ran crash ended before it was done: .* code 3\."
    ) as caught:
        pool.to_process(crash, 3).result(timeout=40)
    assert caught.value.exitcode == 3
    last = pool.to_process(meet, str(tmp_path), 2)

    assert (others.result(timeout=40), last.result(timeout=40)) == (2, 2)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the descriptors in /proc")
def test_an_error_that_is_kept_keeps_no_descriptor_of_a_process_open(pool, tmp_path):
    """A frame of its traceback referred to another process of the pool."""
    # multiprocessing keeps one of its own, from the first process on.
    assert pool.to_process(square, 1).result(timeout=40) == 1
    before = len(os.listdir("/proc/self/fd"))
    with Runtime() as runtime:
        own = ProcessPool(2, runtime=runtime)
        met = [own.to_process(meet, str(tmp_path), 2) for _ in range(2)]
        assert [task.result(timeout=40) for task in met] == [2, 2]
        error = own.to_process(crash, 3).exception(timeout=40)
    gc.collect()

    assert type(error) is ProcessDiedError
    assert len(os.listdir("/proc/self/fd")) <= before


def kill_myself(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


@pytest.mark.promise("The error says of what the process died: its exit code, or the signal that killed it")
@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("SIGKILL", r"it was killed by SIGKILL, as the system does it where memory runs out\.$"),
        ("SIGTERM", r"it was killed by SIGTERM\.$"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="no signals there")
def test_the_error_says_which_signal_killed_the_process(pool, number, words):
    with pytest.raises(ProcessDiedError, match=words) as caught:
        pool.to_process(kill_myself, getattr(signal, number)).result(timeout=40)

    assert caught.value.exitcode == -getattr(signal, number)


def sockets():
    return [int(name) for name in os.listdir("/proc/self/fd") if _is_socket(int(name))]


def _is_socket(number):
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    return False


def write_when_told(folder):
    """From a thread, when the call is over: as a C library's output on a descriptor that it took for its own."""

    def write():
        while not os.path.exists(os.path.join(folder, "write")):
            time.sleep(0.005)
        for number in sockets():
            os.write(number, b"stray bytes, and a few more")

    threading.Thread(target=write, daemon=True).start()
    return os.getpid()


def write_now(text):
    for number in sockets():
        os.write(number, text)
    time.sleep(60)


@pytest.mark.promise(
    "Bytes that something else writes into a process's connection while it rests end that process, not the next call"
)
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks for the socket in /proc")
def test_stray_bytes_at_rest_end_that_process_and_not_the_next_call(tmp_path):
    with Runtime() as runtime:
        pool = ProcessPool(1, runtime=runtime)
        before = pool.to_process(write_when_told, str(tmp_path)).result(timeout=40)

        (tmp_path / "write").touch()

        assert is_gone(before)
        assert pool.to_process(square, 6).result(timeout=40) == 36


@pytest.mark.promise("Nonsense in the place of a reply ends the call, with an error that says so")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks for the socket in /proc")
@pytest.mark.parametrize("text", [b"x" * 64, b"\xff" * 16, struct.pack("!QQ", 1, 5) + b"too long"])
def test_nonsense_in_the_place_of_a_reply_ends_the_call(text):
    """A length of eight times "x" was waited for, without end."""
    with Runtime() as runtime:
        pool = ProcessPool(1, runtime=runtime)

        with pytest.raises(ProcessDiedError, match="closed its connection, or something else wrote there"):
            pool.to_process(write_now, text).result(timeout=40)

        assert pool.to_process(square, 4).result(timeout=40) == 16


class WithoutReaders(asyncio.SelectorEventLoop):
    """As Windows' default loop, the ProactorEventLoop: it has the calls on sockets, and neither readers nor writers."""

    def add_reader(self, *_):
        raise NotImplementedError

    add_writer = add_reader


@pytest.mark.promise("Processes work on every loop: on one without `add_reader`, as Windows' is, too")
def test_processes_work_on_a_loop_without_readers(tmp_path):
    with Runtime(loop_factory=WithoutReaders) as runtime:
        pool = ProcessPool(2, runtime=runtime)

        assert [task.result(timeout=40) for task in [pool.to_process(square, n) for n in range(20)]] == [
            n * n for n in range(20)
        ]
        content = os.urandom(3_000_000)
        assert pool.to_process(length, content).result(timeout=40) == (len(content), content)
        with pytest.raises(ProcessDiedError, match="code 3"):
            pool.to_process(crash, 3).result(timeout=40)
        task = pool.to_process(tell_and_block, str(tmp_path / "pid"))
        number = pid_in(tmp_path / "pid")
        assert task.cancel()
        assert is_gone(number)
        numbers = {pool.to_process(pid).result(timeout=40) for _ in range(4)}
        os.kill(next(iter(numbers)), signal.SIGKILL)
        # What is sent before the death is seen may fail.
        with contextlib.suppress(ProcessDiedError):
            pool.to_process(square, 5).result(timeout=40)
        assert pool.to_process(square, 5).result(timeout=40) == 25
    assert all(map(is_gone, numbers))


def test_a_process_that_is_killed_while_it_has_nothing_to_do_is_replaced(pool):
    victims = {pool.to_process(pid).result(timeout=40) for _ in range(4)}
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    assert all(is_gone(victim) for victim in victims)

    # What is sent before the death is noticed may fail; nothing hangs.
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(ProcessDiedError):
            assert pool.to_process(square, 5).result(timeout=40) == 25
            return
    pytest.fail("no process came back")


@pytest.mark.promise("Cancelling kills the process that does the work")
def test_cancelling_kills_the_process_and_the_next_one_comes(pool, tmp_path):
    task = pool.to_process(tell_and_block, str(tmp_path / "pid"))
    number = pid_in(tmp_path / "pid")

    assert task.cancel()

    assert is_gone(number)
    with pytest.raises(Exception, match=r"^$") as caught:
        task.result(timeout=40)
    assert task.cancelled(), caught
    assert pool.to_process(square, 6).result(timeout=40) == 36


def test_work_that_waits_for_a_process_can_be_cancelled(pool, tmp_path):
    blocking = [pool.to_process(tell_and_block, str(tmp_path / name)) for name in ("a", "b")]
    waiting = pool.to_process(square, 1)
    for name in ("a", "b"):
        pid_in(tmp_path / name)

    waiting.cancel()
    with pytest.raises(Exception, match=r"^$"):
        waiting.result(timeout=40)
    for task in blocking:
        task.cancel()

    assert waiting.cancelled()
    assert pool.to_process(square, 6).result(timeout=40) == 36


@pytest.mark.promise("What can't be sent is refused at the call")
@pytest.mark.parametrize(
    "call", [lambda pool: pool.to_process(lambda: 1), lambda pool: pool.to_process(square, threading.Lock())]
)
def test_what_cannot_be_sent_is_refused_at_the_call(pool, call):
    with pytest.raises(
        NotPicklableError, match=r"to_process\(.*can't send the function and its arguments.*top of a module"
    ):
        call(pool)


def test_an_async_function_is_refused_with_the_way_out(pool):
    async def work():
        pass

    with pytest.raises(NotAsyncError, match=r"Use go\(.*work"):
        pool.to_process(work)
    with pytest.raises(NotAsyncError, match="7 can't be called"):
        pool.to_process(7)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_a_size_that_is_no_whole_number_above_zero_is_refused(size):
    with pytest.raises(ValueError, match=f"max_workers={size!r}"):
        ProcessPool(size)


def length(content):
    return len(content), content


def test_what_is_larger_than_any_buffer_arrives_whole_both_ways(pool):
    content = os.urandom(30_000_000)

    assert pool.to_process(length, content).result(timeout=40) == (len(content), content)


def close_everything():
    """As some daemonising functions do."""
    os.closerange(3, 100)


def test_a_function_that_closes_all_descriptors_fails_its_own_work(pool):
    with pytest.raises(ProcessDiedError, match="close_everything"):
        pool.to_process(close_everything).result(timeout=40)

    assert pool.to_process(square, 3).result(timeout=40) == 9


def crash_and_leave_a_child(path):
    """The child has all that its parent had open."""
    if os.fork() == 0:
        Path(path).write_text(str(os.getpid()))
        time.sleep(60)
    os._exit(1)


@pytest.mark.promise("A crash is seen at once, also if a fork of the process lives on")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_crash_is_seen_though_a_fork_of_the_process_lives_on(pool, tmp_path):
    with pytest.raises(ProcessDiedError, match="crash_and_leave_a_child"):
        pool.to_process(crash_and_leave_a_child, str(tmp_path / "pid")).result(timeout=40)

    os.kill(pid_in(tmp_path / "pid"), signal.SIGKILL)


@pytest.mark.promise("Whatever crashes or is cancelled, each call gets its own result")
def test_every_call_of_many_gets_its_own_result_whatever_crashes_and_is_cancelled_between():
    """The next call follows on the last one's reply: none may get another's."""
    with Runtime() as runtime:
        pool = ProcessPool(2, runtime=runtime)
        tasks = []
        for number in range(60):
            tasks.append(pool.to_process(square, number))
            if number % 20 == 7:
                tasks.append(pool.to_process(crash, 1))
            if number % 20 == 13:
                tasks.append(pool.to_process(time.sleep, 60))
        # From the end, so that some wait and some run.
        for task in reversed(tasks):
            if task.get_name() == "sleep":
                task.cancel()

        for task in tasks:
            if task.get_name() == "crash":
                with pytest.raises(ProcessDiedError):
                    task.result(timeout=40)
            elif task.get_name() == "sleep":
                with pytest.raises(concurrent.futures.CancelledError):
                    task.result(timeout=40)
        squares = [task.result(timeout=40) for task in tasks if task.get_name() == "square"]
    assert squares == [number * number for number in range(60)]


@pytest.mark.promise("A shutdown ends the processes")
def test_a_shutdown_ends_the_processes():
    runtime = Runtime()
    number = ProcessPool(1, runtime=runtime).to_process(pid).result(timeout=40)

    runtime.shutdown()

    assert is_gone(number)
    assert number not in {child.pid for child in multiprocessing.active_children()}


def test_the_module_function_uses_the_shared_runtime():
    assert to_process(square, 8).result(timeout=40) == 64


# --- whole programs ---------------------------------------------------------------------------------------------------


# Seconds. What a process is not waited for takes 60, and a busy machine takes some to start a few interpreters.
IN_TIME = 25


def slow(number, seconds=0.3):
    time.sleep(seconds)
    print("worked", number, flush=True)
    return number


def run_script(tmp_path, program, timeout=40, env=None):
    """A file, and not `-c`: the processes import it."""
    script = tmp_path / "script.py"
    script.write_text(source_of(program))
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=child_environment(env),
        check=False,
        start_new_session=True,
    )
    result.stderr = without_remarks(result.stderr)
    return result, time.monotonic() - started


@pytest.mark.promise("Work in processes is finished before the program exits")
def test_work_in_processes_is_finished_before_the_program_exits(tmp_path):
    def program():
        if __name__ == "__main__":
            to_process(slow, 1)
            print("last line", flush=True)

    result, _ = run_script(
        tmp_path,
        program,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("last line\nworked 1\n", "", 0)


@pytest.mark.promise("So is what draining work gives to processes")
def test_work_that_draining_work_gives_to_processes_is_finished_too(tmp_path):
    """The pools of `concurrent.futures` end before the first atexit handler: the drain comes before that."""

    def program():
        async def work():
            await asyncio.sleep(0.3)
            print(await to_process(slow, 2), flush=True)

        if __name__ == "__main__":
            # In this order: our hook is there before theirs.
            go(asyncio.sleep(0)).result()
            to_process(slow, 1, 0).result()
            go(work())

    result, _ = run_script(
        tmp_path,
        program,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("worked 1\nworked 2\n2\n", "", 0)


@pytest.mark.promise("A process may use processes of its own")
def test_a_process_may_use_processes_of_its_own(tmp_path):
    """Up to 3.12 it waited, at its end, for its own without telling them to end: for ever, and the program with it."""

    def program():
        def inner(number):
            return number * 2

        def outer(number):
            return to_process(inner, number).result(timeout=30) + 1

        if __name__ == "__main__":
            print(to_process(outer, 5).result(timeout=30))

    result, _ = run_script(
        tmp_path,
        program,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("11\n", "", 0)


@pytest.mark.promise("So is the process of work that was submitted in the last line")
def test_work_given_to_a_process_in_the_last_line_is_killed_at_the_deadline_too(tmp_path):
    """The hook that kills it came too late: the program waited until the work was done."""

    def program():
        if __name__ == "__main__":
            omniloop.configure(exit_timeout=2, cancel_timeout=0.2)
            # The loop comes to it when the program has ended.
            omniloop.call_soon(time.sleep, 0.5)
            to_process(time.sleep, 60)

    result, seconds = run_script(
        tmp_path,
        program,
    )

    assert (result.stdout, result.returncode) == ("", 0)
    assert "sleep" in result.stderr
    assert seconds < IN_TIME


@pytest.mark.promise("When the time for draining is over, the work is named and its process killed")
def test_at_the_deadline_the_work_is_named_and_its_process_killed(tmp_path):
    def program():
        if __name__ == "__main__":
            omniloop.configure(exit_timeout=0.5, cancel_timeout=2)
            print(to_process(os.getpid).result(), flush=True)
            to_process(slow, 1, 60)

    result, seconds = run_script(
        tmp_path,
        program,
    )

    assert result.returncode == 0
    assert seconds < IN_TIME
    assert "1 unfinished when the time for draining was over, and cancelled:\n  slow, for " in result.stderr
    # Not "worked"; and the same process, which was idle.
    assert is_gone(int(result.stdout))


@pytest.mark.promise("Ctrl-C cancels what is waited for, and its process ends")
def test_ctrl_c_cancels_what_is_waited_for_and_its_process_ends(tmp_path):
    def program():
        def interrupt_and_block(parent):
            os.kill(parent, signal.SIGINT)
            time.sleep(60)

        if __name__ == "__main__":

            async def work():
                await to_process(interrupt_and_block, os.getpid())

            try:
                omniloop.run(work())
            except KeyboardInterrupt:
                print("interrupted")

    result, seconds = run_script(
        tmp_path,
        program,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("interrupted\n", "", 0)
    assert seconds < IN_TIME


@pytest.mark.promise("A forked child starts processes of its own")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_processes_of_its_own(tmp_path):
    def program():
        if __name__ == "__main__":
            import warnings

            warnings.simplefilter("ignore")
            print(to_process(slow, 1, 0).result(), flush=True)
            if os.fork() == 0:
                print(to_process(slow, 2, 0).result(), flush=True)
                sys.exit()
            assert os.wait()[1] == 0
            print(to_process(slow, 3, 0).result(), flush=True)

    result, _ = run_script(
        tmp_path,
        program,
    )

    assert result.stdout.splitlines() == ["worked 1", "1", "worked 2", "2", "worked 3", "3"]
    assert (result.stderr, result.returncode) == ("", 0)


@pytest.mark.promise("A script that lacks the main guard is told so, by the error, and by nothing else")
def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    """The tracebacks of the processes, thirty lines each, hid the one sentence that helps."""

    def program():
        tasks = [to_process(slow, number, 0) for number in range(4)]
        for task in tasks:
            try:
                task.result(timeout=20)
            except omniloop.ProcessDiedError as error:
                print(error, flush=True)

    result, _ = run_script(
        tmp_path,
        program,
    )

    words = (
        "The process that ran slow ended before it was done: it imports the script, which calls to_process() there too. "
        'Put the call below `if __name__ == "__main__":`.\n'
    )
    assert (result.stdout, result.stderr, result.returncode) == (4 * words, "", 0)


@pytest.mark.promise(
    "A process that multiprocessing starts, and that imports a script without a guard, is told so as well"
)
def test_a_process_of_multiprocessings_that_imports_an_unguarded_script_is_told_so(tmp_path):
    def program():
        def nothing():
            pass

        if multiprocessing.current_process().name == "MainProcess":
            process = multiprocessing.get_context("spawn").Process(target=nothing)
            process.start()
            process.join()
            print(process.exitcode)
        else:
            try:
                to_process(slow, 1, 0)
            except omniloop.CannotStartError as error:
                print(error, flush=True)

    result, _ = run_script(
        tmp_path,
        program,
    )

    words = 'to_process(slow) was called while a new process imports the script. Put it below `if __name__ == "__main__":`.\n'
    assert (result.stdout, result.stderr, result.returncode) == (words + "0\n", "", 0)


@pytest.mark.promise("A function that can't be imported in another process says so")
def test_a_function_that_is_not_importable_there_is_told_so(tmp_path):
    def program():
        if __name__ == "__main__":

            def hidden():
                pass

            try:
                to_process(hidden).result(timeout=30)
            except omniloop.NotPicklableError as error:
                print(error)

    result, _ = run_script(
        tmp_path,
        program,
    )

    assert "has to be importable there" in result.stdout
    assert (result.stderr, result.returncode) == ("", 0)


@pytest.mark.promise("Work for a process that first comes in the drain is done in one")
def test_work_that_is_the_first_and_comes_in_the_drain_is_done(tmp_path):
    """In a process: none of it needs a new thread, which the interpreter would not start any more."""

    def program():
        def where():
            return os.getpid()

        async def work():
            await asyncio.sleep(0.3)
            print(await to_process(where) != os.getpid(), flush=True)

        if __name__ == "__main__":
            go(work())

    result, _ = run_script(
        tmp_path,
        program,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("True\n", "", 0)


@pytest.mark.promise("A thread that outlives the main one still has its processes")
def test_a_thread_that_outlives_the_main_one_still_has_its_processes(tmp_path):
    """After the early hook they were ended, and what came then ran in a worker thread."""

    def program():
        def late(number):
            threading.main_thread().join()
            time.sleep(0.1)
            print(to_process(os.getpid).result() != os.getpid(), flush=True)

        if __name__ == "__main__":
            to_process(slow, 1, 0).result()
            threading.Thread(target=late, args=[2]).start()

    result, _ = run_script(
        tmp_path,
        program,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("worked 1\nTrue\n", "", 0)


@pytest.mark.promise("The processes end when their parent is killed")
def test_the_processes_end_when_their_parent_is_killed_though_a_fork_of_it_lives_on(tmp_path):
    """The fork had the parent's end of their sockets."""

    def program():
        if __name__ == "__main__":
            import warnings

            warnings.simplefilter("ignore")
            number = to_process(os.getpid).result()
            parent = os.getpid()
            if os.fork() == 0:
                os.kill(parent, signal.SIGKILL)
                until = time.monotonic() + 30
                while time.monotonic() < until:
                    try:
                        with open(f"/proc/{number}/stat") as file:
                            if file.read().rpartition(")")[2].split()[0] == "Z":
                                break
                    except OSError:
                        break
                    time.sleep(0.005)
                else:
                    print("still there", flush=True)
                print("over", flush=True)
                os._exit(0)
            time.sleep(60)

    result, _ = run_script(
        tmp_path,
        program,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("over\n", "", -signal.SIGKILL)


@pytest.mark.promise(
    "With no descriptors left for a process it is a `CannotStartError`, and the next use works once there is room"
)
def test_no_descriptors_left_for_a_process_is_an_error_that_says_so_and_the_next_use_works(tmp_path):
    def program():
        if __name__ == "__main__":
            import resource

            print(omniloop.run(asyncio.sleep(0, "up")), flush=True)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
            tasks = [to_process(pow, 2, number) for number in range(5)]
            for task in tasks:
                try:
                    task.result(timeout=30)
                except omniloop.CannotStartError as error:
                    print(error, flush=True)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            print(to_process(pow, 2, 5).result(timeout=30))

    result, _ = run_script(
        tmp_path,
        program,
    )

    error = f"[Errno 24] {os.strerror(errno.EMFILE)}"
    words = f"No process can be started for pow: {error}. Submit it again when there is room.\n"
    assert (result.stdout, result.stderr, result.returncode) == (f"up\n{5 * words}32\n", "", 0)


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="no such signal")
@pytest.mark.promise("Where the program ignores SIGCHLD, a killed process is known to have ended too")
def test_where_sigchld_is_ignored_a_killed_process_is_not_waited_for_for_ever(tmp_path):
    """Its exit code is never known, and was asked for a thousand times a second."""

    def program():
        if __name__ == "__main__":
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            pool = ProcessPool(1)
            print(pool.to_process(pow, 2, 5).result(timeout=30), flush=True)
            staff = pool._staff
            (process,) = staff.processes
            os.kill(process.process.pid, signal.SIGKILL)
            until = time.monotonic() + 30
            while staff.tasks and time.monotonic() < until:
                time.sleep(0.01)
            print(len(staff.tasks), pool.to_process(pow, 2, 6).result(timeout=30), flush=True)

    result, _ = run_script(tmp_path, program)

    assert (result.stdout, result.stderr, result.returncode) == ("32\n0 64\n", "", 0)


# --- executor= --------------------------------------------------------------------------------------------------------


def test_an_executor_of_the_callers_runs_the_call():
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert ProcessPool(executor=executor).to_process(square, 7).result(timeout=40) == 49

        with Runtime() as runtime:
            pool = ProcessPool(executor=executor, runtime=runtime)
            with pytest.raises(LookupError, match="not there"):
                pool.to_process(fail, "not there").result(timeout=40)
            with pytest.raises(ProcessDiedError, match="The executor that ran crash broke before it was done"):
                pool.to_process(crash, 3).result(timeout=40)


@pytest.mark.promise("`ProcessPool` runs calls in any executor of the caller's, which stays the caller's to shut down")
def test_any_executor_will_do_and_it_stays_the_callers_to_shut_down():
    """One of threads, which sends nothing: what can't be pickled is no obstacle then."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        with Runtime() as runtime:
            assert ProcessPool(executor=executor, runtime=runtime).to_process(lambda: 5).result(timeout=5) == 5
        assert executor.submit(square, 2).result(timeout=5) == 4


def test_cancelling_does_not_stop_a_call_that_runs_in_an_executor_of_the_callers(runtime):
    started, go_on = threading.Event(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        pool = ProcessPool(executor=executor, runtime=runtime)
        running = pool.to_process(lambda: (started.set(), go_on.wait(5)))
        assert started.wait(timeout=5)
        ran = threading.Event()
        waiting = pool.to_process(ran.set)
        runtime.run(asyncio.sleep(0.01), timeout=5)

        for task in (waiting, running):
            assert task.cancel()
            with pytest.raises(concurrent.futures.CancelledError):
                task.result(timeout=5)
        go_on.set()
    # What waited was taken back.
    assert not ran.is_set()


def test_ctrl_c_just_after_an_executor_took_a_call_that_is_over_at_once_comes_out():
    """An InvalidStateError came in its place."""

    class Interrupted(concurrent.futures.Executor):
        def submit(self, fn, *args, **kwargs):
            future = concurrent.futures.Future()
            add = future.add_done_callback

            def add_and_interrupt(callback):
                add(callback)
                future.set_result(fn(*args, **kwargs))
                raise KeyboardInterrupt

            future.add_done_callback = add_and_interrupt
            return future

    with pytest.raises(KeyboardInterrupt):
        ProcessPool(executor=Interrupted()).to_process(square, 2)


@pytest.mark.parametrize("executor", [5, "threads"])
def test_an_executor_that_is_none_is_refused_with_the_way_out(executor):
    with pytest.raises(TypeError, match=r"executor=.*: give a concurrent.futures.Executor, or None"):
        ProcessPool(executor=executor)


def keywords(**given):
    return given


@pytest.mark.promise("`to_process` hands every keyword on to the function, and takes none of its own")
def test_every_keyword_goes_to_the_function(pool):
    options = {"executor": 1, "name": "n", "context": None, "daemon": True, "timeout": 5, "fn": 6, "self": 7}

    assert pool.to_process(keywords, **options).result(timeout=40) == options
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        elsewhere = ProcessPool(executor=executor)
        del options["fn"], options["self"]
        assert elsewhere.to_process(keywords, **options).result(timeout=5) == options


@pytest.mark.promise("`StopIteration` in an executor of the caller's is a `RuntimeError` too, and hangs nobody")
def test_stop_iteration_in_an_executor_of_the_callers_comes_out():
    """On 3.11 and 3.12 it can't be set on a future of asyncio's, and whoever waited for the handle waited for ever."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        task = ProcessPool(executor=executor).to_process(next, iter([]))

        with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
            task.result(timeout=5)
    assert isinstance(caught.value.__cause__, StopIteration)


def test_a_pool_takes_a_size_or_an_executor():
    with concurrent.futures.ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="Give one of them"):
        ProcessPool(2, executor=executor)


@pytest.mark.promise("Work in such an executor is finished before the program exits")
def test_work_in_an_executor_is_finished_before_the_program_exits(tmp_path):
    """`concurrent.futures` ends its pools before the first atexit handler, and refuses what draining work submits then."""

    def program():
        async def work(executor):
            await asyncio.sleep(0.3)
            print(await omniloop.ProcessPool(executor=executor).to_process(slow, 2, 0), flush=True)

        if __name__ == "__main__":
            # Our hook is there before theirs.
            omniloop.run(asyncio.sleep(0))
            executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            omniloop.ProcessPool(executor=executor).to_process(slow, 1, 0)
            go(work(executor))

    result, _ = run_script(
        tmp_path,
        program,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("worked 1\nworked 2\n2\n", "", 0)


@pytest.mark.promise("Work runs on a dask cluster")
@pytest.mark.long
@pytest.mark.timeout(60)
def test_work_runs_on_a_dask_cluster(tmp_path):
    pytest.importorskip("distributed")

    def program():
        def crash_once(path):
            if not os.path.exists(path):
                open(path, "w").close()
                os._exit(1)
            return "again"

        if __name__ == "__main__":
            import random

            from distributed import Client

            with Client(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as client:
                pool = omniloop.ProcessPool(executor=client.get_executor())
                print(pool.to_process(os.getpid).result(timeout=20) != os.getpid())
                # It can be sent, because dask sends more than pickle.
                print(pool.to_process(lambda: 7).result(timeout=20))
                # What was running when its worker died is run once more.
                print(pool.to_process(crash_once, __file__ + ".crashed").result(timeout=30))
                # Equal calls are two calls: dask takes the result of the first, unless it is told that they are not pure.
                print(len({pool.to_process(random.random).result(timeout=20) for _ in range(2)}))
                same = omniloop.ProcessPool(executor=client.get_executor(pure=True))
                print(len({same.to_process(random.random).result(timeout=20) for _ in range(2)}))

    result, _ = run_script(
        tmp_path,
        program,
        timeout=55,
    )

    assert (result.stdout, result.returncode) == ("True\n7\nagain\n2\n1\n", 0), result.stderr
