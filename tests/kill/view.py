"""What a store shows to those who open it: the oracle for "all there or not at all"."""

from __future__ import annotations

import hashlib
from typing import Any

from core.check import check
from core.session import Session
from core.vdi import Image

View = dict[str, Any]


def digest(image: Image) -> str:
    """Hash of all bytes of an image."""
    return hashlib.sha256(image.read(0, image.size)).hexdigest()


def view(path: str) -> View:
    """Return all that can be seen in a store, without times and UUIDs."""
    with Session.open(path, "shared") as session:
        vdis = {}
        for record in session.registry.vdis():
            snapshots = [
                (snapshot.id, snapshot.label, snapshot.size, digest(session.image(snapshot)))
                for snapshot in session.snapshots(record)
            ]
            parent = (record.parent_vdi, record.parent_block, record.parent_offset)
            contents = digest(session.live_image(record))
            vdis[record.name] = (record.id, record.size, contents, parent, snapshots)
        return {"extents": session.store.sb.extents, "vdis": vdis}


def sound(path: str) -> View:
    """Return what a store shows, after making sure that it is not damaged."""
    report = check(path)
    assert not report.damaged, [finding for finding in report.findings if finding[0] == "damage"]
    return view(path)
