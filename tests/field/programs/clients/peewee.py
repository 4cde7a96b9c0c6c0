# /// script
# requires-python = "==3.14.*"
# dependencies = ["peewee==4.5.3"]
# ///
"""
peewee, a sync ORM, from `to_thread` and from `iterate`'s sync side: twenty transactions at once in worker threads, a rollback in one.

Differs: A connection belongs to the thread that opened it, and worker threads are shared: use `with database.connection_context()` in each call, or the connection stays open for whoever comes next.
"""

import peewee

import omniloop
from ending import right

database = peewee.SqliteDatabase("users.db", pragmas={"journal_mode": "wal", "busy_timeout": 20000})


class User(peewee.Model):
    name = peewee.TextField(unique=True)

    class Meta:
        database = database


def add(name):
    with database.connection_context(), database.atomic():
        User.create(name=name)


def names():
    with database.connection_context():
        return sorted(user.name for user in User.select())


def fails():
    with database.connection_context(), database.atomic():
        User.create(name="never")
        raise ZeroDivisionError


async def all_at_once():
    async with omniloop.TaskGroup() as group:
        for number in range(20):
            group.to_thread(add, f"user {number:02}")
    try:
        await omniloop.to_thread(fails)
    except ZeroDivisionError:
        pass
    return await omniloop.to_thread(names)


with database.connection_context():
    database.create_tables([User])
assert omniloop.run(all_at_once(), timeout=60) == [f"user {number:02}" for number in range(20)]
assert names() == [f"user {number:02}" for number in range(20)]
right("Transactions of worker threads, one of which is rolled back, awaited in one coroutine.")
