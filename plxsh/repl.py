"""The interactive shell: reads lines at a prompt and has them run, until `exit` or Ctrl-D."""

from __future__ import annotations

import click

from plxsh.config_check import complaints
from plxsh.interpreter import Interpreter
from plxsh.prompt.reader import LineReader, PlainReader, can_edit
from plxsh.signals import Ended

_INTERRUPTED = 130


def interact(shell: Interpreter) -> int:
    """Read and run lines; return the exit status of the shell.

    Raises:
        BadRequest: the configuration asks for keys that there are not.
    """
    reader = LineReader(shell) if can_edit() else PlainReader(shell)
    shell.settings.warn(complaints(shell.cli, shell.settings))
    if not shell.settings.quiet:
        click.echo("'help' lists the commands, ? helps where you are, Ctrl-D leaves", err=True)
    status = 0
    while not shell.leaving:
        try:
            status = shell.run(reader.read(bool(status)))
        except EOFError:
            click.echo(err=True)
            break
        except Ended:
            raise
        except KeyboardInterrupt:
            status = _INTERRUPTED
    return 0
