"""What may stand where a VDI, a snapshot, a size or a format is asked for.

These are all values there are, in the order of equals; which of them fit what was typed,
and which come first, is for who asks to say. Only ids have to begin as it does. What stands
beside a value is made when it is shown (`describe`): there may be ten thousand of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from click.shell_completion import CompletionItem

from core.format import DELETED, VdiRecord
from core.lock_messages import TOOL
from core.snaplog import Snapshot
from core.text import counted, human_ago, human_size, printable
from plxsh.context import Settings
from plxsh.exports import open_exports
from plxsh.locking import standing
from plxsh.names import Names

if TYPE_CHECKING:
    from core.lock_messages import Holding

Items = list[CompletionItem[str]]


class Offer(CompletionItem[str]):
    """A value about which more is known than is worth telling before it is shown.

    Args:
        value: the whole word.
        kind: what it names.
        about: says what stands beside it in a menu,
        subject: given this.
        more: the word is not finished.
    """

    __slots__ = ("_about", "more", "subject")

    def __init__(
        self, value: str, kind: str, about: Callable[[Any], str], subject: Any, more: bool = False
    ) -> None:
        """Say nothing yet."""
        super().__init__(value, kind)
        self._about = about
        self.subject = subject
        self.more = more

    def describe(self) -> str:
        """Return what stands beside it."""
        return printable(self._about(self.subject))


_FORMATS: Final = {
    "raw": "plain bytes",
    "qcow2": "QEMU",
    "vmdk": "VMware",
    "vhdx": "Hyper-V",
    "vpc": "VHD: Virtual PC, Xen",
    "vdi": "VirtualBox",
    "qed": "QEMU, older",
    "qcow": "QEMU, oldest",
    "parallels": "Parallels",
}
_DEVICES: Final = {"xvd": "paravirtual", "sd": "SCSI", "hd": "IDE"}
_SIZES: Final = ("1G", "10G", "100G", "1T")
_INTERVALS: Final = {
    "10ms": "a hundred a second",
    "1s": "every second",
    "1m": "every minute",
    "1h": "every hour",
    "1d": "every day",
    "off": "no more snapshots",
}
_ADDRESSES: Final = {
    "127.0.0.1": "this host only",
    "0.0.0.0": "every host",
    "[::1]": "this host only, IPv6",
}
_LOCK_MASTERS: Final = {"127.0.0.1:8440": "on this host", "unix:": "a socket on this host"}


def offers(kind: str, settings: Settings, incomplete: str) -> Items:
    """Return what may stand where a value of one kind is asked for.

    Args:
        kind: name of the type in `plxsh.params`.
        settings: name the store.
        incomplete: what was typed so far.
    """
    return _OFFERS[kind](settings, incomplete)


# -- VDIs ------------------------------------------------------------------------------


def _vdis(settings: Settings, incomplete: str) -> Items:
    """Return the VDIs by name, and by id once a digit is typed."""
    names = settings.names
    records = names.vdis()
    typed_id = incomplete.isdecimal()
    by_id = _ids(names, records, incomplete) if typed_id else []
    about, about_id = partial(_about, names), partial(_about_id, names)
    return by_id + [
        Offer(str(record.id), "vdi", about_id, record)
        if _needs_id(record)
        else Offer(record.name, "vdi", about, record)
        for record in records
        if not (typed_id and _needs_id(record))
    ]


def _needs_id(record: VdiRecord) -> bool:
    """Say whether a name cannot be typed or would be taken for an option; its id can be."""
    return record.name.startswith("-") or not record.name.isprintable()


def _deleted_vdis(settings: Settings, incomplete: str) -> Items:
    """Return the VDIs that may be restored, the last deleted first; twins by their id."""
    names = settings.names
    records = sorted(names.vdis(DELETED), key=lambda record: -record.deleted_ns)
    count = Counter(record.name for record in records)
    twins = [r for r in records if count[r.name] > 1 or _needs_id(r)]
    named = [r for r in records if count[r.name] == 1 and not _needs_id(r)]
    items = [Offer(record.name, "vdi", _about_deleted, record) for record in named]
    typed_id = incomplete.isdecimal()
    by_id = _ids(names, records, incomplete) if typed_id else _ids(names, twins, "")
    return items + by_id


def _ids(names: Names, records: Iterable[VdiRecord], beginning: str) -> Items:
    """Return the VDIs whose ids begin so."""
    return [
        Offer(str(record.id), "vdi", partial(_about_id, names), record)
        for record in records
        if str(record.id).startswith(beginning)
    ]


def _about(names: Names, record: VdiRecord) -> str:
    snapshots = f", {counted(record.snapshots, 'snapshot')}" if record.snapshots else ""
    opened = ", open" if record.id in names.opened else ""
    return f"{human_size(record.size)}{snapshots}{opened}"


def _about_id(names: Names, record: VdiRecord) -> str:
    deleted = record.state == DELETED
    about = _about_deleted(record) if deleted else _about(names, record)
    return f"{record.name}, {about}"


def _about_deleted(record: VdiRecord) -> str:
    return f"{human_size(record.size)}, deleted {_ago(record.deleted_ns)}"


def _ago(time_ns: int) -> str:
    return human_ago(time_ns, time.time_ns())


# -- snapshots -------------------------------------------------------------------------


def _snapshots(settings: Settings, incomplete: str) -> Items:
    """Return snapshots as `VDI@LABEL`; before the `@`, the VDIs that have any."""
    names, selected = settings.names, settings.vdi
    owner, at, _ = incomplete.partition("@")
    if at and not owner:
        return _of(names, selected, "")
    if at:
        return [item for name in _same(names, owner) for item in _of(names, name, name)]
    if "." in incomplete and incomplete.partition(".")[0].isdecimal():
        return _by_id(names)
    owners = [
        Offer(f"{record.name}@", "snapshot", partial(_about, names), record, more=True)
        for record in names.vdis()
        if record.snapshots and not _needs_id(record)
    ]
    if not incomplete.isdecimal():
        return (_of(names, selected, "") if selected else []) + owners
    by_id = [
        Offer(f"{r.id}@", "snapshot", partial(_about_id, names), r, more=True)
        for r in names.vdis()
        if r.snapshots and str(r.id).startswith(incomplete)
    ]
    return _by_id(names) + by_id + owners


def _vdis_and_snapshots(settings: Settings, incomplete: str) -> Items:
    found = _snapshots(settings, incomplete)
    return found if "@" in incomplete else _vdis(settings, incomplete) + found


def open_first(settings: Settings, incomplete: str) -> Items:
    """Return VDIs and snapshots, first the VDIs that somebody has open."""
    opened = _opened(settings)
    items = _vdis_and_snapshots(settings, incomplete)
    return sorted(items, key=lambda item: not (item.type == "vdi" and _id_of(item) in opened))


def _id_of(item: CompletionItem[str]) -> int | None:
    return item.subject.id if isinstance(item, Offer) else None


def _opened(settings: Settings) -> frozenset[int]:
    """Return which VDIs are open: at a prompt what was seen last, else what is so now."""
    if settings.shell is not None:
        return settings.names.opened
    return frozenset(export.vdi for export in open_exports(settings))


def blocks(names: Names) -> Items:
    """Return the first of the two words BLOCK OFFSET: pages of logs and whose they are."""
    pages: dict[int, list[Snapshot]] = {}
    for snapshot in names.all_snapshots():
        pages.setdefault(snapshot.id.block, []).append(snapshot)
    return [
        Offer(str(block), "snapshot", partial(_about_page, names), page)
        for block, page in pages.items()
    ]


def offsets(names: Names, block: str) -> Items:
    """Return the second of the two words BLOCK OFFSET."""
    return [
        Offer(str(s.id.offset), "snapshot", partial(_about_snapshot, names), s)
        for s in names.all_snapshots()
        if str(s.id.block) == block
    ]


def _of(names: Names, reference: str, shown: str) -> Items:
    """Return the snapshots of one VDI, newest first, those without label by their id."""
    return [
        Offer(f"{shown}@{name}", "snapshot", _about_time, snapshot)
        for name, snapshot in _named(names.snapshots(reference))
    ]


def _same(names: Names, owner: str) -> list[str]:
    """Return the VDI that is called so, or those that are but for upper and lower case."""
    records = names.vdis()
    if any(owner in (record.name, str(record.id)) for record in records):
        return [owner]
    return [record.name for record in records if record.name.casefold() == owner.casefold()]


def _named(found: Iterable[Snapshot]) -> Iterator[tuple[str, Snapshot]]:
    """Yield what each snapshot is called; of several with a label the newest has it."""
    seen = {""}
    for snapshot in found:
        called = snapshot.label not in seen and snapshot.label.isprintable()
        yield (snapshot.label if called else str(snapshot.id)), snapshot
        seen.add(snapshot.label)


def _by_id(names: Names) -> Items:
    return [
        Offer(str(s.id), "snapshot", partial(_about_snapshot, names), s)
        for s in names.all_snapshots()
    ]


def _about_time(snapshot: Snapshot) -> str:
    return f"{_ago(snapshot.time_ns)}, {human_size(snapshot.size)}"


def _about_snapshot(names: Names, snapshot: Snapshot) -> str:
    label = f"@{snapshot.label}" if snapshot.label else ""
    return f"{_owner(names, snapshot)}{label}, {_about_time(snapshot)}"


def _about_page(names: Names, page: Sequence[Snapshot]) -> str:
    return f"{counted(len(page), 'snapshot')} of {_owner(names, page[0])}"


def _owner(names: Names, snapshot: Snapshot) -> str:
    known = names.known()
    owner = known.with_id(snapshot.vdi) if known is not None else None
    return owner.name if owner is not None else f"VDI {snapshot.vdi}"


# -- words that are always the same ----------------------------------------------------


def _intervals(_settings: Settings, _incomplete: str) -> Items:
    """Return some intervals, the shortest there is first."""
    return [CompletionItem(text, "interval", help=about) for text, about in _INTERVALS.items()]


def _formats(_settings: Settings, _incomplete: str) -> Items:
    """Return the formats of images that are worth a line in a menu."""
    return [CompletionItem(name, "format", help=whose) for name, whose in _FORMATS.items()]


def _sizes(_settings: Settings, incomplete: str) -> Items:
    """Return units for a number, and a few sizes for nothing."""
    if incomplete.isdecimal():
        return [CompletionItem(f"{incomplete}{unit}", "size") for unit in "GMTK"]
    return [CompletionItem(size, "size") for size in _SIZES]


def _virtual_devices(_settings: Settings, _incomplete: str) -> Items:
    """Return names of disks as virtual machines see them: `xvda`, `sda`, `hda`."""
    return [
        CompletionItem(f"{kind}{letter}", "device", help=what)
        for kind, what in _DEVICES.items()
        for letter in "abcd"
    ]


def addresses(port: int) -> Items:
    """Return addresses to listen on, with a port."""
    return [
        CompletionItem(f"{address}:{port}", "address", help=who)
        for address, who in _ADDRESSES.items()
    ]


def _holders(settings: Settings) -> Mapping[str, Holding]:
    """Return who holds which lock: at a prompt what was seen last, else what is so now."""
    if settings.shell is not None:
        return settings.names.holders
    return standing(settings).holders or {}


def _locks(settings: Settings, _incomplete: str) -> Items:
    """Return the locks that somebody holds and 'lock break' takes."""
    held = _holders(settings)
    names = [name for name in sorted(held) if name == "gc" or name.startswith("vdi/")]
    return [CompletionItem(name, "lock", help=str(held[name].who)) for name in names]


def _lock_hosts(settings: Settings, _incomplete: str) -> Items:
    """Return the hosts whose tap has the store open; 'lock handover' refuses others."""
    sessions = [one for name, one in _holders(settings).items() if name.startswith("session/")]
    hosts = {s.who.host: s.who.purpose for s in sessions if s.who.role != TOOL}
    return [CompletionItem(host, "host", help=purpose) for host, purpose in sorted(hosts.items())]


def _lock_masters(_settings: Settings, _incomplete: str) -> Items:
    """Return how a lock master is named, with its usual port."""
    return [CompletionItem(where, "address", help=who) for where, who in _LOCK_MASTERS.items()]


_OFFERS: Final[Mapping[str, Callable[[Settings, str], Items]]] = {
    "VDI": _vdis,
    "DELETED": _deleted_vdis,
    "SNAPSHOT": _snapshots,
    "VDI|SNAPSHOT": _vdis_and_snapshots,
    "SIZE": _sizes,
    "INTERVAL|off": _intervals,
    "FORMAT": _formats,
    "VDEV": _virtual_devices,
    "HOST:PORT|unix:PATH": _lock_masters,
    "LOCK": _locks,
    "HOST": _lock_hosts,
}
