"""Make the stores that pin the format down, byte for byte the same on every run.

`example` is the tiny store whose blocks `docs/format.md` explains; `fixture` has one of
everything the format knows. Run as a script, it writes the excerpts in the document anew
and, for a format version that has none yet, the fixture beside this file:

    python tests/format_fixtures/make.py

A fixture that is committed is never made again: it stands for stores that exist.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from core import mkfs, snaplog
from core.format import BLOCK, DELETED, MAX_VDI_SIZE, VERSION
from core.image import Image
from core.session import Session

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "format.md"
STORE = HERE / f"version{VERSION}-stamps.store.xz"
CONTENTS = HERE / f"version{VERSION}-stamps.json"

_EXCERPT = re.compile(r"(```text block-(\d+)\n)(.*?)(```)", re.DOTALL)
_START_NS = 1_700_000_000_000_000_000


@contextmanager
def same_every_time() -> Iterator[None]:
    """Replace clock and random UUIDs by ones that count."""
    second = 1_000_000_000
    with (
        mock.patch.object(time, "time_ns", side_effect=count(_START_NS + second, second)),
        mock.patch.object(uuid, "uuid4", side_effect=(_same(n) for n in count(0x11))),
    ):
        yield


def _same(byte: int) -> uuid.UUID:
    return uuid.UUID(bytes=bytes([byte]) * 16)


def example(path: str) -> None:
    """Make the store of the document: one VDI, two blocks of data, one snapshot."""
    with same_every_time():
        mkfs.create(path, 64 * BLOCK, 6)
        with Session.open(path) as session:
            record = session.create("demo", 3 * BLOCK)
            with session.opened(record) as vdi:
                vdi.write(0, b"A" * 2 * BLOCK)
            session.snapshot(record, "first")
            with session.opened(record) as vdi:
                vdi.write(BLOCK, b"B" * BLOCK)


def fixture(path: str) -> None:
    """Make a store with one of everything: see the JSON beside it for what it holds."""
    with same_every_time():
        mkfs.create(path, 64 * BLOCK, 6)
        with Session.open(path) as session:
            base = session.create("base", 40 * BLOCK)
            with session.opened(base) as vdi:
                vdi.write(0, _text("base", 12 * BLOCK))
            for number in range(30):  # more than a page of the log
                with session.opened(base) as vdi:
                    vdi.write(number % 8 * BLOCK, _text(f"change {number}", 100))
                    vdi.snapshot(f"step-{number}" if number % 3 else "")
            session.delete_snapshot(session.find_snapshot("base@step-4"))
            session.delete_snapshot(session.find_snapshot("base@step-28"))

            clone = session.create("größe-日本", parent=session.find_snapshot("base@step-7"))
            with session.opened(clone) as vdi:
                vdi.write(5000, _text("clone", 10_000))
                vdi.trim(0, 3 * BLOCK)
                vdi.snapshot("of the clone")
            grandchild = session.create(
                "grandchild", 3 << 20, session.find_snapshot("größe-日本@of the clone")
            )
            session.rename(grandchild, "renamed")

            odd = session.create("odd", 12_345)
            with session.opened(odd) as vdi:
                vdi.write(0, _text("odd", 12_345))
                vdi.snapshot("before")
                vdi.write(1, b"\xff" * 12_000)
            session.rollback(odd, session.find_snapshot("odd@before"))
            session.resize(odd, 9_999, force=True)

            huge = session.create("huge", MAX_VDI_SIZE)
            with session.opened(huge) as vdi:
                for offset in (0, 1 << 40, MAX_VDI_SIZE - 700):
                    vdi.write(offset, _text("huge", 700))
                vdi.snapshot()

            session.create("empty", 0)
            gone = session.create("gone", BLOCK)
            with session.opened(gone) as vdi:
                vdi.write(0, _text("gone", BLOCK))
                vdi.snapshot("gone too")
            session.delete(session.registry.find("gone"), snapshots=True)


def _text(seed: str, length: int) -> bytes:
    """Bytes that compress well and differ from block to block."""
    lines = b"".join(b"%s line %d\n" % (seed.encode(), n) for n in range(length // 8 + 1))
    return lines[:length]


def describe(session: Session) -> dict[str, Any]:
    """Return all that a reader can see of a store, in a form that JSON can hold."""
    return {
        "vdis": [
            {
                "id": record.id,
                "name": record.name,
                "uuid": record.uuid.hex(),
                "size": record.size,
                "mapped": record.mapped,
                "own": record.own,
                "created_ns": record.created_ns,
                "modified_ns": record.modified_ns,
                "parent": [record.parent_vdi, record.parent_block, record.parent_offset],
                "contents": _digest(session.live_image(record)),
                "snapshots": [
                    {
                        "id": str(snapshot.id),
                        "label": snapshot.label,
                        "time_ns": snapshot.time_ns,
                        "size": snapshot.size,
                        "mapped": snapshot.mapped,
                        "own": snapshot.own,
                        "contents": _digest(session.image(snapshot)),
                    }
                    for snapshot in session.snapshots(record)
                ],
                "log": len(list(snaplog.history(session.store, record))),
            }
            for record in session.registry.vdis()
        ],
        "deleted": [record.name for record in session.registry.vdis(DELETED)],
    }


def _digest(image: Image) -> str:
    """Return a hash of the bytes that are stored, and of where."""
    digest = hashlib.sha256()
    for extent in image.extents(0, image.size):
        digest.update(repr(extent).encode())
        if extent.data:
            digest.update(image.read(extent.offset, extent.length))
    return digest.hexdigest()


def hexdump(block: bytes) -> str:
    """Return the lines of a block that are not all zeros; `*` stands for the others."""
    lines: list[str] = []
    for at in range(0, len(block), 16):
        row = block[at : at + 16]
        if any(row):
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            lines.append(f"{at:04x}  {row[:8].hex(' ')}  {row[8:].hex(' ')}  |{text}|")
        elif lines[-1:] != ["*"]:
            lines.append("*")
    return "\n".join(lines) + "\n"


def excerpts(document: str) -> dict[int, str]:
    """Return the hexdumps of a document by block number."""
    return {int(block): dump for _, block, dump, _ in _EXCERPT.findall(document)}


def _renew(document: str, store: bytes) -> str:
    """Return the document with the excerpts that `store` really has."""

    def dump(match: re.Match[str]) -> str:
        at = int(match[2]) * BLOCK
        return match[1] + hexdump(store[at : at + BLOCK]) + match[4]

    return _EXCERPT.sub(dump, document)


def main() -> None:
    """Write what is missing or out of date."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store")
        example(str(path))
        if DOCUMENT.exists():
            DOCUMENT.write_text(_renew(DOCUMENT.read_text(), path.read_bytes()))
        path.unlink()
        if STORE.exists():
            return
        fixture(str(path))
        STORE.write_bytes(lzma.compress(path.read_bytes(), preset=9))
        with Session.open(str(path), "shared") as session:
            contents = json.dumps(describe(session), indent=1, ensure_ascii=False)
        CONTENTS.write_text(contents + "\n")


if __name__ == "__main__":
    main()
