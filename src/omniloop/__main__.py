"""``python -m omniloop COMMAND …``: each command is a module, loaded when it is called."""

from __future__ import annotations

import importlib
import sys

# The name, the module whose `main` takes the arguments after it, and what it does.
COMMANDS = {
    "stubs": ("_stubs", "write the types of the sync twins in a module"),
}


def main(args: list[str]) -> int:
    """Run a command; returns the exit code."""
    if args and args[0] in COMMANDS:
        code: int = importlib.import_module(f"omniloop.{COMMANDS[args[0]][0]}").main(args[1:])
        return code
    print("usage: python -m omniloop COMMAND …\n")
    for name, (_, does) in COMMANDS.items():
        print(f"  {name:8}{does}")
    return 0 if args in ([], ["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
