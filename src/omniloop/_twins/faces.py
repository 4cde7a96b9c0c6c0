"""
Tells which objects sync code can't use as they are, so that a twin returns them as twins.

A class with something async is decided by the class alone. An object of any other class is decided by what its attributes lead to: the
groups of calls of an SDK (``client.chat.completions``). Objects that were returned earlier do not change the decision.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import inspect
import typing
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import partial, partialmethod
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType, UnionType
from typing import Any, Final

_FUNCTIONS: Final = (FunctionType, MethodType, partial)
# Classes whose objects get no twin: sync code uses them as they are, or they are not the caller's to wait for.
_NEVER: Final = (
    type, ModuleType, *_FUNCTIONS, BuiltinFunctionType, asyncio.Future, concurrent.futures.Future, asyncio.AbstractEventLoop,
    BaseException, enum.Enum,
)  # fmt: skip
# Attributes that mark the classes of dataclasses, pydantic, attrs and msgspec.
_DATA: Final = ("__dataclass_fields__", "__pydantic_fields__", "__attrs_attrs__", "__struct_fields__")
# How many attributes away something async may be: `client.beta.threads`, where `client` is the twin.
_DEPTH: Final = 2

_faced: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()
_leading: weakref.WeakKeyDictionary[type, int] = weakref.WeakKeyDictionary()


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
    return issubclass(kind, _NEVER) or str(kind.__module__).partition(".")[0] in {"omniloop", "builtins"}


def opens(kind: type) -> bool:
    """Tell whether objects of *kind* work with `async with` or `async for`."""
    return not is_never(kind) and (hasattr(kind, "__aenter__") or hasattr(kind, "__aiter__"))


def is_data(kind: type) -> bool:
    """Tell whether *kind* is a data class, whose objects sync code uses as they are."""
    return any(hasattr(kind, mark) for mark in _DATA)


def is_faced(kind: type) -> bool:
    """Tell whether *kind* has something async: a public method, `__call__`, `async with` or `async for`."""
    found = _faced.get(kind)
    if found is None:
        found = opens(kind) or (
            not is_never(kind)
            and not is_data(kind)
            and any(
                (name == "__call__" or not name.startswith("_")) and is_async(raw)
                for name, raw in members(kind).items()
            )
        )
        _faced[kind] = found
    return found


def members(kind: type) -> dict[str, Any]:
    """Return the attributes of the class and its bases by name, without binding them."""
    return {name: raw for base in reversed(kind.__mro__) for name, raw in vars(base).items()}


def leads(value: Any, depth: int = _DEPTH) -> bool:
    """Tell whether *value* leads to something async, by the annotations of its properties or by the values of its attributes."""
    kind = type(value)
    if is_never(kind) or is_data(kind):
        return False
    if class_leads(kind) <= depth:
        return True
    for name, inner in _attributes(value, kind):
        if name.startswith("_"):
            continue
        if isinstance(inner, _FUNCTIONS):
            if is_async(inner):
                return True
        elif is_faced(type(inner)) or (depth > 1 and leads(inner, depth - 1)):
            return True
    return False


def _attributes(value: Any, kind: type) -> Iterator[tuple[str, Any]]:
    with suppress(AttributeError):
        # A list, because another thread may add attributes meanwhile.
        yield from list(object.__getattribute__(value, "__dict__").items())
    for name, raw in members(kind).items():
        if isinstance(raw, MemberDescriptorType):
            with suppress(AttributeError):
                yield name, raw.__get__(value)


def class_leads(kind: type, depth: int = _DEPTH) -> int:
    """Return after how many properties, by their annotations, something async is reached; more than *depth* if it is not."""
    found = _leading.get(kind) if depth == _DEPTH else None
    if found is None:
        found = min(
            (_distance(kind, raw, depth) for name, raw in members(kind).items() if not name.startswith("_")), default=99
        )
        if depth == _DEPTH:
            _leading[kind] = found
    return found


def _distance(kind: type, raw: Any, depth: int) -> int:
    getter = getter_of(raw)
    if getter is None:
        return 99
    classes = annotated_classes(getter, "return")
    if any(is_faced(each) or wraps(each) for each in classes):
        return 1
    if not classes and isinstance(_annotations(getter).get("return"), str) and wraps(kind):
        # The annotation names a class that is imported for type checkers only: `client.with_raw_response`, which wraps the client.
        return 1
    if depth == 1:
        return 99
    return min(
        (1 + class_leads(each, depth - 1) for each in classes if not is_never(each) and not is_data(each)), default=99
    )


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
