"""A set of blocks as one bit a block, for what has to know of every block of a store.

A store of 10 TiB has 2.7 billion blocks, 320 MiB of bits. Memory that was never written to
costs nothing (the kernel gives it page by page), and work on a whole set looks only at the
pages in which there is something: so a set of few blocks is cheap in a large store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

_PAGE_SHIFT: Final = 19
"""A page is 64 KiB of bits, 2 GiB of a store."""
_PAGE: Final = 1 << _PAGE_SHIFT
_THERE: Final = np.uint8(1)


class BlockSet:
    """A set of block numbers, most of them below `blocks`: a store may grow meanwhile.

    Attributes:
        bits: bit *i* of byte *j* says whether block 8 *j* + *i* is in the set.
    """

    def __init__(self, blocks: int) -> None:
        """Start empty."""
        self.bits: NDArray[np.uint8] = np.zeros((blocks + 7) >> 3, np.uint8)
        self._bytes = self.bits.data
        self._pages = np.zeros((self.bits.size >> (_PAGE_SHIFT - 3)) + 1, np.bool_)

    def _fit(self, size: int) -> None:
        """Have at least `size` bytes of bits."""
        if size <= self.bits.size:
            return
        bits = np.zeros(size, np.uint8)
        for page in self._used():
            bits[page][: self.bits[page].size] = self.bits[page]
        self.bits = bits
        self._bytes = bits.data
        self._pages = np.pad(self._pages, (0, (size >> (_PAGE_SHIFT - 3)) + 1 - self._pages.size))

    def _match(self, other: BlockSet) -> None:
        """Have as many bits as another set, and the other as many as this one."""
        self._fit(other.bits.size)
        other._fit(self.bits.size)

    def __contains__(self, block: int) -> bool:
        """Say whether a block is in the set."""
        byte = block >> 3
        return byte < len(self._bytes) and bool(self._bytes[byte] >> (block & 7) & 1)

    def add(self, block: int) -> None:
        """Add one block."""
        self._fit((block >> 3) + 1)
        self._bytes[block >> 3] |= 1 << (block & 7)
        self._pages[block >> _PAGE_SHIFT] = True

    def add_all(self, blocks: NDArray[np.int64]) -> None:
        """Add blocks in any order; some may be named more than once."""
        if not blocks.size:
            return
        byte, low = blocks >> 3, (blocks & 7).astype(np.uint8)
        self._fit(int(byte.max()) + 1)
        for bit in range(8):  # one at a time, so that it does not matter who writes a byte last
            self.bits[byte[low == bit]] |= np.uint8(1 << bit)
        self._pages[blocks >> _PAGE_SHIFT] = True

    def put(self, start: int, bits: NDArray[np.uint8]) -> None:
        """Set what is known of the blocks from `start`, a multiple of 8, on."""
        self._fit((start >> 3) + bits.size)
        self.bits[start >> 3 : (start >> 3) + bits.size] = bits
        self._pages[start >> _PAGE_SHIFT : ((start + 8 * bits.size - 1) >> _PAGE_SHIFT) + 1] = True

    def _used(self) -> Iterator[slice]:
        """Yield the bytes of each page that may have something in it."""
        size = _PAGE >> 3
        for page in np.flatnonzero(self._pages).tolist():
            yield slice(page * size, (page + 1) * size)

    def __ior__(self, other: BlockSet) -> BlockSet:
        """Add what is in another set of the same store."""
        self._match(other)
        for page in other._used():
            self.bits[page] |= other.bits[page]
        self._pages |= other._pages
        return self

    def __isub__(self, other: BlockSet) -> BlockSet:
        """Take out what is in another set of the same store."""
        self._match(other)
        for page in self._used():
            self.bits[page] &= ~other.bits[page]
        return self

    def add_common(self, one: BlockSet, other: BlockSet) -> None:
        """Add what is both in `one` and in `other`; cheap if `other` is small."""
        one._match(other)
        self._match(other)
        for page in other._used():
            common = one.bits[page] & other.bits[page]
            if common.any():
                self.bits[page] |= common
                self._pages[page.start >> (_PAGE_SHIFT - 3)] = True

    def __bool__(self) -> bool:
        """Say whether there is anything in the set."""
        return any(self.bits[page].any() for page in self._used())

    def __len__(self) -> int:
        """Return how many blocks are in the set."""
        return sum(int(np.bitwise_count(self.bits[page]).sum()) for page in self._used())

    def count_in(self, other: BlockSet) -> int:
        """Return how many of these blocks are in `other` too."""
        self._match(other)
        return sum(
            int(np.bitwise_count(self.bits[page] & other.bits[page]).sum()) for page in self._used()
        )

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (first, count) of the runs of blocks from `start` up to `end` not in the set.

        Both bounds are multiples of 8.
        """
        first = after = start
        for low in range(start, end, _PAGE):
            high = min(low + _PAGE, end)
            for at, until in self._page_gaps(low, high):
                if at != after:
                    if after > first:
                        yield first, after - first
                    first = at
                after = until
        if after > first:
            yield first, after - first

    def _page_gaps(self, low: int, high: int) -> list[list[int]]:
        """Return the runs (from, up to) of blocks not in the set in a page or a part of it."""
        bits = self.bits[low >> 3 : high >> 3]
        if not bits.any():
            return [[low, high]]
        there = np.unpackbits(bits, bitorder="little")
        edges = np.flatnonzero(np.diff(there, prepend=_THERE, append=_THERE)) + low
        runs: list[list[int]] = edges.reshape(-1, 2).tolist()
        return runs
