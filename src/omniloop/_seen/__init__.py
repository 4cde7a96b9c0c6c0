"""What people and programs are shown of the work: the dump, the progress line, the timings and the watchdog, each loaded on its first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Loaded by name. These imports are for tools that search for imports, such as PyInstaller.
    from . import look as look
    from . import progress as progress
    from . import timings as timings
    from . import watchdog as watchdog
