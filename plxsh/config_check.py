"""What of a configuration will never do anything: told when the shell starts, which goes on.

A single command stays silent about it: a script must not break over an alias.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Final

import click

from core.errors import BadRequest
from plxsh.context import Settings
from plxsh.grammar import read

_SECTIONS: Final = ("blockstore", "lock_master", "shell", "tap")
_OF_SHELL: Final = ("output", "keys", "pager", "aliases")


def complaints(cli: click.Command, settings: Settings) -> Iterator[str]:
    """Yield what is wrong with sections, keys of the shell, and aliases; one line each.

    Args:
        cli: the command that knows what an alias may stand for.
        settings: have the configuration.
    """
    for section in settings.config:
        if section not in _SECTIONS:
            yield f"the configuration has an unknown section [{section}]{_near(section, _SECTIONS)}"
    for key in settings.config.get("shell", ()):
        if key not in _OF_SHELL:
            yield f"the configuration has an unknown key {key!r} in [shell]{_near(key, _OF_SHELL)}"
    try:
        names = [*settings.aliases()]
    except BadRequest as error:
        yield f"{error.message}; {error.hint}"
        return
    for name in names:
        yield from _of_alias(cli, settings, name)


def _of_alias(cli: click.Command, settings: Settings, name: str) -> Iterator[str]:
    """Yield what is wrong with one alias."""
    try:
        words = settings.alias(name)
    except BadRequest as error:
        yield f"the alias {name!r}: {error.message}"
        return
    if isinstance(cli, click.Group) and cli.get_command(click.Context(cli), name) is not None:
        yield f"the alias {name!r} is never used: a command has this name"
    elif words == [name]:
        yield f"the alias {name!r} stands for nothing"
    elif any(role.kind == "wrong" for role in read(cli, words, settings).roles):
        yield f"the alias {name!r} stands for no command: {' '.join(words)!r}"


def _near(word: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
