"""What the parts of a session need of it, so that they can stand before it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from core.blockstore import Blockstore
from core.collection import Member
from core.format import VdiRecord
from core.locks import Grant, Locks
from core.snaplog import Snapshot
from core.vdi import Vdi


class Opener(Protocol):
    """What opens VDIs; see `core.open_vdis.OpenVdis`."""

    store: Blockstore
    locks: Locks

    def current(self, record: VdiRecord) -> VdiRecord:
        """Return the record of a VDI as it is on disk now."""

    def commit(self, vdis: Iterable[Vdi], last: Collection[Vdi] = ()) -> None:
        """Make what was written to some VDIs durable."""

    def make_room(self) -> bool:
        """Free what can be freed."""


class Whole(Opener, Protocol):
    """The session that a part belongs to; see `core.session.Session`."""

    member: Member

    @property
    def open_vdis(self) -> list[Vdi]:
        """The VDIs that are open."""

    def all_held(self) -> list[Vdi]:
        """Return all open VDIs, for a commit that must leave nothing out."""

    def owner(self, snapshot: Snapshot) -> VdiRecord:
        """Return the VDI of a snapshot that is still there."""

    def clones(self, record: VdiRecord) -> list[VdiRecord]:
        """Return the VDIs that were made from a snapshot of this one."""

    def refuse_open(self, record: VdiRecord) -> None:
        """Refuse a VDI that this session has open."""

    def is_changing(self, vdi: Vdi) -> bool:
        """Return whether a VDI is in the middle of a change."""

    def open_vdi(self, record: VdiRecord, grant: Grant | None = None) -> Vdi:
        """Open a VDI for writing."""

    def closing(self, vdi: Vdi) -> AbstractContextManager[Vdi]:
        """Commit and release a VDI at the end of a `with` block."""

    def opened(self, record: VdiRecord) -> AbstractContextManager[Vdi]:
        """Open a VDI for the length of a `with` block."""

    def settle(self) -> None:
        """Finish the commit under way."""

    def repeat(self, vdis: Collection[Vdi], last: Collection[Vdi] = ()) -> None:
        """Commit VDIs so that both records of each say the same."""

    def secure(self, record: VdiRecord) -> None:
        """Make both records of a VDI say the same."""
