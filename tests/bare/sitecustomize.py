"""
Takes from an interpreter what Windows lacks, and from its children: `tox -e bare`, which has this folder on `PYTHONPATH`.

What is gone for everybody: forks, SIGHUP, numbers of users, /proc, `add_reader` and `add_signal_handler` of a loop. The clock stands still for
15.6 ms at a time, as that of Python 3.11 and 3.12 does there, and Ctrl-C interrupts no wait for a lock.
What the standard library and others could not do without on this system, only omniloop and the tests miss: Unix sockets, pidfds, most signals, and the
modules that only Unix has. They are told that this is win32, that an open file can't be removed, that `os.kill(pid, 0)` is no question, and any
other `os.kill` the end of the process.
"""

import asyncio
import builtins
import ctypes
import errno
import functools
import math
import os
import signal
import socket
import sys
import time
import types

_TOLD = ("omniloop", "_omniloop_pytest", "__main__", "conftest", "programs", "targets", "test_")


def _told(*others: str) -> bool:
    """Whether omniloop or a test, or one of *others*, calls the function that asks."""
    return sys._getframe(2).f_globals.get("__name__", "").startswith((*_TOLD, *others))


# --- what is gone -----------------------------------------------------------------------------------------------------

for module, names in (
    (os, "fork forkpty register_at_fork geteuid"),
    (signal, "SIGHUP pthread_kill"),
    (time, "clock_gettime"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)


def _not_there(path: object) -> None:
    if isinstance(path, (str, bytes)) and os.fsdecode(path).startswith("/proc"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _without_proc(function):
    @functools.wraps(function)
    def wrapped(path=".", *args, **kwargs):
        _not_there(path)
        return function(path, *args, **kwargs)

    return wrapped


_stat, _listdir = os.stat, os.listdir
os.stat, os.listdir, builtins.open = _without_proc(os.stat), _without_proc(os.listdir), _without_proc(builtins.open)


def _socketpair(family=None, kind=socket.SOCK_STREAM, proto=0):
    """As the standard library makes them where there are no Unix sockets."""
    with socket.socket(socket.AF_INET, kind, proto) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.socket(socket.AF_INET, kind, proto)
        one.connect(listener.getsockname())
        other, _ = listener.accept()
    return one, other


socket.socketpair = _socketpair


def _not_there_for_us(function):
    """The default loop of Windows has none of these; asyncio itself calls some of them here."""

    @functools.wraps(function)
    def wrapped(self, *args):
        if _told():
            raise NotImplementedError
        return function(self, *args)

    return wrapped


for name in [
    "add_reader",
    "remove_reader",
    "add_writer",
    "remove_writer",
    "add_signal_handler",
    "remove_signal_handler",
]:
    setattr(asyncio.SelectorEventLoop, name, _not_there_for_us(getattr(asyncio.SelectorEventLoop, name)))

# --- a coarse clock ---------------------------------------------------------------------------------------------------

_TICK = 1 / 64
_monotonic, _get_clock_info = time.monotonic, time.get_clock_info


def _coarse() -> float:
    return math.floor(_monotonic() / _TICK) * _TICK


def _coarse_info(name):
    info = _get_clock_info(name)
    if name == "monotonic":
        info.resolution = _TICK
    return info


time.monotonic, time.get_clock_info = _coarse, _coarse_info

# --- waits that can't be interrupted ----------------------------------------------------------------------------------


def _have_another_thread_take_interrupts() -> None:
    """
    Leave SIGINT to a thread that Python knows nothing of, and that waits for a lock for ever.

    So no call of the main thread is interrupted by it; the handler is called when the main thread runs Python again. But a sleep is.
    """
    libc = ctypes.CDLL(None)
    _KEPT.append(lock := ctypes.create_string_buffer(256))
    # What has started this one may have it blocked, in the same way.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    libc.pthread_mutex_lock(lock)
    libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, libc.pthread_mutex_lock, lock)
    _block()
    time.sleep, signal.raise_signal = _interruptible(time.sleep), _interruptible(signal.raise_signal)


def _interruptible(function):
    @functools.wraps(function)
    def wrapped(*args):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        try:
            return function(*args)
        finally:
            _block()

    return wrapped


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


_KEPT = []
if "-c" in sys.orig_argv:
    _have_another_thread_take_interrupts()

# --- what only we are told --------------------------------------------------------------------------------------------


def _hide(module: types.ModuleType, names: str, **ours: object) -> None:
    """Have *module* without *names*, for us, but for those that are *ours*."""

    def hidden(name):
        # Not in the module's dictionary, in which 3.14 looks without asking its class.
        value = module.__dict__.pop(name)

        def get(module):
            if not _told("children" if name == "platform" else "test_"):
                return value
            if name in ours:
                return ours[name]
            raise AttributeError(name)

        return property(get)

    found = {name: hidden(name) for name in names.split() if hasattr(module, name)}
    module.__class__ = type(module.__name__, (types.ModuleType,), found)


# It makes every module of the class that `sys` has.
sys.modules["_frozen_importlib"]._new_module = types.ModuleType
_hide(socket, "AF_UNIX")
_hide(os, "pidfd_open sched_setaffinity getuid setuid setsid killpg mkfifo sysconf")
_SIGNALS = {number.name for number in signal.Signals} - {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
_hide(signal, " ".join(_SIGNALS) + " alarm pause pthread_sigmask setitimer sigwait siginterrupt")
signal.SIGBREAK = signal.Signals["SIGTTIN"]

_hide(sys, "platform", platform="win32")

_GONE = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
_import = builtins.__import__


def _import_as_there(name, *args, **kwargs):
    # The module is that of `pytest.importorskip`.
    if name in _GONE and _told("_pytest.outcomes"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    if name == "msvcrt" and _told():
        return _msvcrt()
    return _import(name, *args, **kwargs)


builtins.__import__ = _import_as_there


def _msvcrt():
    import fcntl

    def locking(fd, mode, count):
        # BlockingIOError is an OSError, as there.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    return types.SimpleNamespace(locking=locking, LK_NBLCK=2)


def _unless_open(function, place: int):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        if _told() and not kwargs and _is_open(args[place]):
            raise PermissionError(
                errno.EACCES, "The process cannot access the file because it is being used", args[place]
            )
        return function(*args, **kwargs)

    return wrapped


def _is_open(path: str) -> bool:
    try:
        wanted = _stat(path)
    except OSError:
        return False
    for fd in _listdir("/proc/self/fd"):
        try:
            found = os.fstat(int(fd))
        except OSError:
            # The list's own.
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False


os.unlink = os.remove = _unless_open(os.unlink, 0)
os.replace = _unless_open(os.replace, 1)

_kill = os.kill


def _kill_as_there(pid: int, number: int) -> None:
    if not _told():
        _kill(pid, number)
    elif number == 0:
        raise AssertionError("os.kill(pid, 0) is Ctrl-C on Windows")
    elif pid == os.getpid():
        os._exit(number)
    else:
        _kill(pid, 9)


os.kill = _kill_as_there
