"""
What is private in CPython's standard library, and read all the same: each name once, here, with its reason.

They are the same from 3.11 to 3.15. Where a loop or a Python has one no more, what is returned is what makes the caller do without: it
sees less, or waits on. `tests/runtime/test_cpython.py` has a canary for each, which tells on a new Python what has moved. (What asyncio
exports for those who write loops, such as `asyncio._get_running_loop`, is no inside.)
"""

from __future__ import annotations

import asyncio
import sys
import threading
from asyncio import futures
from collections.abc import Callable, MutableSequence
from types import CodeType, FrameType
from typing import Any, Final

# --- asyncio's tasks and futures: who waits for whom is told nowhere else ---------------------------------------------


def waiter_of(task: Any) -> Any:
    """The future that *task* waits for; None if it runs, or is about to."""
    return getattr(task, "_fut_waiter", None)


# In this a task waits for a future that is written in Python, as all are on PyPy; where others wait there is no frame.
AWAITS_FUTURE: Final = getattr(getattr(getattr(futures, "_PyFuture", None), "__await__", None), "__code__", None)


def gathered(future: Any) -> list[Any]:
    """What a `gather` waits for; nothing of any other future."""
    return list(getattr(future, "_children", None) or ())


def callbacks_of(future: Any) -> list[Any]:
    """The functions that an asyncio future will call when it is done. Another's may keep them without their contexts, as Qt's tasks do."""
    entries = getattr(future, "_callbacks", None) or ()
    return [entry[0] if isinstance(entry, tuple) else entry for entry in entries]


def done_callbacks_of(future: Any) -> list[Any]:
    """The same of a future of `concurrent.futures`."""
    return list(getattr(future, "_done_callbacks", ()))


def members_of(group: Any) -> Any:
    """The tasks of an `asyncio.TaskGroup`."""
    return getattr(group, "_tasks", None)


def parent_of(group: Any) -> Any:
    """The task that an `asyncio.TaskGroup` was entered in."""
    return getattr(group, "_parent_task", None)


def noted_waiters(future: Any) -> Any:
    """From 3.14 on the tasks that asyncio has noted, for debuggers, as waiting for *future*."""
    return getattr(future, "_asyncio_awaited_by", None) or ()


def destroy_quietly(task: Any) -> None:
    """Have asyncio not complain when *task* is destroyed while it is pending: it was told of already, and better."""
    task._log_destroy_pending = False


def transport_of(stream: Any) -> Any:
    """The transport of a stream's reader; its writer has it in public."""
    return getattr(stream, "_transport", None)


def is_made_by_ensure_future(task: Any) -> bool:
    """Tell whether *task* is what `asyncio.ensure_future`, and so `shield` and `gather`, wraps in a task what is neither future nor coroutine."""
    return getattr(task.get_coro(), "__name__", None) == "_wrap_awaitable"


def shield_of(callback: Any) -> Any:
    """The future that `asyncio.shield` has returned, if *callback* is what it adds to the future that it shields; else None."""
    return _closed_over(callback, "shield.<locals>._inner_done_callback").get("outer")


def shielded_by(callback: Any) -> Any:
    """The future that a shield is around, if *callback* is what `asyncio.shield` adds to the future that it returns; else None."""
    return _closed_over(callback, "shield.<locals>._outer_done_callback").get("inner")


def is_chained(future: Any) -> bool:
    """Tell whether another future, of a worker thread or of another loop, is to end *future*."""
    return any(getattr(callback, "__qualname__", "").startswith("_chain_future.") for callback in callbacks_of(future))


def _closed_over(function: Any, qualname: str) -> dict[str, Any]:
    if getattr(function, "__qualname__", None) != qualname:
        return {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


def inner_code(function: Any, name: str) -> CodeType | None:
    """The code of the function *name* that is made inside *function*; None where this Python has another."""
    consts = () if function is None else function.__code__.co_consts
    return next((code for code in consts if getattr(code, "co_name", None) == name), None)


# What `asyncio.run_coroutine_threadsafe` puts into the loop, and how its future tells the loop's of a cancellation.
BEGINS_THREADSAFE: Final = inner_code(asyncio.run_coroutine_threadsafe, "callback")
CHECKS_CANCEL: Final = inner_code(getattr(futures, "_chain_future", None), "_call_check_cancel")

# --- asyncio's loops --------------------------------------------------------------------------------------------------


def ready(loop: Any) -> Any:
    """The queue of callbacks that are due; None of a loop that has another, as uvloop's."""
    return getattr(loop, "_ready", None)


def set_ready(loop: Any, queue: Any) -> None:
    """Give *loop* another such queue."""
    loop._ready = queue


def callback_of(handle: Any) -> Any:
    """The function that a handle in that queue calls."""
    return getattr(handle, "_callback", None)


def selector_of(loop: Any) -> Any:
    """What *loop* sleeps in between two callbacks; None of a loop that has none, or does not show it."""
    return getattr(loop, "_selector", None)


def is_wanted(loop: Any) -> bool:
    """Tell whether *loop* has sockets, timers or callbacks to serve, or whether that can't be seen."""
    selector, scheduled = selector_of(loop), getattr(loop, "_scheduled", None)
    if selector is None or scheduled is None or ready(loop) is None:
        return True
    # The one is the loop's own wake-up pipe.
    return len(selector.get_map()) > 1 or bool(scheduled) or bool(ready(loop))


def open_generators(loop: Any) -> Any:
    """The async generators that *loop* would close at its end, a weak set; None of a loop that does not show them."""
    return getattr(loop, "_asyncgens", None)


def clock_resolution(loop: Any) -> float:
    """Within how many seconds of its time *loop* takes a timer for due; 0 if it does not say."""
    resolution: float = getattr(loop, "_clock_resolution", 0.0)
    return resolution


def set_default_executor(loop: Any, executor: Any) -> None:
    """As the loop's own method, which looks for a class that can't be imported any more."""
    loop._default_executor = executor


# --- threads, processes, logging --------------------------------------------------------------------------------------


def call_early_at_exit(call: Callable[[], None]) -> None:
    """Have *call* made before non-daemon threads are joined, and the pools of `concurrent.futures` shut. RuntimeError once that began."""
    getattr(threading, "_register_atexit", lambda _: None)(call)


def joins_threads(code: CodeType) -> bool:
    """Tell whether *code* is what main is in while the interpreter waits for the other threads."""
    return code is getattr(getattr(threading, "_shutdown", None), "__code__", None)


def module_lock(frame: FrameType) -> Any:
    """The lock of a module, with its `owner` and its `name`, that *frame* acquires, of importlib; else None."""
    return frame.f_locals.get("self") if is_of_importlib(frame) and frame.f_code.co_name == "acquire" else None


def is_of_importlib(frame: FrameType) -> bool:
    """Tell whether *frame* is one of an import."""
    # Which of the two depends on whether anybody has imported `importlib` itself.
    return frame.f_globals.get("__name__") in ("importlib._bootstrap", "_frozen_importlib")


def threads_of(executor: Any) -> set[Any]:
    """The threads of a `concurrent.futures.ThreadPoolExecutor`."""
    return set(getattr(executor, "_threads", ()))


def is_owned(lock: Any) -> bool:
    """Tell whether the calling thread holds the re-entrant *lock*."""
    return bool(lock._is_owned())


def incref() -> Callable[[object], object]:
    """The function by which an object gets a reference that is never given back; ImportError or OSError if it can't be loaded."""
    # The part of `ctypes` that is needed, in a third of the time that the whole takes to load.
    from _ctypes import Py_INCREF

    return Py_INCREF


def has_gil() -> bool:
    """Tell whether this Python runs one thread at a time."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def closed_at_exit(logging: Any) -> MutableSequence[Any]:
    """The handlers, weakly referred to, that the module *logging* waits for, and closes, at exit."""
    handlers: MutableSequence[Any] = getattr(logging, "_handlerList", [])
    return handlers


def is_being_imported_by(process: Any) -> bool:
    """Tell whether a process of multiprocessing is importing the script that it was spawned from."""
    return bool(getattr(process, "_inheriting", False))


def joined_at_exit(process_module: Any) -> set[Any]:
    """The processes that `multiprocessing.process` waits for at exit, before the drain that may still need them."""
    children: set[Any] = getattr(process_module, "_children", set())
    return children
