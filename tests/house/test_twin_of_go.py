"""`Runtime.go` has the body of `Runtime._go` in place, for a call less: what one of them learns the other must learn too."""

import inspect

from omniloop import Runtime


def how_a_task_is_made(method):
    """The lines of *method* from the look at the coroutine to what is noted of the task."""
    source = inspect.getsource(method).replace("WORK,", "kind,")
    first, last = "if type(coro) is not CoroutineType", "self._note(life, task, frame)\n"
    assert first in source and last in source
    return first + source.partition(first)[2].partition(last)[0] + last


def test_go_makes_its_task_as_the_bridges_calls_do():
    """A change of the one was once missed in the other: what is measured of a task was no longer noted."""
    assert how_a_task_is_made(Runtime.go) == how_a_task_is_made(Runtime._go)
