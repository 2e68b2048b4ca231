"""The `plxsh` command line, and the one place that turns errors into words and status.

Every way to fail ends in one line on standard error, `plxsh: WHAT: WHY (HINT)`, and with
`-o json` in a second one, `{"error": {"code", "message", "hint"}}`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from core.errors import Interrupted, ParallaxError
from plxsh.context import (
    DEFAULT_STORE,
    OUTPUTS,
    Settings,
    configured,
    load_config,
    output_form,
    wants_color,
)
from plxsh.groups import LazyGroup

_BROKEN_PIPE: Final = 141
_UNEXPECTED: Final = 5

COMMANDS: Final = {
    "store": "plxsh.commands.store:store",
    "vdi": "plxsh.commands.vdi:vdi",
    "snap": "plxsh.commands.snap:snap",
    "tree": "plxsh.commands.tree:tree",
    "tap": "plxsh.commands.tap:tap",
    "disk": "plxsh.commands.disk:disk",
}


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # takes longer than most commands

        click.echo(f"plxsh {version('parallax-vdi')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-s",
    "--store",
    metavar="PATH",
    envvar="PARALLAX_STORE",
    show_envvar=True,
    help=f"Blockstore to work on: a file or a device.  [default: {DEFAULT_STORE}]",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(OUTPUTS),
    envvar="PARALLAX_OUTPUT",
    show_envvar=True,
    help="Form of the result.  [default: table on a terminal, else plain]",
)
@click.option(
    "--config",
    metavar="FILE",
    envvar="PARALLAX_CONFIG",
    show_envvar=True,
    help="Configuration.  [default: ~/.config/parallax/parallax.toml, then"
    " /etc/parallax/parallax.toml]",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would happen, change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before something irreversible.")
@click.option("-q", "--quiet", is_flag=True, help="No notes and no progress.")
@click.option("-v", "--verbose", is_flag=True, help="More notes, and details of failures.")
@click.option("--no-color", is_flag=True, help="No colours; also with NO_COLOR set.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the version and exit.",
)  # fmt: skip
@click.pass_obj
def cli(
    settings: Settings,
    store: str | None,
    output: str | None,
    config: str | None,
    dry_run: bool,
    yes: bool,
    quiet: bool,
    verbose: bool,
    no_color: bool,
) -> None:
    """Copy-on-write virtual disks for virtual machines.

    A blockstore holds virtual disk images (VDIs) and their snapshots. A VDI is named by its
    id, its name or its UUID; a snapshot by BLOCK OFFSET, BLOCK.OFFSET or VDI@LABEL. Sizes
    are powers of 1024: 4096, 64K, 2G, 1T, 2GiB. Global options stand before the command, as
    in: plxsh -o json vdi list

    Exit status: 0 done, 1 the answer is no, 2 usage, 3 not found, 4 in use, 5 I/O error or
    damage, 6 no space, 130 interrupted.
    """
    settings.verbose, settings.quiet = verbose, quiet
    settings.dry_run, settings.yes = dry_run, yes
    if output:
        settings.output = output_form(output)  # errors from here on are told in this form
    contents = load_config(config)
    settings.output = output_form(output or configured(contents, "shell", "output"))
    settings.store = store or configured(contents, "blockstore", "data") or DEFAULT_STORE
    settings.color = wants_color(no_color)


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    settings = Settings(output="json" if os.environ.get("PARALLAX_OUTPUT") == "json" else "plain")

    def command() -> Any:
        return cli.main(list(args), "plxsh", standalone_mode=False, obj=settings)

    return guarded(command, settings, "plxsh")


def guarded(command: Callable[[], Any], settings: Settings, program: str) -> int:
    """Call `command`; tell what goes wrong in one line and return the exit status.

    Args:
        command: returns its exit status, anything else for 0.
        settings: form of the error, and which command runs.
        program: what the line begins with.
    """
    try:
        status = command()
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _tell(settings, program, "usage", _usage(error), _usage_hint(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        stop = Interrupted("interrupted")
        return _tell(settings, program, stop.code, stop.message, "", stop.exit_status)
    except ParallaxError as error:
        return _tell(settings, program, error.code, error.message, error.hint, error.exit_status)
    except BrokenPipeError:
        _forget_stdout()
        return _BROKEN_PIPE
    except SystemExit as error:  # click's own answer to a pipe that nobody reads
        _forget_stdout()
        return error.code if isinstance(error.code, int) else _UNEXPECTED
    except Exception as error:
        if settings.verbose:
            traceback.print_exc()
        why = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        hint = "this is a bug in Parallax; -v shows where"
        return _tell(settings, program, "unexpected", why, hint, _UNEXPECTED)


def _tell(settings: Settings, program: str, code: str, message: str, hint: str, status: int) -> int:
    """Write one error to standard error and return `status`."""
    what = f"{program}: {settings.command}" if settings.command else program
    line = f"{what}: {message}" + (f" ({hint})" if hint else "")
    try:
        click.echo(line, err=True)
        if settings.output == "json":
            error = {"code": code, "message": message, "hint": hint}
            click.echo(json.dumps({"error": error}), err=True)
    except BrokenPipeError:
        pass
    return status


def _usage(error: click.ClickException) -> str:
    """Return click's message as one line without its full stop."""
    return " ".join(error.format_message().split()).removesuffix(".")


def _usage_hint(error: click.ClickException) -> str:
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return ""
    if isinstance(error, click.NoSuchOption) and error.ctx.parent is not None:
        every = {name for param in cli.params for name in (*param.opts, *param.secondary_opts)}
        if error.option_name in every:
            return f"global options stand before the command: plxsh {error.option_name} ..."
    return f"see '{error.ctx.command_path} --help'"


def _forget_stdout() -> None:
    """Keep the interpreter from failing again when it flushes standard output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main() -> None:
    """Run the command line of this process: the `plxsh` executable."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
