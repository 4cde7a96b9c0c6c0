"""Takes items from any thread, in order, without waiting for a lock; whoever empties it is woken once, not once an item."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any, Final


class Inbox:
    """
    A queue of one reader, and of any number of writers who may be signal handlers and finalisers.

    The token is held while the reader is due to look. So under load a `put` is an append and a look: no
    system call. Nobody ever *waits* for the token, or for any other lock here.
    """

    __slots__ = ("_items", "_token", "_wake", "closed", "take")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._items: deque[Any] = deque()
        # Returns the oldest item; IndexError if there is none. The deque's own method: a call less, 30 ns an item.
        self.take: Final = self._items.popleft
        self._token = Lock()
        # Called with the token held. It makes the reader look, or raises.
        self._wake = wake
        self.closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any) -> bool:
        """Deliver *item*, or return False and leave nothing behind."""
        try:
            self._items.append(item)
            # A look first, for 15 ns, where a try that fails costs 50 to 110 (not on 3.15).
            if not self._token.locked() and self._token.acquire(False):
                self._wake()
        except BaseException:
            # A signal handler that raises (Ctrl-C) between the taking of the token and the wake-up would leave it taken for
            # ever, and the reader asleep. Given back here and at once: near the recursion limit no function can be called, and
            # the next handler may raise in one.
            try:
                self._token.release()
            except RuntimeError:
                # It was free already.
                pass
            self._wake_after_all(item)
            raise
        # After the append: `close` sets the mark and then empties for the last time, so that either the last emptying
        # took the item, or the mark is seen here.
        return not self.closed or not self.take_back(item)

    def waiting(self) -> list[Any]:
        """What is delivered and not yet taken, for a look."""
        return list(self._items.copy())

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
        # Looking again after giving back: a writer that found the token held relies on this look.
        return not (self._items and self._token.acquire(False))

    def nudge(self) -> None:
        """Wake the reader, due or not. A spare wake-up is harmless."""
        try:
            self._token.acquire(False)
            self._wake()
        except BaseException:
            # As in `put`.
            try:
                self._token.release()
            except RuntimeError:
                pass
            self._wake_after_all()
            raise

    def is_due(self) -> bool:
        """Tell whether the reader is due to look, or is looking."""
        return self._token.locked()

    def poke(self) -> None:
        """Wake the reader, unless it is due to look."""
        if not self.is_due():
            self.nudge()

    def _wake_after_all(self, item: Any = None) -> None:
        """Make up for a wake-up that failed, or was interrupted: all but *item* must be taken nevertheless."""
        # They found the token taken meanwhile, and rely on this wake-up: other threads, the handler itself.
        if any(other is not item for other in self._items.copy()):
            try:
                self._token.acquire(False)
                self._wake()
            except Exception:
                self.give_token_back()
            except BaseException:
                # Interrupted once more.
                self.give_token_back()
                self._wake_after_all(item)
                raise

    def give_token_back(self) -> None:
        """Make the next `put` wake the reader. Giving back a free token is harmless."""
        try:
            self._token.release()
        except RuntimeError:
            # It was free already.
            pass

    def close(self) -> list[Any]:
        """Refuse from now on, and return what was delivered before: closing and the last emptying are one step."""
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
        if self._items:
            self.nudge()
