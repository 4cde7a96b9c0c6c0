"""A periodic call: no drift, no overlap, and an error in one turn does not end the others."""

import threading
import time

from omniloop import configure, every, flush


def main() -> None:
    configure(on_error=lambda failure: print(f"reported: {failure.exception}"))
    turns: list[float] = []
    enough = threading.Event()

    def poll() -> None:
        turns.append(time.monotonic())
        if len(turns) == 2:
            raise ValueError("the second turn fails")
        if len(turns) == 5:
            enough.set()

    start = time.monotonic()
    handle = every(0.1, poll)
    enough.wait(timeout=5)
    handle.cancel()
    flush()
    late = max(moment - start - 0.1 * turn for turn, moment in enumerate(turns[:5], start=1))
    print(f"five turns, the latest {'less' if late < 0.1 else 'more'} than one interval late")


if __name__ == "__main__":
    main()
