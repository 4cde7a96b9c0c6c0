"""The pytest plugin `omniloop.testing`, in a pytest of its own, found by its entry point, beside the plugins of others."""

import os
import tomllib
from pathlib import Path

import pytest

import omniloop

pytest_plugins = ["pytester"]

# A pytest with its plugins takes a second to start, and several where the machine is busy.
# Longer than the time of the pytest within: a limit that comes while its report is made ends the whole session.
pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """Runs a test module in a child pytest that knows omniloop as if it were installed."""
    installed = tmp_path_factory.mktemp("installed")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = installed / f"omniloop-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: omniloop\nVersion: {project['version']}\n")
    entries = "\n".join(f"{name} = {module}" for name, module in project["entry-points"]["pytest11"].items())
    (info / "entry_points.txt").write_text(f"[pytest11]\n{entries}\n")
    package = str(Path(omniloop.__file__).parent.parent)
    path = filter(None, [str(installed), package, os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))

    def run(source: str, *args: str, ini: str = "", alone: bool = True) -> pytest.RunResult:
        # A start without the plugins of others takes half the time.
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD" if alone else "NOBODY_READS_THIS", "1")
        pytester.makeini(f"[pytest]\nfilterwarnings = error\nomniloop_timeout = 0.3\n{ini}")
        pytester.makepyfile(source)
        by_name = ("-p", "omniloop") if alone else ()
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *by_name, *args, timeout=60)

    return run


@pytest.mark.promise(
    "`omniloop_runtime` is a fresh runtime for each test; work that ends in time, daemons, and what is not due are no leak"
)
def test_a_test_that_leaves_nothing_behind_passes(inner):
    result = inner(
        """
        import asyncio

        async def work():
            await asyncio.sleep(0.01)
            return 7

        def test_it(omniloop_runtime):
            assert omniloop_runtime.run(work()) == 7

        def test_what_ends_in_time_is_waited_for(omniloop_runtime):
            omniloop_runtime.go(work())

        def test_what_is_meant_to_go_on_is_no_leak(omniloop_runtime):
            omniloop_runtime.every(60, print)
            omniloop_runtime.call_later(60, print)
            omniloop_runtime.go(asyncio.sleep(60), daemon=True)

        def test_a_claimed_error_is_no_loss(omniloop_runtime):
            assert isinstance(omniloop_runtime.call_soon(int, "x").exception(), ValueError)

        def test_it_is_fresh(omniloop_runtime):
            assert omniloop_runtime.stats().accepted == 0
        """,
    )

    result.assert_outcomes(passed=5)


@pytest.mark.promise("Work that does not end fails the test, which is told where it was submitted")
def test_a_leaked_task_fails_the_test_and_names_where_it_was_submitted(inner):
    result = inner(
        """
        import asyncio

        async def never_ends():
            await asyncio.sleep(60)

        def test_leak(omniloop_runtime):
            omniloop_runtime.go(never_ends())

        def test_the_next_one(omniloop_runtime):
            assert not omniloop_runtime.tasks()
        """,
    )

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leak*",
            "1 leaked in 'omniloop', and cancelled:",
            '*never_ends, for 0.? s, submitted at File "*test_a_leaked_task*.py", line 7, in test_leak, waits at*',
        ]
    )
    assert result.ret == 1


@pytest.mark.promise("So does an error that nobody asked for, held or not")
@pytest.mark.parametrize("held", ["", "held = "])
def test_an_error_that_nobody_asked_for_fails_the_test_and_names_where_it_was_submitted(inner, held):
    result = inner(
        f"""
        async def fail():
            raise LookupError("not there")

        def test_loss(omniloop_runtime):
            global held
            {held}omniloop_runtime.go(fail())
        """,
    )

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["Task 'fail' failed, and nobody asked for its outcome", 'Submitted at: File "*", line 6, in test_loss', "*LookupError: not there"]
    )  # fmt: skip


@pytest.mark.promise(
    "With `omniloop_strict = true` the shared runtime is flushed after each test, which fails if work does not end"
)
def test_the_shared_runtime_is_flushed_after_each_test_where_the_project_asks_for_it(inner):
    result = inner(
        """
        import asyncio
        from omniloop import go
        done = []

        async def work():
            await asyncio.sleep(0.05)
            done.append(1)

        def test_one():
            go(work())

        def test_two():
            assert done == [1]
            go(asyncio.sleep(60), name="endless")

        def test_three():
            go(work()).result()
        """,
        ini="omniloop_strict = true",
    )

    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_two*", "*endless, for *, submitted at *in test_two,*"])


@pytest.mark.promise("A test run that does not use omniloop loads nothing of it, and starts no thread")
@pytest.mark.parametrize("ini", ["", "omniloop_strict = true"])
def test_a_run_that_does_not_use_omniloop_loads_nothing_and_starts_no_thread(inner, ini):
    """The plugin imported the package, and with it asyncio, in every project's runs; and looked at each test."""
    result = inner(
        """
        import sys
        import threading

        def test_one():
            pass

        def test_two(request):
            # From 3.14 on pytest itself has loaded it.
            others = () if sys.version_info >= (3, 14) else ("asyncio",)
            assert [name for name in sys.modules if name.partition(".")[0] in ("omniloop", *others)] == []
            assert threading.active_count() == 1
            asked = request.config.getini("omniloop_strict")
            hooks = request.config.pluginmanager.hook.pytest_runtest_teardown.get_hookimpls()
            assert asked == any("omniloop" in hook.plugin_name for hook in hooks)
        """,
        ini=ini,
    )

    result.assert_outcomes(passed=2)


def test_tests_are_not_judged_unless_the_project_asks_for_it(inner):
    """Who has omniloop installed by some other package knew nothing of it, and had tests fail."""
    result = inner(
        """
        import asyncio
        import omniloop

        def test_one():
            omniloop.go(asyncio.sleep(60), name="endless", daemon=False)

        def test_two():
            assert [task.get_name() for task in omniloop.tasks()] == ["endless"]
            omniloop.tasks()[0].cancel()
        """,
    )

    result.assert_outcomes(passed=2)


@pytest.mark.promise("`omniloop_shared` makes the runtime of the module's functions as strict")
def test_the_shared_runtime_can_be_as_strict(inner):
    result = inner(
        """
        import asyncio
        from omniloop import go, call_soon, configure, shared_runtime

        def test_loss(omniloop_shared):
            call_soon(int, "x")

        def test_leak(omniloop_shared):
            go(asyncio.sleep(60))

        def test_without_it_a_loss_is_logged(caplog):
            call_soon(int, "x")
            shared_runtime().flush()
            assert "invalid literal" in caplog.text
        """,
    )

    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(["*ValueError: invalid literal*", "1 leaked in 'omniloop', and cancelled:"])


CLOCK = """
    import asyncio, time
    import pytest
    import omniloop
    from omniloop import call_later, every, go, WouldDeadlockError
"""


@pytest.mark.promise(
    "`omniloop_clock` moves the time of `every`, `call_later`, `asyncio.sleep` and `asyncio.timeout` from turn to turn, and nobody sleeps"
)
def test_the_clock_moves_time_from_turn_to_turn(inner):
    result = inner(
        CLOCK
        + """
    def test_every(omniloop_clock):
        turns = []
        start = omniloop_clock.time()
        every(60, lambda: turns.append(omniloop_clock.time() - start))
        omniloop_clock.advance(59)
        assert turns == []
        omniloop_clock.advance(1)
        omniloop_clock.advance(3600 - 60)
        assert turns == pytest.approx([60 * n for n in range(1, 61)])

    def test_call_later_in_order(omniloop_clock):
        seen = []
        for delay in (30, 10, 20, 10):
            call_later(delay, seen.append, delay)
        omniloop_clock.advance(9.999)
        assert seen == []
        omniloop_clock.advance(10)
        assert seen == [10, 10]
        omniloop_clock.advance(100)
        assert seen == [10, 10, 20, 30]

    def test_sleep_and_timeout(omniloop_runtime, omniloop_clock):
        async def impatient():
            async with asyncio.timeout(5):
                await asyncio.sleep(10)

        task = omniloop_runtime.go(impatient())
        omniloop_clock.advance(4)
        assert not task.done()
        omniloop_clock.advance(2)
        assert isinstance(task.exception(timeout=0), TimeoutError)

    def test_what_becomes_due_makes_more(omniloop_runtime, omniloop_clock):
        seen = []

        def again(n):
            seen.append(n)
            omniloop_runtime.call_later(1, again, n + 1)

        again(0)
        omniloop_clock.advance(10)
        assert seen == list(range(11))

    def test_an_hour_takes_no_time(omniloop_clock):
        start = time.monotonic()
        task = go(asyncio.sleep(24 * 3600 * 3))
        omniloop_clock.advance(24 * 3600 * 3)
        assert task.done()
        assert time.monotonic() - start < 60

    def test_an_async_turn_that_uses_a_thread_is_waited_for(omniloop_clock):
        turns = []

        async def turn():
            await asyncio.to_thread(time.sleep, 0.01)
            turns.append(1)

        every(60, turn)
        omniloop_clock.advance(300)
        assert len(turns) == 5

    def test_a_look_does_not_need_a_runtime(omniloop_clock):
        before = omniloop_clock.time()
        omniloop_clock.advance(10)
        assert omniloop_clock.time() == before + 10

    def test_a_call_on_the_loop_is_refused(omniloop_clock):
        async def work():
            omniloop_clock.advance(1)
        with pytest.raises(WouldDeadlockError, match="Call it in the test"):
            go(work()).result()

    @pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan"), "1"])
    def test_bad_seconds(omniloop_clock, seconds):
        with pytest.raises(ValueError, match="seconds="):
            omniloop_clock.advance(seconds)

    def test_afterwards_time_is_real_again():
        assert call_later(0.01, lambda: 1).result(timeout=5) == 1
        assert type(omniloop.run(loop())).__module__ != "omniloop.testing"

    async def loop():
        return asyncio.get_running_loop()

    def test_a_strict_shared_runtime_lives_by_it_too(omniloop_shared, omniloop_clock):
        task = call_later(60, int)
        omniloop_clock.advance(60)
        assert task.done()
    """,
    )

    result.assert_outcomes(passed=14)


def test_a_loop_that_never_rests_ends_the_waiting_with_a_reason(inner):
    result = inner(
        CLOCK
        + """
    def test_it(omniloop_clock, monkeypatch):
        monkeypatch.setattr("omniloop.testing._PATIENCE", 0.1)
        stop = []
        async def busy():
            while not stop:
                await asyncio.sleep(0)
        go(busy())
        with pytest.raises(TimeoutError, match="did not come to rest within 0.1 s"):
            omniloop_clock.advance(1)
        stop.append(1)
    """,
    )

    result.assert_outcomes(passed=1)


@pytest.mark.promise("It works under pytest-xdist")
def test_it_works_beside_xdist(inner):
    pytest.importorskip("xdist")
    result = inner(
        """
        import asyncio
        import pytest
        from omniloop import go

        @pytest.mark.parametrize("n", range(6))
        def test_it(omniloop_runtime, n):
            go(asyncio.sleep(0.01))
            assert omniloop_runtime.run(asyncio.sleep(0, n)) == n

        def test_leak(omniloop_runtime):
            omniloop_runtime.go(asyncio.sleep(60))
        """,
        "-n2",
        "-p",
        "xdist",
    )

    result.assert_outcomes(passed=7, errors=1)
    result.stdout.fnmatch_lines(["*sleep, for *, submitted at *in test_leak,*"])


@pytest.mark.promise(
    "The pytest plugin is found by its entry point, and works beside pytest-asyncio and anyio's plugin"
)
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_it_works_beside_pytest_asyncio_and_anyio(inner, mode):
    pytest.importorskip("pytest_asyncio")
    pytest.importorskip("anyio")
    result = inner(
        """
        import asyncio
        import anyio
        import pytest
        import pytest_asyncio
        from omniloop import go, run

        async def work(value):
            await asyncio.sleep(0.01)
            return value

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest_asyncio.fixture
        async def prepared(omniloop_runtime):
            return await omniloop_runtime.go(work(3))

        @pytest.mark.asyncio
        async def test_asyncio(omniloop_runtime, prepared):
            assert await omniloop_runtime.go(work(prepared)) == 3
            assert await go(work(4)) == 4

        @pytest.mark.asyncio
        async def test_asyncio_leak(omniloop_runtime):
            omniloop_runtime.go(asyncio.sleep(60))

        @pytest.mark.asyncio
        async def test_asyncio_clock(omniloop_runtime, omniloop_clock):
            task = omniloop_runtime.go(asyncio.sleep(60, 5))
            omniloop_clock.advance(60)
            assert await task == 5

        @pytest.mark.anyio
        async def test_anyio(omniloop_runtime):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0)
                assert await omniloop_runtime.go(work(5)) == 5

        @pytest.mark.anyio
        async def test_anyio_loss(omniloop_runtime):
            omniloop_runtime.call_soon(int, "x")

        def test_sync():
            assert run(work(6)) == 6
        """,
        alone=False,
        ini=f"asyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n",
    )

    result.assert_outcomes(passed=6, errors=2)
    result.stdout.fnmatch_lines(["*submitted at*in test_asyncio_leak,*", "*line 42, in test_anyio_loss*"])


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_timeout_that_is_no_number_is_refused_at_the_start(inner, text):
    result = inner("def test_it(): pass", "-o", f"omniloop_timeout={text}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*omniloop_timeout='{text}': give seconds as a number of 0 or more."])


def test_the_fixtures_are_listed_with_their_first_words(inner):
    result = inner("", "--fixtures")

    result.stdout.fnmatch_lines(["omniloop_runtime*", "omniloop_shared*", "omniloop_clock*"])
