"""The family tree of VDIs: who was cloned from which snapshot of whom.

`read_tree` gathers it as plain data, of which `text_drawing` makes one for a terminal,
`dot_text` one for Graphviz and `save` a picture. Only the table of VDIs and the snapshot
logs are read, never a radix map, so it is quick and works beside a writer. Whatever is
damaged becomes part of the drawing; it never prevents it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from core.blockstore import Blockstore
from core.errors import Corrupt, ParallaxError
from core.format import (
    BLOCK_SHIFT,
    FREE,
    KIND_SNAPSHOT,
    KIND_TOMBSTONE,
    LIVE,
    NO_VDI,
    LogRecord,
    VdiRecord,
)
from core.progress import Progress, silent
from core.registry import Registry
from core.snaplog import SnapshotId, history
from core.text import printable

State = Literal["live", "deleted", "damaged"]
_Found = VdiRecord | Corrupt
_Entry = tuple[SnapshotId, LogRecord]

_DEPTH: Final = 100
_NEWEST: Final = 40


class Export(NamedTuple):
    """A VDI, or one of its snapshots, that a server has open for `clients` clients."""

    vdi: int
    snapshot: SnapshotId | None
    read_only: bool
    clients: int


@dataclass(frozen=True, slots=True)
class Fold:
    """Snapshots that are left out of the drawing: how many, from when to when, their bytes."""

    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    own: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A snapshot that the drawing shows: one with clones, open, or the first or last of a log.

    `fold` is what is left out between the point before it and this one; `own` are the bytes
    written since the snapshot before. A `damaged` point is a snapshot that clones name and
    the log does not (any more) have.
    """

    id: SnapshotId
    state: State = "live"
    fold: Fold = Fold()
    label: str = ""
    time_ns: int = 0
    size: int = 0
    own: int = 0
    exports: tuple[Export, ...] = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """One VDI: from the snapshot `fork` of VDI `parent` past its points to its live end.

    `note` says what is wrong with it or unusual, in a few words. `own` are the bytes that
    only this VDI holds; `exports` those of the VDI itself, not of its snapshots.
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
    own: int = 0
    exports: tuple[Export, ...] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """VDIs by id, and the ids of the clones of each, in the order of their forks.

    The children of None are those that are no clone, or whose parent is gone. `focus` is
    the VDI whose family this is, if it is that of one.
    """

    branches: dict[int, Branch] = field(default_factory=dict)
    children: dict[int | None, list[int]] = field(default_factory=dict)
    focus: int | None = None

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
                "own": branch.own,
                "exports": _exports_data(branch.exports),
                "points": [_point_data(point) for point in branch.points],
            }
            for branch, _ in self.walk()
        ]


def _point_data(point: Point) -> dict[str, Any]:
    fold = point.fold
    return {
        "block": point.id.block,
        "offset": point.id.offset,
        "state": point.state,
        "between": fold.count,
        "label": point.label or None,
        "time": point.time_ns,
        "size": point.size,
        "own": point.own,
        "folded": {"first": fold.first_ns, "last": fold.last_ns, "own": fold.own}
        if fold.count
        else None,
        "exports": _exports_data(point.exports),
    }


def _exports_data(exports: Sequence[Export]) -> list[dict[str, Any]]:
    return [{"read_only": export.read_only, "clients": export.clients} for export in exports]


# -- reading ---------------------------------------------------------------------------


def read_tree(
    store: Blockstore,
    family: int | None = None,
    exports: Sequence[Export] = (),
    progress: Progress = silent,
) -> Tree:
    """Gather the tree of a store, or of one VDI with its ancestors and descendants.

    Args:
        store: an open store.
        family: the id of the VDI; of its snapshots the newest are points as well.
        exports: what servers have open.
        progress: called with how many VDIs are read, and of how many.
    """
    registry = Registry(store)
    found = {number: _settled(registry, number, record) for number, record in registry.scan()}
    parents, notes = _parents(found)
    _cut_replaced(store, found, parents, notes)
    shown = _shown(found, parents, family)
    forks: dict[int, set[SnapshotId]] = {number: set() for number in shown}
    for number in shown:
        if number in parents:
            forks[parents[number]].add(_fork(found[number]))
    opened: dict[int, list[Export]] = {}
    for export in exports:
        opened.setdefault(export.vdi, []).append(export)
    tree = Tree(focus=family)
    for done, number in enumerate(sorted(shown)):
        progress(done, len(shown))
        record = found[number]
        if forks[number]:
            # Its clones may hang on snapshots that were taken after it was read.
            record = _settled(registry, number, record)
        tree.branches[number] = _branch(
            store,
            number,
            record,
            parents.get(number),
            notes.get(number, ""),
            _Marks(forks[number], opened.get(number, []), _NEWEST if number == family else 1),
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


def _cut_replaced(
    store: Blockstore,
    found: dict[int, _Found],
    parents: dict[int, int],
    notes: dict[int, str],
) -> None:
    """Let go of clones whose snapshot is gone, and its id another one's by now.

    Only what a schedule has dropped leaves its place in the log to others.
    """
    for parent in {*parents.values()}:
        record = found[parent]
        if isinstance(record, Corrupt) or not record.log_retired:
            continue
        times: dict[SnapshotId, int] = {}
        with suppress(ParallaxError):  # told where the log is drawn
            times = {where: line.time_ns for where, line in history(store, record)}
        for number in [clone for clone, of in parents.items() if of == parent]:
            clone = found[number]
            assert isinstance(clone, VdiRecord)
            if clone.created_ns < times.get(_fork(clone), 0):
                notes[number] = f"clone of {parents.pop(number)}@{_fork(clone)}, which is gone"


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


class _Marks(NamedTuple):
    """What makes a snapshot of a VDI a point: clones, exports, being one of the newest."""

    forks: set[SnapshotId]
    exports: Sequence[Export]
    newest: int

    def of(self, where: SnapshotId | None) -> tuple[Export, ...]:
        """Return the exports of one snapshot, or of the VDI itself."""
        return tuple(export for export in self.exports if export.snapshot == where)


def _branch(
    store: Blockstore,
    number: int,
    record: _Found,
    parent: int | None,
    note: str,
    marks: _Marks,
) -> Branch:
    if isinstance(record, Corrupt):
        lost = tuple(Point(where, "damaged") for where in sorted(marks.forks))
        return Branch(
            number, "", "damaged", points=lost, note=record.message, exports=marks.of(None)
        )
    points, trouble = _points(store, record, marks)
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
        record.own << BLOCK_SHIFT,
        marks.of(None),
    )


def _points(store: Blockstore, record: VdiRecord, marks: _Marks) -> tuple[tuple[Point, ...], str]:
    """Return the points of a VDI's log, oldest first, and what is wrong with the log."""
    snapshots: list[_Entry] = []
    deleted: set[tuple[int, int]] = set()
    trouble = ""
    try:
        for where, line in history(store, record):
            if line.kind == KIND_TOMBSTONE:
                deleted.add((line.root, line.size))
            elif line.kind == KIND_SNAPSHOT and (where in marks.forks or where not in deleted):
                snapshots.append((where, line))
    except ParallaxError as error:
        trouble = f"snapshot log: {error.message}"
    snapshots.reverse()
    lost = marks.forks.difference(where for where, _ in snapshots)
    dropped = bool(record.log_retired)  # by its schedule: the log has no line of them any more
    if lost and not trouble and not dropped:
        trouble = "clones name snapshots that its log does not have"
    points = [Point(where, "deleted" if dropped else "damaged") for where in sorted(lost)]
    wanted = marks.forks.union(export.snapshot for export in marks.exports if export.snapshot)
    before = -1
    for i, (where, line) in enumerate(snapshots):
        if where in wanted or i == 0 or i >= len(snapshots) - marks.newest:
            points.append(
                Point(
                    where,
                    "deleted" if where in deleted else "live",
                    _fold(snapshots[before + 1 : i]),
                    printable(line.label),
                    line.time_ns,
                    line.size,
                    line.own << BLOCK_SHIFT,
                    marks.of(where),
                )
            )
            before = i
    return tuple(points), trouble


def _fold(left_out: Sequence[_Entry]) -> Fold:
    if not left_out:
        return Fold()
    (_, first), (_, last) = left_out[0], left_out[-1]
    own = sum(line.own for _, line in left_out) << BLOCK_SHIFT
    return Fold(len(left_out), first.time_ns, last.time_ns, own)
