"""Requests that change a VDI or make it durable: WRITE, TRIM, WRITE_ZEROES and FLUSH."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from core.errors import Fenced, NoSpace, NoSpaceYet, ParallaxError
from core.tap.exports import MAX_DIRTY, Export
from core.tap.jobs import Steps
from core.tap.protocol import (
    EINVAL,
    ENOSPC,
    ENOTSUP,
    EPERM,
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
)
from core.tap.replies import errno_of
from core.tap.shared import Shared
from core.vdi import Vdi

if TYPE_CHECKING:
    from core.tap.transmission import Transmission

_STEP: Final = 4 << 20
"""Bytes of a long request that are dealt with before others have a turn."""


class Writes:
    """Changes one connection's VDI; a snapshot's requests are refused here.

    Args:
        connection: whose requests they are.
        shared: what carries them out.
        export: what is changed.
    """

    def __init__(self, connection: Transmission, shared: Shared, export: Export) -> None:
        """Change nothing yet."""
        self._connection = connection
        self._shared = shared
        self._replies = shared.replies
        self._export = export
        self._vdi = export.vdi

    def write_many(self, writes: list[tuple[int, memoryview]], cookies: list[int]) -> None:
        """Carry out a run of writes and empty both lists."""
        vdi, replies, counts = self._vdi, self._replies, self._connection.counts
        assert vdi is not None
        counts.writes += len(writes)
        counts.bytes_written += sum([len(part) for _, part in writes])
        errors: list[ParallaxError | None]
        try:
            errors = vdi.write_many(writes)
        except ParallaxError as error:
            errors = [error] * len(writes)
        except Exception as error:
            errors = [vdi.fail(error, "writing")] * len(writes)
        for number, failure in enumerate(errors):
            if failure is None:
                replies.simple(cookies[number])
            elif isinstance(failure, NoSpaceYet):
                self._write_later(cookies[number], *writes[number], 0)
            else:
                replies.simple(cookies[number], self._connection.errno_of(failure))
        writes.clear()
        cookies.clear()
        if vdi.map.dirty > MAX_DIRTY:
            self._shared.exports.settle(self._export)

    def write(self, cookie: int, offset: int, part: memoryview, flags: int) -> None:
        """WRITE, when it has flags or is wrong."""
        if self._may_change(cookie, offset, len(part), ENOSPC):
            self._connection.counts.writes += 1
            self._connection.counts.bytes_written += len(part)
            self._write(cookie, offset, part, flags)

    def _write(self, cookie: int, offset: int, part: memoryview, flags: int) -> None:
        try:
            self._change(cookie, flags, lambda vdi: vdi.write(offset, part))
        except NoSpaceYet:
            self._write_later(cookie, offset, part, flags)

    def _write_later(self, cookie: int, offset: int, part: memoryview, flags: int) -> None:
        """Write when there is room; the buffer that the bytes are in is used again before."""
        kept = memoryview(bytes(part))
        self._connection.when_room(partial(self._write, cookie, offset, kept, flags))

    def trim(self, cookie: int, offset: int, length: int, flags: int) -> None:
        """TRIM: give a range back."""
        self._connection.counts.trims += 1
        if self._may_change(cookie, offset, length, EINVAL):
            self._trim(cookie, offset, length, flags)

    def _trim(self, cookie: int, offset: int, length: int, flags: int) -> None:
        try:
            self._change(cookie, flags, lambda vdi: vdi.trim(offset, length))
        except NoSpaceYet:
            self._connection.when_room(partial(self._trim, cookie, offset, length, flags))

    def write_zeroes(self, cookie: int, offset: int, length: int, flags: int) -> None:
        """WRITE_ZEROES: as TRIM, which is fast, unless the zeros have to take space."""
        self._connection.counts.zeroes += 1
        if not self._may_change(cookie, offset, length, ENOSPC):
            return
        if not flags & FLAG_NO_HOLE:
            self._trim(cookie, offset, length, flags)
        elif flags & FLAG_FAST_ZERO:
            self._replies.simple(cookie, ENOTSUP)
        else:
            self._allocate(cookie, offset, length, flags)

    def _allocate(self, cookie: int, offset: int, length: int, flags: int) -> None:
        self._connection.later(self._allocating(cookie, offset, length, flags))

    def _allocating(self, cookie: int, offset: int, length: int, flags: int) -> Steps:
        """Write zeros that take space, some at a time."""
        end = offset + length
        try:
            for start in range(offset, end - _STEP, _STEP):
                if not self._try(cookie, partial(Vdi.allocate_zeros, offset=start, length=_STEP)):
                    return
                offset = start + _STEP
                yield None
            self._change(cookie, flags, lambda vdi: vdi.allocate_zeros(offset, end - offset))
        except NoSpaceYet:
            rest = partial(self._allocate, cookie, offset, end - offset, flags)
            self._connection.when_room(rest)

    def _may_change(self, cookie: int, offset: int, length: int, beyond: int) -> bool:
        """Say whether a request to change a range makes sense; answer it if not.

        Args:
            cookie: the request's.
            offset: where the range begins.
            length: its bytes.
            beyond: the answer if not all of it is within the VDI.
        """
        if self._vdi is None:
            self._replies.simple(cookie, EPERM)
        elif not length:
            self._replies.simple(cookie, EINVAL)
        elif offset + length > self._vdi.size:
            self._replies.simple(cookie, beyond)
        else:
            return True
        return False

    def _change(self, cookie: int, flags: int, change: Callable[[Vdi], None]) -> None:
        """Change the VDI and answer, with FUA when the change is durable."""
        if self._try(cookie, change):
            if flags & FLAG_FUA:
                self._when_durable(cookie)
            else:
                self._replies.simple(cookie)

    def _try(self, cookie: int, change: Callable[[Vdi], None]) -> bool:
        """Change the VDI; answer only when that fails. A full store gets a second chance.

        Raises:
            NoSpaceYet: there is no answer yet, because room is on its way.
        """
        vdi, session = self._vdi, self._shared.session
        assert vdi is not None
        try:
            try:
                change(vdi)
            except NoSpaceYet:
                raise
            except NoSpace:
                if not session.make_room():
                    raise
                change(vdi)
        except NoSpaceYet:
            raise
        except ParallaxError as error:
            self._replies.simple(cookie, self._connection.errno_of(error))
            return False
        except Exception as failure:
            bug = vdi.fail(failure, "changing it")
            self._replies.simple(cookie, self._connection.errno_of(bug))
            return False
        if vdi.map.dirty > MAX_DIRTY:
            self._shared.exports.settle(self._export)
        return True

    def flush(self, cookie: int, offset: int, length: int, _flags: int) -> None:
        """FLUSH: answer when all that was answered before is durable."""
        self._connection.counts.flushes += 1
        if offset or length:  # reserved, for what a later protocol may want
            self._replies.simple(cookie, EINVAL)
        else:
            self._when_durable(cookie)

    def _when_durable(self, cookie: int) -> None:
        """Answer a request when all that was written to the VDI so far is durable."""
        if self._vdi is None:
            self._replies.simple(cookie)
            return
        self._connection.waiting += 1
        self._shared.commits.add(self._vdi, partial(self._durable, cookie))

    def _durable(self, cookie: int, error: ParallaxError | None) -> None:
        """Answer a request that waited for a commit."""
        if isinstance(error, Fenced):
            self._connection.fenced(error)
        elif not self._connection.closed:
            self._replies.simple(cookie, errno_of(error) if error else 0)
            self._connection.answered()
