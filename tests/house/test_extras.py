"""What is optional says what to install where it is missing."""

import tomllib
from pathlib import Path

import pytest

from children import run_child
from omniloop._errors import how_to_install

DOORS = {
    "django": "django",
    "flask": "flask",
    "opentelemetry": "opentelemetry",
    "procrastinate": "procrastinate",
    "prometheus": "prometheus_client",
    "taskiq": "taskiq",
}


@pytest.mark.promise("A door to a library that is missing says what to install", section="The package")
@pytest.mark.parametrize(("door", "library"), DOORS.items())
def test_a_door_whose_library_is_missing_says_what_to_install(door, library):
    result = run_child(f"""
        import sys
        sys.modules[{library!r}] = None
        try:
            import omniloop.ext.{door}
        except ModuleNotFoundError as error:
            print(error)
    """)

    expected = f"omniloop.ext.{door} needs {library}, which is not installed: {how_to_install(door)}.\n"
    assert result == (expected, "", 0, result.seconds)


def test_the_command_is_that_of_the_extra():
    """And not `omniloop[taskiq]`, which installs nothing where the package came from a folder."""
    assert how_to_install("taskiq") == "pip install 'taskiq<0.14,>=0.13'"


def test_every_door_has_an_extra():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert DOORS.keys() <= project["optional-dependencies"].keys()
