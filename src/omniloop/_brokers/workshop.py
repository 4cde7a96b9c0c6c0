"""An engine whose brokers or apps are made by a function of the user; all functions are registered with each of them."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar
from weakref import WeakSet

from .handover import Engine, Function, Way

T = TypeVar("T")


class Workshop(Engine, Generic[T]):
    """
    Calls the user's function for each broker or app that is needed, so that each process, and each fork, has its own.

    A function that is defined later is registered with all brokers or apps that still exist.

    Args:
        make: The user's function, which makes a broker or an app.
        what: The name of what *make* makes, for the error.
    """

    def __init__(self, make: Callable[[], T], what: str, at_once: int, waiting: int) -> None:
        if not callable(make):
            raise TypeError(
                f"{make!r}: give a function that makes {what}, so that each process, and each fork, makes its own."
            )
        self.at_once = at_once
        self.waiting = waiting
        self._make = make
        # `_with` makes shallow copies: they share everything but the options.
        self._options: dict[str, Any] = {}
        self._ways: dict[int, Way] = {}
        self._functions: dict[str, tuple[Function, Callable[..., Any], dict[str, Any]]] = {}
        self._made: WeakSet[T] = WeakSet()
        # The broker or app that a worker listens on, made on first use: one at the most.
        self._listened_on: dict[None, T] = {}

    def _with(self, options: dict[str, Any]) -> Self:
        other = copy.copy(self)
        other._options = {**self._options, **options}
        return other

    @abstractmethod
    def _prepare(self, made: T) -> None:
        """Check and set up a broker or app that was just made."""

    @abstractmethod
    def _body(self, function: Function) -> Callable[..., Any]:
        """What a worker is to call for *function*."""

    @abstractmethod
    def _register(self, made: T, name: str, body: Callable[..., Any], options: dict[str, Any]) -> None:
        """Register *body* with the broker or app *made*. An earlier definition may be registered there already."""

    def bind(self, function: Function) -> None:
        function._check_name(self._functions.get(function.name, (function,))[0])
        entry = self._functions[function.name] = function, self._body(function), self._options
        for made in list(self._made):
            self._register(made, function.name, *entry[1:])

    def _listening(self) -> T:
        if None not in self._listened_on:
            # Of two threads that come here at once both get the first.
            self._listened_on.setdefault(None, self._fresh())
        return self._listened_on[None]

    def _fresh(self) -> T:
        """Make another broker or app, with all functions registered."""
        made = self._make()
        self._prepare(made)
        self._made.add(made)
        for name, (_, body, options) in list(self._functions.items()):
            self._register(made, name, body, options)
        return made
