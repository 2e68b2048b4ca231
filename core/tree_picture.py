"""The family tree of VDIs as a picture, drawn by Graphviz."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from core.device import io_error
from core.errors import BadRequest, IoFailed, NotFound
from core.tree import Tree
from core.tree_frames import Frame, arrange, frame_columns
from core.tree_labels import QUIET, card_look, frame_look, port, quoted, tooltip
from core.tree_svg import for_browsers

if TYPE_CHECKING:
    import subprocess

_KINDS: Final = {".svg": "svg", ".ps": "ps:cairo", ".png": "png", ".pdf": "pdf"}
_PATIENCE: Final = 1.0


def dot_text(tree: Tree, title: str = "") -> str:
    """Return the tree in the dot language of Graphviz, time running from left to right.

    A VDI is a card that lists its points; the clones of a snapshot hang on its line of the
    card. What would not fit stands in frames.
    """
    import pydot  # here, because it takes longer to load than the tree takes to read

    graph = pydot.Dot(
        "parallax",
        graph_type="digraph",
        rankdir="LR",
        ordering="out",
        nodesep="0.09",
        ranksep="0.4",
        fontname="Helvetica",
        fontsize="12",
        fontcolor=quoted(QUIET),
        bgcolor=quoted("#ffffff"),
        pad="0.2",
        labelloc="t",
        labeljust="l",
        label=quoted(title),
        tooltip=quoted(title or " "),
    )
    graph.set_node_defaults(fontname="Helvetica", fontsize="10", shape="plain")
    graph.set_edge_defaults(
        arrowsize="0.5",
        color=quoted("#8a8a8a"),
    )
    layout = arrange(tree)
    holders = {b.id: _frame_name(f) for f in layout.frames for _, b in f.cells}
    parts = {branch.id: card_look(branch) for branch in layout.lines}
    for frame in layout.frames:
        parts[frame.cells[0][1].id] = frame_look(frame, frame_columns(layout, frame))
    order = [branch for branch, _ in tree.walk() if branch.id in parts]
    for branch in reversed(order):  # Graphviz begins at the bottom
        name = holders.get(branch.id, f"vdi_{branch.id}")
        graph.add_node(pydot.Node(name, **parts[branch.id]))
    for branch in order:
        if branch.parent is not None and branch.fork is not None:
            name = holders.get(branch.id, f"vdi_{branch.id}")
            start = holders.get(branch.parent) or f"vdi_{branch.parent}:{port(branch.fork)}:e"
            said = tooltip(f"cloned from snapshot {branch.fork} of VDI {branch.parent}")
            graph.add_edge(pydot.Edge(start, name, tooltip=said))
    return str(graph.to_string())


def _frame_name(frame: Frame) -> str:
    return f"frame_{frame.cells[0][1].id}"


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


def draw(tree: Tree, kind: str, title: str = "", slow: Callable[[], None] = lambda: None) -> bytes:
    """Return a picture of the tree in a format of Graphviz, or its text for "dot".

    Args:
        tree: what to draw.
        kind: the format.
        title: a heading.
        slow: called when Graphviz takes longer than a second; it never says how far it is.

    Raises:
        NotFound: Graphviz is not installed.
        IoFailed: Graphviz failed.
    """
    text = dot_text(tree, title).encode()
    if kind == "dot":
        return text
    import subprocess

    try:
        process = subprocess.Popen(
            ["dot", f"-T{kind}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise NotFound(
            "drawing needs the program 'dot' of Graphviz, which is not installed",
            "install the package graphviz (apt install graphviz), or write a .dot file",
        ) from error
    with process:
        try:
            picture, errors = _answer(process, text, slow)
        except BaseException:
            process.kill()
            raise
    if process.returncode or not picture:
        said = errors.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise IoFailed(
            f"Graphviz failed (status {process.returncode}): {said[0]}",
            "write a .dot file and look at it",
        )
    return for_browsers(picture, title) if kind == "svg" else picture


def _answer(
    process: subprocess.Popen[bytes], text: bytes, slow: Callable[[], None]
) -> tuple[bytes, bytes]:
    from subprocess import TimeoutExpired

    try:
        return process.communicate(text, timeout=_PATIENCE)
    except TimeoutExpired:
        slow()
        return process.communicate()


def save(tree: Tree, path: str, title: str = "", slow: Callable[[], None] = lambda: None) -> None:
    """Draw the tree into a file, in the format that its name ends in, all or nothing.

    Arguments as those of `draw`.

    Raises:
        BadRequest: its name ends in no format that can be drawn.
        NotFound: Graphviz is not installed, or there is no such folder.
        IoFailed, NoSpace, ReadOnly: it could not be drawn or written.
    """
    picture = draw(tree, picture_kind(path), title, slow)
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
