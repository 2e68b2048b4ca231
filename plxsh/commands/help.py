"""`plxsh help`: the commands, one command, or the shell and its language."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import click

from core.errors import BadRequest
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
    """Show help on the commands, or on the shell and its keys."""
    if words == ("shell",):
        show(settings, SHELL_HELP)
        return
    shell = shell_of(ctx, settings)
    if not words:
        show(settings, _overview(shell.cli, settings))
        return
    reading = read(shell.cli, words, settings)
    for word, role in zip(words, reading.roles, strict=False):
        if role.kind == "wrong" and isinstance(role.command, click.Group):  # it says so best
            ctx.exit(shell.call([*words, "--help"], replace(settings, command=""), "plxsh"))
        if role.kind not in ("group", "command"):
            raise BadRequest(f"{word!r} is no command", "help is on commands: 'help vdi create'")
    show(settings, reading.command.get_help(reading.context) + "\n")


def _overview(cli: click.Command, settings: Settings) -> str:
    """Return every command in a line or two, for one screen."""
    context = read(cli, [], settings).context
    rows = []
    for name, command in _visible(cli, context):
        below = ", ".join(name for name, _ in _visible(command, context))
        rows.append((name, below or command.get_short_help_str(66)))
    formatter = click.HelpFormatter(max_width=100)
    with formatter.section("Commands"):
        formatter.write_dl(rows)
    formatter.write_paragraph()
    formatter.write_text(
        "'help vdi' or 'help vdi create' has more, with examples; 'help shell' the language"
        " and the keys."
    )
    return formatter.getvalue()


def _visible(group: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands of a group, none for a command that is no group."""
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if command is not None and not command.hidden:
                yield name, command
