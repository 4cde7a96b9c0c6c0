# /// script
# requires-python = "==3.14.*"
# dependencies = ["piccolo[sqlite]==1.38.0"]
# ///
"""
Piccolo with SQLite on omniloop's loop: queries by `run`, `enter(DB.transaction())` in the main thread with queries inside of it, a rollback, Piccolo's own `run_sync` beside it.
"""

from piccolo.columns import Varchar
from piccolo.engine.sqlite import SQLiteEngine
from piccolo.table import Table

import omniloop
from ending import right

DB = SQLiteEngine(path="users.db")


class User(Table, db=DB):
    name = Varchar()


async def names():
    return sorted(row["name"] for row in await User.select(User.name))


async def add(name):
    await User.insert(User(name=name))


async def create():
    await User.create_table()


omniloop.run(create(), timeout=20)
with omniloop.enter(DB.transaction()):
    omniloop.run(add("ada"), timeout=20)
    assert omniloop.run(names(), timeout=20) == ["ada"]
try:
    with omniloop.enter(DB.transaction()):
        omniloop.run(add("never"), timeout=20)
        assert omniloop.run(names(), timeout=20) == ["ada", "never"]
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
assert omniloop.run(names(), timeout=20) == ["ada"]
assert User.count().run_sync() == 1
right(
    "Queries inside the `with` are in the transaction, which is rolled back by an exception of sync code; `run_sync` beside it."
)
