"""Long output goes through a pager, when someone looks at it on a terminal.

The pager is the first of these that is set: $PARALLAX_PAGER, `pager` in the section
[shell] of the configuration, $PAGER, `less` if it is installed. Nothing, or `cat`, means
none. It is run by the Unix shell, so it may have options.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import click

from core.text import columns
from plxsh.context import Settings, configured

_DEFAULTS: Final = {"LESS": "FRXK", "LV": "-c"}
"""What has pagers show colours, end with Ctrl-C, and leave the text on the screen."""
_STYLE: Final = re.compile(r"\x1b\[[0-9;]*m")
_NOT_FOUND: Final = 127


def show(settings: Settings, text: str) -> None:
    """Write whole lines to standard output, through a pager if they do not fit the screen.

    Raises:
        BadRequest: the configuration has something else than a text for the pager.
    """
    command = pager(settings) if _is_long(settings, text) else ""
    if not command or not _paged(command, text):
        click.echo(text, nl=False)


def pager(settings: Settings) -> str:
    """Return the command line of the pager, empty for none."""
    chosen = (
        os.environ.get("PARALLAX_PAGER"),
        configured(settings.config, "shell", "pager"),
        os.environ.get("PAGER"),
        "less" if shutil.which("less") else "",
    )
    command = next(text for text in chosen if text is not None).strip()
    return "" if command == "cat" else command


def _is_long(settings: Settings, text: str) -> bool:
    """Say whether a person on a capable terminal would see the beginning scroll away."""
    if not settings.paged or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return False
    width, height = shutil.get_terminal_size()
    rows = 0
    for line in text.splitlines():
        rows += max(1, -(-columns(_STYLE.sub("", line)) // width))
        if rows >= height:  # the prompt takes a line as well
            return True
    return False


def _paged(command: str, text: str) -> bool:
    """Run the pager on a text; return False if there is no such program."""
    import subprocess

    from plxsh.interpreter import waiting_for_child

    sys.stdout.flush()
    environment = {**_DEFAULTS, **os.environ}
    with _terminal_kept(), waiting_for_child():
        process = subprocess.Popen(
            ["/bin/sh", "-c", command], stdin=subprocess.PIPE, env=environment
        )
        assert process.stdin is not None
        # Who has seen enough leaves before the end.
        with suppress(BrokenPipeError):
            process.stdin.write(text.encode(errors="replace"))
        with suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait() != _NOT_FOUND


@contextmanager
def _terminal_kept() -> Iterator[None]:
    """Give the terminal its modes back, even from a pager that was killed."""
    terminal = sys.stdout.fileno()
    before = termios.tcgetattr(terminal)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal went away
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
