"""What other sessions ask of this one: snapshots of a VDI that is open here, and the like.

Served in the loop thread and never by waiting: the part that is to be done at once is done,
the VDIs it touched join the next commit, and the answer follows when that is durable. Calls
that come together share a commit.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from core.answering import Answers, Work
from core.errors import BadRequest, Fenced, ParallaxError, unexpected
from core.lock_messages import Called
from core.locks import Locks
from core.remote import pack_error
from core.tap.commits import Commits
from core.tap.counts import Totals
from core.vdi import Vdi

logger = logging.getLogger(__name__)

_SHOWN: Final = 200

Answered = Callable[[ParallaxError | None], None]
"""Told in the loop thread that a call is done (None), or why it is not."""
Special = Callable[[str, dict[str, Any], Answered], Work]
"""Follows a call that only a tap can: given its name and argument, and whom to tell."""


class Desk:
    """Where calls arrive and are answered.

    Args:
        locks: where they come from.
        answers: what carries them out.
        commits: what makes them durable.
        totals: where they are counted.
        wake: callable from any thread; makes the loop call `serve` soon.

    Attributes:
        rung: there may be calls.
        specials: methods that only a tap knows.
        after: called after each call that was done, with its method.
    """

    def __init__(
        self,
        locks: Locks,
        answers: Answers,
        commits: Commits,
        totals: Totals,
        wake: Callable[[], None],
    ) -> None:
        """Answer nobody before `open`."""
        self._locks = locks
        self._answers = answers
        self._commits = commits
        self._totals = totals
        self._wake = wake
        self.rung = False
        self.specials: dict[str, Special] = {}
        self.after: Callable[[str], None] = lambda _method: None

    def open(self) -> None:
        """Hear of calls from now on."""
        self._locks.when_called(self._ring)
        self._ring()

    def close(self) -> None:
        """Hear of no more calls; who waits is told by the lock master that nobody is here."""
        self._locks.when_called(None)

    def _ring(self) -> None:
        self.rung = True
        self._wake()

    def serve(self) -> None:
        """Begin all calls that are there."""
        self.rung = False  # before they are taken, so that none is missed
        for called in self._locks.calls():
            _Serving(self, called).begin()

    # -- one call ----------------------------------------------------------------------

    def follow(self, called: Called, done: Answered) -> Work:
        """Begin a call; `done` is told when it can be finished."""
        special = self.specials.get(called.method)
        if special is not None:
            return special(called.name, _argument(called), done)
        work = self._answers.begin(called)
        self._when_durable(work.vdis, done)
        return work

    def _when_durable(self, vdis: Iterable[Vdi], done: Answered) -> None:
        """Tell `done` when all VDIs are committed; they were added at once, so share one."""
        waiting = list(vdis)
        if not waiting:
            done(None)
        left = len(waiting)
        failure: ParallaxError | None = None

        def one(error: ParallaxError | None) -> None:
            nonlocal left, failure
            left -= 1
            failure = failure or error
            if not left:
                done(failure)

        for vdi in waiting:
            self._commits.add(vdi, one)

    def answer(self, called: Called, error: ParallaxError | None, text: str) -> None:
        """Send an answer; that the lock master is gone is no failure of the loop."""
        self._totals.called(called.method, error is not None)
        try:
            self._locks.answer(called, error is None, text)
        except ParallaxError as failure:
            logger.warning("%s: cannot answer %s: %s", called.name, called.method, failure)
        if error is None:
            self.after(called.method)


class _Serving:
    """A call from its arrival to its answer.

    It may be done before `follow` has returned: then the answer waits for that.
    """

    def __init__(self, desk: Desk, called: Called) -> None:
        self._desk = desk
        self._called = called
        self._since = time.monotonic()
        self._work: Work | None = None
        self._outcome: tuple[ParallaxError | None] | None = None

    def begin(self) -> None:
        """Do what can be done at once."""
        try:
            self._work = self._desk.follow(self._called, self._told)
        except Exception as error:
            self._fail(error)
        else:
            if self._outcome is not None:
                self._end(self._work, *self._outcome)

    def _told(self, error: ParallaxError | None) -> None:
        self._outcome = (error,)
        if self._work is not None:
            self._end(self._work, error)

    def _end(self, work: Work, failure: ParallaxError | None) -> None:
        """Answer when what was to be committed is durable, or will not be."""
        try:
            if failure is not None:
                raise failure
            text = json.dumps(work.finish())
        except Exception as error:
            work.undo()
            self._fail(error)
            return
        self._log(logging.INFO, "done")
        self._desk.answer(self._called, None, text)

    def _fail(self, error: Exception) -> None:
        called = self._called
        if not isinstance(error, ParallaxError):
            error = unexpected(error, f"{called.name}: {called.method[:_SHOWN]}")
        elif isinstance(error, Fenced):
            self._log(logging.WARNING, error.message)
        else:
            self._log(logging.WARNING, f"refused: {error.message}")
        self._desk.answer(called, error, pack_error(error))

    def _log(self, level: int, outcome: str) -> None:
        called = self._called
        seconds = time.monotonic() - self._since
        logger.log(
            level,
            "%s: %s asked for by another session: %s (%.1f ms)",
            called.name,
            called.method[:_SHOWN],
            outcome,
            seconds * 1e3,
            extra={
                "event": "call",
                "lock": called.name,
                "method": called.method[:_SHOWN],
                "outcome": outcome,
                "seconds": round(seconds, 6),
            },
        )


def _argument(called: Called) -> dict[str, Any]:
    """Return the argument of a call.

    Raises:
        BadRequest: it is none.
    """
    try:
        argument = json.loads(called.argument or "{}")
    except ValueError as error:
        raise BadRequest(f"the argument of {called.method} is no JSON") from error
    if not isinstance(argument, dict):
        raise BadRequest(f"the argument of {called.method} is no object")
    return argument
