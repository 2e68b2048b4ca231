"""The transmission phase: a client's requests, many at a time.

This is the path of every byte a virtual machine reads or writes, so it is written for
speed: one receive takes in all requests that are waiting, their replies are put together
in one buffer and sent at once. Reads are answered on the spot, straight from the page
cache into that buffer. Consecutive writes are handed to the engine together, which puts
them next to each other. What cannot be done at once becomes a job (`core.tap.jobs`).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from core.errors import Fenced, NoSpace, ParallaxError, WouldBlock
from core.tap.counts import Counts, Recent
from core.tap.exports import Export
from core.tap.handshake import Agreed, ProtocolError
from core.tap.jobs import Steps
from core.tap.protocol import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_DISC,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    COMMAND_FLAGS,
    DATA_CHUNK,
    EINVAL,
    EIO,
    FLAG_DF,
    LAST_DATA_WORD,
    MAX_BLOCK,
    REQUEST,
    REQUEST_MAGIC,
    REQUEST_WORD,
    SIMPLE,
    SIMPLE_WORD,
)
from core.tap.reads import QUICK, Reads
from core.tap.replies import ARENA, errno_of
from core.tap.shared import Shared
from core.tap.writes import Writes

if TYPE_CHECKING:
    from core.tap.client import Client

logger = logging.getLogger(__name__)

_BUFFER: Final = 128 << 10
_BASE: Final = 4
"""Where the buffer's first request begins, so that the data behind its head is aligned."""
_MAX_WAITING: Final = 256
_MAX_QUEUED: Final = 4 << 20
"""Bytes of replies that a client has not taken, beyond which no more are made for it."""
_MAX_EFFORT: Final = 16
"""Requests that may take a while, or MiB of long READs, before others have a turn."""


class Transmission:
    """One connection's requests.

    Args:
        client: whose they are.
        shared: what carries them out.
        agreed: the result of the handshake, with an export.
        export: the export of that.
        rest: bytes that came behind the handshake.

    Attributes:
        closed: whether the client is gone.
        waiting: requests that are not answered yet.
        counts: what was asked so far.
        recent: what had been asked a moment ago.
        export: what it has open.
        name: that of the export.
        peer: who it is, to show.
        since: when it connected, in seconds of Unix time.
    """

    def __init__(
        self, client: Client, shared: Shared, agreed: Agreed, export: Export, rest: bytes
    ) -> None:
        """Take over a connection whose handshake is done."""
        self._client = client
        self._shared = shared
        self.export = export
        self._image = export.image
        self._structured = agreed.structured
        self._buffer = bytearray(max(_BUFFER, _BASE + len(rest)))
        self._view = memoryview(self._buffer)
        self._start = _BASE
        self._end = _BASE + len(rest)
        self._view[_BASE : self._end] = rest
        self._room = self._view[self._end :]
        self._grown = False
        self.closed = False
        self.waiting = 0
        self._leaving = False
        self._short = False
        self._parked: deque[Steps] = deque()
        self._held = 0
        self._replied = 0
        self._flags = COMMAND_FLAGS
        if not agreed.structured:
            self._flags = COMMAND_FLAGS | {CMD_READ: COMMAND_FLAGS[CMD_READ] & ~FLAG_DF}
        self.counts = Counts()
        self.name = export.name
        self.peer = client.peer
        self.since = time.time()
        self.recent = Recent(self.since)
        self._reads = Reads(self, export.image, shared.replies, agreed)
        self._writes = Writes(self, shared, export)
        self._handlers: dict[int, Callable[[int, int, int, int], None]] = {
            CMD_READ: self._reads.read,
            CMD_FLUSH: self._writes.flush,
            CMD_TRIM: self._writes.trim,
            CMD_CACHE: self._reads.cache,
            CMD_WRITE_ZEROES: self._writes.write_zeroes,
            CMD_BLOCK_STATUS: self._reads.block_status,
        }
        export.connections.add(self)

    @property
    def full(self) -> bool:
        """Whether nothing more is to be read: too much is unanswered, or there is a pause."""
        stopped = self._leaving or self._short or self.export.paused
        return stopped or self.waiting >= _MAX_WAITING

    @property
    def done(self) -> bool:
        """Whether the client is done and everything is answered."""
        return self._leaving and not self.waiting

    @property
    def idle(self) -> bool:
        """Whether all that was asked is answered."""
        return self._client.idle

    def resume(self) -> None:
        """Go on after a pause of the export, or begin one."""
        if self.export.paused:
            self._client.update()
        else:
            self._client.resume()

    def finish(self) -> None:
        """Take no more requests; those that were taken are answered."""
        self._client.stop()

    def disconnect(self, why: str) -> None:
        """Drop the client."""
        self._client.close(why)

    def fenced(self, error: Fenced) -> None:
        """Drop the client, because the VDI may be somebody else's."""
        self._client.fenced(error)

    def close(self) -> None:
        """Forget everything; the client is gone."""
        self.closed = True
        self._parked.clear()
        self._shared.budget.forget(self)
        self._shared.exports.leave(self.export, self)

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
        """Deal with all complete requests in the buffer, as long as replies can be sent.

        Raises:
            Fenced: the VDI may be somebody else's.
        """
        client, shared = self._client, self._shared
        self._short = False
        if self._parked:
            self._unpark()
        if self.export.paused:
            client.update()
            return
        replies = shared.replies
        unpack, pack_data, pack_simple = REQUEST.unpack_from, DATA_CHUNK.pack_into, SIMPLE.pack_into
        read_into, size = self._image.read_into, self._image.size
        head = DATA_CHUNK.size if self._structured else SIMPLE.size
        structured, writable = self._structured, self.export.vdi is not None
        buffer, view, end, at = self._buffer, self._view, self._end, self._start
        data, out_view, out = replies.data, replies.view, replies.used
        reads = bytes_read = requests = missed = 0
        writes: list[tuple[int, memoryview]] = []
        cookies: list[int] = []
        need = REQUEST.size
        effort = 0
        breathe = False
        broken = ""
        while end - at >= need:
            word, cookie, offset, length = unpack(buffer, at)
            if word == REQUEST_WORD and 0 < length < QUICK and offset + length <= size:
                # A plain READ. The word is magic, flags and type in one: no flags, type 0.
                if writes:
                    replies.used = out
                    self._writes.write_many(writes, cookies)
                    out = replies.used
                after = out + head + length
                if after > ARENA:
                    replies.used = out
                    self.send()
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
                    missed += 1
                    self.later(self._reads.reading(cookie, offset, length, 0), miss)
                    if self.full:
                        break
                    continue
                except ParallaxError as error:
                    replies.used = out
                    self._reads.fail(cookie, self.errno_of(error), error.message)
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
                effort += length >> 20
                if writable and not flags and offset + length <= size and length:
                    writes.append((offset, view[at + 28 : at + 28 + length]))
                    cookies.append(cookie)
                    at += 28 + length
                    continue
            else:
                if effort >= _MAX_EFFORT:
                    self._short = breathe = True
                    break
                if kind == CMD_READ and self._reads.is_long(offset, length):
                    if not self._take(length):
                        break
                    effort += length >> 20
                requests += 1
                effort += 1
            replies.used = out
            if writes:
                self._writes.write_many(writes, cookies)
            need = REQUEST.size
            wrong = flags & ~self._flags.get(kind, 0)
            if kind == CMD_WRITE:
                if wrong:
                    replies.simple(cookie, EINVAL)
                else:
                    self._writes.write(cookie, offset, view[at + 28 : at + 28 + length], flags)
                at += 28 + length
            elif kind == CMD_DISC:
                self._leaving = True
                at = end
            else:
                at += 28
                handler = self._handlers.get(kind)
                if handler is None:
                    replies.simple(cookie, EINVAL)
                elif wrong:
                    self._refuse(kind, cookie, flags)
                else:
                    handler(cookie, offset, length, flags)
            if replies.used >= ARENA:
                self.send()
            data, out_view, out = replies.data, replies.view, replies.used
            if client.blocked or self.full:
                break
        replies.used = out
        if writes:
            self._writes.write_many(writes, cookies)
        self.send()
        if broken:
            raise ProtocolError(broken)
        self._start = at
        self._make_room(need)
        if breathe:
            shared.jobs.add(_once(client.resume), None, writable)
        elif self._short:
            self.shrink()
        counts = self.counts
        counts.requests += requests
        client.took(requests)
        counts.reads += reads
        counts.missed += missed
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
            if need > ARENA and not self._hold(need):
                return
            grown = bytearray(_BASE + need)
            grown[_BASE : _BASE + rest] = self._view[start:end]
            self._buffer, self._view = grown, memoryview(grown)
            self._start, self._end = _BASE, _BASE + rest
            self._grown = True
        elif start + need > len(self._buffer) or (need > QUICK and start != _BASE):
            self._buffer[_BASE : _BASE + rest] = self._buffer[start:end]
            self._start, self._end = _BASE, _BASE + rest
        # A long request is received by itself, so that the next one is aligned as well.
        stop = self._start + need if need > QUICK else len(self._buffer)
        self._room = self._view[self._end : stop]

    def tidy(self) -> None:
        """Give back a large buffer that was not needed since the last call."""
        if not self._grown and self._start == self._end:
            self.shrink()
        self._grown = False

    def shrink(self) -> None:
        """Give back a large buffer, unless much is in it already."""
        rest = self._end - self._start
        if len(self._buffer) <= _BUFFER or _BASE + rest >= _BUFFER:
            return
        small = bytearray(_BUFFER)
        small[_BASE : _BASE + rest] = self._view[self._start : self._end]
        self._buffer, self._view = small, memoryview(small)
        self._start, self._end = _BASE, _BASE + rest
        self._room = self._view[self._end :]
        held, self._held = self._held, 0
        self._shared.budget.give(self, held)

    # -- memory ------------------------------------------------------------------------

    def _take(self, length: int) -> bool:
        """Take memory for a long request from the budget, or wait until there is some."""
        self._short = not self._shared.budget.take(self, length)
        return not self._short

    def _hold(self, need: int) -> bool:
        """Take memory for a buffer of that size instead of the present one, or wait."""
        if need <= self._held:
            return True
        if not self._take(need - self._held):
            return False
        self._held = need
        return True

    def replied(self, length: int) -> None:
        """Note that a long READ is answered: its memory is free when the client has the reply."""
        self._replied += length

    @property
    def moved(self) -> int | None:
        """How many bytes the client has taken and sent; None while it has nothing to do."""
        if self._client.blocked:
            return self._client.taken
        if self._held and self._start != self._end and not self._short:
            return self.counts.bytes_written + self._end
        return None

    def _unpark(self) -> None:
        """Go on with jobs that waited until the client had taken replies."""
        while self._parked:
            steps = self._guarded(self._parked.popleft())
            self._shared.jobs.add(steps, None, self.export.vdi is not None)

    # -- answering ---------------------------------------------------------------------

    def send(self) -> None:
        """Send the replies that were put together."""
        replies = self._shared.replies
        if replies.used:
            self._client.send(replies.view[: replies.used])
            replies.clear()
        if self._replied and not self._client.blocked:
            replied, self._replied = self._replied, 0
            self._shared.budget.give(self, replied)

    def _refuse(self, kind: int, cookie: int, flags: int) -> None:
        """Answer a request whose flags are not those of its command."""
        if kind in (CMD_READ, CMD_BLOCK_STATUS):
            self._reads.fail(cookie, EINVAL, f"the command has no such flags: {flags:#x}")
        else:
            self._shared.replies.simple(cookie, EINVAL)

    def errno_of(self, error: ParallaxError) -> int:
        """Log why a request fails, and return the protocol's number for it.

        Raises:
            Fenced: it is one, and that is no answer.
        """
        if isinstance(error, Fenced):
            raise error
        if isinstance(error, NoSpace):
            self._shared.collecting.full()
        number = errno_of(error)
        logger.log(
            logging.ERROR if number == EIO else logging.WARNING,
            "%s: a request of %s failed: %s",
            self.name,
            self.peer,
            error.message,
            extra={"event": "request_failed", "export": self.name, "peer": self.peer},
        )
        return number

    def later(self, steps: Steps, needs: WouldBlock | None = None) -> None:
        """Have a request carried out as a job."""
        self.waiting += 1
        self._shared.jobs.add(self._guarded(steps), needs, self.export.vdi is not None)

    def when_room(self, action: Callable[[], None]) -> None:
        """Have a request carried out again when there is an extent for it.

        It is not answered before, and no other request of the export is begun.
        """
        self.waiting += 1
        steps = self._guarded(_once(action))
        shared = self._shared
        shared.room.wait(self.export, partial(shared.jobs.add, steps, None, True))

    def _guarded(self, steps: Steps) -> Steps:
        """Run a job's steps as long as the client is there; its replies go out at the end."""
        while not self.closed:
            if self._client.queued > _MAX_QUEUED:
                self._parked.append(steps)
                return
            try:
                needs = next(steps)
            except StopIteration:
                self.answered()
                return
            except Fenced as error:
                self.fenced(error)
                return
            except Exception as error:
                self._client.failed(error)
                return
            yield needs

    def answered(self) -> None:
        """Send the reply to a request that had to wait, and go on reading."""
        was_full = self.full
        self.waiting -= 1
        self._client.guard(self._go_on if was_full else self.send)

    def _go_on(self) -> None:
        self.send()
        if not self._client.blocked:
            self.process()


def _once(action: Callable[[], None]) -> Steps:
    """Do something as the only step of a job."""
    action()
    yield from ()
