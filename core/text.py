"""Text for people: sizes, widths and characters that every terminal can take."""

from __future__ import annotations

import unicodedata


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


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def printable(text: str) -> str:
    """Return text with what a terminal or an XML file cannot take written as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
