"""Which of many names someone means who typed a part of one.

Names are ranked as people expect, not by a score: the name itself, names that begin so,
names with a word that begins so, names that contain it, names that contain its letters in
this order. Within a rank they stay in the order they were given.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")


def best(
    fragment: str, items: Iterable[Item], limit: int | None, name: Callable[[Item], str]
) -> list[Item]:
    """Return the items whose names match `fragment`, the best first, at most `limit`.

    Args:
        fragment: what was typed; its case does not matter. When it is empty all match.
        items: where to look, in the order of equals.
        limit: how many to return, None for all.
        name: what is matched of an item.
    """
    wanted = _folded(fragment)
    if not wanted:
        return list(islice(items, limit))
    exact: list[Item] = []
    prefix: list[Item] = []
    word: list[Item] = []
    inside: list[Item] = []
    scattered: list[Item] = []
    begins_word = re.compile(rf"(?<![^\W_]){re.escape(wanted)}").search
    has_letters = re.compile("".join(map(_up_to, wanted))).match
    for item in items:
        text = _folded(name(item))
        at = text.find(wanted)
        if at < 0:
            if has_letters(text):
                scattered.append(item)
        elif at == 0:
            (exact if text == wanted else prefix).append(item)
        else:
            (word if begins_word(text) else inside).append(item)
    return list(islice(chain(exact, prefix, word, inside, scattered), limit))


def prefixed(
    fragment: str, items: Iterable[Item], limit: int | None, name: Callable[[Item], str]
) -> list[Item]:
    """Return the items whose names begin exactly so; arguments as `best`."""
    return list(islice((item for item in items if name(item).startswith(fragment)), limit))


def _folded(text: str) -> str:
    """Return a text without differences that people do not type."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", text.casefold())


def _up_to(letter: str) -> str:
    """Return the pattern of all up to the next `letter`; it never tries twice."""
    escaped = re.escape(letter)
    return rf"[^{escaped}]*+{escaped}"
