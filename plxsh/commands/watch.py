"""`plxsh watch`: the same command again and again."""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import datetime
from typing import Final

import click

from core.errors import BadRequest, Interrupted
from core.text import columns, shortened
from plxsh.context import Settings, pass_settings
from plxsh.grammar import read
from plxsh.groups import Command
from plxsh.guard import BROKEN_PIPE
from plxsh.interpreter import shell_of
from plxsh.language import quoted
from plxsh.params import COMMAND_LINE
from plxsh.signals import Ended
from plxsh.streams import tell

_EVERY: Final = 2.0
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"


@click.command(
    cls=Command,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    examples=["plxsh watch vdi list", "plxsh watch 0.5 tap list"],
)
@click.argument("words", metavar="[SECONDS] COMMAND...", nargs=-1, required=True, type=COMMAND_LINE)
@click.pass_context
@pass_settings
def watch(settings: Settings, ctx: click.Context, words: tuple[str, ...]) -> None:
    """Run a command again and again, until Ctrl-C.

    It runs every 2 seconds unless you say how often. Only commands that change nothing
    are repeated. On a terminal each result takes the place of the one before; elsewhere they
    follow one another.
    """
    seconds, line = _split(list(words))
    shell = shell_of(ctx, settings)
    reading = read(shell.cli, line, settings)
    for role in reading.roles:
        if role.kind == "wrong":  # the command itself says it best, and once is enough
            ctx.exit(shell.call(line, replace(settings, command="", paged=False), "plxsh"))
        if role.command.name in _NOT_WATCHED:
            raise BadRequest(
                f"'{role.command.name}' cannot be watched", "name a command that only looks"
            )
    if isinstance(reading.command, Command) and reading.command.effect != "looks":
        raise BadRequest(f"'{' '.join(line)}' changes something", "watch repeats what only looks")

    def once() -> None:
        status = shell.call(line, replace(settings, command="", paged=False), "plxsh")
        if status == Interrupted.exit_status:
            raise KeyboardInterrupt
        if status == BROKEN_PIPE:
            ctx.exit(status)

    in_place = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    show = _in_place if in_place else _once
    with _screen() if in_place else nullcontext():
        try:
            while True:
                show(once, seconds, line)
                time.sleep(seconds)
        except Ended:
            raise
        except KeyboardInterrupt:  # the usual way to end it
            if sys.stdout.isatty():
                tell()  # the terminal shows ^C


_NOT_WATCHED: Final = ("watch", "source", "use", "exit", "serve")


def _once(once: Callable[[], None], _seconds: float, _line: list[str]) -> None:
    once()
    sys.stdout.flush()


@contextmanager
def _screen() -> Iterator[None]:
    """Take the whole terminal, and give it back as it was."""
    click.echo(_ENTER, nl=False, color=True)
    try:
        yield
    finally:
        click.echo(_LEAVE, nl=False, color=True)


class _Captured(io.StringIO):
    """Takes what a command writes to the terminal, which is told that it is one."""

    def isatty(self) -> bool:
        return True


def _in_place(once: Callable[[], None], seconds: float, line: list[str]) -> None:
    """Run the command and show what it wrote in place of what is on the screen."""
    written = _Captured()
    with redirect_stdout(written), redirect_stderr(written):
        once()
    size = shutil.get_terminal_size()
    words = " ".join(map(quoted, line))
    clock = f"{datetime.now().astimezone():%H:%M:%S}"
    title = shortened(f"every {seconds:g} s: {words}", max(size.columns - len(clock) - 2, 1))
    gap = " " * (size.columns - columns(title) - len(clock))
    shown = [f"{title}{gap}{clock}", ""]
    shown += written.getvalue().splitlines()
    if len(shown) > size.lines:
        more = len(shown) - size.lines + 1
        shown[size.lines - 1 :] = [f"... {more} more lines"]
    text = f"{_REST_OF_LINE}\n".join(shown)
    click.echo(_HOME + text + _REST_OF_LINE + _REST_OF_SCREEN, nl=False, color=True)


def _split(words: list[str]) -> tuple[float, list[str]]:
    """Return the seconds and the command.

    Raises:
        BadRequest: there is no command, or the time makes no sense.
    """
    try:
        seconds = float(words[0])
    except ValueError:
        return _EVERY, words
    if not 0.1 <= seconds <= 86400:
        raise BadRequest(f"every {words[0]} seconds is not possible", "take 0.1 to 86400")
    if len(words) == 1:
        raise BadRequest("there is no command to watch", "as in: watch 5 vdi list")
    return seconds, words[1:]
