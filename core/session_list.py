"""Sessions that have not ended: who may have left slots that are not twins.

A session puts itself on the list, durably, before it writes the first slot, and takes itself
off when it has tidied up: when both slots of all that it wrote say the same (`core.tidying`). So
in a store on whose list there is nobody every pair of slots are twins. One slot of such a pair
may rot, be lost, or be what it was long ago: the other one is right, and a check sees the
difference. As long as there is somebody on the list, a slot may also be what a crash has left.

Where several sessions share a store the list is changed under the lock `registry`.
"""

from __future__ import annotations

from dataclasses import replace

from core.device import BlockDevice
from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    MAX_LISTED,
    SESSIONS_SLOT,
    SessionList,
    Superblock,
)
from core.slots import Pair


def read_sessions(device: BlockDevice, sb: Superblock) -> Pair[SessionList]:
    """Return both slots of the list."""
    raw = b"".join(device.pread(sb.sessions_slot(slot) << BLOCK_SHIFT, BLOCK) for slot in (0, 1))
    return Pair.read(SESSIONS_SLOT, raw, lambda block: SessionList.unpack(block, sb.uuid))


def listed(device: BlockDevice, sb: Superblock) -> SessionList:
    """Return who is on the list; `more` where it cannot be known.

    A store without stamps has no list: whatever is found there, a crash may have left it.
    """
    if not sb.stamped:
        return SessionList(more=True)
    pair = read_sessions(device, sb)
    current = pair.current or SessionList(0)
    return replace(current, more=True) if pair.doubtful or not current.sequence else current


def is_quiet(device: BlockDevice, sb: Superblock, but: bytes = b"") -> bool:
    """Say whether no session can have been cut off: all pairs of slots are twins.

    Args:
        device, sb: the store.
        but: a session that has not written yet to what is looked at.
    """
    found = listed(device, sb)
    return not found.more and {*found.sessions} <= {but}


def enroll(device: BlockDevice, sb: Superblock, session: bytes) -> bool:
    """Put a session on the list, durably.

    Returns:
        Whether there was nobody else on it.

    Raises:
        NoSpace, IoFailed, Fenced: it could not be written.
    """
    old = listed(device, sb)
    room = len(old.sessions) < MAX_LISTED
    sessions = (*old.sessions, session) if room else old.sessions
    more = old.more or not room
    _write(device, sb, SessionList(old.sequence + 1, sessions, more))
    return not old.more and not old.sessions


def withdraw(device: BlockDevice, sb: Superblock, session: bytes, all_others: bool) -> None:
    """Take a session off the list, after all that it wrote is tidy and durable.

    Args:
        device, sb: the store.
        session: which.
        all_others: those that died, too: what they left has been tidied up.

    Raises:
        NoSpace, IoFailed, Fenced: it could not be written: it stays on the list, which does no
            harm.
    """
    old = listed(device, sb)
    sessions = () if all_others else tuple(s for s in old.sessions if s != session)
    _write(device, sb, SessionList(old.sequence + 1, sessions, old.more and not all_others))


def _write(device: BlockDevice, sb: Superblock, new: SessionList) -> None:
    block = sb.sessions_slot(new.sequence % 2)
    device.pwritev(block << BLOCK_SHIFT, [new.pack(sb.uuid)])
    device.flush()
