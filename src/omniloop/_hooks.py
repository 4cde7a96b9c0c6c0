"""
The hooks by which a guest, a module that knows another library, serves the core. The core itself names no other library.

| hook | asked | contract |
|---|---|---|
| `waits` | around a blocking wait; where a thread begins or ends to run a loop; where a context is carried | `Waits`: runs calls in the
thread that waits |
| `elsewhere` | where a handle is awaited; in SIGTERM's handler | `Elsewhere`: async code that asyncio does not run |
| `surroundings` | in the start of a runtime | `Surroundings`: the environment of the process |
| `polls` | in the start of a runtime, and in a forked child | `Polls`: a loop that does not poll in Python |
| `host` | in the start of a runtime, and before a wait | `Host`: an existing loop, where no thread can be started |
| `LOOPS` | where `OMNILOOP_LOOP` is read | the guest whose `factory()` returns a loop factory, or raises `SettingError` |
| `on_use` | `dump`, `timings`, `slow_callback`, a long drain, `monitor` | a module that lies above the core, loaded on its first use |

The other hooks are functions of the modules that they belong to: `fork.forget_after_fork`, `hold_at_fork` and `keep_for_ever`;
`exit.watch`, `tell_at_exit` and `end_orphan`; `waits.look_in_long_waits`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Executor
    from types import FrameType

    class Waits(Protocol):
        """A guest that takes part in blocking waits: `run` leaves them to it."""

        def run(self, runtime: Any, coro: Any, timeout: float | None, frame: FrameType) -> Any:
            """Submit *coro* to *runtime*, wait until it is done, and return its task; close it if that is refused."""

        def serve(self, loop: asyncio.AbstractEventLoop, spare: Executor) -> None:
            """Prepare for a thread that is about to run *loop* and has the workers *spare*. May be called again."""

        def leave(self, loop: asyncio.AbstractEventLoop) -> None:
            """Note that *loop* has ended."""

        def is_thread_bound(self, value: object) -> bool:
            """Tell whether the value of a context variable belongs to the thread that has set it: then no other context gets it."""
            ...

    class Elsewhere(Protocol):
        """A guest that knows async code which asyncio does not run."""

        def runs_here(self) -> bool:
            """Tell whether such code is calling; an asyncio loop may run in the same thread."""
            ...

        def serves_here(self) -> bool:
            """Tell whether a loop of that kind runs in this thread, also when a signal handler has interrupted it."""
            ...

        async def wait(self, task: Any, asks: bool, timeout: float | None) -> None:
            """Wait until *task* is done or *timeout* passed. If *asks*, cancelling the waiter cancels the task too."""

        def say_asyncio(self) -> bool:
            """
            Name asyncio as the library that runs the calling thread, whatever a submitter's context says; False if it must be named again
            later.
            """
            ...

    class Surroundings(Protocol):
        """A guest that knows the environments in which a process may run."""

        def warn_of_threads(self) -> None:
            """Warn the caller's caller if threads work differently here."""

        def tell_what_a_stop_loses(self, name: str, handler: object, sigterm: str | None) -> None:
            """Log, once a process, what a SIGTERM that meets *handler* will lose, if anything, and which setting prevents it."""

    class Polls(Protocol):
        """A guest that knows loops which poll in their own code, where asyncio's queue can't be emptied."""

        def stop_polling(self, loop: asyncio.AbstractEventLoop) -> None:
            """In a forked child: keep *loop*, which takes one more turn before it leaves, from taking the wake-ups of its parent."""

    class Host(Protocol):
        """A guest whose loop serves where no thread can be started: it runs in the one thread, and is never replaced or closed."""

        # A `LoopThread` that starts no thread.
        Thread: Any
        # A sentence that says what to do instead of a wait that would block that thread.
        INSTEAD: str

        def loop(self) -> asyncio.AbstractEventLoop:
            """Return the existing loop."""
            ...

        def can_wait(self) -> bool:
            """Tell whether the loop can go on while the calling code blocks."""
            ...

        def wait(self, done: asyncio.Future[None], timeout: float | None) -> None:
            """Block until *done* is done, or for *timeout* seconds; the loop goes on meanwhile."""

    class Watchdog(Protocol):
        """Watches, from a thread of its own, whether a callback blocks the loop; made when `slow_callback` or `monitor` is set."""

        # Whether it sleeps until `wake` is called; and whether it sees by itself when the loop works.
        asleep: bool
        attached: bool

        def watch(self) -> None:
            """Start the thread, or look at the settings again. RuntimeError if no thread can be started."""

        def wake(self) -> None:
            """Look now. From any thread, and harmless at any time."""

        def goes_on(self) -> None:
            """Note, on the loop's thread, that a long turn makes progress."""

        def busy_for(self) -> float | None:
            """Return for how many seconds the loop has worked without a look at its sockets; None if that is not known."""
            ...

        def stop(self, timeout: float) -> None:
            """End the thread, and wait *timeout* seconds for that."""

    class Timings(Protocol):
        """Measures how long work takes, by name; loaded when `timings` is switched on."""

        def measure(self, task: Any, batch_began: Callable[[], float]) -> None:
            """Measure *task* from now on. *batch_began* returns when the loop began the batch of work that it now starts."""

        def read(self) -> Mapping[str, Any]:
            """Return what was measured so far."""
            ...


G = TypeVar("G")

_MODULES: Final = sys.modules.keys()


class Hook(Generic[G]):
    """
    A hook that one guest may take. Calling it returns the guest, or None.

    A guest is a module of this package. It is offered with the names of its library's modules, and imported once one of them is loaded or a
    condition holds. A program that does not use the library pays only a look into `sys.modules`.
    """

    __slots__ = ("_also", "_libraries", "_module", "guest")

    def __init__(self) -> None:
        # To be read where nothing may be imported; elsewhere the hook is called.
        self.guest: G | None = None
        self._module = ""
        # Empty once the guest is imported.
        self._libraries: tuple[str, ...] = ()
        self._also: Callable[[], bool] | None = None

    def offer(self, module: str, *libraries: str, also: Callable[[], bool] | None = None) -> None:
        """Have *module* imported once one of *libraries* is loaded, or *also* returns True; it then takes the hook."""
        self._module, self._libraries, self._also = module, libraries, also

    def take(self, guest: Any) -> None:
        """Make *guest* the one that is asked from now on."""
        self.guest = guest

    def __call__(self) -> G | None:
        if self._libraries and (not _MODULES.isdisjoint(self._libraries) or (self._also is not None and self._also())):
            # At the end of the interpreter imports fail; then the library is of no use either.
            with suppress(ImportError, KeyError):
                import_module(self._module)
                self._libraries = ()
        return self.guest


waits: Final[Hook[Waits]] = Hook()
elsewhere: Final[Hook[Elsewhere]] = Hook()
surroundings: Final[Hook[Surroundings]] = Hook()
polls: Final[Hook[Polls]] = Hook()
host: Final[Hook[Host]] = Hook()

# The module of the guest, by the name of the loop.
LOOPS: Final[dict[str, str]] = {}


def who_runs_here() -> Elsewhere | None:
    """Return the guest whose library runs the calling async code; None if asyncio does."""
    guest = elsewhere()
    return guest if guest is not None and guest.runs_here() else None


def serve(loop: asyncio.AbstractEventLoop, spare: Executor) -> None:
    """Tell the guest of `waits` that a thread is about to run *loop*."""
    if (guest := waits()) is not None:
        guest.serve(loop, spare)


def leave(loop: asyncio.AbstractEventLoop) -> None:
    """Tell the guest of `waits` that *loop* has ended. A guest that is not imported yet knows nothing of the loop."""
    if (guest := waits.guest) is not None:
        guest.leave(loop)


def on_use(module: str, load: bool = True) -> Any:
    """Return the *module* of this package, which lies above its caller; None if it is not loaded and *load* is false."""
    name = f"{__package__}.{module}"
    return import_module(name) if load else sys.modules.get(name)
