"""SIGTERM, by what it would do without us, and what is told of it. Each test is an interpreter of its own."""

import asyncio
import atexit
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

import omniloop
from children import child_environment, run_child
from omniloop import configure, go
from programs import source_of

DRAIN = {"OMNILOOP_SIGTERM": "drain"}


def start():
    atexit.register(lambda: print("later hooks run", flush=True))


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


async def quick():
    await asyncio.sleep(0.1)
    print("quick: done", flush=True)


@pytest.mark.promise("Under a loop in the main thread SIGTERM drains while that loop goes on")
@pytest.mark.parametrize("when", ["at the first use", "configure", "environment"])
def test_under_a_loop_in_the_main_thread_sigterm_drains_while_that_loop_goes_on(when):
    """The drain ran in the signal handler, blocked the loop that the work needed, and ended at the deadline."""

    def program():
        if when == "configure":
            configure(sigterm="drain")
        if when == "at the first use":
            go(quick()).result()

        async def server():
            here, answered = asyncio.get_running_loop(), asyncio.Event()

            async def work():
                # It needs the loop of the main thread.
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answered.wait(), here))
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(quick(), here))
                print("work: done", flush=True)

            go(work())
            terminate()
            # A request in flight.
            await asyncio.sleep(0.1)
            print("request: done", flush=True)
            answered.set()
            await asyncio.sleep(60)

        asyncio.run(server())

    result = run_child(start, program, env={} if when == "configure" else DRAIN)

    first = ["quick: done"] if when == "at the first use" else []
    assert result.stdout.splitlines() == [*first, "request: done", "quick: done", "work: done"]
    assert (result.stderr, result.code) == ("", -signal.SIGTERM)


@pytest.mark.promise("So it does under trio")
def test_under_trio_in_the_main_thread_sigterm_drains_while_that_goes_on():
    pytest.importorskip("trio")

    def program():
        import trio

        gone_on = threading.Event()

        async def work():
            # It needs the loop of the main thread.
            await asyncio.to_thread(gone_on.wait)
            await quick()

        async def main():
            go(work())
            terminate()
            await trio.sleep(0.01)
            print("trio goes on", flush=True)
            gone_on.set()
            await trio.sleep(60)

        configure(sigterm="drain")
        trio.run(main)

    result = run_child(start, program)

    assert result == ("trio goes on\nquick: done\n", "", -signal.SIGTERM, result.seconds)


def test_a_second_sigterm_ends_the_drain_beside_a_loop_too():
    def program():
        async def main():
            go(asyncio.sleep(60))
            terminate()
            await asyncio.sleep(0.2)
            terminate()
            await asyncio.sleep(60)

        configure(sigterm="drain")
        asyncio.run(main())

    result = run_child(start, program)

    assert result == ("", "", -signal.SIGTERM, result.seconds)
    # `exit_timeout` is 25 s.
    assert result.seconds < 15


@pytest.mark.promise("On Windows, where nobody can send a SIGTERM, CTRL_BREAK drains as a SIGTERM does elsewhere")
@pytest.mark.parametrize("when", ["drain", "twice", "off", "handled"])
def test_ctrl_break_drains_as_sigterm_does(when):
    def program():
        # Elsewhere another takes its place, that ends a process as well.
        signal.SIGBREAK = number = getattr(signal, "SIGBREAK", None) or signal.SIGUSR1
        from omniloop import configure, go

        async def work():
            await quick()
            if when == "twice":
                os.kill(os.getpid(), number)
                await asyncio.sleep(60)

        if when == "handled":
            signal.signal(number, lambda *_: print("handled"))
        configure(sigterm=None if when == "off" else "drain")
        go(work())
        os.kill(os.getpid(), number)

    result = run_child(program)

    died = getattr(signal, "SIGBREAK", None) or signal.SIGUSR1
    said = {"off": "", "handled": "handled\nquick: done\n"}.get(when, "quick: done\n")
    assert result == (said, "", 0 if when == "handled" else -died, result.seconds)


@pytest.mark.skipif(sys.platform == "win32", reason="asyncio sets no handlers of signals there")
@pytest.mark.promise("One of asyncio's own is left to asyncio")
def test_a_handler_of_asyncios_own_is_left_to_asyncio():
    def program():
        async def main():
            told = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
            go(quick())
            terminate()
            await told.wait()
            print("told", flush=True)

        asyncio.run(main())

    result = run_child(start, program, env=DRAIN)

    assert result == ("told\nquick: done\nlater hooks run\n", "", 0, result.seconds)


@pytest.mark.promise("`OMNILOOP_SIGTERM=drain` counts from the import on")
def test_the_environment_variable_counts_from_the_import_on():
    def program():
        assert omniloop
        print(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
        configure(sigterm=None)
        print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)

    result = run_child(start, program, env=DRAIN)

    assert result == ("True\nTrue\nlater hooks run\n", "", 0, result.seconds)


def test_the_environment_variable_does_no_harm_where_the_import_is_in_another_thread():
    def program():
        def load():
            import omniloop

            assert omniloop

        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        import omniloop

        omniloop.go(asyncio.sleep(0.1)).add_done_callback(lambda _: print("done", flush=True))
        os.kill(os.getpid(), signal.SIGTERM)

    result = run_child(program, env=DRAIN)

    assert result == ("done\n", "", -signal.SIGTERM, result.seconds)


@pytest.mark.promise(
    "A program that systemd or Kubernetes stops, and that has no handler of SIGTERM, is told once what it will lose"
)
@pytest.mark.parametrize(
    ("where", "variable"),
    [
        ("systemd", "SYSTEMD_EXEC_PID"),
        ("systemd, by a shell", "SYSTEMD_EXEC_PID"),
        ("Kubernetes", "KUBERNETES_SERVICE_HOST"),
    ],
)
def test_a_program_that_a_service_manager_stops_is_told_once_what_it_will_lose(where, variable):
    def program():
        os.environ[variable] = str(os.getppid() if "shell" in where else os.getpid())
        omniloop.run(quick())
        omniloop.shutdown()
        omniloop.run(quick())

    result = run_child(start, program)

    assert (result.stdout, result.code) == ("quick: done\nquick: done\nlater hooks run\n", 0)
    assert result.stderr == (
        f"omniloop: {where.partition(',')[0]} stops this process by SIGTERM, which it has no handler of, and what is left to go() and "
        'not done by then is lost. Set OMNILOOP_SIGTERM=drain in its environment, or call configure(sigterm="drain") in the main '
        "thread.\n"
    )


@pytest.mark.parametrize("why", ["it drains", "it has a handler", "nobody stops it"])
def test_a_program_that_loses_nothing_is_told_nothing(why):
    def program():
        if why != "nobody stops it":
            os.environ["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
        if why == "it drains":
            configure(sigterm="drain")
        elif why == "it has a handler":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        omniloop.run(quick())

    result = run_child(start, program)

    assert result == ("quick: done\nlater hooks run\n", "", 0, result.seconds)


@pytest.mark.skipif(sys.platform != "linux", reason="makes a namespace of processes")
@pytest.mark.promise("So is process 1 of a container")
def test_process_1_is_told_that_a_stop_waits_until_it_kills():
    def program():
        omniloop.run(quick())

    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no process can be made process 1 here")

    result = subprocess.run(
        [*unshare, sys.executable, "-c", source_of(start, program)],
        env=child_environment(),
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )

    assert (result.stdout, result.returncode) == ("quick: done\nlater hooks run\n", 0)
    assert result.stderr.startswith("omniloop: this is process 1 and has no handler of SIGTERM, so that a stop of the ")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for the container's init")
@pytest.mark.promise("So is a program below a container's init, which is process 1 in its place")
@pytest.mark.parametrize("init", ["tini", "docker-init", "another"])
def test_a_program_below_an_init_of_containers_is_told_what_a_stop_will_lose(tmp_path, init):
    def program():
        omniloop.run(quick())

    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no process can be made process 1 here")
    (tmp_path / init).write_text('#!/bin/sh\n"$@"\nexit $?\n')
    (tmp_path / init).chmod(0o755)

    result = subprocess.run(
        [*unshare, tmp_path / init, sys.executable, "-c", source_of(start, program)],
        env=child_environment(),
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )

    assert (result.stdout, result.returncode) == ("quick: done\nlater hooks run\n", 0)
    if init == "another":
        assert result.stderr == ""
    else:
        assert result.stderr.startswith(
            f"omniloop: {init}, which is process 1 and passes signals on, stops this process by SIGTERM, which it has no handler of, "
        )
        assert result.stderr.count("\n") == 1
