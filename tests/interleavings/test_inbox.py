"""The inbox: in every order of its steps nothing is lost, nothing comes twice, and nobody sleeps over what is there."""

from __future__ import annotations

import threading
from typing import Any

from explorer import Copy, Edit, Interrupter, in_every_order, spawn, unexplored

INBOX = "_work.inbox"

LOOK_AFTER_APPEND = "return not self.closed or not self.take_back(item)"
SECOND_LOOK = "return not (self._items and self._token.acquire(False))"


class Reader:
    """Empties an inbox as the ledger does, on a thread that sleeps until it is woken."""

    def __init__(self, copy: Copy) -> None:
        self.taken: list[Any] = []
        self.woken = threading.Event()
        self.inbox = copy.parts[INBOX].Inbox(self.wake)

    def wake(self) -> None:
        # As a life does.
        if self.inbox.closed:
            self.inbox.give_token_back()
        else:
            self.woken.set()

    def read(self, count: int) -> None:
        """Take until there were so many."""
        while len(self.taken) < count:
            self.woken.wait()
            self.woken.clear()
            self.empty()

    def empty(self) -> None:
        while True:
            try:
                self.taken.append(self.inbox.take())
            except IndexError:
                if self.inbox.rest():
                    return


@in_every_order(
    INBOX,
    a_rest_without_its_second_look=Edit(INBOX, SECOND_LOOK, "return True"),
    a_look_for_the_reader_before_the_append=(
        Edit(INBOX, "self._items.append(item)\n", "due = self._token.locked()\n        self._items.append(item)\n"),
        Edit(
            INBOX,
            "if not self._token.locked():",
            "if not due:",
        ),
    ),
    a_token_given_back_after_the_second_look=Edit(
        INBOX,
        "self.give_token_back()\n        # A second look",
        "left = bool(self._items)\n        self.give_token_back()\n        if not left:\n            return True\n        # A second look",
    ),
)
def test_what_is_put_is_taken_and_the_reader_does_not_sleep_over_it(copy: Copy) -> None:
    reader = Reader(copy)

    threads = [spawn(reader.read, 2), spawn(reader.inbox.put, "a"), spawn(reader.inbox.put, "b")]
    for thread in threads:
        thread.join()

    assert sorted(reader.taken) == ["a", "b"]


@in_every_order(
    INBOX,
    a_put_without_the_look_after_the_append=Edit(INBOX, LOOK_AFTER_APPEND, "return True"),
    a_put_that_looks_before_the_append=(
        Edit(INBOX, "self._items.append(item)\n", "closed = self.closed\n        self._items.append(item)\n"),
        Edit(INBOX, LOOK_AFTER_APPEND, "return not closed or not self.take_back(item)"),
    ),
    a_put_that_refuses_what_was_delivered=Edit(
        INBOX, LOOK_AFTER_APPEND, "return not (self.closed and [self.take_back(item)])"
    ),
    a_close_that_sets_the_mark_after_the_emptying=(
        Edit(INBOX, "        self.closed = True\n", ""),
        Edit(
            INBOX,
            "        return list(emptied(self._items))",
            "        items = list(emptied(self._items))\n        self.closed = True\n        return items",
        ),
    ),
)
def test_what_races_with_a_close_is_delivered_or_refused_and_nothing_between(copy: Copy) -> None:
    reader = Reader(copy)
    accepted: dict[str, bool] = {}
    emptied: list[str] = []

    def put(item: str) -> None:
        accepted[item] = reader.inbox.put(item)

    def close() -> None:
        emptied.extend(reader.inbox.close())

    threads = [spawn(put, "a"), spawn(put, "b"), spawn(close)]
    for thread in threads:
        thread.join()

    assert sorted(emptied) == sorted(item for item, in_time in accepted.items() if in_time)
    assert len(reader.inbox) == 0


@in_every_order(
    INBOX,
    a_reopening_that_wakes_nobody=Edit(
        INBOX, "        if self._items:\n            self.wake_reader()", "        pass"
    ),
    a_reopening_that_looks_before_it_is_open=Edit(
        INBOX,
        "        self.closed = False\n        # After",
        "        found = bool(self._items)\n        self.closed = False\n        if found:\n            self.wake_reader()\n        return\n        # After",
    ),
)
def test_what_comes_between_a_close_and_a_reopening_is_taken_or_refused(copy: Copy) -> None:
    reader = Reader(copy)
    accepted: list[str] = []

    def close_and_reopen() -> None:
        reader.inbox.reopen(reader.inbox.close())

    def put() -> None:
        accepted.extend(item for item in ("a", "b") if reader.inbox.put(item))

    closer, writer = spawn(close_and_reopen), spawn(put)
    for thread in (closer, writer):
        thread.join()

    # Whatever is in there now, the reader was woken for.
    if accepted:
        assert reader.woken.is_set()
        reader.empty()
    assert reader.taken == accepted


@in_every_order(
    INBOX,
    an_interrupted_put_that_keeps_the_token=Edit(
        INBOX,
        "            try:\n                self._token.release()\n            except RuntimeError:\n                # It was free already.\n"
        "                pass\n            # Others",
        "            # Others",
    ),
    an_interrupted_put_that_leaves_others_asleep=Edit(
        INBOX,
        "            if again and any(other is not item for other in self.waiting()):",
        "            if False:",
    ),
)
def test_a_put_that_is_interrupted_leaves_nobody_asleep(copy: Copy) -> None:
    """A raising signal handler between the taking of the token and the wake-up left it taken for ever: nothing was started any more."""
    with unexplored():
        reader = Reader(copy)
        interrupted: list[str] = []

        def put_and_take_back() -> None:
            interrupter.victim = threading.get_ident()
            try:
                reader.inbox.put("mine")
            except KeyboardInterrupt:
                # As a runtime does.
                if reader.inbox.take_back("mine"):
                    interrupted.append("mine")
            finally:
                # The next thread may have the same ident.
                interrupter.victim = None

        interrupter = Interrupter(type(reader.inbox).put.__code__, type(reader.inbox).wake_reader.__code__)

    with interrupter:
        threads = [spawn(put_and_take_back), spawn(reader.inbox.put, "another's"), spawn(interrupter)]
        for thread in threads:
            thread.join()

    with unexplored():
        # Whatever is in there now, the reader was woken for, and it will be for what comes.
        if len(reader.inbox):
            assert reader.woken.is_set()
        reader.woken.clear()
        reader.empty()
        reader.inbox.put("afterwards")
        assert reader.woken.is_set()
        reader.empty()
    assert sorted([*reader.taken, *interrupted]) == ["afterwards", "another's", "mine"]
