# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Sizes are bytes, whatever they were written as."""

from __future__ import annotations

import pytest

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import PlxshError
from ansible_collections.parallax.storage.plugins.module_utils.sizes import size


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("64KiB", 64 << 10),
        ("2G", 2 << 30),
        ("2048M", 2 << 30),
        ("1T", 1 << 40),
        ("3P", 3 << 50),
    ],
)
def test_sizes(text, bytes_):
    assert size(text) == bytes_


@pytest.mark.parametrize(
    "text",
    ["", " ", "2 G", "2GB", "-1", "1.5G", "big", "0x10", "1e6", "1_000", "4096\n", "G", "2Gi"],
)
def test_what_is_no_size(text):
    with pytest.raises(PlxshError) as caught:
        size(text)
    assert caught.value.code == "usage"
    assert repr(text) in caught.value.message
