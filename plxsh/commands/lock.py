"""`plxsh lock`: the lock master of several hosts, and who holds what."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from core.device import lock_holder
from core.errors import BadRequest, IoFailed, NotFound, ParallaxError
from core.lock_messages import TAP
from plxsh import render
from plxsh.commands.master import master
from plxsh.context import Settings, pass_settings
from plxsh.groups import Group
from plxsh.params import LOCK, LOCK_HOST, VDI
from plxsh.render import Column

if TYPE_CHECKING:
    from core.format import VdiRecord
    from core.lock_connection import LockConnection
    from core.lock_messages import Holding

_PATIENCE: Final = 10.0
"""Seconds that other hosts get for what they have begun already."""
_GIVE_UP: Final = 60.0
"""Seconds that a tap gets to commit and give up a VDI."""
_LOOK_EVERY: Final = 0.1

_LIST: Final = (
    Column("lock", "Lock", flexible=True),
    Column("what", "What", flexible=True),
    Column("access", "Access"),
    Column("host", "Host", flexible=True),
    Column("process", "Process", "number"),
    Column("purpose", "Purpose", flexible=True),
    Column("token", "Token", "number", rank=2),
    Column("state", "State", rank=1),
)


@click.group(cls=Group)
def lock() -> None:
    """Who may write what: the lock master, and the locks that it has given."""


# -- who holds what --------------------------------------------------------------------


@lock.command("list", examples=["plxsh lock list", "plxsh -o json lock list"])
@pass_settings
def list_(settings: Settings) -> None:
    """List the locks: what each stands for, who has it and where, and its token.

    Locks are vdi/N (to write a VDI), extent/N (to allocate from an extent), session/ID (to
    have the store open), registry (to give and take names) and gc (to collect space). While
    no tap serves the store and no lock master is named there are none: whoever has the store
    open has it alone.
    """
    names = _vdi_names(settings)
    locks = _find(settings, names is not None)
    if locks is None:
        holder = lock_holder(settings.store)
        settings.note(f"the lock master is embedded; the store is {_used_by(holder)}")
        held: Sequence[Holding] = ()
    else:
        with closing(locks):
            held = locks.holdings()
    shown = [_described(one, names or {}) for one in sorted(held, key=_order)]
    render.rows(settings, "locks", shown, _LIST)


def _find(settings: Settings, readable: bool) -> LockConnection | None:
    """Return the lock master of the store; when that cannot be read, of every store."""
    from plxsh import locking

    if readable or not settings.lock_master:
        return locking.find(settings)
    return locking.connect_to(settings, settings.lock_master)


def _vdi_names(settings: Settings) -> dict[int, str] | None:
    """Return the names of the VDIs by id; None when the store cannot be read."""
    from core.registry import Registry

    try:
        with closing(settings.blockstore()) as opened:
            return {record.id: record.name for record in Registry(opened).vdis()}
    except ParallaxError:
        if not settings.lock_master:
            raise
        return None


def _used_by(holder: str | None) -> str:
    return f"in use by {holder}" if holder else "free"


def _order(held: Holding) -> tuple[str, int, str, int]:
    """Sort by kind, then by number."""
    kind, _, which = held.name.rpartition("/")
    return kind, int(which) if which.isdecimal() else 0, which, held.token


def _described(held: Holding, names: Mapping[int, str]) -> dict[str, Any]:
    """Return one row."""
    return {
        "lock": held.name,
        "what": what_it_is(held.name, names),
        "access": "shared" if held.shared else "exclusive",
        "host": held.who.host,
        "process": held.who.pid,
        "purpose": held.who.purpose,
        "token": held.token,
        "state": "breaking" if held.breaking else "held",
    }


def what_it_is(name: str, names: Mapping[int, str]) -> str:
    """Return what a lock stands for, in people's words."""
    kind, _, which = name.rpartition("/")
    if kind == "vdi" and which.isdecimal():
        known = names.get(int(which))
        return f"VDI {which} {known!r}" if known is not None else f"VDI {which}"
    words = {"extent": f"space of extent {which}", "session": "the store, open for writing"}
    alone = {"registry": "names and ids", "gc": "garbage collection"}
    return words.get(kind) or (alone.get(which, name) if not kind else name)


# -- taking and handing over -----------------------------------------------------------


@lock.command("break", examples=["plxsh -y lock break vdi/1"], effect="destroys")
@click.argument("name", metavar="LOCK", type=LOCK)
@pass_settings
def break_(settings: Settings, name: str) -> None:
    """Take a lock from whoever holds it, for instance when that host hangs.

    LOCK is vdi/N or gc. The holder stops at once if it still hears, and loses what it wrote
    since its last commit. If it does not answer, others can have the lock only after its
    lease has ended and a margin has passed; that cannot be shortened, as it might still be
    writing. Returns when the lock is free.
    """
    if name.rpartition("/")[0] != "vdi" and name != "gc":
        raise BadRequest(
            f"{name} cannot be taken from a session that goes on: it may have written there what"
            " it has not committed",
            "end that process: all it has is free when its lease has ended",
        )
    names = _vdi_names(settings)
    locks = _required(settings, names is not None)
    with closing(locks):
        held = [one for one in locks.holdings() if one.name == name]
        if not held:
            raise NotFound(f"nobody holds {name}", "'plxsh lock list' shows all locks")
        who = ", ".join(str(one.who) for one in held)
        what = f"{name} ({what_it_is(name, names or {})}), held by {who}"
        lost = "what was written since its last commit is lost"
        if name.startswith("vdi/"):
            lost = f"its clients are disconnected, and {lost}"
        settings.confirm(
            f"breaking {what}: {lost}; others can have it as soon as the holder has stopped, at"
            f" the latest after {locks.longest_break:.0f} s",
            name,
        )
        result = {"lock": _described(held[0], names or {})}
        if not settings.dry_run:  # what was shown, not what somebody has taken meanwhile
            seconds = max(locks.break_lock(name, one.token) for one in held)
            settings.note(f"waiting up to {seconds:.0f} s for {who} to stop")
            _wait_until(
                lambda: not any(_is_held(locks, one) for one in held),
                seconds + _PATIENCE,
                f"{name} to be free",
            )
    render.outcome(settings, "break", "broke", what, result)


@lock.command(
    examples=["plxsh lock handover web host2", "plxsh lock handover 1 host2 --seconds 120"],
    effect="changes",
)
@click.argument("vdi", type=VDI)
@click.argument("host", type=LOCK_HOST)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 600),
    default=60.0,
    help="How long it is kept there for a client that is to come.  [default: 60]",
)
@pass_settings
def handover(settings: Settings, vdi: str, host: str, seconds: float) -> None:
    """Have another host serve a VDI, as a live migration needs it.

    HOST is a host that 'lock list' shows with a tap, or the ID of its session/ID. The tap there
    queues for the VDI; then the one that has it now answers what was asked of it, disconnects
    its clients, commits, and gives the VDI up. No write that was answered is lost.
    """
    from core.registry import Registry

    with closing(settings.blockstore()) as opened:
        record = Registry(opened).find(vdi)
    locks = _required(settings, True)
    with closing(locks):
        name, what = f"vdi/{record.id}", f"VDI {record.id} {record.name!r}"
        to = _destination(locks.holdings(), host)
        held = _held(locks, name)
        if held is None:
            raise NotFound(
                f"nobody has {what} open, so there is nothing to hand over",
                f"connect to the tap on {to.who.host}",
            )
        result = {
            "vdi": {"id": record.id, "name": record.name},
            "from": _place(held),
            "to": _place(to),
        }
        already = held.who.session == to.who.session
        if not settings.dry_run and not already:
            _hand_over(locks, record, held, to, seconds)
    what += f" from {held.who} to {to.who}" if not already else f": {to.who} has it already"
    render.outcome(settings, "hand over", "handed over", what, result)


def _hand_over(
    locks: LockConnection, record: VdiRecord, held: Holding, to: Holding, seconds: float
) -> None:
    """Move a VDI between two taps; whatever fails, one of them or nobody has it."""
    from core.remote import ask

    what = f"VDI {record.id} {record.name!r}"
    argument = {"vdi": record.id, "uuid": record.uuid.hex(), "seconds": seconds}
    with _told(f"{to.who} cannot take {what}; nothing was changed"):
        ask(locks, to.name, "take", argument)
    with _told(f"{held.who} did not give {what} up; 'plxsh lock list' shows who has it"):
        ask(locks, held.name, "give_up", {}, _GIVE_UP)

    def arrived() -> bool:
        now = _held(locks, held.name)
        return now is not None and now.who.session == to.who.session

    _wait_until(arrived, _PATIENCE, f"{to.who} to have {what}")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say which step failed; the error stays of its class."""
    try:
        yield
    except ParallaxError as error:
        raise type(error)(f"{what}: {error.message}", error.hint) from error


def _destination(holdings: Sequence[Holding], host: str) -> Holding:
    """Return the session that is meant by a host or by its own ID.

    Raises:
        NotFound, BadRequest: there is none, or more than one tap there.
    """
    sessions = [held for held in holdings if held.name.startswith("session/")]
    by_id = [held for held in sessions if held.name in (host, f"session/{host}")]
    there = [held for held in sessions if held.who.host == host]
    taps = [held for held in there if held.who.role == TAP]
    found = by_id or taps or there
    if not found:
        known = ", ".join(sorted({held.who.host for held in sessions})) or "none"
        raise NotFound(
            f"no tap on {host!r} has the store open", f"hosts that have it open: {known}"
        )
    if len(found) > 1:
        which = " or ".join(f"{held.name} (process {held.who.pid})" for held in found)
        raise BadRequest(f"{host!r} has several sessions", f"name one of them: {which}")
    return found[0]


def _place(held: Holding) -> dict[str, Any]:
    return {"host": held.who.host, "process": held.who.pid, "purpose": held.who.purpose}


def _required(settings: Settings, readable: bool) -> LockConnection:
    """Return the lock master.

    Raises:
        NotFound: it is embedded.
    """
    locks = _find(settings, readable)
    if locks is None:
        raise NotFound(
            f"there is no lock master: {settings.store} is {_used_by(lock_holder(settings.store))}",
            "start a tap, or name a lock master with --lock-master",
        )
    return locks


def _held(locks: LockConnection, name: str) -> Holding | None:
    """Return who holds a lock; of several who share it, one."""
    return next((held for held in locks.holdings() if held.name == name), None)


def _is_held(locks: LockConnection, wanted: Holding) -> bool:
    return any(held.token == wanted.token for held in locks.holdings())


def _wait_until(done: Callable[[], bool], seconds: float, what: str) -> None:
    """Look now and then until something is so.

    Raises:
        IoFailed: it took too long.
    """
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= until:
            raise IoFailed(f"waited {seconds:.0f} s for {what}", "'plxsh lock list' shows more")
        time.sleep(_LOOK_EVERY)


lock.add_command(master)
