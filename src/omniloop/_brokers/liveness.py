"""
Tells which processes are alive: each locks a file of its own, its sign, and the system releases the lock however the process dies.

Only the process itself creates its sign; a process that looks for dead ones creates none. So a sign that is not locked belongs to a
dead process, or to one that has created it and not yet locked it. That second kind may be removed by mistake, so a starting process:

1. creates its sign,
2. locks it,
3. checks that the file is still at its path, and otherwise begins again with a new name.
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
        # Windows makes locked bytes unreadable, so lock one far behind the content.
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


# Do not follow a link, which another user may have put there; do not pass the descriptor on to programs that are started.
_FLAGS: Final[int] = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))

_PRIVATE: Final = 0o600

# The signs that this process has locked. A forked child closes them: it must not hold the locks.
_held: set[Sign] = set()


class Sign:
    """
    The locked file of a process: of this one, for which it says that it is alive; or of a dead one, to keep other processes from its calls.

    Attributes:
        owner: The name of the process, unique everywhere.
    """

    def __init__(self, owner: str, path: str, fd: int | None) -> None:
        self.owner = owner
        self._path = path
        # None if there is no file, or this process does not hold it any more.
        self._fd = fd
        if fd is not None:
            _held.add(self)

    def remove(self) -> None:
        """
        Remove the file. Does nothing in a forked child, where it is the parent's.

        It is removed while it is still locked, so that no process takes it for the sign of one that is starting. Where the system does
        not remove open files, it is closed first.
        """
        if self._fd is not None:
            try:
                os.unlink(self._path)
            except OSError:
                self.__exit__()
                with suppress(OSError):
                    os.unlink(self._path)
            self.__exit__()

    def __enter__(self) -> Sign:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, and so release the lock."""
        _held.discard(self)
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _forget() -> None:
    for sign in list(_held):
        sign.__exit__()


forget_after_fork(_forget)


def own_sign(database: str) -> Sign:
    """Create the sign of this process."""
    while True:
        owner = uuid.uuid4().hex
        path = sign_of(database, owner)
        fd = make_private(path, like=database)
        try:
            _lock(fd)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                break
        except (BlockingIOError, FileNotFoundError):
            # Another process took the file for a dead one's before it was locked: it has the lock, or has removed the file.
            pass
        os.close(fd)
    # The pid is only for the listing of an outbox, so a full disk is no reason to fail.
    with suppress(OSError):
        os.write(fd, b"%d\n" % os.getpid())
    return Sign(owner, path, fd)


def sign_of(database: str, owner: str) -> str:
    """The path of the sign of the process *owner*."""
    return f"{database}.{owner}.lock"


def is_owner(name: object) -> bool:
    """Whether *name* has the form of the names that `Sign` makes; anything else was written by somebody else."""
    return isinstance(name, str) and len(name) == 32 and not name.strip("0123456789abcdef")


def pid_of(database: str, owner: str) -> str:
    """The process id in the sign, as text for people; empty if it can't be read."""
    try:
        with open(sign_of(database, owner), encoding="ascii") as file:
            return f" (process {int(file.read(20))})"
    except (OSError, ValueError):
        return ""


def owners(database: str) -> list[str]:
    """The processes whose signs exist, alive or dead."""
    folder, name = os.path.split(database)
    # Each ends with 32 letters and ".lock".
    return [owner for it in os.listdir(folder) if is_owner(owner := it[-37:-5]) and it == sign_of(name, owner)]


def sign_of_dead(database: str, owner: str) -> Sign | None:
    """
    Return the sign of the process *owner* if that is dead; None if it is alive, or another process is taking over its calls.

    While the sign is open, no other process takes over the calls that the dead one left.

    Raises:
        OSError: if it can't be told whether the process is dead.
    """
    path, fd = sign_of(database, owner), None
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
        _lock(fd)
    except OSError as error:
        if fd is not None:
            os.close(fd)
        # A process that ends normally removes its sign and leaves its unfinished calls in the file.
        if isinstance(error, FileNotFoundError) or _is_of_a_stranger(database, path):
            return Sign(owner, path, None)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return Sign(owner, path, fd)


def _is_of_a_stranger(database: str, path: str) -> bool:
    """Whether the sign belongs to a user who may not write the database. Such a user has no calls in it, so the lock is ignored."""
    if not hasattr(os, "geteuid"):
        return False
    try:
        ours, theirs = os.stat(database), os.lstat(path)
    except FileNotFoundError:
        # Another process has taken over meanwhile, and removed the sign.
        return False
    shared = stat.S_IMODE(ours.st_mode) & 0o022
    return not shared and theirs.st_uid not in (0, ours.st_uid, os.geteuid())


def make_private(path: str, like: str | None = None) -> int:
    """
    Create a file that only its owner may read and write, whatever the umask, and return its open descriptor.

    When root creates it, it gets the owner of the file *like*.

    Raises:
        FileExistsError: if there is a file at *path* already.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, _PRIVATE)
    with suppress(OSError, AttributeError):
        os.fchmod(fd, _PRIVATE)
        if like is not None and os.geteuid() == 0:
            # As SQLite does with its own files. Otherwise one start by root would leave a file that the program can't open.
            user = os.stat(like)
            os.fchown(fd, user.st_uid, user.st_gid)
    return fd
