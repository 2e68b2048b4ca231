"""`plxsh help`: the commands, one command, or the shell and its language."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import click

from plxsh.context import Settings, pass_settings
from plxsh.grammar import read
from plxsh.groups import Command
from plxsh.interpreter import shell_of
from plxsh.pager import show
from plxsh.params import COMMAND_LINE

SHELL_HELP: Final = """\
The shell takes the commands of 'plxsh', without that word:

  vdi list                      one command
  snap create web; vdi list     several; the first error ends the rest
  vdi show "My new VDI"         quotes and backslashes as in the Unix shell
  vdi list -o json | jq .       output to a Unix command
  tree > t.txt, tree >> t.txt   output to a file, or to its end
  vdi fill base - < disk.img    input from a file
  !df -h                        a Unix command
  watch 5 tap list              a command again and again, until Ctrl-C
  use web                       the VDI that is meant when a command is given none;
                                then @LABEL is a snapshot of it
  source FILE                   the commands in a file; '#' begins a comment
  help vdi create               help on a command

Keys:

  Tab                  complete, then choose; Enter takes the choice
  Right, Ctrl-E        take the grey suggestion from the history
  Up, Down             lines of the history that begin like this one
  Ctrl-R               search the history
  F1, ?                help on the word at the cursor
  Ctrl-C               drop the line, or stop the running command
  Ctrl-D               leave

The configuration, ~/.config/parallax/parallax.toml or /etc/parallax/parallax.toml:

  [blockstore]
  data = "/srv/blockstore.dat"  # --store
  [shell]
  output = "table"              # --output
  keys = "vi"                   # or "emacs"
  pager = "less -R"             # for long output; "" for none
  [shell.aliases]
  ll = "vdi list"

The history is in ~/.local/state/parallax/history; a line that begins with a space is not
kept.
"""


@click.command(
    "help", cls=Command, examples=["plxsh help", "plxsh help vdi create", "plxsh help shell"]
)
@click.argument("words", metavar="[COMMAND...|shell]", nargs=-1, type=COMMAND_LINE)
@click.pass_context
@pass_settings
def help_(settings: Settings, ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show help: the commands, one of them, or the shell with its keys."""
    if words == ("shell",):
        show(settings, SHELL_HELP)
        return
    shell = shell_of(ctx, settings)
    reading = read(shell.cli, words, settings)
    if any(role.kind == "wrong" for role in reading.roles):  # the command itself says it best
        ctx.exit(shell.call([*words, "--help"], replace(settings, command=""), "plxsh"))
    show(settings, reading.command.get_help(reading.context) + "\n")
