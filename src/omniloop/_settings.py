"""Every setting with its default and its environment variable; each value is checked once, where it comes in."""

import asyncio
import math
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal

from . import _hooks
from ._errors import SettingError
from ._report import Hook

# A whole number may be larger than any float, and then can't be added to a time.
MOST_SECONDS: Final = sys.float_info.max

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
WhenFull = Literal["block", "raise", "drop_new", "drop_old"]
Sigterm = Literal["drain", "children"]


class Settings:
    """The settings of one runtime, each with its default. Immutable: a change makes a new object, so no reader sees half a change."""

    # Less than the 30 s, clean-up included, after which gunicorn and Kubernetes kill by default: only a deadline that passes before
    # that can name the lost work.
    exit_timeout: float | None = 25.0
    cancel_timeout: float = 2.0
    # Enough for a request that was just sent. A client that is left open costs a tenth of it. (A guess.)
    leftover_timeout: float = 5.0
    on_error: Hook | None = None
    # Well above 0.23 s, by which four busy threads delay a healthy loop (the interpreter's switch interval).
    slow_callback: float | None = 1.0
    loop_factory: LoopFactory | None = None
    # concurrent.futures' own default, for the same kind of work.
    max_workers: int = min(32, (os.cpu_count() or 1) + 4)
    # More than any nesting of sync over async code that was seen; a thread costs 50 to 100 kB.
    max_waiting_workers: int = 128
    sigterm: Sigterm | None = "children"
    max_pending: int | None = None
    when_full: WhenFull = "block"
    monitor: bool = False
    timings: bool = False


if TYPE_CHECKING:
    from typing import TypedDict

    # For type checkers alone: at run time it would be a tenth of the cost of importing the package.
    class Changes(TypedDict, total=False):
        """The settings that a `Runtime` takes, all optional: for editors and type checkers."""

        exit_timeout: float | None
        cancel_timeout: float
        leftover_timeout: float
        on_error: Hook | None
        slow_callback: float | None
        loop_factory: LoopFactory | None
        max_workers: int
        max_waiting_workers: int
        max_pending: int | None
        when_full: WhenFull
        timings: bool

    class AllChanges(Changes, total=False):
        """The settings that `configure` takes."""

        sigterm: Sigterm | None
        monitor: bool


# The thread, its loop and its pool are made from these settings, which can't change while it runs.
SHAPES_THE_THREAD = frozenset({"loop_factory", "max_workers", "max_waiting_workers"})

# A process has one SIGTERM and one monitor, however many runtimes it has.
OF_THE_PROCESS = frozenset({"monitor", "sigterm"})


def changed(settings: Settings, changes: Mapping[str, Any], shared: bool = True) -> Settings:
    """Return *settings* with *changes*, each value checked. A runtime that is not *shared* can't change the process's settings."""
    for name, value in changes.items():
        if name not in SETTINGS:
            raise SettingError(f"There is no setting {name!r}. The settings are: {', '.join(SETTINGS)}.")
        if not shared and name in OF_THE_PROCESS:
            raise SettingError(
                f"{name}={value!r}: this is a setting of the whole process, and not of one Runtime. Use omniloop.configure({name}=…)."
            )
        allows, what, _ = SETTINGS[name]
        if not allows(value):
            raise SettingError(f"{name}={value!r}: give {what}.")
    new = Settings()
    vars(new).update(vars(settings), **changes)
    return new


def from_environment(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the defaults, changed by the `OMNILOOP_…` variables. Called when a runtime is made, never at import."""
    settings = Settings()
    for name, (_, _, read) in SETTINGS.items():
        variable = f"OMNILOOP_{name.upper()}"
        text = environ.get(variable)
        if read is not None and text is not None:
            try:
                settings = changed(settings, {name: read(text)})
            except ValueError as error:
                raise SettingError(f"{variable}={text!r} can't be used: {error}") from error
    if (loop := environ.get("OMNILOOP_LOOP")) is not None:
        settings = changed(settings, {"loop_factory": _loop_named(loop)})
    return settings


def _is_seconds(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (0 <= value <= MOST_SECONDS or value == math.inf)
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _as_switch(text: str) -> bool:
    match text.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off" | "":
            return False
        case _:
            raise ValueError("give 1 or 0")


def _loop_named(name: str) -> LoopFactory | None:
    if name.lower() in ("asyncio", ""):
        return None
    if name.lower() not in _hooks.LOOPS:
        known = " or ".join(["asyncio", *_hooks.LOOPS])
        raise SettingError(f"OMNILOOP_LOOP={name!r} is not a loop that is known here: use {known}.")
    factory: LoopFactory = import_module(_hooks.LOOPS[name.lower()]).factory()
    return factory


# Per setting: the check of a value, the description of allowed values, and the parser of the environment variable, if there is one.
_Setting = tuple[Callable[[Any], bool], str, Callable[[str], object] | None]


def _or_none(allows: Callable[[Any], bool], what: str, read: Callable[[str], object] | None = None) -> _Setting:
    return (
        lambda value: value is None or allows(value),
        f"{what}, or None",
        read and (lambda text: None if text.lower() == "none" else read(text)),
    )


_SECONDS: Final = "seconds as a number of 0 or more"
_WHOLE: Final = "a whole number of 1 or more"

# The rest of each setting; its name, default and type are above.
SETTINGS: Final[dict[str, _Setting]] = {
    "exit_timeout": _or_none(_is_seconds, _SECONDS, float),
    "cancel_timeout": (_is_seconds, _SECONDS, float),
    "leftover_timeout": (_is_seconds, _SECONDS, float),
    "on_error": _or_none(callable, "a callable"),
    "slow_callback": _or_none(lambda it: _is_seconds(it) and it > 0, "seconds above 0", float),
    "loop_factory": _or_none(callable, "a callable"),
    "max_workers": (_is_whole, _WHOLE, int),
    "max_waiting_workers": (_is_whole, _WHOLE, int),
    "sigterm": (
        lambda it: it in (None, "drain", "children"),
        '"drain", "children" or None',
        lambda text: None if text.lower() in ("", "none") else text,
    ),
    "max_pending": _or_none(_is_whole, _WHOLE, int),
    "when_full": (
        lambda it: it in ("block", "raise", "drop_new", "drop_old"),
        '"block", "raise", "drop_new" or "drop_old"',
        str,
    ),
    "monitor": (_is_switch, "True or False", _as_switch),
    "timings": (_is_switch, "True or False", _as_switch),
}
