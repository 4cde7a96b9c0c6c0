"""What one thread puts and a loop takes: in every order of their steps the loop sees it."""

from __future__ import annotations

import concurrent.futures

from explorer import Copy, Edit, in_every_order, spawn, unexplored
from test_lives import served

STEPS = "_steps"


@in_every_order(
    STEPS,
    a_taker_that_does_not_look_again=Edit(
        STEPS,
        "            if not self._items:\n                await self._waiter\n",
        "            await self._waiter\n",
    ),
    a_putter_that_looks_before_it_puts=Edit(
        STEPS,
        "        self._items.append(item)\n        waiter = self._waiter\n",
        "        waiter = self._waiter\n        self._items.append(item)\n",
    ),
)
def test_what_is_put_while_a_loop_takes_is_taken(copy: Copy) -> None:
    with served(copy) as it:
        items = copy.parts[STEPS].Items()
        taken = it.runtime.go(items.get())

        thread = spawn(lambda: items.put("item"))
        thread.join()
        with unexplored():
            left = concurrent.futures.wait([taken], timeout=5).not_done
            taken.cancel()
        assert not left
