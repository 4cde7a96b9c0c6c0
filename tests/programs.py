"""Makes the text of a program from functions, so that what runs in an interpreter of its own is formatted and linted as code."""

import ast
import dis
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType


def source_of(*programs: Callable[..., object]) -> str:
    """
    The text of a program whose top level is the bodies of *programs*, one after the other.

    Before each body comes what it names, and what that names in turn: of its file's top level the imports, functions,
    classes and constants; of the test around it functions as they stand, and other values by their `repr`. What a function
    inside a program declares `nonlocal` is a global there.

    Raises:
        TypeError: if a value of the test around is none that `repr` carries: text, numbers, and lists of such are.
    """
    parts: dict[str, None] = {}
    for program in programs:
        _add(_body(program), program, parts, ())
    return "\n".join(parts) + "\n"


def _add(part: str, owner: Callable[..., object] | str, parts: dict[str, None], above: tuple[str, ...]) -> None:
    """Append *part*, of a function or of a file's top level, to *parts*, after what it names. *above* are those that named it."""
    if part in parts or part in above:
        return
    file, around = (owner, {}) if isinstance(owner, str) else (_file(owner), _taken_from_around(owner))
    names = _names_in(part)
    for name in sorted(names & around.keys()):
        value = around[name]
        if isinstance(value, FunctionType):
            _add(_definition(value), value, parts, (*above, part))
            if value.__name__ != name:
                parts[f"{name} = {value.__name__}"] = None
        else:
            parts[f"{name} = {_plain(name, value)}"] = None
    for statement, bound in _top_level(file):
        if bound & names - around.keys():
            _add(statement, file, parts, (*above, part))
    parts[part] = None


def _names_in(part: str) -> set[str]:
    """The names that *part* takes from elsewhere, built-in ones among them."""
    top = compile(part, "<program>", "exec")
    used: set[str] = set()
    codes = [top]
    while codes:
        code = codes.pop()
        # Of a class's body too, which looks for a name in itself first.
        used |= _loaded(code) - _stored(code)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return used - _stored(top)


def _loaded(code: CodeType) -> set[str]:
    """The names that *code* looks for outside of functions."""
    return {step.argval for step in dis.get_instructions(code) if step.opname.startswith("LOAD_") and _is_by_name(step)}


def _stored(code: CodeType) -> set[str]:
    return {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_NAME"}


def _is_by_name(step: dis.Instruction) -> bool:
    return step.opname.endswith(("_NAME", "_GLOBAL", "_GLOBALS"))


def _taken_from_around(function: Callable[..., object]) -> dict[str, object]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


def _plain(name: str, value: object) -> str:
    try:
        if ast.literal_eval(repr(value)) == value:
            return repr(value)
    except (SyntaxError, ValueError):
        pass
    raise TypeError(f"{name} = {value!r} can't be written into a program: hand over text, a number, or a list of such.")


def _body(program: Callable[..., object]) -> str:
    """The body as it stands, under an `if` in place of the `def`: nothing in it, such as a text of several lines, moves."""
    node = _node(program)
    lines = _lines(_file(program))[: node.end_lineno]
    for inner in ast.walk(node):
        if isinstance(inner, ast.Nonlocal) and set(inner.names) <= set(program.__code__.co_cellvars):
            line = lines[inner.lineno - 1]
            lines[inner.lineno - 1] = line.replace("nonlocal", "global", 1)
    return "\n".join(["if True:", *lines[_first_line(node.body[0]) - 1 :]])


def _definition(function: Callable[..., object]) -> str:
    node = _node(function)
    return "\n".join([*(["if True:"] if node.col_offset else []), *_text(_file(function), node)])


def _text(file: str, node: ast.stmt) -> list[str]:
    return _lines(file)[_first_line(node) - 1 : node.end_lineno]


def _first_line(node: ast.stmt) -> int:
    """Of its first decorator, if it has any; so do code objects count."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])


def _node(function: Callable[..., object]) -> ast.FunctionDef:
    return _functions(_file(function))[function.__code__.co_firstlineno]


def _file(function: Callable[..., object]) -> str:
    return inspect.getsourcefile(function) or ""


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def _lines(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines()


@cache
def _functions(file: str) -> dict[int, ast.FunctionDef]:
    """Every function of *file*, by its first line."""
    functions = (node for node in ast.walk(_tree(file)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {_first_line(node): node for node in functions}


@cache
def _top_level(file: str) -> list[tuple[str, frozenset[str]]]:
    """The statements of *file*'s top level that bind names, and those names."""
    found = []
    for statement in _tree(file).body:
        names = _stored(compile("\n".join(_text(file, statement)), file, "exec"))
        found.append(("\n".join(_text(file, statement)), frozenset(names)))
    return found
