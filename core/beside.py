"""Working beside other sessions: asking them, and doing what they ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from core.answering import Answers
from core.collection import others
from core.errors import InUse, NotFound, ParallaxError
from core.format import VdiRecord
from core.parts import Whole
from core.remote import Argument, ask, pack_error
from core.vdi import Vdi

_ATTEMPTS: Final = 3


def wherever_open(
    session: Whole,
    record: VdiRecord,
    method: str,
    argument: Argument,
    here: Callable[[Vdi], Argument],
) -> Argument:
    """Have something done to a VDI: here, or else by the session that has it open.

    The holder says NotFound, or the lock master does for it, only when it was not done;
    then it is tried again, as the VDI may be free now. Any other failure is final: whether
    it was done may not be known, and it must not be done twice.

    Args:
        session: this session.
        record: the VDI.
        method: what the other session is asked for; see `core.answering`.
        argument: what it is to know.
        here: does the same; its answer is the other's answer.

    Raises:
        NotFound: the VDI was deleted, or the holder has not what it should be done to.
        InUse: it is in the middle of a change, or someone needs it to stand still.
        IoFailed: no answer came; nobody knows whether it was done.
        Others: as `here`.
    """
    gone: NotFound | None = None
    for _ in range(_ATTEMPTS):
        try:
            vdi = session.open_vdi(record)
        except InUse:
            if not session.locks.shared:
                raise
        else:
            with session.closing(vdi):
                return here(vdi)
        try:
            named = {**argument, "uuid": record.uuid.hex()}
            return ask(session.locks, f"vdi/{record.id}", method, named)
        except NotFound as error:
            gone = error
    assert gone is not None
    raise gone


def attend(session: Whole, answers: Answers) -> None:
    """Follow the calls of other sessions that wait, each to its end."""
    for called in session.locks.calls():
        try:
            work = answers.begin(called)
            try:
                if work.vdis:
                    session.commit(work.vdis)
                answer = work.finish()
            except BaseException:
                work.undo()
                raise
        except ParallaxError as error:
            session.locks.answer(called, False, pack_error(error))
        else:
            session.locks.answer(called, True, json.dumps(answer))


def tell_grown(session: Whole) -> None:
    """Tell all others that the store is larger.

    Who does not answer finds out when it meets a pointer into the new space.
    """
    for holding in others(session.store, session.locks):
        with suppress(ParallaxError):
            ask(session.locks, holding.name, "grown", {})
