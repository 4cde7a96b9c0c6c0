"""`top`, `web` and `attach`, with the real thing: a terminal, a browser, a process that was not prepared."""

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from targets import omniloop as command
from targets import target

import guardian
import omniloop
from children import child_environment
from omniloop._monitor import web
from omniloop._monitor.client import Connection, NoAnswerError

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and asks for the peer of a socket"),
    pytest.mark.timeout(60),
]

PATIENCE = 25


async def leaks():
    await asyncio.sleep(3600)


def fails():
    raise LookupError("not there")


def is_busy():
    omniloop.configure(monitor=True, slow_callback=None, on_error=lambda failure: None)
    for _ in range(3):
        omniloop.go(leaks(), daemon=True)
    omniloop.call_soon(fails)
    omniloop.flush(5)
    begun = threading.Event()

    def blocks_here():
        begun.set()
        time.sleep(600)

    omniloop.call_soon(blocks_here)
    begun.wait(5)
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


# --- top --------------------------------------------------------------------------------------------------------------


class Terminal:
    """A terminal of 130 by 40, in tmux."""

    def __init__(self, env, *arguments):
        self._server = f"omniloop-{os.getpid()}-{time.monotonic_ns()}"
        self._tmux(
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "130",
            "-y",
            "40",
            sys.executable,
            "-m",
            "omniloop",
            *arguments,
            env=env,
        )

    def _tmux(self, *arguments, env=None):
        return subprocess.run(
            ["tmux", "-L", self._server, *map(str, arguments)],
            env=child_environment(env),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def type(self, *keys):
        self._tmux("send-keys", *keys)

    def read_until(self, *words):
        until = time.monotonic() + PATIENCE
        while not all(word in (seen := self._tmux("capture-pane", "-p").stdout) for word in words):
            assert time.monotonic() < until, seen
            time.sleep(0.1)
        return seen

    def is_there(self):
        return self._tmux("list-sessions").returncode == 0

    def end(self):
        self._tmux("kill-server")


@pytest.fixture
def terminal(env):
    if shutil.which("tmux") is None:
        pytest.skip("no tmux here")
    pytest.importorskip("textual")
    opened = []

    def open_terminal(*arguments):
        opened.append(Terminal(env, *arguments))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.end()


@pytest.mark.promise(
    "`top` shows it live in the terminal: groups that open to the await chain, what blocks, the last failures",
    section="The live view",
)
def test_top_shows_it_in_a_terminal(env, terminal):
    with target(is_busy, env) as child:
        top = terminal("top", child.pid)

        seen = top.read_until("3  leaks (daemon)", "a callback blocks the loop of omniloop", "runs on the loop")
        assert "finished" in seen and "lag" in seen
        top.type("Down", "Enter")
        top.read_until("submitted at File", ", in leaks")
        # The tabs are above the tree.
        top.type("BTab", "Right")
        top.read_until("in blocks_here")
        top.type("Right")
        top.read_until("fails: LookupError: not there", "in fails")
        top.type("q")
        until = time.monotonic() + PATIENCE
        while top.is_there():
            assert time.monotonic() < until
            time.sleep(0.1)


def test_top_says_so_when_the_process_ends(env, terminal):
    with target(is_busy, env) as child:
        top = terminal("top", child.pid)
        top.read_until("leaks (daemon)")

        child.kill()
        child.wait(5)

        # What was seen last stays.
        top.read_until(f"{child.pid}", "leaks (daemon)", "There is no process")


def test_top_without_textual_says_what_to_install(env, tmp_path):
    """As in an environment without the extra."""
    (tmp_path / "textual.py").write_text("raise ModuleNotFoundError('No module named textual', name='textual')")
    path = os.pathsep.join([str(tmp_path), child_environment()["PYTHONPATH"]])

    with target(is_busy, env) as child:
        result = command("top", child.pid, env={**env, "PYTHONPATH": path})
        dumped = command("dump", child.pid, env={**env, "PYTHONPATH": path})

    assert (result.stdout, result.returncode) == ("", 1)
    assert "pip install 'textual>=1.0'" in result.stderr
    assert dumped.returncode == 0


# --- web --------------------------------------------------------------------------------------------------------------


@contextmanager
def served(env, pid):
    child = subprocess.Popen(
        [sys.executable, "-m", "omniloop", "web", str(pid)],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(env),
        start_new_session=True,
    )
    guardian.watch(child)
    try:
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.communicate()
        guardian.forget(child)


def get(url, host=None):
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


@pytest.mark.promise(
    "`web` shows it in a browser, on this machine alone, to who has the address with its token", section="The live view"
)
def test_web_answers_only_who_has_the_token_and_came_by_its_own_address(env):
    with target(is_busy, env) as child, served(env, child.pid) as url:
        base, token = url.rstrip("/").rsplit("/", 1)
        port = base.rpartition(":")[2]

        code, headers, page = get(url)
        assert (code, base) == (200, f"http://127.0.0.1:{port}")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert token not in page
        code, _, told = get(f"{url}snapshot")
        assert code == 200
        assert json.loads(told)["runtimes"][0]["groups"][0]["name"] == "leaks"

        assert get(f"{base}/")[0] == 403
        assert get(f"{base}/{'x' * len(token)}/snapshot")[0] == 403
        assert get(f"{url}other")[0] == 404
        # A page of elsewhere whose name leads here.
        assert get(f"{url}snapshot", host="evil.example:80")[0] == 421


@pytest.mark.promise("`web --open` shows its address to the browser, and to no other user", section="The live view")
def test_web_open_keeps_the_token_out_of_command_lines(env, tmp_path):
    """Every user of the machine can read them."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked; mv {tmp_path}/asked {tmp_path}/opened\n')
    browser.chmod(0o755)

    with target(is_busy, env) as child:
        web = subprocess.Popen(
            [sys.executable, "-m", "omniloop", "web", str(child.pid), "--open"],
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment({**env, "BROWSER": str(browser)}),
            start_new_session=True,
        )
        guardian.watch(web)
        try:
            url = web.stdout.readline().strip()
            until = time.monotonic() + PATIENCE
            while not (tmp_path / "opened").exists():
                assert time.monotonic() < until
                time.sleep(0.05)
            opened = (tmp_path / "opened").read_text().strip()
            page = Path(urllib.parse.unquote(urllib.parse.urlparse(opened).path))
            mode, text = stat.S_IMODE(page.stat().st_mode), page.read_text()
            web.send_signal(signal.SIGINT)
            web.wait(PATIENCE)
        finally:
            web.kill()
            web.communicate()
            guardian.forget(web)

    assert opened.startswith("file://") and url not in opened and url.split("/")[-2] not in opened
    assert f"url={url}" in text
    assert mode == 0o600
    assert not page.exists()


def test_web_shows_it_in_a_browser(env, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")

    with target(is_busy, env) as child, served(env, child.pid) as url:
        result = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--window-size=390,800",
             "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", url],
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip

    assert f"process {child.pid}, Python" in result.stdout
    assert "3  leaks (daemon)" in result.stdout
    assert "in blocks_here" in result.stdout
    assert "fails: LookupError: not there" in result.stdout
    assert result.stdout.count("<polyline points=") == 6
    assert "CONSOLE" not in result.stderr, result.stderr


# --- attach -----------------------------------------------------------------------------------------------------------


def was_not_prepared():
    omniloop.go(leaks(), daemon=True)
    omniloop.run(asyncio.sleep(0))
    print("ready", flush=True)
    while True:
        time.sleep(0.05)


def has_a_blocked_main_thread():
    omniloop.run(asyncio.sleep(0))
    print("ready", flush=True)
    threading.Event().wait()


def has_no_omniloop():
    print("ready", flush=True)
    while True:
        time.sleep(0.05)


NEW = pytest.mark.skipif(sys.version_info < (3, 14), reason="sys.remote_exec is new in 3.14")


@NEW
@pytest.mark.promise(
    "On Python 3.14 and later, `attach` lets a process be asked that was not prepared", section="The live view"
)
def test_attach_lets_a_process_be_asked_that_was_not_prepared(env):
    with target(was_not_prepared, env) as child:
        with pytest.raises(NoAnswerError, match=f"python -m omniloop attach {child.pid}"):
            Connection(child.pid)

        result = command("attach", child.pid, env=env)

        assert (result.stderr, result.returncode) == ("", 0)
        with Connection(child.pid) as connection:
            assert connection.ask("snapshot")["runtimes"][0]["groups"][0]["name"] == "leaks"
        assert command("attach", child.pid, env=env).returncode == 0


@NEW
@pytest.mark.promise(
    "`attach` says plainly what is missing, or that the main thread is blocked", section="The live view"
)
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (has_a_blocked_main_thread, "did not run any Python within 5 s: it is blocked"),
        (has_no_omniloop, "it has not imported omniloop"),
    ],
)
def test_attach_says_what_is_in_the_way(env, program, words):
    with target(program, env) as child:
        result = command("attach", child.pid, env=env)

    assert (result.stdout, result.returncode) == ("", 1)
    assert words in result.stderr


def test_attach_names_what_is_not_there(env):
    result = command("attach", 4_000_000, env=env)

    assert (result.stdout, result.stderr, result.returncode) == ("", "There is no process 4000000.\n", 1)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="it can attach")
def test_attach_says_which_python_it_takes(env):
    result = command("attach", os.getpid(), env=env)

    assert result.returncode == 1
    assert "attach needs Python 3.14 or later, of the same minor version in both processes" in result.stderr


# --- who asks how often -----------------------------------------------------------------------------------------------


@pytest.mark.promise("`top` asks one question at a time, however long the answer takes", section="The live view")
def test_top_asks_one_question_at_a_time(monkeypatch):
    """It asked once a second, each time in another thread, over one connection."""
    pytest.importorskip("textual")
    from omniloop._monitor import top

    asked, answer = threading.Semaphore(0), threading.Event()

    def slow(pid, question):
        asked.release()
        answer.wait(PATIENCE)
        raise NoAnswerError("slow")

    monkeypatch.setattr(top, "asked", slow)

    async def look():
        app = top.Top(os.getpid())
        async with app.run_test() as pilot:
            assert await asyncio.to_thread(asked.acquire, timeout=PATIENCE)
            for _ in range(3):
                app.poll()
            await pilot.pause()
            assert not asked.acquire(blocking=False)
            answer.set()
            # And the next when that is answered.
            assert await asyncio.to_thread(asked.acquire, timeout=PATIENCE)

    asyncio.run(look())


@pytest.mark.promise("All tabs of `web` see the same rates", section="The live view")
def test_tabs_of_web_see_the_same_rates(monkeypatch):
    """Each asked the process for itself, and saw the rate since the other one had asked."""
    asked = []

    def answers(pid, question):
        asked.append(question)
        finished = 100 * len(asked)
        stats = {"finished": finished, "failed": 0, "running": 0, "queue_depth": 0, "loop_lag": 0.0}
        runtime = {"stats": stats, "blocked": None, "workers": None}
        return {"time": float(len(asked)), "command": ["x"], "runtimes": [runtime]}

    now = 50.0
    monkeypatch.setattr(web, "asked", answers)
    monkeypatch.setattr(web, "time", types.SimpleNamespace(monotonic=lambda: now))
    with web.Server(os.getpid()) as server:
        rates = []
        for _ in range(3):
            one = server.snapshot()
            now += 0.5
            other = server.snapshot()
            now += 0.5
            rates.append((one["figures"][0], other["figures"][0]))

    assert rates == [(0.0, 0.0), (100.0, 100.0), (100.0, 100.0)]
    assert len(asked) == 3


@pytest.mark.promise("`top` cuts no word at 120 columns", section="The live view")
def test_top_cuts_no_word_at_120_columns():
    pytest.importorskip("textual")
    from omniloop._monitor import top

    far = (
        'waits at File "/srv/application/with/a/long/path/to/the/module.py", line 4711, in Service.handle.<locals>.wait'
    )
    site = {
        "file": "/srv/application/with/a/long/path/to/the/module.py",
        "line": 4711,
        "function": "handle_one_request",
    }
    group = {"name": "a name of several words, another name of several words, …", "kind": "daemon", "count": 12_345, "oldest": 1.0,
             "submitted": site, "place": far, "chain": [site], "awaits": [], "started": [], "tasks": []}  # fmt: skip
    numbers = {"finished": 123_456, "failed": 0, "running": 100_000, "queue_depth": 100_000, "loop_lag": 12.3456}
    runtime = {"name": "omniloop", "unfinished": 1, "groups": [group], "asyncio_tasks": [], "stats": numbers, "blocked": None,
               "workers": None, "resources": []}  # fmt: skip
    failure = {
        "time": 0.0,
        "name": "name",
        "error": "word " * 50,
        "submitted": "at a place " * 20,
        "traceback": "line\n  " + "word " * 60,
    }
    snapshot = {"pid": 1, "python": "3.14", "command": ["x"], "time": 1.0, "runtimes": [runtime], "failures": [failure]}

    async def look():
        app = top.Top(os.getpid())
        app.poll = lambda: None
        async with app.run_test(size=(120, 40)) as pilot:
            app.show(snapshot)
            await pilot.pause()
            figures = [(str(label.render()), label.size.width) for label in app.query(".plot Label")]
            lines = []
            for tree in app.query("Tree"):
                for node in tree.root.children:
                    lines += [str(node.label), *(str(leaf.label) for leaf in node.children)]
            return figures, lines

    figures, lines = asyncio.run(look())

    assert [text for text, width in figures if len(text) > width] == []
    assert {"busy workers", "max 100000", "12345.6 ms"} <= {text for text, _ in figures}
    assert max(map(len, lines)) <= 120 - 12
    # In pieces, all of it.
    assert far.split() == " ".join(lines).split()[" ".join(lines).split().index("waits") :][: len(far.split())]
    assert " ".join(lines).count("word") == 112
