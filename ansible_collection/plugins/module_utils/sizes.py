# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Sizes as plxsh reads them, so that two of them are compared as bytes and never as text."""

from __future__ import annotations

import re

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import PlxshError

_SIZE = re.compile(r"([0-9]+)(?:([KMGTP])(?:iB)?)?", re.IGNORECASE)


def size(text):
    """Return the bytes that `4096`, `64K`, `2G` or `2GiB` stand for.

    Raises:
        PlxshError: it is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise PlxshError(
            "usage",
            f"{text!r} is no size",
            "write bytes or a power of 1024, such as 4096, 64K, 2G, 2GiB",
        )
    number, unit = match.groups()
    return int(number) << (10 * ("KMGTP".index(unit.upper()) + 1 if unit else 0))
