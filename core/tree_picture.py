"""The family tree of VDIs as a picture, drawn by Graphviz."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from core.device import io_error
from core.errors import BadRequest, IoFailed, NotFound
from core.snaplog import SnapshotId
from core.text import columns, human_size
from core.tree import Branch, Point, State, Tree

if TYPE_CHECKING:
    import pydot

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
        f"VDI {branch.id}, {human_size(branch.size)}, {branch.snapshots} snapshots",
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
        about += [point.label, _time(point.time_ns), human_size(point.size)]
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
        if columns(lines[-1] + c) > _WRAP:
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
