"""The line at the bottom of the screen: store, space, locks, exports, and what `use` chose."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import Final

from prompt_toolkit.formatted_text import StyleAndTextTuples

from core.text import columns, counted, human_size, printable, shortened
from plxsh.interpreter import Interpreter
from plxsh.overview import Overview

_BETWEEN: Final = "  "
_LEAST: Final = 12
"""Columns under which a text that is cut says nothing."""
_NEARLY_FULL: Final = 90
"""Per cent of a store in use that are worth a warning."""


def toolbar(shell: Interpreter, overview: Overview | None) -> StyleAndTextTuples:
    """Return the toolbar; what matters least is cut when the terminal is narrow."""
    left = shutil.get_terminal_size().columns
    parts = [(style, printable(text)) for style, text in _parts(shell, overview)]
    store = shell.settings.store
    if _length(parts) > left:
        parts[0] = (parts[0][0], os.path.basename(store) or store)
    pieces: StyleAndTextTuples = []
    for style, text in parts:
        between = _BETWEEN if pieces else " "
        left -= len(between)
        if pieces and left < min(columns(text), _LEAST):
            break
        text = shortened(text, left)
        left -= columns(text)
        pieces += [("class:toolbar", between), (style, text)]
    return pieces


def _length(parts: Iterable[tuple[str, str]]) -> int:
    return sum(columns(text) + len(_BETWEEN) for _, text in parts)


def _parts(shell: Interpreter, overview: Overview | None) -> Iterable[tuple[str, str]]:
    """Yield style and text of every part, the most important first."""
    yield "class:toolbar.key", shell.settings.store
    if overview is not None and overview.trouble:
        yield "class:toolbar.alarm", overview.trouble
    if shell.settings.dry_run:
        yield "class:toolbar.alarm", "dry run"
    if shell.used:
        gone = shell.gone and not (overview is not None and overview.trouble)  # all is, then
        style = "class:toolbar.alarm" if gone else "class:toolbar.key"
        yield style, f"VDI {shell.used}{' is gone' * gone}"
    if overview is None or overview.trouble:
        return
    if overview.locks_down:
        yield "class:toolbar.alarm", f"lock master {overview.locks} is down"
    part = overview.used * 100 // overview.total if overview.total else 0
    space = f"{human_size(overview.used)} of {human_size(overview.total)} used ({part} %)"
    yield ("class:toolbar.alarm" if part >= _NEARLY_FULL else "class:toolbar"), space
    exports = overview.exports or 0
    if exports:
        yield "class:toolbar", counted(exports, "open export")
    if not overview.locks_down:
        yield "class:toolbar", _lock_master(overview)
    if not exports:
        yield "class:toolbar", "no open exports"
    yield "class:toolbar", counted(overview.vdis, "VDI")


def _lock_master(overview: Overview) -> str:
    """Say where the lock master is."""
    if overview.locks:
        return f"lock master {overview.locks}"
    held = f"locked by {overview.holder}" if overview.holder else "free"
    return f"lock master embedded, {held}"
