"""What would be lost, in the words of the questions that ask before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.format import BLOCK_SHIFT
from core.text import human_size

if TYPE_CHECKING:
    from core.blockstore import Blockstore
    from core.format import VdiRecord


def unkept(store: Blockstore, record: VdiRecord) -> str:
    """Say what of a VDI no snapshot has; empty for nothing.

    Raises:
        IoFailed: its snapshots cannot be read.
    """
    from core.finding import is_kept

    if record.own:
        since = "since its newest snapshot" if record.snapshots else "in it"
        return f"the {human_size(record.own << BLOCK_SHIFT)} written {since}"
    return "" if is_kept(store, record) else "contents that no snapshot has"
