"""The family tree of VDIs: who was cloned from which snapshot of whom.

`read_tree` gathers it as plain data, of which `text_lines` makes a drawing for a terminal,
`dot_text` one for Graphviz and `save` a picture. Only the table of VDIs and the snapshot
logs are read, never a radix map, so it is quick and works beside a writer. Whatever is
damaged becomes part of the drawing; it never prevents it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from core.blockstore import Blockstore
from core.errors import Corrupt, ParallaxError
from core.format import FREE, KIND_SNAPSHOT, KIND_TOMBSTONE, LIVE, NO_VDI, VdiRecord
from core.registry import Registry
from core.snaplog import SnapshotId, history
from core.text import printable

if TYPE_CHECKING:
    pass

State = Literal["live", "deleted", "damaged"]
_Found = VdiRecord | Corrupt

_DEPTH: Final = 100


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
        VDI itself at the end, has a younger sibling still to come. Of very long paths only
        the end is given.
        """
        stack: list[tuple[int, tuple[bool, ...]]] = [
            (number, ()) for number in reversed(self.children.get(None, []))
        ]
        while stack:
            number, path = stack.pop()
            yield self.branches[number], path
            below = self.children.get(number, [])
            stack += [
                (child, (*path[-_DEPTH:], i + 1 < len(below)))
                for i, child in reversed([*enumerate(below)])
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
                "created": branch.created_ns,
                "modified": branch.modified_ns,
                "parent": branch.parent,
                "fork": branch.fork and {"block": branch.fork.block, "offset": branch.fork.offset},
                "note": branch.note or None,
                "points": [
                    {
                        "block": point.id.block,
                        "offset": point.id.offset,
                        "state": point.state,
                        "between": point.between,
                        "label": point.label or None,
                        "time": point.time_ns,
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
        printable(record.name),
        "live" if record.state == LIVE else "deleted",
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
            label = printable(line.label)
            points.append(Point(where, state, i - before - 1, label, line.time_ns, line.size))
            before = i
    return tuple(points), trouble
