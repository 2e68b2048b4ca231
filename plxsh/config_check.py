"""What of a configuration will never do anything: told when the shell starts, which goes on.

A single command stays silent about it: a script must not break over an alias.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Final

import click

from core.errors import BadRequest
from plxsh.context import LOCK_MASTER_KEYS, Settings
from plxsh.grammar import read

_KNOWN: Final = {
    "blockstore": ("data", "cache"),
    "lock_master": LOCK_MASTER_KEYS,
    "shell": ("output", "keys", "pager", "aliases"),
    "tap": ("metrics", "log", "gc_every"),
}


def complaints(cli: click.Command, settings: Settings) -> Iterator[str]:
    """Yield what is wrong with sections, keys of the shell, and aliases; one line each.

    Args:
        cli: the command that knows what an alias may stand for.
        settings: have the configuration.
    """
    for section, table in settings.config.items():
        known = _KNOWN.get(section)
        if known is None:
            yield f"the configuration has an unknown section [{section}]{_near(section, _KNOWN)}"
            continue
        for key in table if isinstance(table, dict) else ():
            if key not in known:
                where = f"key {key!r} in [{section}]{_near(key, known)}"
                yield f"the configuration has an unknown {where}"
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


def _near(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
