"""
Takes items from any thread, in order, without waiting for a lock; whoever empties it is woken once, not once an item.

What is guaranteed. A `put` that returned True is taken: by the reader, or by `close`. One that returned False, or raised and was taken back
by its caller, is not. Items of one thread are taken in the order in which it put them. While anything is in the inbox the reader looks, or
is due to.

Who may touch what. Anybody may put, look, wake the reader (who does runs `Life._wake`, on its own thread) and take back, at any moment: in
a signal handler that interrupts a `put`, in a finaliser that the garbage collector runs in one, and with no GIL. One reader at a time takes
and rests; it is a loop's thread, or whoever holds the life after it.

How. The items are in a deque. The *token*, a lock that nobody ever waits for, is held while the reader is due to look, so that under load
a `put` is an append and a look at the token: no system call. Two orders carry all of it:

    put:   append, then look at the token: free? take it and wake the reader
    rest:  give the token back, then look at the items: any? take it again and go on

    put:   append, then look at the mark: closed? take the item back, or leave it if `close` has it
    close: set the mark, then empty for the last time

In each pair both write before they look, so whichever comes second sees the other: never neither. Looking first loses items, in either.

What is atomic. `deque.append`, `popleft`, `remove` and `extendleft`, `Lock.acquire(False)`, `locked` and `release`, and the reading and
writing of one attribute: with the GIL because each is one call into C that runs no Python, without it because the deque and the lock see to
it themselves. Copying a deque is *not* atomic without a GIL. Nothing else here needs to be.

Why not otherwise. Waking the reader for each item is a system call each: 8 µs through a socket pair, where a `put` takes 0.1. A plain lock
around append and wake-up deadlocks when a signal handler or a finaliser puts in the middle of it; a re-entrant one costs more than all of
`put`. A flag instead of the token has no step that both looks and takes it: two writers wake, or, cleared at the wrong moment, none. A
second deque for what comes while the first is emptied has to be swapped, and who holds the old one when it is swapped puts into nowhere.

tests/interleavings/test_inbox.py runs all of this in every order of its steps, and again without each of the looks.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any, Final


class Inbox:
    """A queue of one reader, and of any number of writers who may be signal handlers and finalisers."""

    __slots__ = ("_items", "_token", "_wake", "closed", "take")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._items: deque[Any] = deque()
        # Returns the oldest item; IndexError if there is none. The deque's own method: a call less, 30 ns an item.
        self.take: Final = self._items.popleft
        # Held while the reader is due to look, or looks.
        self._token = Lock()
        # Called with the token held. It makes the reader look, or raises.
        self._wake = wake
        self.closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any) -> bool:
        """Deliver *item*, or return False and leave nothing behind."""
        self._items.append(item)
        # A look first, for 15 ns, where a try that fails costs 50 to 110 (not on 3.15).
        if not self._token.locked():
            self.wake_reader(item, if_resting=True)
        # After the append: either the last emptying took the item, or the mark is seen here.
        return not self.closed or not self.take_back(item)

    def waiting(self) -> list[Any]:
        """What is delivered and not yet taken, for a look."""
        try:
            return list(self._items.copy())
        except RuntimeError:
            # "deque mutated during iteration": no GIL, and somebody put or took. This stops all threads for a moment, and so
            # sees the items of that moment; and before them the deque's type. (One item after the other, by its index, took up to
            # half a second for 1,000 while four threads put, and missed some.)
            return [item for item in gc.get_referents(self._items) if item is not deque]

    def take_back(self, item: Any) -> bool:
        """Remove *item*, unless the reader has it already. Items are compared by identity."""
        try:
            self._items.remove(item)
        except ValueError:
            return False
        return True

    def rest(self) -> bool:
        """Give the token back, because all is taken; False if something came meanwhile, and the token is held again."""
        self.give_token_back()
        # A second look, after the giving back: a writer that found the token held relies on it.
        return not (self._items and self._token.acquire(False))

    def wake_reader(self, item: object = None, *, if_resting: bool = False, again: bool = True) -> None:
        """
        Wake the reader, due or not: a spare wake-up is harmless. *if_resting*: unless it is due to look.

        If that fails, or is interrupted, what others put is taken nevertheless; *item* is its caller's to take back.
        """
        try:
            if self._token.acquire(False) or not if_resting:
                self._wake()
        except BaseException as error:
            # Ctrl-C between the taking of the token and the wake-up would leave it taken for ever, and the reader asleep. Given back
            # first, and in place: near the recursion limit no function can be called, and the next signal may come in one.
            try:
                self._token.release()
            except RuntimeError:
                # It was free already.
                pass
            # Others found the token taken meanwhile, and rely on this wake-up: other threads, or the very handler that raised. Where there
            # is no thread to be had, the next `put` tries again, and tells its caller.
            if again and any(other is not item for other in self.waiting()):
                with suppress(Exception):
                    self.wake_reader(item, again=not isinstance(error, Exception))
            raise

    def is_due(self) -> bool:
        """Tell whether the reader is due to look, or is looking."""
        return self._token.locked()

    def give_token_back(self) -> None:
        """Make the next `put` wake the reader. Giving back a free token is harmless."""
        try:
            self._token.release()
        except RuntimeError:
            # It was free already.
            pass

    def close(self) -> list[Any]:
        """Refuse from now on, and return what was delivered before: closing and the last emptying are one step."""
        # Before the emptying: a `put` that comes too late for that sees it.
        self.closed = True
        items = []
        while True:
            try:
                items.append(self._items.popleft())
            except IndexError:
                return items

    def reopen(self, items: list[Any]) -> None:
        """Accept again, and first what the last emptying found: it is still worth doing."""
        self._items.extendleft(reversed(items))
        self.closed = False
        # After the opening: whoever put before it found the inbox closed, and woke nobody.
        if self._items:
            self.wake_reader()
