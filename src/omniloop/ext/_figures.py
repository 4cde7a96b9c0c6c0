"""The fields of `Runtime.stats` that are exported as metrics, with their descriptions and, for gauges, their units."""

from typing import Final

COUNTERS: Final = {
    "accepted": "Submissions that were accepted.",
    "finished": "Work that is done, whatever came of it.",
    "failed": "Work that ended with an error.",
    "cancelled": "Work that ended by cancellation.",
    "dropped": "Submissions that the bounds dropped.",
    "handed_over": "Calls that their engine has taken.",
    "refused": "Calls for an engine that were refused, because too many were on their way.",
}
GAUGES: Final = {
    "running": ("{task}", "Work that is started and not done."),
    "scheduled": ("{task}", "Calls that are not due yet."),
    "queue_depth": ("{task}", "Work that is accepted and not started."),
    "handing_over": ("{call}", "Calls that are on their way to an engine."),
    "loop_lag": ("s", "How late the loop was when last asked."),
    "drain_time": ("s", "How long the last drain took."),
}
TO_START: Final = "From the submission to the start."
TO_FINISH: Final = "From the submission to the end, whatever came of it."
