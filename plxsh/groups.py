"""Groups of commands: which module has which command, and imports only when it runs.

`plxsh vdi list` must not pay for what `plxsh tap serve` needs, so the group at the top is
a table of names; a module is imported when its command is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal

import click

from plxsh.context import Settings

Effect = Literal["looks", "changes", "destroys"]
"""What a command does to a store or a file: nothing; something; lose data."""


class Command(click.Command):
    """A command with examples at the end of its help; a test runs every one of them.

    Args:
        examples: whole lines as they are typed at a shell's prompt.
        effect: what `changes` has a dry run; what `destroys` is never suggested either.
    """

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), effect: Effect = "looks", **kwargs: Any
    ) -> None:
        """Remember the examples and the effect."""
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.effect = effect

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are to be typed."""
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class Group(click.Group):
    """A group that remembers which command runs and suggests names for mistyped ones."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with.

        Raises:
            click.UsageError: there is none; the message has names that come close.
        """
        settings = ctx.find_object(Settings)
        known = self.get_command(ctx, args[0]) is not None
        if settings is not None and known:
            settings.command = f"{settings.command} {args[0]}".strip()
        if not known and not args[0].startswith("-"):
            close = get_close_matches(args[0], self.list_commands(ctx), 3, 0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"No such command '{args[0]}'. {hint}".strip(), ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """A group whose commands are imported when they are asked for.

    Args:
        commands: name to `module:attribute`.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, str], **kwargs: Any) -> None:
        """Import nothing yet."""
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names, in the order of the table."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return one command, None when the table has no such name."""
        where = self._lazy.get(cmd_name)
        if where is None:
            return None
        module, _, attribute = where.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command
