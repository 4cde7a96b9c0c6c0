"""A docstring is the contract: it is there for everything public, and the errors that it names exist."""

import ast
import builtins
import doctest
import importlib
import importlib.util
import inspect
import io
import json
import re
import warnings
from pathlib import Path

import pytest
from test_floors import modules, tree_of

import omniloop
from children import run_child

# `Name: …` in a section "Raises:", which ends at the next line that is indented no deeper than its title.
SECTION = re.compile(r"^Raises:\n((?:[ ]+.*\n?|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)

# With the two that a star import leaves out, because they would hide others of the name.
PUBLIC = [*omniloop.__all__, "map", "queue"]


def public_things():
    for name in PUBLIC:
        thing = getattr(omniloop, name)
        yield name, thing
        if inspect.isclass(thing):
            for attribute, value in vars(thing).items():
                function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
                if not attribute.startswith("_") and (inspect.isroutine(function) or isinstance(function, property)):
                    yield f"{name}.{attribute}", function


def docstrings():
    for module in modules():
        for node in ast.walk(tree_of(module)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                doc = ast.get_docstring(node)
                if doc:
                    yield f"{module}.{getattr(node, 'name', '')}", doc


def is_installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # Nor what it is a part of.
        return False


@pytest.mark.promise("Every public name says what it does and which errors it raises")
@pytest.mark.parametrize(("name", "thing"), [pytest.param(*pair, id=pair[0]) for pair in public_things()])
def test_every_public_name_has_a_docstring(name, thing):
    if inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, property):
        # Of its own: `inspect.getdoc` would find an ancestor's.
        assert (thing.__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("module", modules())
def test_every_module_says_in_its_first_line_what_it_promises(module):
    assert ast.get_docstring(tree_of(module)), f"{module} has no docstring"


def test_every_error_that_a_docstring_names_exists():
    wrong = []
    for where, doc in docstrings():
        for section in SECTION.findall(doc):
            for entry in ENTRY.findall(section):
                match = re.match(r"(\w+): (?:of `([\w.]+)`)?", entry)
                if match is None:
                    wrong.append(f"{where}: {entry!r} is not of the form 'Error: if …'")
                    continue
                name, home = match.groups()
                if home and not is_installed(home):
                    continue
                places = [importlib.import_module(home)] if home else [omniloop, builtins]
                error = next((getattr(place, name) for place in places if hasattr(place, name)), None)
                if not (inspect.isclass(error) and issubclass(error, BaseException)):
                    wrong.append(f"{where}: there is no error {name}")

    assert not wrong, "\n".join(wrong)


def test_every_error_of_ours_has_the_common_base_and_a_guessable_one():
    errors = [thing for name, thing in public_things() if inspect.isclass(thing) and name.endswith("Error")]

    for error in errors:
        assert issubclass(error, omniloop.OmniloopError)
        if error is not omniloop.OmniloopError:
            assert any(base.__module__ == "builtins" for base in error.__bases__), f"{error} is no built-in error"


def test_every_public_name_is_in_the_reference():
    pages = Path(__file__).resolve().parents[2] / "docs" / "reference"
    documented = {
        name
        for page in (pages / "errors.md", *(pages / "api").glob("*.md"))
        # Those are of modules of their own.
        if page.name != "extensions.md"
        for name in re.findall(r"^\.\. auto\w+:: (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }

    assert documented == set(PUBLIC)


def with_examples():
    """The public names whose contract is a call or a class; of an error, the reference says what to do."""
    for name in PUBLIC:
        thing = getattr(omniloop, name)
        if not (inspect.isclass(thing) and issubclass(thing, BaseException)):
            yield name


# Each in a namespace of its own, as one would paste it; in one process, because starting one for each takes a minute.
def runs_examples():
    for name in PUBLIC:
        thing = getattr(omniloop, name)
        example = doctest.DocTestParser().get_doctest(inspect.getdoc(thing), {}, name, None, 0)
        told = io.StringIO()
        runner = doctest.DocTestRunner(verbose=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            failed, tried = runner.run(example, out=told.write, clear_globs=False)
        # What it configured is for it alone.
        omniloop.shutdown()
        omniloop.configure(exit_timeout=25, slow_callback=1)
        print(json.dumps([name, tried, failed, told.getvalue()]))


@pytest.fixture(scope="module")
def examples():
    result = run_child(runs_examples, timeout=100)
    assert (result.stderr, result.code) == ("", 0)
    return {name: rest for name, *rest in map(json.loads, result.stdout.splitlines())}


@pytest.mark.timeout(120)
@pytest.mark.promise("Every public call has an example in its docstring, which runs")
@pytest.mark.parametrize("name", [*with_examples()])
def test_every_public_call_has_an_example_that_runs(name, examples):
    tried, failed, told = examples[name]

    assert tried, f"{name} has no example: a section 'Example:' with >>> lines"
    assert not failed, told
