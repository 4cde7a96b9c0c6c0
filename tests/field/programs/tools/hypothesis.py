# /// script
# requires-python = "==3.14.*"
# dependencies = ["hypothesis==6.170.17"]
# ///
"""
`@given` with `run` inside, from several threads at once, and an example that is shrunk.
"""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

import omniloop
from ending import right


async def reverse(numbers):
    await asyncio.sleep(0)
    return numbers[::-1]


@settings(deadline=None, database=None, max_examples=200)
@given(st.lists(st.integers()))
def reversing_twice(numbers):
    assert omniloop.run(reverse(omniloop.run(reverse(numbers), timeout=20)), timeout=20) == numbers


async def fails_from_ten_on(number):
    assert number < 10


found = []


@settings(deadline=None, database=None)
@given(st.integers())
def shrunk(number):
    found.append(number)
    omniloop.run(fails_from_ten_on(number), timeout=20)


reversing_twice()
try:
    shrunk()
except AssertionError:
    assert found[-1] == 10, found[-1]
else:
    raise AssertionError("no example was found")
right("Two hundred examples through `run`; a failure inside the coroutine is shrunk to the least one, 10.")
