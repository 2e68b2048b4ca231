"""The lock master beside the tap: other processes of this host work on its store meanwhile.

The tap keeps the store locked and runs a lock master for it on a Unix socket of its own. Its
own locks come from there too, without a lease, because both live and die together.

A tap that was killed leaves its socket behind, which the next one replaces, and its epoch
file, which the next one needs: tokens have to go on growing. Tools that were beside it may
live on for as long as their leases last; only then is the new lock master quiet at first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from core.blockstore import Blockstore
from core.device import Cache, make_folder_of
from core.direct import open_device
from core.errors import NotFound
from core.lock_epoch import EpochFile
from core.lock_messages import TAP
from core.lock_service import LockService
from core.session import Session


@contextmanager
def hosted_session(
    path: str, cache: Cache, place: Callable[[str], str]
) -> Iterator[tuple[Session, str]]:
    """Open a store to serve it, with a lock master for others beside it.

    Args:
        path: the store.
        cache: whose memory stands before it.
        place: returns the path of the lock master's socket, given the store's UUID in
            hexadecimal; the epoch file is beside it.

    Yields:
        The session, and the socket.

    Raises:
        InUse: another process has the store, or the lock master's socket.
        Others: as `Blockstore.open`.
    """
    try:
        device = open_device(path, True, "host", cache)
    except NotFound as error:
        raise NotFound(
            f"there is no blockstore at {path}",
            f"make one with 'plxsh store create {path}', or name another with --store",
        ) from error
    with closing(device):
        store = Blockstore(device).sb.uuid.hex()  # nothing is written before there are locks
        socket = place(store)
        make_folder_of(socket)
        with closing(EpochFile(socket.removesuffix(".locks") + ".epoch")) as epochs:
            service = LockService(
                unix=socket,
                epochs=epochs,
                alone=device.is_alone(),
                store=store,
                purpose="plxsh tap serve",
                role=TAP,
            )
            # Whoever is welcomed finds the session there, which nobody can have taken first.
            with closing(service), Session(Blockstore(device, service.locks), service.locks) as s:
                service.start()
                yield s, socket
