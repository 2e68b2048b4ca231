"""Who has VDIs and snapshots open: the lock master tells the holders, the tap its clients.

The tap of this user is asked on its usual socket; of another one, here or on another host, only
is known that it has a VDI open. Nothing here waits long, so that a prompt may ask as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from core.device import lock_holder
from core.errors import InUse, ParallaxError, VdiOpen
from plxsh.context import Settings, default_socket
from plxsh.locking import standing

if TYPE_CHECKING:
    from core.format import VdiRecord
    from core.lock_messages import Holding
    from core.session import Session

_TIMEOUT: Final = 0.5
"""Seconds until a tap that does not answer counts as none."""
_SHOWN: Final = 3


@dataclass(frozen=True)
class OpenExport:
    """A VDI, or a snapshot of it, that somebody has open.

    Attributes:
        vdi: id of the VDI.
        name: the export's name.
        snapshot: the snapshot's id, BLOCK.OFFSET; None for the VDI itself.
        read_only: whether its clients cannot write.
        clients: who has it open; empty while its last commit is under way.
        server: the process that serves it to them.
    """

    vdi: int
    name: str
    snapshot: str | None
    read_only: bool
    clients: tuple[str, ...]
    server: str


def open_exports(settings: Settings) -> list[OpenExport]:
    """Return what is open of the store, as far as lock master and tap tell."""
    told = exports_of(settings.store, default_socket()) or []
    return with_holders(told, standing(settings).holders or {})


def with_holders(told: Iterable[OpenExport], holders: Mapping[str, Holding]) -> list[OpenExport]:
    """Return what a tap told with what others have open; see `Standing.holders`."""
    known = {
        int(name.removeprefix("vdi/")): str(held.who)
        for name, held in holders.items()
        if name.startswith("vdi/")
    }
    found = [replace(one, server=known.get(one.vdi, one.server)) for one in told]
    for export in found:
        if export.snapshot is None:
            known.pop(export.vdi, None)
    return found + [
        OpenExport(vdi, str(vdi), None, False, (who,), who) for vdi, who in sorted(known.items())
    ]


def exports_of(store: str, unix: str) -> list[OpenExport] | None:
    """Return what the tap on the socket `unix` has open of a store, None if it serves another.

    A tap that does not answer soon serves nothing.
    """
    if not os.path.exists(f"{unix}.status"):  # then not even the import is needed
        return None
    from core.tap.status import query_status

    try:
        told = query_status(unix, _TIMEOUT)
    except ParallaxError:
        return None
    if os.path.realpath(told["store"]) != os.path.realpath(store):
        return None
    server = lock_holder(store) or "a tap"
    return [
        OpenExport(
            export["id"],
            export["name"],
            export["snapshot"],
            export["read_only"],
            tuple(connection["peer"] for connection in export["connections"]),
            server,
        )
        for export in told["exports"]
    ]


def clients_of(exports: Iterable[OpenExport], vdi: int) -> list[str]:
    """Return who has a VDI or one of its snapshots open."""
    return [client for export in exports if export.vdi == vdi for client in export.clients]


def server_of(exports: Iterable[OpenExport], vdi: int) -> str | None:
    """Return the process that has a VDI open."""
    found = (e.server for e in exports if e.vdi == vdi and e.snapshot is None)
    return next(found, None)


@contextmanager
def session_for(settings: Settings, reference: str, snapshot: bool = False) -> Iterator[Session]:
    """Open a session to change what a reference names; a refusal says who has that open.

    Args:
        settings: name the store.
        reference: a VDI, or with `snapshot` a snapshot to delete.
        snapshot: which of the two.

    Raises:
        InUse: clients have it open, or another process has the store.
        Others: as `Settings.session`.
    """
    with settings.session() as session:
        if snapshot:
            found = session.find_snapshot(reference)
            record = session.registry.get(found.vdi)
            if record is not None:
                refuse_read(settings, record, str(found.id))
        try:
            yield session
        except VdiOpen as error:
            clients = [] if snapshot else _clients(settings, session.registry.find(reference))
            if not clients:
                raise
            raise InUse(f"{error.message}; {_served(clients)}", error.hint) from error


def _clients(settings: Settings, record: VdiRecord) -> list[str]:
    """Return the clients of the tap of this user that have a VDI open."""
    told = exports_of(settings.store, default_socket()) or ()
    return clients_of((export for export in told if export.snapshot is None), record.id)


def refuse_read(settings: Settings, record: VdiRecord, snapshot: str | None = None) -> None:
    """Refuse to delete what clients of this host's tap read.

    Args:
        settings: name the store.
        record: the VDI.
        snapshot: only this one of its snapshots; None for all of them.

    Raises:
        InUse: somebody has it open.
    """
    for export in exports_of(settings.store, default_socket()) or ():
        if export.vdi != record.id or export.snapshot is None or not export.clients:
            continue
        if snapshot in (None, export.snapshot):
            raise InUse(
                f"snapshot {export.snapshot} of VDI {record.id} {record.name!r} is open: "
                f"{export.server}; {_served(export.clients)}",
                "disconnect it first",
            )


def _served(clients: Sequence[str]) -> str:
    """Say to whom something is served."""
    more = len(clients) - _SHOWN
    return f"it serves it to {', '.join(clients[:_SHOWN])}" + (f" and {more} more" * (more > 0))
