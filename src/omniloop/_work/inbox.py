"""
Takes items from any thread, in order, without waiting for a lock; under load the reader is woken once, not once an item.

What is guaranteed. An item whose `put` returned True is taken: by the reader, or by `close`. An item whose `put` returned False, or raised
and whose caller took it back, is not. Items of one thread are taken in the order in which it put them. While there is an item in the inbox,
the reader looks, or is due to look.

Who may touch what. Any thread may put, look, take back, and wake the reader, at any moment: in a signal handler that interrupts a `put`, in a
finaliser that the garbage collector runs during one, and without a GIL. Whoever wakes the reader runs `Life._wake` on its own thread. One
reader at a time takes and rests: the loop's thread, or whoever holds the life after it.

How it works. The items are in a deque. The *token* is a lock that nobody ever waits for; it is held while the reader is due to look. So under
load a `put` is an append and a look at the token: no system call. Everything rests on two orders:

    put:   append, then look at the token: free? take it and wake the reader
    rest:  give the token back, then look at the items: any? take it again and go on

    put:   append, then look at the mark: closed? take the item back, or leave it if `close` has it
    close: set the mark, then empty for the last time

In each pair both sides write before they look, so whichever comes second sees the other. If either side looked first, items would be lost.

What is atomic. `deque.append`, `popleft`, `remove` and `extendleft`, `Lock.acquire(False)`, `locked` and `release`, and the reading and
writing of one attribute: with the GIL because each is one call into C that runs no Python, without it because the deque and the lock see to
it themselves. Copying a deque is *not* atomic without a GIL. Nothing else here needs to be.

Why not otherwise. Waking the reader for each item costs a system call each: 8 µs through a socket pair, where a `put` takes 0.1. A plain lock
around append and wake-up deadlocks when a signal handler or a finaliser puts in the middle of it; a re-entrant lock costs more than all of
`put`. A flag instead of the token can't be read and set in one step: two writers wake the reader, or, if it is cleared at the wrong moment,
none does. A second deque for new items has to be swapped, and a writer that holds the old one during the swap loses its item.

tests/interleavings/test_inbox.py runs this in every order of its steps, and again with each of the looks left out.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any, Final

from .._threads import emptied


class Inbox:
    """A queue with one reader at a time and any number of writers, which may be signal handlers and finalisers."""

    __slots__ = ("_items", "_token", "_wake", "closed", "take")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._items: deque[Any] = deque()
        # Returns the oldest item; IndexError if there is none. It is the deque's own method: a wrapper would cost 30 ns an item.
        self.take: Final = self._items.popleft
        # Held while the reader looks, or is due to look.
        self._token = Lock()
        # Called with the token held. Makes the reader look, or raises.
        self._wake = wake
        self.closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any) -> bool:
        """Deliver *item*, or return False and leave nothing behind."""
        self._items.append(item)
        # A look first: it costs 15 ns, and a failed acquire 50 to 110 (not on 3.15).
        if not self._token.locked():
            self.wake_reader(item, if_resting=True)
        # After the append: either the last emptying took the item, or the mark is seen here.
        return not self.closed or not self.take_back(item)

    def waiting(self) -> list[Any]:
        """Return the items that are delivered and not taken: a snapshot."""
        try:
            return list(self._items.copy())
        except RuntimeError:
            # "deque mutated during iteration": there is no GIL, and another thread put or took. This call stops all threads for a
            # moment and so sees the items of that moment, preceded by the deque's type. (Reading item by item took up to half a second
            # for 1,000 while four threads put, and missed some.)
            return [item for item in gc.get_referents(self._items) if item is not deque]

    def take_back(self, item: Any) -> bool:
        """Remove *item*, unless the reader has taken it. Items are compared by identity."""
        try:
            self._items.remove(item)
        except ValueError:
            return False
        return True

    def rest(self) -> bool:
        """Give the token back, because all items are taken. False if an item came meanwhile: the token is held again."""
        self.give_token_back()
        # A second look, after the giving back: a writer that found the token held relies on it.
        return not (self._items and self._token.acquire(False))

    def wake_reader(self, item: object = None, *, if_resting: bool = False, again: bool = True) -> None:
        """
        Wake the reader, even if it is due to look: a spare wake-up is harmless. With *if_resting*, only if it is not due.

        If that fails or is interrupted, the items of others are taken nevertheless; the caller has to take back *item*.
        """
        try:
            if self._token.acquire(False) or not if_resting:
                self._wake()
        except BaseException as error:
            # Ctrl-C between the acquire and the wake-up would leave the token held for ever, and the reader asleep. It is released
            # first and without a helper: near the recursion limit no function can be called, and in one the next signal may come.
            try:
                self._token.release()
            except RuntimeError:
                # It was free already.
                pass
            # Others found the token held meanwhile, and rely on this wake-up: other threads, or the very handler that raised. If no
            # thread can be started, the next `put` tries again and raises for its caller.
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
        """Refuse from now on, and return the items delivered before: closing and the last emptying are one step."""
        # Before the emptying, so that a `put` that comes too late for it sees the mark.
        self.closed = True
        return list(emptied(self._items))

    def reopen(self, items: list[Any]) -> None:
        """Accept again, and first the items that the last emptying returned: that work is still worth doing."""
        self._items.extendleft(reversed(items))
        self.closed = False
        # After the opening: a `put` before it found the inbox closed, and woke nobody.
        if self._items:
            self.wake_reader()
