"""Checking what has two slots: superblock, list of sessions, extents, VDI records.

In a store in which no session can have been cut off both slots of everything say the same, so
whatever differs has been lost, has rotted, or is what it was long ago. As long as there may be
such a session a torn slot, and one that is a version behind, are what a crash leaves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from core.blockstore import Blockstore
from core.extent_disk import bitmap_pairs, header_pair
from core.findings import Finding, Report
from core.format import BitmapBlock, Condition, VdiRecord
from core.session_list import is_quiet, listed, read_sessions
from core.slots import Pair, T
from core.text import counted

_SHARING: Final[dict[str, Any]] = {
    "sequence": 0,
    "lock_master": bytes(16),
    "settled": False,
    "ro_compat": 0,
}
"""What is not the same in both superblocks while a store is claimed by a lock master."""


class SlotCheck:
    """Looks at the slots of one store, and reports what is wrong with them.

    Args:
        store: the store.
        report: what was found goes there.
        beside: whether others may be writing meanwhile.

    Attributes:
        quiet: whether both slots of everything must say the same.
        vdis: ids of VDIs with whose slots something is wrong.
        extents: numbers of such extents.
    """

    def __init__(self, store: Blockstore, report: Report, beside: bool = False) -> None:
        self._store = store
        self._report = report
        self._beside = beside
        self.quiet = not beside and is_quiet(store.device, store.sb)
        self.vdis: set[int] = set()
        self.extents: set[int] = set()

    def _damage(self, block: int, message: str) -> None:
        self._report.findings.append(Finding("damage", block, message))

    def _note(self, block: int | None, message: str) -> None:
        self._report.findings.append(Finding("note", block, message))

    # -- of the whole store ------------------------------------------------------------

    def check_superblock(self) -> None:
        """Compare the superblock with its copy."""
        store, sb = self._store, self._store.sb
        for warning in store.warnings:
            block, _, message = warning.removeprefix("block ").partition(": ")
            self._damage(int(block), message)
        first, copy = store.superblocks()
        if store.warnings or first is None or copy is None or first == copy:
            return
        older = sb.copy_block if first.sequence > copy.sequence else 0
        message = "is another version of the superblock than the other one"
        if self.quiet and replace(first, **_SHARING) != replace(copy, **_SHARING):
            self._damage(older, message)
        elif not self._beside:
            self._note(older, f"{message} (a crash): the newer one counts")

    def check_sessions(self) -> None:
        """Look at the list of sessions."""
        sb = self._store.sb
        if not sb.stamped:
            return
        pair = read_sessions(self._store.device, sb)
        blocks = sb.sessions_slot(0), sb.sessions_slot(1)
        self._check_valid("the list of sessions", blocks, pair, Condition.TORN)
        if pair.slot is not None and pair.has_gap and not self._beside:
            self._gap("the list of sessions", blocks[1 - pair.slot])
        found = listed(self._store.device, sb)
        if not self._beside and (found.sessions or found.more):
            count = counted(len(found.sessions), "session") if found.sessions else "a session"
            self._note(
                None,
                f"{count} ended without leaving the store tidy (a crash): slots that differ are"
                " not called damaged, until a session has ended that writes to the store alone",
            )

    # -- of one extent or VDI ----------------------------------------------------------

    def check_extent(self, extent: int) -> list[BitmapBlock] | None:
        """Check header and bitmap of an extent; return the bitmap, None if it may not be that."""
        device, sb = self._store.device, self._store.sb
        before = len(self._report.findings)
        start = sb.extent_start(extent)
        pair = header_pair(device, sb, extent)
        self._check_pair(f"the header of extent {extent}", (start, start + 1), pair)
        parts = []
        for index, part in enumerate(bitmap_pairs(device, sb, extent)):
            blocks = sb.bitmap_slot(extent, index, 0), sb.bitmap_slot(extent, index, 1)
            parts.append(self._check_pair(f"the bitmap of extent {extent}", blocks, part))
        if len(self._report.findings) > before:
            self.extents.add(extent)
        known = [part for part in parts if part is not None]
        return known if len(known) == len(parts) else None

    def check_vdi(self, number: int, pair: Pair[VdiRecord]) -> VdiRecord | None:
        """Return the newest record of a VDI that can be read, None when there is none."""
        sb = self._store.sb
        before = len(self._report.findings)
        blocks = sb.vdi_slot(number, 0), sb.vdi_slot(number, 1)
        if pair.never_made:
            for block, condition in zip(blocks, pair.conditions, strict=True):
                if condition is Condition.TORN and self.quiet:
                    self._damage(block, f"a part of a record of VDI {number}, which is not there")
        else:
            self._check_pair(f"the record of VDI {number}", blocks, pair)
        if len(self._report.findings) > before:
            self.vdis.add(number)
        return pair.current

    def _check_pair(self, what: str, blocks: tuple[int, int], pair: Pair[T]) -> T | None:
        """Check two slots; return the current version, None when it is not known."""
        slot, current = pair.slot, pair.current
        before = len(self._report.findings)
        self._check_valid(what, blocks, pair, None if self.quiet else Condition.TORN)
        if slot is None or current is None:
            return None
        if pair.doubtful and not self.quiet:
            self._damage(blocks[slot], f"the newest version of {what} may be lost")
            return None
        one, other = pair.found
        reported = len(self._report.findings) > before
        if one is not None and other is not None and not reported:
            if pair.has_gap and not self._beside:
                self._gap(what, blocks[1 - slot])
            elif self.quiet and not pair.are_twins:
                self._damage(
                    blocks[slot],
                    f"the slots of {what} differ: one was lost, or is a stale one",
                )
        return current

    def _gap(self, what: str, block: int) -> None:
        self._damage(
            block, f"is not the version before that of {what}: it was lost, or is a stale one"
        )

    def _check_valid(
        self, what: str, blocks: tuple[int, int], pair: Pair[T], crash: Condition | None
    ) -> None:
        """Report slots that are not valid; `crash` is what one is that a crash has left."""
        current = pair.current
        for slot in (0, 1):
            block, condition = blocks[slot], pair.conditions[slot]
            if condition is Condition.VALID:
                continue
            if condition is Condition.SCARRED:
                self._damage(block, f"a slot of {what} has rotted; what it says can be read")
            elif condition is Condition.TORN and condition is crash and current is not None:
                self._note(
                    block, f"a slot of {what} is torn (a crash); version {current.sequence} counts"
                )
            elif condition is Condition.EMPTY and current is not None and current.sequence == 1:
                if self.quiet and self._store.sb.stamped:
                    self._damage(block, f"a slot of {what} is missing")
            else:
                self._damage(block, f"a slot of {what} is damaged")
