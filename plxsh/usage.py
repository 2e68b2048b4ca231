"""What is wrong with the words of a command, in the words of the rest of Parallax.

click finds the mistakes but tells them in a style of its own, names an argument as its usage
line brackets it, and mostly leaves open what to do next.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Final

import click
from click.core import ParameterSource

from plxsh.groups import NoSuchCommand

_LEFT_OVER: Final = re.compile(r"Got unexpected extra arguments? \((.*)\)", re.DOTALL)
_MAY_BE: Final = re.compile(r"\[[^]]*\] ")


def told(error: click.ClickException, program: str) -> tuple[str, str]:
    """Return what is wrong, in one line without a full stop, and what to do about it.

    Args:
        error: what click found.
        program: what was called, such as `plxsh vdi show`, where the error does not know it.
    """
    if isinstance(error, NoSuchCommand):
        return _line(error.message), error.hint
    if not isinstance(error, click.UsageError):
        return _line(error.format_message()), ""
    see = f"see '{error.ctx.command_path if error.ctx is not None else program} --help'"
    left_over = _LEFT_OVER.match(error.message)
    if left_over:
        return _line(f"{left_over[1]!r} is left over"), f"a name with spaces needs quotes; {see}"
    for kind, say in _SAY.items():
        if isinstance(error, kind):
            message, advice = say(error)
            enough = advice.endswith("?")
            return _line(message), advice if enough else f"{advice}; {see}" if advice else see
    return _line(error.message), see


def _line(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


def _missing(error: click.MissingParameter) -> tuple[str, str]:
    missing = error.param
    advice = f"write '{_usage(error.ctx)}'" if error.ctx is not None else ""
    return f"{_name(missing, error) if missing is not None else 'something'} is missing", advice


def _usage(ctx: click.Context) -> str:
    """Return what a command cannot do without, and where it stands."""
    pieces = [piece for piece in ctx.command.collect_usage_pieces(ctx) if piece != "[OPTIONS]"]
    return " ".join([ctx.command_path, *pieces])


def _bad_value(error: click.BadParameter) -> tuple[str, str]:
    param = error.param
    if param is None:
        return error.message, ""
    kind = param.type
    message = error.message
    if "not a valid integer" in message:
        message = f"{message.partition(' is not')[0]} is no whole number"
    elif isinstance(kind, click.IntRange):
        number = message.partition(" ")[0]
        least = f"at least {kind.min}" if kind.min is not None else ""
        most = f"at most {kind.max}" if kind.max is not None else ""
        message = f"{number} is not possible; take {' and '.join(filter(None, (least, most)))}"
    return f"{_name(param, error)}: {message}", ""


def _name(param: click.Parameter, error: click.UsageError) -> str:
    """Return what people call a parameter, or where its value comes from."""
    ctx = error.ctx
    if (
        ctx is not None
        and ctx.get_parameter_source(param.name or "") is ParameterSource.ENVIRONMENT
    ):
        return f"{param.envvar} of the environment"
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    name = param.make_metavar(ctx) if ctx is not None else param.human_readable_name
    return _MAY_BE.sub("", name).strip("[].")


def _no_option(error: click.NoSuchOption) -> tuple[str, str]:
    near = [
        name
        for name in sorted(error.possibilities or ())
        if get_close_matches(name.strip("-"), [error.option_name.strip("-")])  # not the dashes
    ]
    close = " or ".join(map(repr, near))
    return f"there is no option {error.option_name!r}", f"did you mean {close}?" if close else ""


def _bad_option(error: click.BadOptionUsage) -> tuple[str, str]:
    takes = "takes no value" if "does not take" in error.message else "needs a value"
    return f"the option {error.option_name!r} {takes}", ""


_SAY: Final[dict[type[click.UsageError], Callable[[Any], tuple[str, str]]]] = {
    click.MissingParameter: _missing,
    click.BadParameter: _bad_value,
    click.NoSuchOption: _no_option,
    click.BadOptionUsage: _bad_option,
}
"""The first that an error is one of says it."""
