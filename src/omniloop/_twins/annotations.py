"""Turns the annotations of async code into those of its sync face: what is awaited is there, what is iterated over is an iterator."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Mapping
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE
from typing import Any

# By the name's last part, in whatever module it is found; what is named instead.
SYNC_NAMES = {
    "AsyncIterator": "Iterator",
    "AsyncIterable": "Iterable",
    "AsyncGenerator": "Generator",
    "AbstractAsyncContextManager": "AbstractContextManager",
    "AsyncContextManager": "AbstractContextManager",
    "_AsyncGeneratorContextManager": "AbstractContextManager",
}
# What is awaited, and which of its parameters comes out.
AWAITED = {"Awaitable": 0, "Coroutine": 2, "Future": 0, "Task": 0, "CoroutineType": 2}


class SyncFace(ast.NodeTransformer):
    """Rewrites an annotation; *names* maps further names, those of classes that have twins."""

    def __init__(self, names: Mapping[str, str] = {}) -> None:
        self._names = names
        # Those that were written, and have to be imported.
        self.used: set[str] = set()

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._named(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._named(node, node.attr)

    def _named(self, node: ast.expr, name: str) -> ast.expr:
        written = ast.unparse(node)
        if written in self._names:
            return ast.parse(self._names[written], mode="eval").body
        if name in SYNC_NAMES:
            self.used.add(SYNC_NAMES[name])
            return ast.Name(SYNC_NAMES[name])
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):
            try:
                inner = ast.parse(node.value, mode="eval").body
            except SyntaxError:
                return node
            if isinstance(inner, (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp)):
                return typing.cast("ast.expr", self.visit(inner))
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        if name == "Literal":
            return node
        parts = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Callable":
            # What it is given is the original's, and it runs on the loop.
            return node
        if name in AWAITED and len(parts) > AWAITED[name]:
            return typing.cast("ast.expr", self.visit(parts[AWAITED[name]]))
        parts = [self.visit(part) for part in parts]
        value = self.visit(node.value)
        if name == "AsyncGenerator":
            # What it is sent is None by default; what it returns is nothing.
            parts = [*parts, *[ast.Constant(None)] * (3 - len(parts))]
        return ast.Subscript(
            value, ast.Tuple(parts) if len(parts) > 1 or isinstance(node.slice, ast.Tuple) else parts[0]
        )


def sync_annotation(written: str, names: Mapping[str, str] = {}) -> str:
    """The annotation *written* as the sync face has it."""
    try:
        node = ast.parse(written, mode="eval").body
    except SyntaxError:
        return written
    return ast.unparse(ast.fix_missing_locations(SyncFace(names).visit(node)))


def sync_signature(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature of *fn* as the sync face has it."""
    if isinstance(fn, functools.partialmethod):
        return inspect.signature(fn.func)
    signature = inspect.signature(fn)
    returned = signature.return_annotation
    if is_manager_function(fn):
        return signature.replace(return_annotation=_manager_of(returned))
    flags = getattr(getattr(fn, "__code__", None), "co_flags", 0)
    if returned is signature.empty or (
        flags & CO_COROUTINE and not flags & CO_ASYNC_GENERATOR and not _is_async(returned)
    ):
        return signature
    return signature.replace(return_annotation=_sync(returned))


def is_manager_function(fn: object) -> bool:
    """Tell whether *fn* was made by `@asynccontextmanager`."""
    return (
        getattr(getattr(fn, "__code__", None), "co_filename", None) == contextlib.__file__
        and inspect.isasyncgenfunction(inspect.unwrap(fn))  # type: ignore[arg-type]
    )


def _manager_of(annotation: Any) -> Any:
    """Of `AsyncIterator[T]`, which the decorated function yields, `AbstractContextManager[T]`."""
    if isinstance(annotation, str):
        node = ast.parse(annotation, mode="eval").body
        if isinstance(node, ast.Subscript):
            first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
            return f"AbstractContextManager[{sync_annotation(ast.unparse(first))}]"
        return "AbstractContextManager"
    args = typing.get_args(annotation)
    manager: Any = contextlib.AbstractContextManager
    return manager[args[0]] if args else manager


def _is_async(annotation: object) -> bool:
    return "Async" in str(annotation)


def _sync(annotation: Any) -> Any:
    if isinstance(annotation, str):
        return sync_annotation(annotation)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        return functools.reduce(operator.or_, map(_sync, args))
    name = getattr(origin or annotation, "__name__", "")
    if name in AWAITED and origin is not None and len(args) > AWAITED[name]:
        return args[AWAITED[name]]
    if name in SYNC_NAMES:
        import collections.abc

        new: Any = getattr(collections.abc, SYNC_NAMES[name], None) or getattr(contextlib, SYNC_NAMES[name])
        if name == "AsyncGenerator" and args:
            args = (*args, *[type(None)] * (3 - len(args)))
        return new[args] if args else new
    return annotation
