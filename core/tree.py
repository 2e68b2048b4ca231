"""The family tree of VDIs: who was cloned from which snapshot of whom.

`read_tree` gathers it as plain data, of which `text_lines` makes a drawing for a terminal,
`dot_text` one for Graphviz and `save` a picture. Only the table of VDIs and the snapshot
logs are read, never a radix map, so it is quick and works beside a writer. Whatever is
damaged becomes part of the drawing; it never prevents it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal

from core.blockstore import Blockstore
from core.device import io_error
from core.errors import BadRequest, Corrupt, IoFailed, NotFound, ParallaxError
from core.format import FREE, KIND_SNAPSHOT, KIND_TOMBSTONE, LIVE, NO_VDI, VdiRecord
from core.registry import Registry
from core.snaplog import SnapshotId, history

if TYPE_CHECKING:
    import pydot

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
        _printable(record.name),
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
    # Deep down the outermost lines give way to the name.
    spare = max(room - _NAME_ROOM, 6) // 3 * 3
    if len(drawn) > spare:
        drawn = f"{more}  {drawn[3 - spare :]}"
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
    """Return a size in bytes in the largest unit of 1024 that it fills: `1.5 GiB`."""
    if size < 1024:
        return f"{size} B"
    power = 1
    while power < 4 and size >= 1024 ** (power + 1):
        power += 1
    return f"{size / 1024**power:.1f}".removesuffix(".0") + f" {'KMGT'[power - 1]}iB"


# -- as a picture ----------------------------------------------------------------------

_KINDS: Final = {".svg": "svg", ".ps": "ps:cairo", ".png": "png", ".pdf": "pdf"}
_WRAP: Final = 32
_GROUP: Final = 8
_TALL: Final = 8
_COLOURS: Final[dict[State, str]] = {"live": "#dcebf9", "deleted": "#e4e4e4", "damaged": "#f9d6d2"}
_EDGES: Final[dict[State, str]] = {"live": "#39658f", "deleted": "#8a8a8a", "damaged": "#b3392b"}
_CLONED: Final[dict[str, Any]] = {"color": '"#8a8a8a"'}
_OWN_LOG: Final[dict[str, Any]] = {
    "color": '"#39658f"',
    "arrowhead": "none",
    "penwidth": "1.4",
    "weight": "8",
}


def dot_text(tree: Tree) -> str:
    """Return the tree in the dot language of Graphviz, time running from left to right.

    A VDI is a box; its log is a line of points that ends there. Many clones of one
    snapshot that have none themselves stand together in a frame, as do many unrelated VDIs.
    """
    import pydot  # here, because it takes longer to load than the tree takes to read

    graph = pydot.Dot(
        "parallax",
        graph_type="digraph",
        rankdir="LR",
        compound="true",
        nodesep="0.08",
        ranksep="0.35",
        fontname="Helvetica",
        fontsize="9",
        fontcolor=_quoted("#555555"),
    )
    graph.set_node_defaults(fontname="Helvetica", fontsize="10", style="filled")
    graph.set_edge_defaults(
        fontname="Helvetica",
        fontsize="8",
        fontcolor=_quoted("#555555"),
        arrowsize="0.5",
    )
    crowds: dict[tuple[int | None, SnapshotId | None], list[Branch]] = {}
    for branch, _ in tree.walk():
        if branch.points or branch.note or branch.state != "live":
            _add_line(graph, branch)
        else:
            crowds.setdefault((branch.parent, branch.fork), []).append(branch)
    for crowd in crowds.values():
        if len(crowd) > (_GROUP if crowd[0].fork else 1):
            _add_frame(graph, crowd)
        else:
            for branch in crowd:
                _add_line(graph, branch)
    return str(graph.to_string())


def _add_line(graph: pydot.Graph, branch: Branch) -> None:
    """Add a VDI with its points, from the snapshot it was cloned from.

    A log with many points runs from top to bottom, its clones beside it.
    """
    import pydot

    line = graph
    if len(branch.points) > _TALL:
        line = pydot.Subgraph(f"line_{branch.id}", rank="same")
        graph.add_subgraph(line)
    before = ""
    if branch.parent is not None and branch.fork is not None:
        before = _point_name(branch.parent, branch.fork)
    look = _CLONED
    for point in branch.points:
        name = _point_name(branch.id, point.id)
        line.add_node(pydot.Node(name, **_point_look(point)))
        if before:
            graph.add_edge(pydot.Edge(before, name, **look, **_folded(point.between)))
        before, look = name, _OWN_LOG
    line.add_node(pydot.Node(f"vdi_{branch.id}", **_vdi_look(branch)))
    if before:
        graph.add_edge(pydot.Edge(before, f"vdi_{branch.id}", **look))


def _add_frame(graph: pydot.Dot, crowd: list[Branch]) -> None:
    """Add VDIs that have no points in a frame, side by side in rows of about equal look."""
    import pydot

    first = crowd[0]
    columns = max(1, round((len(crowd) / 5) ** 0.5))
    title = f"{len(crowd)} VDIs without snapshots or clones"
    if first.parent is not None:
        title = f"{len(crowd)} clones without snapshots"
    frame = pydot.Subgraph(
        f"cluster_{first.id}",
        label=_quoted(title),
        color=_quoted("#b8c4d0"),
        style="rounded",
        tooltip=_quoted(title),
    )
    for i, branch in enumerate(crowd):
        frame.add_node(pydot.Node(f"vdi_{branch.id}", **_vdi_look(branch)))
        if i % columns:
            frame.add_edge(pydot.Edge(f"vdi_{crowd[i - 1].id}", f"vdi_{branch.id}", style="invis"))
    graph.add_subgraph(frame)
    if first.parent is not None and first.fork is not None:
        middle = crowd[len(crowd) // columns // 2 * columns]
        fork = _point_name(first.parent, first.fork)
        graph.add_edge(pydot.Edge(fork, f"vdi_{middle.id}", lhead=f"cluster_{first.id}", **_CLONED))


def _vdi_look(branch: Branch) -> dict[str, Any]:
    """Return the attributes of the box of a VDI."""
    title = f"{branch.id}: {branch.name}" if branch.name else f"{branch.id}"
    lines = _wrapped(title) + ([] if branch.state == "live" else [branch.state])
    about = [
        branch.name,
        f"VDI {branch.id}, {size_text(branch.size)}, {branch.snapshots} snapshots",
        f"created {_time(branch.created_ns)}",
        f"written {_time(branch.modified_ns)}",
    ]
    if branch.state == "damaged":
        about = [f"VDI {branch.id}"]
    return {
        "label": _quoted(*lines),
        "shape": "box",
        "height": "0.28",
        "margin": _quoted("0.1,0.04"),
        "color": _quoted(_EDGES[branch.state]),
        "fillcolor": _quoted(_COLOURS[branch.state]),
        "tooltip": _tooltip(*about, branch.note),
    }


def _point_look(point: Point) -> dict[str, Any]:
    """Return the attributes of a point."""
    where = f"({point.id.block}, {point.id.offset})"
    about = [f"snapshot {point.id}"]
    if point.state == "damaged":
        about.append("not in the log")
    else:
        about += [point.label, _time(point.time_ns), size_text(point.size)]
    if point.state == "deleted":
        about.append("deleted")
    return {
        "label": _quoted(where, *_wrapped(point.label)),
        "shape": "box",
        "height": "0.2",
        "width": "0.2",
        "margin": _quoted("0.05,0.02"),
        "style": _quoted("filled,rounded"),
        "fontsize": "8",
        "color": _quoted(_EDGES[point.state]),
        "fillcolor": _quoted("white"),
        "fontcolor": _quoted(_EDGES[point.state]),
        "tooltip": _tooltip(*about),
    }


def _folded(snapshots: int) -> dict[str, Any]:
    """Return the attributes of an edge that stands for some snapshots."""
    if not snapshots:
        return {}
    said = _quoted(f"{snapshots} snapshots")
    return {"label": str(snapshots), "tooltip": said, "labeltooltip": said}


def _point_name(vdi: int, where: SnapshotId) -> str:
    return f"snap_{vdi}_{where.block}_{where.offset}"


def _quoted(*lines: str) -> str:
    """Return lines as one string of the dot language that shows them just as they are."""
    escaped = (
        line.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') for line in lines
    )
    return '"' + "\\n".join(escaped) + '"'


def _tooltip(*lines: str) -> str:
    """Return lines as a tooltip, in which Graphviz replaces backslashes twice."""
    return _quoted(*(line.replace("\\", "\\\\") for line in lines if line))


def _wrapped(text: str) -> list[str]:
    """Return text in lines of at most 32 columns, nothing left out."""
    lines = [""] if text else []
    for c in text:
        if cells(lines[-1] + c) > _WRAP:
            lines.append("")
        lines[-1] += c
    return lines


def _time(time_ns: int) -> str:
    with suppress(ValueError, OverflowError, OSError):
        return f"{datetime.fromtimestamp(time_ns // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return "at an unknown time"


def picture_kind(path: str) -> str:
    """Return what Graphviz calls the format that a file's name asks for, "dot" for its text.

    Raises:
        BadRequest: it is none that can be drawn.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".dot":
        return "dot"
    if suffix not in _KINDS:
        raise BadRequest(
            f"{path!r} does not say what to draw", "end its name in .svg, .ps, .png, .pdf or .dot"
        )
    return _KINDS[suffix]


def draw(tree: Tree, kind: str) -> bytes:
    """Return a picture of the tree in a format of Graphviz, or its text for "dot".

    Raises:
        NotFound: Graphviz is not installed.
        IoFailed: Graphviz failed.
    """
    text = dot_text(tree).encode()
    if kind == "dot":
        return text
    import subprocess

    try:
        done = subprocess.run(["dot", f"-T{kind}"], input=text, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise NotFound(
            "drawing needs the program 'dot' of Graphviz, which is not installed",
            "install the package graphviz (apt install graphviz), or write a .dot file",
        ) from error
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise IoFailed(
            f"Graphviz failed (status {done.returncode}): {said[0]}",
            "write a .dot file and look at it",
        )
    return done.stdout


def save(tree: Tree, path: str) -> None:
    """Draw the tree into a file, in the format that its name ends in, all or nothing.

    Raises:
        BadRequest: its name ends in no format that can be drawn.
        NotFound: Graphviz is not installed, or there is no such folder.
        IoFailed, NoSpace, ReadOnly: it could not be drawn or written.
    """
    picture = draw(tree, picture_kind(path))
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    part = os.path.join(folder, f".{name[:200]}.{token_hex(4)}.part")
    try:
        try:
            with open(part, "xb") as file:
                file.write(picture)
            os.replace(part, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(part)
            raise
    except OSError as error:
        raise io_error(error, f"cannot write {path}") from error
