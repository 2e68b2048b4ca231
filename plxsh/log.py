"""The log of a server: lines on standard error, for people, for systemd's journal, for programs.

Text is for people: with the time of day on a terminal, with date and severity in a file, with
the journal's own marks of severity in the journal. JSON is one object a line. A log that nobody
reads, or that somebody floods, costs lines, never the time of a request.
"""

from __future__ import annotations

import json
import logging
import os
import select
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final, Literal, get_args

from core.errors import BadRequest
from core.text import counted, printable, shortened

Form = Literal["text", "json"]
FORMS: Final[tuple[Form, ...]] = get_args(Form)

_STDERR: Final = 2
_LONGEST: Final = 4096
"""Bytes of a line; a pipe that takes anything takes that many at once."""
_WINDOW: Final = 5.0
_MOST: Final = 200
"""Lines of one severity in `_WINDOW` seconds."""
_PRIORITIES: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message"}
"""What every record has; the rest are the fields of this event."""

Lines = Callable[[logging.LogRecord], list[str]]
"""Returns the lines of one record."""


def log_form(chosen: str | None) -> Form:
    """Return the form of the log that was asked for.

    Raises:
        BadRequest: there is no such form.
    """
    for form in FORMS:
        if chosen in (form, None):
            return form
    raise BadRequest(f"there is no form of the log {chosen!r}", f"take {' or '.join(FORMS)}")


def level_for(quiet: bool, verbose: bool) -> int:
    """Return the least severity that is logged.

    A server in the background of a terminal keeps to warnings: somebody else works there.
    """
    if quiet:
        return logging.WARNING
    if verbose:
        return logging.DEBUG
    return logging.WARNING if os.isatty(_STDERR) and not _foreground() else logging.INFO


def _foreground() -> bool:
    try:
        return os.tcgetpgrp(_STDERR) == os.getpgrp()
    except OSError:  # not our terminal
        return False


@contextmanager
def logging_to_stderr(form: Form, level: int) -> Iterator[None]:
    """Log what the engine and its server say, for the length of a `with` block."""
    logger = logging.getLogger("core")
    handler = _Handler(_lines(form))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _lines(form: Form) -> Lines:
    """Return how a record becomes lines, here and now."""
    if _in_journal():
        lines = _as_json if form == "json" else _text
        return lambda record: [f"<{_PRIORITIES[record.levelname]}>{at}" for at in lines(record)]
    if form == "json":
        return _as_json
    return _for_terminal if os.isatty(_STDERR) else _as_text


def _in_journal() -> bool:
    """Say whether standard error is the stream that the journal gave to this service."""
    with suppress(OSError, ValueError):
        device, inode = map(int, os.environ.get("JOURNAL_STREAM", "").split(":"))
        status = os.fstat(_STDERR)
        return (status.st_dev, status.st_ino) == (device, inode)
    return False


class _Handler(logging.Handler):
    """Writes lines, as far as they are taken at once."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines
        self._poll = select.poll()
        self._poll.register(_STDERR, select.POLLOUT)
        self._window = 0.0
        self._count: Counter[int] = Counter()
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._window > _WINDOW:
            self._window = now
            self._count.clear()
        self._count[record.levelno] += 1
        if self._count[record.levelno] > _MOST or not self._ready():
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            left_out = f"{counted(lost, 'line')} of the log left out"
            self._write(logging.makeLogRecord({
                "name": record.name, "msg": left_out, "levelno": logging.WARNING,
                "levelname": "WARNING", "event": "lines_lost", "lines": lost,
            }))  # fmt: skip
        self._write(record)

    def _write(self, record: logging.LogRecord) -> None:
        try:
            lines = self._lines(record)
        except Exception:  # a bug in a message must not end a request
            lines = [f"a message of {record.name} cannot be shown"]
        for line in lines:
            if not self._ready():
                self._lost += 1
                return
            with suppress(OSError):
                os.write(_STDERR, line.encode(errors="backslashreplace")[: _LONGEST - 1] + b"\n")

    def _ready(self) -> bool:
        return any(events & select.POLLOUT for _, events in self._poll.poll(0))


def _text(record: logging.LogRecord) -> list[str]:
    """Return the message, and where it happened if that was a bug; nothing that acts."""
    lines = [record.getMessage()]
    if record.exc_info:
        lines += logging.Formatter().formatException(record.exc_info).splitlines()
    return [shortened(printable(line), 1000) for line in lines]


def _as_text(record: logging.LogRecord) -> list[str]:
    head = f"{_time(record)} {record.levelname.lower()}:"
    return [f"{head} {line}" for line in _text(record)]


def _for_terminal(record: logging.LogRecord) -> list[str]:
    clock = f"{datetime.fromtimestamp(record.created, UTC).astimezone():%H:%M:%S}"
    word = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
    return [f"{clock} {word}{line}" for line in _text(record)]


def _as_json(record: logging.LogRecord) -> list[str]:
    fields: dict[str, object] = {"time": _time(record), "level": record.levelname.lower()}
    more = {name: value for name, value in vars(record).items() if name not in _OWN}
    fields |= {"event": more.pop("event", "other"), "message": record.getMessage(), **more}
    if record.exc_info:
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    line = ""
    for most in (2000, 300, 50):
        cut = {k: v[-most:] if isinstance(v, str) else v for k, v in fields.items()}
        line = json.dumps(cut)
        if len(line) < _LONGEST - 8:
            break
    return [line]


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
