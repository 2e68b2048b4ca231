"""Which VDIs and snapshots virtual machines have open, as the tap of this user tells.

A tap on another socket than the usual one cannot be asked: then the lock on the store is
all there is to know. Nothing here waits long, so that a prompt may ask as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from core.device import lock_holder
from core.errors import InUse, ParallaxError
from plxsh.context import Settings, default_socket

if TYPE_CHECKING:
    from core.session import Session

_TIMEOUT: Final = 0.5
"""Seconds until a tap that does not answer counts as none."""
_SHOWN: Final = 3


@dataclass(frozen=True)
class OpenExport:
    """A VDI, or a snapshot of it, that a tap gives to clients.

    Attributes:
        vdi: id of the VDI.
        name: the export's name.
        snapshot: the snapshot's id, BLOCK.OFFSET; None for the VDI itself.
        read_only: whether its clients cannot write.
        clients: who has it open; empty while its last commit is under way.
        store: absolute path of the store.
    """

    vdi: int
    name: str
    snapshot: str | None
    read_only: bool
    clients: tuple[str, ...]
    store: str


def open_exports(settings: Settings) -> list[OpenExport]:
    """Return what is open of the store; nothing when no tap answers."""
    return exports_of(settings.store, default_socket()) or []


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
    return [
        OpenExport(
            export["id"],
            export["name"],
            export["snapshot"],
            export["read_only"],
            tuple(connection["peer"] for connection in export["connections"]),
            told["store"],
        )
        for export in told["exports"]
    ]


def clients_of(exports: Iterable[OpenExport], vdi: int) -> list[str]:
    """Return who has a VDI or one of its snapshots open."""
    return [client for export in exports if export.vdi == vdi for client in export.clients]


@contextmanager
def session_for(settings: Settings, reference: str, snapshot: bool = False) -> Iterator[Session]:
    """Open a session to change what a reference names; a refusal says who has that open.

    Args:
        settings: name the store.
        reference: a VDI, or with `snapshot` a snapshot.
        snapshot: which of the two.

    Raises:
        InUse: clients have it open, or another process has the store.
        Others: as `Settings.session`.
    """
    try:
        session = settings.session()
    except InUse:
        _refuse_open(settings, reference, snapshot)
        raise
    with session:
        yield session


def _refuse_open(settings: Settings, reference: str, snapshot: bool) -> None:
    """Say who has what a reference names open, if the tap knows."""
    exports = open_exports(settings)
    if not exports:
        return
    with settings.session("read") as session:
        if snapshot:
            found = session.find_snapshot(reference)
            record, where = session.registry.get(found.vdi), str(found.id)
        else:
            record, where = session.registry.find(reference), None
    for export in exports:
        if record is not None and export.vdi == record.id and where in (None, export.snapshot):
            what = f"snapshot {export.snapshot} of VDI" if export.snapshot else "VDI"
            raise InUse(
                f"{what} {record.id} {record.name!r} is open: {_server(settings)} "
                + _served(export),
                "disconnect it, then stop the tap",
            )


def _server(settings: Settings) -> str:
    return lock_holder(settings.store) or "a tap"


def _served(export: OpenExport) -> str:
    """Say to whom an export is served."""
    if not export.clients:
        return "commits what was written to it"
    clients = ", ".join(export.clients[:_SHOWN])
    more = len(export.clients) - _SHOWN
    return f"serves it to {clients}" + (f" and {more} more" if more > 0 else "")
