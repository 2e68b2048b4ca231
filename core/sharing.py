"""Under which lock master a store is shared: no one writes to it under another one, or alone.

File locks end at the host. So the superblock names the lock master that all who write have to
ask; the first session under it puts it there (*claims* the store) before it writes anything else.

Two sessions under two lock masters may claim at once. Neither can lock the other out, so time
decides: who claims writes its UUID to block 0 within `DECIDED_WITHIN` of having read that there is
none, waits until every such write that was decided on before has landed or never will, and reads
again. Whose UUID is there then is the only one who can find its own: whoever reads from now on
finds it, and whoever decided before has been overwritten, or would have overwritten it. Only then
the claim is called *settled*, and only a settled claim lets a session in that has not waited.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final
from uuid import UUID

from core.blockstore import Blockstore, refuse_others
from core.errors import InUse, IoFailed, ParallaxError
from core.format import NO_LOCK_MASTER, Superblock
from core.lock_timing import DECIDED_WITHIN, now
from core.locks import Locks
from core.mkfs import write_superblock

PATIENCE: Final = 60.0
"""Seconds to wait for others who claim the same store; a claim takes six."""
_TRIES: Final = 10
"""How often a claim is decided on anew because this host was too slow."""


def share(store: Blockstore, locks: Locks) -> None:
    """Have a store that is open for writing shared under the session's lock master.

    Does nothing under one that has no name. To be called when the session is known to its
    lock master: who ends the sharing looks for sessions after it has unsettled the claim, and
    this looks at the claim after there is a session, so one of the two sees the other.

    Raises:
        InUse: it is shared under another lock master, or was claimed for it at this moment.
        IoFailed, ReadOnly, Fenced: it cannot be written.
    """
    store.refresh()
    refuse_others(store.sb, locks, store.device.name)
    if not locks.master or store.sb.settled:
        return
    grant = locks.acquire("registry", wait=PATIENCE)
    try:
        _claim(store, locks)
    finally:
        grant.release()


def _claim(store: Blockstore, locks: Locks) -> None:
    """Name the lock master in the superblock; to be called with `registry`."""
    mine = _uuid(locks)
    claim = _decide(store, locks)
    if claim is not None:
        # Block 0 alone: the copy stays what it is, whole, should the power fail in this write.
        store.device.pwritev(0, [claim])
        store.device.flush()
        time.sleep(locks.settling)
    elif not store.sb.settled:  # whoever claimed it did not wait to the end
        time.sleep(locks.settling)
    store.refresh()
    refuse_others(store.sb, locks, store.device.name)
    if store.sb.lock_master != mine:
        raise InUse("the claim of the store was overtaken", "try again")
    if not store.sb.settled:
        _write(store, store.sb.under(mine, settled=True))


def _decide(store: Blockstore, locks: Locks) -> bytes | None:
    """Return block 0 with the claim, as of a moment ago; None if the store has it already."""
    mine = _uuid(locks)
    for _ in range(_TRIES):
        began = now()
        store.refresh()
        refuse_others(store.sb, locks, store.device.name)
        if store.sb.lock_master == mine:
            return None
        claim = store.sb.under(mine).pack()
        if now() - began <= DECIDED_WITHIN:
            return claim
    raise InUse("reading the superblock took too long to claim the store", "try again")


def unshare(store: Blockstore) -> None:
    """End the sharing of a store; nobody else may have it open."""
    _write(store, store.sb.under(NO_LOCK_MASTER))


def unshare_under(store: Blockstore, locks: Locks) -> None:
    """End the sharing under a lock master that answers.

    The claim is unsettled first. A session that comes in the meantime waits for `registry`; one
    that came before is seen.

    Args:
        store: open, without locks.
        locks: a session with the lock master that the store names.

    Raises:
        InUse: somebody has the store open; it is as before.
    """
    grant = locks.acquire("registry", wait=PATIENCE)
    try:
        refuse_users(locks)
        store.refresh()
        shared = store.sb
        if shared.lock_master != _uuid(locks):
            raise InUse("the store is shared under another lock master by now", "look again")
        _write(store, shared.under(shared.lock_master))
        try:
            refuse_users(locks)
        except ParallaxError:
            _write(store, store.sb.under(shared.lock_master, shared.settled))
            raise
        unshare(store)
    finally:
        grant.release()


def refuse_users(locks: Locks) -> None:
    """Refuse to go on while anyone has the store open.

    Raises:
        InUse: somebody has; the message says who.
    """
    users = [held.who for held in locks.holdings() if held.name.startswith("session/")]
    if users:
        names = ", ".join(sorted({str(who) for who in users}))
        raise InUse(f"the store is in use by {names}", "end that first")


def _write(store: Blockstore, sb: Superblock) -> None:
    write_superblock(store.device, sb)
    store.sb = replace(sb)


def _uuid(locks: Locks) -> bytes:
    """Return the UUID of the lock master.

    Raises:
        IoFailed: what it says is none.
    """
    try:
        return UUID(hex=locks.master).bytes
    except ValueError as error:
        raise IoFailed("the lock master does not say who it is", "restart it") from error
