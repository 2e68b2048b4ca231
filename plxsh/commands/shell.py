"""`plxsh use`, `source` and `exit`: commands about the shell itself."""

from __future__ import annotations

from contextlib import closing

import click

from core.errors import BadRequest
from core.registry import Registry
from core.text import printable
from plxsh.context import Settings, pass_settings
from plxsh.groups import Command
from plxsh.interpreter import Interpreter, shell_of
from plxsh.params import FILE, VDI


def _shell(settings: Settings) -> Interpreter:
    """Return the shell that the command is part of.

    Raises:
        BadRequest: it is a command line by itself.
    """
    if settings.shell is None:
        raise BadRequest(
            f"'{settings.command}' means something inside a shell or script only",
            "start 'plxsh', or give several commands with -c",
        )
    return settings.shell


@click.command(cls=Command, examples=["plxsh -c 'use base; snap create --label nightly'"])
@click.argument("vdi", type=VDI, required=False)
@click.option("--none", is_flag=True, help="Forget the VDI.")
@pass_settings
def use(settings: Settings, vdi: str | None, none: bool) -> None:
    """Choose the VDI for commands that are given none.

    Then 'snap create' takes a snapshot of it, and @LABEL is a snapshot of it. The prompt
    shows its name. 'use' alone prints it, 'use --none' forgets it.
    """
    shell = _shell(settings)
    if none:
        shell.use(None)
    elif vdi is not None:
        with closing(settings.blockstore()) as opened:
            record = Registry(opened).find(vdi)
        shell.use(record)
    elif not shell.used:
        settings.note("no VDI is chosen; 'use VDI' chooses one")
    else:
        with closing(settings.blockstore()) as opened:
            click.echo(printable(Registry(opened).find(settings.vdi).name))


@click.command(cls=Command, examples=["plxsh source nightly.plx"], effect="destroys")
@click.argument("file", type=FILE)
@click.pass_context
@pass_settings
def source(settings: Settings, ctx: click.Context, file: str) -> None:
    """Run the commands in a file, up to the first that fails.

    A line has one command, or several with ';' between them; '#' begins a comment.
    """
    ctx.exit(shell_of(ctx, settings).source(file))


@click.command("exit", cls=Command, examples=["plxsh -c 'vdi list; exit'"])
@pass_settings
def exit_(settings: Settings) -> None:
    """Leave the shell; Ctrl-D does the same."""
    _shell(settings).leaving = True
