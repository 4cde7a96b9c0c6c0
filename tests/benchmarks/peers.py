"""What a user would pick instead: each peer that is installed, behind the same two calls."""

import atexit
from collections.abc import Callable
from typing import Any, NamedTuple


class Peer(NamedTuple):
    """*submit* starts a no-op coroutine and forgets it (None where the peer can't); *call* runs one and waits for it."""

    name: str
    call: Callable[[], Any]
    submit: Callable[[], Any] | None = None
    # Calls in one sample of the round trip.
    trips: int = 50


async def noop() -> None:
    pass


def peers() -> list[Peer]:
    """Those that are installed and start on this Python."""
    found = []
    for make in (_anyio, _asgiref, _unsync, _synchronicity, _fsspec, _crochet):
        try:
            peer = make()
            peer.call()
        except Exception as error:  # An import, or a library that does not know this Python yet.
            print(f"{make.__name__[1:]} is left out: {error!r}"[:150])
            continue
        found.append(peer)
    return found


def _anyio() -> Peer:
    from anyio.from_thread import start_blocking_portal

    manager = start_blocking_portal()
    portal = manager.__enter__()
    atexit.register(manager.__exit__, None, None, None)
    return Peer("anyio", lambda: portal.call(noop), lambda: portal.start_task_soon(noop))


def _asgiref() -> Peer:
    from asgiref.sync import async_to_sync

    # It makes a loop for each call.
    return Peer("asgiref", async_to_sync(noop), trips=10)


def _unsync() -> Peer:
    from unsync import unsync

    work = unsync(noop)
    return Peer("unsync", lambda: work().result(), work)


def _synchronicity() -> Peer:
    from synchronicity import Synchronizer

    synchronizer = Synchronizer()
    try:
        work = synchronizer.create_blocking(noop, "work", __name__)
    except AttributeError:
        work = synchronizer.wrap(noop)
    return Peer("synchronicity", work)


def _fsspec() -> Peer:
    from fsspec.asyn import get_loop, sync

    loop = get_loop()
    return Peer("fsspec", lambda: sync(loop, noop))


def _crochet() -> Peer:
    import crochet

    crochet.setup()
    from twisted.internet.defer import ensureDeferred

    @crochet.run_in_reactor
    def start() -> Any:
        return ensureDeferred(noop())

    @crochet.wait_for(timeout=10)
    def call() -> Any:
        return ensureDeferred(noop())

    return Peer("crochet", call, start)
