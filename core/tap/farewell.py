"""Clients that have to leave: what they asked is answered first, then they are disconnected.

So no write that a client knows to be done is lost, and none is done that is not answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from core.tap.timers import Timers

if TYPE_CHECKING:
    from core.tap.transmission import Transmission

LAST_REPLIES: Final = 3.0
"""Seconds that clients have to take the replies to what they asked before."""
LOOK_EVERY: Final = 0.01


def see_off(
    timers: Timers, connections: Iterable[Transmission], why: str, gone: Callable[[], None]
) -> None:
    """Take no more requests of some clients, answer those that were taken, hang up.

    Args:
        timers: say when to look again.
        connections: those of the clients.
        why: the reason, for the log.
        gone: called when all of them are disconnected.
    """
    leaving = list(connections)
    for connection in leaving:
        connection.finish()
    _look(timers, leaving, time.monotonic() + LAST_REPLIES, why, gone)


def _look(
    timers: Timers,
    leaving: Sequence[Transmission],
    until: float,
    why: str,
    gone: Callable[[], None],
) -> None:
    """Disconnect clients when all that they asked is answered, or their time is over."""
    now = time.monotonic()
    if now < until and any(not client.closed and not client.idle for client in leaving):
        timers.at(now + LOOK_EVERY, partial(_look, timers, leaving, until, why, gone))
        return
    for client in leaving:
        client.disconnect(why)
    gone()
