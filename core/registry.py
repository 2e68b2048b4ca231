"""Names and ids to VDI records: the table of VDIs in the system extent.

VDI number N has two blocks at a fixed place, written alternately, so creating, listing
and committing need no index. The table ends at the first stretch of `_WINDOW` blocks
that were never written. A record that is damaged in both slots, or says what cannot be, is
reported by itself; it never hides the others.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from core.blockstore import Blockstore
from core.errors import BadRequest, Corrupt, NotFound
from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    DELETED,
    FREE,
    LIVE,
    MAX_LABEL,
    MAX_NAME,
    VDI_SLOT,
    VdiRecord,
    open_slot,
)
from core.session_list import is_quiet
from core.slots import Pair
from core.soundness import record_problem

_WINDOW: Final = 256
_PLACE: Final = struct.Struct("<12x16sQI")
_NEVER: Final = bytes(2 * BLOCK)
_RETRIES: Final = 3
_REPAIR: Final = "run 'plxsh store check --repair'"
_ID_DIGITS: Final = 9
_LIST: Final = "'plxsh vdi list' shows those there are"
_LIST_DELETED: Final = "'plxsh vdi list --deleted' shows those that are"


class Registry:
    """The VDI table of an open store."""

    def __init__(self, store: Blockstore) -> None:
        """Read nothing yet."""
        self._store = store

    def scan(self) -> Iterator[tuple[int, VdiRecord | Corrupt]]:
        """Yield (id, record or what is wrong with it) for every VDI that ever was."""
        for number, raw in self._slots():
            record = self._parse(number, raw)
            if isinstance(record, Corrupt):
                record = self._read(number)
            if record is not None:
                yield number, record

    def pairs(self) -> Iterator[tuple[int, Pair[VdiRecord]]]:
        """Yield (id, both slots) for every place of the table in which anything was written."""
        for number, raw in self._slots():
            if raw != _NEVER:
                yield number, self._pair(number, raw)

    def _slots(self) -> Iterator[tuple[int, bytes]]:
        """Yield (id, both slots as they are) up to the end of what is in use of the table."""
        sb = self._store.sb
        for first in range(0, sb.max_vdis, _WINDOW // 2):
            count = min(_WINDOW // 2, sb.max_vdis - first)
            raw = self._store.device.pread(sb.vdi_slot(first, 0) << BLOCK_SHIFT, 2 * count * BLOCK)
            if raw == bytes(len(raw)):
                return
            for place in range(count):
                yield first + place, raw[2 * place * BLOCK : 2 * (place + 1) * BLOCK]

    def _parse(self, number: int, raw: bytes) -> VdiRecord | Corrupt | None:
        """Return the current record of a pair of slots, None when no VDI was made there."""
        if raw == _NEVER:
            return None
        record = self._newer(number, raw)
        return self._sound(record or self._judge(number, self._pair(number, raw)))

    def _sound(self, found: VdiRecord | Corrupt | None) -> VdiRecord | Corrupt | None:
        """Return a record that can be, or what is said of one that nobody can have meant."""
        if not isinstance(found, VdiRecord):
            return found
        problem = record_problem(found, self._store.holds_payload)
        if not problem:
            return found
        return Corrupt(
            f"the record of VDI {found.id} makes no sense: {problem}",
            self._store.sb.vdi_slot(found.id, found.sequence % 2),
        )

    def _newer(self, number: int, raw: bytes) -> VdiRecord | None:
        """Return the record with the higher sequence number, None unless both are valid.

        Only that one is taken apart: this is what costs when there are many VDIs.
        """
        slots = raw[:BLOCK], raw[BLOCK:]
        sequences = []
        for slot, block in enumerate(slots):
            uuid, sequence, place = _PLACE.unpack_from(block)
            if (uuid, sequence % 2, place) != (self._store.sb.uuid, slot, number):
                return None
            sequences.append(sequence)
        newer = sequences[1] > sequences[0]
        if open_slot(VDI_SLOT, slots[1 - newer]) is None:
            return None
        return VdiRecord.unpack(slots[newer], self._store.sb.uuid, number)

    def _pair(self, number: int, raw: bytes) -> Pair[VdiRecord]:
        unpack = partial(VdiRecord.unpack, store=self._store.sb.uuid, vdi=number)
        return Pair.read(VDI_SLOT, raw, unpack)

    def _judge(self, number: int, pair: Pair[VdiRecord]) -> VdiRecord | Corrupt | None:
        """Return the record that counts where not both slots are valid."""
        store, slot, current = self._store, pair.slot, pair.current
        if pair.never_made:
            return None  # a creation that a crash cut off; a finished one fills both slots
        if slot is None or current is None:
            return Corrupt(
                f"both records of VDI {number} are damaged", store.sb.vdi_slot(number, 0), _REPAIR
            )
        own = b"" if number in store.touched else store.session
        if pair.doubtful and not is_quiet(store.device, store.sb, own):
            return Corrupt(
                f"the newest record of VDI {number} {current.name!r} may be lost: this one is"
                f" damaged, the other one is of commit {current.sequence}",
                store.sb.vdi_slot(number, 1 - slot),
                "'plxsh store check --repair' goes on with that commit",
            )
        return current

    def pair(self, number: int) -> Pair[VdiRecord]:
        """Return both slots of the record of a VDI."""
        at = self._store.sb.vdi_slot(number, 0) << BLOCK_SHIFT
        return self._pair(number, self._store.device.pread(at, 2 * BLOCK))

    def get(self, number: int) -> VdiRecord | None:
        """Return the current record of one VDI, None when there never was one.

        Raises:
            Corrupt: both slots are damaged, or the newer one may be, or what is valid makes no
                sense.
        """
        if not 0 <= number < self._store.sb.max_vdis:
            return None
        record = self._read(number)
        if isinstance(record, Corrupt):
            raise record
        return record

    def _read(self, number: int) -> VdiRecord | Corrupt | None:
        """Read one pair of slots, again if a writer may have been in the middle of it."""
        at = self._store.sb.vdi_slot(number, 0) << BLOCK_SHIFT
        record: VdiRecord | Corrupt | None = None
        for _ in range(_RETRIES):
            record = self._parse(number, self._store.device.pread(at, 2 * BLOCK))
            if not isinstance(record, Corrupt):
                break
        return record

    def vdis(self, state: int = LIVE) -> list[VdiRecord]:
        """Return the readable records in one state, by id."""
        return [r for _, r in self.scan() if isinstance(r, VdiRecord) and r.state == state]

    def find(self, reference: str) -> VdiRecord:
        """Return the VDI that an id, a name or a UUID stands for.

        Raises:
            NotFound: there is none; the hint has names that come close.
            Corrupt: it is known by id and both its slots are damaged.
        """
        if reference.isascii() and reference.isdigit():
            record = self.get(int(reference)) if len(reference) <= _ID_DIGITS else None
            if record is not None and record.state == LIVE:
                return record
            raise NotFound(f"there is no VDI {reference}", _LIST)
        records = self.vdis()
        for record in records:
            if _names(reference, record):
                return record
        close = suggest(reference, [record.name for record in records])
        raise NotFound(f"there is no VDI {reference!r}", close or _LIST)

    def find_deleted(self, reference: str) -> VdiRecord:
        """Return the deleted VDI that an id, a name or a UUID stands for.

        Raises:
            NotFound: there is none, or not any more; the hint has names that come close.
            BadRequest: several have that name, or it is that of a VDI that is not deleted.
        """
        records = self.vdis(DELETED)
        found = [record for record in records if _names(reference, record)]
        if len(found) > 1:
            ids = ", ".join(str(record.id) for record in found)
            raise BadRequest(
                f"{len(found)} deleted VDIs have the name {reference!r}: {ids}", "give the id"
            )
        if found:
            return found[0]
        for record in self.vdis():
            if _names(reference, record):
                raise BadRequest(f"VDI {record.id} {record.name!r} is not deleted", _LIST_DELETED)
        close = suggest(reference, [record.name for record in records])
        raise NotFound(
            f"there is no deleted VDI {reference!r}, or its space was collected",
            close or _LIST_DELETED,
        )

    def free_ids(self) -> Iterator[int]:
        """Yield the ids that may be given to new VDIs: a client may still know a VDI by its id.

        First those that were never given, from the lowest on; when there are none left, those
        of VDIs that are gone, the one freed the longest time ago first. Places are looked at
        as they are asked for: one that is taken by then is left out, and one that was never
        given and not used after all comes again, so that the table gets no holes.
        """
        number = self._end()
        while number < self._store.sb.max_vdis:
            if self._read(number) is None:
                yield number
            else:
                number += 1
        freed = sorted((record.modified_ns, record.id) for record in self.vdis(FREE))
        for _, number in freed:
            record = self._read(number)
            if isinstance(record, VdiRecord) and record.state == FREE:
                yield number

    def _end(self) -> int:
        """Return how many ids were ever given: the table is filled from its beginning on.

        It takes about two reads for each binary digit of that number.
        """
        most, given, step = self._store.sb.max_vdis, 0, 1

        def is_given(number: int) -> bool:
            return number < most and self._read(number) is not None

        while is_given(given + step - 1):
            given += step
            step *= 2
        while step > 1:
            step //= 2
            if is_given(given + step - 1):
                given += step
        return given

    def write(self, record: VdiRecord) -> None:
        """Write a record into the slot its sequence number names. Not yet durable."""
        sb = self._store.sb
        self._store.enroll()
        self._store.touched.add(record.id)
        block = sb.vdi_slot(record.id, record.sequence % 2)
        self._store.device.pwritev(block << BLOCK_SHIFT, [record.pack(sb.uuid, sb.stamped)])


def alike(one: VdiRecord, other: VdiRecord) -> bool:
    """Say whether two records say the same of a VDI, whoever wrote them and when."""
    written: dict[str, Any] = {
        "sequence": one.sequence,
        "token": one.token,
        "session": one.session,
        "modified_ns": one.modified_ns,
    }
    return one == replace(other, **written)


def check_name(name: str) -> None:
    """Refuse a name that no VDI may have.

    Raises:
        BadRequest: with the rule it breaks.
    """
    _check_text("name", name, MAX_NAME)
    if name.isascii() and name.isdigit():
        raise BadRequest(f"the name {name!r} would be taken for an id", "add a letter to it")
    if _uuid_bytes(name):
        raise BadRequest(f"the name {name!r} would be taken for a UUID", "take another")
    if "@" in name:
        raise BadRequest(f"the name {name!r} contains '@'", "that stands before a snapshot's label")


def is_forbidden(name: str) -> bool:
    """Say whether no VDI may have a name."""
    try:
        check_name(name)
    except BadRequest:
        return True
    return False


def check_label(label: str) -> None:
    """Refuse a label that no snapshot may have.

    Raises:
        BadRequest: with the rule it breaks.
    """
    _check_text("label", label, MAX_LABEL)
    if "@" in label:
        raise BadRequest(f"the label {label!r} contains '@'", "that stands before a label")
    block, _, offset = label.partition(".")
    if block.isdigit() and (offset.isdigit() or not offset):
        raise BadRequest(f"the label {label!r} would be taken for an id", "add a letter to it")


def _check_text(what: str, text: str, limit: int) -> None:
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadRequest(f"the {what} is not valid UTF-8", "check the terminal's locale") from error
    if not text:
        raise BadRequest(f"the {what} is empty", f"give a {what} of 1 to {limit} bytes")
    if length > limit:
        raise BadRequest(
            f"the {what} has {length} bytes", f"a {what} has at most {limit} bytes of UTF-8"
        )
    if not text.isprintable() or text != text.strip():
        raise BadRequest(
            f"the {what} {text!r} has spaces at its ends or characters that cannot be shown",
            "take them out",
        )


def _uuid_bytes(text: str) -> bytes | None:
    """Return the bytes of a UUID in its usual form, None for any other text."""
    if len(text) != 36:
        return None
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return None


def _names(reference: str, record: VdiRecord) -> bool:
    """Say whether an id, a name or a UUID is that of a VDI."""
    if reference.isascii() and reference.isdigit():
        return len(reference) <= _ID_DIGITS and int(reference) == record.id
    return record.name == reference or record.uuid == _uuid_bytes(reference)


def suggest(mistyped: str, names: Iterable[str], prefix: str = "") -> str:
    """Return a hint with the names that come close, `prefix` before each; nothing if none do."""
    from difflib import get_close_matches  # only when something went wrong

    close = [repr(prefix + name) for name in get_close_matches(mistyped, {*names}, 3, 0.5)]
    return f"did you mean {' or '.join(close)}?" if close else ""
