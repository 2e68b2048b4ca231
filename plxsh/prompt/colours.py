"""Colours of a line while it is typed; a word that cannot be right is marked.

The word at the end of the line is marked only when it cannot become right any more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Final

import click
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.lexers import Lexer
from prompt_toolkit.styles import Style

from plxsh.grammar import Role, read
from plxsh.interpreter import Interpreter
from plxsh.language import Token, split, tokens
from plxsh.params import SnapshotType, VdiType

_UUID: Final = 36
"""Length of a UUID, which is not looked up."""

STYLE = Style.from_dict(
    {
        "prompt": "bold",
        "prompt.vdi": "ansicyan bold",
        "prompt.failed": "ansired bold",
        "word.group": "bold",
        "word.command": "bold",
        "word.option": "ansicyan",
        "word.value": "",
        "word.wrong": "ansired underline",
        "word.open": "ansiyellow",
        "operator": "ansimagenta bold",
        "shell": "ansiyellow",
        "comment": "ansibrightblack italic",
        "auto-suggestion": "ansibrightblack",
        "bottom-toolbar": "noreverse",
        "bottom-toolbar.text": "noreverse",
        "toolbar": "ansibrightblack",
        "toolbar.key": "",
        "toolbar.alarm": "ansired bold",
        "completion-menu": "bg:ansiblack ansiwhite",
        "completion-menu.completion": "bg:ansibrightblack ansiwhite",
        "completion-menu.completion.current": "bg:ansicyan ansiblack noreverse",
        "completion-menu.meta.completion": "bg:ansiblack ansiwhite",
        "completion-menu.meta.completion.current": "bg:ansiblue ansiwhite",
    }
)


class LineLexer(Lexer):
    """Colours a line by what each word is.

    Args:
        shell: knows the commands, the aliases and the names.
    """

    def __init__(self, shell: Interpreter) -> None:
        """Colour nothing yet."""
        self._shell = shell

    def invalidation_hash(self) -> Hashable:
        """Return what is another when the same line may have other colours."""
        known = self._shell.settings.names.known()
        return known and known.version, self._shell.settings.vdi

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        """Return a function from the number of a line to its coloured pieces."""
        lines: list[StyleAndTextTuples] = [[]]
        for style, text in self._pieces(document.text):
            first, *others = text.split("\n")
            lines[-1].append((style, first))
            lines += [[(style, other)] for other in others]

        def line(number: int) -> StyleAndTextTuples:
            return lines[number] if number < len(lines) else []

        return line

    def _pieces(self, text: str) -> Iterator[tuple[str, str]]:
        at = 0
        for token, style in self._styled(text):
            yield "", text[at : token.start]
            yield style, text[token.start : token.end]
            at = token.end
        yield "", text[at:]

    def _styled(self, text: str) -> Iterator[tuple[Token, str]]:
        """Yield every token with its style."""
        for words, others in split(tokens(text)):
            styled = [(other, f"class:{other.kind}") for other in others]
            for word, role in zip(words, self._roles(words), strict=True):
                styled.append((word, self._style(word, role, word.end == len(text))))
            yield from sorted(styled, key=lambda pair: pair[0].start)

    def _roles(self, words: list[Token]) -> list[Role]:
        cli, settings = self._shell.cli, self._shell.settings
        arguments = [word.argument for word in words]
        if arguments[:1] == ["plxsh"] and len(words) > 1:
            return [Role("group", cli), *read(cli, arguments[1:], settings).roles]
        return read(cli, arguments, settings).roles

    def _style(self, word: Token, role: Role, typing: bool) -> str:
        if not word.closed:
            return "class:word.open"
        wrong = role.kind == "wrong" or self._is_unknown(word.argument, role, typing)
        if wrong and not (typing and _may_become_right(word.text, role)):
            return "class:word.wrong"
        return f"class:word.{'value' if wrong else role.kind}"

    def _is_unknown(self, text: str, role: Role, typing: bool) -> bool:
        """Say whether a word names what there is not, as far as is known."""
        settings = self._shell.settings
        known = settings.names.known()
        if role.kind != "value" or role.param is None or known is None or settings.vdi:
            return False
        if isinstance(role.param.type, VdiType):
            name, label = text, ""
        elif isinstance(role.param.type, SnapshotType) and "@" in text:
            name, _, label = text.rpartition("@")
        else:
            return False
        if typing and any(name.casefold() in record.name.casefold() for record in known.live):
            return False
        record = known.find(name)
        if record is None or not label:
            return record is None and len(name) != _UUID
        snapshots = known.logs.get(record.id)
        if snapshots is None:
            settings.names.ask_for(record.id)
            return False
        return not any(label in (snapshot.label, str(snapshot.id)) for snapshot in snapshots)


def _may_become_right(text: str, role: Role) -> bool:
    """Say whether a wrong word that is being typed is the beginning of a right one."""
    if role.param is not None:
        return not isinstance(role.param.type, VdiType | SnapshotType)
    context = click.Context(role.command)
    if text.startswith("-"):
        params = role.command.get_params(context)
        names = [name for param in params if isinstance(param, click.Option) for name in param.opts]
    elif isinstance(role.command, click.Group):
        names = role.command.list_commands(context)
    else:
        names = []
    return any(name.startswith(text) for name in names)
