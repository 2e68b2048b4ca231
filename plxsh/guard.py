"""The one place that turns errors into words and exit statuses.

Every way to fail ends in one line on standard error, `plxsh: WHAT: WHY (HINT)`, and with
`-o json` in a second one, `{"error": {"code", "message", "hint"}}`. When something was changed
and only the result could not be written, the line says so, and `error` has it as `result`.
"""

from __future__ import annotations

import errno
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

import click

from core.device import io_error
from core.errors import Interrupted, ParallaxError
from core.text import printable
from plxsh import streams, usage
from plxsh.context import Settings
from plxsh.signals import Ended, ended_by
from plxsh.streams import forget

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

    Raises:
        Ended: a signal ends the program; it was told.
    """
    before = sys.stdout, sys.stderr
    try:
        status = command()
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        ended = ended_by(error)
        if ended is None:
            sys.stdout, sys.stderr = before  # click wraps them when nobody reads its output
            return _answer(error, settings, program)
        if not ended.told:
            ended.told = True
            _answer(error if isinstance(error, Interrupted) else ended, settings, program)
        raise ended from None


def _answer(error: BaseException, settings: Settings, program: str) -> int:
    """Tell what went wrong and return the exit status that stands for it."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            streams.tell(error.format_message())
            return 2
        case click.ClickException():
            called = f"{program.partition(':')[0]} {settings.command}".rstrip()
            message, hint = usage.told(error, called)
            return _tell(settings, program, "usage", message, hint, error.exit_code)
        case Ended():
            return tell(settings, program, Interrupted(f"ended by {error}"))
        case click.Abort() | KeyboardInterrupt():
            return tell(settings, program, Interrupted("interrupted"))
        case ParallaxError():
            return tell(settings, program, error)
        case BrokenPipeError() | SystemExit():  # the latter is click's own answer to that
            return _unread(settings, program)
        case OSError(errno=number, filename=None) if number in _OUTPUT_ERRORS:
            # Files and devices are read and written by the engine, which names them.
            forget(1)
            done = f"{settings.done}, but " if settings.done else ""
            return tell(settings, program, io_error(error, f"{done}cannot write the output"))
    if settings.verbose:
        traceback.print_exception(error)
    why = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
    hint = "this is a bug in Parallax; -v shows where"
    return _tell(settings, program, "unexpected", why, hint, _UNEXPECTED)


def tell(settings: Settings, program: str, error: ParallaxError) -> int:
    """Write one error to standard error and return its exit status."""
    return _tell(settings, program, error.code, error.message, error.hint, error.exit_status)


def _unread(settings: Settings, program: str) -> int:
    """End a command whose output nobody reads; that matters only if it has changed something."""
    forget(1)
    if settings.done:
        why = f"{settings.done}, but nobody reads the output"
        _tell(settings, program, "unread", why, "", BROKEN_PIPE)
    return BROKEN_PIPE


def _tell(settings: Settings, program: str, code: str, message: str, hint: str, status: int) -> int:
    message, hint = settings.named(message), settings.named(hint)
    what = f"{program}: {settings.command}" if settings.command else program
    streams.tell(printable(f"{what}: {message}" + (f" ({hint})" if hint else "")))
    if settings.output == "json":
        error: dict[str, Any] = {"code": code, "message": message, "hint": hint}
        if settings.result:
            error["result"] = settings.result
        streams.tell(json.dumps({"error": error}))
    return status
