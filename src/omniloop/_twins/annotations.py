"""Turns the annotations of async code into those of its sync face: what is awaited is there, what is iterated over is an iterator."""

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


def last_name(node: ast.AST) -> str:
    """`c` of a name `c`, of `a.b.c` and of a call `b.c(…)`; else nothing."""
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def parsed(annotation: ast.expr) -> ast.expr:
    """What is written in an annotation in quotes, or the annotation itself."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        with contextlib.suppress(SyntaxError):
            return ast.parse(annotation.value, mode="eval").body
    return annotation


def parts_of(annotation: ast.expr | None) -> list[ast.expr]:
    """What stands in the brackets of an annotation."""
    if not isinstance(annotation, ast.Subscript):
        return []
    return list(annotation.slice.elts) if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]


class SyncFace(ast.NodeTransformer):
    """Makes of an annotation that of the sync face; what it is given stays as it is."""

    # Or only with other names.
    sync = True

    def named(self, node: ast.Name | ast.Attribute) -> ast.expr:
        """What is written for a name, or a dotted name."""
        return node

    def standard(self, name: str) -> ast.expr:
        """What is written for one of the standard library's."""
        return ast.Name(name)

    def called(self, node: ast.Subscript) -> ast.expr:
        """What is written for a `Callable[…]`: it runs on the loop, and is given the originals."""
        return node

    def generic_visit(self, node: ast.AST) -> Any:
        # A new node, several times faster than a `copy.deepcopy` that may be changed.
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
        # What is in quotes there is a value.
        types = {"Literal": 0, "Annotated": 1}.get(name, len(parts))
        for at, each in enumerate(parts):
            if at < types or not isinstance(each, ast.Constant):
                parts[at] = self.visit(each)
        if self.sync and name == "AsyncGenerator":
            # What it is sent is None by default; what it returns is nothing.
            parts += [ast.Constant(None)] * (3 - len(parts))
        return ast.Subscript(self.visit(node.value), ast.Tuple(parts) if several or len(parts) > 1 else parts[0])


def sync_signature(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature of *fn* as the sync face has it."""
    if isinstance(fn, functools.partialmethod):
        return inspect.signature(fn.func)
    signature = inspect.signature(fn)
    returned = signature.return_annotation
    if _is_manager_function(fn):
        return signature.replace(return_annotation=_manager_of(returned))
    flags = getattr(getattr(fn, "__code__", None), "co_flags", 0)
    # What an async function returns is as it is, unless it says itself that it is async.
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
    """Of `AsyncIterator[T]`, which the decorated function yields, `AbstractContextManager[T]`."""
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
