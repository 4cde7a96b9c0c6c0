"""Optional integrations with other libraries. Each is loaded only when you import it."""

from collections.abc import Iterator
from contextlib import contextmanager

from omniloop._errors import how_to_install


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Wrap the imports of an integration: the error for a missing library says what to install for *extra*."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or extra).partition(".")[0]
        message = f"omniloop.ext.{extra} needs {library}, which is not installed: {how_to_install(extra)}."
        raise ModuleNotFoundError(message, name=error.name, path=error.path) from error
