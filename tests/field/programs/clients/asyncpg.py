# /// script
# requires-python = "==3.14.*"
# dependencies = ["asyncpg==0.32.0"]
#
# [tool.field]
# commands = ["pg_ctl"]
# ///
"""
A pool of asyncpg's on a PostgreSQL of its own: `enter(create_pool(…))`, a transaction in `enter`, fifty queries at once, a query that is cancelled by `run(timeout=)`.
"""

import asyncpg
from servers import postgres

import omniloop
from ending import right


async def value(pool, number):
    return await pool.fetchval("select $1::int * 2", number)


with postgres() as dsn, omniloop.enter(asyncpg.create_pool(dsn, min_size=1, max_size=5)) as pool:
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
right("Fifty queries over five connections; a rollback; a query that timed out is cancelled at the server, and its connection goes on.")
