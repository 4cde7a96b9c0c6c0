"""Optional doors to other libraries; none is imported unless you import it."""

from collections.abc import Iterator
from contextlib import contextmanager

from omniloop._errors import how_to_install


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the imports of a door: one that is missing is an error that says what to install for *extra*."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or extra).partition(".")[0]
        message = f"omniloop.ext.{extra} needs {library}, which is not installed: {how_to_install(extra)}."
        raise ModuleNotFoundError(message, name=error.name, path=error.path) from error
