"""
`to_process`: CPU-bound functions in processes of their own; a crash or a cancellation ends one piece of work, and no other.

Run it: `python examples/cpu_bound.py`. Each process imports this file, hence the `if __name__ == "__main__":` at its end.
"""

import hashlib
import os

from omniloop import ProcessDiedError, ProcessPool, run

ROUNDS = 50_000


def stretch(password: str) -> str:
    """Some honest work for a CPU."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", ROUNDS).hex()


def pid() -> int:
    return os.getpid()


def crash() -> None:
    os.abort()


def for_ever() -> None:
    while True:
        pass


def main() -> None:
    pool = ProcessPool(2)

    passwords = [f"password {number}" for number in range(6)]
    tasks = [pool.to_process(stretch, password) for password in passwords]
    print("all right:", [task.result() for task in tasks] == [stretch(password) for password in passwords])
    print("elsewhere:", pool.to_process(pid).result() != os.getpid())

    async def several() -> list[str]:
        # In async code it is awaited like everything else.
        return [await pool.to_process(stretch, password) for password in passwords[:2]]

    print("awaited:", run(several()) == [task.result() for task in tasks[:2]])

    crashing, other = pool.to_process(crash), pool.to_process(stretch, "other")
    try:
        crashing.result()
    except ProcessDiedError as error:
        print("crashed:", error)
    print("the other one is not touched:", other.result() == stretch("other"))

    endless = pool.to_process(for_ever)
    print("asked to end:", endless.cancel())
    print("the next one:", pool.to_process(stretch, "next").result() == stretch("next"))


if __name__ == "__main__":
    main()
