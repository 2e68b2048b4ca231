"""The interactive shell: reads lines at a prompt and has them run, until `exit` or Ctrl-D."""

from __future__ import annotations

from plxsh.config_check import complaints
from plxsh.interpreter import Interpreter
from plxsh.prompt.reader import LineReader, PlainReader, can_edit
from plxsh.signals import Ended
from plxsh.streams import tell

_INTERRUPTED = 130


def interact(shell: Interpreter) -> int:
    """Read and run lines; return the exit status of the shell.

    Raises:
        BadRequest: the configuration asks for keys that there are not.
    """
    reader = LineReader(shell) if can_edit() else PlainReader(shell)
    shell.settings.warn(complaints(shell.cli, shell.settings))
    if not shell.settings.quiet:
        tell("'help' lists the commands, ? helps where you are, Ctrl-D leaves")
    status = 0
    while not shell.leaving:
        try:
            status = shell.run(reader.read(bool(status)))
        except EOFError:
            tell()
            break
        except Ended:
            raise
        except KeyboardInterrupt:
            status = _INTERRUPTED
    return 0
