"""
Runs a model of a few threads in every order of their steps, on the real classes of the package.

A model is a function that takes the package, makes its state, starts threads by `spawn`, joins them and asserts. `interleave-test` switches
between the threads, and takes the choices: all of them, up to a bound of preemptions (`explore`), or seeded ones (`sample`).

What is added to it here:

* The package is imported afresh, with the locks, threads and the clock of the scheduler in it (`package`); and, to see that a model would
  find an error, with one line of it replaced (`Edit`).
* Preemptions are tried only before steps that another thread can see or that see another thread's: between two orders that differ only in
  when a local variable was read nothing can differ. That leaves 436 of 988 schedules for two writers and the reader of the inbox.
* A loop that asyncio's own code runs, and nothing but its wake-up is waited for (`Loop`); and Ctrl-C as a thread (`Interrupter`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dis
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import pkgutil
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, NamedTuple, Self

import pytest

import omniloop

# From 3.12 on: it switches threads by sys.monitoring.
it: Any = pytest.importorskip("interleave_test")
_primitives, _scheduler = it._primitives, it._scheduler

_SOURCE = os.path.dirname(os.path.abspath(omniloop.__file__))

# Of schedules; the time is what bounds a search.
_MOST = 100_000_000

real_ident = threading.get_ident
real_monotonic = time.monotonic


class Edit(NamedTuple):
    """A mutation: in a module, one piece of its source, and what stands there instead."""

    module: str
    line: str
    instead: str


# --- the package, with the scheduler's locks in it --------------------------------------------------------------------


class _Thread(it.Thread):
    """A controlled thread that `current_thread` knows, under the ident that `get_ident` says."""

    _ident: int | None = None

    def run(self) -> None:
        self._ident = real_ident()
        threading._active[self._ident] = self  # type: ignore[attr-defined]
        try:
            super().run()
        finally:
            threading._active.pop(self._ident, None)  # type: ignore[attr-defined]

    @property
    def ident(self) -> int | None:
        return self._ident

    @property
    def native_id(self) -> int | None:
        # No thread of the system's has it.
        return None


def _sleep(seconds: float) -> None:
    # The library's is a mere step, so that a thread that looks again and again would never let another run.
    if seconds > 0:
        it.Event().wait(seconds)


@contextlib.contextmanager
def _in_place(*new: tuple[Any, str, Any]) -> Iterator[None]:
    old = [(where, name, getattr(where, name)) for where, name, _ in new]
    for where, name, value in new:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in old:
            setattr(where, name, value)


def _controlled() -> contextlib.AbstractContextManager[None]:
    return _in_place(
        (threading, "Lock", it.Lock),
        (threading, "RLock", it.RLock),
        (threading, "Condition", it.Condition),
        (threading, "Event", it.Event),
        (threading, "Semaphore", it.Semaphore),
        (threading, "Thread", _Thread),
        # The one in C would block unseen; this one is made of the above.
        (queue, "SimpleQueue", queue._PySimpleQueue),  # type: ignore[attr-defined]
        (time, "monotonic", _primitives.monotonic),
        (time, "sleep", _sleep),
        # A copy of the package is gone before its process forks or ends.
        (os, "register_at_fork", lambda **hooks: None),
        (atexit, "register", lambda fn, *args: fn),
        (atexit, "unregister", lambda fn: None),
        (threading, "_register_atexit", lambda fn, *args: None),
    )


def _load_all() -> list[str]:
    # All that a model may come to, now: an import in the middle of one takes a lock that is not controlled.
    parts = ["_admission", "_work", "_life", "_process", "_steps", "_bridges", "_guests"]
    found = [name for part in parts for name in _modules(f"omniloop.{part}")]
    for name in found:
        importlib.import_module(name)
    return found


def _modules(name: str) -> list[str]:
    module = importlib.import_module(name)
    inside = getattr(module, "__path__", [])
    return [name, *(f"{name}.{part.name}" for part in pkgutil.iter_modules(inside))]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the package's modules where they are, and edits their source on the way in."""

    def __init__(self, edits: tuple[Edit, ...]) -> None:
        self.edits = list(edits)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] != "omniloop":
            return None
        at = os.path.join(os.path.dirname(_SOURCE), *fullname.split("."))
        package = os.path.isdir(at)
        file = os.path.join(at, "__init__.py") if package else f"{at}.py"
        if not os.path.exists(file):
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            file,
            loader=_Loader(fullname, file, self.edits),
            submodule_search_locations=[at] if package else None,
        )


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, edits: list[Edit]) -> None:
        super().__init__(name, path)
        self._edits = edits

    def get_code(self, fullname: str) -> CodeType:
        # Not from the cache of compiled files, and not into it.
        mine = [edit for edit in self._edits if f"omniloop.{edit.module}" == fullname]
        if not mine:
            return _compiled(self.path)
        source = self.get_data(self.path).decode()
        for edit in mine:
            source = edited(source, edit)
            self._edits.remove(edit)
        return compile(source, self.path, "exec", dont_inherit=True)


@functools.cache
def _compiled(path: str) -> CodeType:
    with open(path, encoding="utf-8") as file:
        return compile(file.read(), path, "exec", dont_inherit=True)


class Copy(NamedTuple):
    """The package, and its modules by their name in it."""

    omniloop: Any
    parts: dict[str, Any]


def edited(source: str, edit: Edit) -> str:
    """The *source* with the edit made; an error if what it replaces is not there exactly once."""
    found = source.count(edit.line)
    if found != 1:
        raise LookupError(
            f"{edit.module} has {found} places that read {edit.line!r}, where the mutation expects one. "
            "The code was changed: change the mutation with it, so that its model is still known to find such an error."
        )
    return source.replace(edit.line, edit.instead)


@contextlib.contextmanager
def package(*edits: Edit) -> Iterator[Copy]:
    """Import the package once more, for a scheduler to control; gone afterwards."""
    # What it imports of others has the locks of every day.
    _load_all()
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "omniloop"}
    finder = _Finder(edits)
    for name in ours:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        with _controlled():
            omniloop = importlib.import_module("omniloop")
            # Bound to the real ones, as nothing that a test does is to move the clock of others.
            clock = importlib.import_module("omniloop._threads").time
            clock.monotonic, clock.sleep = time.monotonic, time.sleep
            parts = {name.removeprefix("omniloop."): sys.modules[name] for name in _load_all()}
            if finder.edits:
                raise LookupError(f"{finder.edits[0].module} is no module that the package loads.")
            yield Copy(omniloop, parts)
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "omniloop"]:
            del sys.modules[name]
        sys.modules.update(ours)


# --- the schedules ----------------------------------------------------------------------------------------------------

# Steps that neither see nor change what another thread can. One that lets go of an object counts as part of what comes next: should that
# run a finaliser of the package's, the finaliser has steps of its own.
_STEPS = """
    NOP RESUME CACHE EXTENDED_ARG PUSH_NULL COPY SWAP COPY_FREE_VARS MAKE_CELL PUSH_EXC_INFO POP_EXCEPT CHECK_EXC_MATCH RERAISE
    LOAD_CONST LOAD_SMALL_INT LOAD_COMMON_CONSTANT RETURN_CONST RETURN_VALUE KW_NAMES JUMP_FORWARD JUMP_BACKWARD
    JUMP_BACKWARD_NO_INTERRUPT LOAD_FAST LOAD_FAST_CHECK LOAD_FAST_AND_CLEAR LOAD_FAST_LOAD_FAST LOAD_FAST_BORROW
    LOAD_FAST_BORROW_LOAD_FAST_BORROW STORE_FAST STORE_FAST_LOAD_FAST STORE_FAST_STORE_FAST DELETE_FAST POP_TOP
    LOAD_NAME LOAD_BUILD_CLASS BUILD_TUPLE BUILD_LIST BUILD_MAP MAKE_FUNCTION SET_FUNCTION_ATTRIBUTE NOT_TAKEN
    POP_JUMP_IF_NONE POP_JUMP_IF_NOT_NONE IS_OP END_FOR POP_ITER
"""
_LOCAL = frozenset(
    # Up to 3.12 the jumps ask an object for its truth themselves.
    [*_STEPS.split(), *(["POP_JUMP_IF_TRUE", "POP_JUMP_IF_FALSE"] if sys.version_info >= (3, 13) else [])]
)
_LOADS = frozenset(["LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL"])


@functools.cache
def _changed_in(code: CodeType) -> frozenset[str]:
    found = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in ("DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL")
        or (step.opname == "STORE_ATTR" and code.co_name != "__init__")
    }
    return frozenset(found).union(*(_changed_in(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


class _Local:
    """Knows the steps between which an order can make no difference."""

    def __init__(self, copy: Copy) -> None:
        # What is set once, when an object or a module is made, is read alike at any time. So this is every name that is set, or taken
        # away, anywhere else in the package.
        modules = [copy.omniloop, *copy.parts.values()]
        self._changing = frozenset[str]().union(*(_changed_in(_compiled(module.__file__)) for module in modules))
        self._known: dict[tuple[CodeType, int], bool] = {}

    def __call__(self, code: CodeType, offset: int) -> bool:
        found = self._known.get((code, offset))
        if found is None:
            for step in dis.get_instructions(code):
                local = step.opname in _LOCAL or (step.opname in _LOADS and step.argval not in self._changing)
                self._known[code, step.offset] = local
            found = self._known.setdefault((code, offset), False)
        return found


class _Switch:
    """Whether choices are explored now: not while a model makes its state, nor when it has seen what it wanted."""

    on = True


class _Exhaustive(it.DFSStrategy):
    """Every schedule up to a bound of preemptions; of those that can't differ, one."""

    is_local: _Local
    until = float("inf")

    def more(self) -> bool | None:
        return super().more() and real_monotonic() < self.until

    def pick(self, runnable: Any, current: Any, index: int) -> Any:
        if not _Switch.on:
            return current or min(runnable, key=lambda rec: rec.tid)
        where = current.last_location if current is not None else None
        if type(where) is tuple and where[0] == "i" and self.is_local(where[1], where[2]):
            return current
        return super().pick(runnable, current, index)

    def begin(self, iteration: int, seed: int) -> None:
        _tidy(iteration)
        super().begin(iteration, seed)


class _Sampled(it.PCTStrategy):
    """Schedules at random, by priorities that change now and then."""

    until = float("inf")

    def more(self) -> bool | None:
        return None if real_monotonic() < self.until else False

    def pick(self, runnable: Any, current: Any, index: int) -> Any:
        if not _Switch.on:
            return current or min(runnable, key=lambda rec: rec.tid)
        return super().pick(runnable, current, index)

    def begin(self, iteration: int, seed: int) -> None:
        _tidy(iteration)
        super().begin(iteration, seed)


def _tidy(iteration: int) -> None:
    # Between two schedules, and never in one: a collection would run finalisers wherever it happens to come.
    if iteration % 100 == 99:
        gc.collect()


class _Repeated(it.Strategy):
    """One schedule, as often as was said: for models that choose by themselves."""

    until = float("inf")

    def __init__(self, times: int) -> None:
        self._left = times

    def more(self) -> bool:
        return self._left > 0 and real_monotonic() < self.until

    def pick(self, runnable: Any, current: Any, index: int) -> Any:
        return current or min(runnable, key=lambda rec: rec.tid)

    def begin(self, iteration: int, seed: int) -> None:
        _tidy(iteration)
        self._left -= 1


class _Where:
    """Where a thread was, put into words only when somebody reads it: half of the time of a schedule."""

    _in_words = staticmethod(_scheduler._fmt_loc)

    def __init__(self, place: Any) -> None:
        self._place = place

    @classmethod
    def of(cls, place: Any) -> _Where | None:
        return None if place is None else cls(place)

    def __str__(self) -> str:
        return str(self._in_words(self._place))


class Explored(NamedTuple):
    """What came of an exploration."""

    schedules: int
    exhausted: bool
    seconds: float
    error: BaseException | None
    cause: BaseException | None

    def __str__(self) -> str:
        what = "exhausted" if self.exhausted else "failed" if self.error else "not exhausted"
        return f"{self.schedules:,} schedules, {what}, {self.seconds:.1f} s"


Model = Callable[[Copy], None]


def explore(model: Model, parts: str, preemptions: int, *edits: Edit, seconds: float = float("inf")) -> Explored:
    """Run *model* in every schedule with so many preemptions, before steps of *parts*: modules, separated by spaces."""
    return _explore(model, parts, _Exhaustive(preemptions), 0, seconds, edits)


def sample(model: Model, parts: str, seed: int, seconds: float, *edits: Edit) -> Explored:
    """Run *model* in schedules that *seed* chooses, with four changes of priority in each."""
    return _explore(model, parts, _Sampled(5), seed, seconds, edits)


def repeat(model: Model, times: int) -> Explored:
    """Run *model* so many times, each thread as long as it can."""
    return _explore(model, "_work.inbox", _Repeated(times), 0, float("inf"), ())


def _explore(model: Model, parts: str, strategy: Any, seed: int, seconds: float, edits: tuple[Edit, ...]) -> Explored:
    files = [os.path.join(_SOURCE, *part.split(".")) + ".py" for part in parts.split()]
    for file in files:
        if not os.path.exists(file):
            raise LookupError(f"There is no {file}: name the module that has the protocol now.")
    begun = real_monotonic()
    logging.disable()
    strategy.until = begun + seconds
    collects = gc.isenabled()
    gc.disable()
    try:
        with package(*edits) as copy, _in_place((_scheduler, "_fmt_loc", _Where.of), (sys, "unraisablehook", _ignore)):
            strategy.is_local = _Local(copy)

            def run() -> None:
                _Switch.on = True
                # `current_thread` is to know the model's own thread too.
                me = _Thread(target=lambda: model(copy))
                me.name = "model"
                me._task = _Own()  # type: ignore[assignment]
                me.run()

            result = it.explore(
                run,
                iterations=_MOST,
                seed=seed,
                strategy=strategy,
                include=files,
                patch_modules=False,
                patch_time=False,
                raise_on_failure=False,
                timeout=20,
            )
    finally:
        logging.disable(logging.NOTSET)
        if collects:
            gc.enable()
    error, cause = None, None
    if result.failure is not None:
        failure = result.failure
        # Its own traceback is in the words; some of its frames are at an instruction that has no line.
        error = AssertionError(failure.format(60))
        cause = failure.exception
    return Explored(result.schedules_run, result.exhausted, real_monotonic() - begun, error, cause)


def _ignore(unraisable: object) -> None:
    # When a schedule has failed its threads are unwound, wherever they are: finalisers too.
    pass


class _Own:
    """Stands for the model's own thread where a thread is asked whether it lives."""

    @staticmethod
    def is_alive() -> bool:
        return True


# --- as tests ---------------------------------------------------------------------------------------------------------

SECONDS = float(os.environ.get("OMNILOOP_SOAK_SECONDS", "5"))
SEED = int(os.environ.get("OMNILOOP_SOAK_SEED", "0"))

# What a mutation does that is no race but a slip of whoever wrote it.
_SLIPS = (NameError, AttributeError, TypeError, SyntaxError, LookupError)


def in_every_order(
    parts: str, /, *, heavy: bool = False, soak_only: bool = False, **mutants: Edit | tuple[Edit, ...]
) -> Callable[[Model], Any]:
    """
    Make a test of a model: it holds in every order of the steps of *parts* with one preemption, and each of the *mutants* is found.

    What is *heavy* is exhausted in the soak alone, and what is *soak_only* is not run elsewhere at all. There also with two preemptions, and at random with more, for `OMNILOOP_SOAK_SECONDS` each; `OMNILOOP_SOAK_SEED` repeats the latter.
    """

    def decorate(model: Model) -> Any:
        soak = [pytest.mark.soak, pytest.mark.timeout(SECONDS + 120)]
        # Where a schedule fails its threads are unwound wherever they are: of a loop, say, that nobody closes.
        unwound = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
        cases = [
            pytest.param("holds", id="holds", marks=soak if heavy or soak_only else []),
            *(
                pytest.param(edits, id=f"finds {name}", marks=[unwound, *(soak if soak_only else [])])
                for name, edits in mutants.items()
            ),
            pytest.param("holds, two preemptions", id="holds, two preemptions", marks=soak),
            pytest.param("holds, at random", id="holds, at random", marks=soak),
        ]

        @pytest.mark.timeout(120)
        @pytest.mark.parametrize("case", cases)
        def test(case: Any, record_property: Callable[[str, object], None]) -> None:
            if isinstance(case, str):
                match case:
                    case "holds":
                        explored = explore(model, parts, 1)
                    case "holds, two preemptions":
                        explored = explore(model, parts, 2, seconds=SECONDS)
                    case _:
                        explored = sample(model, parts, SEED, SECONDS)
                record_property("schedules", explored.schedules)
                record_property("explored", str(explored))
                if explored.error is not None:
                    raise explored.error from None
                assert explored.exhausted or case != "holds"
                return
            edits = case if isinstance(case[0], Edit) else (case,)
            explored = explore(model, parts, 1, *edits)
            if explored.error is None:
                explored = explore(model, parts, 2, *edits, seconds=60)
            assert explored.error is not None, f"the model does not find {[edit.instead for edit in edits]}: {explored}"
            assert not isinstance(explored.cause, _SLIPS), f"the mutation does not run: {explored.error}"
            assert explored.schedules > 1, f"the mutation fails in any order: it is no race. {explored.error}"
            record_property("mutant", explored.schedules)

        test.__name__ = test.__qualname__ = model.__name__
        test.__module__ = model.__module__
        test.__doc__ = model.__doc__
        return test

    return decorate


# --- for models -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unexplored() -> Iterator[None]:
    """Around what makes a model's state, or looks at the end: one order is enough there."""
    before, _Switch.on = _Switch.on, False
    try:
        yield
    finally:
        _Switch.on = before


def spawn(fn: Callable[..., Any], *args: Any) -> threading.Thread:
    """Start a thread of the model's."""
    thread = threading.Thread(target=fn, args=args, name=getattr(fn, "__name__", "thread"))
    thread.start()
    return thread


class _Selector:
    """Waits for the loop's own wake-up, and for nothing else."""

    def __init__(self) -> None:
        self.woken = threading.Event()

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout > 0:
            self.woken.wait(timeout)
        self.woken.clear()
        return []

    def get_map(self) -> dict[int, None]:
        return {0: None}


class Loop(asyncio.BaseEventLoop):
    """asyncio's loop, but for the selector."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Selector()

    def _process_events(self, events: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        self._selector.woken.set()


class Interrupter:
    """
    Ctrl-C as a thread: when it gets its turn, the next call that the victim comes back from in the code given raises.

    So a schedule with one preemption more has an interruption at each place where CPython looks for signals: after a call, at the start
    of a function, and at the end of a loop's turn.
    """

    _CHECKS = frozenset(
        name for name in dis.opmap if name.startswith(("CALL", "RESUME", "JUMP_BACKWARD", "INSTRUMENTED_CALL"))
    )
    _tool = 1

    def __init__(self, *codes: CodeType) -> None:
        # The ident of the thread that it comes to, set by that thread.
        self.victim: int | None = None
        self._codes = codes
        self._due = False
        self.__name__ = "interrupter"
        self._last = ""

    def __call__(self) -> None:
        self._due = True

    def __enter__(self) -> Self:
        monitoring = sys.monitoring
        monitoring.use_tool_id(self._tool, "interrupter")
        monitoring.register_callback(self._tool, monitoring.events.INSTRUCTION, self._step)
        for code in self._codes:
            monitoring.set_local_events(self._tool, code, monitoring.events.INSTRUCTION)
        return self

    def __exit__(self, *error: object) -> None:
        monitoring = sys.monitoring
        for code in self._codes:
            monitoring.set_local_events(self._tool, code, 0)
        monitoring.register_callback(self._tool, monitoring.events.INSTRUCTION, None)
        monitoring.free_tool_id(self._tool)

    def _step(self, code: CodeType, offset: int) -> None:
        if real_ident() != self.victim:
            return
        last, self._last = self._last, dis.opname[code.co_code[offset]]
        if self._due and last in self._CHECKS:
            self._due = False
            raise KeyboardInterrupt
