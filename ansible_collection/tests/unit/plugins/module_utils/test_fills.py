# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""What the labels of snapshots tell of fills."""

from __future__ import annotations

import struct

import pytest

from ansible_collections.parallax.storage.plugins.module_utils.fills import (
    Marks,
    identity,
    image_size,
    is_mark,
)

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def marks(*labels):
    return Marks([{"label": label, "block": n, "offset": 0} for n, label in enumerate(labels)])


def test_what_is_a_mark():
    assert is_mark(ONE)
    assert is_mark("filling:" + ONE)
    for label in (None, "", "v1", "sha256:1", ONE + "1", ONE.upper(), "filling:", ONE + "\n"):
        assert not is_mark(label)


@pytest.mark.parametrize(
    ("labels", "checksum", "interrupted"),
    [
        ([], None, False),
        (["v1", None], None, False),
        ([ONE], ONE, False),
        (["v1", TWO, "v0", ONE], TWO, False),
        (["filling:" + TWO, ONE], None, True),
        ([ONE, "filling:" + ONE], ONE, False),
        (["v1", "filling:" + ONE], None, True),
    ],
)
def test_the_newest_mark_counts(labels, checksum, interrupted):
    found = marks(*labels)
    assert (found.checksum, found.interrupted) == (checksum, interrupted)


def test_all_that_was_begun_is_found():
    found = marks(TWO, "filling:" + TWO, "v1", "filling:" + ONE)
    assert [snapshot["block"] for snapshot in found.begun] == [1, 3]


def test_sizes_of_images(tmp_path):
    raw, qcow2 = tmp_path / "raw", tmp_path / "qcow2"
    raw.write_bytes(bytes(5000))
    qcow2.write_bytes(b"QFI\xfb" + bytes(20) + struct.pack(">Q", 1 << 30) + bytes(100))
    assert image_size(str(raw), None) == image_size(str(raw), "raw") == 5000
    assert image_size(str(qcow2), None) == image_size(str(qcow2), "qcow2") == 1 << 30
    assert image_size(str(qcow2), "raw") == 132
    assert image_size(str(raw), "vmdk") is None


def test_a_file_that_is_replaced_or_written_to_is_another(tmp_path):
    path, other = tmp_path / "image", tmp_path / "other"
    path.write_bytes(b"one")
    known = identity(str(path))
    assert identity(str(path)) == known
    other.write_bytes(b"two")
    other.replace(path)
    assert identity(str(path)) != known
