"""
What guests hook into. The core names nobody else's library: what it needs to know of one, a guest knows.

| hook | asked | contract |
|---|---|---|
| `waits` | around a blocking wait; where a thread begins or ends to run a loop; where a context is carried | `Waits`: makes calls in the thread that waits |
| `elsewhere` | where a handle is awaited; in SIGTERM's handler | `Elsewhere`: async code that asyncio does not run |
| `surroundings` | in the start of a runtime | `Surroundings`: what the process runs under |
| `host` | in the start of a runtime, and before a wait | `Host`: a loop that is there, where no thread can be started |
| `LOOPS` | where `OMNILOOP_LOOP` is read | the guest whose `factory()` returns a loop factory, or raises `SettingError` |
| `on_use` | `dump`, `timings`, a long drain, `monitor` | a module that lies above the core, loaded on its first use |

Others stand with what they belong to: `fork.forget_after_fork`, `hold_at_fork` and `keep_for_ever`; `exit.watch`, `tell_at_exit` and
`end_orphan`; `waits.look_in_long_waits`.
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
        """A guest that has a part in blocking waits: `run` leaves them to it."""

        def run(self, runtime: Any, coro: Any, timeout: float | None, frame: FrameType) -> Any:
            """Submit *coro* to *runtime*, wait until it is done, and return its task; close it if that is refused."""

        def serve(self, loop: asyncio.AbstractEventLoop, spare: Executor) -> None:
            """A thread is about to run *loop*, whose workers are *spare*. May be said again."""

        def leave(self, loop: asyncio.AbstractEventLoop) -> None:
            """The *loop* is over."""

        def is_thread_bound(self, value: object) -> bool:
            """Tell whether *value*, of a variable in a context, belongs to the thread that has set it: it is carried to no other context."""
            ...

    class Elsewhere(Protocol):
        """A guest that knows async code which asyncio does not run."""

        def runs_here(self) -> bool:
            """Tell whether the calling code is such code; an asyncio loop may run in the same thread."""
            ...

        def serves_here(self) -> bool:
            """Tell whether a loop of that kind runs in this thread, whatever has interrupted it."""
            ...

        async def wait(self, task: Any, asks: bool, timeout: float | None) -> None:
            """Wait there until *task* is done or *timeout* passed; what cancels the waiter asks the work to end, if that *asks*."""

        def say_asyncio(self) -> bool:
            """Have asyncio named as what runs the calling thread, whatever a submitter's context says; False if it is to be said again."""
            ...

    class Surroundings(Protocol):
        """A guest that knows what a process may run under."""

        def warn_of_threads(self) -> None:
            """Warn the caller's caller where threads are not what they are elsewhere."""

        def tell_what_a_stop_loses(self, name: str, handler: object, sigterm: str | None) -> None:
            """Log, once in a process, what a SIGTERM that meets *handler* will lose, and what to set; nothing if it loses nothing."""

    class Host(Protocol):
        """A guest whose loop serves where no thread can be started: it runs in the one thread, and is never replaced or closed."""

        # A `LoopThread` that starts none.
        Thread: Any
        # What to do where a wait would block that thread, as a sentence.
        INSTEAD: str

        def loop(self) -> asyncio.AbstractEventLoop:
            """The loop that is there already."""
            ...

        def can_wait(self) -> bool:
            """Tell whether the loop can go on while the calling code blocks."""
            ...

        def wait(self, done: asyncio.Future[None], timeout: float | None) -> None:
            """Block until *done* is, or for *timeout* seconds; the loop goes on meanwhile."""

    class Timings(Protocol):
        """Measures how long work takes, by name; loaded where that is switched on."""

        def measure(self, task: Any, batch_began: Callable[[], float]) -> None:
            """Measure *task* from now on. *batch_began* says when the loop came to what it starts just now."""

        def read(self) -> Mapping[str, Any]:
            """What was measured so far."""
            ...


G = TypeVar("G")


class Hook(Generic[G]):
    """
    What one guest may hook into. Calling it returns the guest, or None.

    A guest is a module of this package. It is offered by the names of the library's modules, and imported once one of them is loaded, or a
    condition holds; who does not use the library pays a look into `sys.modules`.
    """

    __slots__ = ("_also", "_module", "guest", "libraries")

    def __init__(self) -> None:
        # For where nothing may be imported; elsewhere the hook is called.
        self.guest: G | None = None
        self._module = ""
        # None of them once it is in.
        self.libraries: tuple[str, ...] = ()
        self._also: Callable[[], bool] | None = None

    def offer(self, module: str, *libraries: str, also: Callable[[], bool] | None = None) -> None:
        """Have *module* imported where one of *libraries* is loaded, or *also* holds; it then takes the hook."""
        self._module, self.libraries, self._also = module, libraries, also

    def take(self, guest: Any) -> None:
        """Be asked from now on."""
        self.guest = guest

    def __call__(self) -> G | None:
        for library in self.libraries:
            if library in sys.modules:
                self._let_in()
                break
        else:
            if self._also is not None and self._also():
                self._let_in()
        return self.guest

    def _let_in(self) -> None:
        # The interpreter ends, and imports no more: then its library serves nobody either.
        with suppress(ImportError, KeyError):
            import_module(self._module)
            self.libraries, self._also = (), None


waits: Final[Hook[Waits]] = Hook()
elsewhere: Final[Hook[Elsewhere]] = Hook()
surroundings: Final[Hook[Surroundings]] = Hook()
host: Final[Hook[Host]] = Hook()

# By the name of the loop: the module of its guest.
LOOPS: Final[dict[str, str]] = {}


def who_runs_here() -> Elsewhere | None:
    """Who runs the calling async code, where asyncio does not."""
    # Each `await` of a handle asks: the look of `Hook` in place saves a call.
    for library in elsewhere.libraries:
        if library in sys.modules:
            elsewhere()
            break
    guest = elsewhere.guest
    return guest if guest is not None and guest.runs_here() else None


def serve(loop: asyncio.AbstractEventLoop, spare: Executor) -> None:
    """Tell the guest of the waits that a thread is about to run *loop*."""
    if (guest := waits()) is not None:
        guest.serve(loop, spare)


def leave(loop: asyncio.AbstractEventLoop) -> None:
    """Tell the guest of the waits that *loop* is over; a guest that comes in only now knows nothing of it."""
    if (guest := waits.guest) is not None:
        guest.leave(loop)


def on_use(module: str, load: bool = True) -> Any:
    """The module of that name in this package, which lies above what asks for it; None if it is not loaded, and not to be."""
    name = f"{__package__}.{module}"
    return import_module(name) if load else sys.modules.get(name)
