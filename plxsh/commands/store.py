"""`plxsh store`: make, measure, grow and check a blockstore."""

from __future__ import annotations

import os
import uuid
from contextlib import closing
from typing import Final

import click

from core.blockstore import Blockstore
from core.device import FileDevice, lock_holder
from core.errors import BadRequest, Corrupt
from core.format import (
    BLOCK,
    BLOCK_SHIFT,
    LIVE,
    MIN_EXTENTS,
    BitmapBlock,
    VdiRecord,
    check_geometry,
)
from core.registry import Registry
from core.text import human_size
from plxsh import render
from plxsh.context import Settings, pass_settings
from plxsh.groups import Group
from plxsh.params import SIZE
from plxsh.render import Column

_INFO: Final = (
    Column("path", "Store"),
    Column("uuid", "UUID"),
    Column("version", "Format version"),
    Column("created", "Created", "time"),
    Column("size", "Size", "bytes"),
    Column("extent_size", "Extent size", "bytes"),
    Column("extents", "Extents"),
    Column("used", "Used", "bytes"),
    Column("free", "Free", "bytes"),
    Column("vdis", "VDIs"),
    Column("snapshots", "Snapshots"),
    Column("damaged", "Damaged records"),
    Column("served_by", "In use by"),
)


@click.group(cls=Group)
def store() -> None:
    """Make, measure, grow and check the blockstore."""


@store.command(
    examples=["plxsh store create blockstore.dat", "plxsh store create small.dat --extent-size 16M"]
)
@click.argument("path", type=click.Path())
@click.option("--extent-size", type=SIZE, default="2G", show_default=True, help="A power of two.")
@click.option("--extents", type=int, default=MIN_EXTENTS, show_default=True, help="How many.")
@click.option("--force", is_flag=True, help="Overwrite what is there; asks first.")
@pass_settings
def create(settings: Settings, path: str, extent_size: int, extents: int, force: bool) -> None:
    """Format a file (made if missing, sparse) or a device as a blockstore.

    A file or device that already holds something is refused without --force.
    """
    from core import mkfs

    check_geometry(extent_size, extents)
    if force and os.path.exists(path):
        settings.confirm(f"formatting {path} loses everything on it")
    result = {
        "path": os.path.abspath(path),
        "uuid": None,
        "size": extent_size * extents,
        "extent_size": extent_size,
        "extents": extents,
    }
    if settings.dry_run:
        _try_create(path, force)
    else:
        sb = mkfs.create(path, extent_size, extents, force)
        result["uuid"] = str(uuid.UUID(bytes=sb.uuid))
    what = f"{path}: {extents} extents of {human_size(extent_size)}"
    render.outcome(settings, "format", "formatted", what, {"store": result})


def _try_create(path: str, force: bool) -> None:
    """Refuse what `core.mkfs.create` would refuse, and leave the file alone."""
    from core.mkfs import refuse_contents

    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.exists(path) and os.access(folder, os.W_OK):
        return
    with closing(FileDevice(path, True, "exclusive")) as device:
        if not force:
            refuse_contents(device)


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
            "uuid": str(uuid.UUID(bytes=sb.uuid)),
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
            "served_by": lock_holder(settings.store),
        }
    render.fields(settings, "store", result, _INFO)


def used_blocks(opened: Blockstore, extent: int) -> int:
    """Return how many blocks of an extent its bitmap calls allocated, as of its last commit.

    A part of the bitmap that is damaged in both slots counts as all used.
    """
    sb = opened.sb
    start = sb.bitmap_slot(extent, 0, 0) << BLOCK_SHIFT
    raw = opened.device.pread(start, 2 * sb.bitmap_blocks * BLOCK)
    used = 0
    for index in range(sb.bitmap_blocks):
        at = 2 * index * BLOCK
        slots = [
            BitmapBlock.unpack(raw[slot : slot + BLOCK], sb.uuid, extent, index)
            for slot in (at, at + BLOCK)
        ]
        valid = [slot for slot in slots if slot]
        newest = max(valid, key=lambda slot: slot.sequence, default=None)
        used += newest.used if newest else sb.extent_blocks // sb.bitmap_blocks
    return used


@store.command(examples=["plxsh store grow --extents 12"])
@click.option("--extents", type=int, required=True, help="How many it is to have then.")
@pass_settings
def grow(settings: Settings, extents: int) -> None:
    """Give the store more extents; nothing in it moves."""
    from core import mkfs

    with closing(Blockstore.open(settings.store, "write")) as opened:
        old = opened.sb
    size = old.extent_blocks << BLOCK_SHIFT
    if not settings.dry_run:
        mkfs.grow(settings.store, extents)
    elif extents <= old.extents:
        raise BadRequest(
            f"{settings.store} has {old.extents} extents already", "a store grows, it cannot shrink"
        )
    else:
        check_geometry(size, extents)
    result = {
        "path": os.path.abspath(settings.store),
        "size": size * extents,
        "extents": extents,
        "extents_before": old.extents,
    }
    much = human_size(size * extents)
    what = f"{settings.store} from {old.extents} to {extents} extents ({much})"
    render.outcome(settings, "grow", "grew", what, {"store": result})


@store.command(examples=["plxsh store check", "plxsh store check --repair"])
@click.option("--repair", "mend", is_flag=True, help="Drop what cannot be read, rebuild the rest.")
@click.pass_context
@pass_settings
def check(settings: Settings, ctx: click.Context, mend: bool) -> None:
    """Verify every invariant of the store; exit status 1 when there is damage.

    "Unreachable" is space that deleted VDIs and snapshots, or a crash, left behind. It is no
    damage. With --repair the exit status is 1 only if some damage is still there afterwards.
    """
    from core.check import check as check_store

    repaired: list[str] = []
    if mend and not settings.dry_run:
        from core.repair import repair

        report, repaired = repair(settings.store)
        damaged = report.damaged and check_store(settings.store).damaged
    else:
        report = check_store(settings.store)
        damaged = report.damaged
    allocated, unreachable = report.allocated << BLOCK_SHIFT, report.unreachable << BLOCK_SHIFT
    result = {
        "damaged": damaged,
        "vdis": report.vdis,
        "snapshots": report.snapshots,
        "allocated": allocated,
        "unreachable": unreachable,
        "findings": [finding._asdict() for finding in report.findings],
        "repaired": repaired,
    }
    if settings.output in ("json", "yaml"):
        render.data(settings, {"check": result})
    else:
        for finding in report.findings:
            where = f"block {finding.block}: " if finding.block is not None else ""
            click.echo(f"{finding.severity}: {where}{finding.message}")
        for line in repaired:
            click.echo(f"repaired: {line}")
        verdict = "damaged" if damaged else "repaired" if report.damaged else "sound"
        click.echo(
            f"{report.vdis} VDIs, {report.snapshots} snapshots, {human_size(allocated)} allocated,"
            f" {human_size(unreachable)} unreachable: {verdict}"
        )
        if settings.dry_run and mend and damaged:
            click.echo("would repair that")
    ctx.exit(1 if damaged else 0)
