"""The lines a user typed, kept from one shell to the next."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

_MOST: Final = 10_000
"""Lines that are kept when a shell starts."""


def history_path() -> str:
    """Return where the history of this user is."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "parallax", "history")


class UserHistory(FileHistory):
    """A history in a file that only its user may read, without the same line twice in a row.

    A line that begins with a space is kept out of the file. When the file cannot be
    written any more, the history goes on in memory.
    """

    def append_string(self, string: str) -> None:
        """Take note of a line."""
        if not string.startswith(" ") and self.get_strings()[-1:] != [string]:
            super().append_string(string)

    def store_string(self, string: str) -> None:
        """Write a line to the file."""
        with suppress(OSError):
            super().store_string(string)

    def load_history_strings(self) -> Iterable[str]:
        """Return the lines of the file, the newest first, as far as they are needed."""
        before = ""
        for count, line in enumerate(super().load_history_strings()):
            if count == _MOST:
                return
            if line != before:
                yield line
            before = line


def open_history() -> tuple[History, str]:
    """Return the history of this user, and what is wrong with its file, empty for nothing."""
    path = history_path()
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        return InMemoryHistory(), f"lines are not kept: {path}: {error.strerror}"
    return UserHistory(path), ""
