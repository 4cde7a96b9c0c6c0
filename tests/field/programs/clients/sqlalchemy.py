# /// script
# requires-python = "==3.14.*"
# dependencies = ["sqlalchemy==2.1.9", "aiosqlite==0.22.1", "greenlet==3.5.6"]
# ///
"""
`create_async_engine` with aiosqlite on omniloop's loop: sessions in `enter` and in `run`, a rollback, twenty transactions at once; a sync event listener that calls `run`.

Differs: A listener runs in a greenlet on the loop's thread: `run` there is refused with `WouldDeadlockError`. Await in the coroutine, or use SQLAlchemy's `await_only`.
"""

import asyncio

from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import omniloop
from ending import right


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


engine = create_async_engine("sqlite+aiosqlite:///users.db")
said = []


@event.listens_for(User, "before_insert")
def run_in_a_listener(mapper, connection, user):
    if user.name == "ada":
        coroutine = asyncio.sleep(0)
        try:
            omniloop.run(coroutine, timeout=5)
        except omniloop.WouldDeadlockError as error:
            said.append(error)
        finally:
            coroutine.close()


async def create():
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


async def names():
    async with AsyncSession(engine) as session:
        return sorted(await session.scalars(select(User.name)))


async def add(name):
    async with AsyncSession(engine) as session, session.begin():
        session.add(User(name=name))


async def fails():
    async with AsyncSession(engine) as session, session.begin():
        session.add(User(name="never"))
        await session.flush()
        raise ZeroDivisionError


omniloop.run(create(), timeout=20)
with omniloop.enter(AsyncSession(engine)) as session:
    session.add(User(name="ada"))
    omniloop.run(session.commit(), timeout=20)
assert len(said) == 1
try:
    omniloop.run(fails(), timeout=20)
except ZeroDivisionError:
    pass
with omniloop.TaskGroup() as group:
    for number in range(20):
        group.go(add(f"user {number:02}"))
assert omniloop.run(names(), timeout=20) == ["ada", *(f"user {number:02}" for number in range(20))]
omniloop.run(engine.dispose(), timeout=20)
right("What was committed is there and what was rolled back is not; greenlets switch on omniloop's loop.")
