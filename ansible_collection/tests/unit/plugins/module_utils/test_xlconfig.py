# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""One disk of an xl configuration, on every Python that edits it."""

from __future__ import annotations

import pytest

from ansible_collections.parallax.storage.plugins.module_utils.xlconfig import Refused, edited

ENTRY = "format=raw,vdev=xvda,access=rw,script=block-plx,target=nbd+unix:///vm?socket=/run/x"
OTHER = "phy:/dev/a,xvdb,w"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"disk = [ '{ENTRY}' ]\n"),
        ("memory = 1\n", f"memory = 1\ndisk = [ '{ENTRY}' ]\n"),
        (f"disk = [ '{OTHER}' ]\n", f"disk = [ '{OTHER}', '{ENTRY}' ]\n"),
        ('disk = ["tap:parallax:0,xvda,w,0"] # x\r\n', f'disk = ["{ENTRY}"] # x\r\n'),
    ],
)
def test_edits(before, after):
    assert edited(before, "xvda", ENTRY) == after
    assert edited(after, "xvda", ENTRY) == after
    gone = edited(after, "xvda", None)
    assert ENTRY not in gone
    assert edited(gone, "xvda", None) == gone


@pytest.mark.parametrize(
    "text", ["import os\n", "disk = [ 'a' % b ]\n", "disk = [\n", "disk = []\ndisk = []\n"]
)
def test_what_xl_could_not_read(text):
    with pytest.raises(Refused):
        edited(text, "xvda", ENTRY)
