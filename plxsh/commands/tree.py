"""`plxsh tree`: who was cloned from whom, drawn on the terminal or into a picture file."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Final

import click

from core.registry import Registry
from core.snaplog import SnapshotId
from core.tree import Export, Tree, read_tree
from core.tree_picture import picture_kind, save
from core.tree_text import Look, text_drawing
from plxsh import render
from plxsh.context import OUTPUTS, Settings, pass_settings
from plxsh.exports import open_exports
from plxsh.groups import Command
from plxsh.params import FILE, VDI
from plxsh.progress import Progress

_UNCUT: Final = 1000
_NARROWEST: Final = 20
_STYLES: Final[dict[Look, dict[str, object]]] = {
    "heading": {"bold": True},
    "faint": {"dim": True},
    "focus": {"bold": True},
    "open": {"fg": "green", "bold": True},
    "deleted": {"dim": True},
    "damaged": {"fg": "red"},
}


@click.command(
    cls=Command,
    effect="looks",
    examples=["plxsh tree", "plxsh tree web", "plxsh tree -o tree.svg", "plxsh tree -o json"],
)
@click.argument("vdi", type=VDI, required=False)
@click.option(
    "-o",
    "file",
    metavar="FILE",
    type=FILE,
    help="Draw a picture into FILE (.svg, .ps, .png, .pdf or .dot), over one that is there.",
)
@pass_settings
def tree(settings: Settings, vdi: str | None, file: str | None) -> None:
    """Draw the family tree of VDIs and their snapshots.

    It is that of all VDIs, or of one with its ancestors and descendants.

    FROM is the snapshot that a VDI was cloned from, OWN the bytes that only it holds. OPEN
    is what virtual machines have open: "w" the VDI, "r" the VDI to read, "s" a snapshot of
    it. The tree of one VDI shows its newest snapshots as well, each with its clones.

    In a picture every VDI is a card with its snapshots, from which lines lead to their
    clones; many small VDIs stand together in a frame. In a browser the mouse tells more.
    Pictures need Graphviz; a .dot file does not.
    """
    if file in OUTPUTS:  # the global option means the same before and behind every command
        settings.take("output", file)
        file = None
    if file is not None:
        picture_kind(file)  # refuse a name that cannot be drawn before anything is read
    found = _read(settings, vdi)
    if file is not None:
        if not settings.dry_run:
            wait = f"Graphviz draws {len(found.branches)} VDIs, which takes a while"
            save(found, file, _title(settings, found), lambda: settings.note(wait))
        what = f"{len(found.branches)} VDIs into {file}"
        render.outcome(settings, "draw", "drew", what, {"file": file, "vdis": len(found.branches)})
    elif settings.output in ("json", "yaml"):
        render.data(settings, {"vdis": found.data()})
    else:
        _draw(settings, found)


def _read(settings: Settings, vdi: str | None) -> Tree:
    exports = [
        Export(export.vdi, _snapshot(export.snapshot), export.read_only, len(export.clients))
        for export in open_exports(settings)
    ]
    store = settings.blockstore()
    try:
        family = None if vdi is None else Registry(store).find(vdi).id
        with Progress(settings, "read", "VDIs") as progress:
            return read_tree(store, family, exports, _when_slow(progress))
    finally:
        store.close()


def _when_slow(progress: Progress) -> Callable[[int, int | None], None]:
    """Return what tells of progress only after a second: most trees take less."""
    start = time.monotonic()

    def tell(done: int, total: int | None, /) -> None:
        if time.monotonic() - start > 1:
            progress(done, total)

    return tell


def _snapshot(text: str | None) -> SnapshotId | None:
    if text is None:
        return None
    block, offset = text.split(".")
    return SnapshotId(int(block), int(offset))


def _title(settings: Settings, found: Tree) -> str:
    """Return the heading of a picture."""
    what = f"{len(found.branches)} VDI{'s' * (len(found.branches) != 1)}"
    if found.focus is not None and found.focus in found.branches:
        focus = found.branches[found.focus]
        what = f"the family of VDI {focus.id} {focus.name}, {what}"
    return f"{os.path.basename(settings.store)}: {what}, {time.strftime('%Y-%m-%d %H:%M')}"


def _draw(settings: Settings, found: Tree) -> None:
    """Write the drawing to standard output, as wide as the terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNCUT
    boxes = _draws_boxes(sys.stdout.encoding)
    drawing = text_drawing(found, time.time_ns(), max(width, _NARROWEST), boxes)
    if not drawing.lines:
        settings.note("there are no VDIs")
        return
    lines = [
        "".join(_styled(span.text, span.look) if settings.color else span.text for span in line)
        for line in drawing.lines
    ]
    click.echo("\n".join(lines))
    if drawing.left_out:
        settings.note(f"no room for {', '.join(drawing.left_out)}; -o json has it all")


def _styled(text: str, look: Look) -> str:
    style = _STYLES.get(look)
    return click.style(text, **style) if style else text  # type: ignore[arg-type]


def _draws_boxes(encoding: str | None) -> bool:
    """Say whether a terminal or file in this encoding can take every character."""
    return (encoding or "").lower().replace("-", "").startswith("utf")
