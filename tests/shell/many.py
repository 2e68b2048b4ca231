"""A store with thousands of clones, its records written directly: creating takes minutes."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

from core import mkfs
from core.session import Session


def store_of_clones(path: Path, count: int) -> None:
    """Make a store with VDI 0, `base`, and `count` clones of its snapshot `base@clean`."""
    mkfs.create(str(path), 128 << 20, 6)
    with Session.open(str(path)) as session:
        base = session.create("base", 1 << 30)
        with session.opened(base) as vdi:
            vdi.write(0, b"x" * (1 << 20))
            vdi.snapshot("clean")
        clone = session.create("clone-1", 0, session.find_snapshot("base@clean"))
        for number in range(2, count + 1):
            record = replace(clone, id=number, uuid=uuid.uuid4().bytes, name=f"clone-{number}")
            for sequence in (1, 2):
                session.registry.write(replace(record, sequence=sequence))
