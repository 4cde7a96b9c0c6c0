"""
Writes the types of a module's sync twins as a stub beside it: `python -m omniloop stubs my_sdk.client`.

A type checker can't compute the type of ``blocking(AsyncClient)``. So the module is imported, to see which of its names are twins,
and their classes are written from the source of the originals: signatures, overloads and docstrings are kept, what is awaited is
there, and where an original has a twin in the module the twin is named. Everything else in the module is written as it stands.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import copy
import difflib
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar, get_args, get_origin

from . import faces
from .annotations import AWAITED, SYNC_NAMES
from .twins import Options, SyncCall, Twin, TwinType, make_class

Function = ast.FunctionDef | ast.AsyncFunctionDef
_Node = TypeVar("_Node", bound=ast.AST)

# A method of a subclass may take more than the one that it overrides, as the checkers allow for functions, and not for attributes.
_HEADER = """\
# Written by `python -m omniloop stubs {}`: change the source, and write it again.
# mypy: disable-error-code="override,misc,type-arg,type-var,overload-overlap"
# pyright: reportIncompatibleVariableOverride=false, reportIncompatibleMethodOverride=false, reportOverlappingOverload=false, reportInvalidTypeVarUse=false
"""


def _copied(node: _Node) -> _Node:
    """A copy of a tree, several times faster than `copy.deepcopy`, which was half of the command's time."""
    made = node.__new__(type(node))
    vars(made).update({name: _copied_value(value) for name, value in vars(node).items()})
    return made


def _copied_value(value: Any) -> Any:
    if isinstance(value, ast.AST):
        return _copied(value)
    return [_copied_value(item) for item in value] if isinstance(value, list) else value


def main(args: list[str]) -> int:
    """Write the stubs, or only check them; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m omniloop stubs", description="Write the types of the sync twins in a module, as a .pyi beside it."
    )
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="as it is imported: my_sdk.client")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a stub is missing or stale")
    parser.add_argument(
        "--output", metavar="FOLDER", help="write there, as a tree of packages, instead of beside the modules"
    )
    chosen = parser.parse_args(args)
    # As `python my_script.py` has it, and `python -m` in the current folder.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    stale = 0
    for name in chosen.modules:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            print(f"{name} can't be imported: {error}", file=sys.stderr)
            return 2
        try:
            text = stub(module)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        path = _path(module, chosen.output)
        if not chosen.check:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            print(f"wrote {path}")
            continue
        old = _read(path)
        if not _say_the_same(old, text):
            stale = 1
            print(f"{path} is {'stale' if old else 'missing'}. Run: python -m omniloop stubs {name}", file=sys.stderr)
            sys.stderr.writelines(
                difflib.unified_diff(old.splitlines(True), text.splitlines(True), path, f"{name}, as it is now")
            )
    return stale


def _path(module: ModuleType, folder: str | None) -> str:
    source = inspect.getsourcefile(module)
    assert source is not None
    if folder is None:
        return os.path.splitext(source)[0] + ".pyi"
    parts = module.__name__.split(".")
    if os.path.basename(source) == "__init__.py":
        parts.append("__init__")
    return os.path.join(folder, *parts) + ".pyi"


def _say_the_same(old: str, new: str) -> bool:
    """Tell whether two stubs differ in no more than what a formatter may change."""
    try:
        return _meaning(old) == _meaning(new)
    except SyntaxError:
        return False


def _meaning(text: str) -> tuple[set[tuple[str, str, str]], str]:
    tree = ast.parse(text)
    imports: set[tuple[str, str, str]] = set()
    rest: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            imports |= {("", alias.name, alias.asname or "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            imports |= {(base, alias.name, alias.asname or "") for alias in node.names}
        else:
            rest.append(node)
    for inner in ast.walk(tree):
        body = getattr(inner, "body", None)
        if isinstance(body, list) and len(body) > 1 and ast.get_docstring(inner) is not None:  # type: ignore[arg-type]
            inner.body = [node for node in body if ast.unparse(node) != "..."]  # type: ignore[attr-defined]
            first = inner.body[0].value  # type: ignore[attr-defined]
            first.value = inspect.cleandoc(first.value)
        elif isinstance(body, list) and body and ast.get_docstring(inner) is not None:  # type: ignore[arg-type]
            first = body[0].value
            first.value = inspect.cleandoc(first.value)
    return imports, ast.dump(ast.Module(rest, []))


def _without_unused_imports(body: list[ast.stmt]) -> list[ast.stmt]:
    """What a stub imports is seen by others only as `from x import y as y`; else it is for the stub itself."""
    used = {node.id for part in body for node in ast.walk(part) if isinstance(node, ast.Name)}
    for part in body:
        if isinstance(part, ast.Assign) and getattr(part.targets[0], "id", "") == "__all__":
            used |= {
                node.value for node in ast.walk(part) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
    kept: list[ast.stmt] = []
    for part in body:
        if isinstance(part, (ast.Import, ast.ImportFrom)):
            names = [
                alias
                for alias in part.names
                if alias.name == "*" or alias.asname == alias.name or (alias.asname or alias.name.split(".")[0]) in used
            ]
            if names:
                made = copy.copy(part)
                made.names = names
                kept.append(made)
        else:
            kept.append(part)
    return kept


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def stub(module: ModuleType) -> str:
    """The text of the stub for *module*; ValueError if there is no twin in it, or no source."""
    return _Stub(module).text()


# --- what is read -----------------------------------------------------------------------------------------------------


@functools.cache
def _tree(module: str) -> ast.Module | None:
    found = sys.modules.get(module)
    try:
        return ast.parse(inspect.getsource(found)) if found is not None else None
    except (OSError, TypeError, SyntaxError):
        return None


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements, also of the branches of an `if` or `try`."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _flat(node.body)
            yield from _flat(node.orelse)
        elif isinstance(node, ast.Try):
            yield from _flat(node.body)
            for handler in node.handlers:
                yield from _flat(handler.body)
        else:
            yield node


@functools.cache
def _home(cls: type) -> str:
    """The module in which *cls* is written: libraries set the `__module__` of what they show to their own name."""
    name = cls.__module__
    tree = _tree(name)
    if tree is not None and any(
        isinstance(node, ast.ClassDef) and node.name == cls.__name__ for node in _flat(tree.body)
    ):
        return name
    for member in vars(cls).values():
        found: Any = getattr(inspect.unwrap(member) if callable(member) else member, "__globals__", None)
        if found is not None and found.get("__name__") in sys.modules and _tree(found["__name__"]) is not None:
            home: str = found["__name__"]
            return home
    return name


def _class_node(cls: type) -> ast.ClassDef | None:
    tree = _tree(_home(cls))
    body: list[ast.stmt] = [] if tree is None else tree.body
    found = None
    for part in cls.__qualname__.split("."):
        if part == "<locals>":
            return None
        found = next((node for node in _flat(body) if isinstance(node, ast.ClassDef) and node.name == part), None)
        if found is None:
            return None
        body = found.body
    return found


@functools.cache
def _imports(module: str) -> dict[str, tuple[str, str | None]]:
    """For each name that *module* imports, also for types only: from where, and what; None for a module itself."""
    tree = _tree(module)
    if tree is None:
        return {}
    package = module if hasattr(sys.modules[module], "__path__") else module.rpartition(".")[0]
    found: dict[str, tuple[str, str | None]] = {}
    for node in _flat(tree.body if tree else []):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0],
                    None,
                )
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                found[alias.asname or alias.name] = (base, alias.name)
    return found


def _resolved(module: str, node: ast.expr) -> Any:
    """What a name or dotted name in *module* stands for, also where it is imported for types only; None if that can't be told."""
    if isinstance(node, ast.Attribute):
        outer = _resolved(module, node.value)
        return None if outer is None else getattr(outer, node.attr, None)
    if not isinstance(node, ast.Name):
        return None
    found = vars(sys.modules[module]).get(node.id)
    origin = _imports(module).get(node.id)
    if found is None and origin is not None:
        try:
            found = importlib.import_module(origin[0])
            if origin[1] is not None:
                # A name of the module, or a module in the package.
                found = getattr(found, origin[1], None) or importlib.import_module(f"{origin[0]}.{origin[1]}")
        except Exception:
            return None
    return found


# What stands for anything of its shape: its sync face has a name of its own.
_ABSTRACT = {"typing", "collections.abc", "contextlib", "abc"}


def _needs_twin(kind: Any, depth: int = 2) -> bool:
    """Tell whether what is of the class *kind* comes out as a twin, as far as annotations and its `__init__` tell."""
    if not isinstance(kind, type) or faces.is_never(kind) or kind.__module__ in _ABSTRACT:
        return False
    if faces.is_faced(kind):
        return True
    if faces.is_data(kind):
        return False
    if faces.class_leads(kind) <= depth or faces.wraps(kind):
        return True
    node = _class_node(kind)
    return (
        node is not None
        and depth > 0
        and any(
            annotation is not None and _needs_twin(_resolved(_home(kind), _plain(annotation)), depth - 1)
            for _, annotation in _instance_attributes(node)
        )
    )


def _plain(annotation: ast.expr) -> ast.expr:
    annotation = _parsed(annotation) or annotation
    if isinstance(annotation, ast.Call):
        return annotation.func
    return annotation.value if isinstance(annotation, ast.Subscript) else annotation


@functools.cache
def _dotted(module: str) -> set[str]:
    """What *module* imports as `import a.b.c`."""
    tree = _tree(module)
    nodes = [node for node in _flat(tree.body if tree else []) if isinstance(node, ast.Import)]
    return {alias.name for node in nodes for alias in node.names if "." in alias.name and alias.asname is None}


def _docstring(node: ast.ClassDef | Function | ast.Module) -> list[ast.stmt]:
    return [node.body[0]] if ast.get_docstring(node, clean=False) is not None else []


def _yields(node: Function) -> bool:
    """Tell whether it is a generator: whether it yields, and not only a function in it."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            waiting.extend(ast.iter_child_nodes(inner))
    return False


def _without_private(node: ast.ClassDef) -> ast.ClassDef:
    """For what nobody has asked for: what is public, and what Python itself calls."""
    made = copy.copy(node)
    made.body = [
        inner for inner in node.body
        if not isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)) or not re.match("_(?!_)", inner.name)
    ]  # fmt: skip
    return made


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


# --- what is written --------------------------------------------------------------------------------------------------


class _Stub:
    def __init__(self, module: ModuleType) -> None:
        self.module = module
        tree = _tree(module.__name__)
        if tree is None:
            raise ValueError(f"There is no source of {module.__name__} to read.")
        self.tree = tree
        # The name in this module of each twin, by its original.
        self.twins: dict[type, str] = {}
        for name, value in vars(module).items():
            if isinstance(value, TwinType) and value is not Twin:
                self.twins.setdefault(value._omniloop_original, name)
        functions = [value for value in vars(module).values() if isinstance(value, SyncCall)]
        if not self.twins and not functions:
            raise ValueError(f"There is no twin in {module.__name__}. Name the module in which blocking() is called.")
        # What has to be imported besides: the local name by origin.
        self.needed: dict[tuple[str, str | None], str] = {}
        self.taken = {*vars(module), *dir(builtins), *_imports(module.__name__)}
        self.dotted: set[str] = set()
        # What comes out of the twins as twins of which the module has no name: the options, and the name here.
        self.nested: dict[type, tuple[Any, str]] = {}
        self.unwritten: list[type] = []
        # Where what goes in may be the original or its twin, if there is one: what stands there, and the class.
        self.either: dict[str, tuple[ast.expr, type]] = {}
        self.self_variable: str | None = None

    def text(self) -> str:
        body = [out for node in self.tree.body for out in self.statement(node)]
        while self.unwritten:
            kind = self.unwritten.pop(0)
            options, local = self.nested[kind]
            body += self.twin(local, make_class(kind, options), None)
        body = [_Either(self).visit(node) for node in body]
        docstring = _docstring(self.tree)
        body = body[len(docstring) :]
        if self.self_variable is not None:
            variable = ast.Call(self.need("typing", "TypeVar"), [ast.Constant(self.self_variable)], [])
            first = next(at for at, node in enumerate(body) if not isinstance(node, (ast.Import, ast.ImportFrom)))
            body.insert(first, ast.Assign([ast.Name(self.self_variable)], variable))
        futures = [node for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        body = [node for node in body if node not in futures]
        plain = {module: local for (module, name), local in self.needed.items() if name is None}
        plain |= {each: each for each in self.dotted}
        imports: list[ast.stmt] = [
            ast.Import([ast.alias(module, None if local == module else local)])
            for module, local in sorted(plain.items())
        ]
        named: dict[str, list[ast.alias]] = {}
        for (module, name), local in sorted(self.needed.items(), key=str):
            if name is not None:
                named.setdefault(module, []).append(ast.alias(name, None if local == name else local))
        imports += [ast.ImportFrom(module, aliases, 0) for module, aliases in named.items()]
        tree = ast.Module([*docstring, *futures, *imports, *_without_unused_imports(body)], [])
        lines = ast.unparse(ast.fix_missing_locations(tree))
        # As formatters have it in a stub.
        lines = re.sub(r":\n +\.\.\.$", ": ...", lines, flags=re.MULTILINE)
        return _HEADER.format(self.module.__name__) + lines + "\n"

    def need(self, module: str, name: str | None) -> ast.Name:
        """The local name of what is imported from *module*; of the module itself for None."""
        mine = _imports(self.module.__name__)
        for local, origin in mine.items():
            if origin == (module, name):
                return ast.Name(local)
        if (module, name) not in self.needed:
            self.needed[module, name] = self.free(name or module.partition(".")[0])
        return ast.Name(self.needed[module, name])

    def nested_name(self, kind: type, options: Any) -> str | None:
        """The name of the twin of *kind*, which comes out of a twin with these options; None if it comes out as it is."""
        if kind in self.twins:
            return self.twins[kind]
        if kind not in self.nested:
            if options.leaves_alone(kind) or not _needs_twin(kind) or not (options.nested or faces.opens(kind)):
                return None
            if _class_node(kind) is None:
                return None
            self.nested[kind] = options, self.free(f"_{kind.__name__.lstrip('_')}")
            self.unwritten.append(kind)
        return self.nested[kind][1]

    def free(self, name: str) -> str:
        while name in self.taken:
            name = f"_{name}"
        self.taken.add(name)
        return name

    def one_or_the_other(self, plain: ast.expr, kind: type) -> ast.expr:
        """For what goes in: the original, or its twin, if one comes out somewhere."""
        mark = f"@{len(self.either)}"
        self.either[mark] = plain, kind
        return ast.Name(mark)

    def variable_for_self(self) -> ast.Name:
        if self.self_variable is None:
            self.self_variable = self.free("_Self")
        return ast.Name(self.self_variable)

    # --- statements of the module -------------------------------------------------------------------------------------

    def statement(self, node: ast.stmt) -> list[ast.stmt]:
        value: Any
        match node:
            case ast.Import() | ast.ImportFrom():
                return [node]
            case ast.If():
                body = [out for inner in node.body for out in self.statement(inner)]
                orelse = [out for inner in node.orelse for out in self.statement(inner)]
                return [ast.If(node.test, body or [ast.Pass()], orelse)]
            case ast.Try():
                return [out for inner in node.body for out in self.statement(inner)]
            case ast.ClassDef():
                value = vars(self.module).get(node.name)
                if isinstance(value, TwinType):
                    return self.twin(node.name, value, node)
                return [self.plain_class(node)]
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return [self.plain_function(node, self.module.__name__)]
            case ast.AnnAssign(target=ast.Name()):
                return [ast.AnnAssign(node.target, node.annotation, self.kept(node.value), 1)]
            case ast.Assign(targets=[ast.Name(name)]):
                value = vars(self.module).get(name)
                if isinstance(value, TwinType):
                    return self.twin(name, value, None)
                if isinstance(value, SyncCall):
                    return self.function(name, value)
                return self.assignment(name, value, node)
            case ast.Expr(ast.Constant(str())):
                return [node]
            case _ if isinstance(node, getattr(ast, "TypeAlias", ())):
                return [node]
        return []

    def kept(self, value: ast.expr | None) -> ast.expr | None:
        """The value of an annotated name, where a stub needs it: that of a `TypeAlias`, and any as `...`."""
        return value if isinstance(value, (ast.Subscript, ast.BinOp)) else None

    def assignment(self, name: str, value: Any, node: ast.Assign) -> list[ast.stmt]:
        written = node.value
        if name == "__all__" or (name.startswith("__") and name.endswith("__") and isinstance(written, ast.Constant)):
            return [node]
        if isinstance(written, ast.Call) and _last_name(written) in {
            "TypeVar", "ParamSpec", "TypeVarTuple", "NewType", "namedtuple", "NamedTuple", "TypedDict", "Enum",
        }:  # fmt: skip
            return [node]
        if isinstance(written, (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp)) and (
            isinstance(value, (type, ModuleType)) or get_origin(value) is not None or callable(value)
        ):
            # An alias.
            return [node]
        return [ast.AnnAssign(ast.Name(name), self.type_of(value), None, 1)]

    def type_of(self, value: Any) -> ast.expr:
        kind = type(value)
        if value is None:
            return self.need("typing", "Any")
        if kind.__module__ == "builtins" and hasattr(builtins, kind.__name__):
            if kind in (list, dict, set, frozenset, tuple):
                items: list[ast.expr] = [self.need("typing", "Any") for _ in range(2 if kind is dict else 1)]
                inner: ast.expr = ast.Tuple([*items, ast.Constant(...)]) if kind is tuple else items[0]
                return ast.Subscript(ast.Name(kind.__name__), ast.Tuple(items) if kind is dict else inner)
            return ast.Name(kind.__name__)
        if "<locals>" in kind.__qualname__ or "." in kind.__qualname__:
            return self.need("typing", "Any")
        if kind.__module__ == self.module.__name__:
            return ast.Name(kind.__name__)
        return self.need(kind.__module__, kind.__name__)

    # --- what is no twin ----------------------------------------------------------------------------------------------

    def plain_class(self, node: ast.ClassDef) -> ast.ClassDef:
        body: list[ast.stmt] = _docstring(node)
        known: set[str] = set()
        for inner in _flat(node.body):
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body.append(self.plain_function(inner, self.module.__name__))
                known.add(inner.name)
            elif isinstance(inner, ast.ClassDef):
                body.append(self.plain_class(inner))
            elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                body.append(ast.AnnAssign(inner.target, inner.annotation, inner.value and ast.Constant(...), 1))
                known.add(inner.target.id)
            elif isinstance(inner, ast.Assign):
                for target in inner.targets:
                    if isinstance(target, ast.Name):
                        body.append(self.constant(target.id, inner.value))
                        known.add(target.id)
        for name, annotation in _instance_attributes(node):
            if name not in known:
                written = None if isinstance(annotation, ast.Call) else annotation
                body.append(ast.AnnAssign(ast.Name(name), written or self.need("typing", "Any"), None, 1))
                known.add(name)
        made = copy.copy(node)
        made.body = body or [ast.Expr(ast.Constant(...))]
        return made

    def constant(self, name: str, value: ast.expr) -> ast.stmt:
        if name in {"__slots__", "__match_args__"}:
            return ast.Assign([ast.Name(name)], value)
        if isinstance(value, ast.Constant) and value.value is not None:
            return ast.AnnAssign(ast.Name(name), ast.Name(type(value.value).__name__), None, 1)
        return ast.AnnAssign(ast.Name(name), self.need("typing", "Any"), None, 1)

    def plain_function(self, node: Function, module: str) -> Function:
        """A function as it stands, without its body."""
        decorators = node.decorator_list
        manager = any(_last_name(decorator) == "asynccontextmanager" for decorator in decorators)
        is_async = isinstance(node, ast.AsyncFunctionDef) and (manager or not _yields(node))
        kind: type[Function] = ast.AsyncFunctionDef if is_async else ast.FunctionDef
        if manager:
            # It yields, which a stub does not show: the type of the function that is decorated.
            kind = ast.FunctionDef
        made = kind(
            name=node.name,
            args=self.arguments(node.args, lambda annotation: annotation, method=False),
            body=_docstring(node) or [ast.Expr(ast.Constant(...))],
            decorator_list=decorators,
            returns=node.returns or self.any_unless_init(node),
        )
        _copy_type_parameters(node, made)
        return made

    def any_unless_init(self, node: Function) -> ast.expr:
        return ast.Constant(None) if node.name in {"__init__", "__aexit__"} else self.need("typing", "Any")

    def arguments(self, args: ast.arguments, written: Any, *, method: bool) -> ast.arguments:
        made = _copied(args)
        every = [*made.posonlyargs, *made.args, *made.kwonlyargs, *filter(None, (made.vararg, made.kwarg))]
        first = (made.posonlyargs + made.args)[:1]
        for arg in every:
            if arg.annotation is not None:
                arg.annotation = written(arg.annotation)
            elif not (arg in first and arg.arg in {"self", "cls", "mcs"}):
                arg.annotation = self.need("typing", "Any")
        positional = [*made.posonlyargs, *made.args][-len(made.defaults) :] if made.defaults else []
        made.defaults = [_short(default, arg) for default, arg in zip(made.defaults, positional, strict=True)]
        made.kw_defaults = [
            None if default is None else _short(default, arg)
            for default, arg in zip(made.kw_defaults, made.kwonlyargs, strict=True)
        ]
        return made

    # --- functions that are twins -------------------------------------------------------------------------------------

    def function(self, name: str, call: SyncCall) -> list[ast.stmt]:
        """``fetch = blocking(_fetch)``."""
        original = inspect.unwrap(call._fn)
        home = getattr(original, "__globals__", {}).get("__name__", "")
        tree = _tree(home)
        nodes = [] if tree is None else [
            node for node in _flat(tree.body)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == getattr(original, "__name__", "")
        ]  # fmt: skip
        if not nodes:
            return [ast.AnnAssign(ast.Name(name), self.need("typing", "Any"), None, 1)]
        face = _Face(self, name, home, None, call._options)
        return face.several(name, nodes, "function") if len(nodes) > 1 else face.decorated(name, nodes[-1])

    # --- classes that are twins ---------------------------------------------------------------------------------------

    def twin(self, name: str, twin: TwinType, node: ast.ClassDef | None) -> list[ast.stmt]:
        return _Face.of_class(self, name, twin, node if "_omniloop_original" not in vars(twin) else None)


class _Face:
    """The sync face of what is defined in one module of the originals, as the stub has it."""

    def __init__(
        self,
        stub: _Stub,
        name: str,
        module: str,
        original: type | None,
        options: Options,
        outer: type | None = None,
    ) -> None:
        self.stub = stub
        self.options = options
        # Whose face it is; *original* may be a base of it.
        self.outer = outer or original
        self.name = name
        self.module = module
        self.original = original
        # The classes of callables that its members need.
        self.before: list[ast.stmt] = []
        # What stands for the type parameters of *original*, a base of it.
        self.variables: dict[str, ast.expr] = {}

    @classmethod
    def of_class(cls, stub: _Stub, name: str, twin: TwinType, derived: ast.ClassDef | None) -> list[ast.stmt]:
        original, options = twin._omniloop_original, twin._omniloop_options
        bases, covered = _bases(stub, twin)
        own = _class_node(original)
        decorators: list[ast.expr] = []
        docstring = _docstring(derived) if derived is not None else []
        if own is not None:
            face = cls(stub, name, _home(original), original, options)
            docstring = docstring or _docstring(own)
            bases = [
                *bases,
                *[face.annotation(base) for base in own.bases if _last_base(base) in {"Generic", "Protocol"}],
            ]
            if not any(_last_base(base) in {"Generic", "Protocol"} for base in own.bases):
                bases = _parametrized(bases, own, face)
                parameters = [face.lookup(each) for each in face.ordered_parameters()]
                if (
                    parameters
                    and not any(isinstance(base, ast.Subscript) for base in bases)
                    and not getattr(own, "type_params", ())
                ):
                    bases.append(_with(stub.need("typing", "Generic"), parameters))
            decorators = [
                face.annotation(decorator) for decorator in own.decorator_list if _last_name(decorator) == "dataclass"
            ]
        body: list[ast.stmt] = []
        before: list[ast.stmt] = []
        seen: set[str] = set()
        renamed = dict(twin._omniloop_hidden)
        is_dataclass = bool(decorators)
        arguments: dict[type, dict[str, ast.expr]] = {}
        for base in original.__mro__:
            if base in covered or base is object or base.__module__ in {"typing", "abc", "builtins"}:
                continue
            node = _class_node(base)
            if node is None:
                continue
            if original in stub.nested:
                node = _without_private(node)
            face = cls(stub, name, _home(base), base, options, original)
            face.variables = arguments.get(base, {})
            face.pass_on(node, arguments)
            body += face.members(node, original, renamed, seen, is_dataclass and base is original, options)
            before += face.before
        if derived is not None:
            body += [
                stub.plain_function(inner, stub.module.__name__)
                for inner in derived.body
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)) and inner.name not in seen
            ]
        made = ast.ClassDef(
            name=name,
            bases=bases,
            keywords=[],
            body=[*docstring, *body] or [ast.Expr(ast.Constant(...))],
            decorator_list=decorators,
        )
        if own is not None:
            _copy_type_parameters(own, made)
        return [*before, made]

    def pass_on(self, node: ast.ClassDef, arguments: dict[type, dict[str, ast.expr]]) -> None:
        """Write down what the bases of the class get for their type parameters: `class Pages(Base[int])`."""
        for written in node.bases:
            base = _resolved(self.module, _plain(written))
            parameters = getattr(base, "__parameters__", ())
            if not isinstance(base, type) or not parameters or base in arguments:
                continue
            given: list[ast.expr] = []
            if isinstance(written, ast.Subscript):
                given = written.slice.elts if isinstance(written.slice, ast.Tuple) else [written.slice]
            found = [self.annotation(each) for each in given] if len(given) == len(parameters) else []
            found = found or [self.stub.need("typing", "Any") for _ in parameters]
            arguments[base] = {parameter.__name__: each for parameter, each in zip(parameters, found, strict=True)}

    # --- annotations --------------------------------------------------------------------------------------------------

    def annotation(self, node: ast.expr, *, sync: bool = True, goes_in: bool = False) -> ast.expr:
        """An annotation of the original as the stub has it; only with its names, and not their sync face, if not *sync*."""
        return _Rewriter(self, sync, goes_in=goes_in).visit(_copied(node))  # type: ignore[no-any-return]

    def goes_in(self, node: ast.expr) -> ast.expr:
        return self.annotation(node, goes_in=True)

    def twin_named(self, node: ast.expr, goes_in: bool) -> ast.expr | None:
        """For a name or dotted name of a class: its twin, if it comes out as one; the one or the other, if it goes in."""
        kind = _resolved(self.module, node)
        if not isinstance(kind, type):
            return None
        if kind in self.stub.twins:
            return ast.Name(self.stub.twins[kind])
        if goes_in:
            if not _needs_twin(kind):
                return None
            plain = (
                self.lookup(node.id, twins=False)
                if isinstance(node, ast.Name)
                else _Rewriter(self, False, twins=False).visit(node)
            )
            return self.stub.one_or_the_other(plain, kind)
        name = self.stub.nested_name(kind, self.options)
        return None if name is None else ast.Name(name)

    def lookup(self, name: str, *, twins: bool = True, goes_in: bool = False) -> ast.expr:
        """What *name*, in the module of the original, is called in the stub."""
        stub, module = self.stub, sys.modules[self.module]
        value = vars(module).get(name, _MISSING)
        if name in self.variables:
            return _copied(self.variables[name])
        twin = self.twin_named(ast.Name(name), goes_in) if twins else None
        if twin is not None:
            return twin
        if value is _MISSING and name not in _imports(self.module):
            if hasattr(builtins, name):
                # A method may have its name.
                hidden = self.outer is not None and not name.startswith("__") and _has(self.outer, name)
                return stub.need("builtins", name) if hidden else ast.Name(name)
            if self.original is not None and isinstance(getattr(self.original, name, None), type):
                # A class in the class.
                owner: ast.expr = self.plain(self.original.__name__)
                return ast.Attribute(owner, name)
            return ast.Name(name)
        return self.plain(name)

    def plain(self, name: str) -> ast.expr:
        if self.module == self.stub.module.__name__:
            return ast.Name(name)
        origin = _imports(self.module).get(name)
        package = self.module.partition(".")[0]
        while origin is not None and origin[0].partition(".")[0] == package and origin[1] in _imports(origin[0]):
            # Where it is defined: a module need not show what it imports itself.
            origin = _imports(origin[0])[origin[1]]
        if origin is not None:
            if origin[1] is None and origin[0] == name:
                # `import a.b.c`: what follows the name may need it.
                self.stub.dotted |= {each for each in _dotted(self.module) if each.partition(".")[0] == name}
            return self.stub.need(*origin)
        return self.stub.need(self.module, name)

    # --- members ------------------------------------------------------------------------------------------------------

    def members(
        self, node: ast.ClassDef, original: type, renamed: dict[str, str], seen: set[str], fields: bool, options: Any
    ) -> Iterator[ast.stmt]:
        functions: dict[str, list[Function]] = {}
        # What has an async one beside it, whose face it would be.
        hidden = {face for name, face in _SPECIAL.items() if hasattr(original, name)}
        shown_names = set(renamed.values())
        found: set[str] = set()
        for inner in _flat(node.body):
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions.setdefault(inner.name, []).append(inner)
            elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                name = inner.target.id
                if name in seen:
                    continue
                found.add(name)
                value = ast.Constant(...) if inner.value is not None and fields else None
                yield ast.AnnAssign(inner.target, self.annotation(inner.annotation), value, 1)
            elif isinstance(inner, ast.Assign) and isinstance(inner.targets[0], ast.Name):
                name = inner.targets[0].id
                if isinstance(inner.value, ast.Name) and inner.value.id in functions and name not in seen:
                    # Another name of a method.
                    functions[name] = functions[inner.value.id]
                elif name not in seen and not name.startswith("__") and not callable(getattr(original, name, None)):
                    found.add(name)
                    yield self.stub.constant(name, inner.value)
        for name, nodes in functions.items():
            shown = renamed.get(name, name)
            if shown in seen or (shown == name and name in shown_names):
                continue
            if name in hidden or (fields and name == "__post_init__"):
                continue
            found.add(shown)
            yield from self.method(shown, name, nodes)
        for name, annotation in _instance_attributes(node):
            if name not in seen and name not in found:
                found.add(name)
                written = self.stub.need("typing", "Any") if annotation is None else self.attribute(annotation)
                yield ast.AnnAssign(ast.Name(name), written, None, 1)
        seen |= found

    def attribute(self, annotation: ast.expr) -> ast.expr:
        """The type of an attribute, which may be written as a call of its class."""
        if isinstance(annotation, ast.Call):
            kind = _resolved(self.module, annotation.func)
            if not isinstance(kind, type) or hasattr(kind, "__parameters__"):
                return self.stub.need("typing", "Any")
            annotation = annotation.func
        return self.annotation(annotation)

    def method(self, shown: str, name: str, nodes: list[Function]) -> Iterator[ast.stmt]:
        nodes = [self.with_plain_self(each) for each in self.of_async_clients(nodes)]
        node = nodes[-1]
        decorators = {_last_name(decorator) for decorator in node.decorator_list}
        if name in _SPECIAL:
            yield from self.special(name, node)
            return
        if decorators & {"property", "cached_property", "setter", "deleter", "getter"}:
            for each in nodes:
                yield self.sync(shown, each, keep={"property", "cached_property", "setter", "deleter"})
            return
        binding = "class" if "classmethod" in decorators else "none" if "staticmethod" in decorators else "object"
        if not any(self.crosses(each) for each in nodes):
            for each in nodes:
                yield self.sync(shown, each, keep={"classmethod", "staticmethod", "overload", "abstractmethod"})
            return
        if len(nodes) > 1 or binding != "object" or self.is_generic(node) or any(map(self.names_self, nodes)):
            *classes, member = self.several(shown, nodes, binding)
            self.before += classes
            yield member
        else:
            yield from self.decorated(shown, node)

    def names_self(self, node: Function) -> bool:
        """Tell whether its signature names the class of the object by `Self`."""
        made = self.sync("f", node, keep=set(), sync=False)
        return any(
            _is_self(inner) for part in (made.args, made.returns) if part is not None for inner in ast.walk(part)
        )

    def with_plain_self(self, node: Function) -> Function:
        """Without an annotation of `self`, which is of the original; a variable that stands for its type is `Self`."""
        args = [*node.args.posonlyargs, *node.args.args]
        if not args or args[0].annotation is None or args[0].arg not in {"self", "cls"}:
            return node
        made = _copied(node)
        first = [*made.args.posonlyargs, *made.args.args][0]
        annotation = _parsed(first.annotation)
        first.annotation = None
        if isinstance(annotation, ast.Subscript):
            # `type[T]`, of a class method.
            annotation = _parsed(annotation.slice)
        name = getattr(annotation, "id", "")
        own = [each for each in getattr(made, "type_params", ()) if each.name == name]
        if own or type(_resolved(self.module, ast.Name(name))).__name__ == "TypeVar":
            itself = _Replace({name: self.stub.need("typing", "Self")})
            made.args = itself.visit(made.args)
            if made.returns is not None:
                made.returns = itself.visit(made.returns)
            if own:
                vars(made)["type_params"] = [each for each in vars(made)["type_params"] if each not in own]
        return made

    def of_async_clients(self, nodes: list[Function]) -> list[Function]:
        """Without the overloads that are for a sync class by the annotation of `self`: redis has such pairs."""
        if not any("overload" in map(_last_name, node.decorator_list) for node in nodes):
            return nodes
        overloads = [node for node in nodes if "overload" in map(_last_name, node.decorator_list)]
        typed = [node for node in overloads if node.args.args and node.args.args[0].annotation is not None]
        if not any(self.crosses(node) for node in typed):
            return nodes
        kept = [_copied(node) for node in overloads if node not in typed or self.crosses(node)]
        for node in kept:
            node.args.args[0].annotation = None
            if len(kept) == 1:
                node.decorator_list = [each for each in node.decorator_list if _last_name(each) != "overload"]
                node.body = _docstring(nodes[-1]) or node.body
        return kept

    def special(self, name: str, node: Function) -> Iterator[ast.stmt]:
        """`__aenter__` and its kin: the sync one beside it."""
        if name == "__await__":
            made = self.sync("wait", node, keep=set())
            made.returns = self.awaited_by(node)
            if self.original is not None and not hasattr(self.original, "wait"):
                yield made
            return
        made = self.sync(_SPECIAL[name], node, keep={"overload"})
        yield made
        itself = self.sync(name, node, keep={"overload"}, sync=False)
        yield _as_async(itself) if isinstance(node, ast.AsyncFunctionDef) and not _yields(node) else itself

    def awaited_by(self, node: Function) -> ast.expr:
        """What comes out of `__await__`: the last parameter of its generator."""
        returns = node.returns
        if isinstance(returns, ast.Subscript) and isinstance(returns.slice, ast.Tuple):
            return self.annotation(returns.slice.elts[-1])
        return self.stub.need("typing", "Any")

    def crosses(self, node: Function) -> bool:
        """Tell whether a call gives something that was awaited, entered or iterated over."""
        if isinstance(node, ast.AsyncFunctionDef):
            return True
        returns = node.returns
        if isinstance(returns, ast.Constant) and isinstance(returns.value, str):
            returns = ast.parse(returns.value, mode="eval").body
        if isinstance(returns, ast.Subscript):
            returns = returns.value
        return returns is not None and _last_name(returns) in {*SYNC_NAMES, *AWAITED}

    def is_generic(self, node: Function) -> bool:
        """Tell whether the method has type parameters of its own."""
        if getattr(node, "type_params", None):
            return True
        mine = self.class_parameters()
        namespace = vars(sys.modules[self.module])
        for inner in ast.walk(node.args):
            if isinstance(inner, ast.Name) and inner.id not in mine:
                kind = type(namespace.get(inner.id)).__name__
                if kind in {"TypeVar", "ParamSpec", "TypeVarTuple"}:
                    return True
        return False

    def ordered_parameters(self) -> list[str]:
        return [parameter.__name__ for parameter in getattr(self.original, "__parameters__", ())]

    def class_parameters(self) -> set[str]:
        return set(self.ordered_parameters())

    # --- one function -------------------------------------------------------------------------------------------------

    def sync(self, shown: str, node: Function, keep: set[str], *, sync: bool = True) -> ast.FunctionDef:
        """A plain `def` with the sync face of the annotations."""
        made = ast.FunctionDef(
            name=shown,
            args=self.stub.arguments(node.args, self.goes_in, method=True),
            body=_docstring(node) or [ast.Expr(ast.Constant(...))],
            decorator_list=[self.annotation(each) for each in node.decorator_list if _last_name(each) in keep],
            returns=self.returned(node, sync=sync),
        )
        _copy_type_parameters(node, made)
        return made

    def returned(self, node: Function, *, sync: bool = True) -> ast.expr:
        if node.returns is None:
            return self.stub.any_unless_init(node)
        if any(_last_name(each) == "asynccontextmanager" for each in node.decorator_list):
            inner = node.returns
            if isinstance(inner, ast.Subscript):
                first = inner.slice.elts[0] if isinstance(inner.slice, ast.Tuple) else inner.slice
                manager = self.stub.need(
                    "contextlib", "AbstractContextManager" if sync else "AbstractAsyncContextManager"
                )
                suppresses = ast.BinOp(ast.Name("bool"), ast.BitOr(), ast.Constant(None))
                return ast.Subscript(manager, ast.Tuple([self.annotation(first), suppresses]))
        if isinstance(node, ast.AsyncFunctionDef) and not _yields(node):
            # What comes out of it is as it is, unless it has a twin.
            return self.annotation(node.returns, sync=False)
        both = self.both_ways(node.returns) if sync else None
        return both or self.annotation(node.returns, sync=sync)

    def both_ways(self, returns: ast.expr) -> ast.expr | None:
        """For what can be both awaited and entered: what comes out of it."""
        try:
            kind = eval(ast.unparse(returns), vars(sys.modules[self.module]))
        except Exception:
            return None
        kind = get_origin(kind) or kind
        if get_origin(kind) is not None and any(get_origin(arg) in _AWAITABLES for arg in get_args(kind)):
            return self.stub.need("typing", "Any")
        if any(get_origin(arg) is not None and get_origin(arg) in _AWAITABLES for arg in get_args(kind)):
            return self.stub.need("typing", "Any")
        if not (isinstance(kind, type) and hasattr(kind, "__await__") and hasattr(kind, "__aenter__")):
            return None
        if kind in self.stub.twins:
            return None
        enter = inspect.getattr_static(kind, "__aenter__")
        owner = next(base for base in kind.__mro__ if "__aenter__" in vars(base))
        node = _class_node(owner)
        for inner in _flat(node.body if node is not None else []):
            if isinstance(inner, ast.AsyncFunctionDef) and inner.name == "__aenter__" and inner.returns is not None:
                return _Face(self.stub, self.name, _home(owner), owner, self.options).annotation(
                    inner.returns, sync=False
                )
        del enter
        return self.stub.need("typing", "Any")

    def decorated(self, shown: str, node: Function) -> list[ast.stmt]:
        """As the source has it, with `@blocking`: from this a type checker knows the call, `.aio` and `.options`."""
        plain = self.sync(shown, node, keep=set(), sync=False)
        is_async = isinstance(node, ast.AsyncFunctionDef) and not _yields(node) and "asynccontextmanager" not in {
            _last_name(each) for each in node.decorator_list
        }  # fmt: skip
        hidden = self.outer is not None and _has(self.outer, "blocking")
        plain.decorator_list = [
            # redis' lock has an attribute of this name.
            ast.Attribute(self.stub.need("omniloop", None), "blocking")
            if hidden
            else self.stub.need("omniloop", "blocking")
        ]
        if not is_async:
            return [plain]
        return [_as_async(plain)]

    def several(self, shown: str, nodes: list[Function], binding: str) -> list[ast.stmt]:
        """
        Classes of callables for what one decorated function can't say: overloads, type parameters, class methods, `Self`; and the member.

        They have the parameters of the object's class that they name, and one for the object's class itself, where they name that.
        """
        docstring = _docstring(nodes[-1])
        nodes = [
            node for node in nodes if any(_last_name(each) == "overload" for each in node.decorator_list)
        ] or nodes[-1:]
        itself = any(map(self.names_self, nodes))
        calls: list[ast.FunctionDef] = []
        aios: list[Function] = []
        for node in nodes:
            made, aio = (self.sync("__call__", node, keep={"overload"}, sync=sync) for sync in (True, False))
            if calls:
                # Once is enough.
                made.body = [ast.Expr(ast.Constant(...))]
            aio.body = [ast.Expr(ast.Constant(...))]
            for each in (made, aio):
                each.args = _bound(each.args, binding)
                if itself:
                    _SelfAs(self.stub.variable_for_self()).visit(each)
            is_async = isinstance(node, ast.AsyncFunctionDef) and not _yields(node)
            calls.append(made)
            aios.append(_as_async(aio) if is_async else aio)
        names = {inner.id for each in calls for inner in ast.walk(each) if isinstance(inner, ast.Name)}
        parameters = [self.lookup(each) for each in self.ordered_parameters()] if binding == "object" else []
        parameters = [each for each in parameters if ast.unparse(each) in names]
        of_class = [self.stub.variable_for_self(), *parameters] if itself else parameters
        name = self.stub.free(f"_{self.name.lstrip('_')}_{shown}")
        seconds = ast.BinOp(ast.Name("float"), ast.BitOr(), ast.Constant(None))
        options = _function("options", self.stub.need("typing", "Self"))
        options.args.kwonlyargs, options.args.kw_defaults = [ast.arg("timeout", seconds)], [None]
        aio_face = self.callable_class(f"{name}_aio", of_class, aios)
        more = [_function("aio", _with(ast.Name(aio_face.name), of_class), "property"), options]
        classes = [aio_face, self.callable_class(name, of_class, [*calls, *more])]
        if binding == "object":
            own = [self.stub.need("typing", "Self"), *parameters] if itself else parameters
            member = _function(shown, _with(ast.Name(name), own), "property")
            member.body = docstring or member.body
            return [*classes, member]
        found: ast.expr = ast.Name(name)
        if binding == "function":
            return [*classes, ast.AnnAssign(ast.Name(shown), found, None, 1)]
        if itself:
            # A descriptor is told for which class it is asked.
            get = _function("__get__", _with(found, of_class))
            get.args.args += [
                ast.arg("obj", ast.Name("object")),
                ast.arg("owner", ast.Subscript(ast.Name("type"), self.stub.variable_for_self())),
            ]
            found = ast.Name(f"{name}_of")
            classes.append(self.callable_class(found.id, [], [get]))
        return [
            *classes,
            ast.AnnAssign(ast.Name(shown), ast.Subscript(self.stub.need("typing", "ClassVar"), found), None, 1),
        ]

    def callable_class(self, name: str, parameters: list[ast.expr], body: Sequence[ast.stmt]) -> ast.ClassDef:
        made = ast.ClassDef(name=name, bases=[], keywords=[], body=list(body), decorator_list=[])
        own = getattr(_class_node(self.original) if self.original is not None else None, "type_params", None)
        if parameters and own:
            written = {each.name: each for each in own}
            made.type_params = [  # type: ignore[attr-defined]
                (_copied(written[each.id]) if each.id in written else ast.TypeVar(each.id))  # type: ignore[attr-defined]
                for each in parameters
                if isinstance(each, ast.Name)
            ]
        elif parameters:
            made.bases = [_with(self.stub.need("typing", "Generic"), parameters)]
        return made


def _function(name: str, returns: ast.expr, *decorators: str) -> ast.FunctionDef:
    return ast.FunctionDef(
        name=name,
        args=ast.arguments([], [ast.arg("self")], None, [], [], None, []),
        body=[ast.Expr(ast.Constant(...))],
        decorator_list=[ast.Name(each) for each in decorators],
        returns=returns,
    )


def _as_async(node: ast.FunctionDef) -> ast.AsyncFunctionDef:
    return ast.AsyncFunctionDef(**{field: getattr(node, field) for field in node._fields if hasattr(node, field)})


def _with(generic: ast.expr, parameters: Sequence[ast.expr]) -> ast.expr:
    if not parameters:
        return generic
    return ast.Subscript(generic, ast.Tuple(list(parameters)) if len(parameters) > 1 else parameters[0])


def _is_self(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id.lstrip("_") == "Self") or (
        isinstance(node, ast.Attribute) and node.attr == "Self"
    )


def _parsed(annotation: ast.expr | None) -> ast.expr | None:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        with contextlib.suppress(SyntaxError):
            return ast.parse(annotation.value, mode="eval").body
    return annotation


class _SelfAs(ast.NodeTransformer):
    """Names the class of the object by a variable, where the callable's own class would be meant."""

    def __init__(self, variable: ast.Name) -> None:
        self._variable = variable

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._variable if _is_self(node) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._variable if _is_self(node) else ast.Attribute(self.visit(node.value), node.attr)


_MISSING: Any = object()
_SPECIAL = {
    "__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__", "__anext__": "__next__", "__await__": "wait",
}  # fmt: skip


def _awaitables() -> set[object]:
    import asyncio
    import collections.abc

    return {collections.abc.Awaitable, collections.abc.Coroutine, asyncio.Future, asyncio.Task}


_AWAITABLES = _awaitables()


class _Rewriter(ast.NodeTransformer):
    """Gives the names of the stub to an annotation, and, if asked, its sync face."""

    def __init__(self, face: _Face, sync: bool, twins: bool = True, goes_in: bool = False) -> None:
        self._face = face
        self._sync = sync
        self._twins = twins
        self._goes_in = goes_in

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if self._sync and node.id in SYNC_NAMES:
            return self._standard(SYNC_NAMES[node.id])
        if not self._twins and _is_self(node) and self._face.outer is not None:
            return self._face.plain(self._face.outer.__name__)
        return self._face.lookup(node.id, twins=self._twins, goes_in=self._goes_in)

    def _standard(self, name: str) -> ast.expr:
        return self._face.stub.need("contextlib" if "Context" in name else "collections.abc", name)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if self._sync and node.attr in SYNC_NAMES:
            return self._standard(SYNC_NAMES[node.attr])
        twin = self._face.twin_named(node, self._goes_in) if self._twins else None
        if twin is not None:
            return twin
        return ast.Attribute(self.visit(node.value), node.attr)

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):
            try:
                inner: ast.expr = self.visit(ast.parse(node.value, mode="eval").body)
            except SyntaxError:
                return node
            return inner
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        # A decorator: its arguments are values.
        return ast.Call(self.visit(node.func), node.args, node.keywords)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        name = _last_name(node.value)
        parts = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name in {"Literal", "Annotated"}:
            kept = parts if name == "Literal" else [self.visit(parts[0]), *parts[1:]]
            return ast.Subscript(self.visit(node.value), ast.Tuple(kept) if len(kept) > 1 else kept[0])
        if self._sync and name in AWAITED and len(parts) > AWAITED[name]:
            inner: ast.expr = self.visit(parts[AWAITED[name]])
            return inner
        if name == "Callable":
            # It is called on the loop, with the originals.
            return _Rewriter(self._face, sync=False, twins=False).generic_visit(node)  # type: ignore[return-value]
        value = self.visit(node.value)
        parts = [self.visit(part) for part in parts]
        if self._sync and name == "AsyncGenerator":
            parts = [*parts, *[ast.Constant(None)] * (3 - len(parts))]
        several = len(parts) > 1 or isinstance(node.slice, ast.Tuple)
        return ast.Subscript(value, ast.Tuple(parts) if several else parts[0])


class _Either(ast.NodeTransformer):
    """Writes what was left open: whether what goes in may be a twin."""

    def __init__(self, stub: _Stub) -> None:
        self._stub = stub

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self._stub.either:
            return node
        plain, kind = self._stub.either[node.id]
        if kind not in self._stub.nested:
            return plain
        return ast.BinOp(plain, ast.BitOr(), ast.Name(self._stub.nested[kind][1]))

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        made: ast.expr = self.generic_visit(node)  # type: ignore[assignment]
        if isinstance(node.value, ast.BinOp):
            # `AsyncStream[T]`, both with the parameter.
            both = [ast.Subscript(side, node.slice) for side in (node.value.left, node.value.right)]
            made = ast.BinOp(both[0], ast.BitOr(), both[1])
        return made


class _Replace(ast.NodeTransformer):
    def __init__(self, names: dict[str, ast.expr]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._names.get(node.id, node)

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        # An annotation in quotes.
        inner = _parsed(node)
        return node if inner is None or inner is node else self.visit(inner)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return node if _last_name(node.value) == "Literal" else self.generic_visit(node)


def _bound(args: ast.arguments, binding: str) -> ast.arguments:
    """With a first parameter `self`, which a call of a class's instance has, and not that of the method."""
    made = _copied(args)
    if binding in {"object", "class"}:
        (made.posonlyargs or made.args).pop(0)
    (made.posonlyargs or made.args).insert(0, ast.arg("self"))
    return made


def _copy_type_parameters(source: ast.stmt, made: ast.stmt) -> None:
    # There are none up to 3.11.
    for name in ("type_params",):
        if hasattr(source, name):
            setattr(made, name, getattr(source, name))


def _short(default: ast.expr, arg: ast.arg) -> ast.expr:
    """The default, if it says something, and its type is plainly that of the parameter: not that of `x: int = None`."""
    written = "" if arg.annotation is None else ast.unparse(arg.annotation)
    if isinstance(default, ast.Constant) and (not isinstance(default.value, str) or len(default.value) < 40):
        kind = type(default.value)
        names = {type(None): ["None", "Optional"], int: ["int", "float"]}.get(kind, [kind.__name__])
        if any(name in written for name in (*names, "Any", "object", "Literal")):
            return default
    return ast.Constant(...)


def _instance_attributes(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None]]:
    """What `__init__` sets on `self`, with the annotation, or that of the parameter that it is set from."""
    for function in node.body:
        if not isinstance(function, ast.FunctionDef) or function.name != "__init__":
            continue
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        of = {arg.arg: arg.annotation for arg in arguments}
        found: dict[str, ast.expr | None] = {}
        for inner in ast.walk(function):
            target: ast.expr | None = None
            value: ast.expr | None = None
            annotation: ast.expr | None = None
            if isinstance(inner, ast.AnnAssign):
                target, annotation = inner.target, inner.annotation
            elif isinstance(inner, ast.Assign) and len(inner.targets) == 1:
                target, value = inner.targets[0], inner.value
            if isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self":
                if annotation is None and isinstance(value, ast.Name):
                    annotation = of.get(value.id)
                elif annotation is None and isinstance(value, ast.Constant) and value.value is not None:
                    annotation = ast.Name(type(value.value).__name__)
                elif annotation is None and isinstance(value, ast.Call):
                    # By the class that is called, if it is one.
                    annotation = ast.Call(value.func, [], [])
                if found.get(target.attr) is None:
                    found[target.attr] = annotation
        yield from ((name, annotation) for name, annotation in found.items() if not name.startswith("_"))


@functools.cache
def _has(kind: type, name: str) -> bool:
    """Tell whether there is something of this name in the class, which hides others' of the same name in it."""
    nodes = filter(None, map(_class_node, kind.__mro__[:-1]))
    return (
        hasattr(kind, name)
        or any(name in vars(base).get("__annotations__", ()) for base in kind.__mro__)
        or any(name == found for node in nodes for found, _ in _instance_attributes(node))
    )


def _last_base(base: ast.expr) -> str:
    return _last_name(base.value if isinstance(base, ast.Subscript) else base)


def _bases(stub: _Stub, twin: TwinType) -> tuple[list[ast.expr], set[type]]:
    """The bases that have a name in the stub, and the classes whose members they bring along."""
    bases: list[ast.expr] = []
    covered: set[type] = set()
    original = twin._omniloop_original
    for base in original.__mro__[1:]:
        name = stub.twins.get(base)
        if name is not None and base not in covered:
            bases.append(ast.Name(name))
            covered |= set(base.__mro__)
    return bases, covered - {object}


def _parametrized(bases: Sequence[ast.expr], own: ast.ClassDef, face: _Face) -> list[ast.expr]:
    """The bases with the parameters that the source gives them: `Base[int]`."""
    written = [face.annotation(base) for base in own.bases]
    found = []
    for base in bases:
        same = [
            each for each in written if isinstance(each, ast.Subscript) and ast.unparse(each.value) == ast.unparse(base)
        ]
        found.append(same[0] if same else base)
    return found
