"""Telling older programs, in the superblock, that a store has something they do not know."""

from __future__ import annotations

from dataclasses import replace

from core.blockstore import Blockstore
from core.errors import ParallaxError
from core.mkfs import write_superblock


def enable(store: Blockstore, incompat: int) -> None:
    """Note in the superblock that a store uses some incompatible features.

    Durable when it returns, so before anything that an older program would misread. What
    is noted already costs nothing. Two sessions must not do it at once.

    Raises:
        ReadOnly: the store is open for reading.
        IoFailed: the superblock could not be written; the store takes no more writes.
    """
    store.allocator  # noqa: B018  # refuses a store open for reading
    store.check_writable()
    old = store.sb
    if old.incompat & incompat == incompat:
        return
    new = replace(old, incompat=old.incompat | incompat, sequence=old.sequence + 1)
    try:
        store.enroll()
        write_superblock(store.device, new)
    except ParallaxError as error:
        store.fail(error)
        raise
    store.sb = new
