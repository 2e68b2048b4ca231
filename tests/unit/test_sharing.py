"""A store that is shared under one lock master takes no writer under another one, or alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.crash import Cutter, State
from support.memory import MemoryDevice, Pages, RecordingDevice

from core import mkfs, sharing
from core.blockstore import Blockstore
from core.device import FileDevice
from core.errors import InUse
from core.format import BLOCK, NO_LOCK_MASTER, RO_COMPAT_SHARED, Superblock
from core.lock_master import LockMaster
from core.mkfs import format_device
from core.session import Session

EXTENT, EXTENTS = 64, 6
SIZE = EXTENT * EXTENTS * BLOCK
COPY = EXTENT - 1


class Named(LockMaster):
    """The locks of a session under a lock master with a name."""

    shared = True
    settling = 1.0

    def __init__(self, letter: str) -> None:
        super().__init__()
        self.master = letter * 32


@pytest.fixture
def pages() -> Pages:
    device = MemoryDevice(SIZE)
    format_device(device, EXTENT * BLOCK, EXTENTS)
    return device.pages


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens in the waits to come; those without anything just end."""
    planned: list[Callable[[], None]] = []
    monkeypatch.setattr(sharing, "DECIDED_WITHIN", 60.0)  # this machine may be slow
    monkeypatch.setattr(time, "sleep", lambda _seconds: planned.pop(0)() if planned else None)
    return planned


def opened(device: Any, letter: str = "") -> Session:
    locks = Named(letter) if letter else LockMaster()
    return Session(Blockstore(device, locks), locks)


def superblocks(pages: Pages) -> list[Superblock]:
    found = [Superblock.unpack(pages[block]) for block in (0, COPY)]
    return [sb for sb in found if sb is not None]


@pytest.mark.usefixtures("waits")
def test_the_first_session_claims_and_all_of_its_lock_master_are_let_in(pages: Pages) -> None:
    device = MemoryDevice(SIZE, pages)
    with opened(device, "a") as session:
        session.create("one", 1 << 20)
    first, copy = superblocks(device.pages)
    assert first == copy
    assert (first.lock_master, first.settled) == (b"\xaa" * 16, True)
    assert first.ro_compat == RO_COMPAT_SHARED
    before = dict(device.pages)
    with opened(device, "a"):
        pass
    assert device.pages[0] == before[0]


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("letter", ["", "b"])
def test_all_others_are_refused_and_write_nothing(pages: Pages, letter: str) -> None:
    device = MemoryDevice(SIZE, pages)
    opened(device, "a").close()
    before = dict(device.pages)
    with pytest.raises(InUse, match="is shared under the lock master aaaaaaaa-") as refused:
        opened(device, letter)
    assert "plxsh store unshare" in str(refused.value.hint)
    assert device.pages == before
    Blockstore(device)  # who only reads needs no lock master


@pytest.mark.usefixtures("waits")
def test_who_is_alone_leaves_no_name(pages: Pages) -> None:
    device = MemoryDevice(SIZE, pages)
    opened(device).close()
    assert device.pages[0] == pages[0]


@pytest.mark.usefixtures("waits")
def test_it_is_kept_when_the_superblock_changes_otherwise(pages: Pages) -> None:
    device = MemoryDevice(SIZE, pages)
    with opened(device, "a") as session:
        session.schedule(session.create("one", 1 << 20), 10**9, 3)
        session.grow(EXTENTS + 2)
    for sb in superblocks(device.pages):
        assert (sb.lock_master, sb.settled, sb.extents) == (b"\xaa" * 16, True, EXTENTS + 2)
        assert sb.ro_compat == RO_COMPAT_SHARED


def test_of_two_that_claim_at_once_one_is_let_in(
    pages: Pages, waits: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has read that there is none, and writes while the first one waits."""
    device = MemoryDevice(SIZE, pages)
    late = MemoryDevice(SIZE, pages)  # what the other one still believes
    monkeypatch.setattr(late, "store", lambda first, run: device.store(first, run))
    others: list[Session] = []

    def overtake() -> None:
        """Write the other's claim; then it reads what is there, as it did before."""
        waits.append(lambda: setattr(late, "pages", device.pages))
        others.append(opened(late, "b"))

    waits.append(overtake)
    with pytest.raises(InUse, match="is shared under the lock master bbbb"):
        opened(device, "a")
    assert [sb.lock_master for sb in superblocks(device.pages)] == [b"\xbb" * 16] * 2
    assert len(others) == 1


def test_who_is_overtaken_for_good_stays_out_though_it_was_first(
    pages: Pages, waits: list[Callable[[], None]]
) -> None:
    device = MemoryDevice(SIZE, pages)
    refused: list[str] = []

    def come_later() -> None:
        with pytest.raises(InUse) as error:
            opened(device, "b")
        refused.append(error.value.message)

    waits.append(come_later)
    opened(device, "a").close()
    assert "aaaaaaaa" in refused[0]


def test_a_claim_that_was_cut_off_is_waited_for_again(
    pages: Pages, waits: list[Callable[[], None]]
) -> None:
    """Another one's claim may have been decided on before it, and land after it."""

    def die() -> None:
        raise KeyboardInterrupt

    device = MemoryDevice(SIZE, pages)
    waits.append(die)
    with pytest.raises(KeyboardInterrupt):
        opened(device, "a")
    sb = superblocks(device.pages)[0]
    assert (sb.lock_master, sb.settled) == (b"\xaa" * 16, False)

    def land() -> None:
        old = Superblock.unpack(pages[0])
        assert old is not None
        device.pages[0] = old.under(b"\xbb" * 16).pack()

    waits.append(land)
    with pytest.raises(InUse, match="bbbb"):
        opened(device, "a")
    opened(device, "b").close()
    assert superblocks(device.pages)[0].settled


@pytest.mark.usefixtures("waits")
def test_who_takes_too_long_to_decide_does_not_claim(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(sharing, "now", lambda: next(clock))
    device = MemoryDevice(SIZE, pages)
    with pytest.raises(InUse, match="took too long"):
        opened(device, "a")
    assert device.pages[0] == pages[0]


@pytest.mark.usefixtures("waits")
def test_who_takes_too_long_decides_on_what_it_reads_then(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow once, it decides anew; and finds that another was faster."""
    slow = iter([0, 100, *[200] * 100])
    monkeypatch.setattr(sharing, "now", lambda: next(slow))
    opened(MemoryDevice(SIZE, pages), "a").close()
    device = MemoryDevice(SIZE, pages)
    times = iter([0, 100, *[200] * 100])

    def other_is_faster() -> int:
        now = next(times)
        if now == 100:
            monkeypatch.setattr(sharing, "now", lambda: 0)
            opened(device, "b").close()
            monkeypatch.setattr(sharing, "now", other_is_faster)
        return now

    monkeypatch.setattr(sharing, "now", other_is_faster)
    with pytest.raises(InUse):
        opened(device, "a")
    assert superblocks(device.pages)[0].lock_master == b"\xbb" * 16


@pytest.mark.usefixtures("waits")
def test_a_writer_alone_that_finds_a_claim_stops(pages: Pages) -> None:
    device = MemoryDevice(SIZE, pages)
    alone = opened(device)
    opened(device, "a").close()
    with pytest.raises(InUse):
        alone.grow(EXTENTS + 1)
    assert alone.store.failed is not None
    assert superblocks(device.pages)[0].lock_master == b"\xaa" * 16


def test_a_power_cut_at_any_write_leaves_a_store_that_its_claimant_can_open(
    pages: Pages, waits: list[Callable[[], None]]
) -> None:
    """And no other one, if the claim can be seen."""
    device = RecordingDevice(SIZE, pages)
    states: list[State] = []

    def cut() -> None:
        cutter = Cutter(device.durable, device.unflushed, frozenset(), random.Random(0), 1 << 30)
        states.extend(map(cutter.state, cutter.choices()))

    device.on_flush = cut
    session = opened(device, "a")
    session.close()
    store = Blockstore(device)
    sharing.unshare(store)
    cut()
    seen = set()
    for state in states:
        found = Blockstore(MemoryDevice(SIZE, state)).sb
        seen.add((found.lock_master, found.settled))
        assert bool(found.ro_compat & RO_COMPAT_SHARED) == any(found.lock_master)
        again = MemoryDevice(SIZE, state)
        opened(again, "a").close()
        assert {sb.lock_master for sb in superblocks(again.pages)} == {b"\xaa" * 16}
        if any(found.lock_master):
            with pytest.raises(InUse):
                opened(MemoryDevice(SIZE, state), "b")
    mine = b"\xaa" * 16
    assert seen == {(NO_LOCK_MASTER, False), (mine, False), (mine, True)}
    assert not waits


@pytest.mark.usefixtures("waits")
def test_sharing_ends_only_when_nobody_is_there(pages: Pages) -> None:
    device = MemoryDevice(SIZE, pages)
    session = opened(device, "a")
    locks = session.locks
    before = device.pages[0]
    with pytest.raises(InUse, match="is in use by"):
        sharing.unshare_under(Blockstore(device), locks)
    after = Superblock.unpack(device.pages[0])
    assert after is not None
    assert after.settled
    assert after.lock_master == b"\xaa" * 16
    assert device.pages[0] == before
    session.close()
    sharing.unshare_under(Blockstore(device), locks)
    for sb in superblocks(device.pages):
        assert (sb.lock_master, sb.settled, sb.ro_compat) == (NO_LOCK_MASTER, False, 0)
    opened(device, "b").close()


def test_a_session_that_comes_while_sharing_ends_is_seen(
    pages: Pages, waits: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came between the first look and the mark in the superblock."""
    assert not waits
    device = MemoryDevice(SIZE, pages)
    locks = Named("a")
    Session(Blockstore(device, locks), locks).close()
    store = Blockstore(device)
    looked: list[None] = []
    look = sharing.refuse_users

    def looking(asked: Any) -> None:
        look(asked)
        if not looked:
            looked.append(None)
            asked.acquire("session/late")

    monkeypatch.setattr(sharing, "refuse_users", looking)
    with pytest.raises(InUse):
        sharing.unshare_under(store, locks)
    for sb in superblocks(device.pages):
        assert (sb.lock_master, sb.settled) == (b"\xaa" * 16, True)


@pytest.mark.usefixtures("waits")
def test_a_shared_store_is_not_formatted_and_not_read_live_alone(tmp_path: Any) -> None:
    path = str(tmp_path / "store")
    mkfs.create(path, EXTENT * BLOCK, EXTENTS)
    opened(FileDevice(path, True), "a").close()
    with pytest.raises(InUse, match="shared under the lock master"):
        mkfs.create(path, EXTENT * BLOCK, EXTENTS, force=True)
    with pytest.raises(InUse, match="shared under"):
        mkfs.grow(path, EXTENTS + 1)
    with pytest.raises(InUse, match="shared under"):
        Session.open(path, "shared")
    Session.open(path, "read").close()
