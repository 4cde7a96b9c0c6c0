"""Blocking functions in the background: in worker threads, several at once, with their results."""

import hashlib
import tempfile
import threading
from concurrent.futures import as_completed
from pathlib import Path

from omniloop import to_thread


def checksum(path: Path) -> tuple[str, str]:
    """Read a file and hash it: both let other threads run meanwhile."""
    return path.name, hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    for number in range(4):
        (folder / f"file-{number}").write_bytes(bytes([number]) * 100_000)

    # The caller goes on at once; the handles are those of concurrent.futures.
    handles = [to_thread(checksum, path) for path in sorted(folder.iterdir())]
    for name, digest in sorted(handle.result(timeout=10) for handle in as_completed(handles)):
        print(name, digest)

    # Several at once: each waits here until all four are here.
    together = threading.Barrier(4)
    waits = [to_thread(together.wait, 5) for _ in range(4)]
    print("met in the barrier:", sorted(wait.result(timeout=10) for wait in waits))


if __name__ == "__main__":
    main()
