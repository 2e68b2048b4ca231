"""Everything that can stand at the cursor: commands, options, values, files.

What a word may be is what `plxsh.grammar` reads and click's own types offer; here it is
compared with what was typed, and ranked. The shell and the completions of bash, zsh and
fish ask the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Final, Protocol, TypeVar

import click
from click.shell_completion import CompletionItem

from core.errors import BadRequest
from core.text import printable
from plxsh import paths
from plxsh.context import Settings
from plxsh.grammar import Reading, read
from plxsh.groups import first_clause
from plxsh.matching import best, prefixed
from plxsh.offers import Offer
from plxsh.options import GlobalOption

_SHOWN: Final = 500
"""More than anyone looks through; a menu of ten thousand takes its time to draw."""

_PATHS: Final = ("file", "dir")

_Item = TypeVar("_Item")


class _Match(Protocol):
    """Picks and ranks what fits a fragment; see `plxsh.matching`."""

    def __call__(
        self,
        fragment: str,
        items: Iterable[_Item],
        limit: int | None,
        name: Callable[[_Item], str],
        /,
    ) -> list[_Item]: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the word at the cursor may become.

    Args:
        text: the whole word, without quotes.
        meta: what stands beside it in a menu.
        kind: group, command, alias, option, vdi, snapshot, file, folder, ...
        more: the word is not finished, such as a folder or `base@`.
    """

    text: str
    meta: str = ""
    kind: str = "value"
    more: bool = False


def complete(
    cli: click.Command, settings: Settings, words: Sequence[str], fragment: str
) -> list[Candidate]:
    """Return what the word at the cursor may become, the best first; fuzzy.

    Args:
        cli: the command that the words are arguments of.
        settings: those of the shell; they name the store.
        words: the words before it that belong to the same command, without quotes.
        fragment: what there is of it before the cursor, without quotes.
    """
    return _complete(_read(cli, settings, words), settings, fragment, best, _SHOWN)


def complete_file(fragment: str) -> list[Candidate]:
    """Return the files and folders that a path may become, the best first; fuzzy."""
    return _files(fragment, False, best, _SHOWN)


def complete_prefix(
    cli: click.Command, settings: Settings, words: Sequence[str], fragment: str
) -> list[Candidate]:
    """Return all words that begin with `fragment`, as other shells want them; see `complete`."""
    return _complete(_read(cli, settings, words), settings, fragment, prefixed, None)


def _complete(
    reading: Reading, settings: Settings, fragment: str, match: _Match, limit: int | None
) -> list[Candidate]:
    option, equals, value = fragment.partition("=")
    if reading.option is not None:
        return _values(reading.option, reading.context, fragment, match, limit)
    if reading.options and fragment.startswith("--") and equals:
        param = _long_options(reading).get(option)
        if param is None:
            return []
        found = _values(param, reading.context, value, match, limit)
        return [replace(candidate, text=f"{option}={candidate.text}") for candidate in found]
    if reading.options and fragment.startswith("-"):
        every = reading.command.get_params(reading.context)
        every.sort(key=lambda param: isinstance(param, GlobalOption))
        return match(
            fragment, _options(every, reading.context, fragment), limit, attrgetter("text")
        )
    if reading.argument is not None:
        return _values(reading.argument, reading.context, fragment, match, limit)
    if isinstance(reading.command, click.Group) and reading.options:
        return match(fragment, _commands(reading, settings), limit, attrgetter("text"))
    if reading.options and not fragment:
        own = [p for p in reading.command.params if not isinstance(p, GlobalOption)]
        return list(_options(own, reading.context, fragment))
    return []


def _read(cli: click.Command, settings: Settings, words: Sequence[str]) -> Reading:
    """Read the words; where they name another store, names come from that one."""
    reading = read(cli, words, settings)
    given = reading.context
    while "store" not in given.params and given.parent is not None:
        given = given.parent
    stores = given.params.get("store")
    if not stores or stores[-1] == settings.store:
        return reading
    return read(cli, words, replace(settings, store=stores[-1]))


# -- commands --------------------------------------------------------------------------


def _commands(reading: Reading, settings: Settings) -> Iterator[Candidate]:
    """Yield the commands of a group, and at the beginning of a line the aliases."""
    group, context = reading.command, reading.context
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            kind = "group" if isinstance(command, click.Group) else "command"
            yield Candidate(name, first_clause(command.short_help or command.help), kind)
    if context.parent is None:
        with suppress(BadRequest):  # told when a command runs
            for name, meaning in settings.aliases().items():
                yield Candidate(name, printable(f"alias of {meaning}"), "alias")


# -- options ---------------------------------------------------------------------------


def _long_options(reading: Reading) -> dict[str, click.Option]:
    return {
        name: param
        for param in reading.command.get_params(reading.context)
        if isinstance(param, click.Option)
        for name in (*param.opts, *param.secondary_opts)
    }


def _options(
    params: Iterable[click.Parameter], context: click.Context, fragment: str
) -> Iterator[Candidate]:
    """Yield the options among parameters that are not given yet."""
    given = _given(context)
    for param in params:
        if not isinstance(param, click.Option) or param.hidden:
            continue
        if param.name in given and not (param.multiple or param.count):
            continue
        names = [*param.opts, *param.secondary_opts]
        shown = [name for name in names if name.startswith("--") or name == fragment]
        for name in shown or names:
            yield Candidate(name, first_clause(param.help), "option")


def _given(context: click.Context | None) -> set[str]:
    """Return the names of the options that stand on the line so far."""
    given: set[str] = set()
    while context is not None:
        given |= context.params.keys()
        context = context.parent
    return given


# -- values ----------------------------------------------------------------------------


def _values(
    param: click.Parameter, context: click.Context, fragment: str, match: _Match, limit: int | None
) -> list[Candidate]:
    """Return the values of a parameter that fit; where it takes a path, the files."""
    # click's own choices leave out what does not begin so; comparing is our business.
    asked = "" if isinstance(param.type, click.Choice) else fragment
    items = param.shell_complete(context, asked)
    plain = [item for item in items if item.type not in _PATHS]
    found = [_candidate(item) for item in match(fragment, plain, limit, attrgetter("value"))]
    for item in items:
        if item.type in _PATHS:  # click leaves it to a shell to find them
            found += _files(fragment, item.type == "dir", match, limit)
    return found


def _candidate(item: CompletionItem[Any]) -> Candidate:
    kind = "value" if item.type == "plain" else item.type
    if isinstance(item, Offer):
        return Candidate(item.value, item.describe(), kind, item.more)
    return Candidate(str(item.value), printable(item.help or ""), kind)


def _files(fragment: str, only_folders: bool, match: _Match, limit: int | None) -> list[Candidate]:
    _, name = paths.split(fragment)
    entries = paths.entries(fragment, only_folders)
    return [
        Candidate(
            entry.path, entry.describe(), "folder" if entry.is_folder else "file", entry.is_folder
        )
        for entry in match(name, entries, limit, attrgetter("name"))
    ]
