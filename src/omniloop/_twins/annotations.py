"""Turns annotations of async code into those of its sync face: `Awaitable[T]` becomes `T`, `AsyncIterator[T]` becomes `Iterator[T]`."""

from __future__ import annotations

import ast
import collections.abc
import contextlib
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE
from typing import Any

# The sync name for each async one, by the last part of a dotted name, from whatever module.
SYNC_NAMES = {
    "AsyncIterator": "Iterator",
    "AsyncIterable": "Iterable",
    "AsyncGenerator": "Generator",
    "AbstractAsyncContextManager": "AbstractContextManager",
    "AsyncContextManager": "AbstractContextManager",
    "_AsyncGeneratorContextManager": "AbstractContextManager",
}
# Awaitable types, and the index of the parameter that awaiting returns.
AWAITED = {"Awaitable": 0, "Coroutine": 2, "Future": 0, "Task": 0, "CoroutineType": 2}


def last_name(node: ast.AST) -> str:
    """Return `c` for a name `c`, for `a.b.c` and for a call `b.c(…)`; the empty string for other nodes."""
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def parsed(annotation: ast.expr) -> ast.expr:
    """Parse an annotation in quotes; return any other annotation as it is."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        with contextlib.suppress(SyntaxError):
            return ast.parse(annotation.value, mode="eval").body
    return annotation


def parts_of(annotation: ast.expr | None) -> list[ast.expr]:
    """Return the parts in the brackets of an annotation."""
    if not isinstance(annotation, ast.Subscript):
        return []
    return list(annotation.slice.elts) if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]


class SyncFace(ast.NodeTransformer):
    """Makes the sync face's annotation from an async one. It returns new nodes and leaves the given ones unchanged."""

    # False only replaces names, and keeps async types.
    sync = True

    def named(self, node: ast.Name | ast.Attribute) -> ast.expr:
        """Return the node for a name, or a dotted name."""
        return node

    def standard(self, name: str) -> ast.expr:
        """Return the node for a name of the standard library."""
        return ast.Name(name)

    def called(self, node: ast.Subscript) -> ast.expr:
        """Return the node for a `Callable[…]`. It is kept, because the callable runs on the loop and gets the originals."""
        return node

    def generic_visit(self, node: ast.AST) -> Any:
        # Makes a new node; changing a `copy.deepcopy` takes several times as long.
        made = node.__new__(type(node))
        vars(made).update({name: self._visited(value) for name, value in vars(node).items()})
        return made

    def _visited(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._visited(each) for each in value]
        return self.visit(value) if isinstance(value, ast.AST) else value

    def visit_Name(self, node: ast.Name | ast.Attribute) -> ast.expr:
        name = last_name(node)
        return self.standard(SYNC_NAMES[name]) if self.sync and name in SYNC_NAMES else self.named(node)

    visit_Attribute = visit_Name  # noqa: N815

    def visit_Constant(self, node: ast.Constant) -> Any:
        inner = parsed(node)
        return node if inner is node else self.visit(inner)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        name, several = last_name(node.value), isinstance(node.slice, ast.Tuple)
        if name == "Callable":
            return self.called(node)
        parts = parts_of(node)
        if self.sync and len(parts) > AWAITED.get(name, len(parts)):
            return self.visit(parts[AWAITED[name]])
        # In `Literal` and `Annotated`, quoted parts are values and not annotations.
        types = {"Literal": 0, "Annotated": 1}.get(name, len(parts))
        for at, each in enumerate(parts):
            if at < types or not isinstance(each, ast.Constant):
                parts[at] = self.visit(each)
        if self.sync and name == "AsyncGenerator":
            # `Generator` has three parameters. The missing ones are None: the sent value by default, and the return value always.
            parts += [ast.Constant(None)] * (3 - len(parts))
        return ast.Subscript(self.visit(node.value), ast.Tuple(parts) if several or len(parts) > 1 else parts[0])


def sync_signature(fn: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of *fn* on the sync face."""
    if isinstance(fn, functools.partialmethod):
        return inspect.signature(fn.func)
    signature = inspect.signature(fn)
    returned = signature.return_annotation
    if _is_manager_function(fn):
        return signature.replace(return_annotation=_manager_of(returned))
    flags = getattr(getattr(fn, "__code__", None), "co_flags", 0)
    # A coroutine function's annotation already names the awaited value; it is kept, unless that is an async type itself.
    is_plain = flags & CO_COROUTINE and not flags & CO_ASYNC_GENERATOR and "Async" not in str(returned)
    return (
        signature if returned is signature.empty or is_plain else signature.replace(return_annotation=_sync(returned))
    )


def _is_manager_function(fn: object) -> bool:
    """Tell whether *fn* was made by `@asynccontextmanager`."""
    return (
        getattr(getattr(fn, "__code__", None), "co_filename", None) == contextlib.__file__
        and inspect.isasyncgenfunction(inspect.unwrap(fn))  # type: ignore[arg-type]
    )


def _manager_of(annotation: Any) -> Any:
    """Turn the decorated function's `AsyncIterator[T]` into `AbstractContextManager[T]`."""
    if isinstance(annotation, str):
        item = [ast.unparse(SyncFace().visit(each)) for each in parts_of(parsed(ast.Constant(annotation)))[:1]]
        return f"AbstractContextManager[{item[0]}]" if item else "AbstractContextManager"
    manager: Any = contextlib.AbstractContextManager
    args = typing.get_args(annotation)
    return manager[args[0]] if args else manager


def _sync(annotation: Any) -> Any:
    if isinstance(annotation, str):
        node = ast.Constant(annotation)
        return annotation if parsed(node) is node else ast.unparse(SyncFace().visit(node))
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {types.UnionType, typing.Union}:
        return functools.reduce(operator.or_, map(_sync, args))
    name = getattr(origin or annotation, "__name__", "")
    if len(args) > AWAITED.get(name, len(args)):
        return args[AWAITED[name]]
    if name not in SYNC_NAMES:
        return annotation
    new = getattr(collections.abc, SYNC_NAMES[name], None) or getattr(contextlib, SYNC_NAMES[name])
    if name == "AsyncGenerator" and args:
        args = (*args, *[type(None)] * (3 - len(args)))
    return new[args] if args else new
