"""The names of all exports, for clients that ask for a list.

A store may have thousands of VDIs with thousands of snapshots each, so the list is read some
records at a time, between other work, and all who wait get the same. It is never out of date:
whoever asks gets one whose reading began after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from core.errors import ParallaxError
from core.format import LIVE, VdiRecord
from core.session import Session
from core.tap.opening import NotYet
from core.tap.protocol import OPT_LIST, OPTION_REPLY, OPTION_REPLY_MAGIC, REP_SERVER, U32
from core.tap.turns import Turns
from core.text import uuid_text

MOST_SNAPSHOTS: Final = 1000
"""Snapshots that are listed; all can be opened."""
_RECORDS: Final = 128
"""Records that are read at a time, of VDIs or of snapshots."""
_PIECE: Final = 64 << 10
"""Bytes of replies that are sent at a time."""


def told_of(record: VdiRecord) -> str:
    """Return what the list of exports says of a VDI; the block script of Xen reads it."""
    return f"VDI {record.id}, UUID {uuid_text(record.uuid)}, snapshots: {record.snapshots}"


class Listing:
    """The list.

    Args:
        session: whose VDIs they are.
        turns: when it is read.

    Attributes:
        begun: how many times its reading was begun; see `replies`.
    """

    def __init__(self, session: Session, turns: Turns) -> None:
        """Read nothing yet."""
        self._session = session
        self._turns = turns
        self._replies: list[bytes] = []
        self._made = 0
        self._waiting: list[Callable[[], None]] = []
        self._steps: Iterator[None] | None = None
        self.begun = 0

    def replies(self, asked: int) -> list[bytes]:
        """Return the replies to LIST without the last one, in pieces to be sent.

        Args:
            asked: what `begun` was when the client asked.

        Raises:
            NotYet: they have to be read first.
        """
        if self._made <= asked:
            raise NotYet(self.when_ready)
        return self._replies

    def when_ready(self, told: Callable[[], None]) -> None:
        """Call `told` when there is a newer list than now."""
        self._waiting.append(told)
        if self._steps is None:
            self.begun += 1
            self._steps = self._read()
            self._turns.add(self._step)

    def _step(self) -> None:
        """Read some more."""
        assert self._steps is not None
        try:
            next(self._steps)
        except StopIteration:
            self._steps = None
            self._made = self.begun
            waiting, self._waiting = self._waiting, []
            for told in waiting:
                told()
        else:
            self._turns.add(self._step)

    def _read(self) -> Iterator[None]:
        """Put the replies together, a step at a time."""
        pieces, piece = [], bytearray()
        for entry in self._names():
            if entry is None:
                yield
                continue
            name, text = entry
            encoded = name.encode()
            payload = U32.pack(len(encoded)) + encoded + text.encode()
            piece += OPTION_REPLY.pack(OPTION_REPLY_MAGIC, OPT_LIST, REP_SERVER, len(payload))
            piece += payload
            if len(piece) >= _PIECE:
                pieces.append(bytes(piece))
                piece.clear()
        self._replies = [*pieces, bytes(piece)] if piece else pieces

    def _names(self) -> Iterator[tuple[str, str] | None]:
        """Yield (name, description) of the VDIs, then of labelled snapshots; None now and then."""
        records: list[VdiRecord] = []
        for number, (_, record) in enumerate(self._session.registry.scan(), 1):
            if isinstance(record, VdiRecord) and record.state == LIVE:
                records.append(record)
                yield record.name, told_of(record)
            if not number % _RECORDS:
                yield None
        room = MOST_SNAPSHOTS
        for record in records:
            for name, text in self._labelled(record):
                if name:
                    yield name, text
                    room -= 1
                    if not room:
                        return
                else:
                    yield None

    def _labelled(self, record: VdiRecord) -> Iterator[tuple[str, str]]:
        """Yield (name, description) of a VDI's labelled snapshots, the newest of each label.

        Nothing, twice, is yielded now and then. What a damaged log has no more is left out.
        """
        labels: set[str] = set()
        if not record.snapshots:
            return
        try:
            for number, snapshot in enumerate(self._session.snapshots(record), 1):
                if snapshot.label and snapshot.label not in labels:
                    labels.add(snapshot.label)
                    yield (
                        f"{record.name}@{snapshot.label}",
                        f"snapshot {snapshot.id} of VDI {record.id}",
                    )
                if not number % _RECORDS:
                    yield "", ""
        except ParallaxError:
            return
