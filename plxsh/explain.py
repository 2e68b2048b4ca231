"""Help on the word at the cursor, in a few lines."""

from __future__ import annotations

import click

from plxsh.grammar import Reading, read
from plxsh.interpreter import Interpreter
from plxsh.language import split, tokens


def explain(shell: Interpreter, text: str, cursor: int) -> str:
    """Return help on the word of a line at the cursor, or on what may stand there.

    Args:
        shell: knows the commands.
        text: the line.
        cursor: where the cursor is in it, in characters.
    """
    before = [token for token in tokens(text) if token.start < cursor]
    words = [*split(before)][-1][0]
    reading = read(shell.cli, [word.argument for word in words], shell.settings)
    if words and cursor <= words[-1].end:
        return _on_word(reading)
    return _on_next(reading)


def _on_word(reading: Reading) -> str:
    """Return help on the last word that was read."""
    role = reading.roles[-1]
    if role.kind == "wrong" and role.param is None:
        return reading.command.get_help(reading.context)
    if role.param is not None:
        return f"{_described(role.param, reading)}\n\n{_usage(reading)}"
    return reading.command.get_help(reading.context)


def _on_next(reading: Reading) -> str:
    """Return help on what may come next."""
    param = reading.option or reading.argument
    if param is None or isinstance(reading.command, click.Group):
        return reading.command.get_help(reading.context)
    return f"{_described(param, reading)}\n\n{_usage(reading)}"


def _usage(reading: Reading) -> str:
    words = " ".join(reading.command.collect_usage_pieces(reading.context))
    name = reading.context.command_path
    return f"usage: {name} {words}\n{reading.command.get_short_help_str(90)}"


def _described(param: click.Parameter, reading: Reading) -> str:
    """Return what a parameter is and takes."""
    kind = (param.type.__doc__ or "").strip().splitlines()
    if isinstance(param, click.Option):
        names = ", ".join(param.opts)
        takes = "" if param.is_flag else f" {param.make_metavar(reading.context)}"
        told = (param.help or "").strip()
    else:
        names, takes, told = param.make_metavar(reading.context), "", ""
    if isinstance(param.type, click.Choice):
        told = f"{told} One of: {', '.join(map(str, param.type.choices))}."
    elif not told and kind and type(param.type).__module__.startswith("plxsh."):
        told = kind[0]
    return f"{names}{takes}: {told.strip()}" if told.strip() else f"{names}{takes}"
