"""`plxsh store unshare`: who is asked whether anybody still uses the store."""

from __future__ import annotations

import os
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from core.blockstore import Blockstore
from core.direct import open_device
from core.errors import IoFailed
from core.sharing import refuse_users, unshare, unshare_under
from core.text import uuid_text
from plxsh.context import Settings

if TYPE_CHECKING:
    from core.lock_connection import LockConnection


def end_sharing(settings: Settings) -> tuple[str, bytes]:
    """End the sharing of the store, after a question; with --dry-run say what would be.

    Returns:
        What was done, and the UUID of the lock master; nothing when there was none.

    Raises:
        InUse: somebody has the store open, as far as that can be known.
        Interrupted, BadRequest: it was not confirmed.
        Others: as `Blockstore.open`.
    """
    with closing(settings.blockstore()) as opened:
        master = opened.sb.lock_master
    if not any(master):
        return f"{settings.store}: no lock master is noted in it", b""
    locks = _asked(settings, master)
    try:
        _confirm(settings, master, locks)
        # On this host nobody opens it meanwhile, with or without a lock master.
        device = open_device(settings.store, not settings.dry_run, "exclusive", settings.caching)
        with closing(Blockstore(device)) as store:
            if not settings.dry_run and locks is not None:
                unshare_under(store, locks)
            elif not settings.dry_run:
                unshare(store)
    finally:
        if locks is not None:
            locks.close()
    return f"{settings.store} from the lock master {uuid_text(master)}", master


def _asked(settings: Settings, master: bytes) -> LockConnection | None:
    """Begin a session with the lock master of the store; None if it cannot be asked."""
    if not settings.lock_master:
        return None
    with suppress(IoFailed):
        locks = settings.connect()
        if locks.master == master.hex():
            return locks
        locks.close()
    return None


def _confirm(settings: Settings, master: bytes, locks: LockConnection | None) -> None:
    """Ask; where nobody knows who uses the store, for a word to be typed."""
    what = f"ending the sharing of {settings.store} under the lock master {uuid_text(master)}"
    if locks is not None:
        refuse_users(locks)
        settings.confirm(f"{what}: hosts have to name a lock master again before they share it")
        return
    if settings.lock_master:
        settings.warn([f"the lock master at {settings.lock_master} is not that one, or not there"])
    settings.confirm(
        f"{what}, which is not asked: if any host still has the store open, data is lost",
        os.path.basename(os.path.abspath(settings.store)),
    )
