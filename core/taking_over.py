"""Getting a VDI from whoever had it before, cleanly or not."""

from __future__ import annotations

from core.errors import BadRequest, Corrupt, Fenced, InUse, VdiOpen
from core.format import VdiRecord
from core.locks import Grant
from core.parts import Opener
from core.vdi import NOBODY, Vdi


def acquire(session: Opener, record: VdiRecord, shared: bool = False) -> Grant:
    """Get the right to write a VDI, or to share with others that nobody writes it.

    Args:
        session: this session.
        record: the VDI as it is on disk.
        shared: only keep others from writing it.

    Raises:
        InUse: another session has it; the message says who and where.
        Corrupt: no lock master can have given the token that its record names.
    """
    locks = session.locks
    name = f"vdi/{record.id}"
    try:
        return locks.acquire(name, record.token, shared=shared)
    except Fenced:
        raise
    except BadRequest as error:  # a floor that no lock master can have come to
        slot = session.store.sb.vdi_slot(record.id, record.sequence % 2)
        raise Corrupt(f"its fencing token is none: {error.message}", slot) from error
    except InUse as error:
        held = [holding for holding in locks.holdings() if holding.name == name]
        if not locks.shared or not held:
            raise
        who = ", ".join(str(holding.who) for holding in held)
        verb = "read" if held[0].shared else "open"
        hint = "take a snapshot and read that" if shared else "'plxsh lock list' shows who has what"
        kind = InUse if held[0].shared else VdiOpen
        raise kind(f"VDI {record.name!r} is {verb} on {who}", hint) from error


def take_over(session: Opener, record: VdiRecord, grant: Grant) -> Vdi:
    """Return a VDI that is this session's now, as of its last commit.

    Where there are others its record is read again, under the grant: whoever had it before has
    written its last one. If
    that holder did not give it up cleanly and may still be alive, one of its writes may be on
    its way, to a block that it owned. So the tree is disowned: all that is written goes to
    fresh blocks, and none of them is one the old holder could know.

    Args:
        session: this session.
        record: the VDI as it was on disk a moment ago.
        grant: the right to write it.

    Raises:
        NotFound: it was deleted in the meantime.
    """
    store, locks = session.store, session.locks
    if not locks.shared:
        return Vdi(store, record, grant, session.make_room)
    record = session.current(record)

    def announce(vdi: Vdi) -> None:
        """Say in its record that this session may be writing in place."""
        if vdi.record.session != store.session:
            vdi.amend()
            session.commit([vdi])

    vdi = Vdi(store, record, grant, session.make_room, announce)
    unclean = record.session not in (NOBODY, store.session)
    if unclean and locks.suspect(grant.name):
        vdi.map.disown()
    return vdi
