# /// script
# requires-python = "==3.14.*"
# dependencies = ["tortoise-orm==1.1.9"]
# ///
"""
Tortoise with SQLite on omniloop's loop: `enter(in_transaction())` in the main thread, queries by `run` inside of it, a rollback.
"""

from tortoise import Tortoise, fields
from tortoise.models import Model
from tortoise.transactions import in_transaction

import omniloop
from ending import right


class User(Model):
    id = fields.IntField(primary_key=True)
    name = fields.TextField()


async def start():
    await Tortoise.init(db_url="sqlite://users.db", modules={"models": ["__main__"]}, _enable_global_fallback=True)
    await Tortoise.generate_schemas()


async def create(name):
    await User.create(name=name)


async def names():
    return sorted([user.name for user in await User.all()])


omniloop.run(start(), timeout=20)
with omniloop.enter(in_transaction()):
    omniloop.run(create("ada"), timeout=20)
    assert omniloop.run(names(), timeout=20) == ["ada"]
try:
    with omniloop.enter(in_transaction()):
        omniloop.run(create("never"), timeout=20)
        assert omniloop.run(names(), timeout=20) == ["ada", "never"]
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
assert omniloop.run(names(), timeout=20) == ["ada"]
omniloop.run(Tortoise.close_connections(), timeout=20)
right("Queries inside the `with` are in the transaction, which is rolled back by an exception of sync code.")
