"""What each word of a command line is: a command, an option, the value of which argument.

This reads a line that need not be finished or right, without running anything. Colours,
completion and help on the word at the cursor all ask here, so they cannot disagree; what
it knows of commands is what click knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import click

from core.errors import BadRequest
from plxsh.context import Settings
from plxsh.groups import Group
from plxsh.params import COMMAND_LINE, SnapshotType, WordsArgument

_SECONDS: Final = re.compile(r"\d+\.?\d*|\.\d+")
"""What may stand before a command line in a command: how often `watch` runs it."""

Kind = Literal["group", "command", "option", "value", "wrong"]


@dataclass(frozen=True, slots=True)
class Role:
    """What one word is.

    Args:
        kind: a command or a group of them, an option, the value of one or of an
            argument, or wrong where it stands.
        command: the command that it is or belongs to.
        param: the option or argument that it is or is the value of.
    """

    kind: Kind
    command: click.Command
    param: click.Parameter | None = None


@dataclass
class Reading:
    """What is known where the words end.

    Args:
        command: the innermost command so far.
        context: its context; `params` has the words given to it, by parameter.
        roles: one for each word.
        option: the option whose value comes next.
        argument: the argument that comes next; None when there can be none.
        options: whether an option may come next.
    """

    command: click.Command
    context: click.Context
    roles: list[Role] = field(default_factory=list)
    option: click.Option | None = None
    argument: click.Argument | None = None
    options: bool = True


def read(cli: click.Command, words: Sequence[str], settings: Settings) -> Reading:
    """Read the words of one statement, without quotes.

    Args:
        cli: the command they are the arguments of.
        words: they need not be complete, or right.
        settings: knows the aliases; types of arguments find it in the context.
    """
    if settings.shell is not None and words and words[0] == "plxsh":  # as on a command line
        reading = read(cli, words[1:], settings)
        reading.roles.insert(0, Role("group", cli))
        return reading
    context = _beginning(cli, settings)
    words, extra = _unaliased(cli, words, settings)
    reading = _read(context, list(words))
    if extra:  # the alias is one word that is a command
        reading.roles[: extra + 1] = [Role("command", reading.command)]
    return reading


def _unaliased(
    cli: click.Command, words: Sequence[str], settings: Settings
) -> tuple[Sequence[str], int]:
    """Return the words without alias, and how many that made more."""
    if not words or not isinstance(cli, Group):
        return words, 0
    try:
        plain = cli.unalias(settings, list(words))
    except BadRequest:
        return words, 0
    return plain, len(plain) - len(words)


def _read(context: click.Context, words: list[str]) -> Reading:
    """Read the words that belong to the command of a context, and to those below it."""
    command = context.command
    reading = Reading(command, context)
    options = {
        name: param
        for param in command.get_params(context)
        if isinstance(param, click.Option)
        for name in (*param.opts, *param.secondary_opts)
    }
    arguments = [p for p in command.get_params(context) if isinstance(p, click.Argument)]
    for at, word in enumerate(words):
        if reading.option is not None:
            _give(reading, reading.option, word)
            reading.option = None
        elif reading.options and word == "--":
            reading.options = False
            reading.roles.append(Role("option", command))
        elif reading.options and word.startswith("-") and word != "-":
            _read_option(reading, options, word)
        elif isinstance(command, click.Group):
            return _below(reading, command, word, words[at + 1 :])
        elif not arguments:
            reading.roles.append(Role("wrong", command))
        elif arguments[0].type is COMMAND_LINE and (context.params or not _SECONDS.fullmatch(word)):
            return _nested(reading, words[at:])
        else:
            _give(reading, arguments[0], word)
            if _is_full(arguments[0], context, words[at + 1 :]):
                del arguments[0]
    if reading.option is None and arguments:
        if arguments[0].type is COMMAND_LINE:
            return _nested(reading, [])
        reading.argument = arguments[0]
    return reading


def _below(reading: Reading, group: click.Group, word: str, words: list[str]) -> Reading:
    """Go on with the command of a group that a word names."""
    below = group.get_command(reading.context, word)
    if below is None:
        reading.roles += [Role("wrong", group)] * (1 + len(words))
        reading.options = False
        reading.context.args = [word]
        return reading
    kind: Kind = "group" if isinstance(below, click.Group) else "command"
    inner = click.Context(below, reading.context, word, resilient_parsing=True)
    return _after(reading, [Role(kind, below)], _read(inner, words))


def _nested(reading: Reading, words: list[str]) -> Reading:
    """Go on with a command line inside a command, such as that of `watch`."""
    root = reading.context.find_root()
    return _after(reading, [], _read(_beginning(root.command, root.obj), words))


def _beginning(cli: click.Command, settings: Settings) -> click.Context:
    """Return the context of a whole line."""
    return click.Context(
        cli, info_name="plxsh", obj=settings, resilient_parsing=True, **cli.context_settings
    )


def _after(reading: Reading, roles: list[Role], rest: Reading) -> Reading:
    rest.roles = [*reading.roles, *roles, *rest.roles]
    return rest


def _read_option(reading: Reading, options: dict[str, click.Option], word: str) -> None:
    """Read `--name`, `--name=value`, `-n`, `-nVALUE` or `-ab`."""
    name, has_value, value = word.partition("=") if word.startswith("--") else (word[:2], "", "")
    param = options.get(name)
    rest = "" if word.startswith("--") else word[2:]
    if param is None or (has_value and _is_flag(param)):
        reading.roles.append(Role("wrong", reading.command))
        return
    reading.roles.append(Role("option", reading.command, param))
    if has_value or (rest and not _is_flag(param)):
        _remember(reading, param, value if has_value else rest)
    elif not _is_flag(param):
        reading.option = param
    else:
        _remember(reading, param, name)
        if rest:
            _read_option(reading, options, f"-{rest}")
            role = reading.roles.pop()
            if role.kind == "wrong":
                reading.roles[-1] = role


def _is_flag(option: click.Option) -> bool:
    return option.is_flag or option.count


def _give(reading: Reading, param: click.Parameter, word: str) -> None:
    """Take a word as a value, and look whether the type of the parameter can take it."""
    _remember(reading, param, word)
    kind: Kind = "value"
    try:
        if not isinstance(param, WordsArgument) and not word.startswith("@"):
            param.type.convert(word, param, reading.context)
    except (click.UsageError, BadRequest):
        kind = "wrong"
    reading.roles.append(Role(kind, reading.command, param))


def _remember(reading: Reading, param: click.Parameter, word: str) -> None:
    assert param.name is not None
    reading.context.params.setdefault(param.name, []).append(word)


def _is_full(argument: click.Argument, context: click.Context, following: Sequence[str]) -> bool:
    """Say whether an argument takes no more words."""
    if not isinstance(argument, WordsArgument):
        return argument.nargs == 1
    words = context.params[argument.name]
    wanted = argument.count
    while words and wanted:  # pairs of numbers are one reference
        pair = len(words) > 1 and words[0].isdecimal() and words[1].isdecimal()
        words = words[1 + pair :]
        wanted -= 1
        if not words and not pair and _is_half(argument, context, following):
            return False
    return not wanted


def _is_half(argument: click.Argument, context: click.Context, following: Sequence[str]) -> bool:
    """Say whether the last word is a BLOCK whose OFFSET may come next."""
    if not context.params[argument.name][-1].isdecimal():
        return False
    only_snapshots = type(argument.type) is SnapshotType
    return following[0].isdecimal() if following else only_snapshots
