"""The family tree of VDIs: who was cloned from which snapshot of whom.

`read_tree` gathers it as plain data, of which `text_lines` makes a drawing for a terminal,
`dot_text` one for Graphviz and `save` a picture. Only the table of VDIs and the snapshot
logs are read, never a radix map, so it is quick and works beside a writer. Whatever is
damaged becomes part of the drawing; it never prevents it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from core.blockstore import Blockstore
from core.errors import Corrupt, ParallaxError
from core.format import DELETED, FREE, KIND_SNAPSHOT, KIND_TOMBSTONE, LIVE, NO_VDI, VdiRecord
from core.registry import Registry
from core.snaplog import SnapshotId, history

if TYPE_CHECKING:
    pass

State = Literal["live", "deleted", "damaged"]
_Found = VdiRecord | Corrupt


@dataclass(frozen=True, slots=True)
class Point:
    """A snapshot that the drawing shows: one with clones, or the first or last of a log.

    `between` counts the snapshots left out between the point before it and this one.
    A `damaged` point is a snapshot that clones name and the log does not (any more) have.
    """

    id: SnapshotId
    state: State = "live"
    between: int = 0
    label: str = ""
    time_ns: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Branch:
    """One VDI: from the snapshot `fork` of VDI `parent` past its points to its live end.

    `note` says what is wrong with it or unusual, in a few words.
    """

    id: int
    name: str
    state: State
    size: int = 0
    snapshots: int = 0
    created_ns: int = 0
    modified_ns: int = 0
    parent: int | None = None
    fork: SnapshotId | None = None
    points: tuple[Point, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """VDIs by id, and the ids of the clones of each, in the order of their forks.

    The children of None are those that are no clone, or whose parent is gone.
    """

    branches: dict[int, Branch] = field(default_factory=dict)
    children: dict[int | None, list[int]] = field(default_factory=dict)

    def walk(self) -> Iterator[tuple[Branch, tuple[bool, ...]]]:
        """Yield every VDI, parents first, each with a path from its root down to itself.

        The path has one item a generation (none for a root): whether that ancestor, the
        VDI itself at the end, has a younger sibling still to come.
        """
        stack: list[tuple[int, tuple[bool, ...]]] = [
            (number, ()) for number in reversed(self.children.get(None, []))
        ]
        while stack:
            number, path = stack.pop()
            yield self.branches[number], path
            below = self.children.get(number, [])
            stack += [
                (child, (*path, i + 1 < len(below))) for i, child in reversed([*enumerate(below)])
            ]

    def data(self) -> list[dict[str, Any]]:
        """Return the tree as values for JSON, parents first; times in nanoseconds of UTC."""
        return [
            {
                "id": branch.id,
                "name": branch.name,
                "state": branch.state,
                "size": branch.size,
                "snapshots": branch.snapshots,
                "created_ns": branch.created_ns,
                "modified_ns": branch.modified_ns,
                "parent": branch.parent,
                "fork": branch.fork and {"block": branch.fork.block, "offset": branch.fork.offset},
                "note": branch.note,
                "points": [
                    {
                        "block": point.id.block,
                        "offset": point.id.offset,
                        "state": point.state,
                        "between": point.between,
                        "label": point.label,
                        "time_ns": point.time_ns,
                        "size": point.size,
                    }
                    for point in branch.points
                ],
            }
            for branch, _ in self.walk()
        ]


# -- reading ---------------------------------------------------------------------------


def read_tree(store: Blockstore, family: int | None = None) -> Tree:
    """Gather the tree of a store, or of one VDI with its ancestors and descendants.

    Args:
        store: an open store.
        family: the id of the VDI.
    """
    registry = Registry(store)
    found = {number: _settled(registry, number, record) for number, record in registry.scan()}
    parents, notes = _parents(found)
    shown = _shown(found, parents, family)
    forks: dict[int, set[SnapshotId]] = {number: set() for number in shown}
    for number in shown:
        if number in parents:
            forks[parents[number]].add(_fork(found[number]))
    tree = Tree()
    for number in sorted(shown):
        record = found[number]
        if forks[number]:
            # Its clones may hang on snapshots that were taken after it was read.
            record = _settled(registry, number, record)
        tree.branches[number] = _branch(
            store, number, record, forks[number], parents.get(number), notes.get(number, "")
        )
    for number in tree.branches:
        tree.children.setdefault(parents.get(number), []).append(number)
    for number, branch in tree.branches.items():
        if number in tree.children:
            order = {point.id: i for i, point in enumerate(branch.points)}
            tree.children[number].sort(key=lambda child: (order[_fork(found[child])], child))
    return tree


def _settled(registry: Registry, number: int, record: _Found) -> _Found:
    """Read a record again: a writer may have been in the middle of it."""
    try:
        again = registry.get(number)
    except Corrupt as error:
        return error if isinstance(record, Corrupt) else record
    if again is None or (isinstance(record, VdiRecord) and again.uuid != record.uuid):
        return record
    return again


def _fork(record: _Found) -> SnapshotId:
    assert isinstance(record, VdiRecord)
    return SnapshotId(record.parent_block, record.parent_offset)


def _parents(found: dict[int, _Found]) -> tuple[dict[int, int], dict[int, str]]:
    """Return the parent of each clone, and notes on those whose parent cannot be shown.

    A record may name any parent: what would be a loop is cut open.
    """
    parents: dict[int, int] = {}
    notes: dict[int, str] = {}
    for number, record in found.items():
        if isinstance(record, Corrupt) or record.parent_vdi == NO_VDI:
            continue
        parent = found.get(record.parent_vdi)
        if isinstance(parent, Corrupt) or (
            parent and parent.state != FREE and parent.uuid == record.parent_uuid
        ):
            parents[number] = record.parent_vdi
        else:
            notes[number] = f"clone of {record.parent_vdi}@{_fork(record)}, which is gone"
    safe: set[int] = set()
    for number in found:
        line: set[int] = set()
        at = number
        while at in parents and at not in safe:
            if at in line:
                notes[at] = f"clone of {parents.pop(at)}@{_fork(found[at])}, its own descendant"
                break
            line.add(at)
            at = parents[at]
        safe |= line
    return parents, notes


def _shown(found: dict[int, _Found], parents: dict[int, int], family: int | None) -> set[int]:
    """Return the ids of VDIs that are not deleted, or have a descendant that is not."""
    allowed = set(found)
    if family is not None:
        children: dict[int, list[int]] = {}
        for child, parent in parents.items():
            children.setdefault(parent, []).append(child)
        descendants = [family]
        for number in descendants:  # it grows meanwhile
            descendants += children.get(number, [])
        allowed = set(descendants)
        while family in parents:
            family = parents[family]
            allowed.add(family)
    shown: set[int] = set()
    for number in allowed & found.keys():
        record = found[number]
        at: int | None = number
        if isinstance(record, Corrupt) or record.state == LIVE:
            while at is not None and at not in shown:
                shown.add(at)
                at = parents.get(at)
    return shown


def _branch(
    store: Blockstore,
    number: int,
    record: _Found,
    forks: set[SnapshotId],
    parent: int | None,
    note: str,
) -> Branch:
    if isinstance(record, Corrupt):
        lost = tuple(Point(where, "damaged") for where in sorted(forks))
        return Branch(number, "", "damaged", points=lost, note=record.message)
    points, trouble = _points(store, record, forks)
    return Branch(
        number,
        _printable(record.name),
        "deleted" if record.state == DELETED else "live",
        record.size,
        record.snapshots,
        record.created_ns,
        record.modified_ns,
        parent,
        _fork(record) if record.parent_vdi != NO_VDI else None,
        points,
        "; ".join(filter(None, (note, trouble))),
    )


def _points(
    store: Blockstore, record: VdiRecord, forks: set[SnapshotId]
) -> tuple[tuple[Point, ...], str]:
    """Return the points of a VDI's log, oldest first, and what is wrong with the log."""
    snapshots = []
    deleted: set[tuple[int, int]] = set()
    trouble = ""
    try:
        for where, line in history(store, record):
            if line.kind == KIND_TOMBSTONE:
                deleted.add((line.root, line.size))
            elif line.kind == KIND_SNAPSHOT and (where in forks or where not in deleted):
                snapshots.append((where, line))
    except ParallaxError as error:
        trouble = f"snapshot log: {error.message}"
    snapshots.reverse()
    lost = forks.difference(where for where, _ in snapshots)
    if lost and not trouble:
        trouble = "clones name snapshots that its log does not have"
    points = [Point(where, "damaged") for where in sorted(lost)]
    before = -1
    for i, (where, line) in enumerate(snapshots):
        if where in forks or i in (0, len(snapshots) - 1):
            state: State = "deleted" if where in deleted else "live"
            label = _printable(line.label)
            points.append(Point(where, state, i - before - 1, label, line.time_ns, line.size))
            before = i
    return tuple(points), trouble


def _printable(text: str) -> str:
    """Return text with what a terminal or an XML file cannot take written as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


# -- as text ---------------------------------------------------------------------------

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
        size = "?" if branch.state == "damaged" else size_text(branch.size)
        count = "?" if branch.state == "damaged" else str(branch.snapshots)
        mark = "" if branch.state == "live" else f" ({branch.state})"
        rows.append((str(branch.id), path, branch.name, mark, size, count, fork))
    ids, sizes, counts, forks = (
        max(len(title), *(len(row[i]) for row in rows))
        for title, i in (("ID", 0), ("SIZE", 4), ("SNAPS", 5), ("FROM", 6))
    )
    room = max(width - ids - sizes - counts - forks - 8, _NAME_ROOM)
    names = [_twig(row[1], row[2], row[3], room, unicode) for row in rows]
    room = max(4, *map(cells, names))
    lines = [f"{'ID':>{ids}}  {'NAME':{room}}  {'SIZE':>{sizes}}  {'SNAPS':>{counts}}  FROM"]
    for row, name in zip(rows, names, strict=True):
        padded = name + " " * (room - cells(name))
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
    # Deep down the outermost lines go first, as long as that makes room for the name.
    spare = max(room - min(cells(name + mark), _NAME_ROOM + len(mark)), 4)
    if len(drawn) > spare:
        drawn = more + drawn[len(drawn) - spare + 1 :]
    left = room - len(drawn) - len(mark)
    if cells(name) > left:
        while cells(name) > left - 1:
            name = name[:-1]
        name += more
    return drawn + name + mark


def _shown_as(text: str, unicode: bool) -> str:
    return text if unicode else text.encode("ascii", "backslashreplace").decode("ascii")


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def size_text(size: int) -> str:
    """Return a size in bytes in the largest unit of 1024 that keeps it short."""
    value, unit = float(size), ""
    for unit in ("", "K", "M", "G", "T"):
        if value < 1024 or unit == "T":
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + unit


# -- as a picture ----------------------------------------------------------------------
