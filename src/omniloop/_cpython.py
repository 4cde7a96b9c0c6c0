"""
The private names of CPython's standard library that we use: each appears once, here, with its reason.

They are the same from 3.11 to 3.15. If a loop or a Python lacks one, the function returns a value with which its caller can do without: it
sees less, or waits on. `tests/runtime/test_cpython.py` has a canary for each, which says on a new Python what has moved. (Names that
asyncio exports for authors of loops, such as `asyncio._get_running_loop`, do not count as private.)
"""

from __future__ import annotations

import gc
import sys
import threading
from asyncio import futures
from collections.abc import Callable, MutableSequence
from types import AsyncGeneratorType, CodeType, FrameType
from typing import Any, Final

# --- asyncio's tasks and futures: nothing public says which task waits for what ---------------------------------------


def waiter_of(task: Any) -> Any:
    """Return the future that *task* waits for; None if the task runs, or is about to."""
    return getattr(task, "_fut_waiter", None)


# The code in which a task waits for a future that is written in Python, as all are on PyPy. A wait for any other future has no frame.
AWAITS_FUTURE: Final = getattr(getattr(getattr(futures, "_PyFuture", None), "__await__", None), "__code__", None)


def generator_of(awaitable: Any) -> Any:
    """Return the async generator whose next item *awaitable* is; None if it is something else."""
    if type(awaitable).__name__ not in ("async_generator_asend", "async_generator_athrow"):
        return None
    return next((each for each in gc.get_referents(awaitable) if isinstance(each, AsyncGeneratorType)), None)


def gathered(future: Any) -> list[Any]:
    """Return the futures that a `gather` waits for; nothing for any other future."""
    return list(getattr(future, "_children", None) or ())


def callbacks_of(future: Any) -> list[Any]:
    """
    Return the functions that an asyncio future will call when it is done. Other futures, such as Qt's tasks, may store them without
    contexts.
    """
    entries = getattr(future, "_callbacks", None) or ()
    return [entry[0] if isinstance(entry, tuple) else entry for entry in entries]


def done_callbacks_of(future: Any) -> list[Any]:
    """Return the functions that a future of `concurrent.futures` will call when it is done."""
    return list(getattr(future, "_done_callbacks", ()))


def members_of(group: Any) -> Any:
    """Return the tasks of an `asyncio.TaskGroup`."""
    return getattr(group, "_tasks", None)


def parent_of(group: Any) -> Any:
    """Return the task that entered an `asyncio.TaskGroup`."""
    return getattr(group, "_parent_task", None)


def noted_waiters(future: Any) -> Any:
    """Return the tasks that asyncio lists, for debuggers, as waiting for *future*; it does so from 3.14 on."""
    return getattr(future, "_asyncio_awaited_by", None) or ()


def destroy_quietly(task: Any) -> None:
    """Keep asyncio from complaining when *task* is destroyed while pending: we have reported it already, in more detail."""
    task._log_destroy_pending = False


def transport_of(stream: Any) -> Any:
    """Return the transport of a stream's reader. (That of its writer is public.)"""
    return getattr(stream, "_transport", None)


def is_made_by_ensure_future(task: Any) -> bool:
    """
    Tell whether `asyncio.ensure_future`, which `shield` and `gather` use, made *task* around an awaitable that is neither future nor
    coroutine.
    """
    return getattr(task.get_coro(), "__name__", None) == "_wrap_awaitable"


def shield_of(callback: Any) -> Any:
    """Return the future that `asyncio.shield` has returned, if *callback* is the one it adds to the shielded future; else None."""
    return _closed_over(callback, "shield.<locals>._inner_done_callback").get("outer")


def ended_by(callback: Any) -> Any:
    """
    Return the future whose outcome the one that has *callback* will get, if *callback* is that of `asyncio.shield`, or of two futures of
    different kinds or loops that are chained; else None.
    """
    return _closed_over(callback, "shield.<locals>._outer_done_callback").get("inner") or _closed_over(
        callback, "_chain_future.<locals>._call_check_cancel"
    ).get("source")


def begun_by(handle: Any) -> Any:
    """Return the future of `asyncio.run_coroutine_threadsafe` whose coroutine a handle in the queue of due callbacks will start; else None."""
    callback = getattr(handle, "_callback", None)
    return _closed_over(callback, "run_coroutine_threadsafe.<locals>.callback").get("future")


def _closed_over(function: Any, qualname: str) -> dict[str, Any]:
    if getattr(function, "__qualname__", None) != qualname:
        return {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


# --- asyncio's loops --------------------------------------------------------------------------------------------------


def ready(loop: Any) -> Any:
    """Return the queue of due callbacks; None if the loop has another kind, as uvloop has."""
    return getattr(loop, "_ready", None)


def set_ready(loop: Any, queue: Any) -> None:
    """Replace the queue of due callbacks."""
    loop._ready = queue


def selector_of(loop: Any) -> Any:
    """Return the selector in which *loop* sleeps; None if it has none, or does not show it."""
    return getattr(loop, "_selector", None)


def is_wanted(loop: Any) -> bool:
    """Tell whether *loop* has sockets, timers or callbacks to serve; True as well if that can't be seen."""
    selector, scheduled = selector_of(loop), getattr(loop, "_scheduled", None)
    if selector is None or scheduled is None or ready(loop) is None:
        return True
    # One entry is the loop's own wake-up pipe.
    return len(selector.get_map()) > 1 or bool(scheduled) or bool(ready(loop))


def open_generators(loop: Any) -> Any:
    """Return the weak set of async generators that *loop* would close at its end; None if the loop does not show it."""
    return getattr(loop, "_asyncgens", None)


def clock_resolution(loop: Any) -> float:
    """Return how many seconds before its time *loop* already counts a timer as due; 0 if it does not say."""
    resolution: float = getattr(loop, "_clock_resolution", 0.0)
    return resolution


def set_default_executor(loop: Any, executor: Any) -> None:
    """Set the default executor. The loop's own method checks for a class that can't be imported any more."""
    loop._default_executor = executor


# --- threads, processes, logging --------------------------------------------------------------------------------------


def call_early_at_exit(call: Callable[[], None]) -> None:
    """
    Have *call* called before non-daemon threads are joined and the pools of `concurrent.futures` are shut. RuntimeError once that has
    begun.
    """
    getattr(threading, "_register_atexit", lambda _: None)(call)


def joins_threads(code: CodeType) -> bool:
    """Tell whether *code* is the function in which main waits for the other threads at exit."""
    return code is getattr(getattr(threading, "_shutdown", None), "__code__", None)


def module_lock(frame: FrameType) -> Any:
    """Return the module lock (with its `owner` and `name`) that *frame*, of importlib, acquires; else None."""
    return frame.f_locals.get("self") if is_of_importlib(frame) and frame.f_code.co_name == "acquire" else None


def is_of_importlib(frame: FrameType) -> bool:
    """Tell whether *frame* belongs to an import."""
    # The name depends on whether anybody has imported `importlib` itself.
    return frame.f_globals.get("__name__") in ("importlib._bootstrap", "_frozen_importlib")


def threads_of(executor: Any) -> set[Any]:
    """Return the threads of a `concurrent.futures.ThreadPoolExecutor`."""
    return set(getattr(executor, "_threads", ()))


def is_owned(lock: Any) -> bool:
    """Tell whether the calling thread holds the re-entrant *lock*."""
    return bool(lock._is_owned())


def incref() -> Callable[[object], object]:
    """Return the function that adds a reference which is never given back; ImportError or OSError if it can't be loaded."""
    if sys.implementation.name != "cpython":
        # It is known without an import, which in a child may wait for a thread that only the parent has.
        raise ImportError("only CPython has it")
    # Only the part of `ctypes` that is needed: it loads in a third of the time.
    from _ctypes import Py_INCREF

    return Py_INCREF


def has_gil() -> bool:
    """Tell whether this Python has a GIL, and so runs one thread at a time."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def closed_at_exit(logging: Any) -> MutableSequence[Any]:
    """Return the weak references to the handlers that the module *logging* waits for and closes at exit."""
    handlers: MutableSequence[Any] = getattr(logging, "_handlerList", [])
    return handlers


def is_being_imported_by(process: Any) -> bool:
    """Tell whether a process of multiprocessing is importing the script that it was spawned from."""
    return bool(getattr(process, "_inheriting", False))


def joined_at_exit(process_module: Any) -> set[Any]:
    """Return the processes that `multiprocessing.process` waits for at exit; it does so before our drain, which may still need them."""
    children: set[Any] = getattr(process_module, "_children", set())
    return children
