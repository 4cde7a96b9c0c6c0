"""
Writes a stub with the types of a module's sync twins beside the module: `python -m omniloop stubs my_sdk.client`.

A type checker can't compute the type of ``blocking(AsyncClient)``. So the module is imported, to see which of its names are twins, and
the twins' classes are written from the source of the originals. Signatures, overloads and docstrings are kept; an awaitable becomes the
awaited value; an original that has a twin in the module becomes that twin. Everything else in the module is written unchanged.

1. `_Stub` goes through the statements of the module.
2. For a twin it makes a `_Face` for the original and for each of its bases, which writes the members that this class defines.
3. Annotations use the names of the module of *that* class. The `_Face` replaces them by the stub's names, and notes the needed imports.
4. A class that comes out of a twin and has no name in the module gets one, and is written at the end.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import copy
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin

from typing_extensions import override

from . import faces
from .annotations import AWAITED, SYNC_NAMES, SyncFace, last_name, parsed, parts_of
from .twins import Options, SyncCall, Twin, TwinType, make_class

Function = ast.FunctionDef | ast.AsyncFunctionDef
_IMPORTS = ast.Import | ast.ImportFrom

# Some checks are off: checkers let an overriding function take more parameters than the overridden one, but not an overriding attribute.
_HEADER = """\
# Written by `python -m omniloop stubs {}`: change the source, and write it again.
# mypy: disable-error-code="override,misc,type-arg,type-var,overload-overlap"
# pyright: reportIncompatibleVariableOverride=false, reportIncompatibleMethodOverride=false, reportOverlappingOverload=false, reportInvalidTypeVarUse=false, reportInvalidTypeArguments=false
"""


# --- the command ------------------------------------------------------------------------------------------------------


def main(args: list[str]) -> int:
    """Write the stubs, or only check them; return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m omniloop stubs", description="Write the types of the sync twins in a module, as a .pyi beside it."
    )
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="as it is imported: my_sdk.client")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a stub is missing or stale")
    parser.add_argument(
        "--output", metavar="FOLDER", help="write there, as a tree of packages, instead of beside the modules"
    )
    chosen = parser.parse_args(args)
    # Modules in the current folder can be imported, as with `python -m`.
    sys.path.insert(0, os.getcwd())
    stale = 0
    for name in chosen.modules:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            parser.exit(2, f"{name} can't be imported: {error}\n")
        try:
            text = stub(module)
        except ValueError as error:
            parser.exit(2, f"{error}\n")
        path = Path(inspect.getsourcefile(module) or "").with_suffix(".pyi")
        if chosen.output is not None:
            path = Path(chosen.output, *(module.__package__ or "").split("."), path.name)
        if not chosen.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
            continue
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if _meaning(old) != _meaning(text):
            stale = 1
            print(f"{path} is {'stale' if old else 'missing'}. Run: python -m omniloop stubs {name}", file=sys.stderr)
            lines = old.splitlines(True), text.splitlines(True)
            sys.stderr.writelines(difflib.unified_diff(*lines, str(path), f"{name}, as it is now"))
    return stale


def _meaning(text: str) -> object:
    """Return the content of a stub, for a comparison, without the parts that a formatter may change."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.Module, ast.FunctionDef, ast.AsyncFunctionDef)) and _docstring(node):
            docstring = ast.Expr(ast.Constant(ast.get_docstring(node)))
            node.body = [docstring, *[each for each in node.body[1:] if ast.unparse(each) != "..."]]
    imports = [node for node in tree.body if isinstance(node, _IMPORTS)]
    where = [(getattr(node, "level", 0), getattr(node, "module", "")) for node in imports]
    names = {(*at, ast.dump(each)) for at, node in zip(where, imports, strict=True) for each in node.names}
    return names, ast.dump(ast.Module([node for node in tree.body if node not in imports], []))


def stub(module: ModuleType) -> str:
    """Return the text of the stub for *module*; ValueError if it has no twin, or no source."""
    return _Stub(module).text()


# --- what is read -----------------------------------------------------------------------------------------------------


class _Source(dict[str, Any]):
    """A module as it is written. As a dict it maps the names to their values, also names that it imports for type checkers only."""

    def __init__(self, name: str) -> None:
        module = sys.modules.get(name)
        super().__init__(vars(module) if module else {})
        self.tree: ast.Module | None = None
        with suppress(OSError, TypeError, SyntaxError):
            self.tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
        # Maps each name that is imported to its module and its name there (None for `import a.b`).
        self.imports: dict[str, tuple[str, str | None]] = {}
        package = name if hasattr(module, "__path__") else name.rpartition(".")[0]
        for node in _flat(self.tree):
            if isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                self.imports |= {alias.asname or alias.name: (base, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.partition(".")[0]
                    self.imports[alias.asname or alias.name] = alias.name, None
                    self.imports.setdefault(alias.asname or first, (first, None))

    def __missing__(self, name: str) -> Any:
        module, attribute = self.imports[name]
        found = importlib.import_module(module)
        # Either an attribute of the module, or a submodule of the package.
        return found if attribute is None else (
            getattr(found, attribute, None) or importlib.import_module(f"{module}.{attribute}")
        )  # fmt: skip


_source = functools.cache(_Source)


def _flat(of: ast.AST | None) -> Iterator[ast.stmt]:
    """Yield the statements in the body of *of*, also those in the branches of `if` and `try`."""
    for node in [each for part in ("body", "orelse", "handlers") for each in getattr(of, part, [])]:
        if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
            yield from _flat(node)
        else:
            yield node


def _class_in(node: ast.AST | None, path: str) -> ast.ClassDef | None:
    for name in path.split("."):
        node = next((each for each in _flat(node) if isinstance(each, ast.ClassDef) and each.name == name), None)
    return node  # type: ignore[return-value]


@functools.cache
def _home(cls: type) -> str:
    """Return the name of the module with the source of *cls*: libraries set `__module__` of their public classes to the package's name."""
    if _class_in(_source(cls.__module__).tree, cls.__name__) is None:
        for member in vars(cls).values():
            found: Any = getattr(inspect.unwrap(member) if callable(member) else member, "__globals__", {})
            home: str = found.get("__name__", "")
            if _source(home).tree is not None:
                return home
    return cls.__module__


def _class_node(cls: type) -> ast.ClassDef | None:
    """Return the syntax tree of *cls*; None for a class that is defined in a function or in C."""
    return _class_in(_source(_home(cls)).tree, cls.__qualname__)


@functools.cache
def _evaluated(module: str, written: str) -> Any:
    try:
        return eval(written, {}, _source(module))
    except Exception:
        return None


def _resolved(module: str, node: ast.expr) -> Any:
    """Evaluate an annotation in *module*; None if that fails."""
    return _evaluated(module, node.id if isinstance(node, ast.Name) else ast.unparse(node))


@functools.cache
def _needs_twin(kind: type, depth: int = 2) -> bool:
    """Tell whether objects of *kind* come out as twins, as far as annotations and `__init__` show."""
    # Abstract classes get no twin: `SYNC_NAMES` names their sync faces.
    abstract = {"typing", "collections.abc", "contextlib", "abc"}
    if not isinstance(kind, type) or faces.is_never(kind) or kind.__module__ in abstract:
        return False
    if faces.is_faced(kind) or faces.is_data(kind):
        return faces.is_faced(kind)
    if faces.class_leads(kind) <= depth or faces.wraps(kind):
        return True
    attributes = _instance_attributes(_class_node(kind)) if depth else {}
    return any(each and _needs_twin(_resolved(_home(kind), _plain(each)), depth - 1) for each in attributes.values())


def _plain(annotation: ast.expr) -> ast.expr:
    """Return the class in an annotation such as `C[int]`, or in a call such as `C(…)`."""
    annotation = parsed(annotation)
    if isinstance(annotation, ast.Call):
        return annotation.func
    return annotation.value if isinstance(annotation, ast.Subscript) else annotation


def _docstring(node: ast.ClassDef | Function | ast.Module | None) -> list[ast.stmt]:
    return node.body[:1] if node is not None and ast.get_docstring(node, clean=False) is not None else []


def _decorators(node: Function) -> set[str]:
    return {last_name(each) for each in node.decorator_list}


def _is_coroutine_function(node: Function) -> bool:
    """Tell whether a call is awaited: the function is `async def`, has no `yield` of its own, and is no `@asynccontextmanager`."""
    is_async = isinstance(node, ast.AsyncFunctionDef) and "asynccontextmanager" not in _decorators(node)
    return is_async and not _yields(node)


def _yields(node: ast.AST) -> bool:
    return any(
        isinstance(each, (ast.Yield, ast.YieldFrom))
        or (not isinstance(each, (Function, ast.Lambda, ast.ClassDef)) and _yields(each))
        for each in ast.iter_child_nodes(node)
    )


def _instance_attributes(node: ast.ClassDef | None) -> dict[str, ast.expr | None]:
    """Map the public attributes that `__init__` sets to their annotation, or to that of the assigned parameter, constant or call."""
    found: dict[str, ast.expr | None] = {}
    annotation: ast.expr | None
    for init in getattr(node, "body", ()):
        if not isinstance(init, ast.FunctionDef) or init.name != "__init__":
            continue
        args = init.args
        parameters = {arg.arg: arg.annotation for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
        for inner in ast.walk(init):
            match inner:
                case ast.AnnAssign(ast.Attribute(ast.Name("self"), name), annotation):
                    pass
                case ast.Assign([ast.Attribute(ast.Name("self"), name)], ast.Name(given)):
                    annotation = parameters.get(given)
                case ast.Assign([ast.Attribute(ast.Name("self"), name)], ast.Call(of)):
                    annotation = ast.Call(of, [], [])
                case ast.Assign([ast.Attribute(ast.Name("self"), name)], value):
                    constant = getattr(value, "value", None) if isinstance(value, ast.Constant) else None
                    annotation = None if constant is None else ast.Name(type(constant).__name__)
                case _:
                    continue
            if found.get(name) is None and not name.startswith("_"):
                found[name] = annotation
    return found


@functools.cache
def _has(kind: type | None, name: str) -> bool:
    """Tell whether the class has an attribute of this name, which hides a global of the same name inside the class."""
    return hasattr(kind, name) or any(
        name in vars(base).get("__annotations__", ()) or name in _instance_attributes(_class_node(base))
        for base in getattr(kind, "__mro__", [object])[:-1]
    )


# --- what is written --------------------------------------------------------------------------------------------------


def _no_body() -> list[ast.stmt]:
    return [ast.Expr(ast.Constant(...))]


def _attribute(name: str, annotation: ast.expr, value: ast.expr | None = None) -> ast.AnnAssign:
    return ast.AnnAssign(ast.Name(name), annotation, value, 1)


def _given(parameters: Iterable[str]) -> str:
    given = ", ".join(parameters)
    return f"[{given}]" if given else ""


def _short(default: ast.expr | None, arg: ast.arg) -> Any:
    """Return a short constant default if its type fits the annotation (not for `x: int = None`), and `...` for any other default."""
    if isinstance(default, ast.Constant) and len(str(default.value)) < 40:
        kind = type(default.value)
        names = {type(None): ["None", "Optional"], int: ["int", "float"]}.get(kind, [kind.__name__])
        written = "" if arg.annotation is None else ast.unparse(arg.annotation)
        if any(name in written for name in (*names, "Any", "object", "Literal")):
            return default
    return default and ast.Constant(...)


# Calls that make a type: their assignments are written unchanged.
_MAKE_TYPES = {"TypeVar", "ParamSpec", "TypeVarTuple", "NewType", "namedtuple", "NamedTuple", "TypedDict", "Enum"}
_GENERIC = {"list": "[{0}]", "set": "[{0}]", "frozenset": "[{0}]", "tuple": "[{0}, ...]", "dict": "[{0}, {0}]"}


class _Stub:
    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.source = _source(module.__name__)
        if self.source.tree is None:
            raise ValueError(f"There is no source of {module.__name__} to read.")
        self.tree = self.source.tree
        # The name in this module of each twin, by its original.
        self.twins: dict[type, str] = {}
        for name, value in vars(module).items():
            if isinstance(value, TwinType) and value is not Twin:
                self.twins.setdefault(value._omniloop_original, name)
        if not self.twins and not any(isinstance(value, SyncCall) for value in vars(module).values()):
            raise ValueError(f"There is no twin in {module.__name__}. Name the module in which blocking() is called.")
        # Further imports: maps each module and name to the local name.
        self.needed: dict[tuple[str, str | None], str] = {}
        self.taken = {*vars(module), *dir(builtins), *self.source.imports}
        # Classes that come out as twins and have no name in the module: their name in the stub; and their options, until they are written.
        self.nested: dict[type, str] = {}
        self.unwritten: list[tuple[type, Options]] = []
        # The annotations of parameters that take the original, or its twin if there is one: the original's name, class and type
        # parameters. Written at the end, when all classes that come out of twins are known.
        self.either: dict[ast.Name, tuple[ast.expr, type, ast.expr | None]] = {}
        self.self_variable: str | None = None

    def text(self) -> str:
        body = self.statements(self.tree.body, vars(self.module))
        # The list grows meanwhile.
        for kind, options in self.unwritten:
            body += self.twin(self.nested[kind], make_class(kind, options), None)
        for name, (plain, kind, parameters) in self.either.items():
            given = _given([ast.unparse(parameters)] if parameters else [])
            twin = f" | {self.nested[kind]}{given}" if kind in self.nested else ""
            name.id = f"{ast.unparse(plain)}{given}{twin}"
        docstring = _docstring(self.tree)
        imports = [node for node in body if isinstance(node, _IMPORTS)]
        body = [node for node in body[len(docstring) :] if node not in imports]
        if self.self_variable is not None:
            variable = f"{self.self_variable} = {self.need('typing', 'TypeVar').id}({self.self_variable!r})"
            body[:0] = ast.parse(variable).body
        for (module, attribute), local in sorted(self.needed.items(), key=str):
            alias = [ast.alias(attribute or module, None if local == (attribute or module) else local)]
            imports.append(ast.ImportFrom(module, alias, 0) if attribute else ast.Import(alias))
        lines = _unparsed(body)
        words = set(re.findall(r"(?<!def )(?<![\w.])\w+", lines))
        imports = [used for node in imports if (used := _used(node, words))]
        return "".join([_HEADER.format(self.module.__name__), _unparsed(docstring), _unparsed(imports), lines])

    def need(self, module: str, name: str | None) -> ast.Name:
        """Return the local name for *name* in *module*, or for the module itself (None), and note the import."""
        for local, origin in self.source.imports.items():
            if origin == (module, name):
                return ast.Name(local)
        if (module, name) not in self.needed:
            self.needed[module, name] = self.free(name or module.partition(".")[0])
        return ast.Name(self.needed[module, name])

    def any(self) -> ast.Name:
        return self.need("typing", "Any")

    def nested_name(self, kind: type, options: Options) -> str | None:
        """Return the name of the twin of *kind* where it comes out of a twin with these options; None if *kind* gets no twin."""
        if kind in self.twins:
            return self.twins[kind]
        if kind not in self.nested:
            wanted = _needs_twin(kind) and (options.nested or faces.opens(kind)) and not options.leaves_alone(kind)
            if not wanted or _class_node(kind) is None:
                return None
            self.nested[kind] = self.free(f"_{kind.__name__.lstrip('_')}")
            self.unwritten.append((kind, options))
        return self.nested[kind]

    def free(self, name: str) -> str:
        while name in self.taken:
            name = f"_{name}"
        self.taken.add(name)
        return name

    # --- statements of the module -------------------------------------------------------------------------------------

    def statements(self, body: list[ast.stmt], namespace: Mapping[str, Any]) -> list[ast.stmt]:
        return [out for node in body for out in self.statement(node, namespace)]

    def statement(self, node: ast.stmt, namespace: Mapping[str, Any]) -> list[ast.stmt]:
        """Return the stub's statements for a statement of the module, or of a class in it."""
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant(str())):
                return [node]
            case ast.If():
                body = self.statements(node.body, namespace) or [ast.Pass()]
                return [ast.If(node.test, body, self.statements(node.orelse, namespace))]
            case ast.Try():
                return self.statements(node.body, namespace)
            case ast.ClassDef(name=name) | ast.Assign(targets=[ast.Name(name)]):
                value = namespace.get(name)
                if isinstance(value, TwinType):
                    return self.twin(name, value, node if isinstance(node, ast.ClassDef) else None)
                if isinstance(node, ast.ClassDef):
                    return [self.plain_class(node, vars(value) if isinstance(value, type) else {})]
                return self.function(name, value) if isinstance(value, SyncCall) else self.assignment(name, value, node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return [_Face(self, "", self.module.__name__, None, None).declared(node.name, node)]
            case ast.AnnAssign(target=ast.Name(name), value=value):
                # The value of a `TypeAlias` is needed.
                is_type = isinstance(value, (ast.Subscript, ast.BinOp))
                return [_attribute(name, node.annotation, value if is_type else value and ast.Constant(...))]
        return [node] if isinstance(node, getattr(ast, "TypeAlias", ())) else []

    def assignment(self, name: str, value: Any, node: ast.Assign) -> list[ast.stmt]:
        written = node.value
        makes_a_type = isinstance(written, ast.Call) and last_name(written) in _MAKE_TYPES
        is_alias = isinstance(written, (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp)) and (
            isinstance(value, ModuleType) or get_origin(value) is not None or callable(value)
        )
        if makes_a_type or is_alias or name.startswith("__") or isinstance(value, Enum):
            return [node]
        kind = type(value)
        if value is None or getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
            return [_attribute(name, self.any())]
        known = kind.__module__ in {"builtins", self.module.__name__}
        named = kind.__name__ if known else self.need(kind.__module__, kind.__name__).id
        return [_attribute(name, ast.Name(named + _GENERIC.get(named, "").format(self.any().id)))]

    def plain_class(self, node: ast.ClassDef, namespace: Mapping[str, Any]) -> ast.ClassDef:
        made = copy.copy(node)
        made.body = self.statements(node.body, namespace)
        known = {each.name for each in _flat(node) if isinstance(each, Function)}
        known |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        for name, annotation in _instance_attributes(node).items():
            if name not in known:
                is_call = annotation is None or isinstance(annotation, ast.Call)
                made.body.append(_attribute(name, self.any() if annotation is None or is_call else annotation))
        made.body = made.body or _no_body()
        return made

    # --- twins --------------------------------------------------------------------------------------------------------

    def function(self, name: str, call: SyncCall) -> list[ast.stmt]:
        """Write the twin of a function: ``fetch = blocking(_fetch)``."""
        original: Any = inspect.unwrap(call._fn)
        home = getattr(original, "__globals__", {}).get("__name__", "")
        written = getattr(original, "__name__", "")
        nodes = [each for each in _flat(_source(home).tree) if isinstance(each, Function) and each.name == written]
        face = _Face(self, name, home, None, call._options)
        if len(nodes) == 1:
            return [face.decorated(face.declared(name, nodes[0], sync=False))]
        return face.several(name, nodes, "function") if nodes else [_attribute(name, self.any())]

    def twin(self, name: str, twin: TwinType, node: ast.ClassDef | None) -> list[ast.stmt]:
        """Write the class of a twin, after the classes that it needs; *node* is the source if the user has derived a class from a twin."""
        original, options = twin._omniloop_original, twin._omniloop_options
        derived = node if "_omniloop_original" not in vars(twin) else None
        own = _class_node(original)
        bases: list[ast.expr] = []
        covered: set[type] = {object}
        for base in original.__mro__[1:]:
            if base in self.twins and base not in covered:
                bases.append(ast.Name(self.twins[base]))
                covered |= set(base.__mro__)
        decorators: list[ast.expr] = []
        body = _docstring(derived) or _docstring(own)
        before: list[ast.stmt] = []
        # The names of the members written so far, and the type arguments of the bases.
        seen: set[str] = set()
        arguments: dict[type, dict[str, ast.expr]] = {}
        for base in original.__mro__:
            found = None if base in covered or base.__module__ in {"typing", "abc", "builtins"} else _class_node(base)
            if found is not None:
                face = _Face(self, name, _home(base), base, options, original, arguments.get(base, {}))
                if base is original:
                    bases = face.bases(found, bases)
                    decorators = [face.visit(each) for each in found.decorator_list if last_name(each) == "dataclass"]
                face.pass_on(found, arguments)
                body += face.members(found, twin._omniloop_hidden, seen, bool(decorators) and base is original)
                before += face.before
        for inner in derived.body if derived is not None else ():
            if isinstance(inner, Function) and inner.name not in seen:
                body += self.statement(inner, {})
        made: Any = ast.ClassDef(name, bases, [], body or _no_body(), decorators)
        made.type_params = getattr(own, "type_params", [])
        return [*before, made]


def _unparsed(body: Sequence[ast.stmt]) -> str:
    lines = ast.unparse(ast.fix_missing_locations(ast.Module(list(body), [])))
    # As formatters write it in a stub.
    return re.sub(r":\n +\.\.\.$", ": ...", lines, flags=re.MULTILINE) + "\n" * bool(lines)


def _used(node: ast.Import | ast.ImportFrom, words: set[str]) -> ast.Import | ast.ImportFrom | None:
    """
    Return the import without the names that the stub does not use; None if none is left.

    Names as in `from x import y as y` stay: a stub exports them.
    """
    made = copy.copy(node)
    if getattr(node, "module", "") != "__future__":
        words = words | {"*", *[alias.name for alias in node.names if alias.name == alias.asname]}
        made.names = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) in words]
    return made if made.names else None


# The sync special method for each async one.
_SPECIAL = {
    "__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__", "__anext__": "__next__", "__await__": "wait",
}  # fmt: skip
# The kinds of decorators that a stub keeps.
_PROPERTY = {"property", "cached_property", "setter", "deleter"}
_KEPT = {"classmethod", "staticmethod", "overload", "abstractmethod"}


def _is_self(node: ast.AST) -> bool:
    return last_name(node).lstrip("_") == "Self"


def _names_self(made: Function) -> bool:
    """Tell whether the signature uses `Self`."""
    return any(_is_self(inner) for part in (made.args, made.returns) if part is not None for inner in ast.walk(part))


@dataclass
class _Face(SyncFace):
    """
    Writes the sync face of functions in one module, or of the members that one class (the original or a base of it) defines.

    It visits an annotation of the original, and returns that of the stub.
    """

    stub: _Stub
    name: str
    module: str
    original: type | None
    # None leaves all as it is: functions of the module itself.
    options: Options | None
    # The class whose face is written; *original* may be a base of it.
    outer: type | None = None
    # Replacements for type variables, such as a base's, and for `Self` where it needs another name.
    variables: dict[str, ast.expr] = field(default_factory=dict)
    # Classes of callables that the members need, written before the class.
    before: list[ast.stmt] = field(default_factory=list)
    # Whether async types become sync ones, and classes become their twins; and whether the annotation is that of a parameter.
    sync: bool = True
    twins: bool = True
    goes_in: bool = False

    @property
    def parameters(self) -> list[str]:
        return [each.__name__ for each in getattr(self.original, "__parameters__", ())]

    # --- annotations --------------------------------------------------------------------------------------------------

    @override
    def standard(self, name: str) -> ast.expr:
        return self.stub.need("contextlib" if "Context" in name else "collections.abc", name)

    @override
    def named(self, node: ast.Name | ast.Attribute) -> ast.expr:
        if _is_self(node):
            if not self.twins and self.outer is not None:
                return self.plain(self.outer.__name__)
            if "Self" in self.variables:
                return self.variables["Self"]
        if isinstance(node, ast.Name) and node.id in self.variables:
            return self.variables[node.id]
        twin = self.twin_named(node) if self.twins else None
        if twin is not None:
            return twin
        if isinstance(node, ast.Name):
            return self.lookup(node.id)
        # An attribute of a module or a class: the part before the dot names the original.
        return ast.Attribute(replace(self, twins=False).visit(node.value), node.attr)

    @override
    def called(self, node: ast.Subscript) -> Any:
        return replace(self, sync=False, twins=False).generic_visit(node)

    @override
    def visit_Call(self, node: ast.Call) -> ast.expr:
        # A decorator, whose arguments are values and not annotations.
        return ast.Call(self.visit(node.func), node.args, node.keywords)

    @override
    def visit_Subscript(self, node: ast.Subscript) -> Any:
        made = super().visit_Subscript(node)
        either = self.stub.either.get(getattr(made, "value", None))  # type: ignore[arg-type]
        if either is None:
            return made
        # `AsyncStream[T]`: the original and the twin both get the type argument.
        self.stub.either[made.value] = *either[:2], made.slice
        return made.value

    def twin_named(self, node: ast.Name | ast.Attribute) -> ast.expr | None:
        """Return the twin's name for a class that comes out as a twin; for a parameter, the original or its twin; None without a twin."""
        kind = _resolved(self.module, node)
        if not isinstance(kind, type) or self.options is None:
            return None
        if kind in self.stub.twins or not self.goes_in:
            name = self.stub.nested_name(kind, self.options)
            return None if name is None else ast.Name(name)
        if not _needs_twin(kind):
            return None
        either = ast.Name("")
        self.stub.either[either] = replace(self, sync=False, twins=False).visit(node), kind, None
        return either

    def lookup(self, name: str) -> ast.expr:
        """Return the stub's name for *name* of the original's module."""
        if name in self.variables:
            return self.variables[name]
        source = _source(self.module)
        if name in source or name in source.imports:
            return self.plain(name)
        if hasattr(builtins, name):
            # A method of the class may hide the builtin.
            hidden = not name.startswith("__") and _has(self.outer, name)
            return self.stub.need("builtins", name) if hidden else ast.Name(name)
        if self.original is not None and isinstance(getattr(self.original, name, None), type):
            # A class that is nested in the original.
            return ast.Attribute(self.plain(self.original.__name__), name)
        return ast.Name(name)

    def plain(self, name: str) -> ast.expr:
        if self.module == self.stub.module.__name__:
            return ast.Name(name)
        imports = _source(self.module).imports
        origin = imports.get(name, (self.module, name))
        package = self.module.partition(".")[0]
        while origin[0].partition(".")[0] == package and origin[1] in _source(origin[0]).imports:
            # Follow the imports to the definition, because a module need not export the names that it imports.
            origin = _source(origin[0]).imports[origin[1]]
        if origin == (name, None):
            # `import a.b.c`: attributes after the name may need the submodule.
            self.stub.needed |= {(each, None): each for each in imports if each.startswith(f"{name}.")}
        return self.stub.need(*origin)

    # --- a class ------------------------------------------------------------------------------------------------------

    def bases(self, own: ast.ClassDef, twins: list[ast.expr]) -> list[ast.expr]:
        """Return the bases to write: the *twins* with their type arguments (`Base[int]`), and `Generic` if the class needs it."""
        generic = [each for each in own.bases if last_name(_plain(each)) in {"Generic", "Protocol"}]
        written = [self.visit(base) for base in generic or own.bases]
        if generic:
            return [*twins, *written]
        given = {ast.unparse(each.value): each for each in written if isinstance(each, ast.Subscript)}
        twins = [given.get(ast.unparse(each), each) for each in twins]
        parameters = [ast.unparse(self.lookup(each)) for each in self.parameters]
        has_parameters = any(isinstance(each, ast.Subscript) for each in twins) or getattr(own, "type_params", [])
        if parameters and not has_parameters:
            twins.append(ast.Name(self.stub.need("typing", "Generic").id + _given(parameters)))
        return twins

    def pass_on(self, node: ast.ClassDef, arguments: dict[type, dict[str, ast.expr]]) -> None:
        """Note the type arguments that the class gives to its bases: `class Pages(Base[int])`."""
        for written in node.bases:
            base = _resolved(self.module, _plain(written))
            names = [each.__name__ for each in getattr(base, "__parameters__", ())]
            if isinstance(base, type) and names and base not in arguments:
                given = [self.visit(each) for each in parts_of(written)]
                given = given if len(given) == len(names) else [self.stub.any()] * len(names)
                arguments[base] = dict(zip(names, given, strict=True))

    def members(
        self, node: ast.ClassDef, renamed: dict[str, str], seen: set[str], is_dataclass: bool
    ) -> Iterator[ast.stmt]:
        """Write the members that *node* defines, except those in *seen*, and add them to *seen*."""
        functions: dict[str, list[Function]] = {}
        # Sync special methods that have an async counterpart, whose sync face has the same name.
        hidden = {face for name, face in _SPECIAL.items() if hasattr(self.outer, name)}
        hidden |= {"__post_init__"} if is_dataclass else set()
        found: set[str] = set()
        for inner in _flat(node):
            match inner:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    functions.setdefault(inner.name, []).append(inner)
                case ast.AnnAssign(target=ast.Name(name)) if name not in seen:
                    found.add(name)
                    value = ast.Constant(...) if inner.value is not None and is_dataclass else None
                    yield _attribute(name, self.visit(inner.annotation), value)
                case ast.Assign(targets=[ast.Name(name), *_], value=ast.Name(other)) if other in functions:
                    # Another name for a method.
                    functions[name] = functions[other]
                case ast.Assign(targets=[ast.Name(name), *_]) if not (
                    name in seen or name.startswith("__") or callable(getattr(self.outer, name, None))
                ):
                    found.add(name)
                    constant = inner.value.value if isinstance(inner.value, ast.Constant) else None
                    yield from self.stub.assignment(name, constant, inner)
        for name, nodes in functions.items():
            shown = renamed.get(name, name)
            # A class that `blocking` was not called for shows only public and special methods.
            private = self.outer in self.stub.nested and re.match("_(?!_)", name)
            if not (shown in seen | hidden or private or (shown == name and name in renamed.values())):
                found.add(shown)
                yield from self.method(shown, name, nodes)
        for name, annotation in _instance_attributes(node).items():
            if name not in seen | found:
                found.add(name)
                yield _attribute(name, self.attribute(annotation))
        seen |= found

    def attribute(self, annotation: ast.expr | None) -> ast.expr:
        """Return the type of an attribute, which may be given as a call of its class."""
        if isinstance(annotation, ast.Call):
            kind, annotation = _resolved(self.module, annotation.func), annotation.func
            if not isinstance(kind, type) or getattr(kind, "__parameters__", None) or "__class_getitem__" in vars(kind):
                # A generic class: the call does not show its type arguments.
                return self.stub.any()
        return self.stub.any() if annotation is None else self.visit(annotation)

    def method(self, shown: str, name: str, nodes: list[Function]) -> Iterator[ast.stmt]:
        docstring = _docstring(nodes[-1])
        overloads = [node for node in nodes if "overload" in _decorators(node)]
        nodes = self.of_async_clients(overloads) or nodes
        node, decorators = nodes[-1], _decorators(nodes[-1])
        if name == "__await__":
            if not hasattr(self.original, "wait"):
                # It returns the last type argument of the annotated generator.
                made, given = self.declared("wait", node), parts_of(node.returns)
                made.returns = self.attribute(given[-1] if len(given) > 1 else None)
                yield made
        elif name in _SPECIAL:
            yield self.declared(_SPECIAL[name], node, keep={"overload"})
            yield self.declared(name, node, sync=False, keep={"overload"})
        elif decorators & {*_PROPERTY, "getter"}:
            yield from (self.declared(shown, each, keep=_PROPERTY) for each in nodes)
        elif not any(map(self.crosses, nodes)):
            for each in nodes:
                made = self.declared(shown, each, keep=_KEPT)
                made.body = docstring if overloads and docstring and each is nodes[0] else made.body
                yield made
        else:
            made = self.declared(shown, node, sync=False)
            binding = "class" if "classmethod" in decorators else "none" if "staticmethod" in decorators else "object"
            if len(nodes) > 1 or binding != "object" or self.says_more(node) or _names_self(made):
                *classes, member = self.several(shown, nodes, binding, docstring)
                self.before += classes
                yield member
            else:
                made.body = docstring or made.body
                yield self.decorated(made)

    def itself(self, node: Function) -> dict[str, ast.expr]:
        """Map the type variable of `def f(self: T) -> T` or `cls: type[T]` to `Self`."""
        first = [*node.args.posonlyargs, *node.args.args][:1]
        if not first or first[0].annotation is None or first[0].arg.lstrip("_") not in {"self", "cls"}:
            return {}
        annotation = parsed(first[0].annotation)
        if isinstance(annotation, ast.Subscript):
            annotation = parsed(annotation.slice)
        name = getattr(annotation, "id", "")
        is_own = name in [each.name for each in getattr(node, "type_params", ())]
        if is_own or type(_resolved(self.module, annotation)).__name__ == "TypeVar":
            return {name: self.variables.get("Self") or self.stub.need("typing", "Self")}
        return {}

    def of_async_clients(self, overloads: list[Function]) -> list[Function]:
        """Drop the overloads whose annotation of `self` is for a sync client: redis has such pairs."""
        typed = [node for node in overloads if node.args.args and node.args.args[0].annotation is not None]
        if not any(map(self.crosses, typed)):
            return overloads
        return [node for node in overloads if node not in typed or self.crosses(node)]

    def crosses(self, node: Function) -> bool:
        """Tell whether the result of a call is awaited, entered or iterated over in async code."""
        returned = "" if node.returns is None else last_name(_plain(node.returns))
        return isinstance(node, ast.AsyncFunctionDef) or returned in {*SYNC_NAMES, *AWAITED}

    def says_more(self, node: Function) -> bool:
        """Tell whether `@blocking` can't express the type: own type parameters, or a result that can be iterated over again."""
        known = {*self.parameters, *self.itself(node)}
        names = [each.id for each in ast.walk(node.args) if isinstance(each, ast.Name)]
        kinds = {type(_source(self.module).get(name)).__name__ for name in names if name not in known}
        own = [each for each in getattr(node, "type_params", ()) if each.name not in known]
        anew = node.returns is not None and last_name(_plain(node.returns)) == "AsyncIterable"
        return bool(own or anew or kinds & {"TypeVar", "ParamSpec", "TypeVarTuple"})

    # --- one function -------------------------------------------------------------------------------------------------

    def declared(self, shown: str, node: Function, *, sync: bool = True, keep: Iterable[str] = ()) -> Function:
        """Return a function without its body, with the stub's names: its sync face, or without *sync* its async one."""
        is_plain = self.options is None
        own = {} if is_plain else self.itself(node)
        face = replace(self, variables=self.variables | own)
        inward, args = replace(face, goes_in=True), node.args
        first = (args.posonlyargs + args.args)[:1]

        def declared(arg: Any) -> Any:
            if isinstance(arg, list):
                return [*map(declared, arg)]
            if not isinstance(arg, ast.arg):
                return arg
            if arg in first and arg.arg.lstrip("_") in {"self", "cls", "mcs"} and not (is_plain and arg.annotation):
                # Its annotation names the original's class.
                return ast.arg(arg.arg)
            return ast.arg(arg.arg, self.stub.any() if arg.annotation is None else inward.written(arg.annotation))

        made = ast.arguments(**{name: declared(value) for name, value in ast.iter_fields(args)})
        made.kw_defaults = [*map(_short, args.kw_defaults, made.kwonlyargs)]
        # Defaults belong to the last parameters, so both lists are reversed.
        made.defaults = [*map(_short, args.defaults[::-1], (made.posonlyargs + made.args)[::-1])][::-1]
        returns = face.returned(node, sync)
        if returns is None:
            returns = ast.Constant(None) if node.name in {"__init__", "__aexit__"} else self.stub.any()
        changed = {
            "name": shown,
            "args": made,
            "body": _docstring(node) or _no_body(),
            "decorator_list": [
                face.written(each) for each in node.decorator_list if is_plain or last_name(each) in keep
            ],
            "returns": returns,
            "type_params": [each for each in getattr(node, "type_params", ()) if each.name not in own],
        }
        is_coroutine = (is_plain or not sync) and _is_coroutine_function(node)
        kind: Any = ast.AsyncFunctionDef if is_coroutine else ast.FunctionDef
        return kind(**{**vars(node), **changed})  # type: ignore[no-any-return]

    def written(self, annotation: ast.expr) -> ast.expr:
        return annotation if self.options is None else self.visit(annotation)

    def returned(self, node: Function, sync: bool) -> ast.expr | None:
        returns, given = node.returns, parts_of(node.returns)
        if returns is None or self.options is None:
            return returns
        if given and "asynccontextmanager" in _decorators(node):
            manager = self.stub.need("contextlib", f"Abstract{'' if sync else 'Async'}ContextManager")
            return ast.Subscript(manager, ast.Tuple([self.visit(given[0]), ast.Name("bool | None")]))
        # The awaited value is not changed, except that it may become a twin.
        sync = sync and not _is_coroutine_function(node)
        return (self.both_ways(returns) if sync else None) or replace(self, sync=sync).visit(returns)

    def both_ways(self, returns: ast.expr) -> ast.expr | None:
        """Return the type of `__aenter__` of a type that can be both awaited and entered; None for other types."""
        kind = _resolved(self.module, returns)
        kind = get_origin(kind) or kind
        if kind in self.stub.twins or not (hasattr(kind, "__await__") and hasattr(kind, "__aenter__")):
            return None
        owner = next(base for base in kind.__mro__ if "__aenter__" in vars(base))
        face = replace(self, module=_home(owner), original=owner, sync=False)
        face.variables = dict(zip(face.parameters, map(self.visit, parts_of(parsed(returns))), strict=False))
        for inner in _flat(_class_node(owner)):
            if isinstance(inner, ast.AsyncFunctionDef) and inner.name == "__aenter__" and inner.returns is not None:
                return face.visit(inner.returns)  # type: ignore[no-any-return]
        return self.stub.any()

    def decorated(self, made: Function) -> Function:
        """Write a function with `@blocking`, as in the source: a type checker then knows the call, `.aio` and `.options`."""
        # The class may have an attribute of this name, as redis' lock has.
        hidden = _has(self.outer, "blocking")
        decorator = self.stub.need("omniloop", None if hidden else "blocking")
        made.decorator_list = [ast.Attribute(decorator, "blocking") if hidden else decorator]
        return made

    def several(
        self, shown: str, nodes: list[Function], binding: str, docstring: list[ast.stmt] | None = None
    ) -> list[ast.stmt]:
        """
        Write classes of callables, and the member, for types that one decorated function can't express.

        These are overloads, own type parameters, class methods and `Self`. The classes have those type parameters of the object's class
        that their signatures use, and one for the object's class itself if they use `Self`.
        """
        stub, face = self.stub, self
        nodes = [node for node in nodes if "overload" in _decorators(node)] or nodes[-1:]
        own: list[str] = []
        if any(_names_self(self.declared("", node, sync=False)) for node in nodes):
            stub.self_variable = stub.self_variable or stub.free("_Self")
            own = [stub.self_variable]
            face = replace(self, variables=self.variables | {"Self": ast.Name(own[0])})
        keep = {"overload"} if len(nodes) > 1 else set[str]()
        calls, aios = (
            [face.declared("__call__", node, sync=sync, keep=keep) for node in nodes] for sync in (True, False)
        )
        for made in (*calls, *aios):
            # Only the first keeps its docstring.
            made.body = made.body if made is calls[0] else _no_body()
            # `self` is an instance of the class of callables, and not the object or class that the method is bound to.
            first = made.args.posonlyargs or made.args.args
            first[: binding in {"object", "class"}] = [ast.arg("self")]
        named = {inner.id for each in calls for inner in ast.walk(each) if isinstance(inner, ast.Name)}
        parameters: list[str] = []
        if binding == "object" and self.outer is not None:
            outer = replace(self, module=_home(self.outer), original=self.outer, variables={})
            parameters = [ast.unparse(outer.lookup(each)) for each in outer.parameters]
            parameters = [each for each in parameters if each in named]
        name, of = stub.free(f"_{self.name.lstrip('_')}_{shown}"), _given([*own, *parameters])
        itself = stub.need("typing", "Self").id
        node = None if self.outer is None else _class_node(self.outer)
        typed = {each.name: each for each in getattr(node, "type_params", ())}

        def made_class(name: str, body: list[Any]) -> ast.ClassDef:
            # The type parameters are given in the syntax that the source uses.
            generic: list[ast.expr] = [ast.Name(stub.need("typing", "Generic").id + of)] if of and not typed else []
            made: Any = ast.ClassDef(name, generic, [], body, [])
            made.type_params = [typed.get(each) or ast.TypeVar(each) for each in (*own, *parameters) if typed]  # type: ignore[attr-defined]
            return made  # type: ignore[no-any-return]

        both = f"""
@property
def aio(self) -> {name}_aio{of}: ...
def options(self, *, timeout: float | None) -> {itself}: ..."""
        classes: list[Any] = [made_class(f"{name}_aio", aios), made_class(name, [*calls, *ast.parse(both).body])]
        if binding == "object":
            itself_of = _given([*[itself] * len(own), *parameters])
            (member,) = ast.parse(f"@property\ndef {shown}(self) -> {name}{itself_of}: ...").body
            member.body = docstring or _no_body()  # type: ignore[attr-defined]
            return [*classes, member]
        if binding == "function":
            return [*classes, _attribute(shown, ast.Name(name))]
        if own:
            # A descriptor's `__get__` gets the class through which it was looked up.
            get = f"def __get__(self, obj: object, owner: type[{own[0]}]) -> {name}{of}: ..."
            name += "_of"
            classes += ast.parse(f"class {name}:\n    {get}").body
        return [*classes, _attribute(shown, ast.Subscript(stub.need("typing", "ClassVar"), ast.Name(name)))]
