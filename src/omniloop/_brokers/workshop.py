"""Makes the brokers or apps that an engine listens and sends on, and registers all functions with each."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from .handover import Function

T = TypeVar("T")


class Workshop(ABC, Generic[T]):
    """
    Calls the user's function for each broker or app that is needed, so that each process, and each fork, has its own.

    A function that is defined later is registered with all brokers or apps that still exist.

    Args:
        make: The user's function, which makes a broker or an app.
        what: The name of what *make* makes, for the error.
    """

    def __init__(self, make: Callable[[], T], what: str) -> None:
        if not callable(make):
            raise TypeError(
                f"{make!r}: give a function that makes {what}, so that each process, and each fork, makes its own."
            )
        self._make = make
        self._functions: dict[str, tuple[Function, dict[str, Any]]] = {}
        self._made: WeakSet[T] = WeakSet()

    @abstractmethod
    def prepare(self, made: T) -> None:
        """Check and set up a broker or app that was just made."""

    @abstractmethod
    def register(self, made: T, function: Function, options: dict[str, Any]) -> None:
        """Register *function*, with its options, with the broker or app *made*. It may be registered there already."""

    def bind(self, function: Function, options: dict[str, Any]) -> None:
        """Register a function with all brokers or apps, now and later. Raises ValueError if its name is taken."""
        function._check_name(self._functions.get(function.name, (function,))[0])
        self._functions[function.name] = function, options
        for made in list(self._made):
            self.register(made, function, options)

    def make(self) -> T:
        """Make another broker or app, with all functions registered."""
        made = self._make()
        self.prepare(made)
        self._made.add(made)
        for function, options in list(self._functions.values()):
            self.register(made, function, options)
        return made

    @functools.cached_property
    def listening(self) -> T:
        """The broker or app that a worker listens on, made on first use."""
        return self.make()
