"""
Tells which objects sync code can't use as they are, so that a twin returns them as twins.

A class with something async is decided by the class alone. An object of any other class is decided by what its attributes lead to: the
groups of calls of an SDK (``client.chat.completions``). Objects that were returned earlier do not change the decision.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import functools
import inspect
import typing
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial, partialmethod
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType, UnionType
from typing import Any, Final, TypeVar

T = TypeVar("T")

_FUNCTIONS: Final = (FunctionType, MethodType, partial)
# Classes whose objects get no twin: sync code uses them as they are, or they are not the caller's to wait for.
_NEVER: Final = (
    type, ModuleType, *_FUNCTIONS, BuiltinFunctionType, asyncio.Future, concurrent.futures.Future, asyncio.AbstractEventLoop,
    BaseException, enum.Enum,
)  # fmt: skip
# How the names of this package's modules begin; derived, because the package may be vendored.
_OURS: Final = __name__.removesuffix("_twins.faces")
# Attributes that mark the classes of dataclasses, pydantic, attrs and msgspec.
_DATA: Final = ("__dataclass_fields__", "__pydantic_fields__", "__attrs_attrs__", "__struct_fields__")


def _by_class(look: Callable[[type], T]) -> Callable[[type], T]:
    """Have *look* look at each class once; what it says is kept as long as the class lives."""
    found: weakref.WeakKeyDictionary[type, T] = weakref.WeakKeyDictionary()

    @functools.wraps(look)
    def known(kind: type) -> T:
        if kind not in found:
            found[kind] = look(kind)
        return found[kind]

    return known


def is_async(fn: Any) -> bool:
    """Tell whether *fn*, or what it wraps, is written as an async function or an async generator."""
    for _ in range(50):
        if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
            return True
        if isinstance(fn, (partial, partialmethod)):
            fn = fn.func
        elif isinstance(fn, (MethodType, classmethod, staticmethod)):
            fn = fn.__func__
        else:
            # Not `getattr`, because an object may have a `__getattr__` that answers to any name.
            fn = inspect.getattr_static(fn, "__wrapped__", None)
            if fn is None:
                break
    return False


def is_never(kind: type) -> bool:
    """Tell whether objects of *kind* never get a twin, whatever attributes they have."""
    return issubclass(kind, _NEVER) or f"{kind.__module__}.".startswith((_OURS, "builtins."))


def opens(kind: type) -> bool:
    """Tell whether objects of *kind* work with `async with` or `async for`."""
    return not is_never(kind) and (hasattr(kind, "__aenter__") or hasattr(kind, "__aiter__"))


def is_data(kind: type) -> bool:
    """Tell whether *kind* is a data class, whose objects sync code uses as they are."""
    return any(hasattr(kind, mark) for mark in _DATA)


@_by_class
def is_faced(kind: type) -> bool:
    """Tell whether *kind* has something async: a public method, `__call__`, `async with` or `async for`."""
    public = (raw for name, raw in members(kind).items() if name == "__call__" or not name.startswith("_"))
    return opens(kind) or (not is_never(kind) and not is_data(kind) and any(map(is_async, public)))


def members(kind: type) -> dict[str, Any]:
    """Return the attributes of the class and its bases by name, without binding them."""
    return {name: raw for base in reversed(kind.__mro__) for name, raw in vars(base).items()}


def leads(value: Any, depth: int = 2) -> bool:
    """
    Tell whether *value* leads to something async, by the annotations of its properties or by the values of its attributes.

    It may be *depth* attributes away: two in `client.beta.threads`, where `client` is the twin.
    """
    kind = type(value)
    if is_never(kind) or is_data(kind):
        return False
    return class_leads(kind) <= depth or any(
        is_async(inner)
        if isinstance(inner, _FUNCTIONS)
        else is_faced(type(inner)) or (depth > 1 and leads(inner, depth - 1))
        for name, inner in _attributes(value, kind)
        if not name.startswith("_")
    )


def _attributes(value: Any, kind: type) -> Iterator[tuple[str, Any]]:
    with suppress(AttributeError):
        # A list, because another thread may add attributes meanwhile.
        yield from list(object.__getattribute__(value, "__dict__").items())
    for name, raw in members(kind).items():
        if isinstance(raw, MemberDescriptorType):
            with suppress(AttributeError):
                yield name, raw.__get__(value)


@_by_class
def class_leads(kind: type) -> int:
    """Return after how many properties, by their annotations, something async is reached, 1 or 2; 99 if it is not."""
    further = (each for getter in _getters(kind) for each in annotated_classes(getter, "return"))
    if _is_near(kind):
        return 1
    return 2 if any(_is_near(each) for each in further if not is_never(each) and not is_data(each)) else 99


def _is_near(kind: type) -> bool:
    for getter in _getters(kind):
        classes = annotated_classes(getter, "return")
        if any(is_faced(each) or wraps(each) for each in classes):
            return True
        if not classes and isinstance(_annotations(getter).get("return"), str) and wraps(kind):
            # The annotation names a class that is imported for type checkers only: `client.with_raw_response`, which wraps the client.
            return True
    return False


def _getters(kind: type) -> list[FunctionType]:
    found = [getter_of(raw) for name, raw in members(kind).items() if not name.startswith("_")]
    return [each for each in found if each is not None]


def wraps(kind: type) -> bool:
    """Tell whether `__init__` of *kind* takes something async: `with_raw_response` wraps its methods as instance attributes."""
    init = vars(kind).get("__init__")
    return isinstance(init, FunctionType) and any(
        is_faced(each) for name in _annotations(init) if name != "return" for each in annotated_classes(init, name)
    )


def getter_of(raw: Any) -> FunctionType | None:
    """Return the function of a property, or of one of the many kinds of cached property; None for anything else."""
    if isinstance(raw, (FunctionType, classmethod, staticmethod, type)) or not hasattr(type(raw), "__get__"):
        return None
    for name in ("fget", "func", "wrapped", "f", "__wrapped__"):
        found = inspect.getattr_static(raw, name, None)
        # The static value may be a slot of the descriptor's class; `getattr` reads the function from it.
        found = getattr(raw, name, None) if found is not None else None
        if isinstance(found, FunctionType):
            return found
    return None


def annotated_classes(fn: FunctionType, name: str) -> tuple[type, ...]:
    annotation = _annotations(fn).get(name)
    try:
        if isinstance(annotation, str):
            annotation = eval(annotation, fn.__globals__)
    except Exception:
        # A name that is imported for type checkers only.
        return ()
    options = typing.get_args(annotation) if is_union(annotation) else (annotation,)
    found = [typing.get_origin(each) or each for each in options]
    return tuple(each for each in found if isinstance(each, type))


def _annotations(fn: FunctionType) -> dict[str, Any]:
    # Imported here, because it would double the time of importing `blocking`.
    from typing_extensions import Format, get_annotations

    # From 3.14 on annotations are evaluated on access, and may use names that are imported for type checkers only.
    return get_annotations(fn, format=Format.FORWARDREF)


def is_union(annotation: Any) -> bool:
    return isinstance(annotation, UnionType) or typing.get_origin(annotation) is typing.Union
