"""What a picture of the family tree says: the cards of VDIs and the frames, for Graphviz.

Labels are Graphviz's kind of HTML; a cell of it can have a tooltip, a colour and an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from core.snaplog import SnapshotId
from core.text import columns, human_size
from core.tree import Branch, Export, Fold, Point, State
from core.tree_frames import Frame

QUIET: Final = "#555555"
_WRAP: Final = 32
_FILLS: Final[dict[State, str]] = {"live": "#dcebf9", "deleted": "#e4e4e4", "damaged": "#f9d6d2"}
_LINES: Final[dict[State, str]] = {"live": "#39658f", "deleted": "#8a8a8a", "damaged": "#b3392b"}
_OPEN_FILL: Final = "#d9f2e0"
_OPEN_LINE: Final = "#1f8a4c"
_FRAME: Final = "#b8c4d0"
_BREAK: Final = '<BR ALIGN="LEFT"/>'


# -- frames ----------------------------------------------------------------------------


def frame_look(frame: Frame, across: int) -> dict[str, Any]:
    """Return the attributes of a frame: a title over VDIs in columns, in a chain in rows."""
    count = len(frame.cells)
    down = -(-count // across)
    steps = (across, 1) if frame.kind == "chain" else (1, down)
    rows = []
    for y in range(down):
        places = [y * steps[0] + x * steps[1] for x in range(across)]
        row = [_cell(frame, *frame.cells[place]) for place in places if place < count]
        if row:
            rows.append(f"<TR>{''.join(row)}</TR>")
    title = escape(_frame_title(frame))
    label = (
        f'<TABLE BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2" COLOR="{_FRAME}"'
        f' BGCOLOR="#f6f8fa" STYLE="ROUNDED"><TR><TD ALIGN="LEFT">'
        f'<FONT POINT-SIZE="9" COLOR="{QUIET}">{title}</FONT></TD></TR>'
        f'<TR><TD><TABLE BORDER="0" CELLBORDER="1" CELLSPACING="3" CELLPADDING="2">'
        f"{''.join(rows)}</TABLE></TD></TR></TABLE>"
    )
    return {
        "label": f"<{label}>",
        "tooltip": tooltip(_frame_title(frame)),
    }


def _frame_title(frame: Frame) -> str:
    count = len(frame.cells)
    if frame.kind == "chain":
        return f"{count} generations, each cloned from the one before"
    if frame.kind == "families":
        return f"{count} VDIs, clones below what they were cloned from"
    return f"{count} clones" if frame.fork else f"{count} VDIs without clones"


def _cell(frame: Frame, depth: int, branch: Branch) -> str:
    """Return a VDI as a cell of a frame, all on one line that is not too long."""
    fill, line = _colours(branch)
    sign = "\xa0\xa0\xa0" * (depth - 1) + "\u2514 " * (depth > 0)
    if frame.kind == "chain":
        sign = "\u2192 "
    name = _html_lines(_title(branch))
    more = [] if branch.state == "damaged" else [human_size(branch.own)]
    more += [_count(branch.snapshots, "snapshot")] if branch.snapshots else []
    more += ["open"] if _is_open(branch) else []
    more += [] if branch.state == "live" else [branch.state]
    return (
        f'<TD ID="vdi_{branch.id}" ALIGN="LEFT" BALIGN="LEFT" COLOR="{line}" BGCOLOR="{fill}"'
        f'{_html_tooltip(_vdi_about(branch))}><FONT POINT-SIZE="9">{sign}{name}</FONT>'
        f'<FONT POINT-SIZE="7" COLOR="{QUIET}">  {", ".join(more)}</FONT></TD>'
    )


# -- VDIs and snapshots ----------------------------------------------------------------


def card_look(branch: Branch) -> dict[str, Any]:
    """Return the attributes of the card of a VDI: its name, and a line a point."""
    fill, line = _colours(branch)
    more = "damaged"
    if branch.state != "damaged":
        more = f"{human_size(branch.own)} own of {human_size(branch.size)}"
    more += ", deleted" if branch.state == "deleted" else ""
    if _is_open(branch):
        more += f'</FONT>{_BREAK}<FONT POINT-SIZE="8" COLOR="{_OPEN_LINE}">{_open_words(branch)}'
    style = "ROUNDED" if branch.state == "live" else "ROUNDED,DASHED"
    rows = [
        f'<TR><TD ALIGN="LEFT" BALIGN="LEFT" ID="vdi_{branch.id}"'
        f"{_html_tooltip(_vdi_about(branch))}>"
        f"<B>{_html_lines(_title(branch))}</B>{_BREAK}"
        f'<FONT POINT-SIZE="8" COLOR="{QUIET}">{more}</FONT></TD></TR>'
    ]
    for point in branch.points:
        rows += _fold_row(point.fold)
        rows.append(_point_row(branch, point))
    label = (
        f'<TABLE BORDER="{2 if _is_open(branch) else 1}" CELLBORDER="0" CELLSPACING="3"'
        f' CELLPADDING="2" COLOR="{line}" BGCOLOR="{fill}" STYLE="{style}">{"".join(rows)}</TABLE>'
    )
    return {"label": f"<{label}>", "tooltip": tooltip(*_vdi_about(branch))}


def _title(branch: Branch) -> str:
    return f"{branch.id}: {branch.name}" if branch.name else f"{branch.id}"


def _is_open(branch: Branch) -> bool:
    return bool(branch.exports or any(point.exports for point in branch.points))


def _open_words(branch: Branch) -> str:
    if not branch.exports:
        return "a snapshot is open"
    return _exports_words(branch.exports)


def _exports_words(exports: Sequence[Export]) -> str:
    """Return who has something open, in words."""
    clients = sum(export.clients for export in exports)
    how = "" if any(not export.read_only for export in exports) else " to read"
    return f"open{how}, {_count(clients, 'client')}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _colours(branch: Branch) -> tuple[str, str]:
    """Return the colours of a VDI: inside, and of its border."""
    if _is_open(branch) and branch.state == "live":
        return _OPEN_FILL, _OPEN_LINE
    return _FILLS[branch.state], _LINES[branch.state]


def _vdi_about(branch: Branch) -> list[str]:
    """Return the lines of the tooltip of a VDI."""
    if branch.state == "damaged":
        return [f"VDI {branch.id}", "damaged", branch.note]
    about = [
        branch.name,
        f"VDI {branch.id}, {human_size(branch.size)}, {human_size(branch.own)} of its own",
        f"created {_time(branch.created_ns)}",
        f"written {_time(branch.modified_ns)}",
    ]
    if branch.fork is not None:
        about.append(f"cloned from snapshot {branch.fork} of VDI {branch.parent}")
    about.append(_count(branch.snapshots, "snapshot"))
    if branch.points:
        last = branch.points[-1]
        about[-1] += f", the last shown {last.id} {last.label}".rstrip()
        about.append(f"taken {_time(last.time_ns)}" if last.state != "damaged" else "")
    about.append(_open_words(branch) if _is_open(branch) else "")
    about.append("" if branch.state == "live" else branch.state)
    return [line for line in (*about, branch.note) if line]


def _point_row(branch: Branch, point: Point) -> str:
    about = [f"snapshot {point.id} of VDI {branch.id} {branch.name}".rstrip()]
    if point.state == "damaged":
        about.append("not in the log")
    else:
        own = f"{human_size(point.own)} of its own"
        about += [point.label, _time(point.time_ns), f"{human_size(point.size)}, {own}"]
    about += ["deleted"] if point.state == "deleted" else []
    about += [_exports_words(point.exports)] if point.exports else []
    line = _OPEN_LINE if point.exports else _LINES[point.state]
    style = "ROUNDED" if point.state == "live" else "ROUNDED,DASHED"
    name = f'<FONT POINT-SIZE="8">{_html_lines(point.label)}</FONT>  ' if point.label else ""
    where = f"{point.id}" if point.state == "live" else f"{point.id} {point.state}"
    return (
        f'<TR><TD PORT="{port(point.id)}" ID="vdi_{branch.id}_{port(point.id)}" BORDER="1"'
        f' STYLE="{style}" ALIGN="LEFT" BALIGN="LEFT" COLOR="{line}" BGCOLOR="#ffffff"'
        f'{_html_tooltip(about)}>{name}<FONT POINT-SIZE="7" COLOR="{QUIET}">{where}</FONT>'
        "</TD></TR>"
    )


def _fold_row(fold: Fold) -> list[str]:
    """Return the line for snapshots that are left out, if there are any."""
    if not fold.count:
        return []
    about = [
        f"{_count(fold.count, 'snapshot')} left out, {human_size(fold.own)} of their own",
        f"from {_time(fold.first_ns)}",
        f"to {_time(fold.last_ns)}",
    ]
    first, last = (_time(time_ns)[:10] for time_ns in (fold.first_ns, fold.last_ns))
    when = first if first == last else f"{first} to {last}"
    return [
        f'<TR><TD ALIGN="LEFT"{_html_tooltip(about)}><FONT POINT-SIZE="7" COLOR="{QUIET}">'
        f"+{_count(fold.count, 'snapshot')}, {when}</FONT></TD></TR>"
    ]


def port(where: SnapshotId) -> str:
    """Return the name of a point's place on the card of its VDI, where edges begin."""
    return f"at_{where.block}_{where.offset}"


# -- quoting ---------------------------------------------------------------------------


def _html_lines(text: str) -> str:
    """Return text as lines of Graphviz's HTML.

    It drops the second of two spaces and replaces what stands behind a backslash.
    """
    lines = (escape(line).replace("\\", "\\\\") for line in _wrapped(text))
    return _BREAK.join(line.replace("  ", " \xa0") for line in lines)


def quoted(*lines: str) -> str:
    """Return lines as one string of the dot language that shows them just as they are."""
    escaped = (
        line.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') for line in lines
    )
    return '"' + "\\n".join(escaped) + '"'


def tooltip(*lines: str) -> str:
    """Return lines as a tooltip, in which Graphviz replaces backslashes twice."""
    return quoted(*(line.replace("\\", "\\\\") for line in lines if line))


def _html_tooltip(lines: Sequence[str]) -> str:
    """Return lines as the tooltip of a cell, which Graphviz shows only with a link."""
    said = "&#10;".join(escape(line.replace("\\", "\\\\")) for line in lines if line)
    return f' HREF="#" TOOLTIP="{said}"'


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
