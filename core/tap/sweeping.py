"""Sweeps that a collection asks for: what is needed is found out before, on another thread.

Marking reads every node of the store once, which no guest is to wait for. Where it is done, and
why a tap does it at all, is in `core.collection`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from core.answering import Work
from core.blockset import BlockSet
from core.collection import Member
from core.errors import ParallaxError
from core.session import Session
from core.tap.aside import Aside
from core.tap.calls import Answered


class Sweeping:
    """Follows `sweep` as a session does, but for the look around before the first one.

    Args:
        session: the session of the tap.
        aside: has that done.
    """

    def __init__(self, session: Session, aside: Aside) -> None:
        """Look at nothing yet."""
        self._session = session
        self._aside = aside
        self._waiting: list[Answered] = []

    def sweep(self, name: str, argument: dict[str, Any], done: Answered) -> Work:
        """Free what is garbage in an extent, as soon as it is known what is needed.

        Raises:
            BadRequest: the argument makes no sense.
            InUse: this session is not sealed for that collection (any more).
        """
        member = self._session.member
        work = self._session.answers.work(name, "sweep", argument)
        if member.has_looked:
            done(None)
            return work
        token = int(argument["collection"])
        look = member.look(token)
        self._waiting.append(done)
        if len(self._waiting) == 1:  # one look at a time, however often somebody asks
            self._aside.ask(look, partial(self._told, member, token))
        return work

    def _told(self, member: Member, token: int, found: BlockSet | ParallaxError) -> None:
        """Go on with all sweeps that have waited, or refuse them."""
        waiting, self._waiting = self._waiting, []
        failure = found if isinstance(found, ParallaxError) else None
        if isinstance(found, BlockSet):
            try:
                member.looked(token, found)
            except ParallaxError as error:
                failure = error
        for done in waiting:
            done(failure)
