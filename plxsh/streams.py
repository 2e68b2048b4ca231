"""The standard streams as a program may find them: closed, or in an encoding of the last century.

A closed one would make the next file that is opened standard output, and that is the store.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys

import click


def prepare() -> None:
    """Have all three streams, and none that refuses a character: it is written by its number."""
    _fill_places()
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _fill_places() -> None:
    """Put the empty device where a standard stream is closed."""
    while (taken := os.open(os.devnull, os.O_RDWR)) <= 2:  # always the lowest that is free
        os.set_inheritable(taken, True)
    os.close(taken)


def tell(text: str = "", nl: bool = True) -> None:
    """Write to standard error; that it takes nothing ends no command in the middle of its work."""
    try:
        click.echo(text, nl=nl, err=True)
    except OSError:
        forget(2)


def ask(question: str) -> str:
    """Ask on the terminal; return the line that is the answer, nothing at the end of input.

    `input` waits for a key even if a signal came a moment before it began to wait. Here every
    signal wakes it, so that what is to be done about it is done at once.
    """
    tell(question, nl=False)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        while sys.stdin not in select.select([sys.stdin, woken], [], [])[0]:
            os.read(woken, select.PIPE_BUF)
        return sys.stdin.readline()
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(wake)


def forget(descriptor: int) -> None:
    """Send what is still to be written to a stream nowhere: it would fail again at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
