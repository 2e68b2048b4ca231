"""`plxsh snap`: snapshots of VDIs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from core import snaplog
from core.errors import BadRequest
from core.format import BLOCK, BLOCK_SHIFT, VdiRecord, blocks_for
from core.registry import Registry
from core.schedule import MAX_KEEP, check_schedule, interval_text
from core.text import counted, human_size
from plxsh import render
from plxsh.context import Settings, pass_settings
from plxsh.exports import session_for
from plxsh.groups import Group
from plxsh.losing import unkept
from plxsh.params import INTERVAL, SNAPSHOT, VDI, VDI_OR_SNAPSHOT, WordsArgument, names_snapshot
from plxsh.progress import Progress
from plxsh.render import Column

if TYPE_CHECKING:
    from core.image import Image
    from core.session import Session

_LIST: Final = (
    Column("block", "Block", "number"),
    Column("offset", "Offset", "number", rank=-1),
    Column("time", "Time", "time", rank=1),
    Column("time", "Age", "age"),
    Column("root", "Root", "number", rank=2),
    Column("label", "Label", flexible=True),
    Column("scheduled", "Scheduled"),
)
_PLAIN_LIST: Final = tuple(c for c in _LIST if c.kind != "age" and c.key != "scheduled")
_CLONES_SHOWN: Final = 5
_DIFF: Final = (Column("offset", "Offset", "number"), Column("length", "Length", "number"))


def described(snapshot: snaplog.Snapshot) -> dict[str, Any]:
    """Return what commands show of a snapshot."""
    return {
        "block": snapshot.id.block,
        "offset": snapshot.id.offset,
        "time": snapshot.time_ns,
        "root": snapshot.root_block,
        "label": snapshot.label or None,
        "vdi": snapshot.vdi,
        "size": snapshot.size,
        "mapped": snapshot.mapped << BLOCK_SHIFT,
        "scheduled": snapshot.scheduled,
    }


def schedule_of(record: VdiRecord) -> dict[str, Any]:
    """Return what commands show of the schedule of a VDI, None where it has none."""
    every, keep = record.schedule_ns, record.schedule_keep
    return {
        "schedule": interval_text(every) if every else None,
        "schedule_ns": every or None,
        "schedule_keep": keep or None,
    }


@click.group(cls=Group)
def snap() -> None:
    """Take, list, compare and delete snapshots."""


@snap.command(examples=["plxsh snap create base --label patched"], effect="changes")
@click.argument("vdi", type=VDI)
@click.option(
    "--label",
    metavar="LABEL",
    default="",
    help="A name for it; then VDI@LABEL means this snapshot.",
)
@pass_settings
def create(settings: Settings, vdi: str, label: str) -> None:
    """Take a snapshot of a VDI and print its id (BLOCK OFFSET)."""
    with session_for(settings, vdi) as session:
        record = session.registry.find(vdi)
        where = session.snapshot(record, label)
        taken = session.find_snapshot(f"{record.id}@{where}")
    what = f"snapshot {where} of VDI {record.id} {record.name!r}"
    shown = described(taken)
    if settings.dry_run:
        shown["time"] = None  # it will be another
    result = {"snapshot": shown}
    render.outcome(settings, "take", "took", what, result, f"{where.block} {where.offset}")


@snap.command("list", examples=["plxsh snap list base", "plxsh snap list base 1"])
@click.argument("vdi", type=VDI)
@click.argument("number", metavar="[N]", type=click.IntRange(1), required=False)
@pass_settings
def list_(settings: Settings, vdi: str, number: int | None) -> None:
    """List the snapshots of a VDI, newest first: block, offset, time, root, label.

    With N only the newest N. A table marks those that a schedule took, if there are any.
    """
    shown = []
    with closing(settings.blockstore()) as opened:
        record = Registry(opened).find(vdi)
        for snapshot in snaplog.snapshots(opened, record):
            shown.append(described(snapshot))
            if len(shown) == number:
                break
    marked = any(snapshot["scheduled"] for snapshot in shown)
    columns = _LIST if marked else _LIST[:-1]
    render.rows(settings, "snapshots", shown, columns, _PLAIN_LIST)


@snap.command(
    examples=["plxsh snap every base 1h --keep 48", "plxsh snap every base off"],
    effect="changes",
)
@click.argument("vdi", type=VDI)
@click.argument("every", metavar="INTERVAL|off", type=INTERVAL)
@click.option(
    "--keep",
    metavar="N",
    type=click.IntRange(1, MAX_KEEP),
    help="How many of the snapshots so taken stay; the oldest go.",
)
@pass_settings
def every(settings: Settings, vdi: str, every: int, keep: int | None) -> None:
    """Have snapshots of a VDI taken at an interval: 10ms, 1s, 5m, 1h, 1d.

    The tap takes them while a client has the VDI open for writing, and only when something
    was written since the last one. Without a running tap there are none.

    Snapshots taken by hand stay, and so do those of the schedule when it is turned off.
    """
    if every and keep is None:
        raise BadRequest("how many snapshots are to be kept?", "say it with --keep, such as 100")
    check_schedule(every, keep or 0)
    with session_for(settings, vdi) as session:
        record = session.registry.find(vdi)
        what = f"VDI {record.id} {record.name!r} {_schedule_text(every, keep or 0)}"
        over = sum(s.scheduled for s in session.snapshots(record)) - (keep or 0) if every else 0
        if over > 0:
            dropped = counted(over, "scheduled snapshot")
            settings.confirm(f"giving {what} drops {dropped} when the next one is taken")
        session.schedule(record, every, keep or 0)
        changed = replace(record, schedule_ns=every, schedule_keep=keep or 0)
    shown = {"id": record.id, "name": record.name, **schedule_of(changed)}
    render.outcome(settings, "give", "gave", what, {"vdi": shown})


def _schedule_text(every: int, keep: int) -> str:
    """Say what a schedule does."""
    if not every:
        return "no schedule"
    return f"a schedule: a snapshot every {interval_text(every)}, of which {keep} are kept"


@snap.command(examples=["plxsh -y snap delete base@clean"], effect="destroys")
@click.argument("snapshot", metavar="SNAPSHOT", cls=WordsArgument, type=SNAPSHOT)
@pass_settings
def delete(settings: Settings, snapshot: str) -> None:
    """Delete a snapshot; clones made from it are not affected.

    SNAPSHOT is BLOCK OFFSET, BLOCK.OFFSET or VDI@LABEL.
    """
    with session_for(settings, snapshot, True) as session:
        found = session.find_snapshot(snapshot)
        clones = session.clones_of(found)
        what = f"{_named(session, found)} ({_taken(found)}){_going_on(clones)}"
        settings.confirm(f"deleting {what}", found.label or str(found.id))
        session.delete_snapshot(found)
    render.outcome(settings, "delete", "deleted", what, {"snapshot": described(found)})


@snap.command(examples=["plxsh -y snap rollback base base@clean"], effect="destroys")
@click.argument("vdi", type=VDI)
@click.argument("snapshot", metavar="SNAPSHOT", cls=WordsArgument, type=SNAPSHOT)
@pass_settings
def rollback(settings: Settings, vdi: str, snapshot: str) -> None:
    """Make the contents of a VDI those of one of its snapshots.

    What was written since its newest snapshot is lost. Snapshots stay, newer ones too.
    """
    with session_for(settings, vdi) as session:
        record = session.registry.find(vdi)
        found = session.find_snapshot(snapshot)
        what = f"VDI {record.id} {record.name!r} to {_named(session, found)}"
        if found.vdi == record.id:
            lost = unkept(session.store, record) or "nothing that no snapshot has"
            settings.confirm(f"rolling back {what} loses {lost}", record.name)
        session.rollback(record, found)
    result = {
        "vdi": {"id": record.id, "name": record.name, "size": found.size},
        "snapshot": described(found),
    }
    render.outcome(settings, "roll back", "rolled back", what, result)


@snap.command(examples=["plxsh snap diff base@clean base", "plxsh snap diff base@clean web"])
@click.argument("pair", metavar="A B", cls=WordsArgument, type=VDI_OR_SNAPSHOT, count=2)
@pass_settings
def diff(settings: Settings, pair: tuple[str, str]) -> None:
    """List the byte ranges in which two snapshots differ: offset, length.

    Each of A and B is a snapshot or a VDI (its contents now, which must not be in use).
    The cost follows the change, not the size. Ranges are whole blocks of 4 KiB whose bytes
    differ: one that was rewritten with what it held is not listed, nor are zeros over a hole.
    """
    live = not all(map(names_snapshot, pair))
    with settings.session("shared" if live else "read") as session, ExitStack() as stack:
        a, b = (stack.enter_context(_image(session, reference)) for reference in pair)
        end = max(a.size, b.size)
        shown = []
        with Progress(settings, "diff", "blocks") as progress:
            for first, count in a.differences(b):
                offset = first << BLOCK_SHIFT
                shown.append({"offset": offset, "length": min(count * BLOCK, end - offset)})
                progress(first, blocks_for(end))
    render.rows(settings, "changes", shown, _DIFF)


def _image(session: Session, reference: str) -> AbstractContextManager[Image]:
    if names_snapshot(reference):
        return session.reading(session.find_snapshot(reference))
    return nullcontext(session.live_image(session.registry.find(reference)))


def _taken(snapshot: snaplog.Snapshot) -> str:
    """Say when a snapshot was taken and how much was written for it alone."""
    taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.time_ns // 1_000_000_000))
    return f"taken {taken}, {human_size(snapshot.own << BLOCK_SHIFT)} of its own"


def _going_on(clones: Sequence[VdiRecord]) -> str:
    """Say which VDIs were cloned from a snapshot and lose nothing with it."""
    if not clones:
        return ""
    names = ", ".join(f"{clone.name!r}" for clone in clones[:_CLONES_SHOWN])
    more = len(clones) - _CLONES_SHOWN
    names += f" and {more} more" if more > 0 else ""
    return f"; clones of it keep all they have: {names}"


def _named(session: Session, snapshot: snaplog.Snapshot) -> str:
    """Return a snapshot as people know it."""
    owner = session.registry.get(snapshot.vdi)
    label = f" {snapshot.label!r}" if snapshot.label else ""
    return f"snapshot {snapshot.id}{label} of VDI {snapshot.vdi} {owner.name if owner else ''!r}"
