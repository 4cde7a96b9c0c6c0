"""`python -m omniloop stubs` writes the types of a module's sync twins, and the type checkers agree with them."""

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from children import child_environment

TYPING = Path(__file__).parents[1] / "typing"


def write(folder, **modules):
    """A package `my_sdk` in *folder*."""
    package = folder / "my_sdk"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / "py.typed").touch()
    for name, text in modules.items():
        (package / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def omniloop(folder, *args):
    return subprocess.run(
        [sys.executable, "-m", "omniloop", *args],
        cwd=folder,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def stub_of(folder, name="sync"):
    ended = omniloop(folder, "stubs", f"my_sdk.{name}")
    assert (ended.stderr, ended.returncode) == ("", 0)
    return (folder / "my_sdk" / f"{name}.pyi").read_text()


AIO = '''
    """The async one."""
    from typing import Literal, overload

    class AsyncClient:
        """A client."""

        async def get(self, key: str) -> bytes:
            """Get one."""
            return b""

        @overload
        async def load(self, key: str, text: Literal[True]) -> str: ...
        @overload
        async def load(self, key: str) -> bytes: ...
        async def load(self, key: str, text: bool = False) -> str | bytes:
            """Load one."""
            return b""
'''
SYNC = """
    from omniloop import blocking
    from .aio import AsyncClient

    Client = blocking(AsyncClient)
"""


@pytest.mark.promise(
    "`python -m omniloop stubs` writes the types of the sync twins in a module; docstrings and overloads are kept"
)
def test_the_stub_has_the_sync_face_with_docstrings_and_overloads(tmp_path):
    text = stub_of(write(tmp_path, aio=AIO, sync=SYNC))

    assert "class Client:" in text
    assert '"""A client."""' in text
    assert '"""Get one."""' in text
    assert '"""Load one."""' in text
    # Two of the call, two of `.aio`.
    assert text.count("@overload") == 4


@pytest.mark.promise("`--check` fails where a stub is missing or stale, and says what has changed")
def test_check_says_when_a_stub_is_missing_or_stale(tmp_path):
    write(tmp_path, aio=AIO, sync=SYNC)

    missing = omniloop(tmp_path, "stubs", "--check", "my_sdk.sync")
    stub_of(tmp_path)
    good = omniloop(tmp_path, "stubs", "--check", "my_sdk.sync")
    write(tmp_path, aio=AIO.replace("key: str) -> bytes:", "key: int) -> bytes:"))
    stale = omniloop(tmp_path, "stubs", "--check", "my_sdk.sync")

    assert (missing.returncode, good.returncode, stale.returncode) == (1, 0, 1)
    assert "is missing. Run: python -m omniloop stubs my_sdk.sync" in missing.stderr
    assert (good.stdout, good.stderr) == ("", "")
    assert "is stale" in stale.stderr
    assert "+    async def get(self, key: int) -> bytes:" in stale.stderr


def test_a_stub_that_was_formatted_is_not_stale(tmp_path):
    text = stub_of(write(tmp_path, aio=AIO, sync=SYNC))
    path = tmp_path / "my_sdk" / "sync.pyi"

    path.write_text(text.replace(": ...", ":\n        ...").replace("\n\n", "\n\n\n"))

    assert omniloop(tmp_path, "stubs", "--check", "my_sdk.sync").returncode == 0


def test_a_module_without_a_twin_and_one_that_is_not_there_are_named(tmp_path):
    write(tmp_path, aio=AIO)

    without = omniloop(tmp_path, "stubs", "my_sdk.aio")
    nowhere = omniloop(tmp_path, "stubs", "my_sdk.nowhere")

    assert without.returncode == nowhere.returncode == 2
    assert "There is no twin in my_sdk.aio" in without.stderr
    assert "my_sdk.nowhere can't be imported" in nowhere.stderr


def test_a_command_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    wrong, none = omniloop(tmp_path, "stubz"), omniloop(tmp_path)

    assert (wrong.returncode, none.returncode) == (2, 0)
    assert "stubs" in wrong.stdout
    assert "stubs" in none.stdout


def test_twins_and_originals_may_be_in_one_module(tmp_path):
    text = stub_of(
        write(tmp_path, sync=AIO + "\n    from omniloop import blocking\n\n    Client = blocking(AsyncClient)\n")
    )

    assert "class AsyncClient:" in text
    assert "class Client:" in text


def test_a_class_derived_from_a_twin_keeps_its_name_docstring_and_methods(tmp_path):
    text = stub_of(
        write(
            tmp_path,
            aio=AIO,
            sync='''
            from omniloop import blocking
            from .aio import AsyncClient

            class Client(blocking(AsyncClient)):
                """The sync one."""

                def more(self) -> int:
                    return 1
            ''',
        )
    )

    assert '"""The sync one."""' in text
    assert "def more(self) -> int: ..." in text
    assert "async def get(self, key: str) -> bytes:" in text


def test_renamed_methods_have_their_new_names(tmp_path):
    text = stub_of(
        write(
            tmp_path,
            aio="""
            class AsyncReader:
                def read(self) -> str: return ""
                async def aread(self) -> bytes: return b""
                async def aclose(self) -> None: ...
            """,
            sync="""
            from omniloop import blocking
            from .aio import AsyncReader
            Reader = blocking(AsyncReader, rename={"aread": "read"})
            """,
        )
    )

    assert "async def read(self) -> bytes: ..." in text
    assert "async def close(self) -> None: ..." in text
    assert "aread" not in text
    assert "str" not in text


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 has no type parameters")
def test_type_parameters_of_the_new_kind_are_kept(tmp_path):
    text = stub_of(
        write(
            tmp_path,
            aio="""
            class AsyncBox[T]:
                async def get(self) -> T: raise NotImplementedError
                async def other[U](self, value: U) -> U: return value
            """,
            sync="""
            from omniloop import blocking
            from .aio import AsyncBox
            Box = blocking(AsyncBox)
            """,
        )
    )

    assert "class Box[T]:" in text
    assert "async def get(self) -> T: ..." in text


@pytest.mark.promise(
    "The stubs type what comes out of a twin as that comes out: as a twin, where it is one; and `Self` as the class that was asked"
)
def test_what_comes_out_is_typed_as_it_comes_out(tmp_path):
    text = stub_of(
        write(
            tmp_path,
            aio="""
            from typing import Self

            class AsyncCompletions:
                async def create(self, q: str, after: "AsyncAnswer | None" = None) -> "AsyncAnswer": ...

            class AsyncAnswer:
                async def read(self) -> bytes: ...

            class Unused:
                async def read(self) -> bytes: ...

            class AsyncChat:
                def __init__(self) -> None:
                    self.completions = AsyncCompletions()

            class AsyncClient:
                def __init__(self, transport: Unused | None = None) -> None:
                    self.chat = AsyncChat()
                @classmethod
                async def make(cls) -> Self: return cls()
            """,
            sync=SYNC,
        )
    )

    assert "    chat: _AsyncChat" in text
    assert "    completions: _AsyncCompletions" in text
    assert "async def create(self, q: str, after: AsyncAnswer | _AsyncAnswer | None=None) -> _AsyncAnswer: ..." in text
    # What only goes in has no twin to go in.
    assert "def __init__(self, transport: Unused | None=None) -> None: ..." in text
    assert "def __get__(self, obj: object, owner: type[_Self]) -> _Client_make[_Self]: ..." in text


@pytest.mark.promise(
    "A stub has what a stub may have: members of an enum keep their values, and of overloads only these are there"
)
def test_what_is_no_twin_is_written_as_a_stub_has_it(tmp_path):
    text = stub_of(
        write(
            tmp_path,
            sync="""
            from collections.abc import AsyncIterable
            from enum import Enum
            from typing import Literal, overload
            from omniloop import blocking

            LIMIT = 3

            class Color(Enum):
                RED = 1

            class AsyncClient:
                @overload
                def get(self, key: str) -> bytes: ...
                @overload
                def get(self, key: int) -> str: ...
                def get(self, key: str | int) -> str | bytes:
                    "Get one."
                async def close(self) -> None: ...
                async def paint(self, color: Literal[Color.RED]) -> None: ...
                def rows(self) -> AsyncIterable[int]: ...

            Client = blocking(AsyncClient)
            """,
        )
    )
    twin = text[text.index("class Client:") :]

    assert "LIMIT: int" in text
    assert "    RED = 1" in text
    assert twin.count("def get") == twin.count("@overload") == 2
    assert (
        '''-> bytes:
        """Get one."""'''
        in twin
    )
    assert "paint(self, color: Literal[Color.RED])" in twin
    assert "def rows(self) -> _Client_rows: ..." in twin
    assert "def __call__(self) -> Iterable[int]: ..." in text


@pytest.mark.promise(
    "A stub names what is in a class, and what comes out of something that can be both awaited and entered"
)
def test_names_of_other_modules_are_found_by_the_stub(tmp_path):
    text = stub_of(
        write(
            tmp_path,
            aio="""
            from collections.abc import Generator
            from enum import Enum
            from typing import Generic, Literal, TypeVar

            T = TypeVar("T")

            class Token(Enum):
                NONE = 1

            class AsyncManager:
                class Answer(Enum):
                    YES = 1
                async def ask(self) -> "AsyncManager.Answer": ...

            class Both(Generic[T]):
                async def __aenter__(self) -> T: ...
                async def __aexit__(self, *error: object) -> None: ...
                def __await__(self) -> Generator[None, None, T]: ...

            class AsyncClient:
                manager: AsyncManager
                async def get(self, default: Literal[Token.NONE, "AsyncManager"]) -> None: ...
                def open(self) -> Both[AsyncManager]: ...
            """,
            sync=SYNC,
        )
    )

    assert "default: Literal[Token.NONE, 'AsyncManager']" in text
    assert "async def ask(self) -> AsyncManager.Answer: ..." in text
    assert "def open(self) -> _AsyncManager: ..." in text


def test_the_stub_of_a_class_that_leaves_others_alone_does_so_too(tmp_path):
    aio = """
        class AsyncAnswer:
            async def read(self) -> bytes: ...

        class AsyncClient:
            async def get(self) -> AsyncAnswer: ...
        """
    for nested in ("False", "(AsyncAnswer,)"):
        sync = SYNC.replace("import AsyncClient", "import AsyncAnswer, AsyncClient").replace(
            "(AsyncClient)", f"(AsyncClient, nested={nested})"
        )

        assert "async def get(self) -> AsyncAnswer: ..." in stub_of(write(tmp_path, aio=aio, sync=sync))


def test_the_stub_of_the_typed_sdk_is_current():
    """The type checkers are run over it as over all of tests/typing."""
    ended = subprocess.run(
        [sys.executable, "-m", "omniloop", "stubs", "--check", "sdk.sync", "sdk.groups"],
        cwd=TYPING,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (ended.stderr, ended.returncode) == ("", 0)


REAL = """
    import httpx
    import redis.asyncio

    from omniloop import blocking

    Client = blocking(httpx.AsyncClient)
    Response = blocking(httpx.Response, rename={"aread": "read", "aiter_lines": "iter_lines", "aclose": "close"})
    Redis = blocking(redis.asyncio.Redis)
    Pipeline = blocking(redis.asyncio.client.Pipeline)
    PubSub = blocking(redis.asyncio.client.PubSub)
"""
USE = """
    from typing import assert_type

    from my_sdk.real import Client, Pipeline, PubSub, Redis, Response

    with Client(base_url="http://localhost", timeout=5) as client:
        assert_type(client, Client)
        assert_type(client.get("/", params={"a": "b"}), Response)
        assert_type(client.get.options(timeout=5)("/"), Response)
        assert_type(client.get("/").read(), bytes)
        with client.stream("GET", "/") as response:
            assert_type(response, Response)
            for line in response.iter_lines():
                assert_type(line, str)
        client.get(3)  # type: ignore[arg-type]
        client.close()


    async def main() -> None:
        assert_type(await client.get.aio("/"), Response)


    redis = Redis(host="localhost")
    assert_type(redis.get("key"), bytes | str | None)
    assert_type(redis.pipeline(), Pipeline)
    assert_type(redis.pubsub(), PubSub)
    redis.get()  # type: ignore[call-arg]
"""


@pytest.mark.promise(
    "mypy and pyright, both strict, agree with the stubs of the twins of httpx's client and of that of redis"
)
@pytest.mark.timeout(240)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_agree_with_the_stubs_of_real_clients(checker, tmp_path):
    pytest.importorskip(checker)
    pytest.importorskip("httpx")
    pytest.importorskip("redis")
    write(tmp_path, real=REAL)
    stub_of(tmp_path, "real")
    (tmp_path / "use.py").write_text("# pyright: strict\n" + textwrap.dedent(USE))

    command = {
        "mypy": ["mypy", "--strict", "use.py", "my_sdk/real.pyi"],
        "pyright": ["pyright", "--pythonpath", sys.executable, "use.py", "my_sdk/real.pyi"],
    }[checker]
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_importing_the_command_loads_it_only_when_it_is_called():
    code = "import sys, omniloop.__main__; print('omniloop._twins.stubs' in sys.modules)"

    ended = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, timeout=30, check=True
    )

    assert ended.stdout == "False\n"
    assert importlib.import_module("omniloop.__main__").COMMANDS
