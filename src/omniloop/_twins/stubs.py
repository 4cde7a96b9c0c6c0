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
from typing import Any, get_args, get_origin

from .annotations import AWAITED, SYNC_NAMES
from .twins import SyncCall, Twin, TwinType

Function = ast.FunctionDef | ast.AsyncFunctionDef

# A method of a subclass may take more than the one that it overrides, as the checkers allow for functions, and not for attributes.
_HEADER = """\
# Written by `python -m omniloop stubs {}`: change the source, and write it again.
# mypy: disable-error-code="override,misc,type-arg,overload-overlap"
# pyright: reportIncompatibleVariableOverride=false, reportIncompatibleMethodOverride=false, reportOverlappingOverload=false
"""


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

    def text(self) -> str:
        body = [out for node in self.tree.body for out in self.statement(node)]
        docstring = _docstring(self.tree)
        body = body[len(docstring) :]
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
            local = name or module.partition(".")[0]
            while local in self.taken:
                local = f"_{local}"
            self.taken.add(local)
            self.needed[module, name] = local
        return ast.Name(self.needed[module, name])

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
                body.append(ast.AnnAssign(ast.Name(name), annotation or self.need("typing", "Any"), None, 1))
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
        made = copy.deepcopy(args)
        every = [*made.posonlyargs, *made.args, *made.kwonlyargs, *filter(None, (made.vararg, made.kwarg))]
        first = (made.posonlyargs + made.args)[:1]
        for arg in every:
            if arg.annotation is not None:
                arg.annotation = written(arg.annotation)
            elif not (arg in first and arg.arg in {"self", "cls", "mcs"}):
                arg.annotation = self.need("typing", "Any")
        made.defaults = [_short(default) for default in made.defaults]
        made.kw_defaults = [None if default is None else _short(default) for default in made.kw_defaults]
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
        face = _Face(self, name, home, None)
        return face.several(name, nodes, "none") if len(nodes) > 1 else face.decorated(name, nodes[-1])

    # --- classes that are twins ---------------------------------------------------------------------------------------

    def twin(self, name: str, twin: TwinType, node: ast.ClassDef | None) -> list[ast.stmt]:
        return _Face.of_class(self, name, twin, node if "_omniloop_original" not in vars(twin) else None)


class _Face:
    """The sync face of what is defined in one module of the originals, as the stub has it."""

    def __init__(self, stub: _Stub, name: str, module: str, original: type | None, outer: type | None = None) -> None:
        self.stub = stub
        # Whose face it is; *original* may be a base of it.
        self.outer = outer or original
        self.name = name
        self.module = module
        self.original = original
        # Where `Self` and the class's own name stand.
        self.before: list[ast.stmt] = []

    @classmethod
    def of_class(cls, stub: _Stub, name: str, twin: TwinType, derived: ast.ClassDef | None) -> list[ast.stmt]:
        original, options = twin._omniloop_original, twin._omniloop_options
        bases, covered = _bases(stub, twin)
        own = _class_node(original)
        decorators: list[ast.expr] = []
        docstring = _docstring(derived) if derived is not None else []
        if own is not None:
            face = cls(stub, name, _home(original), original)
            docstring = docstring or _docstring(own)
            bases = [
                *bases,
                *[face.annotation(base) for base in own.bases if _last_base(base) in {"Generic", "Protocol"}],
            ]
            if not any(_last_base(base) in {"Generic", "Protocol"} for base in own.bases):
                bases = _parametrized(bases, own, face)
            decorators = [
                face.annotation(decorator) for decorator in own.decorator_list if _last_name(decorator) == "dataclass"
            ]
        body: list[ast.stmt] = []
        before: list[ast.stmt] = []
        seen: set[str] = set()
        renamed = dict(twin._omniloop_hidden)
        is_dataclass = bool(decorators)
        for base in original.__mro__:
            if base in covered or base is object or base.__module__ in {"typing", "abc", "builtins"}:
                continue
            node = _class_node(base)
            if node is None:
                continue
            face = cls(stub, name, _home(base), base, original)
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

    # --- annotations --------------------------------------------------------------------------------------------------

    def annotation(self, node: ast.expr, *, sync: bool = True) -> ast.expr:
        """An annotation of the original as the stub has it; only with its names, and not their sync face, if not *sync*."""
        return _Rewriter(self, sync).visit(copy.deepcopy(node))  # type: ignore[no-any-return]

    def lookup(self, name: str, *, twins: bool = True) -> ast.expr:
        """What *name*, in the module of the original, is called in the stub."""
        stub, module = self.stub, sys.modules[self.module]
        value = vars(module).get(name, _MISSING)
        if twins and isinstance(value, type) and value in stub.twins:
            return ast.Name(stub.twins[value])
        if value is _MISSING and name not in _imports(self.module):
            if hasattr(builtins, name):
                # A method may have its name.
                hidden = self.outer is not None and hasattr(self.outer, name) and not name.startswith("__")
                return stub.need("builtins", name) if hidden else ast.Name(name)
            if self.original is not None and isinstance(getattr(self.original, name, None), type):
                # A class in the class.
                owner: ast.expr = self.plain(self.original.__name__)
                return ast.Attribute(owner, name)
            return ast.Name(name)
        return self.plain(name)

    def twin_of(self, node: ast.Attribute) -> ast.expr | None:
        """For `aio.AsyncClient`, which has a twin."""
        try:
            value = eval(ast.unparse(node), vars(sys.modules[self.module]))
        except (AttributeError, NameError):
            return None
        name = self.stub.twins.get(value) if isinstance(value, type) else None
        return None if name is None else ast.Name(name)

    def plain(self, name: str) -> ast.expr:
        if self.module == self.stub.module.__name__:
            return ast.Name(name)
        origin = _imports(self.module).get(name)
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
                if name not in seen and not name.startswith("__") and not callable(getattr(original, name, None)):
                    found.add(name)
                    yield self.stub.constant(name, inner.value)
        for name, nodes in functions.items():
            shown = renamed.get(name, name)
            if shown in seen or (shown == name and name in shown_names):
                continue
            if fields and name == "__post_init__":
                continue
            found.add(shown)
            yield from self.method(shown, name, nodes)
        for name, annotation in _instance_attributes(node):
            if name not in seen and name not in found:
                found.add(name)
                written = self.stub.need("typing", "Any") if annotation is None else self.annotation(annotation)
                yield ast.AnnAssign(ast.Name(name), written, None, 1)
        seen |= found

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
        if len(nodes) > 1 or binding != "object" or self.is_generic(node):
            made = self.several(f"_{self.name}_{shown}", nodes, binding)
            generic = self.class_parameters()
            if generic and binding == "object":
                # A class of its own would have to have the parameters too: the call alone, without `.aio`.
                for each in nodes:
                    yield self.sync(shown, each, keep={"overload"})
                return
            self.before += made[:-1]
            protocol = ast.Name(f"_{self.name}_{shown}")
            if binding == "object":
                yield ast.FunctionDef(
                    name=shown,
                    args=ast.arguments([], [ast.arg("self")], None, [], [], None, []),
                    body=_docstring(node) or [ast.Expr(ast.Constant(...))],
                    decorator_list=[ast.Name("property")],
                    returns=protocol,
                )
            else:
                yield ast.AnnAssign(
                    ast.Name(shown), ast.Subscript(self.stub.need("typing", "ClassVar"), protocol), None, 1
                )
            return
        yield from self.decorated(shown, node)

    def with_plain_self(self, node: Function) -> Function:
        """Without an annotation of `self`, which is of the original; a variable that stands for its type is `Self`."""
        args = [*node.args.posonlyargs, *node.args.args]
        if not args or args[0].annotation is None or args[0].arg not in {"self", "cls"}:
            return node
        made = copy.deepcopy(node)
        first = [*made.args.posonlyargs, *made.args.args][0]
        annotation: ast.expr | None = first.annotation
        first.annotation = None
        if isinstance(annotation, ast.Subscript):
            # `type[T]`, of a class method.
            annotation = annotation.slice
        name = getattr(annotation, "id", "")
        if type(vars(sys.modules[self.module]).get(name)).__name__ == "TypeVar":
            made.args = _Replace({name: self.stub.need("typing", "Self")}).visit(made.args)
            if made.returns is not None:
                made.returns = _Replace({name: self.stub.need("typing", "Self")}).visit(made.returns)
        return made

    def of_async_clients(self, nodes: list[Function]) -> list[Function]:
        """Without the overloads that are for a sync class by the annotation of `self`: redis has such pairs."""
        if not any("overload" in map(_last_name, node.decorator_list) for node in nodes):
            return nodes
        overloads = [node for node in nodes if "overload" in map(_last_name, node.decorator_list)]
        typed = [node for node in overloads if node.args.args and node.args.args[0].annotation is not None]
        if not any(self.crosses(node) for node in typed):
            return nodes
        kept = [copy.deepcopy(node) for node in overloads if node not in typed or self.crosses(node)]
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
        kind = ast.AsyncFunctionDef if isinstance(node, ast.AsyncFunctionDef) and not _yields(node) else ast.FunctionDef
        yield kind(**{field: getattr(itself, field) for field in ast.FunctionDef._fields if hasattr(itself, field)})

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
            args=self.stub.arguments(node.args, self.annotation, method=True),
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
                return _Face(self.stub, self.name, _home(owner), owner).annotation(inner.returns, sync=False)
        del enter
        return self.stub.need("typing", "Any")

    def decorated(self, shown: str, node: Function) -> list[ast.stmt]:
        """As the source has it, with `@blocking`: from this a type checker knows the call, `.aio` and `.options`."""
        plain = self.sync(shown, node, keep=set(), sync=False)
        if plain.returns is not None and self.original is not None:
            # mypy does not know whose, in a function that is decorated.
            parameters = [self.lookup(each) for each in self.ordered_parameters()]
            itself: ast.expr = ast.Name(self.name)
            if parameters:
                itself = ast.Subscript(itself, ast.Tuple(parameters) if len(parameters) > 1 else parameters[0])
            plain.returns = _Replace({"Self": itself}).visit(plain.returns)
        is_async = isinstance(node, ast.AsyncFunctionDef) and not _yields(node) and "asynccontextmanager" not in {
            _last_name(each) for each in node.decorator_list
        }  # fmt: skip
        plain.decorator_list = [self.stub.need("omniloop", "blocking")]
        if not is_async:
            return [plain]
        fields = {field: getattr(plain, field) for field in ast.FunctionDef._fields if hasattr(plain, field)}
        return [ast.AsyncFunctionDef(**fields)]

    def several(self, protocol: str, nodes: list[Function], binding: str) -> list[ast.stmt]:
        """A class of callables for what one decorated function can't say: overloads, type parameters, class methods."""
        nodes = [
            node for node in nodes if any(_last_name(each) == "overload" for each in node.decorator_list)
        ] or nodes[-1:]
        calls: list[ast.stmt] = []
        aios: list[ast.stmt] = []
        for node in nodes:
            made = self.sync("__call__", node, keep={"overload"})
            made.args = _bound(made.args, binding)
            calls.append(made)
            aio = self.sync("__call__", node, keep={"overload"}, sync=False)
            aio.args = _bound(aio.args, binding)
            is_async = isinstance(node, ast.AsyncFunctionDef) and not _yields(node)
            kind: type[Function] = ast.AsyncFunctionDef if is_async else ast.FunctionDef
            aios.append(kind(**{f: getattr(aio, f) for f in ast.FunctionDef._fields if hasattr(aio, f)}))
        base = self.stub.need("typing", "Protocol")
        own = self.stub.need("typing", "Self")
        face = ast.ClassDef(name=f"{protocol}_aio", bases=[base], keywords=[], body=aios, decorator_list=[])
        seconds = ast.BinOp(ast.Name("float"), ast.BitOr(), ast.Constant(None))
        more: list[ast.stmt] = [
            ast.FunctionDef(
                name="aio",
                args=ast.arguments([], [ast.arg("self")], None, [], [], None, []),
                body=[ast.Expr(ast.Constant(...))],
                decorator_list=[ast.Name("property")],
                returns=ast.Name(face.name),
            ),
            ast.FunctionDef(
                name="options",
                args=ast.arguments([], [ast.arg("self")], None, [ast.arg("timeout", seconds)], [None], None, []),
                body=[ast.Expr(ast.Constant(...))],
                decorator_list=[],
                returns=own,
            ),
        ]
        call = ast.ClassDef(name=protocol, bases=[base], keywords=[], body=[*calls, *more], decorator_list=[])
        return [face, call, ast.AnnAssign(ast.Name(protocol), ast.Name(protocol), None, 1)]


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

    def __init__(self, face: _Face, sync: bool, twins: bool = True) -> None:
        self._face = face
        self._sync = sync
        self._twins = twins

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if self._sync and node.id in SYNC_NAMES:
            return self._standard(SYNC_NAMES[node.id])
        return self._face.lookup(node.id, twins=self._twins)

    def _standard(self, name: str) -> ast.expr:
        return self._face.stub.need("contextlib" if "Context" in name else "collections.abc", name)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if self._sync and node.attr in SYNC_NAMES:
            return self._standard(SYNC_NAMES[node.attr])
        twin = self._face.twin_of(node) if self._twins else None
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


class _Replace(ast.NodeTransformer):
    def __init__(self, names: dict[str, ast.expr]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._names.get(node.id, node)


def _bound(args: ast.arguments, binding: str) -> ast.arguments:
    """With a first parameter `self`, which a call of a class's instance has, and not that of the method."""
    made = copy.deepcopy(args)
    if binding != "none":
        (made.posonlyargs or made.args).pop(0)
    (made.posonlyargs or made.args).insert(0, ast.arg("self"))
    return made


def _copy_type_parameters(source: ast.stmt, made: ast.stmt) -> None:
    # There are none up to 3.11.
    for name in ("type_params",):
        if hasattr(source, name):
            setattr(made, name, getattr(source, name))


def _short(default: ast.expr) -> ast.expr:
    if isinstance(default, ast.Constant) and (not isinstance(default.value, str) or len(default.value) < 40):
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
                if found.get(target.attr) is None:
                    found[target.attr] = annotation
        yield from ((name, annotation) for name, annotation in found.items() if not name.startswith("_"))


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
