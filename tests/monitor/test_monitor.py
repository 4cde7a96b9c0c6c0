"""The monitor answers who of the same user asks, whatever the loop does, and nothing listens unless asked."""

import asyncio
import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from targets import omniloop as command
from targets import sockets, target

import omniloop
from children import run_child
from omniloop import CannotStartError, Runtime, SettingError
from omniloop._monitor.client import Connection, NoAnswerError, processes
from omniloop._monitor.server import _monitor
from omniloop._seen import look
from programs import source_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and asks for the peer of a socket")


async def leaks():
    await asyncio.sleep(3600)


def has_work():
    omniloop.configure(monitor=True, slow_callback=None)
    for _ in range(3):
        omniloop.go(leaks(), daemon=True)
    omniloop.run(asyncio.sleep(0))
    print("ready", flush=True)
    sys.stdin.read()


def is_blocked():
    omniloop.configure(monitor=True, slow_callback=None)
    omniloop.run(asyncio.sleep(0))
    begun = threading.Event()

    def blocks_here():
        begun.set()
        time.sleep(60)

    omniloop.call_soon(blocks_here)
    begun.wait(5)
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


def ask(pid, question="snapshot"):
    with Connection(pid) as connection:
        return connection.ask(question)


def raw(env, pid):
    connection = socket.socket(socket.AF_UNIX)
    # Without a timeout until it is connected: with one it would not wait for a place in the queue.
    connection.connect(f"{env['XDG_RUNTIME_DIR']}/omniloop/{pid}.sock")
    connection.settimeout(9)
    return connection


# --- asked ------------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "A process with `monitor` on tells who of the same user asks what its loops do", section="The live view"
)
def test_a_monitored_process_tells_what_its_loops_do(env):
    with target(has_work, env) as child:
        told = ask(child.pid)

    assert told["pid"] == child.pid
    (shared,) = told["runtimes"]
    (group,) = shared["groups"]
    assert (shared["name"], shared["unfinished"]) == ("omniloop", 3)
    assert (group["name"], group["count"], group["kind"]) == ("leaks", 3, "daemon")
    assert group["chain"][0]["function"] == "leaks"
    assert shared["stats"]["accepted"] == 4
    assert shared["blocked"] is None
    assert shared["workers"]["workers"] == 1


@pytest.mark.promise(
    "It answers also while its loop is blocked, and shows the stack that blocks it", section="The live view"
)
def test_a_process_whose_loop_is_blocked_answers_and_shows_the_stack(env):
    with target(is_blocked, env) as child:
        until = time.monotonic() + 8
        while (blocked := ask(child.pid)["runtimes"][0]["blocked"]) is None:
            assert time.monotonic() < until
            time.sleep(0.01)

    assert blocked["for"] > 0.1
    assert "in blocks_here" in blocked["stack"]


def has_many():
    omniloop.configure(monitor=True, slow_callback=None)
    for _ in range(100_000):
        omniloop.go(leaks(), daemon=True)
    omniloop.run(asyncio.sleep(0), timeout=50)
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


@pytest.mark.heavy
@pytest.mark.alone
@pytest.mark.timeout(60)
@pytest.mark.promise("It answers within a second of work also with 100,000 tasks, on a screen", section="The live view")
def test_a_process_with_100_000_tasks_answers_within_a_second_of_work(env):
    with target(has_many, env) as child:

        def worked():
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        with Connection(child.pid, timeout=30) as connection:
            before = worked()
            told = connection.ask("snapshot")
            # Its own time, because the machine may be busy.
            took = worked() - before

    assert told["runtimes"][0]["groups"][0]["count"] == 100_000
    assert len(json.dumps(told)) < 20_000
    assert took < 1


def test_of_many_names_only_those_are_read_that_are_shown(monkeypatch):
    """A hundred thousand tasks with names of their own took a second more."""
    read = []
    monkeypatch.setattr(look, "shown", lambda name, *most: read.append(name) or name)
    with Runtime() as runtime:
        for number in range(1000):
            runtime.go(asyncio.sleep(60), name=f"job {number}", daemon=True)
        runtime.run(asyncio.sleep(0))
        (group,) = look.look("", runtime._current())["groups"]

    assert group["name"] == "job 0, job 1, job 2, …"
    assert len(read) < 200


def fails():
    raise LookupError("not there")


def has_failed():
    omniloop.configure(monitor=True, on_error=lambda failure: None)
    omniloop.call_soon(fails)
    omniloop.flush(5)
    print("ready", flush=True)
    sys.stdin.read()


def test_the_last_failures_are_told_with_their_tracebacks_whatever_the_hook_does_with_them(env):
    with target(has_failed, env) as child:
        (failure,) = ask(child.pid)["failures"]

    assert (failure["name"], failure["error"]) == ("fails", "LookupError: not there")
    assert "in fails" in failure["traceback"]
    assert 'File "' in failure["submitted"]


def has_a_resource():
    omniloop.configure(monitor=True)

    class Client:
        async def aclose(self):
            pass

    client = omniloop.resource(Client)
    client.run(lambda client: asyncio.sleep(0))
    print("ready", flush=True)
    sys.stdin.read()


def test_the_resources_are_told(env):
    with target(has_a_resource, env) as child:
        (resource,) = ask(child.pid)["runtimes"][0]["resources"]

    assert "Client" in resource["name"]


# --- who asks ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("Only the user can reach its socket", section="The live view")
def test_the_socket_is_the_users_alone(env):
    with target(has_work, env) as child:
        folder = os.stat(f"{env['XDG_RUNTIME_DIR']}/omniloop")
        path = os.stat(f"{env['XDG_RUNTIME_DIR']}/omniloop/{child.pid}.sock")

    assert stat.S_IMODE(folder.st_mode) == 0o700
    assert stat.S_IMODE(path.st_mode) == 0o600


STRANGER = r"""
import os, socket, sys
os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
connection.settimeout(9)
connection.connect(sys.argv[1])
connection.sendall(b'{"ask": "snapshot"}\n')
print(connection.recv(100))
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root, to become another user")
@pytest.mark.promise("Another user is refused, also where the socket was opened to all", section="The live view")
@pytest.mark.parametrize("opened", [False, True])
def test_another_user_is_refused(env, opened):
    with target(has_work, env) as child:
        path = f"{env['XDG_RUNTIME_DIR']}/omniloop/{child.pid}.sock"
        if opened:
            os.chmod(env["XDG_RUNTIME_DIR"], 0o755)
            os.chmod(os.path.dirname(path), 0o755)
            os.chmod(path, 0o666)
        stranger = subprocess.run(
            [sys.executable, "-c", STRANGER, path], capture_output=True, text=True, timeout=20, check=False
        )
        own = raw(env, child.pid)
        own.sendall(b'{"ask": "hello"}\n')
        assert json.loads(own.recv(4096))["pid"] == child.pid
        own.close()

    if opened:
        # Not a word, and the connection is closed.
        assert stranger.stdout == "b''\n" or "BrokenPipe" in stranger.stderr or "ConnectionReset" in stranger.stderr
    else:
        assert "PermissionError" in stranger.stderr


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root, to make a directory of another user"
)
@pytest.mark.promise(
    "A directory that is not the user's alone is not used, neither to listen nor to ask", section="The live view"
)
@pytest.mark.parametrize("how", ["another user's", "open to others", "a link"])
def test_a_directory_that_is_not_the_users_alone_is_refused(env, how):
    folder = f"{env['XDG_RUNTIME_DIR']}/omniloop"
    if how == "a link":
        os.symlink("/root", folder)
    else:
        os.mkdir(folder, 0o700)
        os.chmod(folder, 0o777 if how == "open to others" else 0o700)
        if how == "another user's":
            os.chown(folder, 65534, 65534)

    with Runtime() as runtime:
        with pytest.raises(CannotStartError, match="The monitor can't listen: .*omniloop"):
            omniloop.configure(monitor=True)
        assert runtime.call_soon(int).result(timeout=5) == 0
    with pytest.raises(NoAnswerError, match="can't be asked"):
        Connection(os.getppid())
    assert processes() == []


# --- bad clients ------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "What a client does, garbage or silence, holds up no other, and harms nothing", section="The live view"
)
@pytest.mark.parametrize(
    ("garbage", "answer"),
    [
        (b"hello\n", "JSONDecodeError"),
        (b"\xff\xfe\x00\n", "UnicodeDecodeError"),
        (b"[1]\n", "TypeError: A question is a JSON object"),
        (b'{"ask": "the time"}\n', "There is no question 'the time'"),
        (b"[" * 4000 + b"\n", "RecursionError|JSONDecodeError"),
    ],
    ids=["text", "bytes", "a list", "no question", "deep"],
)
def test_garbage_is_answered_with_what_is_wrong_and_the_next_question_too(env, garbage, answer):
    with target(has_work, env) as child, raw(env, child.pid) as connection:
        connection.sendall(garbage + b'{"ask": "hello"}\n')
        with connection.makefile() as file:
            error, hello = json.loads(file.readline()), json.loads(file.readline())

    assert any(words in error["error"] for words in answer.split("|"))
    assert hello["pid"] == child.pid


def test_a_question_without_end_is_cut_off(env):
    with target(has_work, env) as child:
        with raw(env, child.pid) as connection, contextlib.suppress(OSError):
            connection.sendall(b"x" * 1_000_000)
            assert connection.recv(100) == b""
        assert ask(child.pid, "hello")["pid"] == child.pid


def test_a_client_that_never_reads_holds_up_nobody_and_is_dropped(env):
    with target(has_work, env) as child, raw(env, child.pid) as silent:
        with contextlib.suppress(BlockingIOError):
            silent.setblocking(False)
            while True:
                silent.send(b'{"ask": "snapshot"}\n' * 100)
        began = time.monotonic()
        assert ask(child.pid, "hello")["pid"] == child.pid
        assert time.monotonic() - began < 4

        # Dropped, once its time is over.
        hung_up = select.poll()
        hung_up.register(silent, select.POLLHUP)
        assert hung_up.poll(9000)


@pytest.mark.promise("Clients that ask nothing keep nobody out", section="The live view")
def test_clients_that_ask_nothing_keep_nobody_out(env):
    """With 32 connections that said nothing, everybody who came after them was refused."""
    with target(has_work, env) as child, contextlib.ExitStack() as stack:
        first = stack.enter_context(Connection(child.pid))
        assert first.ask("hello")["pid"] == child.pid
        crowd = [stack.enter_context(raw(env, child.pid)) for _ in range(40)]

        assert ask(child.pid, "hello")["pid"] == child.pid
        # Who asks goes on; those that are too many are told so by the end of the connection.
        assert first.ask("hello")["pid"] == child.pid
        assert crowd[0].recv(100) == b""


# --- several of one number --------------------------------------------------------------------------------------------


def in_a_container(env, program):
    """As in a container that shares the directory: the first process there has the number 1, or what is left of it."""
    return target(program, env, "unshare", "--pid", "--fork", "--mount-proc", sys.executable)


def can_make_containers():
    made = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") and subprocess.run(made, capture_output=True, check=False).returncode == 0


CONTAINERS = pytest.mark.skipif(not can_make_containers(), reason="takes the right to make namespaces")


@CONTAINERS
@pytest.mark.promise(
    "Containers that share a directory leave each other's sockets alone, whatever numbers their processes have",
    section="The live view",
)
def test_containers_that_share_a_directory_leave_each_others_sockets_alone(env):
    """The second took the name of the first, and `ps` in one removed the socket of the other."""
    with in_a_container(env, has_work) as first:
        before = sockets(env)
        with in_a_container(env, has_work) as second:
            both = sockets(env)
            # Here no process of ours has these numbers.
            command("ps", env=env)
            after = sockets(env)
            second.communicate(timeout=9)
        # The end of the second took its own away, and no other.
        left = sockets(env)
        first.communicate(timeout=9)

    assert before == left == {"1.sock"}
    assert both == after == {"1.sock", "1-1.sock"}
    assert sockets(env) == set()


def test_the_socket_of_another_process_is_neither_taken_nor_removed(env):
    """One in another container may have our number."""
    folder = f"{env['XDG_RUNTIME_DIR']}/omniloop"
    os.mkdir(folder, 0o700)
    with socket.socket(socket.AF_UNIX) as other, Runtime() as runtime:
        other.bind(f"{folder}/{os.getpid()}.sock")
        other.listen()
        omniloop.configure(monitor=True)
        both = sockets(env)
        # In our place, since somebody has removed ours.
        os.unlink(f"{folder}/{os.getpid()}-1.sock")
        with socket.socket(socket.AF_UNIX) as late:
            late.bind(f"{folder}/{os.getpid()}-1.sock")
            omniloop.configure(monitor=False)

        assert both == sockets(env) == {f"{os.getpid()}.sock", f"{os.getpid()}-1.sock"}


# --- on and off -------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "Nothing listens, and nothing of the monitor is loaded, unless it is switched on", section="The live view"
)
def test_nothing_listens_and_nothing_is_loaded_unless_it_is_switched_on(env):
    def program():
        omniloop.run(asyncio.sleep(0))
        print([name for name in sys.modules if name.startswith("omniloop._monitor")], "json" in sys.modules)
        print([thread.name for thread in threading.enumerate() if "monitor" in thread.name])

    result = run_child(program, env=env)

    assert (result.stdout, result.stderr, result.code) == ("[] False\n[]\n", "", 0)
    assert sockets(env) == set()


@pytest.mark.promise("The environment switches it on, `configure()` on and off", section="The live view")
def test_the_environment_switches_it_on_and_configure_off(env):
    def program():
        omniloop.run(asyncio.sleep(0))
        folder = os.environ["XDG_RUNTIME_DIR"] + "/omniloop"
        print(os.listdir(folder) == [f"{os.getpid()}.sock"])
        omniloop.configure(monitor=False)
        print(os.listdir(folder), [thread.name for thread in threading.enumerate() if "monitor" in thread.name])
        omniloop.configure(monitor=True)
        print(os.listdir(folder) == [f"{os.getpid()}.sock"])

    result = run_child(program, env={**env, "OMNILOOP_MONITOR": "1"})

    assert (result.stdout, result.stderr, result.code) == ("True\n[] []\nTrue\n", "", 0)
    # At exit it is removed.
    assert sockets(env) == set()


def test_a_runtime_that_starts_does_not_switch_on_what_configure_has_switched_off(env):
    """It did, since the environment counted for each runtime by itself."""

    def program():
        omniloop.configure(monitor=False)
        with Runtime() as runtime:
            print(runtime.call_soon(os.listdir, os.environ["XDG_RUNTIME_DIR"]).result(5))

    result = run_child(program, env={**env, "OMNILOOP_MONITOR": "1"})

    assert (result.stdout, result.stderr, result.code) == ("[]\n", "", 0)


def test_the_environment_is_checked(env):
    result = run_child("import omniloop; omniloop.go(None)", env={**env, "OMNILOOP_MONITOR": "maybe"})
    assert "OMNILOOP_MONITOR" in result.stderr or result.code
    with pytest.raises(SettingError, match="monitor='yes': give True or False"):
        omniloop.configure(monitor="yes")


def test_a_runtime_starts_also_where_the_monitor_can_not(env):
    os.mkdir(f"{env['XDG_RUNTIME_DIR']}/omniloop", 0o755)
    os.chmod(f"{env['XDG_RUNTIME_DIR']}/omniloop", 0o755)

    def program():
        print(omniloop.run(asyncio.sleep(0, "up")))

    result = run_child(program, env={**env, "OMNILOOP_MONITOR": "1"})

    assert (result.stdout, result.code) == ("up\n", 0)
    assert result.stderr.startswith("The monitor can't listen: ")
    assert "Run: chmod 700" in result.stderr


@pytest.mark.promise("Asked by nobody, it wakes no thread", section="The live view")
def test_a_monitor_that_nobody_asks_wakes_no_thread(env):
    def program():
        omniloop.configure(monitor=True)
        omniloop.run(asyncio.sleep(0))
        (number,) = [thread.native_id for thread in threading.enumerate() if "monitor" in thread.name]

        def switches():
            status = Path(f"/proc/self/task/{number}/status").read_text()
            return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])

        # Some times, because on a busy machine it comes to its rest late. Were it to poll, it would be woken each time.
        fewest = 9
        for _ in range(8):
            before = switches()
            time.sleep(1)
            fewest = min(fewest, switches() - before)
            if not fewest:
                break
        print(fewest)

    result = run_child(program, env=env)

    assert (result.stdout, result.stderr, result.code) == ("0\n", "", 0)


# 3.13 counts the threads after the parent's hooks, which have started it again.
FORKS_QUIETLY = ["-W", "ignore::DeprecationWarning"] if sys.version_info[:2] == (3, 13) else []


# --- fork, and the end ------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "Its thread ends before a fork, and goes on in the parent; the child has a socket of its own",
    section="The live view",
)
def test_its_thread_ends_before_a_fork_and_the_child_has_its_own(env):
    def program():
        omniloop.configure(monitor=True)
        omniloop.run(asyncio.sleep(0))
        folder = os.environ["XDG_RUNTIME_DIR"] + "/omniloop"
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            names = [thread.name for thread in threading.enumerate()]
            omniloop.run(asyncio.sleep(0))
            print(names, f"{os.getpid()}.sock" in os.listdir(folder), flush=True)
            os.read(here, 1)
            sys.exit()
        until = time.monotonic() + 5
        while len(os.listdir(folder)) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        for pid in (os.getpid(), child):
            with Connection(pid) as connection:
                print(connection.ask("hello")["pid"] == pid, flush=True)
        os.write(there, b"x")
        assert os.waitpid(child, 0)[1] == 0
        print(os.listdir(folder) == [f"{os.getpid()}.sock"])

    result = run_child(program, env=env, flags=FORKS_QUIETLY)

    assert sorted(result.stdout.splitlines()) == sorted(["['MainThread'] True", "True", "True", "True"])
    assert (result.stderr, result.code) == ("", 0)
    assert sockets(env) == set()


def test_a_child_that_does_not_use_the_loop_holds_nothing_of_its_parents_monitor(env):
    def program():
        omniloop.configure(monitor=True)
        omniloop.run(asyncio.sleep(0))

        def links():
            found = {}
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    found[name] = os.readlink(f"/proc/self/fd/{name}")
            return set(found.values())

        omniloop.shutdown()
        before = links()
        if os.fork() == 0:
            # The listening socket, the bell and the selector are gone.
            print(len([name for name in before - links() if "socket" in name or "eventpoll" in name]))
            sys.stdout.flush()
            os._exit(0)
        assert os.wait()[1] == 0

    result = run_child(program, env=env, flags=FORKS_QUIETLY)

    assert (result.stdout, result.stderr, result.code) == ("4\n", "", 0)


def drains():
    async def slow():
        await asyncio.sleep(3)

    omniloop.configure(monitor=True)
    omniloop.go(slow())
    omniloop.run(asyncio.sleep(0))
    print("ready", flush=True)


def test_it_tells_what_the_exit_waits_for_and_is_gone_after_it(env):
    with target(drains, env) as child:
        groups = ask(child.pid)["runtimes"][0]["groups"]
        child.wait(timeout=9)
        left = sockets(env)

    assert [group["name"] for group in groups] == ["drains.<locals>.slow"] or [group["name"] for group in groups] == [
        "slow"
    ]
    assert left == set()


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "`python -m omniloop ps` lists the processes that can be asked, and removes the sockets of dead ones",
    section="The live view",
)
def test_ps_lists_who_can_be_asked_and_removes_what_the_dead_have_left(env):
    with target(has_work, env) as child:
        listed = command("ps", env=env)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=5)
        assert sockets(env) == {f"{child.pid}.sock"}
        after = command("ps", env=env)

    title, *lines = listed.stdout.splitlines()
    # A process of the same user may have its socket in /tmp.
    (line,) = [line for line in lines if "has_work" in line or str(child.pid) in line]
    assert title.split() == ["PID", "PYTHON", "FOR", "COMMAND"]
    assert line.split()[0] == str(child.pid)
    assert str(child.pid) not in after.stdout
    assert sockets(env) == set()


@pytest.mark.promise(
    "`python -m omniloop dump PID` shows what is unfinished, and where it waits", section="The live view"
)
def test_dump_shows_what_is_unfinished_and_where_it_waits(env):
    with target(has_work, env) as child:
        text = command("dump", child.pid, env=env)
        told = command("dump", child.pid, "--json", env=env)

    assert "omniloop: 3 unfinished\n  3x leaks (daemon), the oldest for " in text.stdout
    assert "waits at File" in text.stdout
    assert json.loads(told.stdout)["runtimes"][0]["unfinished"] == 3
    assert (text.stderr, text.returncode, told.stderr, told.returncode) == ("", 0, "", 0)


def test_a_process_that_can_not_be_asked_is_told_how_it_could(env):
    nobody = command("dump", 4_000_000, env=env)
    other = command("dump", os.getpid(), env=env)

    assert (nobody.stderr, nobody.returncode) == ("There is no process 4000000.\n", 1)
    assert "it has no monitor. Turn it on with configure(monitor=True) or OMNILOOP_MONITOR=1" in other.stderr
    assert (other.stdout, other.returncode) == ("", 1)


def is_stopped():
    omniloop.configure(monitor=True)
    print("ready", flush=True)
    sys.stdin.read()


def test_a_process_that_does_not_answer_is_told_of_in_time(env):
    with target(is_stopped, env) as child:
        os.kill(child.pid, signal.SIGSTOP)
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        with (
            Connection(child.pid, timeout=0.3) as connection,
            pytest.raises(NoAnswerError, match=r"did not answer within 0.3 s: it is stopped"),
        ):
            connection.ask("hello")
        os.kill(child.pid, signal.SIGCONT)


def has_odd_names():
    omniloop.configure(monitor=True)
    omniloop.go(leaks(), name="\x1b[2J\x07red", daemon=True)
    omniloop.run(asyncio.sleep(0))
    print("ready", flush=True)
    sys.stdin.read()


def test_a_name_does_nothing_to_the_terminal(env):
    with target(has_odd_names, env) as child:
        text = command("dump", child.pid, env=env)

    assert r"\x1b[2J\x07red" in text.stdout
    assert "\x1b" not in text.stdout


def test_several_processes_are_told_apart(env):
    with target(has_work, env) as one, target(has_work, env) as other:
        result = command("web", env=env)

    assert result.returncode == 1
    assert "Several processes can be asked. Say which:" in result.stderr
    assert str(one.pid) in result.stderr and str(other.pid) in result.stderr


def has_an_odd_command_line():
    omniloop.configure(monitor=True)
    omniloop.go(leaks(), name="half\udc80\nforged", daemon=True)
    omniloop.run(asyncio.sleep(0))
    sys.orig_argv = ["service", "--name=\udcff\u202e\nforged"]
    print("ready", flush=True)
    sys.stdin.read()


@pytest.mark.promise("One odd name or command line hides no other process from `ps`", section="The live view")
def test_an_odd_command_line_hides_nobody(env):
    """`ps` raised a UnicodeEncodeError, and listed none."""
    with target(has_work, env) as plain, target(has_an_odd_command_line, env) as odd:
        listed = command("ps", env={**env, "PYTHONIOENCODING": "ascii"})
        text = command("dump", odd.pid, env={**env, "PYTHONIOENCODING": "ascii"})

    assert (listed.stderr, listed.returncode, text.stderr, text.returncode) == ("", 0, "", 0)
    assert str(plain.pid) in listed.stdout
    assert r"service --name=\udcff\u202e forged" in listed.stdout
    assert r"  half\udc80\nforged (daemon)" in text.stdout


def is_another_users():
    omniloop.configure(monitor=True)
    omniloop.run(asyncio.sleep(0))
    os.setuid(60_000 + os.getpid() % 5_000)
    print("ready", flush=True)
    sys.stdin.read()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root, to become another user")
@pytest.mark.promise(
    "Root may look into every process, and is told whose one is that it can't ask", section="The live view"
)
def test_root_is_told_whose_a_process_is(env):
    """It was told that the process had no monitor."""
    with target(is_another_users, env) as child:
        told = command("dump", child.pid, env=env)
        user = 60_000 + child.pid % 5_000
        folder = f"/tmp/omniloop-{user}"
        os.mkdir(folder, 0o700)
        os.chown(folder, user, user)
        os.rename(f"{env['XDG_RUNTIME_DIR']}/omniloop/{child.pid}.sock", f"{folder}/{child.pid}.sock")
        try:
            found = command("dump", child.pid, env=env)
        finally:
            os.unlink(f"{folder}/{child.pid}.sock")
            os.rmdir(folder)

    assert (told.stdout, told.returncode) == ("", 1)
    assert f"it is of the user {user}, and has no socket in /run/user/{user}/omniloop or {folder}" in told.stderr
    assert (found.stderr, found.returncode) == ("", 0)
    assert f"process {child.pid}" in found.stdout


def has_failed_at_length():
    omniloop.configure(monitor=True, on_error=lambda failure: None)

    def fails():
        raise ValueError("x" * 10_000_000)

    for number in range(30):
        omniloop.call_soon(fails)
    omniloop.flush(20)
    print("ready", flush=True)
    sys.stdin.read()


@pytest.mark.promise("Of a failure's text as much is kept as can be read", section="The live view")
def test_a_failures_text_is_kept_in_part(env):
    """20 failures of 10 MB were kept twice: 480 MB."""
    with target(has_failed_at_length, env) as child:
        failures = ask(child.pid)["failures"]

    assert len(failures) == 20
    assert failures[0]["error"] == "ValueError: " + "x" * 487 + "…"
    assert "in fails" in failures[0]["traceback"] and "9,980," in failures[0]["traceback"]
    assert len(json.dumps(failures)) < 500_000


# --- where it can't be ------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "Where the live view can't be, one line says so, and everything else works", section="The live view"
)
@pytest.mark.parametrize("missing", ["os.geteuid", "socket.AF_UNIX"])
def test_where_it_can_not_be_a_line_says_so_and_work_is_done(env, missing):
    """`go()` itself raised an AttributeError."""

    def program():
        import socket

        modules = {"os": os, "socket": socket}
        # Where there are no Unix sockets it takes others.
        socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)
        module, _, name = sys.argv[1].partition(".")
        delattr(modules[module], name)
        print(omniloop.run(asyncio.sleep(0, "ran")))
        try:
            omniloop.configure(monitor=True)
        except CannotStartError as error:
            print(error)
        from omniloop.__main__ import main

        print(main(["ps"]))

    result = run_child(
        f"import sys; sys.argv = ['', {missing!r}]\n" + source_of(program), env={**env, "OMNILOOP_MONITOR": "1"}
    )

    line = "There is no live view on this system: it takes Unix sockets, and numbers of users. dump(), in the program, works.\n"
    assert (result.stdout, result.stderr, result.code) == (f"ran\n{line}1\n", line * 2, 0)


def test_no_thread_for_it_is_a_cannot_start_error(env, monkeypatch):
    """It was a bare RuntimeError where it listened already."""

    def no_room(thread):
        raise RuntimeError("can't start new thread")

    with Runtime() as runtime:
        runtime.call_soon(int).result(timeout=5)
        monkeypatch.setattr(threading.Thread, "start", no_room)
        with pytest.raises(CannotStartError, match="The monitor can't listen: can't start new thread"):
            omniloop.configure(monitor=True)
        assert sockets(env) == set()
        monkeypatch.undo()
        # As the thread is ended before a fork.
        monkeypatch.setenv("XDG_RUNTIME_DIR", env["XDG_RUNTIME_DIR"])
        omniloop.configure(monitor=True)
        _monitor.hold_still()
        monkeypatch.setattr(threading.Thread, "start", no_room)
        with pytest.raises(CannotStartError, match="The monitor can't listen: can't start new thread"):
            _monitor.start()
        monkeypatch.undo()
        _monitor.go_on()
        omniloop.configure(monitor=False)
