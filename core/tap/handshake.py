"""The handshake: fixed newstyle negotiation until a client has chosen an export.

A state machine that is fed with bytes and says what to send back; it owns no socket. Each step
deals with one message, or goes on with a long answer, so that others can have their turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from core.errors import BadRequest, InUse, NotFound, ParallaxError, ReadOnly
from core.tap.exports import Description, Export, Exports
from core.tap.opening import NotYet
from core.tap.protocol import (
    CAN_MULTI_CONN,
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES,
    FIXED_NEWSTYLE,
    GREETING,
    HAS_FLAGS,
    INFO_BLOCK_SIZE,
    INFO_BLOCK_SIZE_REPLY,
    INFO_DESCRIPTION,
    INFO_EXPORT,
    INFO_EXPORT_REPLY,
    INFO_NAME,
    INFO_TYPE,
    INIT_MAGIC,
    MAX_BLOCK,
    MAX_NAME,
    MAX_OPTION,
    MIN_BLOCK,
    NO_ZEROES,
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT,
    OPT_STARTTLS,
    OPT_STRUCTURED_REPLY,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    PREFERRED_BLOCK,
    READ_ONLY,
    REP_ACK,
    REP_ERR_INVALID,
    REP_ERR_PLATFORM,
    REP_ERR_POLICY,
    REP_ERR_TLS_REQD,
    REP_ERR_TOO_BIG,
    REP_ERR_UNKNOWN,
    REP_ERR_UNSUP,
    REP_INFO,
    REP_META_CONTEXT,
    SEND_CACHE,
    SEND_DF,
    SEND_FAST_ZERO,
    SEND_FLUSH,
    SEND_FUA,
    SEND_TRIM,
    SEND_WRITE_ZEROES,
    U16,
    U32,
)

CONTEXT: Final = "base:allocation"
CONTEXT_ID: Final = 1
_WRITE_FLAGS: Final = SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO


class ProtocolError(Exception):
    """A client that does not keep to the protocol; its connection is dropped."""


class State(Enum):
    """How far the handshake is."""

    NEGOTIATING = auto()
    START_TLS = auto()
    SECURING = auto()
    DONE = auto()
    ABORTED = auto()


@dataclass(slots=True)
class Agreed:
    """What client and server agreed on: the handshake's result."""

    export: Export | None = None
    structured: bool = False
    allocation: bool = False


class Handshake:
    """One client's negotiation.

    Args:
        exports: what there is to choose from.
        tls: whether the client may ask for TLS.
        tls_required: whether it must, before anything else.

    Attributes:
        state: how far it is.
        agreed: its result.
        refusals: why an export that was asked for was not given, for the log.
        waits: what the next step waits for, None if nothing.
    """

    def __init__(self, exports: Exports, tls: bool = False, tls_required: bool = False) -> None:
        """Wait for the client's flags."""
        self._exports = exports
        self._tls = tls
        self._tls_required = tls_required
        self._options: dict[int, Callable[[bytes], Iterator[tuple[int, bytes]]]] = {
            OPT_LIST: self._list,
            OPT_INFO: self._info,
            OPT_GO: self._go,
            OPT_STRUCTURED_REPLY: self._structured_reply,
            OPT_LIST_META_CONTEXT: self._list_meta_context,
            OPT_SET_META_CONTEXT: self._set_meta_context,
            OPT_STARTTLS: self._starttls,
            OPT_ABORT: self._abort,
        }
        self._flags: int | None = None
        self._buffer = bytearray()
        self._pieces: deque[bytes] = deque()
        self._asked = 0
        self._skip = 0
        self._context_of: str | None = None
        self.state = State.NEGOTIATING
        self.agreed = Agreed()
        self.refusals: list[str] = []
        self.waits: NotYet | None = None

    @staticmethod
    def greeting() -> bytes:
        """Return what the server says first."""
        return GREETING.pack(INIT_MAGIC, OPTION_MAGIC, FIXED_NEWSTYLE | NO_ZEROES)

    def take(self, data: bytes | memoryview) -> None:
        """Take bytes from the client."""
        self._buffer += data
        self._asked = self._exports.listing.begun

    @property
    def pending(self) -> bool:
        """Whether another step may have something to do without more bytes."""
        return self.state is State.NEGOTIATING and bool(self._buffer or self._pieces)

    def step(self) -> bytes | None:
        """Deal with one message, or go on with a long answer; return what to send now.

        None is returned when the message is not complete, or when it `waits`.

        Raises:
            ProtocolError: the client does not speak this protocol.
        """
        self.waits = None
        if self._pieces:
            return self._pieces.popleft()
        if self.state is not State.NEGOTIATING:
            return None
        if self._skip:
            skipped = min(self._skip, len(self._buffer))
            del self._buffer[:skipped]
            self._skip -= skipped
        out = bytearray()
        try:
            if not self._message(out):
                return None
        except NotYet as wait:  # the option is still in the buffer
            self.waits = wait
            return None
        return bytes(out)

    def rest(self) -> bytes:
        """Return the bytes behind the option that ended the negotiation."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return rest

    def securing(self) -> None:
        """Note that TLS is being set up.

        Raises:
            ProtocolError: the client did not wait for that.
        """
        if self._buffer:
            raise ProtocolError("bytes before TLS was set up")
        self.state = State.SECURING

    def secured(self) -> None:
        """Go on after TLS was set up; what was agreed on before does not count."""
        self._tls = self._tls_required = False
        self._context_of = None
        self.agreed = Agreed()
        self.state = State.NEGOTIATING

    def _message(self, out: bytearray) -> bool:
        """Take one message from the buffer; False when it is not complete yet."""
        if self._skip:
            return False
        buffer = self._buffer
        if self._flags is None:
            if len(buffer) < CLIENT_FLAGS.size:
                return False
            (self._flags,) = CLIENT_FLAGS.unpack_from(buffer)
            del buffer[: CLIENT_FLAGS.size]
            if self._flags & ~(FIXED_NEWSTYLE | NO_ZEROES):
                raise ProtocolError(f"unknown client flags {self._flags:#x}")
            return True
        if len(buffer) < OPTION.size:
            return False
        magic, option, length = OPTION.unpack_from(buffer)
        if magic != OPTION_MAGIC:
            raise ProtocolError(f"bad magic {magic:#x} before an option")
        if length > MAX_OPTION and option != OPT_EXPORT_NAME:
            del buffer[: OPTION.size]
            self._skip = length
            known = option in self._options
            out += _reply(option, REP_ERR_TOO_BIG if known else REP_ERR_UNSUP, b"option too long")
            return True
        if option == OPT_EXPORT_NAME and length > MAX_NAME:
            raise ProtocolError(f"an export name of {length} bytes")
        if len(buffer) < OPTION.size + length:
            return False
        data = bytes(buffer[OPTION.size : OPTION.size + length])
        if option == OPT_EXPORT_NAME:
            out += self._export_name(data)
        else:
            for reply, payload in self._answer(option, data):
                out += _reply(option, reply, payload)
        del buffer[: OPTION.size + length]
        return True

    def _answer(self, option: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (type, payload) of each reply to an option."""
        if self._tls_required and option not in (OPT_STARTTLS, OPT_ABORT):
            if option == OPT_GO:
                self.refusals.append("TLS was not started")
            yield REP_ERR_TLS_REQD, b"start TLS first"
            return
        handler = self._options.get(option)
        if handler is None:
            yield REP_ERR_UNSUP, b"this server does not know the option"
            return
        try:
            yield from handler(data)
        except ProtocolError as error:
            yield REP_ERR_INVALID, str(error).encode()
        except ParallaxError as error:
            if option == OPT_GO:
                self.refusals.append(error.message)
            yield _reply_type(error), error.message.encode()[:MAX_NAME]

    # -- options -----------------------------------------------------------------------

    def _export_name(self, data: bytes) -> bytes:
        """Answer the old way to choose an export, which knows no errors."""
        if self._tls_required:
            raise ProtocolError("an export was asked for before TLS was started")
        try:
            export = self._exports.acquire(_text(data))
        except ParallaxError as error:
            raise ProtocolError(f"cannot open the export: {error.message}") from error
        self._finish(export)
        reply = EXPORT_NAME_REPLY.pack(export.image.size, self._flags_for(export.vdi is None))
        assert self._flags is not None
        return reply if self._flags & NO_ZEROES else reply + EXPORT_NAME_ZEROES

    def _abort(self, _data: bytes) -> Iterator[tuple[int, bytes]]:
        self.state = State.ABORTED
        yield REP_ACK, b""

    def _starttls(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        if data:
            yield REP_ERR_INVALID, b"STARTTLS takes no data"
        elif not self._tls:
            yield REP_ERR_POLICY, b"there is no TLS to start"
        else:
            self.state = State.START_TLS
            yield REP_ACK, b""

    def _list(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        if data:
            yield REP_ERR_INVALID, b"LIST takes no data"
            return
        self._pieces.extend(self._exports.listing.replies(self._asked))
        self._pieces.append(_reply(OPT_LIST, REP_ACK, b""))

    def _info(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        name, wanted = _parse_info(data)
        yield from self._describe(self._exports.describe(name), wanted)
        yield REP_ACK, b""

    def _go(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        name, wanted = _parse_info(data)
        description = self._exports.describe(name)
        export = self._exports.acquire(name)
        self._finish(export, name)
        yield from self._describe(description._replace(size=export.image.size), wanted)
        yield REP_ACK, b""

    def _finish(self, export: Export, name: str | None = None) -> None:
        """End the negotiation with an export; a context chosen for another one is void."""
        self.agreed.export = export
        self.agreed.allocation = self.agreed.allocation and name == self._context_of
        self.state = State.DONE

    def _describe(self, described: Description, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
        """Yield what INFO and GO tell about an export."""
        flags = self._flags_for(described.read_only)
        yield REP_INFO, INFO_EXPORT_REPLY.pack(INFO_EXPORT, described.size, flags)
        if INFO_NAME in wanted:
            yield REP_INFO, INFO_TYPE.pack(INFO_NAME) + described.name.encode()
        if INFO_DESCRIPTION in wanted:
            yield REP_INFO, INFO_TYPE.pack(INFO_DESCRIPTION) + described.text.encode()
        yield (
            REP_INFO,
            INFO_BLOCK_SIZE_REPLY.pack(INFO_BLOCK_SIZE, MIN_BLOCK, PREFERRED_BLOCK, MAX_BLOCK),
        )

    def _flags_for(self, read_only: bool) -> int:
        """Return the transmission flags of an export."""
        flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE
        if self.agreed.structured:
            flags |= SEND_DF
        return flags | (READ_ONLY if read_only else _WRITE_FLAGS)

    def _structured_reply(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        if data:
            yield REP_ERR_INVALID, b"STRUCTURED_REPLY takes no data"
            return
        self.agreed.structured = True
        yield REP_ACK, b""

    def _list_meta_context(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        name, queries = _parse_contexts(data)
        self._exports.describe(name)
        if not queries or CONTEXT in queries or "base:" in queries:
            yield REP_META_CONTEXT, U32.pack(0) + CONTEXT.encode()
        yield REP_ACK, b""

    def _set_meta_context(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        self.agreed.allocation = False
        self._context_of = None
        if not self.agreed.structured:
            yield REP_ERR_INVALID, b"ask for structured replies first"
            return
        name, queries = _parse_contexts(data)
        self._exports.describe(name)
        if CONTEXT in queries:
            self.agreed.allocation = True
            self._context_of = name
            yield REP_META_CONTEXT, U32.pack(CONTEXT_ID) + CONTEXT.encode()
        yield REP_ACK, b""


def _reply(option: int, reply: int, payload: bytes) -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(payload)) + payload


def _reply_type(error: ParallaxError) -> int:
    """Return the kind of reply that stands for an error of the engine."""
    if isinstance(error, NotFound | BadRequest):
        return REP_ERR_UNKNOWN
    if isinstance(error, InUse | ReadOnly):
        return REP_ERR_POLICY
    return REP_ERR_PLATFORM


def _text(data: bytes) -> str:
    if len(data) > MAX_NAME:
        raise ProtocolError(f"a string of {len(data)} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("a string that is not UTF-8") from error


class _Reader:
    """Takes an option's data apart, never past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size))

    def string(self) -> str:
        return _text(self._take(self.number(U32.size)))

    def end(self) -> None:
        if self._at != len(self._data):
            raise ProtocolError("an option that is longer than what it holds")

    def _take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) < count:
            raise ProtocolError("an option that is shorter than it says")
        self._at += count
        return part


def _parse_info(data: bytes) -> tuple[str, set[int]]:
    """Return the export and the kinds of information that INFO or GO ask for."""
    reader = _Reader(data)
    name = reader.string()
    wanted = {reader.number(U16.size) for _ in range(reader.number(U16.size))}
    reader.end()
    return name, wanted


def _parse_contexts(data: bytes) -> tuple[str, list[str]]:
    """Return the export and the queries of LIST_ or SET_META_CONTEXT."""
    reader = _Reader(data)
    name = reader.string()
    count = reader.number(U32.size)
    queries = []
    for _ in range(count):
        queries.append(reader.string())  # noqa: PERF401  # stops at the first one missing
    reader.end()
    return name, queries
