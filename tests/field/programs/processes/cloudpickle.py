# /// script
# requires-python = "==3.14.*"
# dependencies = ["cloudpickle==3.1.3"]
# ///
"""
A `ProcessPool` whose functions are closures, sent by `cloudpickle.dumps` and called in the process by `cloudpickle.loads`; a handle that is pickled by mistake.

Differs: A handle or a runtime can't be pickled: cloudpickle sees it in a closure and says so when the closure is sent.
"""

import asyncio

import cloudpickle

import omniloop
from ending import right


def call(pickled, *args):
    return cloudpickle.loads(pickled)(*args)


def main():
    factor = 7

    def times(number):
        return number * factor

    async def all_of_them():
        pickled = cloudpickle.dumps(times)
        return await asyncio.gather(*(omniloop.to_process(call, pickled, number) for number in range(10)))

    assert omniloop.run(all_of_them(), timeout=60) == [7 * number for number in range(10)]

    handle = omniloop.go(asyncio.sleep(0, 3))

    def takes_the_handle():
        return handle

    try:
        cloudpickle.dumps(takes_the_handle)
    except Exception as error:
        assert "pickle" in str(error), error
    else:
        raise AssertionError("a handle was pickled")
    assert handle.result(timeout=20) == 3
    right("Ten closures in processes of `to_process`, by cloudpickle's own functions.")


if __name__ == "__main__":
    main()
