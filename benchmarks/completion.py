"""A key in the shell with ten VDIs and with ten thousand, and while these are being read."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Final

from figures import OURS, Figure, Goal, Measure, in_turns
from workspace import Workspace

from core.session import Session
from plxsh.cli import cli
from plxsh.completer import complete
from plxsh.context import Settings
from plxsh.names import Names

NOTICED: Final = "50 ms"
"""About what people begin to notice between a key and what they see."""

_FEW: Final = 10
_WORDS: Final = ("vdi", "show")
_FRAGMENTS: Final = ("", "c", "clone", "clone-9", "99", "ne9", "nothing")
_PATIENCE: Final = 600.0
_BATCH: Final = 5


def keys(place: Workspace) -> list[Figure]:
    """The slowest of several completions, and the longest that another thread is held up."""
    many = _store(place, place.many)
    contestants: dict[str, Measure] = {
        OURS: _slowest_key(many),
        f"{_FEW} VDIs": _slowest_key(_store(place, _FEW)),
        NOTICED: lambda _: 50.0,
    }
    typed = in_turns(contestants, place.runs, _BATCH)
    read: dict[str, Measure] = {
        OURS: lambda _: _held_up(Names(str(many), _PATIENCE)),
        "nothing is read": lambda _: _held_up(None),
        NOTICED: lambda _: 50.0,
    }
    goals = {NOTICED: Goal(0.0, 1.0)}
    return [
        Figure(f"a key with {place.many:,} VDIs", "ms", typed, goals),
        Figure(f"held up while {place.many:,} are read", "ms", in_turns(read, place.runs), goals),
    ]


def _store(place: Workspace, count: int) -> Path:
    """Make a store of so many VDIs, their records written directly: creating takes minutes."""
    path = place.empty_store(f"names-{count}")
    with Session.open(str(path), "write") as session:
        first = session.create("clone-0", 1 << 30)
        for number in range(1, count):
            record = replace(first, id=number, uuid=uuid.uuid4().bytes, name=f"clone-{number}")
            for sequence in (1, 2):
                session.registry.write(replace(record, sequence=sequence))
    os.utime(path, (1, 1))
    return path


def _slowest_key(path: Path) -> Measure:
    settings = Settings(store=str(path))
    settings.names = Names(str(path), _PATIENCE)
    settings.names.vdis()

    def slowest(_: int) -> float:
        return max(map(key, _FRAGMENTS))

    def key(fragment: str) -> float:
        return _milliseconds(lambda: complete(cli, settings, _WORDS, fragment))

    return slowest


def _held_up(names: Names | None) -> float:
    """Return the longest time by which a short sleep was too long while names are read."""
    reading = Thread(target=names.vdis if names else lambda: time.sleep(0.2))
    reading.start()
    late = [0.0]
    while reading.is_alive():
        late.append(_milliseconds(lambda: time.sleep(0.001)) - 1)
    return max(late)


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
