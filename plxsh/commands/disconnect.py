"""`plxsh tap disconnect`: the clients of an export are sent away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from core.device import lock_holder
from core.errors import BadRequest, InUse, NotFound, ParallaxError
from core.lock_messages import TOOL, UNKNOWN
from core.text import counted
from plxsh import render
from plxsh.context import Settings, pass_settings
from plxsh.groups import Command
from plxsh.params import SERVED, WordsArgument, names_snapshot

if TYPE_CHECKING:
    from core.format import VdiRecord
    from core.lock_connection import LockConnection
    from core.lock_messages import Holding
    from core.snaplog import Snapshot

_ANSWER: Final = 60.0
"""Seconds that a tap gets to answer its clients and to commit."""
_SHOWN: Final = 5


@click.command(
    cls=Command,
    examples=[
        "plxsh -y tap disconnect web",
        "plxsh -y tap disconnect web --refuse 30",
        "plxsh -y tap disconnect base@clean --client 10.0.0.7",
    ],
    effect="destroys",
)
@click.argument("contents", metavar="VDI|SNAPSHOT", cls=WordsArgument, type=SERVED)
@click.option(
    "--client",
    "peers",
    metavar="ID|ADDRESS",
    multiple=True,
    help="Only this one, as 'tap list' shows it; more than once for several.",
)
@click.option(
    "--refuse",
    metavar="SECONDS",
    type=click.FloatRange(0, 600),
    help="Let nobody open it again for so long; 0 ends that.  [default: they may at once]",
)
@pass_settings
def disconnect(
    settings: Settings, contents: str, peers: tuple[str, ...], refuse: float | None
) -> None:
    """Disconnect the clients of a VDI or snapshot; print how many there were.

    Their taps answer what was asked of them, hang up, and commit when the last client is gone:
    no write that was answered is lost. A guest that does not connect again sees I/O errors.
    Nobody connected is no error.

    The taps of all hosts are asked, through the lock master. --client is a process (1234), an
    address (10.0.0.7) or one with its port. Clients may come back at once; with --refuse no
    running tap gives the export to anyone for so many seconds, time enough to delete it.
    """
    if peers and refuse is not None:
        raise click.UsageError("--refuse is for all clients, so it does not go with --client")
    record, snapshot = _target(settings, contents)
    what = f"VDI {record.id} {record.name!r}"
    if snapshot is not None:
        what = f"snapshot {snapshot.id} of {what}"
    argument = {
        "vdi": record.id,
        "uuid": record.uuid.hex(),
        "snapshot": None if snapshot is None else str(snapshot.id),
        "peers": peers,
    }
    with _lock_master(settings) as locks:
        taps = _taps(locks, record, everywhere=snapshot is not None or refuse is not None)
        found = _ask_all(locks, taps, "clients", argument)
        if found:
            settings.confirm(
                f"disconnecting {_listed(found)} of {what}: a guest that does not connect again"
                " sees I/O errors"
            )
        if not settings.dry_run:
            found = _ask_all(locks, taps, "disconnect", {**argument, "refuse": refuse})
    result = {"disconnected": found, "refused_seconds": refuse}
    what = f"{_listed(found)} of {what}" + _refused(refuse)
    render.outcome(settings, "disconnect", "disconnected", what, result, str(len(found)))


def _target(settings: Settings, reference: str) -> tuple[VdiRecord, Snapshot | None]:
    """Return the VDI, and the snapshot of it if one is named."""
    from core.finding import find_snapshot
    from core.registry import Registry

    with closing(settings.blockstore()) as store:
        registry = Registry(store)
        if not names_snapshot(reference):
            return registry.find(reference), None
        snapshot = find_snapshot(store, reference)
        record = registry.get(snapshot.vdi)
        if record is None:
            raise NotFound(f"the VDI of snapshot {reference} is gone", "'plxsh vdi list' lists all")
        return record, snapshot


# -- whom to ask -----------------------------------------------------------------------


@contextmanager
def _lock_master(settings: Settings) -> Iterator[LockConnection | None]:
    """Give out the lock master of the store; None where no tap can have it open.

    Raises:
        InUse: somebody has it open who cannot be asked.
    """
    from plxsh.locking import find

    locks = find(settings)
    if locks is not None:
        with closing(locks):
            yield locks
        return
    holder = lock_holder(settings.store)
    if holder is not None:
        raise InUse(
            f"{settings.store} is in use by {holder}, which cannot be asked who is connected",
            "wait until it ends; for a tap of another user name its socket with --lock-master",
        )
    yield None


def _taps(locks: LockConnection | None, record: VdiRecord, everywhere: bool) -> list[Holding]:
    """Return the sessions of the taps that may have clients of a VDI, or of all taps.

    Sessions of an earlier version may be taps.
    """
    held = [] if locks is None else locks.holdings()
    having = {one.who.session for one in held if one.name == f"vdi/{record.id}"}
    return [
        one
        for one in held
        if one.name.startswith("session/")
        and one.who.role != TOOL
        and (everywhere or one.who.session in having)
    ]


def _ask_all(
    locks: LockConnection | None, taps: Sequence[Holding], method: str, argument: dict[str, Any]
) -> list[dict[str, Any]]:
    """Ask taps about clients; return them all, and where they are connected.

    Raises:
        ParallaxError: a tap could not be asked, or did not do it.
    """
    from core.remote import ask

    assert locks is not None or not taps
    found: list[dict[str, Any]] = []
    for tap in taps:
        assert locks is not None
        try:
            answer = ask(locks, tap.name, method, argument, _ANSWER)
        except NotFound:  # it has ended meanwhile, and with it its connections
            continue
        except ParallaxError as error:
            if isinstance(error, BadRequest) and tap.who.role == UNKNOWN:
                continue  # it knows no such method, so it is none
            done = f"; {_listed(found)} disconnected before" if method == "disconnect" else ""
            raise type(error)(f"{tap.who}: {error.message}{done}", error.hint) from error
        where = {"host": tap.who.host, "process": tap.who.pid}
        about = {"vdi": argument["vdi"], "snapshot": argument["snapshot"]}
        found += [{**client, **about, **where} for client in answer["clients"]]
    return found


# -- what to say -----------------------------------------------------------------------


def _listed(clients: Sequence[dict[str, Any]]) -> str:
    """Return how many clients there are, and who the first are."""
    if not clients:
        return "no client"
    shown = ", ".join(f"{client['peer']} on {client['host']}" for client in clients[:_SHOWN])
    more = len(clients) - _SHOWN
    return f"{counted(len(clients), 'client')} ({shown}{f' and {more} more' if more > 0 else ''})"


def _refused(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f", refused to all for {seconds:g} s" if seconds else ", refused to nobody"
