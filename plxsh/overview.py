"""The state of a store in a few numbers, for the line at the bottom of the shell.

It is read in a thread and shown when it is there: a prompt never waits for a disk or for
a tap that does not answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Final

from core.blockstore import Blockstore
from core.device import lock_holder
from core.errors import Corrupt, NotAStore, NotFound, ParallaxError, ReadOnly
from core.format import BLOCK, BLOCK_SHIFT, BitmapBlock
from plxsh.exports import exports_of, with_holders
from plxsh.locking import Standing
from plxsh.names import Names

_EVERY: Final = 2.0
_REST: Final = 10
_NAMES_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Overview:
    """What there is to say about a store.

    Args:
        used: bytes that are allocated.
        total: bytes that can be.
        vdis: how many VDIs there are.
        holder: the process that has the store open for writing, None for nobody.
        exports: how many VDIs and snapshots are open; None without a tap or lock master.
        locks: where the lock master is; empty for one that is embedded.
        locks_down: why it cannot be asked, empty when it can.
        trouble: why the store cannot be read, in a few words; then the rest says nothing.
    """

    used: int = 0
    total: int = 0
    vdis: int = 0
    holder: str | None = None
    exports: int | None = None
    locks: str = ""
    locks_down: str = ""
    trouble: str = ""


def overview(names: Names, socket: str, ask: Callable[[], Standing] = Standing) -> Overview:
    """Look at a store, its lock master, and the tap that may serve it.

    Args:
        names: those of the store.
        socket: where the tap of this user listens.
        ask: asks the lock master.
    """
    try:
        with closing(Blockstore.open(names.path, cache=names.cache)) as store:
            sb = store.sb
            used = sum(used_blocks(store, extent) for extent in range(1, sb.extents))
            total = (sb.extents - 1) * sb.extent_blocks
    except ParallaxError as error:
        return Overview(trouble=_in_few_words(error))
    known = ask()
    exports = exports_of(names.path, socket)
    if known.holders is not None:
        exports = with_holders(exports or (), known.holders)
    names.holders = known.holders or {}
    names.opened = frozenset(export.vdi for export in exports or ())
    return Overview(
        used << BLOCK_SHIFT,
        total << BLOCK_SHIFT,
        len(names.whole(_NAMES_TIMEOUT).live),
        lock_holder(names.path),
        None if exports is None else len(exports),
        known.where,
        known.trouble,
    )


def used_blocks(opened: Blockstore, extent: int) -> int:
    """Return how many blocks of an extent its bitmap calls allocated, as of its last commit.

    A part of the bitmap that is damaged in both slots counts as all used. An extent that nobody
    ever had costs two blocks, not the bitmap: a store may be far larger than what is in it.
    """
    sb = opened.sb
    if not opened.was_claimed(extent):
        return sb.overhead
    start = sb.bitmap_slot(extent, 0, 0) << BLOCK_SHIFT
    raw = opened.device.pread(start, 2 * sb.bitmap_blocks * BLOCK)
    used = 0
    for index in range(sb.bitmap_blocks):
        at = 2 * index * BLOCK
        slots = [
            BitmapBlock.unpack(raw[slot : slot + BLOCK], sb.uuid, extent, index)
            for slot in (at, at + BLOCK)
        ]
        valid = [slot for slot in slots if slot]
        newest = max(valid, key=lambda slot: slot.sequence, default=None)
        used += newest.used if newest else sb.extent_blocks // sb.bitmap_blocks
    return used


def _in_few_words(error: ParallaxError) -> str:
    if isinstance(error, NotAStore):
        return "not a store"
    if isinstance(error, NotFound):
        return "no store there"
    if isinstance(error, ReadOnly):
        return "may not be read"
    return "damaged" if isinstance(error, Corrupt) else "cannot be read"


class Overviews:
    """The latest overview of a store, looked for again while someone asks.

    Args:
        names: those of the store.
        socket: where the tap of this user listens.
        changed: called by the thread when there is news.
        ask: asks the lock master, however long that takes.
    """

    def __init__(
        self,
        names: Names,
        socket: str,
        changed: Callable[[], None],
        ask: Callable[[], Standing] = Standing,
    ) -> None:
        """Look at nothing yet."""
        self._names = names
        self._ask = ask
        self._socket = socket
        self._changed = changed
        self._latest: Overview | None = None
        self._lock = Lock()
        self._next = 0.0

    def latest(self) -> Overview | None:
        """Return what is known at once, None at first; look again if that is old."""
        with self._lock:
            known = self._latest
            due = time.monotonic() >= self._next
            if due:
                self._next = float("inf")  # until the thread has looked
        if due:
            try:
                Thread(target=self._look, name="overview", daemon=True).start()
            except RuntimeError:  # no more threads, or the program is about to end
                self._next = 0.0
        return known

    def _look(self) -> None:
        """Look once: what the thread does."""
        began = time.monotonic()
        try:
            found = overview(self._names, self._socket, self._ask)
        except Exception:  # even a bug must not write over what someone types
            found = Overview(trouble="cannot be read")
        news = found != self._latest
        self._latest = found
        now = time.monotonic()
        self._next = now + max(_EVERY, _REST * (now - began))
        if news:
            self._changed()
