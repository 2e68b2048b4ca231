"""What no record can say: values that are impossible although the checksum is right.

A checksum tells damage, not malice, and whoever makes a store also makes its checksums. So
every number that is taken from a record is held against what a store can hold, once, when
the record is read: behind this module nobody has to think of it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from core.errors import BadRequest
from core.format import (
    DELETED,
    FANOUT_SHIFT,
    FREE,
    KIND_SNAPSHOT,
    LIVE,
    LOG_RECORDS,
    MAX_BLOCKS,
    MAX_HEIGHT,
    MAX_SEQUENCE,
    MAX_TOKEN,
    MAX_VDI_SIZE,
    WRITABLE,
    LogRecord,
    VdiRecord,
    blocks_for,
    entry_block,
)
from core.schedule import check_schedule

Holds = Callable[[int], bool]
"""Says whether a block can hold data, nodes or log pages (`Blockstore.holds_payload`)."""

_MAX_PAGES: Final = 1 << 48


def record_problem(record: VdiRecord, holds: Holds) -> str:
    """Return what is impossible about a VDI record, or nothing; names are not looked at."""
    if record.state not in (LIVE, DELETED, FREE):
        return f"there is no state {record.state}"
    if not 1 <= record.sequence <= MAX_SEQUENCE:
        return f"no commit has the number {record.sequence}"
    if record.token >= MAX_TOKEN:
        return f"no fencing token is {record.token}"
    if record.state == FREE:
        return ""  # nothing else of it is ever used
    times = (record.created_ns, record.modified_ns, record.deleted_ns)
    return (
        _time_problem(*times)
        or _tree_problem(record.root, record.height, record.size, holds)
        or _count_problem(record.mapped, record.own)
        or _schedule_problem(record)
        or _log_problem(record, holds)
        or page_problem(record.page, holds)
    )


def page_problem(page: Sequence[LogRecord], holds: Holds) -> str:
    """Return what is impossible about the lines of a page of a snapshot log, or nothing."""
    for number, line in enumerate(page):
        problem = _line_problem(line, holds)
        if problem:
            return f"line {number} of the snapshot log: {problem}"
    return ""


def _line_problem(line: LogRecord, holds: Holds) -> str:
    problem = _time_problem(line.time_ns)
    if problem or line.kind != KIND_SNAPSHOT:
        return problem
    if line.root & WRITABLE:
        return "a snapshot owns no block"
    return _tree_problem(line.root, line.height, line.size, holds) or _count_problem(
        line.mapped, line.own
    )


def _time_problem(*times: int) -> str:
    for time_ns in times:
        if time_ns < 0:
            return f"nothing happened {-time_ns} ns before 1970"
    return ""


def _tree_problem(root: int, height: int, size: int, holds: Holds) -> str:
    if not 1 <= height <= MAX_HEIGHT:
        return f"a tree cannot have {height} levels"
    if size > MAX_VDI_SIZE:
        return f"a size of {size} bytes is not possible"
    if blocks_for(size) > 1 << FANOUT_SHIFT * height:
        return f"a tree of {height} levels cannot map {size} bytes"
    return _pointer_problem("the root of the tree", root, holds)


def _pointer_problem(what: str, entry: int, holds: Holds) -> str:
    if entry and not holds(entry_block(entry)):
        return f"{what} cannot be in block {entry_block(entry)}"
    return ""


def _count_problem(mapped: int, own: int) -> str:
    if max(mapped, own) > MAX_BLOCKS:
        return f"no store has {max(mapped, own)} blocks"
    return ""


def _schedule_problem(record: VdiRecord) -> str:
    try:
        check_schedule(record.schedule_ns, record.schedule_keep)
    except BadRequest as error:
        return error.message
    return ""


def _log_problem(record: VdiRecord, holds: Holds) -> str:
    """Return what is impossible about where the snapshot log is and how long it is."""
    lines = record.log_number * LOG_RECORDS + len(record.page)
    if record.log_number > _MAX_PAGES or record.log_first > record.log_number:
        return f"a snapshot log cannot have the pages {record.log_first} to {record.log_number}"
    if record.log_retired > lines:
        return f"it drops {record.log_retired} lines of a snapshot log that is shorter"
    if record.snapshots > lines:
        return f"it counts {record.snapshots} snapshots in a log of {lines} lines"
    if record.log_kept and record.log_kept_number >= record.log_number:
        return f"it keeps page {record.log_kept_number} of a snapshot log that is shorter"
    if (record.page or record.log_block) and not holds(record.log_block):
        return f"its snapshot log is to move to block {record.log_block}, which cannot hold it"
    return _pointer_problem(
        "a page of the snapshot log", record.log_previous, holds
    ) or _pointer_problem("a page of the snapshot log", record.log_kept, holds)
