"""What is shown of the work, to people and to programs; each part is loaded on its first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # They are loaded by name; here tools that look for imports find them, PyInstaller for one.
    from . import look as look
    from . import progress as progress
    from . import timings as timings
