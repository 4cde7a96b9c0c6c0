"""Makes the monitor's answers. Reads all from outside the loop, so that it works even while the loop is blocked."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import deque
from typing import Any, Final

from .. import _report
from .._life.life import Stage
from .._process import fork
from .._report import Failure, shown, thread_stack
from .._runtime import Runtime
from .._seen.look import look
from .._shared import shared_runtime

# Seconds after which a loop that does not answer counts as blocked.
_BLOCKED: Final = 0.1

# Only the text of failures is kept: an exception would keep the frames of its traceback alive.
_MOST_FAILURES: Final = 20
# Characters kept of a message, and of each of the two ends of a traceback: an error's text may have megabytes.
_LONGEST_LINE: Final = 500
_LONGEST_PART: Final = 10_000
_failures: deque[dict[str, Any]] = deque(maxlen=_MOST_FAILURES)

_started = time.time()


def answer(request: Any) -> dict[str, Any]:
    """
    Make the answer to one request.

    Raises:
        TypeError: if it is no request.
        ValueError: if there is no such question.
    """
    if not isinstance(request, dict):
        raise TypeError(f"A question is a JSON object, and this is none: {request!r:.100}")
    hello = {
        "pid": os.getpid(),
        "python": sys.version.partition(" ")[0],
        "command": sys.orig_argv,
        "since": _started,
        "time": time.time(),
    }
    match request.get("ask"):
        case "hello":
            return hello
        case "snapshot":
            return {**hello, "runtimes": [_runtime(runtime) for runtime in _runtimes()], "failures": list(_failures)}
        case other:
            raise ValueError(f"There is no question {other!r}: ask 'hello' or 'snapshot'.")


def watch_failures(wanted: bool) -> None:
    """Keep the last failures from now on; if not *wanted*, stop and forget them."""
    if wanted and _keep not in _report.watchers:
        _report.watchers.append(_keep)
    elif not wanted and _keep in _report.watchers:
        _report.watchers.remove(_keep)
        _failures.clear()


def _keep(failure: Failure) -> None:
    text = "".join(traceback.format_exception(failure.exception))
    if len(text) > 2 * _LONGEST_PART:
        left_out = f"\n… {len(text) - 2 * _LONGEST_PART:,} characters left out …\n"
        text = text[:_LONGEST_PART] + left_out + text[-_LONGEST_PART:]
    _failures.append(
        {
            "time": time.time(),
            "name": shown(failure.name),
            "message": shown(failure.message, _LONGEST_LINE),
            "error": shown("".join(traceback.format_exception_only(failure.exception)).strip(), _LONGEST_LINE),
            "submitted": None if failure.site is None else failure.site.short(),
            "traceback": text,
        }
    )


def _runtimes() -> list[Runtime]:
    # The shared runtime comes first, even if it was never used.
    shared = shared_runtime()
    others = {watched for watched in list(fork.watched) if isinstance(watched, Runtime)} - {shared}
    return [shared, *sorted(others, key=lambda other: other.name)]


def _runtime(runtime: Runtime) -> dict[str, Any]:
    life = runtime._current()
    # Read before the tasks, which takes a while in which the loop may answer.
    stats = runtime.stats()
    thread, loop = life.thread, life.loop
    busy = life._watchdog.busy_for() if life._watchdog is not None else None
    blocked = None
    if life.stage is Stage.SERVING:
        for_seconds = max(busy or 0.0, thread.unanswered_for())
        if for_seconds > _BLOCKED:
            blocked = {"for": for_seconds, "stack": thread_stack(thread.ident)}
    return {
        **look(runtime.name, life),
        "stats": {name: value for name, value in stats._asdict().items() if isinstance(value, (int, float))},
        "loop": None if loop is None else f"{type(loop).__module__}.{type(loop).__qualname__}",
        "stage": life.stage,
        "blocked": blocked,
        "workers": None if loop is None else life.workers.counts(),
        "resources": [
            {"name": shown(task.get_name()), "for": task._age()} for task in list(life.ledger.keepers.values())
        ],
    }
