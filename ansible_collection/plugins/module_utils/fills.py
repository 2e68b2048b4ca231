# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""What a VDI was filled with, told by labels of snapshots.

A label hangs on contents that never change. So `sha256:...` on a snapshot, taken right after a
fill, is true for ever, whoever writes to the VDI later; whether the VDI still has these contents
is a comparison of the two. Nothing is kept outside of the store.

Before a fill a snapshot labelled `filling:sha256:...` keeps what was there before. It goes away
when the fill is complete. One that is found tells of a fill that was interrupted, and that
filling again loses nothing.
"""

from __future__ import annotations

import os
import re

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    PlxshError,
    delete_snapshot,
    snapshot_id,
    snapshots_of,
)

_FILLING = "filling:"
_MARK = re.compile(r"(filling:)?sha256:[0-9a-f]{64}")
_QCOW2 = b"QFI\xfb"


def is_mark(label):
    """Say whether a label is one of those that fills leave."""
    return label is not None and _MARK.fullmatch(label) is not None


class Marks:
    """What the snapshots of a VDI tell of its fills.

    Args:
        snapshots: newest first.
    """

    def __init__(self, snapshots=()):
        self.snapshots = list(snapshots)
        marks = [snap for snap in self.snapshots if is_mark(snap["label"])]
        self.begun = [snap for snap in marks if snap["label"].startswith(_FILLING)]
        newest = marks[0] if marks else None
        self.interrupted = newest is not None and newest in self.begun
        self.done = newest if newest is not None and not self.interrupted else None

    @property
    def checksum(self):
        """The checksum of the image that the VDI was filled with last, None if unknown."""
        return self.done["label"] if self.done else None


def marks_of(plxsh, vdi):
    """Return the marks of a VDI; raises PlxshError."""
    return Marks(snapshots_of(plxsh, vdi))


def written_since(plxsh, vdi, marks):
    """Say whether a VDI has other contents than its last fill left there.

    Args:
        vdi: what plxsh shows of it.
        marks: with a fill that is done.

    Returns:
        None if that cannot be told because the VDI is in use.
    """
    if vdi["served_by"] and vdi["clients"]:
        return None  # nor after waiting
    # What is its own tells nothing: a rollback and a takeover make it 0, whatever it holds.
    filled = f"{vdi['id']}@{snapshot_id(marks.done)}"
    try:
        return bool(plxsh.ask("snap", "diff", filled, str(vdi["id"]))["changes"])
    except PlxshError as error:
        if error.code == "in_use":
            return None
        raise


def fill(plxsh, vdi, source, image_format, checksum, measured):
    """Fill a VDI in such an order that a kill at any moment loses nothing; raises PlxshError.

    Args:
        vdi: its id.
        source: the image.
        image_format: or None to have it recognised.
        checksum: of the image, with its `sha256:`.
        measured: the `identity` it had before that was computed.
    """
    options = ["--format", image_format] if image_format else []
    words = ["vdi", "fill", *options, "--", vdi, source]
    plxsh.ask("-n", *words)  # what is refused leaves no mark
    begun = None
    if not marks_of(plxsh, vdi).interrupted:
        begun = plxsh.change("snap", "create", vdi, "--label", _FILLING + checksum)["snapshot"]
    try:
        plxsh.change_surely(*words)
    except PlxshError as error:
        if begun is not None and _is_untouched(plxsh, vdi, begun, error):
            delete_snapshot(plxsh, vdi, begun)
        raise
    if not _is_still(source, measured):
        raise PlxshError(
            "changed", f"{source} was changed while it was read", "run again when it is complete"
        )
    plxsh.change("snap", "create", vdi, "--label", checksum)
    forget_begun(plxsh, vdi, marks_of(plxsh, vdi))


def _is_untouched(plxsh, vdi, begun, error):
    """Say whether a fill that failed has written nothing: then its mark would be a lie."""
    if error.code == "in_use":
        return True
    try:
        found = plxsh.ask("snap", "diff", f"{vdi}@{snapshot_id(begun)}", vdi)
    except PlxshError:
        return False
    return not found["changes"]


def _is_still(source, measured):
    try:
        return identity(source) == measured
    except OSError:
        return False


def forget_begun(plxsh, vdi, marks):
    """Delete the marks of fills that were begun, when a later one is done; raises PlxshError."""
    for snapshot in marks.begun:
        delete_snapshot(plxsh, vdi, snapshot)


def image_size(source, image_format):
    """Return the size of the disk in an image, None if only qemu-img could tell."""
    with open(source, "rb") as file:
        header = file.read(32)
        end = file.seek(0, os.SEEK_END)
    if image_format in (None, "qcow2") and header[:4] == _QCOW2:
        return int.from_bytes(header[24:32], "big")
    return end if image_format in (None, "raw") else None


def identity(path):
    """Return what becomes another when a file is replaced or written to."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
