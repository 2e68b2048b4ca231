"""`plxsh vdi`: virtual disk images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click

from core.device import lock_holder
from core.errors import BadRequest, Corrupt
from core.format import BLOCK_SHIFT, DELETED, LIVE, NO_VDI, VdiRecord
from core.registry import Registry
from core.text import counted, human_size, uuid_text
from plxsh import render
from plxsh.commands.images import export, fill, validate
from plxsh.commands.snap import schedule_of
from plxsh.context import Settings, default_socket, pass_settings
from plxsh.exports import (
    OpenExport,
    clients_of,
    exports_of,
    refuse_read,
    server_of,
    session_for,
    with_holders,
)
from plxsh.groups import Group
from plxsh.locking import standing
from plxsh.params import DELETED_VDI, SIZE, SNAPSHOT, VDI, WordsArgument
from plxsh.render import Column

if TYPE_CHECKING:
    from core.session import Session

_LIST: Final = (
    Column("id", "Id", "number"),
    Column("name", "Name", flexible=True),
    Column("size", "Size", "bytes"),
    Column("own", "Own", "bytes"),
    Column("shared", "Shared", "bytes"),
    Column("snapshots", "Snaps", "number"),
    Column("modified", "Changed", "age", rank=1),
    Column("parent", "Parent", flexible=True),
    Column("clients", "In use by", optional=True, flexible=True),
)
_PLAIN_LIST: Final = (
    *(column for column in _LIST if column.key not in ("modified", "clients")),
    Column("served_by", ""),
    Column("state", ""),
    Column("clients", ""),
)
_DELETED: Final = (
    Column("id", "Id", "number"),
    Column("name", "Name", flexible=True),
    Column("deleted", "Deleted", "age"),
    Column("size", "Size", "bytes"),
    Column("own", "Own", "bytes"),
    Column("snapshots", "Snaps", "number"),
)
_SHOW: Final = (
    Column("id", "Id"),
    Column("name", "Name"),
    Column("uuid", "UUID"),
    Column("size", "Size", "bytes"),
    Column("own", "Own", "bytes"),
    Column("shared", "Shared", "bytes"),
    Column("mapped", "Mapped", "bytes"),
    Column("snapshots", "Snapshots"),
    Column("schedule", "Snapshot every", optional=True),
    Column("schedule_keep", "Kept of those", "number", optional=True),
    Column("parent", "Parent"),
    Column("created", "Created", "time"),
    Column("modified", "Modified", "time"),
    Column("clients", "In use by"),
    Column("served_by", "Served by"),
    Column("state", "State"),
)
_LABELS_SHOWN: Final = 5


def described(
    record: VdiRecord,
    parents: Mapping[int, VdiRecord],
    holder: str | None,
    exports: Sequence[OpenExport] = (),
) -> dict[str, Any]:
    """Return what commands show of a VDI.

    Args:
        record: its record.
        parents: live VDIs by id, to name the one it was cloned from.
        holder: who has the whole store for itself.
        exports: what is open of the store.
    """
    own = record.own << BLOCK_SHIFT
    mapped = record.mapped << BLOCK_SHIFT
    return {
        "id": record.id,
        "name": record.name,
        "uuid": uuid_text(record.uuid),
        "size": record.size,
        "own": own,
        "shared": max(0, mapped - own),
        "mapped": mapped,
        "snapshots": record.snapshots,
        **schedule_of(record),
        "parent": _parent(record, parents),
        "created": record.created_ns,
        "modified": record.modified_ns,
        "deleted": record.deleted_ns or None,
        "served_by": server_of(exports, record.id) or holder,
        "clients": clients_of(exports, record.id),
        "state": "ok" if record.state == LIVE else "deleted",
    }


def _damaged(number: int, why: str, name: str | None) -> dict[str, Any]:
    """Return what commands show of a VDI whose record cannot be read."""
    known: dict[str, Any] = {
        "id": number,
        "name": name,
        "clients": [],
        "state": "damaged",
        "error": why,
        "schedule_ns": None,
    }
    return {**dict.fromkeys(column.key for column in (*_SHOW, *_DELETED)), **known}


def _for_people(settings: Settings, shown: dict[str, Any]) -> dict[str, Any]:
    """Return what commands show of a VDI with its clients as one text, except for programs."""
    if settings.output in ("json", "yaml"):
        return shown
    return {**shown, "clients": ", ".join(shown["clients"])}


def _parent(record: VdiRecord, parents: Mapping[int, VdiRecord]) -> str | None:
    """Return the snapshot a VDI was cloned from as `VDI@BLOCK.OFFSET`."""
    if record.parent_vdi == NO_VDI:
        return None
    parent = parents.get(record.parent_vdi)
    known = parent is not None and parent.uuid == record.parent_uuid
    name = parent.name if parent is not None and known else "(deleted)"
    return f"{name}@{record.parent_block}.{record.parent_offset}"


def _users(settings: Settings) -> tuple[str | None, list[OpenExport]]:
    """Return who has the whole store for itself, and what is known to be open of it."""
    known = standing(settings)
    told = exports_of(settings.store, default_socket()) or []
    if known.trouble:
        settings.warn([known.trouble])
    holder = lock_holder(settings.store) if known.holders is None else None
    return holder, with_holders(told, known.holders or {})


@click.group(cls=Group)
def vdi() -> None:
    """Make, fill, list and delete virtual disk images."""


# -- looking ---------------------------------------------------------------------------


@vdi.command(
    "list", examples=["plxsh vdi list", "plxsh -o json vdi list", "plxsh vdi list --deleted"]
)
@click.option("--deleted", is_flag=True, help="Those that 'vdi restore' can bring back.")
@pass_settings
def list_(settings: Settings, deleted: bool) -> None:
    """List the VDIs: id, name, size, own and shared bytes, snapshots, parent.

    "Own" is what only this VDI holds since its last snapshot, "shared" what it maps besides.
    A VDI whose record is damaged is one line of the list with the state "damaged"; the rest
    is not affected and the exit status stays 0: 'store check' is what judges a store.

    With --deleted: id, name, when it was deleted, size, own bytes, snapshots.
    """
    with closing(settings.blockstore()) as opened:
        found = list(Registry(opened).scan())
    live = {n: r for n, r in found if isinstance(r, VdiRecord) and r.state == LIVE}
    if deleted:
        gone = [r for _, r in found if isinstance(r, VdiRecord) and r.state == DELETED]
        render.rows(settings, "vdis", [described(r, live, None) for r in gone], _DELETED)
        return
    holder, exports = _users(settings)
    shown = []
    for number, record in found:
        if isinstance(record, Corrupt):
            settings.warn([str(record)])
            name = "(damaged)" if settings.output == "table" else None
            shown.append(_for_people(settings, _damaged(number, record.message, name)))
        elif number in live:
            shown.append(_for_people(settings, described(record, live, holder, exports)))
    render.rows(settings, "vdis", shown, _LIST, _PLAIN_LIST)


@vdi.command(examples=["plxsh vdi show base"])
@click.argument("vdi", type=VDI)
@pass_settings
def show(settings: Settings, vdi: str) -> None:
    """Show all about one VDI."""
    with closing(settings.blockstore()) as opened:
        registry = Registry(opened)
        record = registry.find(vdi)
        parents = {r.id: r for r in registry.vdis()} if record.parent_vdi != NO_VDI else {}
    shown = described(record, parents, *_users(settings))
    render.fields(settings, "vdi", _for_people(settings, shown), _SHOW)


# -- making and changing ---------------------------------------------------------------


@vdi.command(
    examples=[
        'plxsh vdi create "My new VDI"',
        "plxsh vdi create mail --from base@clean",
        "plxsh vdi create db --size 2G",
    ],
    effect="changes",
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


@vdi.command(examples=["plxsh vdi rename web www"], effect="changes")
@click.argument("vdi", type=VDI)
@click.argument("name")
@pass_settings
def rename(settings: Settings, vdi: str, name: str) -> None:
    """Give a VDI another name."""
    with session_for(settings, vdi) as session:
        record = session.registry.find(vdi)
        session.rename(record, name)
    result = {"vdi": {"id": record.id, "name": name, "name_before": record.name}}
    what = f"VDI {record.id} {record.name!r} to {name!r}"
    render.outcome(settings, "rename", "renamed", what, result)


@vdi.command(examples=["plxsh vdi resize web 4G"], effect="destroys")
@click.argument("vdi", type=VDI)
@click.argument("size", type=SIZE)
@click.option("--force", is_flag=True, help="Cut off data when it gets smaller; asks first.")
@pass_settings
def resize(settings: Settings, vdi: str, size: int, force: bool) -> None:
    """Make a VDI larger or smaller.

    Making it smaller is refused when data would be lost, unless with --force.
    """
    with session_for(settings, vdi) as session:
        record = session.registry.find(vdi)
        what = f"VDI {record.id} {record.name!r}"
        lost = 0
        if force and size < record.size:
            behind = session.live_image(record).extents(size, record.size - size)
            lost = sum(extent.length for extent in behind if extent.data)
        if lost:
            loss = f"making {what} {human_size(size)} large loses {human_size(lost)} of data"
            settings.confirm(loss + _kept_by_snapshots(record), record.name)
        session.resize(record, size, force)
    result = {"vdi": {"id": record.id, "size": size, "size_before": record.size, "lost": lost}}
    what += f" from {human_size(record.size)} to {human_size(size)}"
    what += f", losing {human_size(lost)} of data" if lost else ""
    render.outcome(settings, "resize", "resized", what, result)


def _kept_by_snapshots(record: VdiRecord) -> str:
    """Say that snapshots keep what the VDI itself loses, if there are any."""
    if not record.snapshots:
        return ""
    stay = "stays as it is" if record.snapshots == 1 else "stay as they are"
    return f"; {counted(record.snapshots, 'snapshot')} of it {stay}"


@vdi.command(
    examples=["plxsh -y vdi delete web", "plxsh -y vdi delete web --snapshots"],
    effect="destroys",
)
@click.argument("vdi", type=VDI)
@click.option("--snapshots", is_flag=True, help="Delete its snapshots with it.")
@pass_settings
def delete(settings: Settings, vdi: str, snapshots: bool) -> None:
    """Delete a VDI; refused while it has clones, or snapshots without --snapshots.

    'vdi restore' brings it back, with its snapshots, until its space is collected, which
    happens at the latest when the store is full.
    """
    with session_for(settings, vdi) as session:
        record = session.registry.find(vdi)
        session.refuse_delete(record, snapshots)
        refuse_read(settings, record)
        what = f"VDI {record.id} {record.name!r} ({_contents(session, record)})"
        settings.confirm(
            f"deleting {what}; 'vdi restore' brings it back until its space is collected"
        )
        session.delete(record, snapshots)
    result = {"vdi": {"id": record.id, "name": record.name, "snapshots": record.snapshots}}
    render.outcome(settings, "delete", "deleted", what, result)


@vdi.command(
    examples=["plxsh vdi restore old", "plxsh vdi restore old --name old2"], effect="changes"
)
@click.argument("vdi", type=DELETED_VDI)
@click.option(
    "--name", metavar="NAME", default="", help="Another name for it, if its own is taken."
)
@pass_settings
def restore(settings: Settings, vdi: str, name: str) -> None:
    """Bring a deleted VDI back, with all its snapshots.

    That works until its space is collected, which happens at the latest when the store is
    full. 'vdi list --deleted' shows what can be restored.
    """
    with settings.session() as session:
        record = session.registry.find_deleted(vdi)
        session.restore(record, name)
        contents = _contents(session, record)
    name = name or record.name
    what = f"VDI {record.id} {record.name!r} ({contents})"
    what += f" as {name!r}" if name != record.name else ""
    result = {"vdi": {"id": record.id, "name": name, "snapshots": record.snapshots}}
    render.outcome(settings, "restore", "restored", what, result)


def _contents(session: Session, record: VdiRecord) -> str:
    """Say how much a VDI holds, and which snapshots."""
    text = f"{human_size(record.size)}, {human_size(record.own << BLOCK_SHIFT)} of its own"
    if not record.snapshots:
        return text
    newest = islice(session.snapshots(record), _LABELS_SHOWN)
    labels = ", ".join(repr(snap.label) if snap.label else str(snap.id) for snap in newest)
    more = record.snapshots - _LABELS_SHOWN
    labels += f" and {more} more" if more > 0 else ""
    return f"{text}, {counted(record.snapshots, 'snapshot')}: {labels}"


for command in (fill, validate, export):
    vdi.add_command(command)
