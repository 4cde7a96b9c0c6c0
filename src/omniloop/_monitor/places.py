"""Where the sockets of monitored processes are: in a directory that nobody but the user can enter, each under its process's number."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import sys
import tempfile
import time

# The kernel takes no longer name of a socket.
_LONGEST = 107 if sys.platform == "linux" else 103
# Seconds between the making of a socket and its listening, at the most; until then it refuses as a dead one does.
_BORN = 0.02
_NAME = re.compile(r"(\d+)(-\d+)?\.sock", re.ASCII)


def lacking() -> str | None:
    """Say what the live view needs that this system does not have; None if it has all."""
    if hasattr(socket, "AF_UNIX") and hasattr(os, "geteuid"):
        return None
    return "There is no live view on this system: it takes Unix sockets, and numbers of users. dump(), in the program, works."


class NotOursError(OSError):
    """A directory, or the other end of a socket, that is not the user's: nothing is read from it, and nothing told to it."""


def directories(uid: int) -> list[str]:
    """Where to look, the preferred place first. A service has not the same environment as the user's shell, so both are looked at."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") if uid == os.geteuid() else f"/run/user/{uid}"
    found = [os.path.join(runtime, "omniloop")] if runtime else []
    for temporary in (tempfile.gettempdir(), "/tmp"):
        path = os.path.join(temporary, f"omniloop-{uid}")
        if path not in found:
            found.append(path)
    return found


def socket_path(directory: str, pid: int, others: int = 0) -> str:
    """The socket of the process *pid*, where *others* have that number too: in containers that share the directory."""
    return os.path.join(directory, f"{pid}-{others}.sock" if others else f"{pid}.sock")


def sockets(directory: str) -> list[tuple[int, str]]:
    """
    The processes that have sockets in *directory*, each with the path.

    Raises:
        OSError: if the directory is not there, or can't be read.
    """
    found = [(_NAME.fullmatch(name), os.path.join(directory, name)) for name in sorted(os.listdir(directory))]
    return [(int(matched[1]), path) for matched, path in found if matched is not None]


def remove_dead(path: str) -> bool:
    """
    Remove the socket *path* of a dead process; True if it is gone.

    Asked of the socket itself: whether there is a process of that number says nothing where it is in another container.
    """
    try:
        found = os.lstat(path)
        if not _refuses(path):
            return False
        time.sleep(_BORN)
        if _refuses(path) and os.path.samestat(found, os.lstat(path)):
            os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not os.path.lexists(path)


def _refuses(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            # Others wait to be taken before.
            pass
    return False


def owner(pid: int) -> int | None:
    """The user of the process *pid*; None if it is gone, or can't be told here."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}").st_uid
    return None


def prepare() -> str:
    """
    Make the directory for this process's socket, if it is not there, and return it.

    Raises:
        NotOursError: of `omniloop._monitor.places`, if what is there is not the user's, or open to others.
        OSError: if it can't be made.
    """
    reasons: list[OSError] = []
    uid = os.geteuid()
    for directory in directories(uid):
        if len(socket_path(directory, 2**22)) > _LONGEST:
            continue
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            # XDG_RUNTIME_DIR of a user who is logged out, say.
            reasons.append(error)
            continue
        check(directory, uid)
        return directory
    raise reasons[0] if reasons else OSError(f"No directory for the socket: the names are too long: {directories(uid)}")


def check(directory: str, uid: int) -> None:
    """Raise NotOursError if *directory* is a link, not the user *uid*'s, or can be entered by others."""
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise NotOursError(f"{directory} is no directory. Remove it.")
    if found.st_uid != uid:
        raise NotOursError(
            f"{directory} belongs to the user {found.st_uid}, and not to {uid}. Set XDG_RUNTIME_DIR to a directory of your own."
        )
    if found.st_mode & 0o077:
        raise NotOursError(
            f"{directory} is open to others (mode {found.st_mode & 0o777:o}). Run: chmod 700 {directory}"
        )


def check_peer(connection: socket.socket, user: int) -> int | None:
    """
    Return the number of the process at the other end; NotOursError if it is neither of the *user* nor root's.

    0 is a process in a container that is not seen from here; None is returned where the system does not tell.
    """
    if sys.platform != "linux":
        # There the directory and the mode of the socket alone keep others out.
        return None
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (user, 0):
        raise NotOursError(f"The process {pid} is of the user {uid}, and not of {user}.")
    return int(pid)
