"""Finds and checks the sockets of monitored processes: named by pid, in a directory that only the user can enter."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import struct
import sys
import tempfile
import time

# The longest socket path that the kernel accepts, in bytes.
_LONGEST = 107 if sys.platform == "linux" else 103
# Seconds from binding a socket to listening on it, at most. Until then it refuses connections, as a dead process's socket does.
_BORN = 0.02
_NAME = re.compile(r"(\d+)(-\d+)?\.sock", re.ASCII)


def lacking() -> str | None:
    """Return what the live view needs and this system lacks, as a message; None if nothing."""
    if hasattr(socket, "AF_UNIX") and hasattr(os, "geteuid"):
        return None
    return "There is no live view on this system: it takes Unix sockets, and numbers of users. dump(), in the program, works."


class NotOursError(OSError):
    """A directory, or the peer of a socket, does not belong to the user. Nothing is read from it or sent to it."""


def directories(uid: int) -> list[str]:
    """
    The directories to look in, the preferred one first.

    There are several because a service has another environment than the user's shell.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR") if uid == os.geteuid() else f"/run/user/{uid}"
    temporary = [os.path.join(each, f"omniloop-{uid}") for each in (tempfile.gettempdir(), "/tmp")]
    return list(dict.fromkeys([*([os.path.join(runtime, "omniloop")] if runtime else []), *temporary]))


def socket_path(directory: str, pid: int, others: int = 0) -> str:
    """The path of the socket of *pid*. *others* counts processes with the same pid, in containers that share the directory."""
    return os.path.join(directory, f"{pid}-{others}.sock" if others else f"{pid}.sock")


def find(uid: int) -> tuple[list[tuple[int, str]], str | None]:
    """The sockets of the user *uid*, as pairs of pid and path; and why a directory was not looked into, if there is one."""
    found: list[tuple[int, str]] = []
    why: str | None = None
    for directory in directories(uid):
        try:
            check(directory, uid)
            names = [matched for name in sorted(os.listdir(directory)) if (matched := _NAME.fullmatch(name))]
            found += [(int(name[1]), os.path.join(directory, name[0])) for name in names]
        except FileNotFoundError:
            pass
        except OSError as error:
            why = str(error)
    return found, why


def remove_dead(path: str) -> bool:
    """
    Remove the socket *path* if its process is dead. True if the socket is gone.

    Tries to connect instead of looking for the pid, because the process may be in another container, with other pids.
    """
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if _refuses(path):
            time.sleep(_BORN)
            if _refuses(path) and os.path.samestat(found, os.lstat(path)):
                os.unlink(path)
    return not os.path.lexists(path)


def _refuses(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        return asking.connect_ex(path) == errno.ECONNREFUSED


def owner(pid: int) -> int | None:
    """The user id of the process *pid*; None if the process is gone, or the system does not tell."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}").st_uid
    return None


def prepare() -> str:
    """
    Create the directory for this process's socket, if it does not exist, and return its path.

    Raises:
        NotOursError: of `omniloop._monitor.sockets`, if it exists and is not the user's, or is open to others.
        OSError: if it can't be created.
    """
    uid = os.geteuid()
    reasons: list[OSError] = []
    for directory in directories(uid):
        if len(socket_path(directory, 2**22)) > _LONGEST:
            continue
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        except OSError as error:
            # For example the XDG_RUNTIME_DIR of a user who has logged out.
            reasons.append(error)
        else:
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
    Return the pid of the peer. Raises NotOursError if it belongs neither to *user* nor to root.

    The pid is 0 for a process in a container that can't be seen from here, and None where the system does not tell.
    """
    if sys.platform != "linux":
        # There only the modes of the directory and of the socket keep others out.
        return None
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (user, 0):
        raise NotOursError(f"The process {pid} is of the user {uid}, and not of {user}.")
    return int(pid)
