"""Which lock master a command works under, and the sessions with it.

One that is configured, else that of the tap which serves the store on this host, else none
but that of the process itself. Whoever needs no lock master over a socket imports nothing
that talks to one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from threading import Timer
from typing import TYPE_CHECKING, Final

from core.errors import InUse, IoFailed, ParallaxError
from core.lock_messages import TOOL
from plxsh.context import RUN_FOLDERS, run_folder, state_folders

if TYPE_CHECKING:
    from core.blockstore import Mode
    from core.lock_connection import LockConnection
    from core.lock_messages import Holding
    from core.session import Session
    from plxsh.context import Settings

_TELL_AFTER: Final = 2.0
"""Seconds without a word that nobody wonders about."""


def open_session(settings: Settings, mode: Mode) -> Session:
    """Open the store to change it, or to have its contents stand still; see `Settings.session`."""
    from core.session import Session

    if settings.lock_master:
        return join(settings, mode, settings.connect())
    try:
        return Session.open(settings.store, mode, settings.caching)
    except InUse:
        beside = beside_tap(settings)
        if beside is None:
            raise
    return Session.open(settings.store, mode, settings.caching, beside)


def join(settings: Settings, mode: Mode, locks: LockConnection) -> Session:
    """Open the store under a lock master; says what it waits for when that takes long."""
    from core.session import Session

    told = f"waiting for the lock master at {settings.lock_master}: at first it grants nothing"
    telling = Timer(_TELL_AFTER, settings.note, (told,))
    telling.daemon = True
    telling.start()
    try:
        return Session.open(settings.store, mode, settings.caching, locks)
    finally:
        telling.cancel()


def connect(
    settings: Settings, address: str, purpose: str = "", role: str = TOOL
) -> LockConnection:
    """Begin a session with a lock master for the store of the settings.

    Args:
        settings: the store, the key and the certificates.
        address: HOST:PORT or unix:PATH.
        purpose: what this process does, for people; by default the command.
        role: what it is to other sessions.

    Raises:
        InUse: it is the lock master of a tap that serves another store.
        BadRequest: the address, the key or the certificates are no such thing.
        IoFailed: it cannot be reached, or refuses.
        Others: as `Blockstore.open`.
    """
    store = settings.store_uuid()
    locks = connect_to(settings, address, store, purpose, role)
    if locks.store == store:  # that of a tap: it has no names but those of its store
        locks.close()
        locks = connect_to(settings, address, "", purpose, role)
    elif locks.store:
        locks.close()
        raise InUse(
            f"the lock master at {address} is that of a tap with another store",
            "name that of this store with --lock-master, or none",
        )
    return locks


def connect_to(
    settings: Settings, address: str, scope: str = "", purpose: str = "", role: str = TOOL
) -> LockConnection:
    """Begin a session with a lock master, whichever stores it serves; raises as `connect`."""
    from core.lock_auth import client_tls
    from core.lock_connection import LockConnection
    from plxsh.params import LOCK_MASTER, checked

    checked(LOCK_MASTER, address, "the lock master")
    return LockConnection(
        address,
        purpose or settings.purpose,
        scope=scope,
        key=_key(settings),
        tls=client_tls(settings.lock_tls) if settings.lock_tls else None,
        role=role,
    )


def _key(settings: Settings) -> Callable[[], bytes] | None:
    """Return what reads the key to show: the one that is named, else that of this host."""
    from core.lock_key import find_own_key, read_key

    if settings.lock_key:
        named = partial(read_key, os.path.abspath(settings.lock_key))
        named()  # what is wrong with it now is said as what it is
        return named
    return None if settings.lock_tls else partial(find_own_key, state_folders())


def hosted_address(store: str) -> str | None:
    """Return where the lock master of the tap is that serves a store here; None for no tap.

    Args:
        store: the store's UUID, in hexadecimal.
    """
    for folder in dict.fromkeys((run_folder(), *RUN_FOLDERS)):
        path = os.path.join(folder, f"{store}.locks")
        if os.path.exists(path):
            return f"unix:{path}"
    return None


def find(settings: Settings) -> LockConnection | None:
    """Begin a session with the lock master of the store; None while that is embedded.

    Raises:
        As `connect`.
    """
    return settings.connect() if settings.lock_master else beside_tap(settings)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of the lock master of a store.

    Args:
        where: HOST:PORT, the path of a socket, or "in the tap"; empty for one that is
            embedded.
        trouble: why it cannot be asked, empty when it can.
        holders: who holds what exclusively, by name; None when it was not told.
    """

    where: str = ""
    trouble: str = ""
    holders: Mapping[str, Holding] | None = None


def standing(settings: Settings) -> Standing:
    """Ask the lock master of a store who holds what; it may take a few seconds when it is down."""
    where = settings.lock_master
    try:
        locks = find(settings)
        if locks is None:
            return Standing()
        where = where or "in the tap"
        with closing(locks):
            held = {held.name: held for held in locks.holdings() if not held.shared}
    except ParallaxError as error:
        return Standing(where, error.message)
    return Standing(where, "", held)


def beside_tap(settings: Settings) -> LockConnection | None:
    """Begin a session with the tap that serves the store on this host; None without one."""
    store = settings.store_uuid()
    address = hosted_address(store)
    if address is None:
        return None
    try:
        locks = connect_to(settings, address)
    except IoFailed:  # what a tap that was killed left behind
        return None
    if locks.store == store:
        return locks
    locks.close()
    return None
