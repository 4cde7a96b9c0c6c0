"""
One life of a runtime, from its first use to its end or to a fork: it joins inbox, thread, ledger and workers.

The state of a life is one word, its `Stage`:

    NEW ──> PARKED <──> SERVING ──> CLOSED        shut down
                           │
                           └──────> DEAD          the thread ended by itself; the runtime begins another life
    any, in a forked child ───────> FOREIGN       the parent's; the runtime begins another life

Which thread writes the stage:
- `_make` and `_start`: the thread that starts the life, one at a time (`_starter`). If it was interrupted, the loop's thread may.
- `_park` and `_die`: the loop's thread.
- `shut`: the thread that holds `closing`.
- `after_fork_in_child`: the only thread of the child.

What is guaranteed. Work that the inbox has accepted is started, or failed by `fail_all`: also when the thread dies, when it can't be
started again, and when the interpreter ends. The inbox alone, by its mark, decides between submitting and closing, so the submit path never
looks at the stage.

How a life starts. The first submitter makes the loop and the threads. Others that submit meanwhile only append and do not wait for it,
because they may be a signal handler that interrupts this very start.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, Final, Protocol

from .. import _cpython, _hooks
from .._arguments import close_unstarted
from .._errors import CannotStartError, ClosedError, ForkedError, LoopDiedError, OmniloopError
from .._process import exit, fork, signals
from .._report import Failure, say, shown
from .._settings import Settings
from .._threads import why_no_thread
from .._work.failures import Failures, Unclaimed
from .._work.inbox import Inbox
from .._work.ledger import Later, Ledger, task_in, waiting_in
from .._work.leftovers import rank_of
from .._work.tally import Tally
from .._work.task import KEEPER, Task
from . import waits
from .thread import LoopThread
from .workers import ThreadWork, Workers

if TYPE_CHECKING:
    from .._stats import Stats

    class Owner(fork.Watched, Protocol):
        """The runtime whose life it is."""

        name: str
        _failures: Failures
        _tally: Tally

        @property
        def _settings(self) -> Settings: ...
        def _settings_of_process(self) -> Settings: ...
        def _now(self) -> float: ...


# The descriptors that a loop opens: asyncio 3, uvloop 9.
_DESCRIPTORS: Final = 10

# How long, in seconds, one thread waits for another to start the runtime.
_START_TIMEOUT: Final = 1.0

# How long a fork waits for a loop that is in the middle of a callback.
_PAUSE_TIMEOUT: Final = 1.0


class Stage:
    """The state of a life. Written only by `_make`, `_start`, `_park`, `_die`, `shut` and `after_fork_in_child`."""

    # Nothing is made yet. The first use makes the loop and everything that belongs to it.
    NEW: Final = "new"
    # The loop exists and no thread runs it: before its first start, after a fork while idle, or after a start that failed.
    PARKED: Final = "parked"
    # The thread runs the loop, or is about to.
    SERVING: Final = "serving"
    # Shut down: the thread was stopped, and every report is out.
    CLOSED: Final = "closed"
    # The thread ended without being told to. The next use begins another life.
    DEAD: Final = "dead"
    # In a forked child: the life belongs to the parent.
    FOREIGN: Final = "foreign"


class Life:
    """
    What `go` submits to. Starts on first use. Its methods may be called from any thread.

    After a fork, or when its thread has died, the runtime begins another life.
    """

    def __init__(self, owner: Owner, generation: int) -> None:
        self._owner = owner
        self.name = shown(owner.name)
        self.generation = generation
        self.inbox = Inbox(self._wake)
        self.debug = sys.flags.dev_mode or (
            not sys.flags.ignore_environment and bool(os.environ.get("PYTHONASYNCIODEBUG"))
        )
        # Whether more than the work itself is noted of a submission: in debug mode, and while timings are measured.
        self.noted = self.debug
        self.stage: str = Stage.NEW
        # The first start makes the loop.
        self.thread = LoopThread(self.name, self._escaped, self._die)
        # Held by the thread that ends this life. Re-entrant, because a SIGTERM may come in the middle.
        self.closing = RLock()
        # Kept here too, because in a forked child the runtime begins others.
        self.failures = owner._failures
        self.tally = owner._tally
        self.ledger = Ledger(self.inbox, self.failures, self.tally, owner._now)
        self.workers = Workers(self.name)
        self.workers.thread, self.workers.ledger = self.thread, self.ledger
        self._watchdog: _hooks.Watchdog | None = None
        # Whether a guest's loop serves, in the only thread: then there are no workers, and nobody watches.
        self._hosted = False
        # The requests that other threads wait for; the end of the life answers those that are left.
        self.asked: dict[Any, bool] = {}
        # The threads that run the calls of daemons, which nobody joins. The list is non-empty once the log has said that a forked child
        # lacks the thread.
        self.daemon_threads: dict[threading.Thread, list[str]] = {}
        # Whether the end has waited for what daemons had submitted, which it does once.
        self.waited_for_daemons = False
        # The start under way: its thread's ident, and a lock that is held until it is over. In a dictionary, because `setdefault` is atomic;
        # with a plain lock, a signal handler that raises right after it was acquired would leave it locked forever.
        self._starter: dict[str, tuple[int, Lock]] = {}
        # A failure that is already reported, and may yet leave through the loop.
        self._escaping: BaseException | None = None

    @property
    def serving(self) -> bool:
        """Tell whether the thread runs the loop, or is about to."""
        return self.stage is Stage.SERVING

    @property
    def foreign(self) -> bool:
        """Tell whether this life belongs to the parent process."""
        return self.stage is Stage.FOREIGN

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop, if it is made."""
        loop: asyncio.AbstractEventLoop | None = self.thread.loop
        return loop

    @property
    def ident(self) -> int | None:
        """The ident of the loop's thread, if it runs."""
        return self.thread.ident

    # --- starting -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, unless another start is under way, which then does it. Raises CannotStartError or ClosedError."""
        # First, because others rely on this start from now on, and the process may end or fork in the middle of it.
        exit.watch(self._owner)
        if exit.exiting():
            exit.unwatch(self._owner)
            raise ClosedError(exit.TOO_LATE)
        me = threading.get_ident(), Lock()
        me[1].acquire()
        try:
            if self._starter.setdefault("by", me) is me:
                self._start()
        except (RuntimeError, OSError) as error:
            raise CannotStartError(f"omniloop can't start its thread here: {why_no_thread(error)}") from error
        finally:
            # Without a function call, after which a signal handler could raise: the entry would stay, and nothing would ever be started
            # again.
            if self._starter == {"by": me}:
                del self._starter["by"]
            me[1].release()
            if self.stage is Stage.CLOSED and self._owner._held_by_fork() is self:
                # A signal handler that interrupted this start has shut the runtime down.
                exit.unwatch(self._owner)
            exit.make_up_for_signal()

    def _start(self) -> None:
        fork.prepare()
        if self.inbox.closed or self.serving:
            return
        if self.stage is Stage.NEW:
            self._make()
        if fork.is_forking():
            # A new thread would be in the way of the fork; `catch_up` starts it afterwards.
            return
        thread, pool = self.thread, self.workers
        if not self._hosted:
            pool.start_one()
        self.watch()
        if self._owner._settings_of_process().monitor:
            _hooks.on_use("_monitor.server").start_with_runtime()
        # Not in `_make`: if that is interrupted nobody has the loop, and a guest would keep it.
        _hooks.serve(thread.loop, pool)
        try:
            self.stage = Stage.SERVING
            thread.start(self._empty)
        except BaseException:
            # No thread can be started, or Ctrl-C interrupted the start. In that case the thread may run nevertheless, and notes that
            # itself.
            if not thread.runs:
                self.stage = Stage.PARKED
            raise

    def starts_below(self) -> bool:
        """Tell whether the calling thread is itself in the middle of a start, which a signal handler, say, has interrupted."""
        by = self._starter.get("by")
        return by is not None and by[0] == threading.get_ident()

    def wait_for_start(self) -> None:
        """Wait until the start under way in another thread is over, for a second at most."""
        by = self._starter.get("by")
        if by is not None and by[0] != threading.get_ident() and by[1].acquire(timeout=_START_TIMEOUT):
            by[1].release()

    def _make(self) -> None:
        settings = self._owner._settings
        host = _hooks.host() if settings.loop_factory is None else None
        pool, loop = self.workers, None
        pool.size, pool.most_waiting = settings.max_workers, settings.max_waiting_workers
        # A start that failed may have closed a loop, and the pool with it.
        pool.closed, self._watchdog = False, None
        try:
            if host is not None:
                self.thread = pool.thread = host.Thread(self.name, self._escaped, self._die)
                self.thread.own(host.loop())
            else:
                _check_descriptors()
                if not fork.is_forking():
                    # Before the loop: if no thread can be started, no loop is made.
                    pool.start_one()
                    # Until now the pool had room for one.
                    pool.catch_up()
                # In an empty context, because the loop's own callbacks keep the context that they were made in.
                made = contextvars.Context().run(settings.loop_factory or asyncio.new_event_loop)
                if not isinstance(made, asyncio.AbstractEventLoop):
                    close_unstarted(made)
                    raise OmniloopError(f"loop_factory returned {made!r}, which is not an asyncio event loop.")
                loop = made
                try:
                    # Asked for in each batch of work, where an error would be nobody's.
                    made.get_task_factory()
                except Exception as error:
                    raise OmniloopError(
                        f"loop_factory returned {made!r}, which can't be used: its get_task_factory() raises {error!r}."
                    ) from error
                # Now, because after a fork nothing may be imported.
                _hooks.polls()
                self._set_up_signals()
                self.thread.own(made)
                # Our own executor, because the default one refuses work before the first atexit handler runs: a drain in which a task looks
                # up a host name would fail.
                pool.serve(made)
                # Now, because after a fork nothing may be imported.
                self._load_watchdog()
            thread, self._hosted = self.thread, host is not None
            self.ledger.begin(thread.loop, thread.context, owns_loop=not self._hosted)
            self.debug = self.debug or thread.loop.get_debug()
            self.stage = Stage.PARKED
        finally:
            if self.stage is not Stage.PARKED:
                # Interrupted (Ctrl-C), or refused; the next use begins anew.
                if loop is not None:
                    loop.close()
                self.thread.loop = None
                pool.park(_PAUSE_TIMEOUT)
                with suppress(RuntimeError):
                    pool.catch_up()

    def _set_up_signals(self) -> None:
        sigterm = self._owner._settings_of_process().sigterm
        try:
            signals.set_up_sigterm(sigterm)
        except ValueError:
            if sigterm == "drain":
                say(
                    '%s: sigterm="drain" can be set up in the main thread only, and this is the thread %r. '
                    'Call configure(sigterm="drain") in the main thread.',
                    self.name,
                    threading.current_thread().name,
                )
        if (around := _hooks.surroundings()) is not None:
            around.tell_what_a_stop_loses(self.name, signals.sigterm_handler(), sigterm)

    def _wake(self) -> None:
        """Make the loop look into the inbox. The caller holds the inbox's token."""
        if self.inbox.closed:
            self.inbox.give_token_back()
        elif self.stage is Stage.SERVING:
            self.thread.post(self._empty)
            watchdog = self._watchdog
            if watchdog is not None and watchdog.asleep and not watchdog.attached:
                watchdog.wake()
        else:
            self.start()

    def _empty(self) -> None:
        if self.thread.leaving:
            # The thread leaves for a fork, because nothing was pending. A task started in the last turn of the loop would be left hanging;
            # the next start looks into the inbox first.
            self.inbox.give_token_back()
            return
        if self.stage is Stage.PARKED:
            # The start was interrupted, and the thread runs nevertheless.
            self.stage = Stage.SERVING
        self.ledger.empty()

    # --- watching -----------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Watch the loop if `slow_callback` is set, and note submissions if `timings` is. Called again when the settings change."""
        self.noted = self.debug or self._owner._settings.timings
        if self.loop is not None and not self._hosted and not self.inbox.closed:
            self._load_watchdog()
            if self._watchdog is not None:
                self._watchdog.watch()

    def _load_watchdog(self) -> None:
        wanted = self._owner._settings.slow_callback is not None or self._owner._settings_of_process().monitor
        if wanted and self._watchdog is None:
            # The core may be installed without it.
            with suppress(ImportError):
                self._watchdog = _hooks.on_use("_seen.watchdog").Watchdog(
                    self.thread, self.ledger, lambda: self._owner._settings
                )

    def shut(self) -> None:
        """Note that this life is over: its thread was stopped, and what is left will not be done."""
        self.stage = Stage.CLOSED
        if self.loop is not None:
            _hooks.leave(self.loop)

    def stop_watching(self, timeout: float) -> None:
        """End the watchdog's thread. Comes before the end of the loop's, so that it does not log while the interpreter ends."""
        if self._watchdog is not None:
            self._watchdog.stop(timeout)

    def goes_on(self) -> None:
        """Note that the loop makes progress in a long turn, so that no single callback is blamed. Called on the loop's thread."""
        if self._watchdog is not None:
            self._watchdog.goes_on()

    # --- what a task needs --------------------------------------------------------------------------------------------

    def check_process(self) -> None:
        """Raise ForkedError if this life was the parent process's."""
        if not fork.same_process[0]:
            fork.notice_fork()
        if self.stage is Stage.FOREIGN:
            raise ForkedError(
                "This work belongs to the parent process, and is not done. Submit it in this process to run it here."
            )

    # Both are functions that take a life; as its methods they cost no further frame.
    check_may_wait = waits.check_may_wait
    wait = waits.wait

    def cancel(self, task: Task[Any], msg: object) -> bool:
        """Cancel *task*; False if it is too late for that."""
        work = task._work
        if type(work) is tuple:
            # The task ended after the caller had looked.
            return False
        args: tuple[object, ...] = () if msg is None else (msg,)
        if isinstance(work, ThreadWork):
            return work.cancel(task, args)
        ledger = self.ledger
        if self.stage is Stage.NEW:
            # Accepted in the middle of a fork or of the first start: there is no loop yet.
            if any(task_in(item) is task and self.inbox.take_back(item) for item in self.inbox.waiting()):
                task._end_unstarted(*args)
                return True
            if self.stage is Stage.NEW:
                # Refused.
                return False
        if self.thread.is_current():
            if isinstance(task._work, asyncio.Future):
                ledger.cancel(task, msg)
                return True
            # In the task's own first step its asyncio task is only known to asyncio. By the inbox it would come a turn too late, where a batch ends.
            current = asyncio.current_task() if ledger.beginning is task else None
            if current is not None and current.get_coro() is task._work:
                return current.cancel(msg)
        if not task._is_started():
            # If the loop has not reached it yet, it never starts.
            ledger.cancelled_early[task] = args
        # Through the inbox, which keeps the order: when the loop reaches this, the task was started or dropped.
        if self.inbox.put(partial(ledger.cancel, task, msg)):
            return True
        # The life has ended: nothing looks any more, and its end settles the task.
        ledger.cancelled_early.pop(task, None)
        return False

    def hold_failure(self, unclaimed: Unclaimed, task: Task[Any]) -> None:
        """Remember a failure that nobody has asked for yet."""
        self.failures.hold(unclaimed, task)
        self.tally.count("failed")
        error = unclaimed.failure.exception
        if isinstance(error, (SystemExit, KeyboardInterrupt)) and self.thread.is_current():
            # uvloop lets the error out only after the task was settled; see `_escaped`.
            self._escaping = error
            self.thread.post(self._none_escaping)

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def _escaped(self, error: BaseException) -> None:
        """Report a SystemExit or KeyboardInterrupt that left through the loop, unless it came from a task, whose handle reports it."""
        if error is not self._escaping and not self.ledger.is_known(error):
            self.failures.tell(
                Failure(f"A callback on the loop raised {type(error).__name__}; the loop goes on", error, "callback")
            )

    def _none_escaping(self) -> None:
        self._escaping = None

    def _die(self, cause: BaseException | None) -> None:
        """Fail everything: the loop's thread ended without being told to."""
        if not fork.same_process[0] or self.stage is Stage.FOREIGN:
            return
        self.stage = Stage.DEAD
        why = "" if cause is None else f", because the loop is broken ({cause!r})"
        what = f"The thread of the loop {self.name!r} ended{why}"

        def make_error() -> LoopDiedError:
            error = LoopDiedError(f"{what} before this was done. Submit it again: the next use starts a new one.")
            error.__cause__ = cause
            return error

        undelivered = self.inbox.close()
        self.failures.tell(Failure(what, cause or make_error(), "loop thread"))
        for runner in [*dict(self.ledger.runners()), *self.ledger.leftovers.helpers]:
            # Their handles, and the requests of waiting threads, report this already.
            _cpython.destroy_quietly(runner)
            if isinstance(runner, asyncio.Task):
                close_unstarted(runner.get_coro())
        self.stop_watching(0)
        self.workers.stop(0)
        with suppress(Exception):
            # A broken loop may not even close.
            self.ledger.loop.close()
        _hooks.leave(self.ledger.loop)
        # Last, because whoever is told may shut down at once.
        self.fail_all(undelivered, make_error)

    def fail_all(self, undelivered: list[Any], make_error: Callable[[], BaseException], told: bool = False) -> None:
        """
        Settle whatever is left, so that nobody waits forever. If the log has *told* of it already, the failures are not reported one by
        one.
        """

        def fail(task: Task[Any]) -> None:
            # First, because the thread that does the work may end it at this moment; then the lock of the meeting decides.
            task._meet()
            if task._fail(make_error()) and told:
                task._ended()[1].claim()

        for item in undelivered:
            if (task := task_in(item)) is not None:
                self.tally.count("aside")
                close_unstarted(task._work)
                fail(task)
        ledger = self.ledger
        for task in [*ledger.unfinished(), *ledger.keepers.values()]:
            if task is ledger.beginning:
                # The loop's thread is just starting it, and settles it afterwards.
                continue
            work = task._work
            if isinstance(work, ThreadWork) and not work.claim() and work not in ledger.in_threads:
                # `to_thread` has taken it back for the next life.
                continue
            if self.stage is not Stage.DEAD and task in ledger.timers:
                # A timer that never came due is cancelled without a report.
                task._meet()
                task._end_cancelled(())
                continue
            fail(task)
        for item in undelivered:
            if type(item) not in (Task, Later):
                # A flush finds nothing left to wait for; a cancellation comes too late.
                with suppress(RuntimeError):
                    item()
        for asked in list(self.asked):
            asked.answer(True)
        self.failures.tell_unheld()

    def unfinished(self) -> list[Task[Any]]:
        """Return all accepted work that is not done. A snapshot."""
        # A task that is done may still be in the table.
        return [task for task in (*self.ledger.unfinished(), *waiting_in(self.inbox)) if not task.done()]

    def waited_for(self) -> Iterator[Task[Any]]:
        """Yield the work that the drain has to wait for, started work first. A snapshot."""
        yield from self.ledger.waited_for()
        yield from (item for item in self.inbox.waiting() if type(item) is Task)

    def started(self) -> int:
        """Count the work that was ever started or waits to be, without what daemons have submitted."""
        return self.tally.begun() + sum(not rank_of(task) for task in waiting_in(self.inbox))

    def stats(self, drain_time: float) -> Stats:
        """Count this life's work, for `stats`. A snapshot."""
        from .._stats import Stats

        ledger, (begun, failed, cancelled) = self.ledger, self.tally.look()
        running = scheduled = waiting = queued = 0
        # A closed or dead life has settled everything.
        if self.stage in (Stage.SERVING, Stage.PARKED):
            first = ledger.beginning
            in_threads = [task for task in list(ledger.in_threads.values()) if not task.done()]
            waiting = sum(not task._is_started() for task in in_threads)
            running = len(ledger.running) + len(ledger.daemons) + len(in_threads) - waiting
            running += first is not None
            if first is not None and first._kind is KEEPER:
                # A resource that is being opened is not among the keepers yet.
                running, begun = running - 1, begun - 1
            scheduled = len(ledger.timers)
        if not self.inbox.closed:
            queued = sum(task._kind is not KEEPER for task in waiting_in(self.inbox))
        sums: dict[str, Any] = self.tally.sum_up((begun, failed, cancelled), running, scheduled, waiting, queued)
        lag = self.thread.lag(self.serving) if self.stage is not Stage.CLOSED else 0.0
        return Stats(**sums, drain_time=drain_time, loop_lag=lag)

    # --- fork ---------------------------------------------------------------------------------------------------------

    def has_other_thread(self) -> bool:
        """Tell whether this life has another thread, which a fork in the calling thread must wait for."""
        # A thread that starts this life may be importing a module, such as uvloop, which the child could then never import.
        self.wait_for_start()
        return self.loop is not None and not self.thread.is_current()

    def forks_itself(self) -> None:
        """On the thread that begins a fork: if it is this life's own, let forks in other threads wait for its callback no more."""
        if self.thread.is_current():
            self.thread.let_forks_go_on()

    def hold_still(self) -> None:
        """Before a fork: end the threads if nothing is pending; otherwise hold the loop between two callbacks."""
        if self.serving and self.thread.hold_or_leave(self._park, _PAUSE_TIMEOUT):
            self.stop_watching(_PAUSE_TIMEOUT)
            # If a callback keeps the thread, it leaves after the fork; the next one waits for that.
            self.thread.join(_PAUSE_TIMEOUT)
            self.workers.park(_PAUSE_TIMEOUT)

    def _park(self) -> bool:
        """On the loop's thread before a fork: park if the loop has nothing to do; False if it has."""
        if not self.ledger.nothing_left():
            return False
        # So that no timer is left that would make the loop start again after the fork.
        self.ledger.leftovers.look()
        self.stage = Stage.PARKED
        return True

    def go_on(self) -> None:
        """In the parent after a fork: let the loop go on."""
        self.thread.resume()

    def catch_up(self) -> None:
        """After a fork: start the threads if they have something to do."""
        idle = self.stage is Stage.PARKED and not _cpython.is_wanted(self.loop) and not self.ledger.in_threads
        if not self.inbox.closed and (self.inbox or (self.stage is Stage.PARKED and not idle)):
            # Work was submitted meanwhile, or the loop serves a socket or a timer.
            with suppress(CannotStartError):
                self.inbox.wake_reader()

    def after_fork_in_child(self) -> None:
        """In a forked child: keep what is the parent's, so that its work is not run, closed or finalised here."""
        self.stage = Stage.FOREIGN
        # Each thing is kept as soon as it is found: if a later step fails, the earlier ones still hold.
        kept: list[object] = [self]
        fork.keep_for_ever(kept)
        try:
            # The fork may have been made while the loop emptied the inbox; that must not go on to start the rest here.
            kept += self.inbox.close()
            if self.loop is not None:
                # The loop refers only weakly to what it has beside our work.
                kept += _cpython.open_generators(self.loop) or ()
                kept += asyncio.all_tasks(self.loop)
        finally:
            self.thread.abandon()


def _check_descriptors() -> None:
    """
    Raise OSError if too few descriptors are left for a loop.

    If they run out midway, asyncio complains on stderr of a half-made loop, and uvloop, which opens 9, aborts the process. The descriptors
    are counted, not opened on trial: an interruption (Ctrl-C) would leave those open.
    """
    if sys.platform != "linux":
        return
    try:
        limit = os.sysconf("SC_OPEN_MAX")
        # Negative where there is no limit.
        if limit < 0 or limit - len(os.listdir("/proc/self/fd")) >= _DESCRIPTORS:
            return
    except FileNotFoundError:
        # The system shows no processes here.
        return
    except OSError:
        # No descriptor is left even to list the others.
        pass
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
