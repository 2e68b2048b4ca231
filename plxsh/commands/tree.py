"""`plxsh tree`: who was cloned from whom, drawn on the terminal or into a picture file."""

from __future__ import annotations

import shutil
import sys
from typing import Final

import click

from core.registry import Registry
from core.tree import read_tree
from core.tree_picture import picture_kind, save
from core.tree_text import text_lines
from plxsh import render
from plxsh.context import Settings, pass_settings
from plxsh.groups import Command
from plxsh.params import VDI

_UNCUT: Final = 1000


@click.command(cls=Command, examples=["plxsh tree", "plxsh tree web", "plxsh tree -o tree.svg"])
@click.argument("vdi", type=VDI, required=False)
@click.option(
    "-o",
    "file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Draw a picture into FILE; it ends in .svg, .ps, .png, .pdf or .dot.",
)
@pass_settings
def tree(settings: Settings, vdi: str | None, file: str | None) -> None:
    """Draw the family tree of all VDIs, or of one with its ancestors and descendants.

    In the text FROM is the snapshot that a VDI was cloned from. In a picture boxes are VDIs,
    points are snapshots (block, offset), and the number on a line is how many snapshots
    there are in between. Pictures need Graphviz; a .dot file does not.
    """
    if file is not None:
        picture_kind(file)  # refuse a name that cannot be drawn before anything is read
    store = settings.blockstore()
    try:
        family = None if vdi is None else Registry(store).find(vdi).id
        found = read_tree(store, family)
    finally:
        store.close()
    if file is not None:
        if not settings.dry_run:
            save(found, file)
        what = f"{len(found.branches)} VDIs into {file}"
        render.outcome(settings, "draw", "drew", what, {"file": file, "vdis": len(found.branches)})
    elif settings.output in ("json", "yaml"):
        render.data(settings, {"vdis": found.data()})
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNCUT
        lines = text_lines(found, width, _draws_boxes(sys.stdout.encoding))
        if lines:
            click.echo("\n".join(lines))
        else:
            settings.note("there are no VDIs")


def _draws_boxes(encoding: str | None) -> bool:
    """Say whether a terminal or file in this encoding can take every character."""
    return (encoding or "").lower().replace("-", "").startswith("utf")
