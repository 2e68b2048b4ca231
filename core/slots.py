"""Two slots of one thing: which of them counts, and whether a newer one may have been lost.

What is written again and again (VDI records, extent headers, bitmap blocks, the list of
sessions) has two blocks, written in turn. One that a crash has torn was never durable, so the
other one counts. One that has rotted may have been the newer one. That is known only when no
session can have died in the middle of something: a session that ends leaves two slots that say
the same (*twins*), and until then it is in the list of sessions (`core.session_list`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from core.format import BLOCK, Condition, SlotKind, condition


class Version(Protocol):
    """What a slot holds: a dataclass with a sequence number."""

    @property
    def sequence(self) -> int:
        """Its version; it goes to slot `sequence % 2`."""


T = TypeVar("T", bound=Version)


@dataclass(frozen=True)
class Pair(Generic[T]):
    """The two slots of one thing.

    Attributes:
        found: what each holds, None where nothing can be read. A version that is not of this
            slot but of the other one was misplaced; what it says is right all the same.
        conditions: what each is; of one that is misplaced, damaged.
    """

    found: tuple[T | None, T | None]
    conditions: tuple[Condition, Condition]

    @classmethod
    def read(cls, kind: SlotKind, raw: bytes, unpack: Callable[[bytes], T | None]) -> Pair[T]:
        """Look at two adjacent slots, or two blocks put together.

        Args:
            kind: of slots.
            raw: both blocks, slot 0 first.
            unpack: returns what a block holds if it is valid and belongs to this place.
        """
        found: list[T | None] = []
        conditions = []
        for slot in (0, 1):
            block = raw[slot * BLOCK : (slot + 1) * BLOCK]
            version = unpack(block)
            at_home = version is not None and version.sequence % 2 == slot
            conditions.append(condition(kind, block, at_home))
            found.append(version)
        return cls((found[0], found[1]), (conditions[0], conditions[1]))

    @property
    def slot(self) -> int | None:
        """Which one counts: the one with the highest sequence number; None when none can be read.

        Of two with the same number the one that is where it belongs.
        """
        ranks = [
            (version.sequence, version.sequence % 2 == slot, slot)
            for slot, version in enumerate(self.found)
            if version is not None
        ]
        return max(ranks)[2] if ranks else None

    @property
    def current(self) -> T | None:
        """The version that counts, None when none can be read."""
        slot = self.slot
        return None if slot is None else self.found[slot]

    @property
    def as_formatted(self) -> bool:
        """Whether nothing was written since the first version: alone, or as twins."""
        current = self.current
        if current is None:
            return False
        alone = self.conditions == (Condition.EMPTY, Condition.VALID) and current.sequence == 1
        return alone or (current.sequence == 2 and self.are_twins)

    @property
    def never_made(self) -> bool:
        """Whether nothing was ever there: a first write that a crash cut off counts as none."""
        kinds = {*self.conditions}
        return Condition.EMPTY in kinds and kinds <= {Condition.EMPTY, Condition.TORN}

    @property
    def doubtful(self) -> bool:
        """Whether a newer version than `current` may have been lost, if a session has died.

        A version that is misplaced has not hidden a newer one if what is older is in the slot
        that it was meant for: that is where a newer one would not be.
        """
        slot, current = self.slot, self.current
        if slot is None or current is None:
            return not self.never_made
        if current.sequence % 2 != slot:
            return self.conditions[1 - slot] not in (Condition.VALID, Condition.SCARRED)
        other = self.conditions[1 - slot]
        first = current.sequence == 1 and other is Condition.EMPTY
        return other in (Condition.DAMAGED, Condition.EMPTY) and not first

    @property
    def has_gap(self) -> bool:
        """Whether a version is missing between two: one was lost, or is a stale one."""
        one, other = self.found
        return one is not None and other is not None and abs(one.sequence - other.sequence) != 1

    @property
    def are_twins(self) -> bool:
        """Whether both say the same, one as the version after the other."""
        one, other = self.found
        if one is None or other is None:
            return one is other and self.never_made and Condition.TORN not in self.conditions
        if one.sequence % 2 or not other.sequence % 2:
            return False
        first, second = sorted((one, other), key=lambda version: version.sequence)
        return twin_of(first) == second

    def twins(self) -> list[T]:
        """Return what to write, one after the other, to have `current` twice.

        One that is misplaced is first copied to the other slot, and only then written over.
        """
        slot, current = self.slot, self.current
        if slot is None or current is None:
            return []
        twin = twin_of(current)
        return [twin] if current.sequence % 2 == slot else [twin_of(twin), twin_of(twin_of(twin))]


def twin_of(version: T) -> T:
    """Return what the other slot holds when both say the same."""
    changed: Any = version
    twin: T = replace(changed, sequence=version.sequence + 1)
    return twin
