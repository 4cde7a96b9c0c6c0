"""What comes out of a twin: values as they are, and what sync code could make nothing of as a twin, whatever came out before."""

import asyncio
import contextlib
import contextvars
import dataclasses
import enum
import functools
import inspect
import threading
import types
import warnings
from collections.abc import AsyncIterator, Iterator

import pytest

from omniloop import Runtime, WouldDeadlockError, blocking, run

# --- the shape of the generated SDKs ----------------------------------------------------------------------------------


def checked(method):
    """A decorator as SDKs have it: no coroutine function itself, and it wraps one."""

    @functools.wraps(method)
    def call(*args, **kwargs):
        return method(*args, **kwargs)

    return call


class Page:
    def __init__(self, number: int) -> None:
        self.data = [number]

    async def next(self) -> "Page":
        return Page(self.data[0] + 1)


class Stream:
    def __init__(self, text: str) -> None:
        self._left = list(text)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> str:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)


class Completions:
    @checked
    async def create(self, q: str, stream: bool = False) -> object:
        await asyncio.sleep(0)
        return Stream(q) if stream else f"answer {q}"


class RawCompletions:
    """Its methods are attributes of the object, as `with_raw_response` has them."""

    def __init__(self, completions: Completions) -> None:
        self.create = checked(completions.create)


class RawChat:
    def __init__(self, chat: "Chat") -> None:
        self._chat = chat

    @functools.cached_property
    def completions(self) -> RawCompletions:
        return RawCompletions(self._chat.completions)


class Chat:
    """A namespace: it has nothing async itself."""

    @functools.cached_property
    def completions(self) -> Completions:
        return Completions()

    @property
    def with_raw_response(self) -> RawChat:
        return RawChat(self)


class Beta:
    @property
    def chat(self) -> "Chat | None":
        return Chat()


class Model:
    """What a server answers: plain."""

    def __init__(self) -> None:
        self.name = "plain"

    def upper(self) -> int:
        return threading.get_ident()


@dataclasses.dataclass
class Data:
    client: object = None

    async def refresh(self) -> int:
        return 1


class Colour(enum.Enum):
    RED = 1

    async def paint(self) -> None: ...


class AsyncSDK:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.models = types.SimpleNamespace(completions=Completions())
        self.fetch = functools.partial(self.direct, "part")

    async def direct(self, word: str = "direct") -> str:
        return word

    @functools.cached_property
    def chat(self) -> Chat:
        return Chat()

    @property
    def beta(self) -> Beta:
        return Beta()

    async def pages(self) -> list[Page]:
        return [Page(0), Page(10)]

    async def model(self) -> Model:
        return Model()

    async def give(self, value: object) -> object:
        return value

    async def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def task(self) -> "asyncio.Future[int]":
        return asyncio.ensure_future(self.nothing())

    async def nothing(self) -> int:
        return 3

    async def own(self) -> "AsyncSDK":
        return self


SDK = blocking(AsyncSDK)


@pytest.mark.promise(
    "What comes out of a twin is a twin if its class has something async, also through namespaces: `client.chat.completions.create(…)`",
    section="Sync twins",
)
def test_groups_of_calls_are_twins_too():
    sdk = SDK()

    assert sdk.chat.completions.create("x") == "answer x"
    assert sdk.beta.chat.completions.create("y") == "answer y"
    assert sdk.models.completions.create("z") == "answer z"
    assert sdk.chat is sdk.chat
    assert "".join(sdk.chat.completions.create("abc", stream=True)) == "abc"
    assert asyncio.run(sdk.chat.completions.create.aio("aio")) == "answer aio"


def test_methods_that_are_attributes_of_an_object_are_called_by_what_they_return():
    sdk = SDK()

    assert sdk.chat.with_raw_response.completions.create("raw") == "answer raw"
    assert sdk.fetch() == "part"


def test_what_a_call_returns_and_what_is_in_a_list_are_twins_by_their_class():
    first, second = SDK().pages()

    assert first.data == [0]
    assert first.next().data == [1]
    assert second.next().next().data == [12]


def test_it_does_not_matter_what_came_out_before():
    class Item:
        def __init__(self) -> None:
            self.left = 1

        def __aiter__(self):
            return self

        async def __anext__(self):
            raise StopAsyncIteration

    class AsyncShop:
        async def many(self):
            return [Item()]

        async def one(self):
            return Item()

    quick, slow = blocking(AsyncShop, timeout=3)(), blocking(AsyncShop, timeout=300)()

    assert type(quick.many()[0]) is type(quick.one()) is not Item
    # Each with its own options.
    assert type(slow.one()) is not type(quick.one())
    assert type(slow.one())._omniloop_options.timeout == 300
    assert list(slow.one()) == []


def test_a_twin_that_was_asked_for_comes_out_before_any_other():
    asked_for = blocking(Page, rename={"next": "following"})
    try:
        assert SDK().pages()[0].following().data == [1]
    finally:
        Page._omniloop_twins.remove(asked_for)


@pytest.mark.promise(
    "Data (dataclasses, pydantic, attrs, msgspec), classes, functions, futures, event loops, exceptions and enums come out of a twin as they are"
)
@pytest.mark.parametrize(
    "value",
    [
        Model(),
        Data(),
        Data(client=Completions()),
        Colour.RED,
        Completions,
        Completions.create,
        Exception("x"),
        types,
        "text",
        None,
        3.5,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_out_as_they_are(value):
    assert SDK().give(value) is value


def test_futures_and_event_loops_come_out_as_they_are():
    sdk = SDK()

    assert isinstance(sdk.loop(), asyncio.AbstractEventLoop)
    assert isinstance(sdk.task(), asyncio.Future)
    with Runtime() as other:
        assert sdk.give(other) is other


@pytest.mark.parametrize("library", ["pydantic", "attrs", "msgspec"])
def test_data_of_libraries_comes_out_as_it_is(library):
    module = pytest.importorskip(library)
    if library == "attrs":

        @module.define
        class Record:
            number: int = 3

            async def refresh(self): ...

    else:

        class Record(
            {"pydantic": "BaseModel", "msgspec": "Struct"}[library]
            and getattr(module, {"pydantic": "BaseModel", "msgspec": "Struct"}[library])
        ):
            number: int = 3

            async def refresh(self): ...

    assert type(SDK().give(Record())) is Record


def test_data_that_can_be_iterated_over_by_async_code_is_a_twin():
    @dataclasses.dataclass
    class Pages:
        items: list[int]

        async def __aiter__(self) -> AsyncIterator[int]:
            for item in self.items:
                yield item

    pages = SDK().give(Pages([1, 2]))

    assert list(pages) == pages.items == [1, 2]


@pytest.mark.promise(
    "`blocking(cls, nested=False)` makes twins of nothing that has not been asked for; `nested=(A, B)` leaves these classes alone"
)
def test_nested_twins_can_be_turned_off():
    without = blocking(AsyncSDK, nested=False)()
    but_page = blocking(AsyncSDK, nested=(Page,))()

    assert type(without.chat) is Chat
    assert type(without.pages()[0]) is Page
    assert type(without.own()) is type(without)
    # Nothing that sync code could make anything of.
    assert "".join(run(without.chat.completions.create("ab", stream=True))._left) == "ab"
    assert list(without.give(Stream("ab"))) == ["a", "b"]
    assert type(but_page.pages()[0]) is Page
    assert but_page.chat.completions.create("x") == "answer x"


@pytest.mark.parametrize("wrong", ["Page", (), ("Page",), 1, None])
def test_what_nested_can_not_be_is_named(wrong):
    with pytest.raises(TypeError, match="nested="):
        blocking(AsyncSDK, nested=wrong)


def test_a_lock_that_is_an_attribute_can_be_entered():
    sdk = SDK()

    with sdk.lock:
        assert sdk.lock.locked()
    assert not sdk.lock.locked()


def test_new_names_hold_for_what_comes_out_where_it_has_the_old_ones():
    class Reader:
        async def aread(self):
            return "read"

    class AsyncStore:
        async def open(self):
            return Reader()

        async def aread(self):
            return "all"

    store = blocking(AsyncStore, rename={"aread": "read"})()

    assert (store.read(), store.open().read()) == ("all", "read")


# --- descriptors ------------------------------------------------------------------------------------------------------


class Reify:
    """Pyramid's, and a hundred copies of it: no data descriptor, and no function."""

    def __init__(self, f):
        self.f = f
        self.__doc__ = f.__doc__

    def __get__(self, obj, owner):
        if obj is None:
            return self
        value = obj.__dict__[self.f.__name__] = self.f(obj)
        return value


class ClassProperty:
    def __init__(self, f):
        self.fget = f

    def __get__(self, obj, owner):
        return self.fget(owner)


class Constant:
    def __get__(self, obj, owner):
        return 42


class Callable:
    """A decorator that is an object: it binds as a method does."""

    def __init__(self, f):
        self.f = f

    def __get__(self, obj, owner=None):
        return self if obj is None else types.MethodType(self.f, obj)

    def __call__(self, *args):
        return self.f(*args)


class AsyncThing:
    async def get(self) -> int:
        return 1

    @Reify
    def reified(self) -> list[str]:
        """Once."""
        return ["value"]

    @ClassProperty
    def of_class(cls) -> str:
        return cls.__name__

    constant = Constant()

    @Reify
    def leads(self) -> Chat:
        return Chat()

    @Callable
    async def decorated(self, word: str) -> str:
        return word

    @functools.lru_cache  # noqa: B019
    def cached(self) -> int:
        return threading.get_ident()

    @functools.singledispatchmethod
    def single(self, value: object) -> str:
        return "object"

    @single.register
    def _(self, value: int) -> str:
        return "int"


Thing = blocking(AsyncThing)


@pytest.mark.promise(
    "A descriptor that yields a value yields it, seen through a twin: the cached properties of all libraries"
)
def test_a_descriptor_that_yields_a_value_yields_it():
    thing = Thing()

    assert thing.reified == ["value"]
    assert thing.reified is thing.reified
    assert thing.of_class == Thing.of_class == "AsyncThing"
    assert thing.constant == Thing.constant == 42
    assert thing.leads.completions.create("x") == "answer x"
    thing.reified = "new"
    assert thing.reified == "new"
    assert inspect.getdoc(Thing.reified) == "Once."


def test_what_binds_as_a_method_is_called_on_the_loop():
    thing = Thing()

    assert thing.decorated("word") == "word"
    assert thing.cached() == run(asyncio.to_thread(thing.cached)) != threading.get_ident()
    assert (thing.single(""), thing.single(1)) == ("object", "int")


@pytest.mark.parametrize(
    "kind", ["propcache", "under_propcache", "sqlalchemy", "django", "django_class", "discord", "functools"]
)
def test_cached_properties_of_libraries_yield_their_value(kind):
    where = {
        "propcache": ("propcache.api", "cached_property"),
        "under_propcache": ("propcache.api", "under_cached_property"),
        "sqlalchemy": ("sqlalchemy.util", "memoized_property"),
        "django": ("django.utils.functional", "cached_property"),
        "django_class": ("django.utils.functional", "classproperty"),
        "discord": ("discord.utils", "cached_slot_property"),
        "functools": ("functools", "cached_property"),
    }
    module, name = where[kind]
    decorator = getattr(pytest.importorskip(module), name)
    if kind == "discord":
        decorator = decorator("_stored")

    class AsyncClient:
        def __init__(self):
            self._cache = {}

        async def get(self): ...

        @decorator
        def value(self):
            return ["value"]

    client = blocking(AsyncClient)()

    assert client.value == client.value == ["value"]


# --- sync iterators ---------------------------------------------------------------------------------------------------


class AsyncPages:
    def __init__(self) -> None:
        self.left = 2

    def __iter__(self) -> "AsyncPages":
        return self

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.left

    async def prefetch(self) -> None: ...

    def threads(self, to: int = 2) -> Iterator[int]:
        for _ in range(to):
            yield threading.get_ident()

    def talk(self):
        said = []
        try:
            while True:
                try:
                    said.append((yield said))
                except ValueError as error:
                    said.append(repr(error))
        finally:
            said.append("closed")

    def stop(self):
        raise StopIteration("the end")


Pages = blocking(AsyncPages)


@pytest.mark.promise("A class that is a sync iterator, and has async methods beside, can be iterated over as it is")
def test_a_sync_next_ends_the_loop():
    pages = Pages()

    assert list(pages) == [1, 0]
    assert next(pages, None) is None
    with pytest.raises(StopIteration) as stopped:
        pages.stop()
    assert stopped.value.value == "the end"


@pytest.mark.promise(
    "A sync generator method of a twin runs on the loop, as other sync methods do, or in the caller's thread if told"
)
def test_a_sync_generator_method_runs_where_other_methods_do():
    here, loop = threading.get_ident(), run(asyncio.to_thread(lambda: run(in_loop())))

    assert set(Pages().threads()) == {loop}
    assert set(blocking(AsyncPages, in_caller=["threads"])().threads()) == {here}

    async def main():
        return {ident async for ident in Pages().threads.aio()}

    with warnings.catch_warnings(action="ignore"):
        assert asyncio.run(main()) == {loop}


async def in_loop() -> int:
    return threading.get_ident()


def test_a_sync_generator_can_be_sent_to_thrown_into_and_closed():
    with Pages().talk() as talk:
        said = next(talk)
        assert talk.send("one") == ["one"]
        assert talk.throw(ValueError("two")) == ["one", "ValueError('two')"]
    assert said[-1] == "closed"


def test_a_sync_generator_that_is_left_is_closed():
    said = None
    for said in Pages().talk():
        break

    run(asyncio.sleep(0))
    run(asyncio.sleep(0))
    assert said[-1] == "closed"


# --- what messages advise ---------------------------------------------------------------------------------------------


class AsyncNamed:
    async def aclose(self) -> None: ...

    @checked
    async def get(self) -> int:
        return 1

    @property
    async def version(self) -> str:
        return "1"

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error): ...

    async def __aiter__(self):
        yield 1

    async def items(self):
        yield 1


def used_where_a_loop_runs(use):
    async def main():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            use()
        return [str(each.message) for each in told]

    return asyncio.run(main())


def enters(named):
    with named:
        pass


@pytest.mark.promise("The advice in warnings and errors names what exists: `Client.close.aio`")
@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda named: named.close(), "Client.close() blocks the event loop that runs in this thread. Use `Client.close.aio(…)` here."),
        (lambda named: named.get(), "Client.get() blocks the event loop that runs in this thread. Use `Client.get.aio(…)` here."),
        (lambda named: named.version, "Client.version blocks the event loop that runs in this thread. Use `asyncio.to_thread(getattr, …)` here."),
        (list, "`for` on Client blocks the event loop that runs in this thread. Use `async for` here."),
        (enters, "`with` on Client blocks the event loop that runs in this thread. Use `async with` here."),
        (lambda named: type(named)(), "Client() blocks the event loop that runs in this thread. Use `Client.aio(…)` here."),
    ],
    ids=["renamed", "wrapped", "property", "for", "with", "making"],
)  # fmt: skip
def test_the_advice_names_what_exists(use, said):
    class Client(blocking(AsyncNamed)):
        pass

    assert said in used_where_a_loop_runs(functools.partial(use, Client()))


def test_a_function_without_a_name_is_not_named():
    made = blocking(lambda: asyncio.sleep(0, 3))

    (said,) = used_where_a_loop_runs(lambda: made())

    assert said == "<lambda>() blocks the event loop that runs in this thread. Use its `.aio(…)` here."


def test_on_the_loops_own_thread_the_advice_is_what_can_be_written_there():
    named = blocking(AsyncNamed)()

    async def on_the_loop(use):
        with pytest.raises(WouldDeadlockError) as raised:
            use()
        return str(raised.value)

    assert "Use `await AsyncNamed.close.aio(…)` there" in run(on_the_loop(named.close))
    assert "Use `async for … in AsyncNamed.items.aio(…)` there" in run(on_the_loop(named.items))


# --- any callable -----------------------------------------------------------------------------------------------------


async def double(number: int) -> int:
    return number * 2


async def count(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number


class Doubles:
    async def __call__(self, number: int) -> int:
        return number * 2


@pytest.mark.promise(
    "`blocking` takes any callable by what it returns: a lambda, a partial, an object whose call is async"
)
@pytest.mark.parametrize(
    "fn", [lambda number: double(number), functools.partial(double), Doubles(), checked(double)], ids=["lambda", "partial", "object", "wrapped"]
)  # fmt: skip
def test_any_callable_is_taken_by_what_it_returns(fn):
    assert blocking(fn)(3) == 6
    assert asyncio.run(in_async_code(blocking(fn))) == 8


async def in_async_code(call):
    return await call.aio(4)


def test_any_callable_that_returns_an_async_generator_is_iterated_over():
    for fn in (lambda to: count(to), functools.partial(count)):
        assert list(blocking(fn)(3)) == [0, 1, 2]


def test_a_function_that_is_not_async_at_all_is_called_on_the_loop():
    assert blocking(lambda: threading.get_ident())() == run(in_loop())


def test_an_attribute_whose_call_is_async_can_be_called():
    class AsyncHolder:
        def __init__(self):
            self.double = Doubles()

        async def get(self): ...

    assert blocking(AsyncHolder)().double(2) == 4


# --- what `with` covers -----------------------------------------------------------------------------------------------

transaction: contextvars.ContextVar[str] = contextvars.ContextVar("transaction", default="outside")


class AsyncStore:
    async def __aenter__(self) -> "AsyncStore":
        self._token = transaction.set("inside")
        return self

    async def __aexit__(self, *error: object) -> None:
        transaction.reset(self._token)

    @contextlib.asynccontextmanager
    async def atomic(self) -> AsyncIterator["AsyncStore"]:
        token = transaction.set("atomic")
        yield self
        transaction.reset(token)

    async def which(self) -> str:
        return transaction.get()


@pytest.mark.promise(
    "The `with` of a twin covers its block: what entering sets in context variables is seen in it, and by calls"
)
def test_what_entering_sets_is_seen_in_the_block():
    with blocking(AsyncStore)() as store:
        assert (transaction.get(), store.which()) == ("inside", "inside")
        with store.atomic() as same:
            assert (transaction.get(), same.which()) == ("atomic", "atomic")
        assert (transaction.get(), store.which()) == ("inside", "inside")
    assert transaction.get() == "outside"


def test_and_in_the_block_of_async_callers():
    async def main():
        store = await blocking(AsyncStore).aio()
        seen = []
        async with store:
            seen.append(transaction.get())
            async with store.atomic.aio() as same:
                seen += [transaction.get(), await same.which.aio()]
            seen.append(transaction.get())
        return [*seen, transaction.get()]

    assert asyncio.run(main()) == ["inside", "atomic", "atomic", "inside", "outside"]


def test_the_twin_of_a_subclass_is_not_taken_for_one_that_was_asked_for():
    """After an object of a subclass had come out, the class itself came out as a twin too, and a later `blocking` of it was passed over."""

    class Base:
        async def get(self):
            return 1

    class Derived(Base):
        pass

    class Shop:
        async def kind(self):
            return Derived

        async def make(self):
            return Derived()

    blocking(Base)
    shop = blocking(Shop, timeout=9)()
    assert shop.make().get() == 1
    assert shop.kind() is Derived

    asked_for = blocking(Derived, timeout=5, rename={"get": "fetch"})
    assert type(shop.make()) is asked_for
    assert shop.make().fetch() == 1
