"""How far a long command is, on standard error.

On a terminal one line that is written over, with rate and time left; with `-o json` one
JSON object a line; nothing when nobody looks or nobody wants to know.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Final

import click

from core.text import human_size
from plxsh.context import Settings

_TERMINAL_EVERY: Final = 0.1
_JSON_EVERY: Final = 1.0

Show = Callable[[int, int | None, float], None]


class Progress:
    """Shows progress, at most so often; call it with what is done and what there is.

    Used as a context manager, so that the line on the terminal is ended in any case.

    Args:
        settings: decide whether and in which form.
        what: what is going on, such as "fill".
    """

    def __init__(self, settings: Settings, what: str) -> None:
        """Start the clock."""
        self._what = what
        self._start = time.monotonic()
        self._next = self._start
        self._last: tuple[int, int | None] = (0, None)
        self._show: Show | None = None
        self._every = _TERMINAL_EVERY
        self._shown = False
        if settings.quiet:
            return
        if settings.output == "json":
            self._show, self._every = self._json, _JSON_EVERY
        elif sys.stderr.isatty():
            self._show = self._line

    def __call__(self, done: int, total: int | None = None) -> None:
        """Take note of `done` of `total` bytes; `total` is None when nobody knows."""
        self._last = (done, total)
        now = time.monotonic()
        if self._show is not None and now >= self._next:
            self._next = now + self._every
            self._show(done, total, now - self._start)

    def __enter__(self) -> Progress:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Show the end, or end the line where the command broke off."""
        if self._show is not None and kind is None and self._last[0]:
            self._show(*self._last, time.monotonic() - self._start)
        if self._shown:
            click.echo(err=True)

    def _line(self, done: int, total: int | None, seconds: float) -> None:
        self._shown = True
        rate = done / seconds if seconds else 0.0
        text = f"{self._what}: {human_size(done)}"
        if total:
            text += f" of {human_size(total)} ({done * 100 // total} %)"
        text += f", {human_size(int(rate))}/s"
        if total and rate and done < total:
            text += f", {_clock((total - done) / rate)} left"
        click.echo(f"\r{text}\x1b[K", nl=False, err=True)

    def _json(self, done: int, total: int | None, seconds: float) -> None:
        rate = done / seconds if seconds else 0.0
        left = round((total - done) / rate, 1) if total is not None and rate else None
        click.echo(
            json.dumps(
                {
                    "progress": {
                        "what": self._what,
                        "done": done,
                        "total": total,
                        "bytes_per_second": round(rate),
                        "seconds_left": left,
                    }
                }
            ),
            err=True,
        )


def _clock(seconds: float) -> str:
    """Return a duration as `1:05` or `2:03:04`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
