"""`plxsh store`: make, measure, grow, clean up and check a blockstore."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import click

from core.blockstore import Blockstore
from core.device import lock_holder
from core.direct import open_device
from core.errors import (
    BadRequest,
    Corrupt,
    InUse,
    IoFailed,
    NotSupported,
    ParallaxError,
)
from core.format import (
    BLOCK_SHIFT,
    LIVE,
    MIN_EXTENTS,
    VdiRecord,
    check_geometry,
)
from core.registry import Registry
from core.text import counted, human_size, uuid_text
from plxsh import render
from plxsh.context import Settings, pass_settings
from plxsh.groups import Group
from plxsh.locking import standing
from plxsh.overview import used_blocks
from plxsh.params import FILE, SIZE
from plxsh.progress import Progress, Tell
from plxsh.render import Column

if TYPE_CHECKING:
    from collections.abc import Collection as Container

    from core.check import Report
    from core.collection import Collection
    from core.reclaim import Account
    from core.repair import Step
    from core.session import Session

_INFO: Final = (
    Column("path", "Store"),
    Column("uuid", "UUID"),
    Column("version", "Format version"),
    Column("created", "Created", "age"),
    Column("size", "Size", "bytes"),
    Column("extent_size", "Extent size", "bytes"),
    Column("extents", "Extents"),
    Column("used", "Used", "bytes"),
    Column("free", "Free", "bytes"),
    Column("vdis", "VDIs"),
    Column("snapshots", "Snapshots"),
    Column("damaged", "Damaged records"),
    Column("served_by", "In use by"),
    Column("shared_under", "Shared under"),
)

_NAMED: Final = 5
"""Deleted VDIs that are named where there are many."""


@click.group(cls=Group)
def store() -> None:
    """Make, measure, grow, clean up and check the blockstore."""


@store.command(
    examples=[
        "plxsh store create blockstore.dat",
        "plxsh store create small.dat --extent-size 16M",
    ],
    effect="changes",
)
@click.argument("path", type=FILE)
@click.option(
    "--extent-size",
    type=SIZE,
    default="2G",
    show_default=True,
    help="Bytes of an extent, a power of two.",
)
@click.option(
    "--extents",
    type=int,
    default=MIN_EXTENTS,
    show_default=True,
    metavar="N",
    help="How many extents.",
)
@click.option("--force", is_flag=True, help="Overwrite what is there; asks first.")
@pass_settings
def create(settings: Settings, path: str, extent_size: int, extents: int, force: bool) -> None:
    """Format a file or a device as a blockstore.

    A file that is missing is made, sparse; links are followed. A file or device that already
    holds something is refused without --force, which asks for the last part of PATH to be typed.
    Of a file every byte is looked at; of a device both ends, the places of known labels, and
    samples in between. All of a device is then made to read as zeros, which takes its time where
    there is no quick way. One that is mounted, or in use in any other way, is refused always.
    """
    from core import mkfs

    check_geometry(extent_size, extents)
    if force and os.path.exists(path):
        name = os.path.basename(os.path.abspath(path))
        settings.confirm(f"formatting {path} loses {_contents(settings, path)}", typed=name)
    result = {
        "path": os.path.abspath(path),
        "uuid": None,
        "size": extent_size * extents,
        "extent_size": extent_size,
        "extents": extents,
    }
    with Progress(settings, "clear") as clearing:
        looking = clearing.stage("look", "blocks")
        wanted = (path, extent_size, extents, force, settings.caching, looking)
        if settings.dry_run:
            mkfs.rehearse(*wanted)
        else:
            sb = mkfs.create(*wanted, clearing)
            result["uuid"] = uuid_text(sb.uuid)
    what = f"{path}: {extents} extents of {human_size(extent_size)}"
    render.outcome(settings, "format", "formatted", what, {"store": result})


def _contents(settings: Settings, path: str) -> str:
    """Say what is in a file or a device, as far as that can be seen from outside."""
    try:
        with closing(Blockstore.open(path, cache=settings.caching)) as opened:
            count = sum(1 for _ in Registry(opened).vdis())
    except ParallaxError:
        return "everything on it"
    return f"the blockstore on it with {counted(count, 'VDI')} and all their snapshots"


def _refuse_small(settings: Settings, size: int) -> None:
    """Refuse a device without room for a store, as `FileDevice.resize` does."""
    with closing(open_device(settings.store, False, "none", settings.caching)) as device:
        device.check_room(size)


@store.command(examples=["plxsh store info", "plxsh -o json store info"])
@pass_settings
def info(settings: Settings) -> None:
    """Show size, use and contents of the store; works while it is in use."""
    with closing(settings.blockstore()) as opened:
        sb = opened.sb
        found = [record for _, record in Registry(opened).scan()]
        live = [r for r in found if isinstance(r, VdiRecord) and r.state == LIVE]
        used = sum(used_blocks(opened, extent) for extent in range(1, sb.extents)) << BLOCK_SHIFT
        result = {
            "path": os.path.abspath(settings.store),
            "uuid": uuid_text(sb.uuid),
            "version": sb.version,
            "created": sb.created_ns,
            "size": sb.size,
            "extent_size": sb.extent_blocks << BLOCK_SHIFT,
            "extents": sb.extents,
            "used": used,
            "free": ((sb.extents - 1) * sb.extent_blocks << BLOCK_SHIFT) - used,
            "vdis": len(live),
            "snapshots": sum(record.snapshots for record in live),
            "damaged": sum(isinstance(record, Corrupt) for record in found),
            "served_by": _in_use_by(settings),
            "shared_under": uuid_text(sb.lock_master) if any(sb.lock_master) else None,
        }
    render.fields(settings, "store", result, _INFO)


def _in_use_by(settings: Settings) -> str | None:
    """Return who has the store open for writing, None for nobody."""
    if settings.lock_master:
        known = standing(settings)
        if known.holders is not None:
            sessions = [held for name, held in known.holders.items() if name.startswith("session/")]
            return "; ".join(sorted(str(held.who) for held in sessions)) or None
        settings.warn([known.trouble])
    return lock_holder(settings.store)


@store.command(examples=["plxsh store grow --extents 12"], effect="changes")
@click.option(
    "--extents", type=int, required=True, metavar="N", help="How many it is to have then."
)
@pass_settings
def grow(settings: Settings, extents: int) -> None:
    """Give the store more extents; nothing in it moves.

    Works while a tap serves the store, and beside other sessions.
    """
    with settings.session() as session:
        old = session.store.sb
        size = old.extent_blocks << BLOCK_SHIFT
        if not settings.dry_run:
            session.grow(extents)
        elif extents <= old.extents:
            raise BadRequest(
                f"{settings.store} has {old.extents} extents already",
                "a store grows, it cannot shrink",
            )
        else:
            check_geometry(size, extents)
            _refuse_small(settings, size * extents)
    result = {
        "path": os.path.abspath(settings.store),
        "size": size * extents,
        "extents": extents,
        "extents_before": old.extents,
    }
    much = human_size(size * extents)
    what = f"{settings.store} from {old.extents} to {extents} extents ({much})"
    render.outcome(settings, "grow", "grew", what, {"store": result})


@store.command(examples=["plxsh -n store unshare", "plxsh -y store unshare"], effect="destroys")
@pass_settings
def unshare(settings: Settings) -> None:
    """End the sharing of the store under a lock master.

    The first session under a lock master of several hosts notes its UUID in the store, which then
    refuses who comes without a lock master or with another one ('store info' shows it). Use this
    before the store is used by one host alone again, or under another lock master.

    With that lock master named it refuses while anybody has the store open. Without it nobody can
    know, so it asks for the last part of the store's path to be typed: a host that still writes
    then destroys what the others write.
    """
    from plxsh.unsharing import end_sharing

    what, master = end_sharing(settings)
    result = {
        "path": os.path.abspath(settings.store),
        "shared_under": uuid_text(master) if master else None,
    }
    render.outcome(settings, "unshare", "unshared", what, {"store": result})


@store.command(
    examples=[
        "plxsh -n store gc",
        "plxsh -y store gc",
        "plxsh store gc --keep-deleted",
    ],
    effect="destroys",
)
@click.option("--keep-deleted", is_flag=True, help="Leave alone what 'vdi restore' can bring back.")
@pass_settings
def gc(settings: Settings, keep_deleted: bool) -> None:
    """Free what no VDI and no snapshot uses, and give free space back to the host.

    Deleted VDIs cannot be restored afterwards, so it asks first, unless there are none or
    --keep-deleted is given. With -n it says what it would free, and whose. What is freed is
    counted for each deleted VDI if only that VDI used it; the rest was used by several of
    them, by deleted snapshots, or was left behind by a crash.

    Free space that takes room goes back to the host: as holes in a file, by discarding it on a
    device. A device does not say what takes room: there it is all that is free where there was
    ever something, once for each process that has the store open.

    Works while a tap serves the store, and beside other sessions: each frees what is garbage in
    its part of the store. One that does not answer keeps its part as it is. A store that is
    full frees what it can by itself, as long as only one session uses it.
    """
    from core.reclaim import KEEP_DELETED, KEEP_LIVE

    keep = KEEP_DELETED if keep_deleted else KEEP_LIVE
    returned: int | None = None
    with settings.session() as session:
        plan, account = _planned_collection(settings, session, keep)
        what = _freed_text(account)
        if account.own and not (settings.yes or settings.dry_run):
            plan = _confirmed(settings, session, plan, what)
        with closing(plan):
            if not settings.dry_run:
                session.collect(plan)
                with Progress(settings, "give back", "blocks") as progress:
                    returned = _give_back(settings, plan, progress)
    freed = [
        {"id": r.id, "name": r.name, "uuid": uuid_text(r.uuid), "bytes": blocks << BLOCK_SHIFT}
        for r, blocks in account.own
    ]
    result = {
        "freed": account.total << BLOCK_SHIFT,
        "vdis": freed,
        "shared": account.shared << BLOCK_SHIFT,
        "leftovers": account.leftovers << BLOCK_SHIFT,
        "returned": returned,
    }
    if returned is not None:
        what += f"; {human_size(returned)} went back to the host"
    render.outcome(settings, "free", "freed", what, {"gc": result})


def _planned_collection(
    settings: Settings, session: Session, keep: Container[int]
) -> tuple[Collection, Account]:
    """Mark what stays and count the rest; say who takes no part."""
    with Progress(settings, "mark", "blocks") as progress:
        plan = session.plan_collection(keep, progress)
        account = plan.account(progress.stage("count"))
    settings.warn(f"{who} did not answer: its part of the store is left" for who in plan.unsealed)
    return plan, account


def _confirmed(settings: Settings, session: Session, plan: Collection, what: str) -> Collection:
    """Ask; return a plan to carry out.

    Nobody is kept from using space while a question waits for its answer, so where there are
    other sessions the collection ends before it and begins again after it.
    """
    doomed = plan.doomed
    if session.locks.shared:
        plan.close()
    settings.confirm(f"freeing {what}; {_names_text(doomed)} can never be restored then")
    if not session.locks.shared:
        return plan
    plan, _ = _planned_collection(settings, session, plan.keep)
    if plan.doomed != doomed:
        plan.close()
        raise InUse("VDIs were deleted or restored meanwhile", "look again")
    return plan


def _freed_text(account: Account) -> str:
    """Say how much is freed, and whose it was."""
    parts = [
        (blocks, f"of deleted VDI {record.id} {record.name!r}")
        for record, blocks in account.own[:_NAMED]
    ]
    more = account.own[_NAMED:]
    if more:
        parts.append((sum(blocks for _, blocks in more), f"of {len(more)} more deleted VDIs"))
    if account.shared:
        parts.append((account.shared, "that several of them shared"))
    if account.leftovers:
        parts.append((account.leftovers, "of deleted snapshots and leftovers"))
    told = ", ".join(f"{human_size(blocks << BLOCK_SHIFT)} {whose}" for blocks, whose in parts)
    return human_size(account.total << BLOCK_SHIFT) + (f": {told}" if told else "")


def _names_text(records: list[VdiRecord]) -> str:
    """Name deleted VDIs, not too many of them."""
    named = ", ".join(f"{record.id} {record.name!r}" for record in records[:_NAMED])
    more = f" and {len(records) - _NAMED} more" if len(records) > _NAMED else ""
    return f"deleted {'VDI' if len(records) == 1 else 'VDIs'} {named}{more}"


def _give_back(settings: Settings, plan: Collection, progress: Tell) -> int | None:
    """Return free space to the host; return how many bytes went, None if none can."""
    before = _occupied(settings.store)
    try:
        blocks = plan.give_back(progress)
    except NotSupported as error:
        settings.warn([error.message])
        return None
    after = _occupied(settings.store)
    if before is None or after is None:
        return blocks << BLOCK_SHIFT
    return max(0, before - after)


def _occupied(path: str) -> int | None:
    """Return the bytes a file takes on its file system; a device knows nothing of that."""
    status = os.stat(path)
    return None if stat.S_ISBLK(status.st_mode) else status.st_blocks * 512


@store.command(examples=["plxsh store check", "plxsh store check --repair"], effect="changes")
@click.option("--repair", "mend", is_flag=True, help="Drop what cannot be read, rebuild the rest.")
@click.pass_context
@pass_settings
def check(settings: Settings, ctx: click.Context, mend: bool) -> None:
    """Verify every invariant of the store; exit status 1 when there is damage.

    "Unreachable" is space that deleted snapshots or a crash left behind, "restorable" is
    what only deleted VDIs hold. Neither is damage. It works while a tap serves the store, and
    beside other sessions. --repair needs the store for itself. It asks before it gives up data, a
    snapshot or a VDI; with -n it lists what it would do. Its exit status is 1 only if some
    damage is still there afterwards.
    """
    steps: list[Step] = []
    with Progress(settings, "check", "blocks") as progress:
        report = _checked(settings, progress, mend)
        damaged = report.damaged
        if mend and damaged and (settings.dry_run or not settings.yes):
            steps = _planned(settings, progress.stage("plan the repair"))
    if mend and damaged and not settings.dry_run:
        steps, damaged = _repair(settings, steps)
    _show_check(settings, report, steps, damaged)
    ctx.exit(1 if damaged else 0)


def _checked(settings: Settings, progress: Tell, mend: bool) -> Report:
    """Check the store: as it stands still, or while others write to it, which rules out repair."""
    from core.check import check, check_beside
    from core.collection import others

    if mend:
        _refuse_shared(settings)
    if not settings.lock_master:
        try:
            return check(settings.store, progress=progress, cache=settings.caching)
        except InUse:
            if mend:
                raise
    with settings.session() as session:
        users = others(session.store, session.locks)
        if mend and users:
            raise InUse(f"the store is in use: {users[0].who}", "repair it when nobody uses it")
        return check_beside(session, progress)


def _refuse_shared(settings: Settings) -> None:
    """Refuse to repair what other hosts may begin to use at any time."""
    try:
        with closing(Blockstore.open(settings.store, cache=settings.caching)) as opened:
            shared = any(opened.sb.lock_master)
    except IoFailed:  # damaged, which is what the check will say
        return
    if shared:
        raise InUse(
            "a repair needs the store for itself, and it is shared under a lock master",
            "run 'plxsh store unshare', then repair it without a lock master",
        )


def _planned(settings: Settings, progress: Tell) -> list[Step]:
    """Return what a repair would do: it is done to a copy in memory."""
    from core.repair import repair_store
    from plxsh.dry_run import dry_session

    return repair_store(dry_session(settings.store, settings.caching).store, progress)[1]


def _repair(settings: Settings, plan: list[Step]) -> tuple[list[Step], bool]:
    """Repair the store if the user agrees; return what was done, and whether that was all."""
    from core.check import check as check_store
    from core.repair import repair

    lost = [step.text for step in plan if step.loses]
    for text in lost:
        settings.note(f"would lose: {text}")
    if lost:
        more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
        settings.confirm(f"repairing {settings.store} gives up what is damaged: {lost[0]}{more}")
    with Progress(settings, "check", "blocks") as progress:
        _, steps = repair(settings.store, progress, settings.caching)
        again = progress.stage("check again")
        report = check_store(settings.store, progress=again, cache=settings.caching)
        return steps, report.damaged


def _show_check(settings: Settings, report: Report, steps: list[Step], damaged: bool) -> None:
    """Show what a check found and what a repair did, or would do."""
    sizes = {
        "allocated": report.allocated << BLOCK_SHIFT,
        "restorable": report.restorable << BLOCK_SHIFT,
        "unreachable": report.unreachable << BLOCK_SHIFT,
    }
    if settings.output in ("json", "yaml"):
        result: dict[str, Any] = {
            "damaged": damaged,
            "vdis": report.vdis,
            "deleted": report.deleted,
            "snapshots": report.snapshots,
            **sizes,
            "findings": [finding._asdict() for finding in report.findings],
            "repaired": [step.text for step in steps],
            "lost": [step.text for step in steps if step.loses],
        }
        predicted = {"dry_run": True} if settings.dry_run else {}
        _note_repair(settings, steps, {"check": result})
        render.data(settings, {**predicted, "check": result})
        return
    _note_repair(settings, steps, {})
    verb = "would repair" if settings.dry_run else "repaired"
    lines = [
        *(f"{f.severity}: {_place(f.block)}{f.message}" for f in report.findings),
        *(f"{verb}: {step.text}" for step in steps),
    ]
    verdict = "damaged" if damaged else "repaired" if report.damaged else "sound"
    counts = [counted(report.vdis, "VDI"), counted(report.snapshots, "snapshot")]
    if not report.restorable:
        del sizes["restorable"]
    counts += [f"{human_size(size)} {name}" for name, size in sizes.items()]
    lines.append(f"{', '.join(counts)}: {verdict}")
    render.lines(settings, lines)


def _note_repair(settings: Settings, steps: list[Step], result: render.Record) -> None:
    """Note that the store was changed, if it was."""
    if steps and not settings.dry_run:
        settings.changed(f"repaired {settings.store} ({counted(len(steps), 'step')})", result)


def _place(block: int | None) -> str:
    return f"block {block}: " if block is not None else ""
