"""Signals that end a program reach a server, which ends in good order."""

from __future__ import annotations

import signal

import pytest

from core.ending import ENDING, on_ending_signals


@pytest.mark.parametrize("number", ENDING)
def test_each_signal_is_heard_and_what_was_there_before_comes_back(number: int) -> None:
    before = signal.getsignal(number)
    heard = []
    with on_ending_signals(lambda: heard.append(number)):
        signal.raise_signal(number)
        signal.raise_signal(number)
    assert heard == [number] * 2
    assert signal.getsignal(number) == before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_ending_signals(lambda: pytest.fail("nohup means what it says")):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_all_signals_that_end_a_process_are_known() -> None:
    """The others stop it, are ignored, tell of a bug, or cannot be handled."""
    others = {
        *("SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGWINCH"),
        *("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"),
        *("SIGKILL", "SIGPIPE", "SIGXFSZ"),  # the last two are ignored by Python
    }
    numbers = {s.value for s in signal.Signals if s.name not in others}
    assert numbers | {*range(signal.SIGRTMIN, signal.SIGRTMAX)} == {*ENDING}
