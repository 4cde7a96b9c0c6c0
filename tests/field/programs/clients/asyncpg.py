# /// script
# requires-python = "==3.14.*"
# dependencies = ["asyncpg==0.32.0"]
#
# [tool.field]
# commands = ["pg_ctl"]
# ///
"""
A pool of asyncpg's on a PostgreSQL of its own in `enter`, a transaction in `enter`, fifty queries at once, a query that is cancelled by `run(timeout=)`.

Differs: `create_pool()` looks for a loop where it is called, and from 3.14 on finds none in sync code: call it in an async context manager of your own, and give that to `enter`.
"""

import contextlib

import asyncpg

import omniloop
from ending import right
from local_servers import postgres


@contextlib.asynccontextmanager
async def pool_of(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=5) as pool:
        yield pool


async def value(pool, number):
    return await pool.fetchval("select $1::int * 2", number)


with postgres() as dsn, omniloop.enter(pool_of(dsn)) as pool:
    with omniloop.TaskGroup() as group:
        handles = [group.go(value(pool, number)) for number in range(50)]
    assert [handle.result() for handle in handles] == [2 * number for number in range(50)]
    with omniloop.enter(pool.acquire()) as connection:
        omniloop.run(connection.execute("create table t (n int)"), timeout=20)
        try:
            with omniloop.enter(connection.transaction()):
                omniloop.run(connection.execute("insert into t values (1)"), timeout=20)
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert omniloop.run(connection.fetchval("select count(*) from t"), timeout=20) == 0
        try:
            omniloop.run(connection.execute("select pg_sleep(60)"), timeout=0.5)
        except TimeoutError:
            pass
        assert omniloop.run(connection.fetchval("select 7"), timeout=20) == 7
right(
    "Fifty queries over five connections; a rollback; a query that timed out is cancelled at the server, and its connection goes on."
)
