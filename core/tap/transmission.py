"""The transmission phase: a client's requests, many at a time.

This is the path of every byte a virtual machine reads or writes, so it is written for
speed: one receive takes in all requests that are waiting, their replies are put together
in one buffer and sent at once. Reads are answered on the spot, straight from the page
cache into that buffer. Consecutive writes are handed to the engine together, which puts
them next to each other. What cannot be done at once becomes a job (`core.tap.jobs`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from core.device import BlockDevice
from core.errors import NoSpace, ParallaxError, WouldBlock
from core.session import Session
from core.tap.commits import Commits
from core.tap.exports import MAX_DIRTY, Export, Exports
from core.tap.handshake import CONTEXT_ID, Agreed, ProtocolError
from core.tap.jobs import Jobs, Steps
from core.tap.protocol import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_DISC,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    DATA_CHUNK,
    EINVAL,
    ENOSPC,
    ENOTSUP,
    EPERM,
    FLAG_DF,
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLAG_REQ_ONE,
    LAST_DATA_WORD,
    MAX_BLOCK,
    REQUEST,
    REQUEST_MAGIC,
    REQUEST_WORD,
    SIMPLE,
    SIMPLE_WORD,
    STATE_DATA,
    STATE_HOLE,
)
from core.tap.replies import ARENA, Replies, errno_of
from core.vdi import Vdi

if TYPE_CHECKING:
    from core.tap.client import Client

_BUFFER: Final = 256 << 10
_BASE: Final = 4
"""Where the buffer's first request begins, so that the data behind its head is aligned."""
_QUICK: Final = 64 << 10
"""Reads below this length are answered without looking for holes."""
_MAX_WAITING: Final = 256
_ROUNDS: Final = 8
"""How often a read looks again before it simply waits."""
_STEP: Final = 4 << 20
"""Bytes of a long request that are dealt with before others have a turn."""
_MAX_STATUS: Final = 256 << 20
_MAX_EXTENTS: Final = 2048


@dataclass(slots=True)
class Counts:
    """What a connection did so far."""

    requests: int = 0
    reads: int = 0
    writes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True, slots=True)
class Shared:
    """What the connections of a tap share."""

    session: Session
    device: BlockDevice
    exports: Exports
    commits: Commits
    jobs: Jobs
    replies: Replies


class Transmission:
    """One connection's requests.

    Args:
        client: whose they are.
        shared: what carries them out.
        agreed: the result of the handshake, with an export.
        export: the export of that.
        rest: bytes that came behind the handshake.

    Attributes:
        waiting: requests that are not answered yet.
        counts: what was asked so far.
        peer: who it is, to show.
        since: when it connected, in seconds of Unix time.
    """

    def __init__(
        self, client: Client, shared: Shared, agreed: Agreed, export: Export, rest: bytes
    ) -> None:
        """Take over a connection whose handshake is done."""
        self._client = client
        self._shared = shared
        self._export = export
        self._image = export.image
        self._vdi = export.vdi
        self._structured = agreed.structured
        self._allocation = agreed.allocation
        self._buffer = bytearray(max(_BUFFER, _BASE + len(rest)))
        self._view = memoryview(self._buffer)
        self._start = _BASE
        self._end = _BASE + len(rest)
        self._view[_BASE : self._end] = rest
        self._room = self._view[self._end :]
        self._grown = False
        self._closed = False
        self.waiting = 0
        self._leaving = False
        self.counts = Counts()
        self.peer = client.peer
        self.since = time.time()
        self._handlers: dict[int, Callable[[int, int, int, int], None]] = {
            CMD_READ: self._read,
            CMD_FLUSH: self._flush,
            CMD_TRIM: self._trim,
            CMD_CACHE: self._cache,
            CMD_WRITE_ZEROES: self._write_zeroes,
            CMD_BLOCK_STATUS: self._block_status,
        }
        export.connections.add(self)

    @property
    def full(self) -> bool:
        """Whether so much is unanswered that nothing more should be read."""
        return self._leaving or self.waiting >= _MAX_WAITING

    @property
    def done(self) -> bool:
        """Whether the client is done and everything is answered."""
        return self._leaving and not self.waiting

    def close(self) -> None:
        """Forget everything; the client is gone."""
        self._closed = True
        self._shared.exports.leave(self._export, self)

    # -- receiving ---------------------------------------------------------------------

    def receive(self) -> None:
        """Take in what the client sent, and deal with it.

        Raises:
            ConnectionError: the client is gone.
            BlockingIOError, ssl.SSLError: there is nothing to read now.
            ProtocolError: it does not keep to the protocol.
        """
        got = self._client.sock.recv_into(self._room)
        if not got:
            raise ConnectionResetError("the client closed the connection")
        self._end += got
        self.process()

    def process(self) -> None:
        """Deal with all complete requests in the buffer, as long as replies can be sent."""
        client, shared = self._client, self._shared
        replies = shared.replies
        unpack, pack_data, pack_simple = REQUEST.unpack_from, DATA_CHUNK.pack_into, SIMPLE.pack_into
        read_into, size = self._image.read_into, self._image.size
        head = DATA_CHUNK.size if self._structured else SIMPLE.size
        structured, writable = self._structured, self._vdi is not None
        buffer, view, end, at = self._buffer, self._view, self._end, self._start
        data, out_view, out = replies.data, replies.view, replies.used
        reads = bytes_read = requests = 0
        writes: list[tuple[int, memoryview]] = []
        cookies: list[int] = []
        need = REQUEST.size
        broken = ""
        while end - at >= need:
            word, cookie, offset, length = unpack(buffer, at)
            if word == REQUEST_WORD and 0 < length < _QUICK and offset + length <= size:
                # A plain READ. The word is magic, flags and type in one: no flags, type 0.
                if writes:
                    replies.used = out
                    self._write(writes, cookies)
                    out = replies.used
                after = out + head + length
                if after > ARENA:
                    replies.used = out
                    self._send()
                    if client.blocked:
                        out = 0
                        break
                    data, out_view, out = replies.data, replies.view, 0
                    after = head + length
                at += 28
                requests += 1
                reads += 1
                bytes_read += length
                try:
                    read_into(offset, out_view[out + head : after], False)
                except WouldBlock as miss:
                    self._later(self._reading(cookie, offset, length, 0), miss)
                    if self.full:
                        break
                    continue
                except ParallaxError as error:
                    replies.used = out
                    self._fail_read(cookie, errno_of(error), error.message)
                    out = replies.used
                    continue
                if structured:
                    pack_data(data, out, LAST_DATA_WORD, cookie, length + 8, offset)
                else:
                    pack_simple(data, out, SIMPLE_WORD, cookie)
                out = after
                continue
            if word >> 32 != REQUEST_MAGIC:
                broken = f"bad magic {word >> 32:#x} before a request"
                break
            kind, flags = word & 0xFFFF, word >> 16 & 0xFFFF
            if kind == CMD_WRITE:
                if length > MAX_BLOCK:
                    broken = f"a write of {length} bytes"
                    break
                if end - at < 28 + length:
                    need = 28 + length
                    break
                requests += 1
                if writable and not flags and offset + length <= size and length:
                    writes.append((offset, view[at + 28 : at + 28 + length]))
                    cookies.append(cookie)
                    at += 28 + length
                    continue
            else:
                requests += 1
            replies.used = out
            if writes:
                self._write(writes, cookies)
            need = REQUEST.size
            if kind == CMD_WRITE:
                self._write_one(cookie, offset, view[at + 28 : at + 28 + length], flags)
                at += 28 + length
            elif kind == CMD_DISC:
                self._leaving = True
                at = end
            else:
                at += 28
                handler = self._handlers.get(kind)
                if handler is None:
                    self._fail(cookie, EINVAL)
                else:
                    handler(cookie, offset, length, flags)
            if replies.used >= ARENA:
                self._send()
            data, out_view, out = replies.data, replies.view, replies.used
            if client.blocked or self.full:
                break
        replies.used = out
        if writes:
            self._write(writes, cookies)
        self._send()
        if broken:
            raise ProtocolError(broken)
        self._start = at
        self._make_room(need)
        counts = self.counts
        counts.requests += requests
        counts.reads += reads
        counts.bytes_read += bytes_read
        client.update()

    def _make_room(self, need: int) -> None:
        """Move what is left to the front when the next request would not fit behind it."""
        start, end = self._start, self._end
        rest = end - start
        if not rest:
            self._start = self._end = _BASE
            self._room = self._view[_BASE:]
            return
        if _BASE + need > len(self._buffer):
            grown = bytearray(_BASE + need)
            grown[_BASE : _BASE + rest] = self._view[start:end]
            self._buffer, self._view = grown, memoryview(grown)
            self._start, self._end = _BASE, _BASE + rest
            self._grown = True
        elif start + need > len(self._buffer) or (need > _QUICK and start != _BASE):
            self._buffer[_BASE : _BASE + rest] = self._buffer[start:end]
            self._start, self._end = _BASE, _BASE + rest
        # A long request is received by itself, so that the next one is aligned as well.
        stop = self._start + need if need > _QUICK else len(self._buffer)
        self._room = self._view[self._end : stop]

    def shrink(self) -> None:
        """Give back a large buffer that was not needed since the last call."""
        if len(self._buffer) > _BUFFER and not self._grown and self._start == self._end:
            self._buffer = bytearray(_BUFFER)
            self._view = memoryview(self._buffer)
            self._room = self._view[_BASE:]
        self._grown = False

    # -- answering ---------------------------------------------------------------------

    def _send(self) -> None:
        """Send the replies that were put together."""
        replies = self._shared.replies
        if replies.used:
            self._client.send(replies.view[: replies.used])
            replies.clear()

    def _fail(self, cookie: int, error: int) -> None:
        self._shared.replies.simple(cookie, error)

    def _fail_read(self, cookie: int, error: int, message: str) -> None:
        """Answer a request whose success would have been a structured reply."""
        if self._structured:
            self._shared.replies.error(cookie, error, message)
        else:
            self._fail(cookie, error)

    def _later(self, steps: Steps, needs: WouldBlock | None = None) -> None:
        """Have a request carried out as a job."""
        self.waiting += 1
        self._shared.jobs.add(self._guarded(steps), needs)

    def _guarded(self, steps: Steps) -> Steps:
        """Run a job's steps as long as the client is there; its replies go out at the end."""
        while not self._closed:
            try:
                needs = next(steps)
            except StopIteration:
                self._answered()
                return
            except Exception as error:
                self._client.failed(error)
                return
            yield needs

    def _answered(self) -> None:
        """Send the reply to a request that had to wait, and go on reading."""
        was_full = self.full
        self.waiting -= 1
        self._client.guard(self._go_on if was_full else self._send)

    def _go_on(self) -> None:
        self._send()
        if not self._client.blocked:
            self.process()

    # -- reading -----------------------------------------------------------------------

    def _read(self, cookie: int, offset: int, length: int, flags: int) -> None:
        """READ, when it is long, has flags or is wrong."""
        self.counts.reads += 1
        known = FLAG_FUA | FLAG_DF if self._structured else FLAG_FUA
        beyond = offset + length > self._image.size
        if beyond or not length or length > MAX_BLOCK or flags & ~known:
            self._fail_read(cookie, EINVAL, f"cannot read {length} bytes at {offset}")
            return
        self.counts.bytes_read += length
        if self._shared.replies.used + length > ARENA:
            self._send()
        miss = self._try_read(cookie, offset, length, flags, False)
        if miss is not None:
            self._later(self._reading(cookie, offset, length, flags), miss)

    def _reading(self, cookie: int, offset: int, length: int, flags: int) -> Steps:
        """Read after some bytes were missing in memory."""
        for turn in range(_ROUNDS):
            miss = self._try_read(cookie, offset, length, flags, turn == _ROUNDS - 1)
            if miss is None:
                return
            yield miss

    def _try_read(
        self, cookie: int, offset: int, length: int, flags: int, wait: bool
    ) -> WouldBlock | None:
        """Answer a READ, or say which bytes are missing in memory."""
        replies = self._shared.replies
        used = replies.used
        try:
            if self._structured and length >= _QUICK and not flags & FLAG_DF:
                self._read_chunks(cookie, offset, length, wait)
            elif self._structured:
                part = replies.chunk_of_data(cookie, offset, length, True)
                self._image.read_into(offset, part, wait)
            else:
                replies.room(SIMPLE.size + length)
                replies.simple(cookie)
                start = replies.used
                replies.used += length
                self._image.read_into(offset, replies.view[start : replies.used], wait)
        except WouldBlock as miss:
            replies.used = used
            return miss
        except ParallaxError as error:
            replies.used = used
            self._fail_read(cookie, errno_of(error), error.message)
        return None

    def _read_chunks(self, cookie: int, offset: int, length: int, wait: bool) -> None:
        """Answer a READ with its data and its holes."""
        replies = self._shared.replies
        end = offset + length
        for start, part, data in self._image.extents(offset, length, wait):
            last = start + part == end
            if data:
                self._image.read_into(start, replies.chunk_of_data(cookie, start, part, last), wait)
            else:
                replies.chunk_of_hole(cookie, start, part, last)

    def _cache(self, cookie: int, offset: int, length: int, _flags: int) -> None:
        """CACHE: bring a range into memory."""
        if offset + length > self._image.size:
            self._fail(cookie, EINVAL)
        else:
            self._later(self._caching(cookie, offset, length))

    def _caching(self, cookie: int, offset: int, length: int) -> Steps:
        """Read a range for the sake of it, some at a time."""
        end = offset + length
        scratch = memoryview(bytearray(min(length, ARENA)))
        misses = 0
        while offset < end:
            part = scratch[: min(ARENA, end - offset)]
            try:
                self._image.read_into(offset, part, misses == _ROUNDS)
            except WouldBlock as miss:
                misses += 1
                yield miss
                continue
            except ParallaxError as error:
                self._fail(cookie, errno_of(error))
                return
            misses = 0
            offset += len(part)
            yield None
        self._shared.replies.simple(cookie)

    def _block_status(self, cookie: int, offset: int, length: int, flags: int) -> None:
        """BLOCK_STATUS: which parts of a range are stored."""
        if not self._allocation:
            self._fail_read(cookie, EINVAL, "base:allocation was not asked for")
        elif not length or offset + length > self._image.size:
            self._fail_read(cookie, EINVAL, f"there are no {length} bytes at {offset}")
        else:
            miss = self._try_status(cookie, offset, length, flags, False)
            if miss is not None:
                self._later(self._finding(cookie, offset, length, flags), miss)

    def _finding(self, cookie: int, offset: int, length: int, flags: int) -> Steps:
        """Look for the state of blocks after nodes were missing in memory."""
        for turn in range(_ROUNDS):
            miss = self._try_status(cookie, offset, length, flags, turn == _ROUNDS - 1)
            if miss is None:
                return
            yield miss

    def _try_status(
        self, cookie: int, offset: int, length: int, flags: int, wait: bool
    ) -> WouldBlock | None:
        """Answer a BLOCK_STATUS for the start of its range, which is all it has to be."""
        found: list[int] = []
        most = 2 if flags & FLAG_REQ_ONE else 2 * _MAX_EXTENTS
        try:
            for _, part, data in self._image.extents(offset, min(length, _MAX_STATUS), wait):
                found += (part, STATE_DATA if data else STATE_HOLE)
                if len(found) >= most:
                    break
        except WouldBlock as miss:
            return miss
        except ParallaxError as error:
            self._fail_read(cookie, errno_of(error), error.message)
        else:
            self._shared.replies.block_status(cookie, CONTEXT_ID, found)
        return None

    # -- writing -----------------------------------------------------------------------

    def _write(self, writes: list[tuple[int, memoryview]], cookies: list[int]) -> None:
        """Carry out a run of writes and empty both lists."""
        vdi, replies, counts = self._vdi, self._shared.replies, self.counts
        assert vdi is not None
        counts.writes += len(writes)
        counts.bytes_written += sum([len(part) for _, part in writes])
        errors: list[ParallaxError | None]
        try:
            errors = vdi.write_many(writes)
        except ParallaxError as error:
            errors = [error] * len(writes)
        for cookie, failure in zip(cookies, errors, strict=True):
            replies.simple(cookie, errno_of(failure) if failure else 0)
        writes.clear()
        cookies.clear()
        if vdi.map.dirty > MAX_DIRTY:
            self._shared.exports.settle(self._export)

    def _write_one(self, cookie: int, offset: int, part: memoryview, flags: int) -> None:
        """WRITE, when it has flags or is wrong."""
        if self._may_change(cookie, offset, len(part), flags & ~FLAG_FUA):
            self.counts.writes += 1
            self.counts.bytes_written += len(part)
            self._change(cookie, flags, lambda vdi: vdi.write(offset, part))

    def _trim(self, cookie: int, offset: int, length: int, flags: int) -> None:
        """TRIM: give a range back."""
        if self._may_change(cookie, offset, length, flags & ~FLAG_FUA):
            self._change(cookie, flags, lambda vdi: vdi.trim(offset, length))

    def _write_zeroes(self, cookie: int, offset: int, length: int, flags: int) -> None:
        """WRITE_ZEROES: as TRIM, which is fast, unless the zeros have to take space."""
        unknown = flags & ~(FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO)
        if not self._may_change(cookie, offset, length, unknown):
            return
        if not flags & FLAG_NO_HOLE:
            self._change(cookie, flags, lambda vdi: vdi.trim(offset, length))
        elif flags & FLAG_FAST_ZERO:
            self._fail(cookie, ENOTSUP)
        else:
            self._later(self._allocating(cookie, offset, length, flags))

    def _allocating(self, cookie: int, offset: int, length: int, flags: int) -> Steps:
        """Write zeros that take space, some at a time."""
        end = offset + length
        for start in range(offset, end - _STEP, _STEP):
            if not self._try(cookie, partial(Vdi.allocate_zeros, offset=start, length=_STEP)):
                return
            offset = start + _STEP
            yield None
        self._change(cookie, flags, lambda vdi: vdi.allocate_zeros(offset, end - offset))

    def _may_change(self, cookie: int, offset: int, length: int, unknown: int) -> bool:
        """Say whether a request to change a range makes sense; answer it if not."""
        if self._vdi is None:
            self._fail(cookie, EPERM)
        elif unknown or not length:
            self._fail(cookie, EINVAL)
        elif offset + length > self._image.size:
            self._fail(cookie, ENOSPC)
        else:
            return True
        return False

    def _change(self, cookie: int, flags: int, change: Callable[[Vdi], None]) -> None:
        """Change the VDI and answer, with FUA when the change is durable."""
        if self._try(cookie, change):
            if flags & FLAG_FUA:
                self._when_durable(cookie)
            else:
                self._shared.replies.simple(cookie)

    def _try(self, cookie: int, change: Callable[[Vdi], None]) -> bool:
        """Change the VDI; answer only when that fails. A full store gets a second chance."""
        vdi, session = self._vdi, self._shared.session
        assert vdi is not None
        try:
            try:
                change(vdi)
            except NoSpace:
                if not session.make_room():
                    raise
                change(vdi)
        except ParallaxError as error:
            self._fail(cookie, errno_of(error))
            return False
        if vdi.map.dirty > MAX_DIRTY:
            self._shared.exports.settle(self._export)
        return True

    def _flush(self, cookie: int, _offset: int, _length: int, _flags: int) -> None:
        """FLUSH: answer when all that was answered before is durable."""
        self._when_durable(cookie)

    def _when_durable(self, cookie: int) -> None:
        """Answer a request when all that was written to the VDI so far is durable."""
        if self._vdi is None:
            self._shared.replies.simple(cookie)
            return
        self.waiting += 1
        self._shared.commits.add(self._vdi, partial(self._durable, cookie))

    def _durable(self, cookie: int, error: ParallaxError | None) -> None:
        """Answer a request that waited for a commit."""
        if not self._closed:
            self._fail(cookie, errno_of(error) if error else 0)
            self._answered()
