"""The sync twin of an async function or class: each call waits, and what comes out is a twin where there is one."""

import abc
import asyncio
import collections
import contextlib
import copy
import dataclasses
import functools
import gc
import inspect
import itertools
import math
import os
import pickle
import sys
import threading
import time
import traceback
import typing
import warnings
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from children import run_child
from interruptions import interrupted_at_each_line
from omniloop import (
    ClosedError,
    ForkedError,
    NotAsyncError,
    OmniloopError,
    Runtime,
    TaskTimeoutError,
    WouldDeadlockError,
    blocking,
    call_soon,
    flush,
    go,
    run,
    shutdown,
)

PATIENCE = 5
# Short for a test, and yet so long that a busy machine has started the work by then.
SOON = 0.6
T = typing.TypeVar("T")


def loop_thread() -> int:
    return run(in_loop())


async def in_loop() -> int:
    return threading.get_ident()


@blocking
async def shout(word: str, *, times: int = 1) -> str:
    """Say it loud."""
    await asyncio.sleep(0)
    return word.upper() * times


@blocking
async def count(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number


class AsyncCursor:
    def __init__(self, connection: "AsyncDatabase", *rows: object) -> None:
        self.connection = connection
        self.rows = list(rows)

    async def fetch(self) -> object:
        await asyncio.sleep(0)
        return self.rows.pop(0)


class AsyncDatabase:
    """One of everything."""

    LIMIT = 3

    class Error(Exception):
        pass

    def __init__(self, url: str, log: list[str] | None = None) -> None:
        self.url = url
        self.log = [] if log is None else log
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.tasks: list[object] = []
        self._cursor = AsyncCursor(self, "first", "second")
        self._secret = "secret"

    async def __aenter__(self) -> "AsyncDatabase":
        self.tasks.append(asyncio.current_task())
        self.log.append("entered")
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, tb: object) -> bool:
        self.tasks.append(asyncio.current_task())
        self.log.append(f"left by {error!r}")
        return isinstance(error, KeyError)

    async def execute(self, query: str, *args: object) -> int:
        """Run a query."""
        await asyncio.sleep(0)
        return len(query)

    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise self.Error("as asked")

    async def never(self) -> None:
        self.log.append("never")
        try:
            await asyncio.sleep(3600)
        finally:
            self.log.append("cleaned up")

    async def rows(self, to: int = 5) -> AsyncIterator[int]:
        try:
            for number in range(to):
                self.log.append(f"row {number}")
                yield number
        finally:
            self.log.append("rows closed")

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(3):
            yield number

    async def cursor(self) -> AsyncCursor:
        return self._cursor

    async def cursors(self) -> list[AsyncCursor]:
        return [self._cursor, self._cursor]

    async def echo(self, value: T) -> T:
        self.given = value
        return value

    async def me(self) -> "AsyncDatabase":
        return self

    def where(self) -> int:
        return threading.get_ident()

    def later(self, word: str) -> "asyncio.Future[str]":
        future = asyncio.get_running_loop().create_future()
        future.set_result(word)
        return future

    @property
    def size(self) -> int:
        return threading.get_ident()

    @size.setter
    def size(self, value: int) -> None:
        self.log.append(f"size {value}")

    @property
    async def version(self) -> str:
        await asyncio.sleep(0)
        return "1.0"

    @functools.cached_property
    def cached(self) -> object:
        return object()

    @classmethod
    async def connect(cls, url: str) -> "AsyncDatabase":
        return cls(url)

    @classmethod
    def default(cls) -> str:
        return cls.__name__

    @staticmethod
    async def add(a: int, b: int) -> int:
        return a + b

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator["AsyncDatabase"]:
        self.log.append("begin")
        try:
            yield self
        except KeyError:
            self.log.append("rolled back")
        else:
            self.log.append("committed")

    partly = functools.partialmethod(execute, "12345")

    def __len__(self) -> int:
        return 7

    def __getitem__(self, key: str) -> str:
        return key * 2

    def __contains__(self, key: object) -> bool:
        return key == "in"

    async def __call__(self, word: str) -> str:
        return f"called {word}"

    def on_change(self, callback: Callable[["AsyncDatabase"], object]) -> object:
        return callback(self)

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.log.append("closed")


Database = blocking(AsyncDatabase)
Cursor = blocking(AsyncCursor)


@pytest.fixture
def db():
    with Database("test://") as made:
        yield made


def settled(condition):
    """Wait for what happens on the loop by itself, bounded."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        flush()
        time.sleep(0.001)
    return True


# --- functions --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("A call of an async function that is `blocking` waits and returns its value")
def test_a_call_of_an_async_function_waits_and_returns_its_value():
    assert shout("hey") == "HEY"
    assert shout("hey", times=2) == "HEYHEY"


@pytest.mark.promise("`.aio` is the same function for async callers, on any event loop")
def test_aio_is_the_same_function_for_async_callers_on_any_loop():
    async def main():
        return await shout.aio("hey"), [number async for number in count.aio(3)]

    assert asyncio.run(main()) == ("HEY", [0, 1, 2])
    assert run(main()) == ("HEY", [0, 1, 2])


@pytest.mark.promise("Both faces run on the same loop")
def test_both_faces_run_on_the_same_loop():
    @blocking
    async def loop():
        return asyncio.get_running_loop()

    assert loop() is asyncio.run(loop.aio()) is run(loop.aio())


def test_under_trio_aio_works_too():
    trio = pytest.importorskip("trio")

    assert trio.run(shout.aio, "hey") == "HEY"


def test_an_async_generator_becomes_an_iterator():
    assert list(count(3)) == [0, 1, 2]


def test_a_function_that_returns_something_to_await_is_called_on_the_loop():
    @blocking
    def start(word):
        return asyncio.get_running_loop().create_task(asyncio.sleep(0, word))

    assert start("done") == "done"
    assert blocking(lambda word: asyncio.sleep(0, word))("done") == "done"


@pytest.mark.promise("In a class of one's own a `blocking` function is a method")
def test_a_function_in_a_class_of_ones_own_is_a_method():
    class Mixed:
        word = "hey"

        @blocking
        async def shout(self):
            return self.word.upper()

        @classmethod
        @blocking
        async def make(cls):
            return cls()

        @staticmethod
        @blocking
        async def twice(number):
            return number * 2

    mixed = Mixed.make()

    assert mixed.shout() == "HEY"
    assert Mixed.twice(2) == 4
    assert asyncio.run(mixed.shout.aio()) == "HEY"


def test_a_function_keeps_name_docstring_and_the_sync_signature():
    assert (shout.__name__, shout.__doc__, shout.__module__) == ("shout", "Say it loud.", __name__)
    assert str(inspect.signature(shout)) == "(word: str, *, times: int = 1) -> str"
    assert not inspect.iscoroutinefunction(shout)
    assert inspect.iscoroutinefunction(shout.aio)
    assert inspect.signature(count).return_annotation == collections.abc.Iterator[int]
    assert typing.get_type_hints(shout)["return"] is str


def test_a_function_is_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(shout)) is shout


@pytest.mark.parametrize("thing", [3, None, "name", int])
def test_what_has_no_twin_is_refused_and_named(thing):
    with pytest.raises(NotAsyncError, match="blocking"):
        blocking(thing) if thing is not None else blocking()(thing)


def test_a_coroutine_is_refused_and_closed():
    with pytest.raises(NotAsyncError, match="Use run"):
        blocking(asyncio.sleep(0))


def test_options_for_classes_are_refused_for_a_function():
    async def work(): ...

    with pytest.raises(TypeError, match="for classes"):
        blocking(work, reopen=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="in a list"):
        blocking(AsyncDatabase, in_caller="where")
    with pytest.raises(AttributeError, match="no reed"):
        blocking(AsyncDatabase, rename={"reed": "read"})
    with pytest.raises(ValueError, match="timeout='5'"):
        blocking(timeout="5")


# --- classes: each kind of member -------------------------------------------------------------------------------------


@pytest.mark.promise("The twin of a class makes its object on the loop")
def test_an_object_is_made_on_the_loop(db):
    assert db.thread == loop_thread()
    assert db.loop is shout_loop()


@blocking
async def shout_loop():
    return asyncio.get_running_loop()


def test_methods_wait_and_take_all_arguments(db):
    assert db.execute("12345") == 5
    assert db.partly() == 5
    assert db.echo(value=3) == 3
    assert Database.execute(db, "123") == 3


@pytest.mark.promise("Methods, class methods and static methods of a class stay what they are in its twin")
def test_class_methods_and_static_methods_stay_what_they_are(db):
    made = Database.connect("other://")

    assert (type(made), made.url) == (Database, "other://")
    assert Database.default() == db.default() == "AsyncDatabase"
    assert Database.add(1, 2) == db.add(1, b=2) == 3


@pytest.mark.promise("Sync methods run on the loop")
def test_sync_methods_run_on_the_loop(db):
    assert db.where() == loop_thread()
    assert len(db) == 7
    assert db["ab"] == "abab"
    assert "in" in db
    assert "out" not in db


def test_a_sync_method_that_returns_something_to_await_waits_for_it(db):
    assert db.later("word") == "word"


def test_an_object_that_can_be_called_can_be_called(db):
    assert db("it") == "called it"


@pytest.mark.promise("Attributes and properties are looked at in the caller's thread")
def test_attributes_and_properties_are_looked_at_in_the_callers_thread(db):
    db.url = "changed://"
    db.size = 5

    assert db.url == "changed://"
    assert db.size == threading.get_ident()
    assert db.log[-1] == "size 5"
    assert db._secret == "secret"
    assert db.cached is db.cached
    assert db.LIMIT == Database.LIMIT == 3
    assert Database.Error is AsyncDatabase.Error
    with pytest.raises(AttributeError, match="'AsyncDatabase' object has no attribute 'no_such_thing'"):
        db.no_such_thing  # noqa: B018


def test_an_async_property_waits(db):
    assert db.version == "1.0"


@pytest.mark.promise("Where things run can be told otherwise")
def test_where_things_run_can_be_told_otherwise():
    Told = blocking(AsyncDatabase, in_caller=["where"], on_loop=["size"])
    told = Told("told://")

    assert told.where() == threading.get_ident()
    assert told.size == loop_thread()


@pytest.mark.promise("Methods are renamed as told, and `aclose` is `close` where there is none")
def test_methods_are_renamed_as_told_and_aclose_is_close(db):
    class AsyncReader:
        def read(self):
            return "sync"

        async def aread(self):
            return "async"

        async def aclose(self): ...

    Reader = blocking(AsyncReader, rename={"aread": "read"})

    assert Reader().read() == "async"
    assert not hasattr(Reader, "aread")
    assert callable(Reader.close)
    db.close()
    assert db.log[-1] == "closed"


@pytest.mark.promise("Inheritance, generics and abstract classes work")
def test_inheritance_generics_and_abstract_classes_work():
    class Base(abc.ABC, typing.Generic[T]):
        @abc.abstractmethod
        async def get(self) -> T: ...

        async def twice(self):
            value = await self.get()
            return [value, value]

    class Numbers(Base[int]):
        async def get(self):
            return 3

        async def twice(self):
            return [*await super().twice(), "more"]

    SyncBase, SyncNumbers = blocking(Base), blocking(Numbers)
    numbers = SyncNumbers()

    assert numbers.twice() == [3, 3, "more"]
    assert isinstance(numbers, SyncBase)
    assert issubclass(SyncNumbers, SyncBase)
    assert SyncBase in SyncNumbers.__mro__
    assert SyncBase[int].__args__ == (int,)
    with pytest.raises(TypeError, match="abstract"):
        SyncBase()


def test_isinstance_does_not_depend_on_which_twin_was_made_first():
    class Base:
        async def work(self): ...

    class Derived(Base): ...

    SyncDerived = blocking(Derived)
    SyncBase = blocking(Base)

    assert issubclass(SyncDerived, SyncBase)
    assert isinstance(SyncDerived(), SyncBase)
    assert not isinstance(SyncBase(), SyncDerived)
    assert not isinstance(SyncDerived(), Base)


@pytest.mark.promise("The twin of a dataclass is one too")
def test_dataclasses_stay_dataclasses():
    @dataclasses.dataclass(order=True)
    class AsyncPoint:
        x: int
        y: int = 0
        tags: list = dataclasses.field(default_factory=list)

        async def norm(self):
            return abs(self.x) + abs(self.y)

    Point = blocking(AsyncPoint)
    point = Point(3, y=-4)

    assert point.norm() == 7
    assert point == Point(3, -4) != Point(3, 4)
    assert point < Point(4)
    assert [field.name for field in dataclasses.fields(point)] == ["x", "y", "tags"]
    assert dataclasses.asdict(point) == {"x": 3, "y": -4, "tags": []}
    assert dataclasses.replace(point, x=0).norm() == 4
    assert "AsyncPoint(x=3, y=-4, tags=[])" in repr(point)
    with pytest.raises(TypeError, match="unhashable"):
        hash(point)
    match point:
        case Point(3, y):
            assert y == -4
        case _:
            pytest.fail("no match")


def test_slots_and_frozen_dataclasses_work():
    @dataclasses.dataclass(frozen=True, slots=True)
    class AsyncPoint:
        x: int

        async def get(self):
            return self.x

    point = blocking(AsyncPoint)(3)

    assert (point.get(), point.x, hash(point)) == (3, 3, hash(AsyncPoint(3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.x = 4


# --- iterators --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("An async generator of a twin is never ahead of its consumer")
def test_an_async_generator_method_becomes_an_iterator_that_is_never_ahead(db):
    for number in db.rows():
        assert db.log[-1] == f"row {number}"
        assert db.execute("12") == 2

    assert db.log[-1] == "rows closed"


@pytest.mark.promise("An early `break` closes it on the loop")
def test_an_early_break_closes_the_generator_on_the_loop(db):
    for number in db.rows():
        if number == 1:
            break
    gc.collect()

    assert settled(lambda: db.log[-1] == "rows closed")
    assert "row 2" not in db.log


def test_with_around_an_iterator_waits_until_it_is_closed(db):
    with db.rows() as rows:
        assert next(rows) == 0

    assert db.log[-1] == "rows closed"


def test_an_iterator_can_be_sent_to_and_thrown_into():
    @blocking
    async def squares(number):
        try:
            assert (yield number) == number**2
            yield "right"
        except ZeroDivisionError:
            yield "thrown"

    assert [(it := squares(3)).send(None), it.send(9)] == [3, "right"]
    it = squares(3)
    next(it)
    assert it.throw(ZeroDivisionError) == "thrown"
    with pytest.raises(StopIteration):
        next(it)


@pytest.mark.promise("All its steps are taken in one task")
def test_the_steps_of_an_iterator_are_taken_in_one_task_and_context():
    async def steps():
        async with asyncio.timeout(60):
            for _ in range(3):
                yield asyncio.current_task()

    assert len(set(blocking(steps)())) == 1


def test_an_error_of_an_iterator_comes_out_once():
    @blocking
    async def failing():
        yield 1
        raise LookupError("gone")

    it = failing()
    assert next(it) == 1
    with pytest.raises(LookupError, match="gone"):
        next(it)
    with pytest.raises(StopIteration):
        next(it)


def test_a_generator_that_swallows_its_cancellation_is_closed_all_the_same():
    """Its task went on to wait for a wish that nobody had any more, and `close()` for the task."""
    entered, closed = threading.Event(), threading.Event()

    @blocking
    async def stubborn():
        try:
            entered.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            yield 1
            await asyncio.sleep(3600)
        finally:
            closed.set()

    it = stubborn()
    thread = threading.Thread(target=lambda: list(it))
    thread.start()
    assert entered.wait(PATIENCE)
    it.close()

    assert closed.is_set()
    thread.join(PATIENCE)
    assert not thread.is_alive()

    async def main():
        entered.clear()
        waiting = asyncio.ensure_future(anext(stubborn.aio()))
        await asyncio.to_thread(entered.wait, PATIENCE)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    closed.clear()
    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert closed.is_set()


def test_an_iterator_that_is_dropped_is_no_leak(db):
    it = db.rows()
    next(it)
    task = weakref.ref(it._source.task)
    del it

    assert settled(lambda: gc.collect() is None or task() is None)


def test_aiter_becomes_iter(db):
    assert list(db) == [0, 1, 2]
    assert list(db) == [0, 1, 2]

    async def main():
        return [number async for number in db]

    assert asyncio.run(main()) == [0, 1, 2]


def test_an_object_that_is_an_iterator_itself_loses_nothing_when_it_is_left():
    class AsyncLines:
        def __init__(self):
            self.numbers = iter(range(4))

        def __aiter__(self):
            return self

        async def __anext__(self):
            for number in self.numbers:
                return number
            raise StopAsyncIteration

    lines = blocking(AsyncLines)()

    assert next(lines) == 0
    assert list(itertools.islice(lines, 2)) == [1, 2]
    assert list(lines) == [3]
    assert next(lines, "end") == "end"


def test_items_come_out_as_twins(db):
    @blocking
    async def cursors():
        yield AsyncCursor(None)

    assert [type(cursor) for cursor in cursors()] == [Cursor]


# --- context managers -------------------------------------------------------------------------------------------------


@pytest.mark.promise("A twin's `with` is the original's `async with`, in one task")
def test_async_with_becomes_with_in_one_task():
    with Database("test://") as db:
        assert db.log == ["entered"]

    assert db.log == ["entered", "left by None"]
    assert db.tasks[0] is db.tasks[1]


def test_an_error_in_the_block_goes_in_and_may_be_suppressed():
    with Database("test://") as db:
        raise KeyError("swallowed")
    assert db.log[-1] == "left by KeyError('swallowed')"

    with pytest.raises(LookupError) as caught, Database("test://"):
        raise LookupError("not swallowed")
    assert len(caught.traceback) == 1


def test_a_method_that_returns_an_async_context_manager_returns_a_sync_one(db):
    with db.transaction() as inner:
        assert inner is db
    with db.transaction():
        raise KeyError

    assert db.log[-4:] == ["begin", "committed", "begin", "rolled back"]

    async def main():
        async with db.transaction.aio() as inner:
            return inner is db

    assert asyncio.run(main())
    assert run(main())
    assert db.log[-1] == "committed"

    async def with_the_sync_face(manager):
        async with manager as inner:
            return inner is db

    assert asyncio.run(with_the_sync_face(db.transaction()))


def test_a_twin_can_be_entered_by_async_code_on_any_loop():
    async def main():
        async with Database_here as db:
            assert await db.execute.aio("123") == 3
            return db

    Database_here = Database("test://")
    assert asyncio.run(main()).log == ["entered", "left by None"]
    assert Database_here.tasks[0] is Database_here.tasks[1]


def test_a_lock_can_be_entered_by_many_threads_in_turn():
    Lock = blocking(asyncio.Lock)
    lock, inside, most = Lock(), [], []

    def work(_):
        with lock:
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))

    assert most == [1] * 40


class Response:
    def __init__(self, log):
        self.log = log

    async def text(self):
        return "text"


class Both:
    """As `aiohttp.get` returns it, or `pool.acquire` of asyncpg: the object that comes out knows no `async with`."""

    def __init__(self, log):
        self.log = log

    def __await__(self):
        return self._open().__await__()

    async def _open(self):
        self.log.append("opened")
        return Response(self.log)

    async def __aenter__(self):
        return await self._open()

    async def __aexit__(self, kind, error, tb):
        self.log.append(f"released by {error!r}")


class AsyncSession:
    def __init__(self):
        self.log = []

    def get(self):
        return Both(self.log)


@pytest.mark.promise("What can be both awaited and entered works both ways")
def test_what_can_be_both_awaited_and_entered_works_both_ways():
    session = blocking(AsyncSession)()

    response = session.get()
    assert (response.text(), session.log) == ("text", ["opened"])
    with session.get() as response:
        assert response.text() == "text"
        assert session.log == ["opened", "opened"]
    assert session.log[-1] == "released by None"
    with pytest.raises(KeyError), contextlib.ExitStack() as stack:
        stack.enter_context(session.get())
        raise KeyError
    assert session.log[-1] == "released by KeyError()"


def test_what_can_be_both_awaited_and_entered_works_both_ways_for_async_callers():
    session = blocking(AsyncSession)()

    async def main():
        response = await session.get.aio()
        async with session.get.aio() as other:
            return await response.text.aio(), await other.text.aio()

    assert asyncio.run(main()) == ("text", "text")
    assert session.log == ["opened", "opened", "released by None"]


def test_what_can_be_awaited_and_iterated_over_is_iterated_over_and_has_wait():
    class Query:
        def __await__(self):
            return asyncio.sleep(0, "cursor").__await__()

        async def __aiter__(self):
            yield "row"

    query = blocking(lambda: Query())

    assert list(query()) == ["row"]
    assert query().wait() == "cursor"


# --- twins stay twins -------------------------------------------------------------------------------------------------


@pytest.mark.promise("What has a twin comes out as its twin")
def test_what_has_a_twin_comes_out_as_its_twin(db):
    cursor = db.cursor()

    assert type(cursor) is Cursor
    assert isinstance(cursor, Cursor)
    assert cursor.fetch() == "first"
    assert type(db._cursor) is Cursor


@pytest.mark.promise("The same object has the same twin")
def test_the_same_object_has_the_same_twin(db):
    assert db.cursor() is db.cursor()
    assert db.me() is db
    assert db.cursor().connection is db


@pytest.mark.promise(
    "Exact lists, tuples and dicts are looked into, one level, and copied only if there is a twin in them"
)
def test_exact_lists_tuples_and_dicts_are_looked_into_and_copied_only_if_there_is_a_twin_in_them(db):
    plain = [1, [AsyncCursor(None)]]
    cursor, original = db.cursor(), run(AsyncDatabase.cursor(db._omniloop.original))
    Named = collections.namedtuple("Named", "cursor")

    assert db.cursors() == [cursor, cursor]
    assert db.echo(plain) is plain
    assert db.echo((cursor, 1)) == (cursor, 1)
    assert db.given == (cursor, 1)
    assert db._omniloop.original.given == (original, 1)
    assert db.echo({"a": cursor}) == {"a": cursor}
    assert db._omniloop.original.given == {"a": original}
    assert db.echo(Named(original)).cursor is original


@pytest.mark.promise("A twin that is an argument goes in as the original")
def test_a_twin_goes_in_as_the_original(db):
    cursor = db.cursor()

    assert db.echo(cursor) is cursor
    assert type(db._omniloop.original.given) is AsyncCursor
    db.given = cursor
    assert type(db._omniloop.original.given) is AsyncCursor


def test_classes_go_in_and_come_out_too(db):
    assert db.echo(Cursor) is Cursor
    assert db._omniloop.original.given is AsyncCursor


def test_an_object_of_a_subclass_comes_out_as_a_twin_of_that(db):
    class Special(AsyncCursor):
        async def special(self):
            return "special"

    special = db.echo(Special(None))

    assert isinstance(special, Cursor)
    assert special.special() == "special"
    assert blocking(Special) is type(special)


@pytest.mark.promise("`repr` and errors name the user's class")
def test_repr_and_errors_name_the_users_class(db):
    assert "AsyncDatabase object at" in repr(db)
    assert Database.__name__ == "AsyncDatabase"
    assert "AsyncDatabase" in repr(Database)
    with pytest.raises(TypeError, match=r"AsyncDatabase.execute\(\) missing 1 required"):
        db.execute()


def test_the_twin_of_a_class_is_made_once():
    assert blocking(AsyncDatabase) is Database
    assert blocking(AsyncDatabase, reopen=True) is not Database


@pytest.mark.promise("A twin's class is pickled as the twin of its original")
def test_a_twins_class_is_pickled_as_the_twin_of_its_original():
    assert pickle.loads(pickle.dumps(Database)) is Database
    assert pickle.loads(pickle.dumps(Decorated)) is Decorated


@blocking
@dataclasses.dataclass
class Decorated:
    number: int

    async def get(self):
        return self.number


@dataclasses.dataclass
class AsyncPlain:
    number: int

    async def get(self):
        return self.number


def test_a_twin_is_pickled_and_copied_with_its_original():
    plain = blocking(AsyncPlain)(3)

    assert pickle.loads(pickle.dumps(plain)).get() == 3
    assert copy.copy(plain).get() == copy.deepcopy(plain).get() == 3
    assert copy.copy(plain) is not plain


@pytest.mark.promise("Overriding a method in a class that is derived from a twin is refused when the class is made")
def test_overriding_a_twinned_method_is_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match=r"overrides execute\(\).*subclass of AsyncDatabase"):
        type("Mine", (Database,), {"execute": lambda self: None})


def test_a_class_derived_from_a_twin_may_add_to_it():
    class Mine(Database):
        def __init__(self, url, name):
            super().__init__(url)
            self.name = name

        def both(self):
            return self.execute("1"), super().execute("12")

        @property
        def title(self):
            return self.name.title()

    mine = Mine("mine://", "ada")

    assert (mine.both(), mine.title, mine.url) == ((1, 2), "Ada", "mine://")
    assert isinstance(mine, Database)
    assert mine.me() is mine
    assert pickle.loads(pickle.dumps(shout)) is shout


def test_a_class_can_not_be_derived_from_the_twins_of_two():
    with pytest.raises(TypeError, match="several classes"):
        type("Mine", (Database, Cursor), {})


def test_a_derived_class_that_does_not_make_the_original_is_told():
    class Mine(Database):
        def __init__(self): ...

    with pytest.raises(AttributeError, match="super"):
        Mine().execute("1")


@pytest.mark.promise("A callback is given the originals, and runs on the loop")
def test_a_callback_is_given_the_originals_and_runs_on_the_loop(db):
    seen = []

    def changed(database):
        seen.append((type(database), threading.get_ident()))
        return database

    assert db.on_change(changed) is db
    assert seen == [(AsyncDatabase, loop_thread())]


def test_a_callback_that_calls_a_twin_is_told_of_aio_instead_of_hanging(db):
    with pytest.raises(WouldDeadlockError, match=r"AsyncDatabase\.execute\.aio\(…\)"):
        db.on_change(lambda _: db.execute("12"))


def test_attributes_that_are_functions_wait_too(db):
    async def hook(word):
        return word

    db.hook = hook

    assert db.hook("word") == "word"


# --- waiting well -----------------------------------------------------------------------------------------------------


@pytest.mark.promise("A call has a time limit without a change of its signature")
def test_a_call_has_a_time_limit_without_a_change_of_its_signature(db):
    with pytest.raises(TaskTimeoutError):
        db.never.options(timeout=SOON)()

    assert db.log[-1] == "cleaned up"
    assert db.execute.options(timeout=PATIENCE)("123") == 3
    assert shout.options(timeout=None)("hey") == "HEY"
    with pytest.raises(TypeError, match="timeout='1'"):
        shout.options(timeout="1")


def test_a_time_limit_may_be_given_for_all_calls():
    Impatient = blocking(AsyncDatabase, timeout=SOON)

    with pytest.raises(TaskTimeoutError):
        Impatient("test://").never()


def test_the_time_limit_of_an_iterator_is_for_each_item():
    closed = threading.Event()

    @blocking
    async def slow():
        try:
            yield 1
            await asyncio.sleep(3600)
        finally:
            closed.set()

    it = slow.options(timeout=SOON)()

    assert next(it) == 1
    with pytest.raises(TaskTimeoutError, match=r"0\.6 s"):
        next(it)
    assert closed.wait(PATIENCE)


@pytest.mark.promise(
    "A time limit is the same for both faces of a twin, and for each item of an iterator: `TaskTimeoutError`"
)
@pytest.mark.parametrize("where", ["elsewhere", "on the loop itself"])
def test_the_time_limit_counts_for_async_callers_too(db, where):
    """A call raised asyncio's own error, and an iterator took no notice of its limit."""
    cleaned_up = []

    @blocking
    async def slow():
        try:
            yield 1
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            cleaned_up.append(True)

    async def main():
        with pytest.raises(TaskTimeoutError):
            await db.never.options(timeout=SOON).aio()
        items = slow.options(timeout=SOON).aio()
        assert await anext(items) == 1
        with pytest.raises(TaskTimeoutError, match=r"slow had no item after 0\.6 s, and was cancelled"):
            await anext(items)
        assert await db.execute.options(timeout=math.inf).aio("123") == 3

    (asyncio.run if where == "elsewhere" else run)(main())
    with pytest.raises(TaskTimeoutError, match="had no item"):
        list(slow.options(timeout=SOON)())

    assert "cleaned up" in db.log
    assert cleaned_up == [True, True]


def test_cancelling_an_async_caller_cancels_the_work_and_waits_for_its_clean_up(db):
    async def main():
        waiting = asyncio.ensure_future(db.never.aio())
        while "never" not in db.log:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())

    assert db.log[-1] == "cleaned up"


@pytest.mark.promise("Ctrl-C cancels a call, and its clean-up runs")
def test_ctrl_c_cancels_the_call_and_its_clean_up_runs():
    def program():
        import asyncio
        import os
        import signal

        from omniloop import blocking

        class AsyncWork:
            async def never(self):
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                    await asyncio.sleep(3600)
                finally:
                    await asyncio.sleep(0)
                    print("cleaned up")

        Work = blocking(AsyncWork)
        try:
            Work().never()
        except KeyboardInterrupt:
            print("interrupted")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("cleaned up\ninterrupted\n", "", 0)


@pytest.mark.promise(
    "After Ctrl-C at any line of a `send()` what is said and what comes out belong together, or the iteration has ended"
)
def test_after_ctrl_c_at_any_line_of_a_send_what_is_said_and_what_comes_out_belong_together():
    @blocking
    async def echo() -> AsyncIterator[int]:
        said = 0
        while True:
            said = yield said

    def attempt(interrupted: typing.Any) -> None:
        numbers: typing.Any = echo()
        assert next(numbers) == 0
        with contextlib.suppress(KeyboardInterrupt), interrupted():
            numbers.send(1)
        # So that a step that was asked for, and not waited for, is taken before the next is asked for.
        for _ in range(4):
            run(asyncio.sleep(0))
        with contextlib.suppress(StopIteration):
            assert numbers.send(2) == 2
        numbers.close()

    assert interrupted_at_each_line(attempt, "omniloop/_steps.py") > 8


@pytest.mark.promise("Giving up the wait for an async face's iterator to close ends that wait, and not the clean-up")
@pytest.mark.parametrize("how", ["aclose", "a second cancellation"])
def test_giving_up_the_closing_of_an_iterator_leaves_its_clean_up_alone(how):
    let_go, cleaning, ended = asyncio.Event(), threading.Event(), threading.Event()
    said: list[str] = []

    @blocking
    async def slow_to_close() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            try:
                await let_go.wait()
                said.append("cleaned up")
            except asyncio.CancelledError:
                said.append("interrupted")
                raise
            finally:
                ended.set()

    async def main() -> None:
        items = slow_to_close.aio()
        await anext(items)
        waiting = asyncio.ensure_future(items.aclose() if how == "aclose" else anext(items))
        if how != "aclose":
            # It has asked for the item by then.
            await asyncio.sleep(0)
            waiting.cancel()
        while not cleaning.is_set():
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, PATIENCE)
        # Neither was it interrupted, nor is it waited for.
        assert said == []

    try:
        asyncio.run(main())
    finally:
        call_soon(let_go.set).result(PATIENCE)
    assert ended.wait(PATIENCE)
    assert said == ["cleaned up"]


@pytest.mark.promise("On the loop's own thread a call is refused, and the error names `.aio`")
def test_on_the_loops_own_thread_a_call_is_refused_and_names_aio(db):
    async def on_loop(call):
        return call()

    for call, name in [
        (lambda: shout("hey"), r"shout\.aio"),
        (lambda: db.execute("12"), r"AsyncDatabase\.execute\.aio"),
        (lambda: count(2), r"count\.aio"),
        (lambda: next(iter(db)), "async for"),
        (db.__enter__, "async with"),
        (lambda: db.later.aio, None),
    ]:
        if name is not None:
            with pytest.raises(WouldDeadlockError, match=name):
                run(on_loop(call))


def test_on_the_loops_own_thread_sync_methods_and_making_need_no_wait(db):
    async def on_loop():
        return db.where(), len(db), Database("made://").url

    assert run(on_loop()) == (loop_thread(), 7, "made://")


@pytest.mark.promise("Where another loop runs in the calling thread, a warning says once a place that it is blocked")
def test_where_another_loop_runs_a_warning_says_once_a_place_that_it_is_blocked():
    async def main():
        return [shout("hey") for _ in range(3)]

    with pytest.warns(RuntimeWarning, match=r"shout\(\) blocks the event loop.*shout\.aio") as caught:
        assert asyncio.run(main()) == ["HEY"] * 3

    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())


def test_a_shell_is_no_such_case():
    def program():
        import asyncio
        import sys

        from omniloop import blocking

        sys.ps1 = ">>> "

        @blocking
        async def work():
            return 1

        async def main():
            return work()

        print(asyncio.run(main()))

    result = run_child(program, flags=["-W", "error"])

    assert (result.stdout, result.stderr, result.code) == ("1\n", "", 0)


@pytest.mark.promise("Many threads may call one twin")
def test_many_threads_call_one_twin(db):
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(db.execute, ["123"] * 400)) == [3] * 400
        assert len(set(pool.map(id, [*pool.map(lambda _: db.cursor(), range(100))]))) == 1


def test_a_call_runs_in_a_copy_of_the_callers_context():
    import contextvars

    var = contextvars.ContextVar("var", default="unset")

    @blocking
    async def look():
        return var.get()

    var.set("callers")
    assert look() == "callers"


def test_a_twin_may_live_on_a_runtime_of_its_own(runtime):
    Own = blocking(AsyncDatabase, runtime=runtime)
    own = Own("own://")

    assert own.loop is runtime.run(current_loop())
    assert own.loop is not shout_loop()
    assert type(own.me()) is Own
    own.close()


async def current_loop():
    return asyncio.get_running_loop()


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("What was made by a twin is closed when it is dropped")
def test_what_was_made_is_closed_when_it_is_dropped():
    log = []
    Database("test://", log)
    gc.collect()

    assert settled(lambda: log == ["closed"])


def test_what_was_closed_or_left_is_not_closed_again():
    logs = [], []
    made = Database("test://", logs[0])
    made.close()
    with Database("test://", logs[1]):
        pass
    del made
    gc.collect()
    flush()

    assert logs == (["closed"], ["entered", "left by None"])


def test_what_was_entered_is_left_when_it_is_dropped():
    log = []
    Database("test://", log).__enter__()
    gc.collect()

    assert settled(lambda: log == ["entered", "left by CancelledError()"])


@pytest.mark.promise("What came out of a twin is not closed by being dropped, and keeps that twin alive")
def test_what_came_out_of_a_twin_is_not_closed_and_keeps_that_alive():
    log = []
    cursor = Database("test://", log).cursor()
    gc.collect()
    flush()
    assert log == []
    assert cursor.fetch() == "first"

    iterator = Database("test://", log).rows()
    gc.collect()
    assert list(iterator) == [0, 1, 2, 3, 4]
    assert log.index("rows closed") < log.index("closed") if "closed" in log else True


@pytest.mark.promise("And at exit, after all work")
def test_what_is_made_is_closed_at_exit_after_all_work():
    def program():
        import asyncio

        from omniloop import blocking

        class AsyncClient:
            async def work(self):
                await asyncio.sleep(0.05)
                print("worked")

            async def aclose(self):
                await asyncio.sleep(0)
                print("closed")

        Client = blocking(AsyncClient)
        client = Client()
        go(client.work.aio())

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("worked\nclosed\n", "", 0)


def test_a_block_that_never_ends_is_left_at_exit_after_all_work():
    def program():
        import asyncio
        import threading

        from omniloop import blocking

        class AsyncClient:
            async def __aenter__(self):
                return self

            async def __aexit__(self, kind, error, tb):
                print("left")

            async def work(self):
                await asyncio.sleep(0.05)
                print("worked")

        Client = blocking(AsyncClient)
        entered = threading.Event()

        def stay():
            with Client() as client:
                go(client.work.aio())
                entered.set()
                threading.Event().wait()

        threading.Thread(target=stay, daemon=True).start()
        entered.wait()

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("worked\nleft\n", "", 0)


def test_a_close_that_fails_is_reported():
    def program():
        import gc

        from omniloop import blocking, flush

        class AsyncClient:
            async def close(self):
                raise ValueError("not closed")

        blocking(AsyncClient)()
        gc.collect()
        flush()

    result = run_child(program)

    assert (result.stdout, result.code) == ("", 0)
    assert "ValueError: not closed" in result.stderr
    assert "AsyncClient.close" in result.stderr


@pytest.mark.promise("After a fork a twin refuses, or is made anew if it was told to")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_after_a_fork_a_twin_refuses_or_is_made_anew_if_it_was_told_to():
    def program():
        import os

        from omniloop import blocking

        class AsyncClient:
            def __init__(self, name):
                self.name, self.pid = name, os.getpid()

            async def work(self):
                return self.name, self.pid == os.getpid()

            async def close(self):
                print("closed in the", "parent" if os.getpid() == parent else "child", self.name, flush=True)

        parent = os.getpid()
        refuses, reopens = blocking(AsyncClient)("refuses"), blocking(AsyncClient, reopen=True)("reopens")
        pid = os.fork()
        if pid == 0:
            try:
                refuses.work()
            except ForkedError as error:
                print(error, flush=True)
            print(*reopens.work(), flush=True)
        else:
            assert os.waitpid(pid, 0)[1] == 0
            print(*refuses.work(), *reopens.work(), flush=True)

    result = run_child(program, flags=["-W", "ignore::DeprecationWarning"])

    assert (result.stderr, result.code) == ("", 0)
    assert result.stdout.splitlines()[:4] == [
        "This AsyncClient belongs to the parent process. Make it in this process, or use blocking(…, reopen=True).",
        "reopens True",
        "closed in the child reopens",
        "refuses True reopens True",
    ]
    # The youngest first.
    assert result.stdout.splitlines()[4:] == ["closed in the parent reopens", "closed in the parent refuses"]


def test_after_a_shutdown_a_twin_says_that_its_loop_has_ended():
    made = Runtime(name="short")
    twin, again = (blocking(AsyncPlain, runtime=made, reopen=reopen)(3) for reopen in (False, True))
    made.shutdown()

    with pytest.raises(ClosedError, match="AsyncPlain lived on a loop that has ended"):
        twin.get()
    with pytest.raises(ClosedError, match="shut down"):
        again.get()


def test_after_a_shutdown_of_the_shared_runtime_a_twin_is_made_anew_if_it_was_told_to():
    def program():
        from omniloop import ClosedError, blocking

        class AsyncClient:
            async def work(self):
                return "works"

        refuses, reopens = blocking(AsyncClient)(), blocking(AsyncClient, reopen=True)()
        shutdown()
        print(reopens.work(), reopens.work())
        try:
            refuses.work()
        except ClosedError:
            print("refused")

    result = run_child(program)

    assert (result.stdout, result.stderr, result.code) == ("works works\nrefused\n", "", 0)


# --- what is seen of it -----------------------------------------------------------------------------------------------


@pytest.mark.promise("A traceback shows the caller and the user's code, and no line of ours")
def test_a_traceback_shows_the_caller_and_the_users_code_and_no_line_of_ours(db):
    with pytest.raises(AsyncDatabase.Error) as caught:
        db.fail()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names == ["test_a_traceback_shows_the_caller_and_the_users_code_and_no_line_of_ours", "fail"]

    @blocking
    async def failing():
        yield 1
        raise LookupError

    async def main():
        await db.fail.aio()

    with pytest.raises(AsyncDatabase.Error) as caught:
        asyncio.run(main())
    found = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert found[found.index("main") :] == ["main", "fail"]
    with pytest.raises(LookupError) as caught:
        list(failing())
    found = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert (len(found) <= 3, found[-1]) == (True, "failing"), found

    class Failing:
        def __init__(self):
            raise LookupError

    with pytest.raises(LookupError) as caught:
        blocking(Failing)()
    assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)] == [names[0], "__init__"]


def test_help_shows_the_sync_face():
    import pydoc

    text = pydoc.plain(pydoc.render_doc(Database))

    assert "One of everything." in text
    assert "execute(self, query: str, *args: object) -> int" in text
    assert "Run a query." in text
    assert "async execute" not in text
    assert "connect(url: str) -> " in text
    assert "shout(word: str, *, times: int = 1) -> str" in pydoc.plain(pydoc.render_doc(shout))


def test_signatures_are_those_of_the_sync_face(db):
    assert str(inspect.signature(Database)) == str(inspect.signature(AsyncDatabase))
    assert inspect.signature(Database.rows).return_annotation == collections.abc.Iterator[int]
    assert str(inspect.signature(db.execute)) == "(query: str, *args: object) -> int"
    assert typing.get_type_hints(Database.execute)["return"] is int
    assert "AbstractContextManager" in str(inspect.signature(Database.transaction).return_annotation)


@pytest.mark.promise("`help`, `inspect.signature` and Sphinx see the sync face")
def test_sphinx_shows_the_sync_face(tmp_path):
    pytest.importorskip("sphinx")
    (tmp_path / "sdk.py").write_text(
        "from collections.abc import AsyncIterator\n"
        "from omniloop import blocking\n"
        "class AsyncClient:\n"
        '    """A client."""\n'
        "    async def get(self, url: str) -> bytes:\n"
        '        """Get it."""\n'
        "    async def pages(self) -> AsyncIterator[str]:\n"
        '        """Page by page."""\n'
        "        yield ''\n"
        "    @property\n"
        "    def size(self) -> int:\n"
        '        """How big."""\n'
        "class Client(blocking(AsyncClient)):\n"
        '    """The sync client."""\n'
    )
    (tmp_path / "conf.py").write_text("extensions = ['sphinx.ext.autodoc']\n")
    (tmp_path / "index.rst").write_text("x\n=\n\n.. autoclass:: sdk.Client\n   :members:\n   :inherited-members:\n")

    def program():
        import sys

        sys.path.insert(0, folder)
        from sphinx.cmd.build import main

        main(["-q", "-b", "text", folder, folder + "/out"])

    folder = str(tmp_path)
    result = run_child(program, timeout=60)

    text = (tmp_path / "out" / "index.txt").read_text()
    assert result.code == 0, result.stderr
    assert "get(url: str) -> bytes" in text
    assert "Iterator[str]" in text
    assert "How big." in text
    assert "async" not in text.lower().replace("asyncclient", "")


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 13) and not getattr(sys, "_is_gil_enabled", bool)(),
    reason="3.13 without a GIL keeps classes for ever, once there was a thread",
)
def test_a_class_and_its_twin_are_no_leak():
    class Short:
        async def work(self): ...

    twin = blocking(Short)
    twin().work()
    gone = [weakref.ref(Short), weakref.ref(twin)]
    del Short, twin

    assert settled(lambda: gc.collect() is None or [ref() for ref in gone] == [None, None])


def test_leaving_a_twin_that_was_never_entered_is_a_clear_error():
    """In async code that was a StopIteration in a coroutine."""

    class AsyncManager:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            pass

    twin = blocking(AsyncManager)()
    with pytest.raises(OmniloopError, match="was never entered"):
        twin.__exit__(None, None, None)
    with twin, pytest.raises(OmniloopError, match="was never entered"):
        asyncio.run(twin.__aexit__(None, None, None))


@pytest.mark.promise(
    "What follows the attributes of a class, as IPython's `%autoreload` does, comes to an end in a twin"
)
def test_no_class_is_found_again_behind_its_own_attributes():
    """A twin was an attribute of itself: a module with one in it, changed under `%autoreload 2`, hung the next cell."""

    class Session:
        async def get(self) -> bytes: ...

    class Client:
        session: Session

        async def connect(self) -> Session: ...

    class Derived(blocking(Client)): ...

    def follow(cls: type, above: tuple[type, ...] = ()) -> None:
        assert cls not in above
        for name in vars(cls):
            value = getattr(cls, name)
            if isinstance(value, type):
                follow(value, (*above, cls))

    Derived().connect()
    follow(blocking(Client))
    follow(Derived)


def test_a_sync_with_may_be_overridden_in_a_class_derived_from_a_twin():
    class Lock:
        async def get(self):
            return 1

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    class Mine(blocking(Lock)):
        def __enter__(self):
            return "mine"

        def __exit__(self, *error):
            return None

    with Mine() as entered:
        assert entered == "mine"
