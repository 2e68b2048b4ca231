"""The names in a store, remembered: what completion and colours ask for at every keystroke.

A thread reads the store when it has changed; who asks waits a moment for it at most and
otherwise gets what is known. Every failure looks like a store with less in it: a name that
is missing in a menu is no reason to disturb someone who types.

A tap changes its store all the time, so reading rests ten times as long as it took, and
only records that changed since are parsed: ten thousand that did not cost milliseconds.
"""

from __future__ import annotations

import os
import stat
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from operator import attrgetter
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Final

from core import snaplog
from core.blockstore import Blockstore
from core.device import Cache
from core.errors import Corrupt, ParallaxError
from core.format import BLOCK, BLOCK_SHIFT, DELETED, LIVE, LogRecord, VdiRecord
from core.registry import Registry
from core.snaplog import Snapshot

if TYPE_CHECKING:
    from core.lock_messages import Holding

PATIENCE: Final = 0.15
"""Seconds that a question may take while someone types."""

_WINDOW: Final = 128
"""VDIs read at a time; the table ends at the first so many that were never written."""
_CHECKSUM: Final = 2
"""Which 32-bit word of every metadata block is its checksum: a changed record has another."""
_REST: Final = 10
_DEVICE_REST: Final = 3.0
"""Seconds between looks at a block device, which has no time of change."""
_UNSETTLED_NS: Final = 50_000_000
"""A file may change again within one tick of the clock that stamps it."""

_ID_DIGITS: Final = 9
_UUID: Final = 36
"""Characters of a UUID."""

_Sums = tuple[int, int]
_NEVER: Final[_Sums] = (0, 0)
_LogKey = tuple[bytes, int, int, tuple[int, int], tuple[LogRecord, ...]]


@dataclass(frozen=True, slots=True)
class Known:
    """What was read of a store: its VDIs by id, and the snapshots somebody asked for.

    `version` is another for everything that is read anew.
    """

    version: int = 0
    live: tuple[VdiRecord, ...] = ()
    deleted: tuple[VdiRecord, ...] = ()
    logs: Mapping[int, tuple[Snapshot, ...]] = field(default_factory=dict)

    def find(self, reference: str) -> VdiRecord | None:
        """Return the live VDI that has this id, this name or this UUID."""
        if reference.isascii() and reference.isdigit():
            return self.with_id(int(reference)) if len(reference) <= _ID_DIGITS else None
        uuid = _uuid_bytes(reference)
        same = (r for r in self.live if r.name == reference or r.uuid == uuid)
        return next(same, None)

    def with_id(self, number: int) -> VdiRecord | None:
        """Return the live VDI with an id."""
        at = bisect_left(self.live, number, key=attrgetter("id"))
        found = self.live[at : at + 1]
        return found[0] if found and found[0].id == number else None


class Names:
    """The names in the store at `path`.

    Args:
        path: a file or a block device; it may be missing, or come and go.
        patience: seconds that a question waits for the store to be read.
        cache: whose memory stands before it.

    Attributes:
        opened: ids of the VDIs that clients have open, as far as someone looked.
        holders: who holds which lock, likewise.
    """

    def __init__(self, path: str, patience: float = PATIENCE, cache: Cache = "host") -> None:
        """Read nothing yet."""
        self.path = path
        self.cache = cache
        self.opened: frozenset[int] = frozenset()
        self.holders: Mapping[str, Holding] = {}
        self._patience = patience
        self._reader = _Reader(path, cache)
        self._lock = Lock()
        self._reading: Event | None = None
        self._began = 0.0
        self._rest_until = 0.0
        self._wanted: frozenset[int] = frozenset()

    def known(self) -> Known | None:
        """Return what is known now, None when nothing was ever read. Starts nothing."""
        return self._reader.known

    def vdis(self, state: int = LIVE) -> tuple[VdiRecord, ...]:
        """Return the VDIs that are live, or those that are DELETED, by id."""
        known = self._fresh(self._deadline())
        return known.deleted if state == DELETED else known.live

    def whole(self, seconds: float) -> Known:
        """Return what is known when the reading under way has ended: for who can wait."""
        self._fresh(self._deadline())
        reading = self._reading
        if reading is not None:
            reading.wait(seconds)
        return self._reader.known or Known()

    def snapshots(self, reference: str) -> tuple[Snapshot, ...]:
        """Return the snapshots of the VDI with this id, name or UUID, newest first."""
        deadline = self._deadline()
        record = self._fresh(deadline).find(reference)
        if record is None or not record.snapshots:
            return ()
        return self._with_logs({record.id}, deadline).logs.get(record.id, ())

    def look_again(self) -> None:
        """Have the store read soon, however long ago that was: a command may have changed it."""
        with self._lock:
            self._rest_until = 0.0

    def ask_for(self, number: int) -> None:
        """Have the snapshots of a VDI read, without waiting for them."""
        self._with_logs({number}, 0.0)

    def all_snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots of every VDI, by the VDI's id, the newest of each first."""
        deadline = self._deadline()
        wanted = {record.id for record in self._fresh(deadline).live if record.snapshots}
        known = self._with_logs(wanted, deadline)
        return tuple(s for record in known.live for s in known.logs.get(record.id, ()))

    def _deadline(self) -> float:
        return time.monotonic() + self._patience

    def _with_logs(self, numbers: set[int], deadline: float) -> Known:
        """Return what is known, if possible with the snapshots of these VDIs."""
        if not numbers <= self._wanted:
            with self._lock:
                self._wanted |= numbers
                self._rest_until = 0.0  # a new question, not the same one again
            self._fresh(deadline)  # the thread may have been on its way without them
        return self._fresh(deadline)

    def _fresh(self, deadline: float) -> Known:
        """Have the store read if it may have changed, wait a little, return what is known."""
        with self._lock:
            if self._reading is None and time.monotonic() >= self._rest_until:
                self._start()
            reading = self._reading
            patience = min(deadline, self._began + self._patience) - time.monotonic()
        if reading is not None and patience > 0:
            reading.wait(patience)
        return self._reader.known or Known()

    def _start(self) -> None:
        done = Event()
        self._began = time.monotonic()
        thread = Thread(target=self._read, args=(self._wanted, done), name="names", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the program is about to end
            return
        self._reading = done

    def _read(self, wanted: frozenset[int], done: Event) -> None:
        """Read the store once: what the thread does."""
        try:
            self._reader.read(wanted)
        finally:
            with self._lock:
                now = time.monotonic()
                asked_more = self._wanted != wanted
                self._rest_until = 0.0 if asked_more else now + _REST * (now - self._began)
                self._reading = None
            done.set()


class _Reader:
    """Reads a store again and again, each time only what changed. One thread at a time."""

    def __init__(self, path: str, cache: Cache) -> None:
        self.known: Known | None = None
        self._path = path
        self._cache = cache
        self._stamp: tuple[object, ...] = ()
        self._sums: dict[int, _Sums] = {}
        self._records: dict[int, VdiRecord] = {}
        self._logs: dict[int, tuple[_LogKey, tuple[Snapshot, ...]]] = {}

    def read(self, wanted: frozenset[int]) -> None:
        """Bring `known` up to date, with the snapshots of the VDIs `wanted`."""
        stamp = (*_stamp(self._path), wanted)
        if stamp == self._stamp:
            return
        try:
            with closing(Blockstore.open(self._path, cache=self._cache)) as store:
                self._read_records(store)
                self._read_logs(store, wanted)
        except Exception:  # even a bug must not write over what someone types
            self._sums, self._records, self._logs = {}, {}, {}
        self._publish()
        self._stamp = stamp

    def _publish(self) -> None:
        records = sorted(self._records.values(), key=attrgetter("id"))
        live = tuple([record for record in records if record.state == LIVE])
        deleted = tuple([record for record in records if record.state == DELETED])
        logs = {number: snapshots for number, (_, snapshots) in self._logs.items()}
        version = self.known.version + 1 if self.known else 1
        self.known = Known(version, live, deleted, logs)

    def _read_records(self, store: Blockstore) -> None:
        """Parse the records that changed; the first time, show early what there is so far."""
        registry = Registry(store)
        next_look = store.sb.max_vdis if self._sums else 0
        seen = set()
        for number, sums in _checksums(store):
            if len(self._records) > next_look:
                self._publish()
                next_look = 2 * len(self._records)
            seen.add(number)
            if self._sums.get(number, _NEVER) != sums:
                self._sums[number] = sums
                self._read_record(registry, number)
        for number in self._sums.keys() - seen:
            del self._sums[number]
            self._records.pop(number, None)

    def _read_record(self, registry: Registry, number: int) -> None:
        self._records.pop(number, None)
        try:
            record = registry.get(number)
        except Corrupt:
            return
        if record is not None:
            self._records[number] = record

    def _read_logs(self, store: Blockstore, wanted: frozenset[int]) -> None:
        """Read the snapshot logs that changed, of live VDIs only."""
        before, self._logs = self._logs, {}
        for number in wanted:
            record = self._records.get(number)
            if record is None or record.state != LIVE:
                continue
            key = _log_key(record)
            old = before.get(number)
            same = old is not None and old[0] == key
            self._logs[number] = (
                old if old is not None and same else (key, tuple(_snapshots(store, record)))
            )


def _uuid_bytes(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text.replace("-", "")) if len(text) == _UUID else None
    except ValueError:
        return None


def _stamp(path: str) -> tuple[object, ...]:
    """Return what is another when the store may have changed."""
    now = time.time_ns()
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ("missing",)
    if stat.S_ISBLK(status.st_mode):
        return (status.st_rdev, int(time.monotonic() / _DEVICE_REST))
    settled = now - status.st_mtime_ns > _UNSETTLED_NS
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, settled or now)


def _checksums(store: Blockstore) -> Iterator[tuple[int, _Sums]]:
    """Yield (id, checksums of both slots) for every place in the VDI table, unparsed."""
    sb = store.sb
    for first in range(0, sb.max_vdis, _WINDOW):
        window = bytearray(2 * BLOCK * min(_WINDOW, sb.max_vdis - first))
        store.device.preadv(sb.vdi_slot(first, 0) << BLOCK_SHIFT, [window])
        sums = memoryview(window).cast("I")[_CHECKSUM :: BLOCK // 4].tolist()
        if not any(sums):
            return
        yield from enumerate(zip(sums[::2], sums[1::2], strict=True), first)


def _log_key(record: VdiRecord) -> _LogKey:
    """Return what is another when the snapshot log of a VDI is."""
    dropped = record.log_first, record.log_retired
    return record.uuid, record.log_previous, record.log_block, dropped, record.page


def _snapshots(store: Blockstore, record: VdiRecord) -> Iterator[Snapshot]:
    """Yield the snapshots of a VDI, newest first, up to the first page that is damaged."""
    try:
        yield from snaplog.snapshots(store, record)
    except ParallaxError:
        return
