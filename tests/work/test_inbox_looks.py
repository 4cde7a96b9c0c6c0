"""What waits in the inbox can be looked at while others put and take."""

import threading

import pytest

from omniloop._work.inbox import Inbox


@pytest.mark.promise(
    "What waits to be started can be looked at while other threads submit, without a GIL too", section="Other worlds"
)
def test_a_look_at_what_waits_is_not_disturbed_by_those_who_put_and_take():
    """On a free-threaded build a deque's own copy raises "deque mutated during iteration" as soon as another thread appends."""
    inbox = Inbox(lambda: None)
    lasting = [object() for _ in range(200)]
    for item in lasting:
        inbox.put(item)
    over = threading.Event()
    looks: list[list[object]] = []

    def put_and_take_back():
        while not over.is_set():
            item = object()
            inbox.put(item)
            inbox.take_back(item)

    threads = [threading.Thread(target=put_and_take_back) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        looks.extend(inbox.waiting() for _ in range(10))
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=10)

    for found in looks:
        assert found[: len(lasting)] == lasting
        assert len(found) <= len(lasting) + len(threads)
