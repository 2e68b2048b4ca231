"""A test that fails says where large things differ; it does not look for all differences."""

from __future__ import annotations

import pytest
from support.stores import noise

LARGE = noise(1 << 20, "large")
OTHERS = {
    "in the middle": (LARGE[:70_000] + b"%" + LARGE[70_001:], "first at 70000: 37 and "),
    "longer": (LARGE + b"x", "first at 1048576: 120 and None"),
    "empty": (b"", r"first at 0: None and \d+"),
    "nothing": (None, "assert None == "),
}


@pytest.mark.parametrize("how", OTHERS)
def test_where_large_things_differ(how: str) -> None:
    other, told = OTHERS[how]
    with pytest.raises(AssertionError, match=told) as caught:
        assert other == LARGE
    assert len(str(caught.value)) < 1000
