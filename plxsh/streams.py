"""The standard streams as a program may find them: closed, or in an encoding of the last century.

A closed one would make the next file that is opened standard output, and that is the store.
"""

from __future__ import annotations

import io
import os
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


def forget(descriptor: int) -> None:
    """Send what is still to be written to a stream nowhere: it would fail again at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
