"""Replies: one reusable buffer that a turn's replies are put together in.

Also the only place where an error of the engine becomes one of the protocol's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from core.errors import BadRequest, NoSpace, ParallaxError, ReadOnly
from core.tap.protocol import (
    CHUNK,
    CHUNK_BLOCK_STATUS,
    CHUNK_DONE,
    CHUNK_ERROR,
    CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE,
    CHUNK_WORD,
    DATA_CHUNK,
    EINVAL,
    EIO,
    ENOSPC,
    ENOTSUP,
    EOVERFLOW,
    EPERM,
    ERROR_CHUNK,
    HOLE_CHUNK,
    SIMPLE,
    SIMPLE_WORD,
    U32,
)

ARENA: Final = 1 << 20
"""Bytes of the buffer at rest, and how much is collected before it is sent."""
ROOM: Final = 64 << 10
"""Bytes that are free behind `ARENA` for replies without data."""
_MAX_MESSAGE: Final = 1024


def errno_of(error: ParallaxError) -> int:
    """Return the protocol's number for an error of the engine."""
    if isinstance(error, NoSpace):
        return ENOSPC
    if isinstance(error, ReadOnly):
        return EPERM
    if isinstance(error, BadRequest):
        return EINVAL
    return EIO


class Replies:
    """The buffer; whoever fills it sends it before anyone else's turn.

    Attributes:
        data: the bytes.
        view: the same bytes, to slice without a copy.
        used: how many of them are replies.
        errors: how often each of the protocol's numbers was the answer.
    """

    __slots__ = ("data", "errors", "used", "view")

    def __init__(self) -> None:
        """Start empty."""
        self.used = 0
        self.errors = dict.fromkeys((EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP), 0)
        self.data = bytearray(ARENA + ROOM)
        self.view = memoryview(self.data)

    def room(self, length: int) -> None:
        """Make sure that `length` more bytes fit, whatever they are."""
        if self.used + length > len(self.data):
            grown = bytearray(self.used + length + ROOM)
            grown[: self.used] = self.view[: self.used]
            self.data, self.view = grown, memoryview(grown)

    def clear(self) -> None:
        """Forget what was sent, and give back what an unusually long reply took."""
        self.used = 0
        if len(self.data) > ARENA + ROOM:
            self.data = bytearray(ARENA + ROOM)
            self.view = memoryview(self.data)

    def simple(self, cookie: int, error: int = 0) -> None:
        """Add a reply without data."""
        if error:
            self.errors[error] += 1
        self.room(SIMPLE.size)
        SIMPLE.pack_into(self.data, self.used, SIMPLE_WORD | error, cookie)
        self.used += SIMPLE.size

    def error(self, cookie: int, error: int, message: str) -> None:
        """Add a structured reply that says what went wrong."""
        self.errors[error] += 1
        text = message.encode()[:_MAX_MESSAGE]
        self.room(ERROR_CHUNK.size + len(text))
        word = CHUNK_WORD | CHUNK_DONE << 16 | CHUNK_ERROR
        ERROR_CHUNK.pack_into(self.data, self.used, word, cookie, 6 + len(text), error, len(text))
        self.used += ERROR_CHUNK.size
        self.data[self.used : self.used + len(text)] = text
        self.used += len(text)

    def chunk_of_data(self, cookie: int, offset: int, length: int, last: bool) -> memoryview:
        """Add the head of a data chunk; return where its data is to be put."""
        self.room(DATA_CHUNK.size + length)
        word = CHUNK_WORD | last << 16 | CHUNK_OFFSET_DATA
        DATA_CHUNK.pack_into(self.data, self.used, word, cookie, 8 + length, offset)
        start = self.used + DATA_CHUNK.size
        self.used = start + length
        return self.view[start : self.used]

    def chunk_of_hole(self, cookie: int, offset: int, length: int, last: bool) -> None:
        """Add a chunk that says that a range reads as zeros."""
        self.room(HOLE_CHUNK.size)
        word = CHUNK_WORD | last << 16 | CHUNK_OFFSET_HOLE
        HOLE_CHUNK.pack_into(self.data, self.used, word, cookie, 12, offset, length)
        self.used += HOLE_CHUNK.size

    def block_status(self, cookie: int, context: int, extents: Sequence[int]) -> None:
        """Add a block status; `extents` is length, state, length, state and so on."""
        body = U32.pack(context) + b"".join(map(U32.pack, extents))
        self.room(CHUNK.size + len(body))
        word = CHUNK_WORD | CHUNK_DONE << 16 | CHUNK_BLOCK_STATUS
        CHUNK.pack_into(self.data, self.used, word, cookie, len(body))
        self.used += CHUNK.size
        self.data[self.used : self.used + len(body)] = body
        self.used += len(body)
