"""The line at the bottom of the screen: store, space, locks, exports, and what `use` chose."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from prompt_toolkit.formatted_text import StyleAndTextTuples

from core.text import columns, human_size
from plxsh.interpreter import Interpreter
from plxsh.overview import Overview

_BETWEEN = "  "


def toolbar(shell: Interpreter, overview: Overview | None) -> StyleAndTextTuples:
    """Return the toolbar; what matters least gives way first when the terminal is narrow."""
    width = shutil.get_terminal_size().columns
    parts = [(style, text) for style, text in _parts(shell, overview) if text]
    store = shell.settings.store
    while _length(parts) > width and len(parts) > 1:
        if parts[0][1] == store and os.path.basename(store) != store:
            parts[0] = (parts[0][0], os.path.basename(store))
        else:
            parts.pop()
    pieces: StyleAndTextTuples = []
    for style, text in parts:
        pieces += [("class:toolbar", _BETWEEN if pieces else " "), (style, text)]
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
        yield "class:toolbar.key", f"VDI {shell.used}"
    if overview is None or overview.trouble:
        return
    part = overview.used * 100 // overview.total if overview.total else 0
    space = f"{human_size(overview.used)} of {human_size(overview.total)} used ({part} %)"
    yield ("class:toolbar.alarm" if part >= 90 else "class:toolbar"), space
    if overview.exports:
        yield "class:toolbar", _counted(overview.exports, "open export")
    else:
        yield "class:toolbar", "no open exports"
    yield "class:toolbar", f"locks: embedded, {_held(overview.holder)}"
    yield "class:toolbar", _counted(overview.vdis, "VDI")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _held(holder: str | None) -> str:
    return f"held by {holder}" if holder else "free"
