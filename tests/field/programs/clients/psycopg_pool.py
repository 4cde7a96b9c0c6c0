# /// script
# requires-python = "==3.14.*"
# dependencies = ["psycopg==3.3.9", "psycopg-binary==3.3.9", "psycopg-pool==3.3.3"]
#
# [tool.field]
# commands = ["pg_ctl"]
# ///
"""
`AsyncConnectionPool` with a PostgreSQL of its own, in `enter`: fifty queries at once, a transaction that is rolled back by sync code.
"""

from psycopg_pool import AsyncConnectionPool

import omniloop
from ending import right
from local_servers import postgres


async def double(pool, number):
    async with pool.connection() as connection:
        return (await (await connection.execute("select %s::int * 2", [number])).fetchone())[0]


with postgres() as dsn, omniloop.enter(AsyncConnectionPool(dsn, min_size=1, max_size=5, open=False)) as pool:
    with omniloop.TaskGroup() as group:
        handles = [group.go(double(pool, number)) for number in range(50)]
    assert [handle.result() for handle in handles] == [2 * number for number in range(50)]
    with omniloop.enter(pool.connection()) as connection:
        omniloop.run(connection.execute("create table t (n int)"), timeout=20)
    try:
        with omniloop.enter(pool.connection()) as connection:
            omniloop.run(connection.execute("insert into t values (1)"), timeout=20)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    with omniloop.enter(pool.connection()) as connection:
        cursor = omniloop.run(connection.execute("select count(*) from t"), timeout=20)
        assert omniloop.run(cursor.fetchone(), timeout=20) == (0,)
right(
    "Fifty queries over five connections, whose workers live on omniloop's loop; what sync code's exception rolled back is not there."
)
