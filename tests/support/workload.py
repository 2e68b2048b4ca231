"""Operations to run on a `Bench`: a small alphabet, random lists, and how to shorten one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from support.bench import Bench, Op, empty_store
from support.memory import Pages
from support.model import VdiModel

from core.format import LOG_RECORDS

K = 1024
A, B = 0, 1
"""The two VDIs of the small world, as operations name them."""

ALPHABET: tuple[Op, ...] = (
    ("write", A, 40 * K, 8 * K, 11),  # into a hole
    ("write", A, 4 * K, 4 * K, 12),  # over a block of its own
    ("write", A, 0, 4 * K, 13),  # over a block that is a snapshot's
    ("write", A, 2500, 7000, 14),  # over parts of all kinds
    ("write", B, 8 * K, 8 * K, 15),
    ("trim", A, 0, 12 * K),
    ("trim", A, 5000, 2000),
    ("allocate_zeros", A, 4 * K, 8 * K),
    ("snapshot", A),
    ("snapshot_now", A),
    ("clone", 0),
    ("delete_snapshot", 0),
    ("rollback", 0),
    ("resize", A, 5000),
    ("resize_now", A, 3 << 20),  # a taller tree
    ("delete", B),
    ("delete", A),
    ("restore", 0),
    ("collect",),
    ("create", 64 * K),
    ("rename", A),
    ("flush", A),
    ("flush_all",),
    ("begin", A, B),
    ("commit_beside", "write", A, 2 * K, 9 * K, 17),
    ("commit_beside", "trim", A, 0, 12 * K),
    ("commit_beside", "snapshot", A),
    ("without_room", 2, "flush", A),
    ("without_room", 1, "write", A, 20 * K, 8 * K, 16),
    ("reopen",),
)

World = tuple[Pages, tuple[VdiModel, ...]]


def small_world() -> World:
    """A store with a VDI that has a snapshot and newer blocks, and a clone of it."""
    return _world(
        ("create", 64 * K),
        ("write", A, 0, 12 * K, 1),
        ("snapshot_now", A),
        ("write", A, 4 * K, 8 * K, 2),
        ("clone", 0),
        ("write", B, 8 * K, 4 * K, 3),
    )


def long_log() -> World:
    """A VDI whose snapshot log is about to begin its third page, and a clone."""
    return _world(
        ("create", 64 * K),
        ("write", A, 0, 12 * K, 1),
        *(("snapshot", A) for _ in range(LOG_RECORDS)),
        *(("delete_snapshot", 1) for _ in range(LOG_RECORDS - 2)),
        ("write", A, 4 * K, 8 * K, 2),
        ("snapshot", A),
        ("clone", 0),
        ("write", B, 8 * K, 4 * K, 3),
    )


def kept_by_schedule() -> World:
    """A VDI with a long history of which a schedule kept little, and a snapshot in its midst."""
    return _world(
        ("create", 64 * K),
        ("ticks", A, 3, 20),
        ("write", A, 0, 12 * K, 1),
        ("snapshot", A),
        ("ticks", A, 3, 3 * LOG_RECORDS),
        ("write", A, 4 * K, 8 * K, 2),
        ("snapshot", A),
        ("flush", A),
        ("clone", 0),
        ("ticks", A, 3, 2 * LOG_RECORDS - 2),
    )


def nearly_full() -> World:
    """Two large VDIs and a snapshot that leave little room, and a deleted VDI."""
    return _world(
        ("create", 800 * K),
        ("create", 800 * K),
        ("create", 64 * K),
        ("write", A, 0, 300 * K, 1),
        ("snapshot_now", A),
        ("write", A, 100 * K, 300 * K, 2),
        ("write", B, 50 * K, 420 * K, 3),
        ("write", 2, 0, 64 * K, 4),
        ("flush_all",),
        ("delete", 2),
    )


def _world(*operations: Op) -> World:
    bench = Bench(empty_store())
    bench.run([*operations, ("close",)])
    return bench.device.pages, tuple(bench.vdis.values())


LOG_OPERATIONS: tuple[Op, ...] = (
    ("snapshot", A),
    ("snapshot_now", A),
    ("delete_snapshot", 0),
    ("delete_snapshot", 2),
    ("clone", 1),
    ("rollback", 1),
    ("write", A, 0, 8 * K, 21),
    ("flush", A),
    ("begin", A),
    ("without_room", 1, "flush", A),
    ("reopen",),
)
"""What may matter to a snapshot log that is about to fill its page."""


SCHEDULE_OPERATIONS: tuple[Op, ...] = (
    ("ticks", A, 3),
    ("ticks", A, 1, 5),
    ("ticks", A, 2, 2 * LOG_RECORDS),
    ("snapshot", A),
    ("delete_snapshot", 0),
    ("delete_snapshot", 3),
    ("clone", 2),
    ("rollback", 2),
    ("write", A, 0, 8 * K, 21),
    ("flush", A),
    ("begin", A),
    ("collect",),
    ("without_room", 1, "flush", A),
    ("reopen",),
)
"""What may matter to a snapshot log that a schedule fills."""


def random_operation(rng: random.Random, scale: int = 1) -> Op:
    """One operation with numbers of its own; how often which, is a matter of taste.

    Args:
        rng: decides.
        scale: more than 1 for writes so long that the store fills up.
    """
    vdi = rng.randrange(4)
    offset = scale * rng.choice(
        [rng.randrange(48) * 4 * K, rng.randrange(200 * K), rng.randrange(16) * 512]
    )
    length = scale * rng.choice([4 * K, 8 * K, 512, rng.randrange(1, 40 * K)])
    kind = rng.choices(*zip(*_WEIGHTS, strict=True))[0]
    if kind == "write":
        return kind, vdi, offset, length, rng.randrange(1, 1 << 40) * rng.choice([1, 1, 1, 1, 0])
    if kind in ("trim", "allocate_zeros"):
        return kind, vdi, offset, length
    if kind in ("resize", "resize_now"):
        return kind, vdi, rng.choice([0, 5000, 48 * K, 100 * K + 1, 3 << 20, (1 << 30) + 5])
    if kind == "create":
        return kind, scale * rng.choice([0, 5000, 64 * K, 200 * K, 3 << 20])
    if kind in ("clone", "delete_snapshot", "rollback", "restore"):
        return kind, rng.randrange(8)
    if kind in ("flush", "begin"):
        return kind, *rng.sample(range(4), rng.randrange(1, 4))
    if kind == "ticks":
        return kind, vdi, rng.randrange(1, 5), rng.choice([1, 1, 2, 5, 30])
    if kind in ("flush_all", "reopen", "sync", "settle", "collect"):
        return (kind,)
    if kind == "without_room":
        what = rng.choice(["write", "flush", "flush", "flush"])
        more = (0, 9000, rng.randrange(1, 1 << 40)) if what == "write" else ()
        return kind, rng.randrange(8), what, vdi, *more
    if kind == "commit_beside":
        what = rng.choice(["write", "write", "trim", "snapshot"])
        more = (offset, length) if what != "snapshot" else ()
        return kind, what, vdi, *more, *([rng.randrange(1, 1 << 40)] if what == "write" else [])
    if kind == "crash":
        return kind, rng.randrange(1 << 30)
    return kind, vdi


_WEIGHTS = (
    ("write", 30),
    ("trim", 7),
    ("allocate_zeros", 3),
    ("resize", 3),
    ("resize_now", 1),
    ("create", 3),
    ("clone", 3),
    ("snapshot", 4),
    ("snapshot_now", 3),
    ("ticks", 3),
    ("delete_snapshot", 2),
    ("rollback", 2),
    ("delete", 3),
    ("restore", 2),
    ("collect", 1),
    ("rename", 1),
    ("flush", 10),
    ("flush_all", 4),
    ("begin", 4),
    ("sync", 3),
    ("settle", 2),
    ("commit_beside", 4),
    ("without_room", 3),
    ("reopen", 2),
    ("crash", 2),
)


def random_operations(seed: int, count: int, scale: int = 1) -> list[Op]:
    rng = random.Random(seed)
    return [random_operation(rng, scale) for _ in range(count)]


def shorten(operations: Sequence[Op], fails: Callable[[Sequence[Op]], bool]) -> Sequence[Op]:
    """Leave out operations, long stretches first, as long as it still fails."""
    step = len(operations) // 2
    while step:
        at = 0
        while at < len(operations):
            less = [*operations[:at], *operations[at + step :]]
            if fails(less):
                operations = less
            else:
                at += step
        step //= 2
    return operations
