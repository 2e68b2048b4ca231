"""Signals that end a program: a server hears all of them, and ends in good order.

What a terminal that is closed sends (SIGHUP), what someone sends who thinks of another daemon
(SIGUSR1) and what a supervisor sends would each end a process at once, without a commit.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

ENDING: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGXCPU,
    signal.SIGSTKFLT,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)
"""Those that end a process that does not handle them, and that say nothing of a bug in it.

What SIGPIPE and SIGXFSZ stand for is an error of the write.
"""


@contextmanager
def on_ending_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Have `stop` called when a signal would end the process; in the main thread only.

    What is ignored stays ignored: that is how `nohup` keeps a program running.
    """

    def heard(_number: int, _frame: FrameType | None) -> None:
        stop()

    before = {
        number: signal.signal(number, heard)
        for number in ENDING
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
