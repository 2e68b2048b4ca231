"""Signals that end a program: they end a command as Ctrl-C does, with everything put in order.

`timeout`, `systemctl stop`, a shutdown and a closed connection send SIGTERM or SIGHUP. By
default such a signal ends a process where it stands: half a file stays behind, and so do the
programs that it started.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

from core.ending import ENDING

_ENDING: Final = tuple(number for number in ENDING if number != signal.SIGINT)
"""Python makes SIGINT a KeyboardInterrupt, and in the shell it ends a line, not the program."""


class Ended(KeyboardInterrupt):
    """A signal asks the program to end.

    Args:
        number: which one.

    Attributes:
        told: the user knows.
    """

    def __init__(self, number: int) -> None:
        """Remember the signal; nobody was told yet."""
        super().__init__(number)
        self.number = number
        self.told = False

    def __str__(self) -> str:
        """Return the name of the signal."""
        try:
            return signal.Signals(self.number).name
        except ValueError:  # those between SIGRTMIN and SIGRTMAX
            return f"signal {self.number}"


def ended_by(error: BaseException | None) -> Ended | None:
    """Return the signal that an error comes from, None if it does not come from one."""
    while error is not None and not isinstance(error, Ended):
        error = error.__cause__ or error.__context__
    return error


def ending_in_order(program: Callable[[], int]) -> int:
    """Run a whole program; return its exit status, 128 and its number if a signal ended it.

    Signals that are ignored stay so: `nohup` and shells want that.

    Args:
        program: `Ended` is raised in it, wherever it is, and leaves it again.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        for other in _ENDING:  # nothing disturbs what puts things in order; SIGINT may
            if signal.getsignal(other) is end:
                signal.signal(other, _nothing)
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():
        return program()
    taken = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, end)
        return program()
    except Ended as ended:
        return 128 + ended.number
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; unlike SIG_IGN, children do not inherit it."""
