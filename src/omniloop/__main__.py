"""Implements ``python -m omniloop COMMAND …``. Only the module of the given command is imported."""

from __future__ import annotations

import importlib
import sys

# For each command: its module and function, which gets the remaining arguments, and a line of help.
COMMANDS = {
    "ps": ("_monitor.cli:ps", "list the processes that can be asked what their loops do"),
    "dump": ("_monitor.cli:dump", "show what is unfinished in a process, and where it waits"),
    "top": ("_monitor.cli:top", "show it live in the terminal"),
    "web": ("_monitor.cli:web", "show it live in a browser, on this machine"),
    "attach": ("_monitor.cli:attach", "let a process be asked that runs already, from Python 3.14 on"),
    "outbox": ("_brokers.cli:outbox", "list what waits in the file of an outbox, and what is set aside"),
    "stubs": ("_twins.stubs:main", "write the types of the sync twins in a module"),
}


def main(args: list[str]) -> int:
    """Run a command and return its exit code."""
    if args and args[0] in COMMANDS:
        module, _, function = COMMANDS[args[0]][0].partition(":")
        code: int = getattr(importlib.import_module(f"omniloop.{module}"), function)(args[1:])
        return code
    print("usage: python -m omniloop COMMAND …\n")
    for name, (_, does) in COMMANDS.items():
        print(f"  {name:8}{does}")
    return 0 if args in ([], ["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
