"""What a line might become, from the history, in grey behind the cursor.

A destructive line is never offered: one key too many must not delete a disk.
"""

from __future__ import annotations

from prompt_toolkit.auto_suggest import AutoSuggest, Suggestion
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document

from core.errors import BadRequest
from plxsh.grammar import read
from plxsh.groups import Command
from plxsh.interpreter import Interpreter
from plxsh.language import statements

_DEPTH = 1000
_RISKY = frozenset(("yes", "force", "mend"))


class SuggestHarmless(AutoSuggest):
    """Suggests the newest line of the history that begins so and loses no data.

    Args:
        shell: knows the commands and the aliases.
    """

    def __init__(self, shell: Interpreter) -> None:
        """Judge no line yet."""
        self._shell = shell
        self._harmless: dict[str, bool] = {}

    def get_suggestion(self, buffer: Buffer, document: Document) -> Suggestion | None:
        """Return the rest of a line of the history, or None."""
        text = document.text
        if not text.strip() or "\n" in text:
            return None
        for line in reversed(buffer.history.get_strings()[-_DEPTH:]):
            if line.startswith(text) and len(line) > len(text) and "\n" not in line:
                if line not in self._harmless:
                    self._harmless[line] = harmless(line, self._shell)
                if self._harmless[line]:
                    return Suggestion(line[len(text) :])
        return None


def harmless(line: str, shell: Interpreter) -> bool:
    """Say whether a line surely loses no data: it is all known commands that cannot."""
    try:
        found = statements(line)
    except BadRequest:
        return False
    for statement in found:
        if statement.shell is not None or statement.pipe is not None or statement.output:
            return False
        reading = read(shell.cli, statement.arguments, shell.settings)
        command = reading.command
        if not isinstance(command, Command) or command.effect == "destroys":
            return False
        given = {role.param.name for role in reading.roles if role.param is not None}
        if given & _RISKY or any(role.kind == "wrong" for role in reading.roles):
            return False
    return bool(found)
