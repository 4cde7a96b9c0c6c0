"""What a manager sets in context variables covers the block of a sync `with`, and of a twin's, as in `async with`."""

import asyncio
import contextlib
import contextvars
import decimal
import sys
import threading
import types
from contextvars import ContextVar

import pytest

from omniloop import blocking, call_soon, enter, go, run, to_thread

transaction: ContextVar[str | None] = ContextVar("transaction", default=None)
other: ContextVar[object] = ContextVar("other")


class Database:
    """Keeps its transaction in a context variable, as Piccolo, Tortoise, databases and others do."""

    @contextlib.asynccontextmanager
    async def transaction(self, name="one"):
        token = transaction.set(name)
        try:
            yield self
        finally:
            transaction.reset(token)

    async def insert(self):
        return transaction.get()

    async def __aenter__(self):
        self.token = transaction.set("of the connection")
        return self

    async def __aexit__(self, *_):
        transaction.reset(self.token)


@pytest.fixture(autouse=True)
def _in_a_context_of_its_own(request):
    """What a test sets is gone at its end."""
    before = {variable: variable.get(None) for variable in (transaction, other)}
    yield
    assert {variable: variable.get(None) for variable in (transaction, other)} == before


def in_a_context(fn):
    return contextvars.Context().run(fn)


@pytest.mark.promise(
    "`enter` covers its block: a context variable that the manager sets is set there, as in `async with`",
    section="Entering",
)
def test_a_transaction_covers_the_block_and_what_is_started_in_it():
    database = Database()

    with enter(database.transaction()):
        seen = (
            transaction.get(),
            run(database.insert()),
            go(database.insert()).result(5),
            to_thread(transaction.get).result(5),
        )

    assert seen == ("one",) * 4
    assert transaction not in contextvars.copy_context()


@pytest.mark.promise(
    "A twin's `with` covers its block, and the `async with` of its `.aio` too, on another loop", section="Entering"
)
def test_a_twins_with_covers_the_block():
    twin = blocking(Database)()

    with twin.transaction("two") as database:
        assert database.insert() == transaction.get() == "two"
    with twin:
        assert twin.insert() == "of the connection"

    async def other_face():
        async with twin.transaction.aio("three"):
            return await twin.insert.aio(), transaction.get()

    assert asyncio.run(other_face()) == ("three", "three")
    assert transaction.get() is None


def test_a_value_from_outside_comes_back_after_the_block():
    def work():
        transaction.set("outer")
        with enter(Database().transaction("inner")):
            inside = transaction.get()
        return inside, transaction.get()

    assert in_a_context(work) == ("inner", "outer")


def test_nested_blocks_end_in_either_order():
    def work(outer_first):
        first, second = enter(Database().transaction("first")), enter(Database().transaction("second"))
        first.__enter__()
        second.__enter__()
        seen = [run(Database().insert())]
        for manager in (first, second) if outer_first else (second, first):
            manager.__exit__(None, None, None)
            seen.append(transaction.get())
        return seen

    async def plainly(outer_first):
        first, second = Database().transaction("first"), Database().transaction("second")
        await first.__aenter__()
        await second.__aenter__()
        seen = [await Database().insert()]
        for manager in (first, second) if outer_first else (second, first):
            await manager.__aexit__(None, None, None)
            seen.append(transaction.get())
        return seen

    for outer_first in (True, False):
        assert in_a_context(lambda: work(outer_first)) == asyncio.run(plainly(outer_first))


@pytest.mark.promise(
    "What the block of an `enter` sets is seen by the manager when it is left, and stays set after the block",
    section="Entering",
)
def test_what_the_block_sets_is_seen_by_the_manager_and_stays():
    seen = []

    class Manager:
        async def __aenter__(self):
            transaction.set("begun")

        async def __aexit__(self, *_):
            seen.append((transaction.get(), other.get()))
            transaction.set("left")

    def work():
        with enter(Manager()):
            transaction.set("by the block")
            other.set("the block's own")
        return transaction.get(), other.get()

    assert in_a_context(work) == ("left", "the block's own")
    assert seen == [("by the block", "the block's own")]


def test_a_manager_that_fails_to_enter_carries_nothing():
    class Manager:
        async def __aenter__(self):
            transaction.set("half way")
            raise LookupError

        async def __aexit__(self, *_):
            raise AssertionError

    with pytest.raises(LookupError), enter(Manager()):
        raise AssertionError

    assert transaction.get() is None


@pytest.mark.parametrize("ends", [LookupError, KeyboardInterrupt, asyncio.CancelledError])
def test_the_variable_is_reset_after_an_error_too(ends):
    with pytest.raises(ends), enter(Database().transaction()):
        raise ends

    assert transaction not in contextvars.copy_context()


def test_left_in_another_thread_it_changes_nothing_there():
    manager = enter(Database().transaction())
    manager.__enter__()
    context = contextvars.copy_context()

    def leave():
        other.set("of another thread")
        manager.__exit__(None, None, None)
        return other.get(), transaction.get()

    thread = []
    worker = threading.Thread(target=lambda: thread.append(contextvars.Context().run(leave)))
    worker.start()
    worker.join(5)

    assert thread == [("of another thread", None)]
    assert context[transaction] == "one"
    transaction.set(None)


def test_three_tasks_have_three_transactions():
    twin = blocking(Database)()

    async def work(name, all_in):
        async with twin.transaction.aio(name):
            await all_in.wait()
            return await twin.insert.aio(), transaction.get()

    async def main():
        all_in = asyncio.Barrier(3)
        return await asyncio.gather(*[work(name, all_in) for name in "abc"])

    assert asyncio.run(main()) == [("a", "a"), ("b", "b"), ("c", "c")]


def test_the_precision_of_decimals():
    class Precisely:
        async def __aenter__(self):
            self.local = decimal.localcontext()
            self.local.__enter__().prec = 5

        async def __aexit__(self, *_):
            self.local.__exit__(*_)

    def work():
        with enter(Precisely()):
            first = 1 / decimal.Decimal(3)
            decimal.getcontext().prec = 7
            second = run(third())
        return str(first), str(second), decimal.getcontext().prec

    async def third():
        return 1 / decimal.Decimal(3)

    before = decimal.getcontext().prec
    assert in_a_context(work) == ("0.33333", "0.3333333", before)


def test_anyios_scopes():
    anyio = pytest.importorskip("anyio")

    @contextlib.asynccontextmanager
    async def scoped():
        async with anyio.create_task_group() as group, Database().transaction():
            with anyio.fail_after(60):
                yield group

    with enter(scoped()) as group:
        assert run(Database().insert()) == "one"
        call_soon(group.start_soon, anyio.sleep, 0).result(timeout=5)


def test_opentelemetrys_span_is_the_parent_of_what_the_block_starts():
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    tracer = sdk.TracerProvider().get_tracer("test")

    @contextlib.asynccontextmanager
    async def traced():
        with tracer.start_as_current_span("outer") as span:
            yield span

    async def current():
        return trace.get_current_span()

    with enter(traced()) as span:
        assert run(current()) is span is trace.get_current_span()
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_structlogs_bound_values():
    structlog = pytest.importorskip("structlog")

    @contextlib.asynccontextmanager
    async def bound():
        with structlog.contextvars.bound_contextvars(request="7"):
            yield

    async def current():
        return structlog.contextvars.get_contextvars()

    with enter(bound()):
        structlog.contextvars.bind_contextvars(user="ada")
        assert run(current()) == {"request": "7", "user": "ada"}
    assert "request" not in structlog.contextvars.get_contextvars()
    structlog.contextvars.clear_contextvars()


@pytest.mark.promise(
    "Not carried over are omniloop's own variables, and values that belong to a thread", section="Entering"
)
def test_what_belongs_to_a_thread_is_not_carried():
    local = pytest.importorskip("asgiref.local").Local()

    @contextlib.asynccontextmanager
    async def manager():
        local.language = "de"
        yield

    with enter(manager()):
        held = [value for variable, value in contextvars.copy_context().items() if variable.name == "asgiref.local"]
        ours = [variable.name for variable in contextvars.copy_context() if variable.name.startswith("omniloop_opened")]

    # Before asgiref 3.12 its storage is a mere dict, which belongs to nobody.
    assert all(type(value) is dict or value.thread_id == threading.get_ident() for value in held)
    assert ours == []


@pytest.mark.promise(
    "Piccolo's and Tortoise's transactions, on SQLite, cover the block of a sync `with`", section="Entering"
)
def test_piccolos_transaction(tmp_path):
    pytest.importorskip("piccolo")
    pytest.importorskip("aiosqlite")
    from piccolo.columns import Varchar
    from piccolo.engine.sqlite import SQLiteEngine
    from piccolo.table import Table

    engine = SQLiteEngine(path=str(tmp_path / "piccolo.db"))

    class Person(Table, db=engine):
        name = Varchar()

    async def do(query):
        return await query

    run(do(Person.create_table()))
    with enter(engine.transaction()):
        run(do(Person.insert(Person(name="ada"))))
    with contextlib.suppress(LookupError), enter(engine.transaction()):
        run(do(Person.insert(Person(name="rolled back"))))
        raise LookupError

    assert run(do(Person.select(Person.name))) == [{"name": "ada"}]


def test_tortoises_transaction(tmp_path, monkeypatch):
    tortoise = pytest.importorskip("tortoise")
    # From 1.0 on it keeps all of its connections in context variables.
    context = pytest.importorskip("tortoise.context")
    from tortoise import fields
    from tortoise.transactions import in_transaction

    class Person(tortoise.Model):
        id = fields.IntField(primary_key=True)
        name = fields.CharField(max_length=20)

    models = types.ModuleType("models_of_the_test")
    Person.__module__ = models.__name__
    vars(models)["Person"] = Person
    monkeypatch.setitem(sys.modules, models.__name__, models)

    async def names():
        return await Person.all().values_list("name", flat=True)

    async def insert(name):
        await Person.create(name=name)

    with enter(context.TortoiseContext()) as database:
        url = f"sqlite://{tmp_path / 'tortoise.db'}"
        run(database.init(db_url=url, modules={"models": [models.__name__]}))
        run(database.generate_schemas())
        with enter(in_transaction()):
            run(insert("ada"))
        with contextlib.suppress(LookupError), enter(in_transaction()):
            run(insert("rolled back"))
            raise LookupError

        assert run(names()) == ["ada"]
