"""Any sparse image that is filled in, over any earlier contents, comes out again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from support.stores import noise, small_store

from core import source as sources
from core import transfer
from core.check import check
from core.format import BLOCK
from core.session import Session

LIMIT = 60 * BLOCK

# Ranges of noise or of zeros that are written, in a file that is otherwise holes.
parts = st.lists(
    st.tuples(
        st.integers(0, LIMIT),
        st.integers(1, 9 * BLOCK),
        st.sampled_from(["noise", "zeros"]),
    ),
    max_size=5,
)


def write_image(path: Path, size: int, ranges: list[tuple[int, int, str]]) -> bytes:
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, length, kind in ranges:
            length = min(length, size - offset)
            if length > 0:
                file.seek(offset)
                file.write(noise(length, offset) if kind == "noise" else bytes(length))
    return path.read_bytes()


@given(
    images=st.lists(st.tuples(st.integers(1, LIMIT), parts), min_size=1, max_size=3),
    fixed=st.booleans(),
    chunk=st.sampled_from([BLOCK, 3 * BLOCK, 16 * BLOCK]),
    small_hole=st.sampled_from([0, 2 * BLOCK]),
    commit_every=st.sampled_from([2 * BLOCK, LIMIT]),
)
def test_what_goes_in_comes_out(
    images: list[tuple[int, list[tuple[int, int, str]]]],
    fixed: bool,
    chunk: int,
    small_hole: int,
    commit_every: int,
) -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        patch.object(sources, "CHUNK", chunk),
        patch.object(transfer, "CHUNK", chunk),
        patch.object(sources, "_SMALL_HOLE", small_hole),
        patch.object(transfer, "COMMIT_EVERY", commit_every),
        patch.object(transfer, "_BEHIND", chunk),
    ):
        folder = Path(name)
        store = small_store(folder)
        with Session.open(store) as session:
            record = session.create("a", LIMIT if fixed else 0)
            for number, (size, ranges) in enumerate(images):
                image = folder / "image"
                expected = write_image(image, min(size, record.size or size), ranges)
                with session.opened(record) as vdi:
                    transfer.fill(vdi, session, str(image))
                    expected = expected.ljust(vdi.size, b"\0")
                record = session.registry.find("a")
                target = folder / f"out{number}"
                transfer.export(session.live_image(record), str(target))
                assert target.read_bytes() == expected
                transfer.validate(session.live_image(record), str(target))
        report = check(store)
        assert not report.damaged
        assert not report.findings
        assert report.unreachable == 0
