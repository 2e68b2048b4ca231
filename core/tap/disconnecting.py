"""Disconnecting the clients of an export because an operator says so.

| method | argument: vdi, uuid, snapshot (BLOCK.OFFSET or null), and | answer |
| --- | --- | --- |
| `clients` | peers | clients: who would be disconnected |
| `disconnect` | peers, refuse: seconds or null | clients: who was |

Both are asked of `session/HEX`, so that a snapshot, which nobody has a lock for, can be meant
as well. The answer to `disconnect` comes when the last client's writes are committed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from core.answering import Work
from core.errors import BadRequest, InUse, IoFailed
from core.format import VdiRecord
from core.snaplog import Snapshot
from core.tap.calls import Answered
from core.tap.exports import Export, Exports
from core.tap.farewell import LOOK_EVERY, see_off
from core.tap.timers import Timers
from core.tap.transmission import Transmission

logger = logging.getLogger(__name__)

MOST_SECONDS: Final = 600.0
"""The longest time for which an export is refused."""
_PATIENCE: Final = 50.0
"""Seconds that the last commit may take; who asked waits a little longer."""
_WHY: Final = "an operator disconnected it"


class _Meant(NamedTuple):
    """What an argument names: an export, and some of its clients, or all with no peers."""

    vdi: int
    uuid: bytes
    snapshot: str | None
    peers: tuple[str, ...]

    @classmethod
    def of(cls, argument: dict[str, Any]) -> _Meant:
        """Read an argument.

        Raises:
            BadRequest: it makes no sense.
        """
        try:
            snapshot, peers = argument["snapshot"], argument["peers"]
            found = cls(
                int(argument["vdi"]),
                bytes.fromhex(argument["uuid"]),
                None if snapshot is None else str(snapshot),
                tuple(map(str, peers)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest("this needs vdi, uuid, snapshot and peers") from error
        return found


class Disconnecting:
    """Ends connections, and keeps clients away from an export for a while.

    Args:
        exports: where the clients are.
        timers: say when to look again.
    """

    def __init__(self, exports: Exports, timers: Timers) -> None:
        """Refuse nobody yet."""
        self._exports = exports
        self._timers = timers
        self._refused: dict[tuple[bytes, str | None], float] = {}

    def clients(self, _name: str, argument: dict[str, Any], done: Answered) -> Work:
        """Tell who has an export open."""
        _, found = self._find(_Meant.of(argument))
        told = _described(found)
        done(None)
        return Work((), lambda: {"clients": told})

    def disconnect(self, _name: str, argument: dict[str, Any], done: Answered) -> Work:
        """Disconnect clients of an export; refuse it from now on if that is asked for.

        Raises:
            BadRequest: the argument makes no sense.
            InUse: the VDI is being handed over.
        """
        meant = _Meant.of(argument)
        seconds = _seconds(argument.get("refuse"))
        export, found = self._find(meant)
        if export is not None and export.leaving:
            raise InUse(f"VDI {export.name!r} is being handed over", "wait for that")
        if seconds is not None:
            self._refuse(meant, seconds)
        told = _described(found)
        if export is None:
            done(None)
        else:
            logger.info(
                "export %s: disconnecting %d of its clients",
                export.name,
                len(found),
                extra={"event": "disconnecting", "export": export.name, "connections": len(found)},
            )
            until = time.monotonic() + _PATIENCE
            see_off(self._timers, found, _WHY, partial(self._await, export, until, done))
        return Work((), lambda: {"clients": told})

    def _find(self, meant: _Meant) -> tuple[Export | None, list[Transmission]]:
        """Return the export that is meant if it is open, and those of its clients."""
        export = self._exports.open.get((meant.vdi, meant.snapshot))
        if export is None or export.uuid != meant.uuid:
            return None, []
        found = [c for c in export.connections if _is_meant(c.peer, meant.peers)]
        return export, sorted(found, key=lambda connection: connection.since)

    # -- after the last client ---------------------------------------------------------

    def _await(self, export: Export, until: float, done: Answered) -> None:
        """Answer when an export is given up after its last client; with others left, at once."""
        now = time.monotonic()
        if export.connections or export.held_until > now:
            done(None)
        elif not self._exports.is_open(export) or (export.trouble and not export.committing):
            done(export.trouble)
        elif now < until:
            self._timers.at(now + LOOK_EVERY, partial(self._await, export, until, done))
        else:
            late = f"what was written to {export.name!r} is not committed yet"
            done(IoFailed(late, "'plxsh lock list' shows who has it open"))

    # -- keeping clients away ----------------------------------------------------------

    def _refuse(self, meant: _Meant, seconds: float) -> None:
        """Let nobody open an export for so many seconds; 0 ends that."""
        now = time.monotonic()
        self._refused = {key: until for key, until in self._refused.items() if until > now}
        self._refused[meant.uuid, meant.snapshot] = now + seconds

    def admit(self, record: VdiRecord, snapshot: Snapshot | None) -> None:
        """Make sure that a client may open an export now.

        Raises:
            InUse: an operator does not want that.
        """
        key = record.uuid, None if snapshot is None else str(snapshot.id)
        left = self._refused.get(key, 0.0) - time.monotonic()
        if left > 0:
            what = f"VDI {record.name!r}" if snapshot is None else f"snapshot {snapshot.id}"
            raise InUse(
                f"an operator has {what} refused to all clients for another {left:.0f} s",
                "wait, or end that with 'plxsh tap disconnect' and '--refuse 0'",
            )


def _seconds(refuse: Any) -> float | None:
    """Return for how long to refuse an export.

    Raises:
        BadRequest: it is no such time.
    """
    if refuse is None:
        return None
    if not isinstance(refuse, int | float) or not 0 <= refuse <= MOST_SECONDS:
        raise BadRequest(f"refuse is {refuse!r}, not 0 to {MOST_SECONDS:.0f} seconds")
    return float(refuse)


def _is_meant(peer: str, wanted: Sequence[str]) -> bool:
    """Say whether a client is one of those wanted: all as `tap list` shows it, or a part.

    The part is the number of a process, or an address without its port.
    """
    host = peer.rpartition(":")[0]
    return not wanted or not {peer, peer.removeprefix("pid "), host, host.strip("[]")}.isdisjoint(
        set(wanted) - {""}
    )


def _described(connections: Sequence[Transmission]) -> list[dict[str, Any]]:
    """Return who some clients are; times in nanoseconds since 1970."""
    return [
        {
            "export": connection.name,
            "peer": connection.peer,
            "access": "r" if connection.export.vdi is None else "w",
            "since": round(connection.since * 1e9),
        }
        for connection in connections
    ]
