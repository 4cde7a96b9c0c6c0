"""`configure` and the `OMNILOOP_…` variables change settings, each checked where it comes in."""

import asyncio
import math
import re
import threading

import pytest

import omniloop
from children import run_child
from omniloop import AlreadyRunningError, Runtime, SettingError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exit_timeout", -1),
        ("exit_timeout", math.nan),
        ("exit_timeout", "5"),
        ("exit_timeout", True),
        ("exit_timeout", 10**400),
        ("cancel_timeout", None),
        ("cancel_timeout", -0.1),
        ("slow_callback", -1),
        ("slow_callback", 10**400),
        ("max_workers", 0),
        ("max_workers", 2.5),
        ("max_workers", None),
        ("max_workers", True),
        ("max_waiting_workers", 0),
        ("max_pending", 0),
        ("max_pending", True),
        ("on_error", "log"),
        ("loop_factory", "uvloop"),
        ("when_full", "wait"),
    ],
)
def test_a_value_that_a_setting_can_not_have_is_refused_by_name_and_nothing_changes(runtime, name, value):
    before = runtime._settings

    with pytest.raises(SettingError, match=f"^{name}={re.escape(repr(value))}: give ") as caught:
        runtime.configure(**{"on_error": None, name: value})

    assert isinstance(caught.value, ValueError)
    assert runtime._settings == before
    with pytest.raises(SettingError, match=f"^{name}="):
        Runtime(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("sigterm", "ignore"), ("monitor", 1)])
def test_a_value_that_a_setting_of_the_process_can_not_have_is_refused(name, value):
    before = omniloop.shared_runtime()._settings

    with pytest.raises(SettingError, match=f"^{name}={value!r}: give "):
        omniloop.configure(**{name: value})

    assert omniloop.shared_runtime()._settings == before


@pytest.mark.promise("`monitor` and `sigterm` are the process's: a runtime of one's own refuses them, by name")
@pytest.mark.parametrize(
    ("name", "value"), [("sigterm", "drain"), ("sigterm", None), ("monitor", True), ("monitor", 1)]
)
def test_a_setting_of_the_process_is_refused_for_a_runtime_of_ones_own(runtime, name, value):
    before = runtime._settings
    told = f"^{name}={value!r}: this is a setting of the whole process, .* Use omniloop.configure\\({name}=…\\)"

    with pytest.raises(SettingError, match=told):
        Runtime(**{name: value})
    with pytest.raises(SettingError, match=told):
        runtime.configure(**{"on_error": print, name: value})

    assert runtime._settings == before


def test_a_setting_that_there_is_not_is_refused_and_all_are_named(runtime):
    with pytest.raises(SettingError, match=r"There is no setting 'timeout'. The settings are: exit_timeout, "):
        runtime.configure(timeout=5)


def test_settings_that_are_read_when_used_may_change_at_any_time(runtime):
    failures, came = [], threading.Event()

    def hook(failure):
        failures.append(failure)
        came.set()

    runtime.call_soon(int).result(timeout=5)
    runtime.configure(on_error=hook, exit_timeout=None, cancel_timeout=0)

    async def fails():
        raise OSError

    runtime.go(fails())
    assert came.wait(timeout=5)
    assert len(failures) == 1


@pytest.mark.parametrize(
    "change", [{"max_workers": 3}, {"max_waiting_workers": 3}, {"loop_factory": asyncio.SelectorEventLoop}]
)
def test_settings_that_shape_the_thread_can_not_change_once_it_runs(change):
    with Runtime(name="shaped", max_workers=2) as runtime:
        runtime.configure(**change)
        runtime.configure(max_workers=2, max_waiting_workers=128, loop_factory=None)
        runtime.call_soon(int).result(timeout=5)

        with pytest.raises(AlreadyRunningError, match=r"before the first use, or after shutdown"):
            runtime.configure(**change)
        runtime.configure(max_workers=2)  # As it is.


def test_a_loop_factory_makes_the_loop():
    class MyLoop(asyncio.SelectorEventLoop):
        pass

    with Runtime(name="mine", loop_factory=MyLoop) as runtime:
        assert isinstance(runtime.call_soon(asyncio.get_running_loop).result(timeout=5), MyLoop)


class Overrides(asyncio.SelectorEventLoop):
    """With a shape of their own of what asyncio and we call."""

    def run_in_executor(self, executor, func, *args):
        self.seen.add("run_in_executor")
        return super().run_in_executor(executor, func, *args)

    def create_task(self, coro, **options):
        self.seen.add("create_task")
        return super().create_task(coro, **options)

    def call_soon_threadsafe(self, callback, *args, context=None):
        self.seen.add("call_soon_threadsafe")
        return super().call_soon_threadsafe(callback, *args, context=context)


class TakesNoAttributes(asyncio.SelectorEventLoop):
    """As one with slots would."""

    def __setattr__(self, name, value):
        if hasattr(type(self), name):
            raise AttributeError(f"{name!r} is read-only")
        super().__setattr__(name, value)


class TakesNoTaskFactory(asyncio.SelectorEventLoop):
    def set_task_factory(self, factory):
        raise NotImplementedError


class TakesNoExecutor(asyncio.SelectorEventLoop):
    def set_default_executor(self, executor):
        raise NotImplementedError


@pytest.mark.promise("A loop of a class of one's own may override what it likes, have slots, and refuse task factories")
@pytest.mark.parametrize("made", [Overrides, TakesNoAttributes, TakesNoTaskFactory, TakesNoExecutor])
def test_a_loop_of_a_class_of_ones_own_serves(made):
    async def work():
        loop = asyncio.get_running_loop()
        # Left on the loop, and done before it ends.
        loop.create_task(leaves())
        await loop.getaddrinfo("127.0.0.1", 80)
        return await asyncio.to_thread(int), await runtime.go(asyncio.sleep(0, "inside"))

    async def leaves():
        await asyncio.sleep(0.01)
        left.append("done")

    made.seen, left = set(), []
    with Runtime(name="own", loop_factory=made) as runtime:
        assert runtime.run(work(), timeout=20) == (0, "inside")
        assert runtime.call_soon(int).result(timeout=5) == runtime.call_later(0, int).result(timeout=5) == 0

    # What is left on a loop is seen by a `create_task` of its own.
    assert left == ["done"] or made is TakesNoAttributes
    if made is Overrides:
        assert made.seen == {"run_in_executor", "create_task", "call_soon_threadsafe"}


def test_the_environment_sets_what_the_program_does_not():
    def program():
        settings = omniloop.shared_runtime()._settings
        print(settings.exit_timeout, settings.max_workers, settings.slow_callback)
        print(omniloop.Runtime(max_workers=5)._settings.max_workers)

    result = run_child(
        program,
        env={"OMNILOOP_EXIT_TIMEOUT": "none", "OMNILOOP_MAX_WORKERS": "3", "OMNILOOP_SLOW_CALLBACK": "0.5"},
    )

    assert (result.stdout, result.stderr, result.code) == ("None 3 0.5\n5\n", "", 0)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EXIT_TIMEOUT", "soon"),
        ("EXIT_TIMEOUT", "-1"),
        ("MAX_WORKERS", "many"),
        ("WHEN_FULL", "wait"),
        ("LOOP", "twisted"),
    ],
)
def test_a_variable_that_can_not_be_used_is_refused_on_first_use_by_name(variable, value):
    def program():
        print("imported")

        async def work():
            pass

        try:
            omniloop.go(work())
        except omniloop.SettingError as error:
            print(error)

    result = run_child(
        program,
        env={f"OMNILOOP_{variable}": value},
    )

    assert result.stdout.startswith(f"imported\nOMNILOOP_{variable}={value!r}")
    assert "never awaited" not in result.stderr
    assert result.code == 0


@pytest.mark.promise("An interrupted start closes the loop that it made")
def test_a_start_that_is_interrupted_half_way_closes_the_loop_that_it_made():
    made = []

    class Interrupted(asyncio.SelectorEventLoop):
        def set_default_executor(self, executor):
            made.append(self)
            if len(made) == 1:
                raise KeyboardInterrupt
            super().set_default_executor(executor)

    with Runtime(loop_factory=Interrupted) as runtime:
        with pytest.raises(KeyboardInterrupt):
            runtime.call_soon(int)

        assert made[0].is_closed()
        assert runtime.call_soon(int).result(timeout=5) == 0
        assert not made[1].is_closed()
