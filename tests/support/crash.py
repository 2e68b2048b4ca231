"""What a power cut may leave of a store, and whether that is all right.

Between two flushes a device may keep any subset of the writes, in any order, and of the
last ones only a part. `CrashBench` looks at such states each time the engine flushes:
writes that overwrite a block in place tear between sectors, all others at any byte.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from support.bench import Bench
from support.memory import Pages, Write
from support.model import SECTOR, SnapshotModel, VdiModel, Version, old_or_new
from support.reader import Get, Reader, VdiFound, Violation

from core.errors import ParallaxError
from core.format import BLOCK, LIVE, ZERO_BLOCK, VdiRecord

ALL_SUBSETS = 6
"""Up to this many unflushed writes, every subset of them is tried."""
CUTS = (16, 512, 2048)
GARBAGE = random.Random(1).randbytes(BLOCK)


class State(dict[int, bytes]):
    """The pages of one crash state."""

    def __missing__(self, block: int) -> bytes:
        return ZERO_BLOCK


Choice = tuple[tuple[int, tuple[tuple[int, bytes], ...] | None], ...]
"""Which writes survived: (index, None for all of it or the pages it came to)."""


class Shown(NamedTuple):
    """What a crash state shows of a VDI; `found` is None when it was collected."""

    record: VdiRecord
    version: Version
    found: VdiFound | None


class Torn(BaseException):
    """A crash state that is wrong, with how to see it again."""


class Cutter:
    """Enumerates the crash states of one stretch between two flushes.

    Args:
        durable: what the last flush left.
        writes: the writes since.
        in_place: blocks in use, of which a sector is the smallest unit.
        rng: decides where not everything can be tried.
        limit: most states to look at.
    """

    def __init__(
        self,
        durable: Pages,
        writes: Sequence[Write],
        in_place: frozenset[int],
        rng: random.Random,
        limit: int,
    ) -> None:
        self._durable = durable
        self._writes = writes
        self._in_place = in_place
        self._rng = rng
        self._limit = limit

    def choices(self) -> Iterator[Choice]:
        """Yield what survived, each choice once."""
        every = list(self._every())
        if len(every) > self._limit:
            every = self._rng.sample(every, self._limit)
        yield from every

    def _every(self) -> Iterator[Choice]:
        count = len(self._writes)
        rng = self._rng
        if count <= ALL_SUBSETS:
            masks: Iterable[int] = range(1 << count)
        else:
            full = (1 << count) - 1
            masks = {
                *((1 << n) - 1 for n in range(count + 1)),
                *(1 << n for n in range(count)),
                *(full ^ 1 << n for n in range(count)),
                *(rng.getrandbits(count) for _ in range(4 * count)),
            }
        tears = [self._tears(n) for n in range(count)]
        for mask in masks:
            kept = [n for n in range(count) if mask >> n & 1]
            yield tuple((n, None) for n in kept)
            for torn in kept[-1:], kept[-2:], [n for n in kept if rng.random() < 0.5]:
                if torn:
                    yield tuple((n, rng.choice(tears[n]) if n in torn else None) for n in kept)
        for torn_one in range(count):
            before: Choice = tuple((n, None) for n in range(torn_one))
            others: Choice = tuple((n, None) for n in range(count) if n != torn_one)
            for pages in tears[torn_one]:
                yield (*before, (torn_one, pages))
                if torn_one < count - 1:
                    yield (*others, (torn_one, pages))

    def _tears(self, number: int) -> list[tuple[tuple[int, bytes], ...]]:
        """Return what may come of one write that was under way: (block, page) of each."""
        first, run = self._writes[number]
        tears = []
        pages = list(enumerate(run, first))
        for at in {0, len(run) - 1, self._rng.randrange(len(run))}:
            block, page = pages[at]
            for torn in self._torn(block, page):
                tears.append((*pages[:at], (block, torn)))
                if len(run) > 1:  # the pages of one write may reach the disk in any order
                    others = [p for p in pages[:at] + pages[at + 1 :] if self._rng.random() < 0.5]
                    tears.append((*others, (block, torn)))
            if at:
                tears.append(tuple(pages[:at]))
                tears.append(tuple(pages[at:]))
        return tears

    def _torn(self, block: int, new: bytes) -> Iterator[bytes]:
        """Yield what one page may look like when the power goes while it is written."""
        old = self._durable.get(block, ZERO_BLOCK)
        if block in self._in_place:
            yield new[:SECTOR] + old[SECTOR:]
            yield new[:2048] + old[2048:]
            yield old[:1024] + new[1024:1536] + old[1536:]
            yield old[:SECTOR] + new[SECTOR:]
            yield new[:-SECTOR] + old[-SECTOR:]
            return
        yield ZERO_BLOCK
        yield GARBAGE
        for cut in CUTS:
            for rest in (old, ZERO_BLOCK, GARBAGE):
                yield new[:cut] + rest[cut:]

    def state(self, choice: Choice) -> State:
        """Return the pages of a crash state."""
        state = State(self._durable)
        for number, pages in choice:
            if pages is None:
                first, run = self._writes[number]
                state.update(enumerate(run, first))
            else:
                state.update(pages)
        return state


class CrashBench(Bench):
    """A `Bench` that looks at the crash states of everything it does.

    Args:
        pages, vdis: as `Bench`.
        seed: of all choices.
        limit: most states for each stretch between two flushes.
        engine_every: let the engine open every so many-th state as well.

    Attributes:
        states: crash states looked at.
        opened: of those, how many the engine opened, checked, and wrote to.
        watching: whether to look at all.
    """

    def __init__(
        self,
        pages: Pages,
        vdis: Iterable[VdiModel] = (),
        seed: int = 0,
        limit: int = 1 << 30,
        engine_every: int = 97,
        reader: Reader | None = None,
    ) -> None:
        super().__init__(pages, vdis)
        self.reader = reader or Reader(self.sb)
        self.rng = random.Random(seed)
        self.limit = limit
        self.engine_every = engine_every
        self.states = 0
        self.opened = 0
        self.watching = True
        self.device.on_flush = self.look

    def crash(self, seed: int) -> None:
        """Cut the power in one of the ways there are now, and go on from there."""
        rng = random.Random(seed)
        cutter = self.cutter()
        state = cutter.state(rng.choice(list(cutter.choices())))
        self.go_on(state, self.salvage(state, self.judge(state)))
        self.device.on_flush = self.look

    def _in_place(self) -> frozenset[int]:
        """The data blocks that a record which may be found after a crash owns."""
        durable = State(self.device.durable)
        records = [record for n in self.vdis if (record := self._record(durable, n))]
        for block, page in chain.from_iterable(
            enumerate(run, first) for first, run in self.device.unflushed
        ):
            if block < self.sb.copy_block:
                record = VdiRecord.unpack(page, self.sb.uuid, (block - 2) // 2)
                if record is not None:
                    records.append(record)
        get = durable.__getitem__
        return self._slots.union(
            *(self.reader.owned_data(get, record) for record in records if record.state == LIVE)
        )

    @cached_property
    def _slots(self) -> frozenset[int]:
        """The blocks at fixed places, which are written again and again."""
        sb = self.sb
        payload = range(sb.overhead, sb.extent_blocks)
        starts = [sb.extent_start(extent) for extent in range(1, sb.extents)]
        return frozenset(range(sb.blocks)).difference(
            *(range(start + payload.start, start + payload.stop) for start in starts)
        )

    def _record(self, durable: State, number: int) -> VdiRecord | None:
        try:
            return self.reader.record(durable.__getitem__, number)
        except Violation:
            return None

    def cutter(self) -> Cutter:
        return Cutter(
            self.device.durable, self.device.unflushed, self._in_place(), self.rng, self.limit
        )

    def look(self) -> None:
        """Look at the crash states of the stretch that ends now."""
        if not self.watching:
            return
        cutter = self.cutter()
        for choice in cutter.choices():
            state = cutter.state(choice)
            self.states += 1
            try:
                shown = self.judge(state)
                if self.states % self.engine_every == 0:
                    self.opened += 1
                    self.judge_by_engine(state, shown)
            except Violation as violation:
                raise Torn(f"{violation}\n  after {self.describe(choice)}") from violation

    def describe(self, choice: Choice) -> str:
        """Say what reached the disk."""
        writes = [f"{first}+{len(run)}" for first, run in self.device.unflushed]
        kept = []
        for number, pages in choice:
            first, run = self.device.unflushed[number]
            if pages is None:
                kept.append(f"{first}+{len(run)}")
            else:
                what = _describe(pages, dict(enumerate(run, first)))
                kept.append(f"{first}+{len(run)} torn: {what}")
        return f"{self.device.flushes} flushes, of writes {writes} these survived: {kept}"

    # -- judging -----------------------------------------------------------------------

    def judge(self, state: State) -> dict[int, Shown]:
        """Return what a crash state shows of each VDI.

        Raises:
            Violation: it is not what it may be.
        """
        get = state.__getitem__
        records, found = self.reader.store(get, max(self.vdis, default=0) + 2)
        shown = {}
        for number, vdi in self.vdis.items():
            record = records.pop(number, None)
            if record is not None:
                shown[number] = self._judge_vdi(get, vdi, record, found.get(number))
            elif vdi.floor:
                raise Violation(f"VDI {number} is lost")
        if records:
            raise Violation(f"VDIs {list(records)} come from nowhere")
        return shown

    def _judge_vdi(
        self, get: Get, vdi: VdiModel, record: VdiRecord, found: VdiFound | None
    ) -> Shown:
        problem = (
            f"record {record.sequence} of VDI {vdi.id} is not among {sorted(vdi.versions)}"
            f" from {vdi.floor} on"
        )
        for version in vdi.base(record.sequence):
            if version.deleted == (record.state != LIVE):
                problem = "" if found is None else self._mismatch(get, vdi, version, found)
                if not problem:
                    return Shown(record, version, found)
            else:
                problem = f"VDI {vdi.id} is {'not ' if record.state == LIVE else ''}deleted"
        raise Violation(problem)

    def _mismatch(self, get: Get, vdi: VdiModel, version: Version, found: VdiFound) -> str:
        """Return how a VDI differs from what it may be in one version."""
        record, name = found.record, f"VDI {vdi.id}"
        if (record.name, record.size) != (version.name, version.size):
            return f"{name} has {record.name!r} and {record.size} bytes, not {version.size}"
        if len(found.snapshots) != len(version.snapshots):
            return f"{name} has {len(found.snapshots)} snapshots, not {len(version.snapshots)}"
        for (where, line, tree), snap in zip(found.snapshots, version.snapshots, strict=True):
            if (line.label, line.size) != (snap.label, snap.size) or where != (snap.id or where):
                return f"snapshot {line.label} {where} of {name} should be {snap.label} {snap.id}"
            for vblock in tree.mapping.keys() | snap.disk.keys():
                page = get(tree.mapping[vblock]) if vblock in tree.mapping else ZERO_BLOCK
                if page != snap.disk.get(vblock, ZERO_BLOCK):
                    return f"block {vblock} of snapshot {snap.label} of {name} changed"
        mapping, disk = found.tree.mapping, version.disk
        for vblock in mapping.keys() | disk.keys():
            page = get(mapping[vblock]) if vblock in mapping else ZERO_BLOCK
            base = disk.get(vblock, ZERO_BLOCK)
            if page != base and not old_or_new(page, base, vdi.later(version.moment, vblock)):
                return f"block {vblock} of {name} is neither old nor new"
        return ""

    def salvage(self, state: State, shown: dict[int, Shown]) -> list[VdiModel]:
        """Return models of what a crash state, which was judged, has in it."""
        models = []
        for number, (record, version, found) in shown.items():
            if found is not None:
                pages = {v: state[block] for v, block in found.tree.mapping.items()}
                disk = {v: page for v, page in pages.items() if page != ZERO_BLOCK}
                ids = [where for where, _, _ in found.snapshots]
                snapshots = tuple(map(_with_id, version.snapshots, ids))
                version = replace(version, disk=disk, snapshots=snapshots)
            model = self.vdis[number].copy()
            model.found(version, record.sequence, found is None)
            models.append(model)
        return models

    def judge_by_engine(self, state: State, shown: dict[int, Shown]) -> None:
        """Let the engine open a crash state, check it, read all of it, and go on writing.

        Raises:
            Violation: that did not go well.
        """
        bench = Bench(state, self.salvage(state, shown))
        bench.lossy = True
        try:
            bench.check()
            for number, vdi in enumerate(bench.live):
                bench.write(number, 0, 15, -1 - number)
                bench.write(number, vdi.size // 2, BLOCK + 100, -100 - number)
            bench.flush_all()
            for number in range(len(bench.live)):
                bench.snapshot(number)
                bench.write(number, 100, 20, -200 - number)
            bench.reopen()
            bench.check()
        except (AssertionError, ParallaxError) as error:
            raise Violation(f"the engine cannot go on: {error!r}") from error


def _with_id(snap: SnapshotModel, where: tuple[int, int]) -> SnapshotModel:
    return replace(snap, id=where)


def _describe(pages: Sequence[tuple[int, bytes]], new: dict[int, bytes]) -> str:
    """Say which pages of a torn write came to what."""
    kept = []
    for block, page in pages:
        same = next((at for at in range(BLOCK) if page[at] != new[block][at]), BLOCK)
        kept.append(f"{block}[:{same}]")
    return " ".join(kept) or "nothing"
