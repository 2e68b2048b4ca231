"""The crash tests can fail: each mistake planted in the engine is found, and soon.

The world itself is built with the mistake in place. Without it, the very same hunt finds
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import pytest
from crash.bugs import BUGS, Bug
from support.bench import Op
from support.crash import Torn
from support.hunt import Hunt
from support.reader import Violation
from support.workload import (
    ALPHABET,
    LOG_OPERATIONS,
    SCHEDULE_OPERATIONS,
    A,
    B,
    K,
    World,
    kept_by_schedule,
    long_log,
    random_operations,
    small_world,
)

from core.errors import Corrupt

Lists = Iterator[Sequence[Op]]
pytestmark = pytest.mark.timeout(1200)

RETRIED_COMMIT: Sequence[Op] = (
    ("write", A, 40 * K, 8 * K, 11),
    ("without_room", 1, "flush", A),
    ("write", B, 12 * K, 8 * K, 12),
)

SPACE_USED_AGAIN: Sequence[Op] = (
    ("delete", B),
    ("collect",),
    ("write", A, 12 * K, 8 * K, 11),
    ("flush", A),
)


def small_lists() -> Lists:
    yield RETRIED_COMMIT
    yield SPACE_USED_AGAIN
    yield from product(ALPHABET, repeat=1)
    yield from list(product(ALPHABET, repeat=2))[::7]
    yield from (random_operations(seed, 40) for seed in range(10))


def log_lists() -> Lists:
    yield from list(product(LOG_OPERATIONS, repeat=2))[::2]


def schedule_lists() -> Lists:
    yield from list(product(SCHEDULE_OPERATIONS, repeat=2))[::5]


def hunt() -> str:
    """Return the first violation met, or nothing."""
    worlds = (
        (small_world, small_lists()),
        (long_log, log_lists()),
        (kept_by_schedule, schedule_lists()),
    )
    for make_world, lists in worlds:
        try:
            world: World = make_world()
            hunting = Hunt(world, limit=100, engine_every=149)
            for seed, operations in enumerate(lists):
                hunting.run(operations, seed)
        except (Torn, Violation, AssertionError, Corrupt) as error:
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    found = hunt()
    print(found)
    assert found


@pytest.mark.slow
def test_nothing_is_found_without_a_bug() -> None:
    assert hunt() == ""
