"""One blockstore: format it, open it, read its nodes, write its blocks.

A `Blockstore` joins a device, the geometry in the superblock, the node cache that all
VDIs of the process share, and (when opened for writing) the allocator. It knows blocks,
not VDIs.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Final, Literal, Protocol
from weakref import WeakSet

from core.device import BlockDevice, Buffer, Cache, FileDevice, Lock
from core.direct import open_device
from core.errors import (
    BadRequest,
    Corrupt,
    Fenced,
    InUse,
    IoFailed,
    NewerStore,
    NotAStore,
    NotFound,
    ParallaxError,
    ReadOnly,
)
from core.format import (
    BLOCK,
    BLOCK_MASK,
    BLOCK_SHIFT,
    CHECK_MASK,
    FANOUT,
    KNOWN_INCOMPAT,
    KNOWN_RO_COMPAT,
    MAX_EXTENT,
    MIN_EXTENT,
    SUPERBLOCK_MAGIC,
    VERSION,
    WRITABLE,
    Superblock,
    check_geometry,
    node_check,
)
from core.session_list import enroll, withdraw
from core.text import uuid_text

if TYPE_CHECKING:
    from core.extent import Allocator
    from core.locks import Locks

Mode = Literal["read", "shared", "write"]
"""How a store is opened: beside a writer, keeping writers out, or as the writer."""

Node = memoryview
"""A radix node in memory: 512 unsigned 64-bit entries (format "Q")."""

DEFAULT_CACHE: Final = 64 << 20
_NODE_COST: Final = BLOCK + 512
_LOCKS: Final[dict[Mode, Lock]] = {"read": "none", "shared": "shared", "write": "exclusive"}


class Follower(Protocol):
    """Who remembers nodes of the cache."""

    def forget(self) -> None:
        """Let go of all nodes."""


class NodeCache:
    """Committed nodes by their checked pointer, bounded in bytes.

    A key is a block *and* the check of what is there, which is all that a read from the
    device could verify, and whether it is a leaf: other entries are possible then. So a block
    that another session freed and used again does no harm: a pointer to its new contents has
    another check, another key, and is read. Nobody has to tell this session, and no pointer
    of a tree that is still in use can mean what is gone.

    Two generations instead of a list in order of use: a hit costs one look-up and no
    bookkeeping. When the young half is full it becomes the old half, and the old half,
    which nobody asked for in the meantime, is dropped.

    Args:
        limit: bytes of memory for nodes.
    """

    def __init__(self, limit: int = DEFAULT_CACHE) -> None:
        """Start empty."""
        self._half = max(16, limit // _NODE_COST // 2)
        self._followers: WeakSet[Follower] = WeakSet()
        self.young: dict[int, Node] = {}
        self._old: dict[int, Node] = {}

    def get(self, key: int) -> Node | None:
        """Return the node with this key (`node_key`), if it is here."""
        node = self.young.get(key)
        if node is None:
            node = self._old.get(key)
            if node is not None:
                self.put(key, node)
        return node

    def follow(self, follower: Follower) -> None:
        """Have `follower` told when a generation goes, so that it keeps no node alive."""
        self._followers.add(follower)

    def put(self, key: int, node: Node) -> None:
        """Keep a node; it must never change again."""
        if len(self.young) >= self._half:
            self._old = self.young
            self.young = {}
            for follower in self._followers:
                follower.forget()
        self.young[key] = node


class Blockstore:
    """A store that is open.

    Attributes:
        device: where its blocks are.
        sb: its geometry and identity.
        nodes: the node cache of this process.
        warnings: what an operator should hear about, such as a superblock read from
            its copy.
        session: UUID of this opening.
        failed: the error after which nothing may be written any more, or None.
        touched: ids of the VDIs whose records this session has written, or may have found
            untidy: before it ends both slots of them are to say the same.
        found_others: whether there were other sessions on the list when this one came.
    """

    def __init__(
        self,
        device: BlockDevice,
        locks: Locks | None = None,
    ) -> None:
        """Read the superblock of `device` and check that this version can use it.

        Args:
            device: an open device; it is closed when this fails.
            locks: grants extents; needed to write. When they are leased, every write asks
                them first.

        Raises:
            NotAStore: there is no store.
            NewerStore: it is a newer kind of store.
            ReadOnly: it may be read but not written by this version.
            Corrupt: no valid superblock was found, or the store is truncated.
        """
        if locks is not None and locks.leased:
            from core.leased import LeasedDevice  # only who has a lock master pays for it

            device = LeasedDevice(device, locks)
        self.device = device
        self.warnings: list[str] = []
        self.nodes = NodeCache()
        self.session = uuid.uuid4().bytes
        self.failed: ParallaxError | None = None
        self.touched: set[int] = set()
        self.found_others = False
        self._enrolled = False
        self._queue: dict[int, Buffer] = {}
        self._allocator: Allocator | None = None
        try:
            self.sb = self._read_superblock()
            self._check_usable()
        except BaseException:
            device.close()
            raise
        if device.writable and locks is not None:
            try:
                refuse_others(self.sb, locks, device.name)
            except BaseException:
                device.close()
                raise
            self._allocate(locks)

    def _allocate(self, locks: Locks) -> None:
        """Have an allocator that has claimed nothing yet."""
        from core.extent import Allocator  # numpy: only who writes pays for it

        self._locks = locks
        self._allocator = Allocator(self.device, self.sb, locks, self.session)

    @classmethod
    def open(
        cls,
        path: str,
        mode: Mode = "read",
        locks: Locks | None = None,
        cache: Cache = "host",
    ) -> Blockstore:
        """Open the store in a file or device; see `Mode`, `Cache` and the constructor.

        With locks that are leased others may have it open for writing as well: as guests of
        the process that keeps the store locked, or all under a lock master elsewhere.
        """
        lock = _LOCKS[mode]
        if locks is not None and locks.leased and mode != "read":
            lock = "guest" if locks.store == read_uuid(path).hex() else "session"
        device = _opened(path, mode == "write", lock, cache)
        if locks is None and device.writable:
            from core.lock_master import LockMaster  # only who writes pays for it

            locks = LockMaster()
        store = cls(device, locks)
        if mode == "shared":
            try:
                refuse_others(store.sb, locks, path)
            except BaseException:
                store.close()
                raise
        return store

    def view(self) -> Blockstore:
        """Return the same open store for reading what is committed, on another thread.

        It has a node cache of its own. It is not to be closed, and of no use after this one is.
        """
        view = copy(self)
        view.nodes, view.warnings = NodeCache(), []
        view._queue, view._allocator = {}, None
        return view

    def refresh(self) -> None:
        """Read the superblock again, in case another session has made the store larger."""
        known = len(self.warnings)
        sb = self._read_superblock()
        del self.warnings[known:]  # they were there when it was opened, or the check finds them
        if sb != self.sb and sb.sequence >= self.sb.sequence and sb.uuid == self.sb.uuid:
            if self._allocator is not None and not self._locks.leased:
                try:
                    refuse_others(sb, self._locks, self.device.name)
                except InUse as error:  # others took it for a store that nobody uses
                    self.fail(error)
                    raise
            if self.device.writable:
                self.device.resize(sb.size)  # whoever wrote the superblock did so before
            self.sb = sb
            if self._allocator is not None:
                self._allocator.grown(sb)

    def start_over(self) -> None:
        """Go on as another session, after all that was held was lost.

        Nothing that was not committed is written any more.
        """
        self._queue.clear()
        if self._allocator is not None:
            self._allocator.close()
        self.session = uuid.uuid4().bytes
        self.touched.clear()
        self._enrolled = False
        if isinstance(self.failed, Fenced):
            self.failed = None
        self.refresh()
        self._allocate(self._locks)

    def _read_superblock(self) -> Superblock:
        """Return the newest valid superblock, from block 0 or from its copy."""
        first = self._superblock_at(0)
        if first is not None:
            copy = self._superblock_at(first.copy_block)
            if copy is None:
                self.warnings.append(
                    f"block {first.copy_block}: the copy of the superblock is damaged"
                )
            elif copy.uuid == first.uuid and copy.sequence > first.sequence:
                return copy
            return first
        size = MIN_EXTENT
        while size <= min(MAX_EXTENT, self.device.size):
            copy = self._superblock_at((size >> BLOCK_SHIFT) - 1)
            if copy is not None and copy.extent_blocks << BLOCK_SHIFT == size:
                self.warnings.append(
                    f"block 0: the superblock is damaged, its copy in block {copy.copy_block}"
                    " was used; repair with 'plxsh store check --repair'"
                )
                return copy
            size *= 2
        name = self.device.name
        if self.device.size >= BLOCK and self.device.pread(0, 8) == SUPERBLOCK_MAGIC:
            raise Corrupt(
                f"the superblock of {name} and its copy are damaged", 0, "restore it from a backup"
            )
        raise NotAStore(
            f"{name} holds no blockstore",
            "name another with --store, or format it with 'plxsh store create'",
        )

    def superblocks(self) -> tuple[Superblock | None, Superblock | None]:
        """Return what is in block 0 and in its copy, None where it is not valid."""
        return self._superblock_at(0), self._superblock_at(self.sb.copy_block)

    def _superblock_at(self, block: int) -> Superblock | None:
        if (block + 1) << BLOCK_SHIFT > self.device.size:
            return None
        return Superblock.unpack(self.device.pread(block << BLOCK_SHIFT, BLOCK))

    def _check_usable(self) -> None:
        sb, name = self.sb, self.device.name
        if sb.version != VERSION:
            raise NewerStore(
                f"{name} has format version {sb.version}, this Parallax reads version {VERSION}",
                "use the version of Parallax that made it",
            )
        if sb.incompat & ~KNOWN_INCOMPAT:
            raise NewerStore(
                f"{name} uses features this Parallax does not know"
                f" (incompat {sb.incompat & ~KNOWN_INCOMPAT:#x})",
                "use a newer Parallax",
            )
        if self.device.writable and sb.ro_compat & ~KNOWN_RO_COMPAT:
            raise ReadOnly(
                f"{name} can only be read by this Parallax"
                f" (ro-compat {sb.ro_compat & ~KNOWN_RO_COMPAT:#x})",
                "use a newer Parallax to write to it",
            )
        try:
            check_geometry(sb.extent_blocks << BLOCK_SHIFT, sb.extents)
        except BadRequest as error:
            raise Corrupt(f"the superblock makes no sense: {error.message}", 0) from error
        if self.device.size < sb.size:
            raise IoFailed(
                f"{name} is truncated: it has {self.device.size} bytes, the store {sb.size}",
                "restore the missing part; nothing was changed",
            )

    @property
    def allocator(self) -> Allocator:
        """The allocator.

        Raises:
            ReadOnly: the store was opened for reading.
        """
        if self._allocator is None:
            raise ReadOnly(f"{self.device.name} is open for reading only", "open it for writing")
        return self._allocator

    @property
    def writable(self) -> bool:
        """Whether blocks may be written."""
        return self._allocator is not None

    def fail(self, error: ParallaxError) -> None:
        """Remember why nothing may be written to this store any more."""
        if self.failed is None:
            self.failed = error

    def check_writable(self) -> None:
        """Refuse to write after a failure whose extent nobody knows.

        Raises:
            IoFailed: an earlier flush or commit failed.
        """
        if self.failed is not None:
            raise IoFailed(
                f"nothing more is written after a failure: {self.failed.message}",
                "open the store again; it is as of its last commit",
            )

    # -- nodes -------------------------------------------------------------------------

    def node(self, entry: int, level: int, wait: bool = True) -> Node:
        """Return the node that `entry` points to; each of its entries leads to payload.

        Args:
            entry: a radix entry with its check.
            level: 0 for a leaf, whose entries point to data.
            wait: read it from the device if need be.

        Raises:
            WouldBlock: `wait` is false and it is not in memory.
            Corrupt: what is there is not what the pointer promises, or no node of that level.
        """
        key = node_key(entry, level)
        node = self.nodes.get(key)
        if node is None:
            node = memoryview(self.checked(entry, wait)).cast("Q")
            self._check_entries(entry >> 1 & BLOCK_MASK, node, level)
            self.nodes.put(key, node)
        return node

    def _check_entries(self, block: int, node: Node, level: int) -> None:
        """Refuse a node that points to what is no payload, also of an extent that is new.

        Every later use of its entries rests on this: a write in place through one of them
        must not hit a record or a bitmap, nor make the file larger.
        """
        from core.entries import impossible  # numpy: only who reads contents pays for it

        slot = impossible(node, self.sb, level)
        if slot is not None:
            self.refresh()
            slot = impossible(node, self.sb, level)
        if slot is not None:
            raise Corrupt(f"its entry {slot} cannot be a pointer: {node[slot]:#x}", block)

    def checked(self, entry: int, wait: bool = True) -> Buffer:
        """Return the block that a checked pointer points to, not cached; see `node`."""
        block = entry >> 1 & BLOCK_MASK
        queued = self._queue.get(block)
        if queued is not None:
            return queued
        if not self.holds_payload(block):
            raise Corrupt("a pointer leads outside the space for data and nodes", block)
        data = bytearray(BLOCK)
        self.device.preadv(block << BLOCK_SHIFT, [data], wait)
        if node_check(data) != entry >> 41 & CHECK_MASK:
            raise Corrupt("is not what the pointer to it promises (damaged or stale)", block)
        return data

    def holds_payload(self, block: int) -> bool:
        """Return whether data and nodes can be there, also in an extent that is new."""
        if not self.sb.holds_payload(block):
            self.refresh()
        return self.sb.holds_payload(block)

    def was_claimed(self, extent: int) -> bool:
        """Return whether a session has ever had an extent; until then nothing is in it.

        Until then header and bitmap are as they were formatted. Of the bitmap the two ends are
        looked at, where data and nodes begin: a crash may have lost the header that was written
        with them. What is damaged counts as claimed.
        """
        from core.extent_disk import bitmap_pair, header_pair

        device, sb = self.device, self.sb
        ends = (bitmap_pair(device, sb, extent, index) for index in {0, sb.bitmap_blocks - 1})
        formatted = header_pair(device, sb, extent).as_formatted
        return not (formatted and all(pair.as_formatted for pair in ends))

    # -- writing -----------------------------------------------------------------------

    def enroll(self) -> None:
        """Put this session on the list of those that write, once: before its first slot.

        Where other sessions may be doing the same it needs the lock `registry`.

        Raises:
            NoSpace, IoFailed, Fenced: it could not be written.
        """
        if self.writable and self.sb.stamped and not self._enrolled:
            self.found_others = not enroll(self.device, self.sb, self.session)
            self._enrolled = True

    def withdraw(self, all_others: bool = False) -> None:
        """Take this session off the list if it leaves nothing untidy; see `session_list.withdraw`.

        Nothing may be written after it. It needs the same lock as `enroll`.
        """
        untidy = self.touched or (self._allocator is not None and self._allocator.finder.touched)
        if self._enrolled and not untidy and self.failed is None:
            self._enrolled = False
            withdraw(self.device, self.sb, self.session, all_others)

    @property
    def enrolled(self) -> bool:
        """Whether this session is on the list."""
        return self._enrolled

    def write(self, block: int, buffers: Sequence[Buffer]) -> None:
        """Write whole blocks from `block` on, one buffer behind the other."""
        self.device.pwritev(block << BLOCK_SHIFT, buffers)

    def queue(self, block: int, data: Buffer) -> None:
        """Have one metadata block written by the next `write_queued`; readable at once."""
        self._queue[block] = data

    def write_queued(self) -> None:
        """Write queued metadata, bitmaps last, adjacent blocks together.

        Raises:
            NoSpace: the file system under the store is full; all of it stays queued.
            Fenced: this session may not write now; all of it stays queued.
            IoFailed: the system could not write.
        """
        if self.allocator.changed:
            self.enroll()
        for block, data in self.allocator.changes():
            self._queue[block] = data
        blocks = sorted(self._queue)
        start = 0
        for end in range(1, len(blocks) + 1):
            if end == len(blocks) or blocks[end] != blocks[end - 1] + 1:
                run = blocks[start:end]
                self.device.pwritev(run[0] << BLOCK_SHIFT, [self._queue[b] for b in run])
                start = end
        self._queue.clear()

    def leave(self) -> None:
        """Write what bitmaps still owe the disk; nothing may be allocated after it.

        Raises:
            NoSpace, IoFailed, Fenced: it could not be written.
        """
        if self._allocator is not None and self.failed is None:
            self._allocator.leave()
            if self._allocator.changed:
                self.write_queued()
                self.device.flush()

    def close(self) -> None:
        """Leave the store and let go of it; a second call does nothing.

        Raises:
            NoSpace, IoFailed, Fenced: what it owes the disk could not be written.
        """
        try:
            self.leave()
            if self._allocator is not None and not self._locks.shared:
                self.withdraw()
        finally:
            if self._allocator is not None:
                self._allocator.close()
                self._allocator = None
            self.device.close()


def read_uuid(path: str) -> bytes:
    """Return the UUID of the store in a file or device, under whatever locks others have it.

    Raises:
        NotFound, NotAStore, Corrupt: there is no store, or it cannot be read.
    """
    store = Blockstore(_opened(path, False, "none", "host"))
    store.close()
    return store.sb.uuid


def _opened(path: str, writable: bool, lock: Lock, cache: Cache) -> FileDevice:
    """Open the file or device of a store."""
    try:
        return open_device(path, writable, lock, cache)
    except NotFound as error:
        raise NotFound(
            f"there is no blockstore at {path}",
            f"make one with 'plxsh store create {path}', or name another with --store",
        ) from error


def node_key(entry: int, level: int) -> int:
    """Return under which key the cache has the node that an entry points to."""
    return entry | WRITABLE if level == 0 else entry & ~WRITABLE


def empty_node() -> Node:
    """Return a new node of holes that may be filled in."""
    return memoryview(bytearray(FANOUT * 8)).cast("Q")


def refuse_others(sb: Superblock, locks: Locks | None, name: str) -> None:
    """Refuse who wants to write to a store, or needs it to stand still, under a wrong lock master.

    Args:
        sb: the superblock.
        locks: those of the session, None for none.
        name: of the device.

    Raises:
        InUse: the store is shared under another lock master.
    """
    master = locks.master if locks is not None else ""
    shared = sb.lock_master.hex()
    if not any(sb.lock_master) or shared == master:
        return
    other = ", and this is another one" if master else ""
    raise InUse(
        f"{name} is shared under the lock master {uuid_text(sb.lock_master)}{other}",
        "name that one with --lock-master or in parallax.toml; if no other host uses the store"
        " any more: 'plxsh store unshare'",
    )
