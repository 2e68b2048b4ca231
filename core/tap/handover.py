"""Handing a VDI over to another tap, as a live migration needs it.

`take` at the destination queues for the lock, then `give_up` at the source stops serving,
commits and gives the lock back; the lock goes from one to the other, so at no moment may
both write. The destination keeps the VDI open without clients for a while.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any, Final

from core.answering import Work
from core.errors import BadRequest, InUse, NotFound, ParallaxError
from core.locks import Grant
from core.registry import Registry
from core.tap.calls import Answered
from core.tap.exports import Export, Exports
from core.tap.farewell import LAST_REPLIES, see_off
from core.tap.opening import Openings, Outcome
from core.tap.timers import Timers

logger = logging.getLogger(__name__)

_AWAY: Final = 5.0
"""Seconds for which a VDI that was given up is not opened here again."""
_MOST_SECONDS: Final = 600.0


class HandOver:
    """Gives VDIs up, and takes them.

    Args:
        registry: knows the VDIs.
        exports: where they are open.
        openings: waits for their locks.
        timers: say when to look again.
    """

    def __init__(
        self, registry: Registry, exports: Exports, openings: Openings, timers: Timers
    ) -> None:
        """Do nothing yet."""
        self._registry = registry
        self._exports = exports
        self._openings = openings
        self._timers = timers

    # -- giving up ---------------------------------------------------------------------

    def give_up(self, name: str, _argument: dict[str, Any], done: Answered) -> Work:
        """Stop serving the VDI of the lock `name`, commit it and give the lock back.

        First no request is begun any more; then those that were are answered, then the
        clients are disconnected. Only then the last commit begins, so it holds all that was
        answered, and the lock is given back after it.

        Raises:
            NotFound: it is not open here.
            InUse: it is on its way already.
        """
        kind, _, number = name.partition("/")
        export = self._exports.find(int(number)) if kind == "vdi" and number.isdigit() else None
        if export is None:
            raise NotFound(f"{name} is not open here", "'plxsh lock list' shows who holds it")
        if export.leaving:
            raise InUse(f"VDI {export.name!r} is being handed over already", "wait for that")
        export.leaving = True
        logger.info(
            "export %s: handing it over",
            export.name,
            extra={"event": "giving_up", "export": export.name},
        )
        self._exports.keep_away(export.id, LAST_REPLIES + _AWAY)
        # The last client's leaving is not its end.
        export.held_until = time.monotonic() + LAST_REPLIES + _AWAY
        emptied = partial(self._emptied, export, done)
        see_off(self._timers, export.connections, "the VDI goes to another host", emptied)
        return Work((), dict)

    def _emptied(self, export: Export, done: Answered) -> None:
        """Give an export up whose clients are gone."""
        if not self._exports.is_open(export):
            done(InUse(f"VDI {export.name!r} was lost meanwhile"))
            return
        self._exports.give_up(export, partial(self._given, export, done))

    def _given(self, export: Export, done: Answered, error: ParallaxError | None) -> None:
        if error is None:
            self._exports.keep_away(export.id, _AWAY)
        else:
            export.leaving = False
            export.held_until = 0.0
            self._exports.keep_away(export.id, 0.0)
        done(error)

    # -- taking ------------------------------------------------------------------------

    def take(self, _name: str, argument: dict[str, Any], done: Answered) -> Work:
        """Queue for a VDI; when it comes, keep it open for a client.

        It is answered as soon as it is queued for: the holder gives it up after that.

        Raises:
            BadRequest, NotFound: there is no such VDI.
            InUse: it is open here, or on its way already.
        """
        try:
            vdi, uuid = int(argument["vdi"]), str(argument["uuid"])
            seconds = min(max(float(argument["seconds"]), 0.0), _MOST_SECONDS)
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest("take needs vdi, uuid and seconds") from error
        record = self._registry.get(vdi)
        if record is None or record.uuid.hex() != uuid:
            raise NotFound(f"there is no VDI {vdi} of that UUID", "list them again")
        if self._exports.find(vdi) is not None:
            raise InUse(f"VDI {record.name!r} is open here already", "nothing is to be done")
        self._exports.keep_away(vdi, seconds + _AWAY)
        try:
            arrived = partial(self._arrived, record.name, vdi, seconds)
            self._openings.ask(f"vdi/{vdi}", record.token, seconds, arrived)
        except ParallaxError:
            self._exports.keep_away(vdi, 0.0)
            raise
        logger.info(
            "VDI %s: waiting for it for up to %g s",
            record.name,
            seconds,
            extra={"event": "taking", "export": record.name, "wait": seconds},
        )
        done(None)
        return Work((), dict)

    def _arrived(self, name: str, vdi: int, seconds: float, outcome: Outcome) -> None:
        """Open the VDI that came, for a client that is to come."""
        self._exports.keep_away(vdi, 0.0)
        if isinstance(outcome, ParallaxError):
            self._log_not_taken(name, outcome)
            return
        try:
            export = self._open(vdi, outcome)
        except ParallaxError as error:
            self._log_not_taken(name, error)
            return
        export.held_until = time.monotonic() + seconds
        self._timers.at(export.held_until, partial(self._exports.settle, export))
        logger.info(
            "export %s: taken over, kept open for %g s",
            export.name,
            seconds,
            extra={"event": "taken", "export": export.name},
        )

    def _open(self, vdi: int, grant: Grant) -> Export:
        """Open a VDI under a grant, which is given back when that fails."""
        try:
            record = self._registry.get(vdi)  # the source has committed since it was asked for
            if record is None:
                raise NotFound(f"there is no VDI {vdi} any more")
            return self._exports.open_with(record, grant)
        except ParallaxError:
            grant.release()
            raise

    def _log_not_taken(self, name: str, error: ParallaxError) -> None:
        logger.warning(
            "VDI %s: not taken over: %s",
            name,
            error,
            extra={"event": "not_taken", "export": name},
        )
