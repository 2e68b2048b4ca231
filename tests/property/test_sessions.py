"""Several sessions on one store, and collections whose steps have others' work between them.

A seeded driver (`support.flock`): sessions write, trim, snapshot, clone, delete, restore, roll
back, commit, give extents away, die and lose their leases; one of them collects, and may die at
any of its steps. After every step all that can be read must be what a plain dictionary says, and
the check of the store must find no block that is in use and free, or owned twice. In the end at
least 99 % of what nothing reaches is freed, with all sessions there.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from types import ModuleType

import pytest
from property.session_bugs import BUGS, Bug
from support.flock import World
from unit import test_collection, test_interleavings

from core.errors import ParallaxError


def run(seed: int, steps: int) -> World:
    world = World(seed)
    for _ in range(steps):
        world.step()
    world.end()
    return world


@pytest.mark.parametrize("seed", range(6))
def test_sessions_beside_collections(seed: int) -> None:
    run(seed, 60)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 130, 6))
def test_sessions_beside_collections_for_longer(first: int) -> None:
    worlds = [run(seed, 120) for seed in range(first, first + 6)]
    assert sum(world.collections for world in worlds) > len(worlds)


def scenarios(module: ModuleType) -> list[Callable[..., None]]:
    """The tests of a module that need nothing but a pair of sessions."""
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    return [test for test in tests if {*signature(test).parameters} <= {"pair"}]


def hunt() -> None:
    """First what was thought of, then what nobody did."""
    for scenario in (*scenarios(test_collection), *scenarios(test_interleavings)):
        scenario(*[test_collection.Pair() for _ in signature(scenario).parameters])
    for seed in range(20):
        run(seed, 60)


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    found = (AssertionError, ParallaxError, pytest.fail.Exception)
    with pytest.raises(found, match=r"^(?!Timeout)"):  # what only hangs is not found
        hunt()
