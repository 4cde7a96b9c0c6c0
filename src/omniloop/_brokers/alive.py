"""
Tells who is alive: each process locks a file of its own, and the system lets go of the lock when the process dies, however it dies.

Only the process itself makes its file; who looks for the dead makes none. So a file that is there, and is not locked, is that of a dead
process, or of one that begins: that one looks, when it has locked its file, whether it is still there, and else begins again.
"""

from __future__ import annotations

import os
import stat
import sys
import uuid
from contextlib import suppress
from typing import Final

from .._process.fork import forget_after_fork

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        # Far behind what is written there, which can't be read while it is locked.
        os.lseek(fd, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from None
        finally:
            os.lseek(fd, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


# Never through a link, which somebody else may have put there; nor into a program that is started.
_FLAGS: Final[int] = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))

_PRIVATE: Final = 0o600

# The locks of this process; a child that is forked must not hold them.
_held: set[int] = set()


class Sign:
    """
    A locked file that says: this process lives.

    Attributes:
        owner: The name of the process, in all the world.
    """

    def __init__(self, database: str) -> None:
        while True:
            self.owner = uuid.uuid4().hex
            self._path = sign_of(database, self.owner)
            self._fd = make_private(self._path, like=database)
            try:
                _lock(self._fd)
                if os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
                    break
            except (BlockingIOError, FileNotFoundError):
                # Looked at, and taken away as that of a dead process, before it was locked.
                pass
            os.close(self._fd)
        _held.add(self._fd)
        # For whoever lists them; a full disk takes the file and not this.
        with suppress(OSError):
            os.write(self._fd, b"%d\n" % os.getpid())

    def take_away(self) -> None:
        """Take it away, at the end of the process."""
        if self._fd in _held:
            _held.discard(self._fd)
            _remove(self._path, self._fd)


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


forget_after_fork(_let_go)


def sign_of(database: str, owner: str) -> str:
    """The path of the sign of *owner*."""
    return f"{database}.{owner}.lock"


def is_owner(name: object) -> bool:
    """Whether *name* is one that a `Sign` makes, and not what somebody else has written into the file."""
    return isinstance(name, str) and len(name) == 32 and not name.strip("0123456789abcdef")


def pid_of(database: str, owner: str) -> str:
    """What its sign says of the process, for people."""
    try:
        with open(sign_of(database, owner), encoding="ascii") as file:
            return f" (process {int(file.read(20))})"
    except (OSError, ValueError):
        return ""


def owners(database: str) -> list[str]:
    """Those whose signs are there, alive or dead."""
    folder, prefix = os.path.dirname(database), os.path.basename(database) + "."
    names = (
        name[len(prefix) : -5] for name in os.listdir(folder) if name.startswith(prefix) and name.endswith(".lock")
    )
    return [name for name in names if is_owner(name)]


class Dead:
    """A dead process; while this is open nobody else takes up what it has left."""

    def __init__(self, path: str, fd: int | None) -> None:
        self._path = path
        self._fd = fd

    def bury(self) -> None:
        """Take its sign away."""
        fd, self._fd = self._fd, None
        if fd is not None:
            _remove(self._path, fd)

    def __enter__(self) -> Dead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)


def dead(database: str, owner: str) -> Dead | None:
    """
    The process, if it is dead; None if it lives, or if somebody else takes up what it has left.

    Raises:
        OSError: if that can't be told.
    """
    path = sign_of(database, owner)
    fd = None
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
        _lock(fd)
    except FileNotFoundError:
        # It ended in order, and has kept what was not done.
        return Dead(path, None)
    except OSError as error:
        if fd is not None:
            os.close(fd)
        if _is_of_a_stranger(database, path):
            return Dead(path, None)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return Dead(path, fd)


def _is_of_a_stranger(database: str, path: str) -> bool:
    """Whether the sign is of a user who may not write the database, and so holds no calls in it: what they lock stops nobody."""
    if not hasattr(os, "geteuid"):
        return False
    try:
        ours, theirs = os.stat(database), os.lstat(path)
    except FileNotFoundError:
        # Whoever looked after a dead one has taken its sign away meanwhile.
        return False
    shared = stat.S_IMODE(ours.st_mode) & 0o022
    return not shared and theirs.st_uid not in (0, ours.st_uid, os.geteuid())


def make_private(path: str, like: str | None = None) -> int:
    """
    Make a file that its user alone may read and write, whatever the umask; the user of *like*, if this is root. Returns it open.

    Raises:
        FileExistsError: if there is one.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, _PRIVATE)
    with suppress(OSError, AttributeError):
        os.fchmod(fd, _PRIVATE)
        if like is not None and os.geteuid() == 0:
            # As SQLite does with its own files: else the program could not open what one start by root has left.
            user = os.stat(like)
            os.fchown(fd, user.st_uid, user.st_gid)
    return fd


def _remove(path: str, fd: int) -> None:
    """Remove and close. While it is locked, so that it is not taken for that of a process that begins; where that can't be, afterwards."""
    try:
        os.unlink(path)
    except OSError:
        os.close(fd)
        with suppress(OSError):
            os.unlink(path)
    else:
        os.close(fd)
