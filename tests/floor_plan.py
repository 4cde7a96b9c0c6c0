"""The floors of the package, and what of it is the core: shared by the tests of the house, and by the run of the core alone."""

# From the ground up. A module imports from lower floors; and from its own, as long as nothing there leads back to it.
FLOORS = {
    "words": {
        "_threads",
        "_cpython",
        "_hooks",
        "_errors",
        "_settings",
        "_arguments",
        "_report",
        "_stats",
    },
    "_process": {"_process"},
    "_work": {"_work"},
    "_life": {"_life"},
    "_runtime": {"_admission", "_runtime"},
    "_seen": {"_seen"},
    "_guests": {"_guests"},
    "_shared": {"_shared"},
    "shared by guests": {"_starting", "_steps"},
    "_brokers": {"_brokers"},
    "_processes": {"_processes"},
    "_bridges": {"_bridges"},
    "_twins": {"_twins"},
    "_monitor": {"_monitor"},
    "doors": {"__init__", "__main__", "ext", "testing"},
}

CORE = {"__init__"}.union(*(FLOORS[floor] for floor in ("words", "_process", "_work", "_life", "_runtime", "_shared")))
# Each can be left out, and the others work. (`_starting` and `_steps` are what some of them share.)
GUESTS = ["_seen", "_guests", "_brokers", "_processes", "_bridges", "_twins", "_monitor", "ext", "testing"]
