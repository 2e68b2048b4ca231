"""What the blocks of VDIs and snapshots may hold: the truth, kept outside of what is tested.

Every block says of itself whose it is, where it belongs and how new it is, so a block that
turns up in the wrong place or too old gives itself away. A *value* is what a block may hold:
zero for zeros, else the number of the image it was written to and the generation of the write.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

BLOCK = 4096
_HEAD = struct.Struct("<4sIIQ")
_SUM = struct.Struct("<I8x")
_MAGIC = b"plxT"
_SHIFT = 40
ZEROS = bytes(BLOCK)
BAD = -1


def contents(value: int, number: int) -> bytes:
    """The bytes of a block with this value at this place of an image."""
    if not value:
        return ZEROS
    head = _HEAD.pack(_MAGIC, value >> _SHIFT, number, value & ((1 << _SHIFT) - 1))
    return (head + _SUM.pack(zlib.crc32(head))) * (BLOCK // (_HEAD.size + _SUM.size))


def value_of(data: bytes, number: int) -> int:
    """The value that a block at this place has; BAD when it is not whole or not of here."""
    if data == ZEROS:
        return 0
    magic, image, _, generation = _HEAD.unpack_from(data)
    value = image << _SHIFT | generation
    return value if magic == _MAGIC and data == contents(value, number) else BAD


def values_of(data: bytes, first: int = 0) -> list[int]:
    """The values of all blocks in a piece of an image that begins at block `first`."""
    return [
        value_of(data[at : at + BLOCK], first + at // BLOCK) for at in range(0, len(data), BLOCK)
    ]


def said(value: int) -> str:
    """A value for people."""
    if value == BAD:
        return "foreign or torn bytes"
    if not value:
        return "zeros"
    return f"image {value >> _SHIFT} generation {value & ((1 << _SHIFT) - 1)}"


def generation_of(value: int, image: Image) -> int:
    """The generation of a value that was written to an image, else 0."""
    return value & ((1 << _SHIFT) - 1) if value >> _SHIFT == image.number else 0


class _Sent(NamedTuple):
    """A write to a block that nothing has made durable yet."""

    generation: int
    value: int
    answered: bool


class Image:
    """A VDI: what was made durable, and what was sent since.

    Args:
        number: goes into every block that is written to it.
        name: of the VDI; it may change.
        values: what it holds, durably.

    Attributes:
        id: what it is called by, -1 before that is known.
    """

    def __init__(self, number: int, name: str, values: Sequence[int]) -> None:
        self.number = number
        self.name = name
        self.id = -1
        self._durable = list(values)
        self._since: dict[int, list[_Sent]] = {}
        self._generation = 0
        self._log: list[tuple[int, int]] = []
        self._guard = threading.Lock()

    @property
    def blocks(self) -> int:
        return len(self._durable)

    def sending(self, blocks: Iterable[int], trim: bool = False) -> list[int]:
        """Note a write before it is sent; return the new value of each block."""
        with self._guard:
            values = []
            for number in blocks:
                self._generation += 1
                value = 0 if trim else self.number << _SHIFT | self._generation
                sent = _Sent(self._generation, value, False)
                self._since.setdefault(number, []).append(sent)
                self._log.append((number, value))
                values.append(value)
            return values

    def acknowledged(self, blocks: Iterable[int], durable: bool = False) -> None:
        """Note that the newest write to each block was answered."""
        with self._guard:
            for number in blocks:
                since = self._since[number]
                since[-1] = since[-1]._replace(answered=True)
                if durable:
                    self._durable[number] = since[-1].value
                    del self._since[number]

    def flushing(self) -> dict[int, int]:
        """What a flush that is sent now will cover: generations by block."""
        with self._guard:
            return {
                number: max(sent.generation for sent in since if sent.answered)
                for number, since in self._since.items()
                if any(sent.answered for sent in since)
            }

    def flushed(self, cover: dict[int, int]) -> None:
        """Note that a flush was answered."""
        with self._guard:
            for number, generation in cover.items():
                since = self._since.pop(number, [])
                for sent in since:
                    if sent.generation == generation:
                        self._durable[number] = sent.value
                if left := [sent for sent in since if sent.generation > generation]:
                    self._since[number] = left

    def all_durable(self) -> None:
        """Note that all that was answered has been committed."""
        self.flushed(self.flushing())

    def crashed(self) -> None:
        """Note that whoever answered may have forgotten: no later flush covers those answers."""
        with self._guard:
            for since in self._since.values():
                since[:] = [sent._replace(answered=False) for sent in since]

    def settle(self, found: Sequence[int]) -> None:
        """Nobody writes any more and this is what is there: from now on it is exactly that."""
        with self._guard:
            self._durable = list(found)
            self._since.clear()

    def possible(self) -> list[tuple[int, ...]]:
        """What each block may hold."""
        with self._guard:
            return [
                (value, *(sent.value for sent in self._since.get(number, ())))
                for number, value in enumerate(self._durable)
            ]

    def answered(self) -> tuple[list[tuple[int, ...]], int]:
        """What a snapshot that is asked for now may hold so far, and where `sent_since` begins.

        Whatever was answered is in it, durable or not.
        """
        with self._guard:
            now = []
            for number, value in enumerate(self._durable):
                possible = [value]
                for sent in self._since.get(number, ()):
                    possible = [sent.value] if sent.answered else [*possible, sent.value]
                now.append(tuple(possible))
            return now, len(self._log)

    def sent_since(self, mark: int) -> list[tuple[int, int]]:
        """Blocks and values that were sent after `answered`."""
        with self._guard:
            return self._log[mark:]


class Snapshot:
    """A snapshot: what it may hold until it was seen, and from then on only that.

    Args:
        image: the VDI it is of.
        label: its name.
    """

    def __init__(self, image: Image, label: str) -> None:
        self.image = image
        self.label = label
        self._possible, self._mark = image.answered()
        self.values: list[int] | None = None

    def taken(self) -> None:
        """Note that what is sent from now on is not in it."""
        possible = [list(values) for values in self._possible]
        for number, value in self.image.sent_since(self._mark):
            possible[number].append(value)
        self._possible = [tuple(values) for values in possible]

    def possible(self) -> list[tuple[int, ...]]:
        """What each block may hold."""
        return self._possible if self.values is None else [(value,) for value in self.values]


def wrong(found: Sequence[int], possible: Sequence[tuple[int, ...]]) -> list[str]:
    """What is not as it may be, in words; the first few and how many more."""
    if len(found) != len(possible):
        return [f"{len(found)} blocks instead of {len(possible)}"]
    bad = [
        f"block {number}: {said(value)}, not {' or '.join(said(v) for v in allowed)}"
        for number, (value, allowed) in enumerate(zip(found, possible, strict=True))
        if value not in allowed
    ]
    return bad if len(bad) < 6 else [*bad[:5], f"and {len(bad) - 5} more"]
