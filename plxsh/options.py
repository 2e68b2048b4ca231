"""The global options: before a command or behind it, they mean the same.

Each sets one field of the `Settings` of the command line as soon as it is read. A command
that has an option of the same name keeps it: `tree -o` is its picture, `tree --output`
the global option.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import click
from click.core import ParameterSource

from plxsh.context import CACHES, DEFAULT_STORE, OUTPUTS, Settings
from plxsh.params import FILE, LOCK_MASTER


class GlobalOption(click.Option):
    """An option that sets a field of the settings, given or from the environment.

    Inside a shell the environment was heard already, when it started.
    """

    def __init__(self, decls: list[str], **attrs: Any) -> None:
        """Take the option's name for that of the field."""
        super().__init__(decls, expose_value=False, callback=_take, **attrs)


class _Behind(GlobalOption):
    """A global option of a command that leaves its description to `plxsh --help`."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:  # noqa: ARG002  # click passes it
        """Return nothing to list."""
        return None


def _take(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    settings = ctx.find_object(Settings)
    assert param.name is not None
    source = ctx.get_parameter_source(param.name)
    given = source is ParameterSource.COMMANDLINE
    if settings is not None and (
        given or (source is ParameterSource.ENVIRONMENT and settings.shell is None)
    ):
        settings.take(param.name, value)


_FLAG: Final[dict[str, Any]] = {"is_flag": True}
_OPTIONS: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (
        ("-s", "--store"),
        {
            "type": FILE,
            "metavar": "PATH",
            "envvar": "PARALLAX_STORE",
            "help": f"Blockstore to work on: a file or a device.  [default: {DEFAULT_STORE}]",
        },
    ),
    (
        ("--cache",),
        {
            "type": click.Choice(CACHES),
            "envvar": "PARALLAX_CACHE",
            "help": "none: past the page cache, for hosts that share a device.  [default: host]",
        },
    ),
    (
        ("--lock-master",),
        {
            "type": LOCK_MASTER,
            "envvar": "PARALLAX_LOCK_MASTER",
            "help": "Lock master of several hosts.  [default: none, that of this host]",
        },
    ),
    (
        ("-o", "--output"),
        {
            "type": click.Choice(OUTPUTS),
            "envvar": "PARALLAX_OUTPUT",
            "is_eager": True,  # the errors of other options are told in this form
            "help": "Form of the result.  [default: table on a terminal, else plain]",
        },
    ),
    (("-n", "--dry-run"), {**_FLAG, "help": "Say what would happen, change nothing."}),
    (("-y", "--yes"), {**_FLAG, "help": "Do not ask before data is lost."}),
    (("-q", "--quiet"), {**_FLAG, "help": "No notes and no progress."}),
    (("-v", "--verbose"), {**_FLAG, "help": "More notes, and details of failures."}),
    (("--no-color",), {**_FLAG, "help": "No colours; also with NO_COLOR set."}),
)


def before_commands() -> list[click.Parameter]:
    """Return the global options as they stand before a command."""
    return [
        GlobalOption([*names], show_envvar="envvar" in attrs, **attrs) for names, attrs in _OPTIONS
    ]


def behind_command(taken: Collection[str]) -> list[click.Parameter]:
    """Return the global options for behind a command, without the names it uses itself."""
    found: list[click.Parameter] = []
    for names, attrs in _OPTIONS:
        free = [name for name in names if name not in taken]
        if free:
            rest = {key: value for key, value in attrs.items() if key != "envvar"}
            full = names[-1].removeprefix("--").replace("-", "_")
            found.append(_Behind([full, *free], **rest))
    return found
