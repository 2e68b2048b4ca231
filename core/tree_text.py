"""The family tree of VDIs as a drawing for a terminal.

A line is a list of spans; a span says what it is, and who prints it chooses the colours.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from core.text import columns, human_age, human_size
from core.tree import Branch, Export, Fold, Point, State, Tree

Look = Literal["", "heading", "faint", "focus", "open", "deleted", "damaged"]

_LINES: Final = {True: ("│  ", "   ", "├─ ", "└─ ", "…"), False: ("|  ", "   ", "|- ", "`- ", "~")}
_NAME_ROOM: Final = 20
_PATH: Final = 100
_COLUMNS: Final = ("SIZE", "OWN", "SNAPS", "AGE", "OPEN", "FROM")
_LEFT: Final = frozenset(("OPEN", "FROM"))
_DISPENSABLE: Final = ("OWN", "AGE", "SNAPS", "FROM", "SIZE", "OPEN")
"""Columns in the order in which they are left out of a narrow drawing."""
_STATES: Final[dict[State, Look]] = {"live": "", "deleted": "deleted", "damaged": "damaged"}


class Span(NamedTuple):
    """A part of a line, and what it is."""

    text: str
    look: Look = ""


Line = list[Span]


class Drawing(NamedTuple):
    """Lines, headings first, and the headings of what there was no room for."""

    lines: list[Line]
    left_out: list[str]


@dataclass(frozen=True, slots=True)
class _Row:
    """What one line says: `path` as that of `Tree.walk`, cut at the top; `depth` is whole."""

    path: tuple[bool, ...]
    depth: int
    id: str
    name: str
    mark: str
    look: Look
    cells: Mapping[str, str]


def text_drawing(tree: Tree, now_ns: int, width: int = 80, unicode: bool = True) -> Drawing:
    """Return a drawing for a terminal: a heading, a line a VDI, and notes at the end.

    The family of one VDI has lines for snapshots as well, and clones hang below theirs;
    else FROM is the snapshot that a VDI was cloned from. OPEN is what servers give to
    clients: `w` the VDI, `r` the VDI to read, `s` one of its snapshots.

    Args:
        tree: what to draw.
        now_ns: the time from which ages count, in nanoseconds since 1970.
        width: columns of the terminal, from 20.
        unicode: draw with box characters and show names as they are; else only ASCII.
    """
    if not tree.branches:
        return Drawing([], [])
    rows = list(_rows(tree, now_ns))
    ids = max(2, *(len(row.id) for row in rows))
    shown = {
        title: max(len(title), *(columns(row.cells.get(title, "")) for row in rows))
        for title in _COLUMNS
        if any(row.cells.get(title) for row in rows)
    }
    wanted = max(4, *(_wanted(row, unicode) for row in rows))
    left_out = []
    for title in _DISPENSABLE:
        if _room(width, ids, shown) >= min(wanted, _NAME_ROOM):
            break
        if shown.pop(title, None):
            left_out.append(title)
    room = max(min(wanted, _room(width, ids, shown)), 6)
    heads = "".join("  " + _cell(title, title, shown) for title in shown)
    lines = [[Span(f"{'ID':>{ids}}  {'NAME':{room}}{heads}".rstrip(), "heading")]]
    deepest = room if wanted <= room else room - _NAME_ROOM // 2
    lines += [_line(row, ids, room, deepest, shown, unicode) for row in rows]
    for branch, _ in tree.walk():
        if branch.note:
            note = _shown_as(f"! VDI {branch.id}: {branch.note}", unicode)
            folded = textwrap.wrap(note, width, subsequent_indent="  ")
            lines += [[Span(part, "damaged")] for part in folded]
    return Drawing(lines, [title for title in _COLUMNS if title in left_out])


def plain(lines: Sequence[Line]) -> list[str]:
    """Return lines without what says how they look."""
    return ["".join(span.text for span in line) for line in lines]


# -- what there is to say --------------------------------------------------------------

_Node = Branch | Point | Fold


def _rows(tree: Tree, now_ns: int) -> Iterator[_Row]:
    """Yield a row for each VDI, and for the snapshots if this is one VDI's family."""
    clones: dict[tuple[int, object], list[Branch]] = {}
    for branch in tree.branches.values():
        if branch.parent is not None:
            clones.setdefault((branch.parent, branch.fork), []).append(branch)
    roots = [tree.branches[number] for number in tree.children.get(None, [])]
    stack: list[tuple[_Node, int, tuple[bool, ...], int]]
    stack = [(root, root.id, (), 0) for root in reversed(roots)]
    while stack:
        node, vdi, path, depth = stack.pop()
        below: list[_Node] = []
        if isinstance(node, Branch):
            vdi = node.id
            yield _vdi_row(tree, node, now_ns, path, depth)
            if tree.focus is None:
                below += [tree.branches[child] for child in tree.children.get(node.id, [])]
            else:
                below += _log(node, tree.focus, clones)
        elif isinstance(node, Point):
            yield _point_row(node, now_ns, path, depth)
            below += clones.get((vdi, node.id), [])
        else:
            yield _fold_row(node, now_ns, path, depth)
        path = path[-_PATH:]
        stack += [
            (child, vdi, (*path, i + 1 < len(below)), depth + 1)
            for i, child in reversed([*enumerate(below)])
        ]


def _log(
    branch: Branch, focus: int, clones: Mapping[tuple[int, object], list[Branch]]
) -> Iterator[_Node]:
    """Yield what the family of one VDI shows of a log: all of its own, forks of the others."""
    for point in branch.points:
        if branch.id == focus and point.fold.count:
            yield point.fold
        if branch.id == focus or point.exports or (branch.id, point.id) in clones:
            yield point


def _vdi_row(tree: Tree, branch: Branch, now_ns: int, path: tuple[bool, ...], depth: int) -> _Row:
    damaged = branch.state == "damaged"
    fork = "-" if branch.fork is None else f"{branch.parent}@{branch.fork}"
    if branch.fork is not None and branch.parent is None:
        fork = f"?@{branch.fork}"
    elif tree.focus is not None:
        fork = ""  # it hangs there
    opened = _opened(branch)
    look = _STATES[branch.state]
    if not look:
        look = "open" if opened else "focus" if branch.id == tree.focus else ""
    cells = {
        "SIZE": "?" if damaged else human_size(branch.size),
        "OWN": "?" if damaged else human_size(branch.own),
        "SNAPS": "?" if damaged else str(branch.snapshots),
        "AGE": "?" if damaged else human_age(branch.created_ns, now_ns),
        "OPEN": opened,
        "FROM": fork,
    }
    mark = "" if branch.state == "live" else f" ({branch.state})"
    mark = mark if branch.name else mark.lstrip()
    return _Row(path, depth, str(branch.id), branch.name, mark, look, cells)


def _opened(branch: Branch) -> str:
    """Return how servers give a VDI and its snapshots to clients, in letters."""
    letters = {("r" if export.read_only else "w") for export in branch.exports}
    if any(point.exports for point in branch.points):
        letters.add("s")
    return " ".join(sorted(letters, key="wrs".index)) + _clients(branch.exports)


def _clients(exports: Sequence[Export]) -> str:
    count = sum(export.clients for export in exports)
    return f" {count} clients" if count > 1 else ""


def _point_row(point: Point, now_ns: int, path: tuple[bool, ...], depth: int) -> _Row:
    mark = "" if point.state == "live" else f" ({point.state})"
    cells = {}
    if point.state != "damaged":
        cells = {
            "SIZE": human_size(point.size),
            "OWN": human_size(point.own),
            "AGE": human_age(point.time_ns, now_ns),
            "OPEN": "r" + _clients(point.exports) if point.exports else "",
        }
    look = _STATES[point.state] or ("open" if point.exports else "")
    name = f"@{point.id} {point.label}".rstrip()
    return _Row(path, depth, "", name, mark, look, cells)


def _fold_row(fold: Fold, now_ns: int, path: tuple[bool, ...], depth: int) -> _Row:
    first, last = human_age(fold.first_ns, now_ns), human_age(fold.last_ns, now_ns)
    ages = first if first == last else f"{first} - {last}"
    name = f"+{fold.count} snapshot{'s' * (fold.count != 1)}, {ages}"
    return _Row(path, depth, "", name, "", "faint", {"OWN": human_size(fold.own)})


# -- how it is laid out ----------------------------------------------------------------


def _room(width: int, ids: int, shown: Mapping[str, int]) -> int:
    """Return the columns that are left for names."""
    return width - ids - 2 - sum(shown.values()) - 2 * len(shown)


def _wanted(row: _Row, unicode: bool) -> int:
    return 3 * min(row.depth, _PATH) + columns(_shown_as(row.name, unicode)) + len(row.mark)


def _line(
    row: _Row, ids: int, room: int, deepest: int, shown: Mapping[str, int], unicode: bool
) -> Line:
    twigs = _twigs(row, min(deepest, room - len(row.mark) - 4), unicode)
    left = room - columns(twigs) - len(row.mark)
    name = _cut(_shown_as(row.name, unicode), max(left, 1), _LINES[unicode][4]) + row.mark
    cells = "".join("  " + _cell(title, row.cells.get(title, ""), shown) for title in shown)
    cells = (" " * (room - columns(twigs) - columns(name)) + cells).rstrip()
    quiet: Look = row.look if row.look in ("faint", "deleted", "damaged") else ""
    line = [Span(f"{row.id:>{ids}}  ", quiet), Span(twigs, "faint")]
    return [span for span in [*line, Span(name, row.look), Span(cells, quiet)] if span.text]


def _twigs(row: _Row, room: int, unicode: bool) -> str:
    """Return the lines of the tree; deep down the outermost give way to the depth."""
    bar, blank, tee, corner, more = _LINES[unicode]
    if not row.path:
        return ""
    drawn = "".join(bar if goes_on else blank for goes_on in row.path[:-1])
    drawn += tee if row.path[-1] else corner
    if row.depth > len(row.path) or len(drawn) > max(room, 6):
        depth = f"{more}{row.depth} "
        kept = max((room - len(depth)) // 3, 1) * 3
        drawn = depth + drawn[-kept:]
    return drawn


def _cell(title: str, text: str, shown: Mapping[str, int]) -> str:
    pad = " " * (shown[title] - columns(text))
    return text + pad if title in _LEFT else pad + text


def _cut(name: str, room: int, more: str) -> str:
    """Return a name in so many columns; what does not fit is cut off, and seen to be."""
    if columns(name) <= room:
        return name
    while columns(name) > room - 1:
        name = name[:-1]
    return name + more


def _shown_as(text: str, unicode: bool) -> str:
    return text if unicode else text.encode("ascii", "backslashreplace").decode("ascii")
