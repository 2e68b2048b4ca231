"""Groups of commands: which module has which command, and imports only when it runs.

`plxsh vdi list` must not pay for what `plxsh tap serve` needs, so the group at the top is
a table of names; a module is imported when its command is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from itertools import islice
from typing import Any, Final, Literal

import click
from click.core import ParameterSource

from plxsh.context import Settings
from plxsh.options import behind_command
from plxsh.params import VdiOrSnapshotType, VdiType

HELP_OPTIONS: Final = ("-h", "--help")

Effect = Literal["looks", "changes", "destroys"]
"""What a command does to a store or a file: nothing; something; lose data."""


_CLAUSE_ENDS: Final = re.compile(r"[.:;](?= |$)")


def first_clause(text: str | None) -> str:
    """Return the beginning of a help text, up to the first stop of any kind."""
    first = " ".join((text or "").partition("\n\n")[0].split())
    return _CLAUSE_ENDS.split(first)[0]


class Command(click.Command):
    """A command with examples at the end of its help; a test runs every one of them.

    Args:
        examples: whole lines as they are typed at a shell's prompt.
        effect: what `changes` has a dry run; what `destroys` is never suggested either. An
            option such as --force is not counted: it is never suggested anyway.
    """

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), effect: Effect = "looks", **kwargs: Any
    ) -> None:
        """Remember the examples and the effect."""
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.effect = effect
        self.params += behind_command({name for param in self.params for name in param.opts})

    def get_help_option_names(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click passes it
        """Return the names of the help option, whoever made the context."""
        return list(HELP_OPTIONS)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return what stands behind the command; an option it cannot do without as well."""
        required = [
            f"{param.opts[-1]} {param.make_metavar(ctx)}"
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and param.required
        ]
        options, *arguments = super().collect_usage_pieces(ctx)
        return [options, *required, *arguments]

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first sentence of the help, or as much of it as makes sense."""
        whole = super().get_short_help_str(limit)
        return f"{first_clause(self.help)}." if whole.endswith("...") else whole

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; where the first argument is missing, take the VDI of `use`.

        Raises:
            click.UsageError: they do not fit the command.
        """
        rest = self._parse(ctx, args)
        self._refuse_empty(ctx)
        return rest

    def _refuse_empty(self, ctx: click.Context) -> None:
        """Refuse words without a character: the empty variable of a script names nothing."""
        for param in () if self.hidden else self.get_params(ctx):
            value = ctx.params.get(param.name)
            given = ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
            if given and (value == "" or (isinstance(value, tuple) and "" in value)):
                raise click.BadParameter("the value is empty", ctx, param)

    def _parse(self, ctx: click.Context, args: list[str]) -> list[str]:
        settings = ctx.find_object(Settings)
        try:
            return super().parse_args(ctx, list(args))
        except click.MissingParameter:
            if settings is None or not settings.vdi or not self._may_lack_vdi(ctx):
                raise
            ctx.params.clear()
            try:
                return super().parse_args(ctx, [settings.vdi, *args])
            except click.MissingParameter:
                ctx.params.clear()
                return super().parse_args(ctx, args)  # complain about what was typed

    def _may_lack_vdi(self, ctx: click.Context) -> bool:
        """Say whether the VDI of `use` may be meant: not where it would be all that is lost."""
        arguments = [p for p in self.get_params(ctx) if isinstance(p, click.Argument)]
        if not arguments or not isinstance(arguments[0].type, VdiType | VdiOrSnapshotType):
            return False
        return self.effect != "destroys" or len(arguments) > 1

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of this command, and that the global ones may stand here."""
        super().format_options(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text("The global options may stand here too; see 'plxsh --help'.")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are to be typed."""
        super().format_epilog(ctx, formatter)
        _write_examples(self.examples, formatter)


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    if examples:
        with formatter.section("Examples" if len(examples) > 1 else "Example"):
            for example in examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class NoSuchCommand(click.UsageError):
    """A word is no command; `hint` has those that come close."""

    def __init__(self, word: str, known: Sequence[str], ctx: click.Context) -> None:
        """Look for what was meant."""
        super().__init__(f"there is no command {word!r}", ctx)
        close = get_close_matches(word.lower(), known, 3, 0.5)
        beginning = word.lower() or "\0"  # every name begins with nothing
        close += [name for name in known if name.startswith(beginning) and name not in close]
        see = f"'{ctx.command_path} --help' lists them"
        self.hint = f"did you mean {' or '.join(map(repr, close))}?" if close else see


class Group(click.Group):
    """A group that remembers which command runs and suggests names for mistyped ones."""

    command_class = Command

    def get_help_option_names(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click passes it
        """Return the names of the help option, whoever made the context."""
        return list(HELP_OPTIONS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with.

        Raises:
            click.UsageError: there is none; the message has names that come close.
        """
        settings = ctx.find_object(Settings)
        args = self.unalias(settings, args)
        known = self.get_command(ctx, args[0]) is not None
        if settings is not None and known:
            settings.command = f"{settings.command} {args[0]}".strip()
        if not known and not args[0].startswith("-"):
            raise NoSuchCommand(args[0], self.list_commands(ctx), ctx)
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one example for each command."""
        super().format_epilog(ctx, formatter)
        _write_examples(list(self._examples(ctx)), formatter)

    def _examples(self, ctx: click.Context) -> Iterator[str]:
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if isinstance(command, Group):
                yield from islice(command._examples(ctx), 1)
            elif isinstance(command, Command) and not command.hidden:
                yield from command.examples[:1]

    def unalias(self, _settings: Settings | None, words: list[str]) -> list[str]:
        """Return the words with an alias at their beginning replaced; here there are none."""
        return words


class LazyGroup(Group):
    """A group whose commands are imported when they are asked for.

    Args:
        commands: name to `module:attribute`.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, str], **kwargs: Any) -> None:
        """Import nothing yet."""
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click passes it
        """Return the names, in the order of the table."""
        return list(self._lazy)

    def unalias(self, settings: Settings | None, words: list[str]) -> list[str]:
        """Replace an alias of the configuration; it cannot hide a command."""
        if settings is None or words[0] in self._lazy:
            return words
        return [*settings.alias(words[0]), *words[1:]]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click passes it
        """Import and return one command, None when the table has no such name."""
        where = self._lazy.get(cmd_name)
        if where is None:
            return None
        module, _, attribute = where.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command
