"""One set of tests for both faces: each test is handed the sync client, and the async one behind the same calls."""

import asyncio
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent)]

from notes_sdk import AsyncClient, Client
from service import Service

from omniloop import enter


class Awaited:
    """The async client as its users have it, on a loop of their own; what it returns is awaited, entered or iterated over there."""

    def __init__(self, runner: asyncio.Runner, thing: Any) -> None:
        self._runner, self._thing = runner, thing

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = getattr(self._thing, name)(*args, **kwargs)
            if inspect.isawaitable(result):
                return self._runner.run(self._await(result))
            return Awaited(self._runner, result)

        return call

    async def _await(self, result: Any) -> Any:
        return await result

    def __enter__(self) -> "Awaited":
        return Awaited(self._runner, self._runner.run(self._thing.__aenter__()))

    def __exit__(self, *error: Any) -> Any:
        return self._runner.run(self._thing.__aexit__(*error))

    def __iter__(self) -> Iterator[Any]:
        end = object()

        async def step() -> Any:
            return await anext(self._thing, end)

        while (item := self._runner.run(step())) is not end:
            yield item


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, service: Service) -> Iterator[Any]:
    with enter(service.serve()) as url:
        if request.param == "sync":
            with Client(url) as client:
                yield client
            return
        with asyncio.Runner() as runner:

            async def make() -> AsyncClient:
                return AsyncClient(url)

            with Awaited(runner, runner.run(make())) as awaited:
                yield awaited
