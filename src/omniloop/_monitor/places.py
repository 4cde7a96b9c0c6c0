"""Where the sockets of monitored processes are: in a directory that nobody but the user can enter, each under its process's number."""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
import tempfile

# The kernel takes no longer name of a socket.
_LONGEST = 107


class NotOursError(OSError):
    """A directory, or the other end of a socket, that is not the user's: nothing is read from it, and nothing told to it."""


def directories() -> list[str]:
    """Where to look, the preferred place first. A service has not the same environment as the user's shell, so both are looked at."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    found = [os.path.join(runtime, "omniloop")] if runtime else []
    for temporary in (tempfile.gettempdir(), "/tmp"):
        path = os.path.join(temporary, f"omniloop-{os.geteuid()}")
        if path not in found:
            found.append(path)
    return found


def socket_path(directory: str, pid: int) -> str:
    """The socket of the process *pid*."""
    return os.path.join(directory, f"{pid}.sock")


def prepare() -> str:
    """
    Make the directory for this process's socket, if it is not there, and return it.

    Raises:
        NotOursError: of `omniloop._monitor.places`, if what is there is not the user's, or open to others.
        OSError: if it can't be made.
    """
    reasons: list[OSError] = []
    for directory in directories():
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
        check(directory)
        return directory
    raise reasons[0] if reasons else OSError(f"No directory for the socket: the names are too long: {directories()}")


def check(directory: str) -> None:
    """Raise NotOursError if *directory* is a link, another user's, or can be entered by others."""
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise NotOursError(f"{directory} is no directory. Remove it.")
    if found.st_uid != os.geteuid():
        raise NotOursError(
            f"{directory} belongs to the user {found.st_uid}, and not to {os.geteuid()}. Set XDG_RUNTIME_DIR to a directory of your own."
        )
    if found.st_mode & 0o077:
        raise NotOursError(
            f"{directory} is open to others (mode {found.st_mode & 0o777:o}). Run: chmod 700 {directory}"
        )


def check_peer(connection: socket.socket) -> None:
    """Raise NotOursError if the process at the other end is neither the user's nor root's."""
    if sys.platform != "linux":
        # There the directory and the mode of the socket alone keep others out.
        return
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (os.geteuid(), 0):
        raise NotOursError(f"The process {pid} is of the user {uid}, and not of {os.geteuid()}.")
