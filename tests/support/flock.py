"""A few sessions on one store in memory, driven at random beside a model.

Everything happens in one thread and is decided by a seed. While a session collects, the others
work on between its steps (`Flock.between`), and it may die there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from support.fleet import Fleet, member_of
from support.memory import MemoryDevice, RecordingDevice

from core.answering import Work
from core.blockstore import Blockstore
from core.check import Report, check_store
from core.collection import Bits, Collection
from core.errors import InUse, NoSpace, NotFound, ParallaxError
from core.format import BLOCK, BLOCK_SHIFT, DELETED, LOG_RECORDS, VdiRecord
from core.image import Image
from core.lock_master import LockMaster
from core.mkfs import format_device
from core.reclaim import KEEP_DELETED, KEEP_LIVE
from core.remote import Argument
from core.session import Session
from core.snaplog import Snapshot, SnapshotId
from core.vdi import Vdi

BLOCKS = 48
"""Blocks of a VDI."""
SESSIONS = 3
MOST_VDIS = 10
MOST_EXTENTS = 18
KEPT = 3
"""Snapshots of a schedule."""

Contents = dict[int, int]
"""Block to the seed of what is in it; 0 and what is missing are zeros."""


def page(value: int) -> bytes:
    return random.Random(value).randbytes(64) * 64 if value else bytes(BLOCK)


def too_busy(_which: str, _argument: Argument) -> Work:
    """What a session says that does not take part in a collection."""
    raise InUse("busy")


class Died(BaseException):
    """The process of a session ends here."""


@dataclass
class Disk:
    """What a VDI holds: now, and as of its last commit; `maybe` is what else a block may be."""

    name: str
    now: Contents = field(default_factory=dict)
    committed: Contents = field(default_factory=dict)
    maybe: dict[int, set[int]] = field(default_factory=dict)
    snapshots: dict[SnapshotId, Contents] = field(default_factory=dict)
    scheduled: list[SnapshotId] = field(default_factory=list)
    deleted: bool = False

    def write(self, block: int, value: int) -> None:
        self.now[block] = value
        self.maybe.setdefault(block, set()).add(value)

    def commit(self) -> None:
        self.committed = dict(self.now)
        self.maybe = {}


class Runner:
    """A session, the VDIs it keeps open, and the snapshots it reads."""

    def __init__(self, world: World) -> None:
        self.session: Session = world.fleet.session(world.device)
        self.open: dict[int, Vdi] = {}
        self.reading: list[tuple[Image, Contents]] = []
        self.collecting = False
        self.busy = False


class World:
    """The sessions, the model, and what may happen to them.

    Args:
        seed: decides everything.
        extents: of the store.
        recording: whether the device remembers what was written.

    Attributes:
        collections: how many went to their end.
    """

    def __init__(self, seed: int, extents: int = 14, recording: bool = False) -> None:
        self.rng = random.Random(seed)
        self.fleet = Fleet()
        self.extents = extents
        kind = RecordingDevice if recording else MemoryDevice
        self.device = kind(64 * extents << BLOCK_SHIFT)
        self.sb = format_device(self.device, 64 << BLOCK_SHIFT, extents)
        self.disks: dict[int, Disk] = {}
        self.runners = [Runner(self) for _ in range(SESSIONS)]
        self.log: list[str] = []
        self.late: tuple[int, dict[int, Bits]] = (0, {})
        self.collections = 0
        self.values = 0

    # -- steps -------------------------------------------------------------------------

    def step(self) -> None:
        """Let one session do something, then look at everything."""
        runner = self.rng.choice([r for r in self.runners if not r.busy])
        self.act(runner)
        self.look()

    def act(self, runner: Runner, collect: bool = True) -> None:
        kinds: list[tuple[Callable[[Runner], None], int]] = [
            (self.write, 30),
            (self.commit, 10),
            (self.half_commit, 5),
            (self.trim, 6),
            (self.snapshot, 8),
            (self.tick, 6),
            (self.delete_snapshot, 6),
            (self.clone, 6),
            (self.create, 5),
            (self.delete, 6),
            (self.restore, 6),
            (self.rollback, 4),
            (self.close, 5),
            (self.read, 4),
            (self.yield_extent, 4),
            (self.expire, 2),
            (self.late_sweep, 3),
            (self.join, 1),
            (self.grow, 1),
        ]
        if collect:
            kinds += [(self.collect, 6), (self.die, 2), (self.suspend, 2)]
        [(what, _)] = self.rng.choices(kinds, [weight for _, weight in kinds])
        self.log.append(f"{self.runners.index(runner)} {what.__name__}")
        runner.busy = True
        try:
            what(runner)
        except (InUse, NoSpace, NotFound) as error:
            self.log[-1] += f": {type(error).__name__} {error.message}"
        finally:
            runner.busy = False

    # -- VDIs --------------------------------------------------------------------------

    def live(self) -> list[int]:
        return [number for number, disk in self.disks.items() if not disk.deleted]

    def record(self, runner: Runner, number: int) -> VdiRecord:
        record = runner.session.registry.get(number)
        assert record is not None
        return record

    def holder(self, number: int) -> Runner | None:
        return next((r for r in self.runners if number in r.open), None)

    def opened(self, runner: Runner) -> int | None:
        """A VDI that this session has open, opened now if need be."""
        free = [n for n in self.live() if self.holder(n) in (None, runner)]
        if not free:
            return None
        number = self.rng.choice(free)
        if number not in runner.open:
            runner.open[number] = runner.session.open_vdi(self.record(runner, number))
        return number

    def create(self, runner: Runner) -> None:
        if len(self.disks) < MOST_VDIS:
            self._made(runner, None, {})

    def clone(self, runner: Runner) -> None:
        found = self.some_snapshot(runner)
        if found is not None and len(self.disks) < MOST_VDIS:
            self._made(runner, found, self.disks[found.vdi].snapshots[found.id])

    def _made(self, runner: Runner, parent: Snapshot | None, contents: Contents) -> None:
        name = f"v{self.new_value()}"
        size = 0 if parent else BLOCKS * BLOCK
        record = runner.session.create(name, size, parent)
        self.disks[record.id] = Disk(name, dict(contents), dict(contents))

    def new_value(self) -> int:
        self.values += 1
        return self.values

    def write(self, runner: Runner) -> None:
        number = self.opened(runner)
        if number is None:
            return
        vdi, disk = runner.open[number], self.disks[number]
        first, count = self.rng.randrange(BLOCKS), self.rng.randrange(1, 9)
        for block in range(first, min(first + count, BLOCKS)):
            value = self.new_value()
            before = dict(disk.now)
            try:
                disk.write(block, value)
                vdi.write(block * BLOCK, page(value))
            except ParallaxError:
                disk.now = before
                raise

    def trim(self, runner: Runner) -> None:
        number = self.opened(runner)
        if number is None:
            return
        first, count = self.rng.randrange(BLOCKS), self.rng.randrange(1, 20)
        count = min(count, BLOCKS - first)
        runner.open[number].trim(first * BLOCK, count * BLOCK)
        for block in range(first, first + count):
            self.disks[number].write(block, 0)

    def commit(self, runner: Runner) -> None:
        runner.session.commit(runner.session.open_vdis)
        self.committed(runner)

    def half_commit(self, runner: Runner) -> None:
        """A commit that is durable, and of which its session has not taken notice yet."""
        runner.session.begin_commit(runner.session.open_vdis).sync()
        self.committed(runner)

    def committed(self, runner: Runner) -> None:
        for number, vdi in runner.open.items():
            if not vdi.written:
                self.disks[number].commit()

    def snapshot(self, runner: Runner) -> None:
        number = self.opened(runner)
        if number is None:
            return
        where = runner.session.snapshot(self.record(runner, number))
        self.disks[number].snapshots[where] = dict(self.disks[number].now)
        self.committed(runner)

    def tick(self, runner: Runner) -> None:
        """Its schedule takes some snapshots, and drops the oldest."""
        number = self.opened(runner)
        if number is None:
            return
        vdi, disk = runner.open[number], self.disks[number]
        if not vdi.schedule[0]:
            runner.session.schedule(self.record(runner, number), 10**9, KEPT)
            self.committed(runner)
        for _ in range(self.rng.choice([1, 1, LOG_RECORDS])):
            where = vdi.snapshot(scheduled=True)
            vdi.drop_scheduled()
            runner.session.commit([vdi])
            disk.snapshots[where] = dict(disk.now)
            disk.scheduled.append(where)
            for gone in disk.scheduled[:-KEPT]:
                del disk.snapshots[gone]
            del disk.scheduled[:-KEPT]
            self.committed(runner)

    def some_snapshot(self, runner: Runner, of: int | None = None) -> Snapshot | None:
        pairs = [(n, where) for n in self.live() for where in self.disks[n].snapshots]
        pairs = [pair for pair in pairs if of in (None, pair[0])]
        if not pairs:
            return None
        number, where = self.rng.choice(pairs)
        record = self.record(runner, number)
        found = [s for s in runner.session.snapshots(record) if s.id == where]
        assert found, f"snapshot {where} of VDI {number} is lost"
        return found[0]

    def delete_snapshot(self, runner: Runner) -> None:
        found = self.some_snapshot(runner)
        if found is None or self.holder(found.vdi) not in (None, runner):
            return
        runner.session.delete_snapshot(found)
        disk = self.disks[found.vdi]
        del disk.snapshots[found.id]
        if found.id in disk.scheduled:
            disk.scheduled.remove(found.id)
        self.committed(runner)

    def rollback(self, runner: Runner) -> None:
        found = self.some_snapshot(runner)
        if found is None or self.holder(found.vdi) is not None:
            return
        runner.session.rollback(self.record(runner, found.vdi), found)
        disk = self.disks[found.vdi]
        disk.now = dict(disk.snapshots[found.id])
        disk.commit()

    def close(self, runner: Runner) -> None:
        if runner.open:
            number = self.rng.choice(list(runner.open))
            vdi = runner.open.pop(number)
            runner.session.release(vdi)
            self.disks[number].commit()

    def delete(self, runner: Runner) -> None:
        free = [n for n in self.live() if self.holder(n) is None]
        if free:
            number = self.rng.choice(free)
            runner.session.delete(self.record(runner, number), snapshots=True)
            self.disks[number].deleted = True

    def restore(self, runner: Runner) -> None:
        gone = [number for number, disk in self.disks.items() if disk.deleted]
        if gone:
            number = self.rng.choice(gone)
            runner.session.restore(self.record(runner, number))
            self.disks[number].deleted = False

    def read(self, runner: Runner) -> None:
        """Begin to read a snapshot, or stop."""
        if len(runner.reading) > 1:
            del runner.reading[0]
        found = self.some_snapshot(runner)
        if found is not None:
            contents = self.disks[found.vdi].snapshots[found.id]
            runner.reading.append((runner.session.image(found), dict(contents)))

    # -- sessions ----------------------------------------------------------------------

    def join(self, runner: Runner) -> None:
        """Another session comes, in place of one that ends."""
        if not runner.collecting:
            self.leave(runner)
            self.runners[self.runners.index(runner)] = Runner(self)

    def grow(self, runner: Runner) -> None:
        """The store gets one more extent; some sessions are not told, or too busy to hear."""
        if self.extents == MOST_EXTENTS:
            return
        deaf = [r for r in self.runners if self.rng.random() < 0.3]
        for other in deaf:
            member_of(other.session).attend = None
        self.extents += 1
        self.device.size = self.extents * self.sb.extent_blocks << BLOCK_SHIFT
        try:
            runner.session.grow(self.extents)
        except ParallaxError:
            self.extents -= 1
            raise
        finally:
            for other in deaf:
                member_of(other.session).attend = other.session.attend

    def leave(self, runner: Runner) -> None:
        runner.session.close()
        for number in runner.open:
            self.disks[number].commit()
        runner.open.clear()
        runner.reading.clear()

    def expire(self, runner: Runner) -> None:
        runner.session.member.expire()

    def yield_extent(self, runner: Runner) -> None:
        """Ask another session for one of its extents."""
        locks = member_of(runner.session)
        held = [h for h in locks.holdings() if h.name.startswith("extent/")]
        other = [h for h in held if h.who.session != locks.client.session]
        if other:
            locks.call(self.rng.choice(other).name, "yield", "{}")

    def late_sweep(self, runner: Runner) -> None:
        """What a collector asked for arrives when it is over, or another one has begun."""
        token, garbage = self.late
        for number, bits in garbage.items():
            with suppress(InUse):
                runner.session.member.sweep(token, number, bits)

    def die(self, runner: Runner) -> None:
        """Its process is killed; after the margin others have what it held."""
        member_of(runner.session).freeze()
        self.fleet.end_leases()
        self.bury(runner)

    def suspend(self, runner: Runner) -> None:
        """It is suspended until it has lost everything, goes on, and begins again."""
        locks = member_of(runner.session)
        locks.freeze()
        self.fleet.end_leases()
        self.lost(runner)
        for _ in range(self.rng.randrange(3)):
            others = [r for r in self.runners if not r.busy]
            if others:
                self.act(self.rng.choice(others), collect=False)
        locks.thaw()
        for vdi in runner.session.open_vdis:
            with suppress(ParallaxError):
                vdi.write(0, page(self.new_value()))
        with suppress(ParallaxError):
            runner.session.commit(runner.session.open_vdis)
        runner.session.start_over()

    def bury(self, runner: Runner) -> None:
        self.lost(runner)
        self.runners[self.runners.index(runner)] = Runner(self)

    def lost(self, runner: Runner) -> None:
        """Take over into the model what the VDIs of a lost session hold now."""
        reader = self.reader()
        for number in runner.open:
            disk = self.disks[number]
            record = reader.registry.get(number)
            assert record is not None
            image = reader.live_image(record)
            for block in range(BLOCKS):
                shown = image.read(block * BLOCK, BLOCK)
                may = {disk.committed.get(block, 0), *disk.maybe.get(block, ())}
                [value] = [v for v in may if page(v) == shown] or [None]
                assert value is not None, f"block {block} of VDI {number} is neither old nor new"
                disk.now[block] = value
            disk.commit()
        runner.open.clear()
        runner.reading.clear()

    # -- collecting --------------------------------------------------------------------

    def collect(self, runner: Runner) -> None:
        """Collect, with others at work between the steps; it may die at any of them."""
        if any(r.collecting for r in self.runners):
            return
        session = runner.session
        keep = self.rng.choice([KEEP_LIVE, KEEP_LIVE, KEEP_DELETED])
        dies = self.rng.randrange(60) if self.rng.random() < 0.2 else -1
        steps = iter(range(1 << 30))

        def between() -> None:
            session.attend()
            if next(steps) == dies:
                raise Died
            for _ in range(self.rng.choice([0, 0, 1, 2, 4])):
                others = [r for r in self.runners if not r.busy]
                if others:
                    self.act(self.rng.choice(others), collect=False)
            self.look()

        runner.collecting = True
        for other in self.runners:
            if other is not runner and self.rng.random() < 0.2:
                other.session.answers.handlers["session seal"] = too_busy
        plan = None
        try:
            plan = Collection(
                session.member,
                session.store,
                session.locks,
                lambda: self.commit(runner),
                between,
                keep,
            )
            plan.account()
            between()
            token, numbers = session.member.token, range(1, session.store.sb.extents)
            late = token, {number: plan._of(number).copy() for number in numbers}
            plan.run()
            self.late = late
            self.look()
            between()
            plan.give_back()
            self.collections += 1
        except Died:
            self.log.append("  the collector died")
            member_of(session).freeze()
            self.fleet.end_leases()
            self.bury(runner)
            plan = None
        finally:
            runner.collecting = False
            for other in self.runners:
                other.session.answers.handlers["session seal"] = other.session.answers._seal
            if plan is not None:
                plan.close()
            for number, disk in list(self.disks.items()):
                if disk.deleted and not self.is_deleted(number):
                    del self.disks[number]

    def is_deleted(self, number: int) -> bool:
        record = self.reader().registry.get(number)
        return record is not None and record.state == DELETED

    # -- looking -----------------------------------------------------------------------

    def reader(self) -> Session:
        """A session that reads what is on the device, with nothing in memory."""
        return Session(Blockstore(self.device), LockMaster())

    def look(self) -> Report:
        """Compare everything there is with the model, and check the store."""
        reader = self.reader()
        for number, disk in self.disks.items():
            if disk.deleted:
                continue
            record = reader.registry.get(number)
            assert record is not None
            assert record.name == disk.name
            holder = self.holder(number)
            if holder is not None:
                self.compare(holder.open[number], disk.now, f"VDI {number} as it is written")
            else:
                self.compare(reader.live_image(record), disk.now, f"VDI {number}")
            found = {snapshot.id: snapshot for snapshot in reader.snapshots(record)}
            assert found.keys() >= disk.snapshots.keys(), f"snapshots of VDI {number}"
            for where, contents in disk.snapshots.items():
                self.compare(reader.image(found[where]), contents, f"snapshot {where}")
        for runner in self.runners:
            for image, contents in runner.reading:
                self.compare(image, contents, "a snapshot that is being read")
        report = check_store(reader.store)
        assert not report.damaged, [f for f in report.findings if f.severity == "damage"]
        return report

    def compare(self, image: Image, contents: Contents, what: str) -> None:
        shown = image.read(0, BLOCKS * BLOCK)
        for block in range(BLOCKS):
            same = shown[block * BLOCK : (block + 1) * BLOCK] == page(contents.get(block, 0))
            assert same, f"block {block} of {what} is not what was written"

    def end(self) -> None:
        """With all sessions still there, one collects; then nearly nothing is left."""
        for runner in self.runners:
            self.commit(runner)
            runner.reading.clear()
        before = self.look()
        garbage = before.unreachable + before.restorable
        session = self.runners[0].session
        with suppress(NoSpace):
            plan = session.plan_collection()
            session.collect(plan)
            plan.give_back()
        for number in [n for n, disk in self.disks.items() if disk.deleted]:
            del self.disks[number]
        after = self.look()
        assert after.unreachable <= garbage * 0.01, (after.unreachable, garbage)
        for runner in self.runners:
            self.leave(runner)
        self.look()
