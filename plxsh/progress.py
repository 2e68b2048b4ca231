"""How far a long command is, on standard error.

On a terminal it is one line that is written over, with rate and time left, and without any
escape code. A transfer leaves its last line behind, with the mean rate, wherever it ended;
what only looks leaves nothing. With `-o json` there is one JSON object a line instead, the
first after a second and one at the end: `{"progress": {...}}` with the keys

    what              what is going on: fill, convert, check, ...
    unit              what is counted: bytes, blocks, VDIs, ...
    done, total       so many of so many; total is null while nobody knows
    per_second        the rate, smoothed
    bytes_per_second  the same if the unit is bytes, else null
    seconds_left      null while nobody knows

Nothing is shown when nobody looks or nobody wants to know.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from core.text import human_size
from plxsh.context import Settings
from plxsh.streams import tell

_FIRST_AFTER: Final = 0.3
_LINE_EVERY: Final = 0.1
_JSON_EVERY: Final = 1.0
_SMOOTH: Final = 5.0
"""Seconds that a change of the rate takes to be believed."""
_ETA_AFTER: Final = 1.0
_BYTES: Final = "bytes"

Tell = Callable[[int, int | None], None]


class Progress:
    """Shows progress, at most so often; call it with what is done and what there is.

    Used as a context manager, so that the line on the terminal is ended in any case.

    Args:
        settings: decide whether and in which form.
        what: what is going on, such as "fill".
        unit: what is counted.
    """

    def __init__(self, settings: Settings, what: str, unit: str = _BYTES) -> None:
        """Show nothing before the first call."""
        self._what = what
        self._unit = unit
        self._stage: _Stage | None = None
        self._display: _Line | _JsonLines | None = None
        if settings.output == "json" and not settings.quiet:
            self._display = _JsonLines()
        elif sys.stderr.isatty() and not settings.quiet:
            self._display = _Line()

    def __call__(self, done: int, total: int | None = None) -> None:
        """Take note of `done` of `total`; `total` is None when nobody knows."""
        self._tell(self._what, self._unit, done, total)

    def stage(self, what: str, unit: str = "") -> Tell:
        """Return a function to call like this object, about a part with a name of its own."""
        return partial(self._tell, what, unit or self._unit)

    def _tell(self, what: str, unit: str, done: int, total: int | None = None) -> None:
        if self._display is None:
            return
        now = time.monotonic()
        if self._stage is None or self._stage.what != what:
            self._end_stage(now)
            self._stage = _Stage(what, unit, now, now + self._display.first)
        stage = self._stage
        stage.done, stage.total = done, total
        if now >= stage.next:
            stage.next = now + self._display.every
            stage.rate.see(done, now)
            self._display.show(stage, now)

    def _end_stage(self, now: float) -> None:
        if self._stage is not None and self._display is not None:
            self._display.finish(self._stage, now)
            self._stage = None

    def __enter__(self) -> Progress:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Show the end, or how far it was when it broke off."""
        now = time.monotonic()
        if kind is None:
            self._end_stage(now)
        elif self._stage is not None and self._display is not None:
            self._display.break_off(self._stage, now)


class _Stage:
    """A part of a command: how far it is, and how fast."""

    def __init__(self, what: str, unit: str, now: float, first: float) -> None:
        self.what = what
        self.unit = unit
        self.done = 0
        self.total: int | None = None
        self.start = now
        self.next = first
        self.rate = _Rate(now)

    def left(self, now: float) -> float | None:
        """Return the seconds to go, None as long as that is guesswork."""
        rate = self.rate.value
        if self.total is None or not rate or now - self.start < _ETA_AFTER:
            return None
        return max(0, self.total - self.done) / rate

    def mean(self, now: float) -> float:
        """Return the rate from the beginning."""
        return self.done / max(now - self.start, 1e-3)


class _Rate:
    """A rate in which what is long ago counts less and less, and no moment counts much."""

    def __init__(self, now: float) -> None:
        self._start = self._last = now
        self._done = 0
        self._sum = 0.0
        self.value = 0.0

    def see(self, done: int, now: float) -> None:
        """Take note of what is done now."""
        if now <= self._last:
            return
        keep = math.exp((self._last - now) / _SMOOTH)
        self._sum = self._sum * keep + (done - self._done) / (now - self._last) * (1 - keep)
        self._done, self._last = done, now
        # At the beginning the average weighs less than it should: there is no past yet.
        self.value = self._sum / -math.expm1((self._start - now) / _SMOOTH)


class _Line:
    """One line of a terminal, written over and over."""

    first = _FIRST_AFTER
    every = _LINE_EVERY

    def __init__(self) -> None:
        self._shown = 0

    def show(self, stage: _Stage, now: float) -> None:
        left = stage.left(now)
        eta = f", {_clock(left)} left" if left is not None else ""
        self._write(stage, stage.rate.value, eta)

    def finish(self, stage: _Stage, now: float) -> None:
        """Leave the last line of a transfer, and no other."""
        if stage.unit == _BYTES and stage.done:
            self._write(stage, stage.mean(now), "")
            tell()
        elif self._shown:
            tell(f"\r{'':{self._shown}}\r", nl=False)
        self._shown = 0

    def break_off(self, stage: _Stage, now: float) -> None:
        """Do the same for a stage that was not to end here; ^C may stand behind the line."""
        if self._shown:
            self._shown = min(self._shown + len("^C"), _terminal_width() - 1)
        self.finish(stage, now)

    def _write(self, stage: _Stage, rate: float, eta: str) -> None:
        much = _much(stage)
        speed = f", {_amount(round(rate), stage.unit)}/s"
        percent = f" ({stage.done * 100 // stage.total} %)" if stage.total else ""
        short = percent.strip(" ()") or _amount(stage.done, stage.unit)
        forms = (f"{much}{percent}{speed}{eta}", f"{much}{percent}{eta}", f"{short}{eta}", short)
        room = _terminal_width() - 1
        text = next(
            (f"{stage.what}: {form}" for form in forms if len(stage.what) + 2 + len(form) <= room),
            short[:room],
        )
        # Spaces instead of an escape code: they work on every terminal.
        text += " " * max(0, self._shown - len(text))
        self._shown = len(text.rstrip())  # before Ctrl-C may come
        tell(f"\r{text}", nl=False)


class _JsonLines:
    """One JSON object a line."""

    first = every = _JSON_EVERY

    def show(self, stage: _Stage, now: float) -> None:
        left = stage.left(now)
        self._write(stage, stage.rate.value, None if left is None else round(left, 1))

    def finish(self, stage: _Stage, now: float) -> None:
        """Say that all is done."""
        if stage.total is None:
            stage.total = stage.done
        stage.done = stage.total
        self._write(stage, stage.mean(now), 0.0)

    def break_off(self, stage: _Stage, now: float) -> None:
        """Say nothing: the error comes."""

    def _write(self, stage: _Stage, rate: float, left: float | None) -> None:
        told = {
            "what": stage.what,
            "unit": stage.unit,
            "done": stage.done,
            "total": stage.total,
            "per_second": round(rate),
            "bytes_per_second": round(rate) if stage.unit == _BYTES else None,
            "seconds_left": left,
        }
        tell(json.dumps({"progress": told}))


def _much(stage: _Stage) -> str:
    """Return `3 GiB of 10 GiB`, or `3 of 10 blocks`."""
    if not stage.total:
        return _amount(stage.done, stage.unit)
    done = human_size(stage.done) if stage.unit == _BYTES else str(stage.done)
    return f"{done} of {_amount(stage.total, stage.unit)}"


def _amount(number: int, unit: str) -> str:
    return human_size(number) if unit == _BYTES else f"{number} {unit}"


def _terminal_width() -> int:
    """Return the columns of the terminal behind standard error."""
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):  # no terminal, or no descriptor
        return 80


def _clock(seconds: float) -> str:
    """Return a duration as `1:05` or `2:03:04`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
