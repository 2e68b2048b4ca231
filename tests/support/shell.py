"""The interactive shell on a terminal, and a store with names of every kind to use it on."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from support.terminal import Terminal

from core import mkfs
from core.session import Session

PLXSH = (sys.executable, "-m", "plxsh")
_PATIENT = (
    "import sys; from plxsh import names, paths; from plxsh.__main__ import main;"
    "names.Names.__init__.__defaults__ = (60.0, 'host'); paths._DEADLINE = 60.0;"
    "sys.argv[0] = 'plxsh'; main()"
)
"""`plxsh` that waits for names and files as long as it takes: a test proves no speed."""
_PROMPT = re.compile(r"plxsh.*>")


def populated(folder: Path) -> str:
    """A store with `base` (0), `web` (1, a clone of base@clean), `My new VDI` (2), `日本語` (3).

    Snapshots: base@clean, base@patched, `My new VDI`@`before upgrade`, and one of 日本語
    without a label.
    """
    path = str(folder / "blockstore.dat")
    mkfs.create(path, 1 << 20, 6)
    with Session.open(path) as session:
        base = session.create("base", 64 << 10)
        with session.opened(base) as vdi:
            vdi.write(4096, b"a" * 8192)
            vdi.snapshot("clean")
            vdi.write(8192, b"b" * 4096)
            vdi.snapshot("patched")
        session.create("web", 0, session.find_snapshot("base@clean"))
        session.snapshot(session.create("My new VDI", 1 << 20), "before upgrade")
        session.snapshot(session.create("日本語", 2 << 20))
    return path


class Shell(Terminal):
    """`plxsh` with no command, at its first prompt.

    Args:
        options: the command line, as in `-s PATH`; else the environment says which store.
        env: changes to the environment of the tests.
        columns: width of the window.
        rows: height of the window.
        patient: a key waits for the names it needs; else, as for users, it does without.
    """

    def __init__(
        self,
        *options: str,
        env: Mapping[str, str | None] | None = None,
        columns: int = 100,
        rows: int = 30,
        patient: bool = True,
    ) -> None:
        program = (sys.executable, "-c", _PATIENT) if patient else PLXSH
        super().__init__([*program, *options], env, columns, rows)
        try:
            self.prompt()
        except BaseException:
            self.close()
            raise

    @property
    def at_prompt(self) -> bool:
        """Whether the cursor stands behind a prompt with nothing typed."""
        with self._changed:  # the cursor is hidden while a line is being drawn
            return self.cursor_shown and self._bare

    @property
    def _bare(self) -> bool:
        with self._changed:
            row, column = self.cursor
            line = self.screen[row]
        return bool(_PROMPT.fullmatch(line)) and column > len(line)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing is half drawn, the cursor is in its place, and so it stays in this block."""
        with self._changed:
            self.wait_for(lambda: self.cursor_shown)  # it is hidden while something is drawn
            yield

    @property
    def drawn(self) -> list[str]:
        """The rows of the window, none of them half drawn."""
        with self.still():
            return self.screen

    @property
    def line(self) -> str:
        """The row of the cursor: the prompt and what is typed, maybe with a suggestion."""
        with self.still():
            return self.screen[self.cursor.row]

    def prompt(self) -> None:
        """Wait for a prompt with nothing typed."""
        self.wait_for(lambda: self.at_prompt)

    def type(self, text: str) -> None:
        """Type, and wait until it is there."""
        self.send(text)
        self.wait_for(lambda: self._shows(text))

    def start(self, line: str) -> None:
        """Type a line and Enter, and leave it to the caller what to wait for."""
        self.prompt()
        self.send(line)
        self.wait_for(lambda: self._shows(line) and not self._bare)
        self.key("enter")

    def run(self, line: str) -> list[str]:
        """Type a line and Enter; return the rows shown up to the next prompt."""
        with self._changed:  # the prompt may be drawn anew at any time
            self.prompt()
            start = self._rows_so_far
        self.start(line)
        with self._changed:
            self.prompt()
            rows = [*self.scrollback, *self.screen]
            return rows[start + 1 : self._rows_so_far]

    def drop(self) -> None:
        """Drop the line with Ctrl-C; the next prompt is on a row of its own."""
        with self.still():
            before = self._rows_so_far
        self.key("c-c")
        self.wait_for(lambda: self.at_prompt and self._rows_so_far != before)

    def clear(self) -> None:
        """Clear the window with Ctrl-L, which leaves the prompt alone at the top."""
        self.prompt()
        self.key("c-l")
        self.wait_for(lambda: self.at_prompt and self.cursor.row == 0)

    def _shows(self, text: str) -> bool:
        """Whether the end of what was typed stands before the cursor, which is not hidden."""
        end = re.split(r"[\x00-\x1f]", text)[-1].rstrip()[-10:]
        with self._changed:
            row = self.cursor.row
            shown = "".join(self.screen[max(0, row - 1) : row + 1])
            return self.cursor_shown and end in shown

    @property
    def _rows_so_far(self) -> int:
        with self._changed:
            return len(self.scrollback) + self.cursor.row
