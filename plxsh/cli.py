"""The command `plxsh`: its global options, its table of commands, and what runs without one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from core.errors import BadRequest
from plxsh import streams
from plxsh.context import Settings, pass_settings
from plxsh.groups import LazyGroup
from plxsh.guard import guarded
from plxsh.options import before_commands
from plxsh.params import FILE
from plxsh.signals import ending_in_order

COMMANDS: Final = {
    "store": "plxsh.commands.store:store",
    "vdi": "plxsh.commands.vdi:vdi",
    "snap": "plxsh.commands.snap:snap",
    "tree": "plxsh.commands.tree:tree",
    "tap": "plxsh.commands.tap:tap",
    "lock": "plxsh.commands.lock:lock",
    "disk": "plxsh.commands.disk:disk",
    "use": "plxsh.commands.shell:use",
    "watch": "plxsh.commands.watch:watch",
    "source": "plxsh.commands.shell:source",
    "help": "plxsh.commands.help:help_",
    "completion": "plxsh.commands.completion:completion",
    "exit": "plxsh.commands.shell:exit_",
}


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # takes longer than most commands

        click.echo(f"plxsh {version('parallax-vdi')}")
        ctx.exit()


def _configure(ctx: click.Context, _param: click.Parameter, path: str | None) -> None:
    """Read the configuration before a command is looked up: it may be an alias."""
    settings = ctx.find_object(Settings)
    if settings is not None and settings.shell is None and not ctx.resilient_parsing:
        settings.configure(path)


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    params=before_commands(),
    invoke_without_command=True,
    context_settings={"max_content_width": 100},
)
@click.option(
    "--config",
    metavar="FILE",
    type=FILE,
    envvar="PARALLAX_CONFIG",
    show_envvar=True,
    expose_value=False,
    callback=_configure,
    help="Configuration file.  [default: ~/.config/parallax/parallax.toml, then"
    " /etc/parallax/parallax.toml]",
)
@click.option("-c", "lines", metavar="LINES", help="Run these commands: 'vdi list; snap list web'.")
@click.option("-f", "script", metavar="FILE", type=FILE, help="Run the commands in a file.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the version and exit.",
)  # fmt: skip
@click.pass_context
@pass_settings
def cli(
    settings: Settings,
    ctx: click.Context,
    lines: str | None,
    script: str | None,
) -> int:
    """Copy-on-write virtual disks for virtual machines.

    A blockstore holds virtual disk images (VDIs) and their snapshots. A VDI is named by its
    id, its name or its UUID; a snapshot by BLOCK OFFSET, BLOCK.OFFSET or VDI@LABEL. Sizes
    are powers of 1024: 4096, 64K, 2G, 1T, 2GiB. Global options stand before the command or
    behind it.

    Without a command this is an interactive shell, or runs the script on standard input.
    Of several commands (-c, -f, scripts) the first error ends the rest.

    Exit status: 0 done, 1 the answer is no, 2 usage, 3 not found, 4 in use, 5 I/O error or
    damage, 6 no space, 130 interrupted, 143 ended by SIGTERM (128 and its number
    for every signal).
    """
    settings.look()
    if ctx.invoked_subcommand is not None:
        if lines is not None or script is not None:
            raise BadRequest("a command and -c or -f were given", "give one of them")
        return 0
    return _run_without_command(settings, lines, script)


def _run_without_command(settings: Settings, lines: str | None, script: str | None) -> int:
    """Run what takes the place of a command: lines, a script, or the interactive shell."""
    from plxsh.interpreter import Interpreter, read_script

    if settings.shell is not None:
        raise BadRequest("this is the shell already", "type a command; 'help' lists them")
    if lines is not None and script is not None:
        raise BadRequest("both -c and -f were given", "give one of them")
    interpreter = Interpreter(cli, settings)
    if lines is not None:
        return interpreter.run(lines)
    if script is not None:
        return interpreter.run(read_script(script), script)
    if not sys.stdin.isatty():
        return interpreter.run(read_script("-"), "-")
    from plxsh.repl import interact

    return interact(interpreter)


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    streams.prepare()
    settings = Settings(output="json" if os.environ.get("PARALLAX_OUTPUT") == "json" else "plain")

    def command() -> Any:
        return cli.main(list(args), "plxsh", standalone_mode=False, obj=settings)

    return ending_in_order(lambda: guarded(command, settings, "plxsh"))
