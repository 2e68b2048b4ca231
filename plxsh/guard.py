"""The one place that turns errors into words and exit statuses.

Every way to fail ends in one line on standard error, `plxsh: WHAT: WHY (HINT)`, and with
`-o json` in a second one, `{"error": {"code", "message", "hint"}}`.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

import click

from core.device import io_error
from core.errors import Interrupted, ParallaxError
from core.text import printable
from plxsh import usage
from plxsh.context import Settings

BROKEN_PIPE: Final = 141
"""Exit status of a command whose output nobody reads any more."""
_UNEXPECTED: Final = 5
_OUTPUT_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def guarded(command: Callable[[], Any], settings: Settings, program: str) -> int:
    """Call `command`; tell what goes wrong in one line and return the exit status.

    Args:
        command: returns its exit status, anything else for 0.
        settings: form of the error, and which command runs.
        program: what the line begins with.
    """
    streams = sys.stdout, sys.stderr
    try:
        status = command()
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        called = f"{program.partition(':')[0]} {settings.command}".rstrip()
        return _tell(settings, program, "usage", *usage.told(error, called), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return tell(settings, program, Interrupted("interrupted"))
    except ParallaxError as error:
        return tell(settings, program, error)
    except BrokenPipeError:
        _forget_stdout()
        return BROKEN_PIPE
    except SystemExit:  # click's own answer to a pipe that nobody reads; it wraps the streams
        sys.stdout, sys.stderr = streams
        _forget_stdout()
        return BROKEN_PIPE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS and not error.filename:
            # Files and devices are read and written by the engine, which names them.
            _forget_stdout()
            return tell(settings, program, io_error(error, "cannot write the output"))
        if settings.verbose:
            traceback.print_exc()
        why = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        hint = "this is a bug in Parallax; -v shows where"
        return _tell(settings, program, "unexpected", why, hint, _UNEXPECTED)


def tell(settings: Settings, program: str, error: ParallaxError) -> int:
    """Write one error to standard error and return its exit status."""
    return _tell(settings, program, error.code, error.message, error.hint, error.exit_status)


def _tell(settings: Settings, program: str, code: str, message: str, hint: str, status: int) -> int:
    message, hint = settings.named(message), settings.named(hint)
    what = f"{program}: {settings.command}" if settings.command else program
    line = f"{what}: {message}" + (f" ({hint})" if hint else "")
    try:
        click.echo(printable(line), err=True)
        if settings.output == "json":
            error = {"code": code, "message": message, "hint": hint}
            click.echo(json.dumps({"error": error}), err=True)
    except BrokenPipeError:
        pass
    return status


def _forget_stdout() -> None:
    """Keep the interpreter from failing again when it flushes standard output at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
