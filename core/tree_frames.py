"""What of a family tree stands in frames, so that a picture of 1,000 VDIs can be read.

A VDI that is drawn in full takes a line of the picture. Clones of one snapshot that have
no clones themselves stand together in a frame, in columns. If that is not enough, whole
small families do, as indented lists; the larger the tree, the larger families count as
small. Long chains of VDIs, each the only clone of the one before, are frames as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

from core.snaplog import SnapshotId
from core.tree import Branch, Tree

_CROWD: Final = 8
_CHAIN: Final = 8
_SLIM: Final = 10
_ROWS: Final = 3
_FAMILY_ROWS: Final = 8
"""A frame of all has so many rows to a column, any frame at least so many; lists need more."""
_HEIGHT: Final = 3500
_LINE: Final = 40
_CELL: Final = 22
_TITLE: Final = 40
"""Heights in pixels: what is aimed at, of a VDI in full, of a cell, of a frame's title."""


@dataclass(frozen=True, slots=True)
class Frame:
    """VDIs that stand together, each with how deep it is below the first.

    They come from the snapshot `fork` of `parent`, or from nowhere; a chain goes on below.
    """

    kind: Literal["crowd", "families", "chain"]
    parent: int | None
    fork: SnapshotId | None
    cells: tuple[tuple[int, Branch], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Frames, the VDIs outside of them, and how many columns a frame may have."""

    frames: list[Frame]
    lines: list[Branch]
    columns: int


def arrange(tree: Tree) -> Layout:
    """Choose the frames: none that is not needed to keep the picture at a height to read."""
    walked = [branch for branch, _ in tree.walk()]
    sizes: dict[int, int] = {}
    for branch in reversed(walked):
        below = tree.children.get(branch.id, [])
        sizes[branch.id] = 1 + sum(sizes[child] for child in below)
    chains = _chains(tree, walked)
    best = _layout(tree, walked, sizes, chains, 0)
    small = 1
    while _height(best) > _HEIGHT and small < len(walked):
        other = _layout(tree, walked, sizes, chains, small)
        best = min(best, other, key=_height)
        small *= 2
    return best


def _chains(tree: Tree, walked: list[Branch]) -> dict[int, Frame]:
    """Return the frames of long chains by the ids of all who stand in them."""
    frames: dict[int, Frame] = {}
    seen: set[int] = set()
    for first in walked:
        run = [first]
        while first.id not in seen and len(tree.children.get(run[-1].id, [])) == 1:
            run.append(tree.branches[tree.children[run[-1].id][0]])
        seen.update(branch.id for branch in run)
        inner = [branch for branch in run[1:-1] if not branch.note]
        if len(run) > _CHAIN and len(inner) == len(run) - 2:
            cells = tuple((0, branch) for branch in inner)
            frame = Frame("chain", inner[0].parent, inner[0].fork, cells)
            frames |= dict.fromkeys((branch.id for branch in inner), frame)
    return frames


def _layout(
    tree: Tree, walked: list[Branch], sizes: dict[int, int], chains: dict[int, Frame], small: int
) -> Layout:
    """Return the layout in which families of up to `small` VDIs can stand in frames.

    When that is 0, only VDIs about which there is nothing to draw can.
    """
    crowds: dict[tuple[int | None, SnapshotId | None], list[Branch]] = {}
    for branch in walked:
        plain = not (branch.points or branch.note or branch.exports) and branch.state == "live"
        above = 0 if branch.parent is None else sizes[branch.parent]
        top = branch.parent is None or above > small
        if branch.id not in chains and top and sizes[branch.id] <= max(small, int(plain)):
            fork = None if branch.parent is None else branch.fork
            crowds.setdefault((branch.parent, fork), []).append(branch)
    frames = []
    for (parent, fork), crowd in crowds.items():
        cells = tuple(cell for branch in crowd for cell in _family(tree, branch))
        families = len(cells) > len(crowd)
        if len(cells) > (1 if parent is None or families else _CROWD):
            frames.append(Frame("families" if families else "crowd", parent, fork, cells))
    inside = {branch.id for frame in frames for _, branch in frame.cells}
    frames += [
        frame
        for number, frame in chains.items()
        if number == frame.cells[0][1].id and number not in inside
    ]
    inside |= chains.keys()
    lines = [branch for branch in walked if branch.id not in inside]
    framed = sum(len(frame.cells) for frame in frames)
    columns = max(1, round((framed / _SLIM) ** 0.5))
    return Layout(frames, lines, columns)


def _family(tree: Tree, branch: Branch) -> list[tuple[int, Branch]]:
    """Return a VDI and its descendants, parents first, with their depths."""
    found = []
    stack = [(0, branch.id)]
    while stack:
        depth, number = stack.pop()
        found.append((depth, tree.branches[number]))
        stack += [(depth + 1, child) for child in reversed(tree.children.get(number, []))]
    return found


def frame_columns(layout: Layout, frame: Frame) -> int:
    """Return in how many columns the VDIs of a frame stand."""
    rows = _FAMILY_ROWS if frame.kind == "families" else _ROWS
    return min(ceil(len(frame.cells) / rows), layout.columns)


def _height(layout: Layout) -> int:
    parents = {branch.parent for branch in layout.lines} | {f.parent for f in layout.frames}
    ends = sum(1 + len(b.points) // 2 for b in layout.lines if b.id not in parents)
    rows = sum(ceil(len(f.cells) / frame_columns(layout, f)) for f in layout.frames)
    return ends * _LINE + rows * _CELL + len(layout.frames) * _TITLE
