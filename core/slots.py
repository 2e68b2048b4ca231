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
        found: what each holds, None where it is not valid.
        conditions: what each is.
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
            if version is not None and version.sequence % 2 != slot:
                version = None
            conditions.append(condition(kind, block, version is not None))
            found.append(version)
        return cls((found[0], found[1]), (conditions[0], conditions[1]))

    @property
    def current(self) -> T | None:
        """The valid one with the higher sequence number, None when none is valid."""
        one, other = self.found
        if one is None or other is None:
            return one or other
        return one if one.sequence > other.sequence else other

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
        """Whether a newer version than `current` may have been lost, if a session has died."""
        current = self.current
        if current is None:
            return not self.never_made
        other = self.conditions[1 - current.sequence % 2]
        first = current.sequence == 1 and other is Condition.EMPTY
        return other in (Condition.DAMAGED, Condition.EMPTY) and not first

    @property
    def are_twins(self) -> bool:
        """Whether both say the same, one as the version after the other."""
        one, other = self.found
        if one is None or other is None:
            return one is other and self.never_made and Condition.TORN not in self.conditions
        first, second = sorted((one, other), key=lambda version: version.sequence)
        return twin_of(first) == second


def twin_of(version: T) -> T:
    """Return what the other slot holds when both say the same."""
    changed: Any = version
    twin: T = replace(changed, sequence=version.sequence + 1)
    return twin
