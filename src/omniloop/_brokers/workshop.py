"""Makes what an engine listens and sends on, a broker or an app of its library, and registers the functions with each."""

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
    Each process makes its own, and so does each fork; a function that is defined later is registered with all that live.

    Args:
        make: The user's function.
        what: It makes, for the error.
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
        """Look at one that was just made."""

    @abstractmethod
    def register(self, made: T, function: Function, options: dict[str, Any]) -> None:
        """Register a function, with options of its own, with one that was made; perhaps not for the first time."""

    def bind(self, function: Function, options: dict[str, Any]) -> None:
        """Register a function with all; ValueError if its name is taken."""
        function._check_name(self._functions.get(function.name, (function,))[0])
        self._functions[function.name] = function, options
        for made in list(self._made):
            self.register(made, function, options)

    def make(self) -> T:
        """Another one, for this process."""
        made = self._make()
        self.prepare(made)
        self._made.add(made)
        for function, options in list(self._functions.values()):
            self.register(made, function, options)
        return made

    @functools.cached_property
    def listening(self) -> T:
        """The one that a worker listens on."""
        return self.make()
