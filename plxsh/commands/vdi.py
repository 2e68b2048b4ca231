"""`plxsh vdi`: virtual disk images."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final

import click

from core.device import lock_holder
from core.errors import BadRequest, Corrupt
from core.format import BLOCK_SHIFT, LIVE, NO_VDI, VdiRecord
from core.registry import Registry
from core.text import human_size
from plxsh import render
from plxsh.commands.images import export, fill, validate
from plxsh.context import Settings, pass_settings
from plxsh.groups import Group
from plxsh.params import SIZE, SNAPSHOT, VDI, WordsArgument
from plxsh.render import Column

_LIST: Final = (
    Column("id", "Id", "number"),
    Column("name", "Name", flexible=True),
    Column("size", "Size", "bytes"),
    Column("own", "Own", "bytes"),
    Column("shared", "Shared", "bytes"),
    Column("snapshots", "Snaps", "number"),
    Column("parent", "Parent", flexible=True),
    Column("served_by", "In use by", optional=True, flexible=True),
)
_PLAIN_LIST: Final = (*_LIST, Column("state", "State"))
_SHOW: Final = (
    Column("id", "Id"),
    Column("name", "Name"),
    Column("uuid", "UUID"),
    Column("size", "Size", "bytes"),
    Column("own", "Own", "bytes"),
    Column("shared", "Shared", "bytes"),
    Column("mapped", "Mapped", "bytes"),
    Column("snapshots", "Snapshots"),
    Column("parent", "Parent"),
    Column("created", "Created", "time"),
    Column("modified", "Modified", "time"),
    Column("served_by", "Store in use by"),
    Column("state", "State"),
)


def described(
    record: VdiRecord, parents: Mapping[int, VdiRecord], holder: str | None
) -> dict[str, Any]:
    """Return what commands show of a VDI.

    Args:
        record: its record.
        parents: live VDIs by id, to name the one it was cloned from.
        holder: who has the store open for writing.
    """
    own = record.own << BLOCK_SHIFT
    mapped = record.mapped << BLOCK_SHIFT
    return {
        "id": record.id,
        "name": record.name,
        "uuid": _uuid_text(record.uuid),
        "size": record.size,
        "own": own,
        "shared": max(0, mapped - own),
        "mapped": mapped,
        "snapshots": record.snapshots,
        "parent": _parent(record, parents),
        "created": record.created_ns,
        "modified": record.modified_ns,
        "served_by": holder,
        "state": "ok",
    }


def _uuid_text(raw: bytes) -> str:
    """Return a UUID as text; `str(uuid.UUID)` is slow where there are thousands."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _damaged(number: int, why: str, name: str | None) -> dict[str, Any]:
    """Return what commands show of a VDI whose record cannot be read."""
    known: dict[str, Any] = {"id": number, "name": name, "state": "damaged", "error": why}
    return {**dict.fromkeys(column.key for column in _SHOW), **known}


def _parent(record: VdiRecord, parents: Mapping[int, VdiRecord]) -> str | None:
    """Return the snapshot a VDI was cloned from as `VDI@BLOCK.OFFSET`."""
    if record.parent_vdi == NO_VDI:
        return None
    parent = parents.get(record.parent_vdi)
    known = parent is not None and parent.uuid == record.parent_uuid
    name = parent.name if parent is not None and known else "(deleted)"
    return f"{name}@{record.parent_block}.{record.parent_offset}"


@click.group(cls=Group)
def vdi() -> None:
    """Make, fill, list and delete virtual disk images."""


# -- looking ---------------------------------------------------------------------------


@vdi.command("list", examples=["plxsh vdi list", "plxsh -o json vdi list"])
@pass_settings
def list_(settings: Settings) -> None:
    """List the VDIs: id, name, size, own and shared bytes, snapshots, parent.

    "Own" is what only this VDI holds since its last snapshot, "shared" what it maps besides.
    A VDI whose record is damaged is one line of the list with the state "damaged"; the rest
    is not affected and the exit status stays 0: 'store check' is what judges a store.
    """
    with closing(settings.blockstore()) as opened:
        found = list(Registry(opened).scan())
    holder = lock_holder(settings.store)
    live = {n: r for n, r in found if isinstance(r, VdiRecord) and r.state == LIVE}
    shown = []
    for number, record in found:
        if isinstance(record, Corrupt):
            settings.warn([str(record)])
            name = "(damaged)" if settings.output == "table" else None
            shown.append(_damaged(number, record.message, name))
        elif number in live:
            shown.append(described(record, live, holder))
    render.rows(settings, "vdis", shown, _PLAIN_LIST if settings.output == "plain" else _LIST)


@vdi.command(examples=["plxsh vdi show base"])
@click.argument("vdi", type=VDI)
@pass_settings
def show(settings: Settings, vdi: str) -> None:
    """Show all about one VDI."""
    with closing(settings.blockstore()) as opened:
        registry = Registry(opened)
        record = registry.find(vdi)
        parents = {r.id: r for r in registry.vdis()} if record.parent_vdi != NO_VDI else {}
    shown = described(record, parents, lock_holder(settings.store))
    render.fields(settings, "vdi", shown, _SHOW)


# -- making and changing ---------------------------------------------------------------


@vdi.command(
    examples=[
        'plxsh vdi create "My new VDI"',
        "plxsh vdi create mail --from base@clean",
        "plxsh vdi create db --size 2G",
    ]
)
@click.argument("name")
@click.argument("words", metavar="[BLOCK OFFSET]", cls=WordsArgument, type=SNAPSHOT, required=False)
@click.option("--from", "source", type=SNAPSHOT, help="Snapshot to clone, such as base@clean.")
@click.option("--size", type=SIZE, default=0, help="Size of the new VDI, such as 2G.")
@pass_settings
def create(settings: Settings, name: str, words: str | None, source: str | None, size: int) -> None:
    """Make a VDI, empty or a clone of a snapshot, and print its id.

    A VDI without a size takes that of the first image it is filled with.
    """
    if words and source:
        raise BadRequest("the snapshot is given twice", "give BLOCK OFFSET or --from")
    source = words or source
    with settings.session() as session:
        parent = session.find_snapshot(source) if source else None
        made = session.create(name, size, parent)
        record = session.registry.get(made.id) or made
        parents = {r.id: r for r in session.registry.vdis()} if parent else {}
    what = f"VDI {record.id} {name!r} of {human_size(record.size)}"
    if parent is not None:
        what += f", a clone of {_parent(record, parents)}"
    shown = described(record, parents, None)
    if settings.dry_run:
        shown.update(uuid=None, created=None, modified=None)  # these will be others
    result = {"vdi": shown}
    render.outcome(settings, "create", "created", what, result, str(record.id))


@vdi.command(examples=["plxsh vdi rename web www"])
@click.argument("vdi", type=VDI)
@click.argument("name")
@pass_settings
def rename(settings: Settings, vdi: str, name: str) -> None:
    """Give a VDI another name."""
    with settings.session() as session:
        record = session.registry.find(vdi)
        session.rename(record, name)
    result = {"vdi": {"id": record.id, "name": name, "name_before": record.name}}
    what = f"VDI {record.id} {record.name!r} to {name!r}"
    render.outcome(settings, "rename", "renamed", what, result)


@vdi.command(examples=["plxsh vdi resize web 4G"])
@click.argument("vdi", type=VDI)
@click.argument("size", type=SIZE)
@click.option("--force", is_flag=True, help="Cut off data when it gets smaller; asks first.")
@pass_settings
def resize(settings: Settings, vdi: str, size: int, force: bool) -> None:
    """Make a VDI larger or smaller.

    Making it smaller is refused when data would be lost, unless with --force.
    """
    with settings.session() as session:
        record = session.registry.find(vdi)
        what = f"VDI {record.id} {record.name!r}"
        if force and size < record.size:
            behind = session.live_image(record).extents(size, record.size - size)
            lost = human_size(sum(extent.length for extent in behind if extent.data))
            if lost != "0 B":
                settings.confirm(f"making {what} {human_size(size)} large loses {lost} of data")
        session.resize(record, size, force)
    result = {"vdi": {"id": record.id, "size": size, "size_before": record.size}}
    what += f" from {human_size(record.size)} to {human_size(size)}"
    render.outcome(settings, "resize", "resized", what, result)


@vdi.command(examples=["plxsh -y vdi delete web", "plxsh -y vdi delete web --snapshots"])
@click.argument("vdi", type=VDI)
@click.option("--snapshots", is_flag=True, help="Delete its snapshots with it.")
@pass_settings
def delete(settings: Settings, vdi: str, snapshots: bool) -> None:
    """Delete a VDI; refused while it has clones, or snapshots without --snapshots."""
    with settings.session() as session:
        record = session.registry.find(vdi)
        what = f"VDI {record.id} {record.name!r} ({human_size(record.size)}"
        what += f", {record.snapshots} snapshots)" if record.snapshots else ")"
        if not session.clones(record) and (snapshots or not record.snapshots):
            settings.confirm(f"deleting {what} loses its contents")
        session.delete(record, snapshots)
    result = {"vdi": {"id": record.id, "name": record.name, "snapshots": record.snapshots}}
    render.outcome(settings, "delete", "deleted", what, result)


for command in (fill, validate, export):
    vdi.add_command(command)
