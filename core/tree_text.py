"""The family tree of VDIs as a drawing for a terminal."""

from __future__ import annotations

from typing import Final

from core.text import columns, human_size
from core.tree import Tree

_LINES: Final = {True: ("│  ", "   ", "├─ ", "└─ ", "…"), False: ("|  ", "   ", "|- ", "`- ", "~")}
_NAME_ROOM: Final = 16


def text_lines(tree: Tree, width: int = 80, unicode: bool = True) -> list[str]:
    """Return a drawing for a terminal: a heading, a line a VDI, and notes at the end.

    Args:
        tree: what to draw.
        width: columns of the terminal.
        unicode: draw with box characters and show names as they are; else only ASCII.
    """
    if not tree.branches:
        return []
    rows = []
    for branch, path in tree.walk():
        fork = "-" if branch.fork is None else f"{branch.parent}@{branch.fork}"
        if branch.fork is not None and branch.parent is None:
            fork = f"?@{branch.fork}"
        size = "?" if branch.state == "damaged" else human_size(branch.size)
        count = "?" if branch.state == "damaged" else str(branch.snapshots)
        mark = "" if branch.state == "live" else f" ({branch.state})"
        rows.append((str(branch.id), path, branch.name, mark, size, count, fork))
    ids, sizes, counts, forks = (
        max(len(title), *(len(row[i]) for row in rows))
        for title, i in (("ID", 0), ("SIZE", 4), ("SNAPS", 5), ("FROM", 6))
    )
    room = max(width - ids - sizes - counts - forks - 8, _NAME_ROOM)
    names = [_twig(row[1], row[2], row[3], room, unicode) for row in rows]
    room = max(4, *map(columns, names))
    lines = [f"{'ID':>{ids}}  {'NAME':{room}}  {'SIZE':>{sizes}}  {'SNAPS':>{counts}}  FROM"]
    for row, name in zip(rows, names, strict=True):
        padded = name + " " * (room - columns(name))
        line = f"{row[0]:>{ids}}  {padded}  {row[4]:>{sizes}}  {row[5]:>{counts}}  {row[6]}"
        lines.append(line)
    lines += [
        _shown_as(f"! VDI {branch.id}: {branch.note}", unicode)
        for branch, _ in tree.walk()
        if branch.note
    ]
    return lines


def _twig(path: tuple[bool, ...], name: str, mark: str, room: int, unicode: bool) -> str:
    """Return the lines of the tree, a name and a mark in at most `room` columns."""
    bar, blank, tee, corner, more = _LINES[unicode]
    drawn = "".join(bar if goes_on else blank for goes_on in path[:-1])
    drawn += (tee if path[-1] else corner) if path else ""
    name = _shown_as(name, unicode)
    # Deep down the outermost lines give way to the name.
    spare = max(room - _NAME_ROOM, 6) // 3 * 3
    if len(drawn) > spare:
        drawn = f"{more}  {drawn[3 - spare :]}"
    left = room - len(drawn) - len(mark)
    if columns(name) > left:
        while columns(name) > left - 1:
            name = name[:-1]
        name += more
    return drawn + name + mark


def _shown_as(text: str, unicode: bool) -> str:
    return text if unicode else text.encode("ascii", "backslashreplace").decode("ascii")
