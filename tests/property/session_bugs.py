"""Mistakes to plant in collections with several sessions; see `test_sessions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core import claiming, collection, extent, reclaim
from core.answering import Answers, Work
from core.collection import Bits, Collection, Member
from core.extent import Allocator, Extent
from core.format import BITMAP_BYTES, VdiRecord
from core.open_vdis import OpenVdis
from core.registry import Registry
from core.remote import Argument
from core.vdi import Vdi

Patch = pytest.MonkeyPatch
Bug = Callable[[Patch], None]


def freed_blocks_are_used_again_and_stay_candidates(patch: Patch) -> None:
    """What gets free while sealed is handed out at once, and swept all the same."""

    def clear(self: Extent, blocks: Any) -> None:
        original(self, blocks)
        self._rescan()

    original = Extent.clear
    patch.setattr(Extent, "clear", clear)
    patch.setattr(Extent, "spare", lambda *_: None)
    patch.setattr(Allocator, "release", lambda self, b: self._release(np.asarray(b, np.int64)))


def _sweep_all(self: Extent, garbage: Bits) -> int:
    self._sealed = None
    bits = self._bits[: garbage.size]
    cleared = bits & garbage
    free = int(np.bitwise_count(cleared).sum())
    bits ^= cleared
    self.free += free
    self._changed.update(np.unique(np.flatnonzero(cleared) // BITMAP_BYTES).tolist())
    return free


def current_bits_swept(patch: Patch) -> None:
    """Everything that is not marked is freed, not only what was allocated at the seal."""

    def of(self: Collection, number: int) -> Bits:
        sb = self._store.sb
        bits = ~self._garbage.reached.bits[
            sb.extent_start(number) >> 3 : sb.extent_start(number + 1) >> 3
        ]
        bits[: (sb.overhead + 7) >> 3] = 0
        return bits

    patch.setattr(Extent, "sweep", _sweep_all)
    patch.setattr(Collection, "_of", of)


def images_not_asked(patch: Patch) -> None:
    """Snapshots that other sessions are reading are not marked."""
    patch.setattr(Collection, "_reading", lambda self: list(self._member._reading()))


def roots_read_without_registry(patch: Patch) -> None:
    """VDIs may be made and dropped while the table is read."""

    def read(self: Collection) -> tuple[list[VdiRecord], list[VdiRecord]]:
        found = []
        registry = Registry(self._store)
        for number in range(16):
            record = registry.get(number)
            if record is not None:
                found.append(record)
            self._attend()
        return found, []

    patch.setattr(Collection, "_read_records", read)


def extents_of_late_joiners_swept(patch: Patch) -> None:
    """A session frees what is garbage in extents that it never sealed."""

    def seal(self: Collection) -> None:
        original(self)
        names = collection.others(self._store, self._locks)
        for holding in names:
            self._sealed[holding.name] = list(range(1, self._store.sb.extents))

    def sweep(self: Allocator, number: int, garbage: Bits) -> int:
        found = self._extents.get(number)
        if found is None:
            return 0
        freed = _sweep_all(found, garbage)
        self._free += freed
        return freed

    original = Collection._seal
    patch.setattr(Collection, "_seal", seal)
    patch.setattr(Member, "_refuse", lambda *_: None)
    patch.setattr(Allocator, "sweep", sweep)


def sweep_after_the_token_changed(patch: Patch) -> None:
    """A member sweeps for a collection that it is not sealed for."""
    patch.setattr(Member, "_refuse", lambda *_: None)


def bitmap_read_before_the_grant(patch: Patch) -> None:
    """What an extent looked like when it was seen first is believed when it is claimed."""

    def read(device: Any, sb: Any, number: int, *session: bytes) -> Any:
        return known.setdefault((id(device), number), real(device, sb, number, *session))

    known: dict[tuple[int, int], Any] = {}
    real = extent.read_bitmap
    patch.setattr(extent, "read_bitmap", read)
    patch.setattr(claiming, "read_bitmap", read)


def given_away_before_the_commit(patch: Patch) -> None:
    """An extent goes to another session with blocks in it that no commit has named yet."""

    def spare(self: Answers, which: str, _argument: Argument) -> Work:
        member = self._session.member
        time = member.spare(int(which))
        return Work((), lambda: member.hand_over(int(which), time))

    patch.setattr(Answers, "_yield", spare)


def sealed_without_a_commit(patch: Patch) -> None:
    """The collector does not commit what it allocated before it copied its bitmaps."""

    def seal(self: Collection) -> None:
        self._commit = lambda: None
        original(self)

    original = Collection._seal
    patch.setattr(Collection, "_seal", seal)


def restored_meanwhile(patch: Patch) -> None:
    """What a VDI holds is freed though it was restored after the roots were read."""

    def run(self: Collection) -> int:
        self._garbage.doomed = [r for r in self.doomed if Registry(self._store).get(r.id) == r]
        return original(self)

    original = Collection.run
    patch.setattr(Collection, "run", run)


def what_cannot_be_read_is_not_marked(patch: Patch) -> None:
    """A tree that changed under the marks counts as far as it could be read."""

    def begin(self: Any, *args: Any) -> None:
        original(self, *args)
        self._damaged = self._damaged or reclaim._ignore

    original = reclaim._Marks.__init__
    patch.setattr(reclaim._Marks, "__init__", begin)


def lapsed_for_a_moment_left_out(patch: Patch) -> None:
    """A session whose lease has lapsed for a moment seals, or gives an extent, uncommitted."""

    def held(self: OpenVdis) -> list[Vdi]:
        return [vdi for vdi in self.open_vdis if not vdi.is_lost]

    patch.setattr(OpenVdis, "all_held", held)


def what_is_queued_is_forgotten(patch: Patch) -> None:
    """Nodes of a VDI that was given up are still to be written when their blocks are freed."""

    def sealed(self: Member) -> list[int]:
        self.settle()
        self._store.allocator.free_waiting()
        return self._store.allocator.sealed

    patch.setattr(Member, "sealed", sealed)


BUGS: tuple[Bug, ...] = (
    freed_blocks_are_used_again_and_stay_candidates,
    current_bits_swept,
    images_not_asked,
    roots_read_without_registry,
    extents_of_late_joiners_swept,
    sweep_after_the_token_changed,
    bitmap_read_before_the_grant,
    given_away_before_the_commit,
    sealed_without_a_commit,
    restored_meanwhile,
    what_cannot_be_read_is_not_marked,
    lapsed_for_a_moment_left_out,
    what_is_queued_is_forgotten,
)
