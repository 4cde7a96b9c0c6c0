"""`Runtime.go` has the body of `_make_task` in place, for two calls less: what one of them learns the other must learn too."""

import inspect

from omniloop import Runtime


def how_a_task_is_made(method):
    """The lines of *method* from the look at the process to what is noted of the task."""
    source = inspect.getsource(method)
    for there, here in (
        ("Task[Any]", "Task[T]"),
        ("work,", "coro,"),
        ("args,", "None,"),
        ("kind,", "WORK,"),
        ("work)", "coro)"),
    ):
        source = source.replace(there, here)
    first, last = "if not _same_process[0]:", "self._note(life, task, frame)\n"
    assert first in source and last in source
    return first + source.partition(first)[2].partition(last)[0] + last


def test_go_makes_its_task_as_all_others_are_made():
    """A change of the one was once missed in the other: what is measured of a task was no longer noted."""
    assert how_a_task_is_made(Runtime.go) == how_a_task_is_made(Runtime._make_task)
