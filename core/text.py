"""Text for people: sizes, ages, widths and characters that every terminal can take."""

from __future__ import annotations

import unicodedata
from typing import Final

_SECOND: Final = 1_000_000_000
_DAY: Final = 86_400
_YEAR: Final = 31_556_952
"""Seconds of a Gregorian year."""
_AGES: Final = (
    (60, 1, "s"),
    (3600, 60, "min"),
    (2 * _DAY, 3600, "h"),
    (14 * _DAY, _DAY, "d"),
    (_YEAR, 7 * _DAY, "w"),
)
"""Below so many seconds an age is told in units of so many."""
_SKEW: Final = 60


def human_size(size: int) -> str:
    """Return bytes as people read them, with powers of 1024: `1.5 MiB`."""
    if abs(size) < 1024:
        return f"{size} B"
    value = float(size)
    for unit in "KMGTPE":
        value /= 1024
        if abs(value) < 1023.5 or unit == "E":
            break
    digits = 0 if value == int(value) or abs(value) >= 100 else 1
    return f"{value:.{digits}f} {unit}iB"


def human_age(time_ns: int, now_ns: int) -> str:
    """Return how long ago a time was, rounded down: `5 s`, `3 min`, `2 h`, `4 d`, `3 w`, `2.1 y`.

    What is less than a second old, or up to a minute ahead, is `now`: clocks differ. What
    is further ahead says so, `in 3 h`.

    Args:
        time_ns: nanoseconds since 1970.
        now_ns: the same of now.
    """
    seconds = (now_ns - time_ns) // _SECOND
    if -_SKEW <= seconds <= 0:
        return "now"
    ahead, seconds = ("in " if seconds < 0 else ""), abs(seconds)
    for limit, unit, name in _AGES:
        if seconds < limit:
            return f"{ahead}{seconds // unit} {name}"
    tenths = seconds * 10 // _YEAR
    years = f"{tenths // 10}" if tenths % 10 == 0 or tenths >= 100 else f"{tenths / 10:.1f}"
    return f"{ahead}{years} y"


def human_ago(time_ns: int, now_ns: int) -> str:
    """Return `human_age` as part of a sentence: `5 s ago`, `now`, `in 3 h`."""
    age = human_age(time_ns, now_ns)
    return age if age == "now" or age.startswith("in ") else f"{age} ago"


def counted(number: int, what: str) -> str:
    """Return a number and what is counted: `1 snapshot`, `2 snapshots`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def uuid_text(raw: bytes) -> str:
    """Return a UUID as text; `str(uuid.UUID)` is slow where there are thousands."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def shortened(text: str, width: int) -> str:
    """Return a text cut to so many columns of a terminal, with an ellipsis if it was longer."""
    if columns(text) <= width:
        return text
    while text and columns(text) > width - 1:
        text = text[:-1]
    return text + "…"


def printable(text: str) -> str:
    """Return text with what a terminal or an XML file cannot take written as escapes.

    Whatever names, labels and descriptions hold, and wherever they come from: no control
    character, no change of the direction of writing and nothing invisible is left.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
