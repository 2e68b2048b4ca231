"""A real terminal for tests: a program on a pty of its own, and what a person would see.

The program's output goes through pyte as it comes, so the terminal answers at once when it
is asked for the position of its cursor, as real ones do. `wait_for` looks at the screen
until something is there; nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, NamedTuple

import pyte
from pyte.screens import Char
from wcwidth import wcwidth

PATIENCE = 90.0
"""Seconds until something that should be on the screen is missed; machines may be busy."""
_POLITE = 5.0

_ALTERNATE = 1049
_APPLICATION_KEYS = 1 << 5  # pyte keeps private modes shifted by five
_BRACKETED_PASTE = 2004 << 5

_ARROWS = {"up": "A", "down": "B", "right": "C", "left": "D", "home": "H", "end": "F"}
_KEYS = {
    "enter": "\r",
    "tab": "\t",
    "s-tab": "\x1b[Z",
    "space": " ",
    "esc": "\x1b",
    "backspace": "\x7f",
    "insert": "\x1b[2~",
    "delete": "\x1b[3~",
    "pageup": "\x1b[5~",
    "pagedown": "\x1b[6~",
    "f1": "\x1bOP",
    "f2": "\x1bOQ",
    "f3": "\x1bOR",
    "f4": "\x1bOS",
    **{f"f{n}": f"\x1b[{code}~" for n, code in zip(range(5, 9), (15, 17, 18, 19), strict=True)},
}


class Position(NamedTuple):
    """A place on the screen, both from 0; wide characters take two columns."""

    row: int
    column: int


class Screen(pyte.Screen):
    """pyte's screen with what programs of today expect of a terminal besides.

    Args:
        answer: takes what the terminal says to the program.
    """

    def __init__(self, columns: int, rows: int, answer: Callable[[str], None]) -> None:
        self._main: tuple[object, pyte.screens.Cursor, int, int] | None = None
        self._answer = answer
        self.scrolled_off: list[str] = []
        super().__init__(columns, rows)

    def write_process_input(self, data: str) -> None:
        self._answer(data)

    def report_device_status(self, mode: int, private: bool = False) -> None:
        if mode == 6 and not private:
            column = min(self.cursor.x, self.columns - 1)  # pyte waits beyond it before a wrap
            self._answer(f"\x1b[{self.cursor.y + 1};{column + 1}R")
        elif not private:
            super().report_device_status(mode)

    def select_graphic_rendition(self, *attrs: int, private: bool = False) -> None:
        if not private:
            super().select_graphic_rendition(*attrs)

    def draw(self, data: str) -> None:
        """Draw; a wide character that does not fit into the line begins the next one."""
        if data.isascii():
            super().draw(data)
            return
        for char in data:
            if wcwidth(char) == 2 and self.cursor.x == self.columns - 1:
                self.cursor.x = self.columns
            super().draw(char)

    def index(self) -> None:
        """Scroll, and keep the line that leaves at the top."""
        if self._main is None and self.margins is None and self.cursor.y == self.lines - 1:
            self.scrolled_off.append(self.line(0)[0].rstrip())
        super().index()

    # -- the alternate screen, which pagers and editors use ----------------------------

    def set_mode(self, *modes: int, **kwargs: bool) -> None:
        if kwargs.get("private") and _ALTERNATE in modes and self._main is None:
            self._main = (self.buffer, self.cursor, self.lines, self.columns)
            self.buffer = type(self.buffer)(self.buffer.default_factory)
            self.cursor = pyte.screens.Cursor(self.cursor.x, self.cursor.y)
        super().set_mode(*modes, **kwargs)

    def reset_mode(self, *modes: int, **kwargs: bool) -> None:
        super().reset_mode(*modes, **kwargs)
        if kwargs.get("private") and _ALTERNATE in modes and self._main is not None:
            rows, columns = self.lines, self.columns
            self.buffer, self.cursor, self.lines, self.columns = self._main
            self._main = None
            self.resize(rows, columns)

    @property
    def alternate(self) -> bool:
        return self._main is not None

    # -- the window --------------------------------------------------------------------

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        """Change the size; the line with the cursor stays, as in terminals (pyte drops it)."""
        lines, columns = lines or self.lines, columns or self.columns
        lost = max(0, self.cursor.y - (lines - 1))
        for _ in range(lost):
            if self._main is None:
                self.scrolled_off.append(self.line(0)[0].rstrip())
            for row in range(self.lines):
                self.buffer[row] = self.buffer[row + 1]
        for row in [row for row in self.buffer if row >= lines]:
            del self.buffer[row]
        self.cursor.y -= lost
        self.lines = lines  # nothing is left to drop for pyte
        self.margins = None
        super().resize(lines, columns)
        self.cursor.x = min(self.cursor.x, columns - 1)

    def line(self, row: int) -> tuple[str, list[int]]:
        """The text of a row, and for each of its characters the column where it stands."""
        text, columns, column = "", [], 0
        while column < self.columns:
            char = self.buffer[row][column].data or " "
            text += char
            columns += [column] * len(char)
            column += max(1, wcwidth(char[0]))
        return text, columns


class Terminal:
    """A program on a terminal; use it as a context manager, or `close` it.

    Args:
        argv: the program and its arguments.
        env: changes to the environment of the tests; None takes a variable away.
        columns: width of the window.
        rows: height of the window.
        cwd: where the program runs.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str | None] | None = None,
        columns: int = 80,
        rows: int = 24,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        self._master, slave = pty.openpty()
        self._transcript = bytearray()
        self._changed = threading.Condition()
        self._ended = False
        self._screen = Screen(columns, rows, self.send)
        self._stream = pyte.ByteStream(self._screen)
        termios.tcsetwinsize(slave, (rows, columns))
        # setsid makes the pty the controlling terminal, so that Ctrl-C and Ctrl-Z work.
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=_environment(env or {}),
            cwd=cwd,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, ScreenError):
            error.add_note(self.picture())
        self.close()

    # -- what a person does ------------------------------------------------------------

    def send(self, text: str | bytes) -> None:
        """Type; what the program does not take any more is lost, as at a real terminal."""
        data = text.encode() if isinstance(text, str) else text
        while data and not self._ended:
            try:
                data = data[os.write(self._master, data) :]
            except OSError:
                return

    def key(self, *names: str) -> None:
        """Press keys: `tab`, `up`, `f1`, `c-c` (Ctrl), `a-f` (Alt), `enter`, ..."""
        for name in names:
            self.send(self._key(name))

    def _key(self, name: str) -> str:
        if name in _ARROWS:
            with self._changed:
                application = _APPLICATION_KEYS in self._screen.mode
            return f"\x1b{'O' if application else '['}{_ARROWS[name]}"
        if name.startswith("c-") and len(name) == 3:
            return chr(ord(name[2].upper()) ^ 0x40)
        if name.startswith("a-") and len(name) == 3:
            return f"\x1b{name[2]}"
        return _KEYS[name]

    def enter(self, line: str = "") -> None:
        """Type a line and press Enter."""
        self.send(line)
        self.key("enter")

    def paste(self, text: str) -> None:
        """Paste, marked as such if the program wants to know; newlines come as Enter."""
        with self._changed:
            marked = _BRACKETED_PASTE in self._screen.mode
        text = text.replace("\n", "\r")
        self.send(f"\x1b[200~{text}\x1b[201~" if marked else text)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window; the kernel tells the program (SIGWINCH)."""
        with self._changed:
            self._screen.resize(rows, columns)
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    # -- what a person sees ------------------------------------------------------------

    @property
    def screen(self) -> list[str]:
        """The rows of the window, without the blanks at their ends."""
        with self._changed:
            return [self._screen.line(row)[0].rstrip() for row in range(self._screen.lines)]

    @property
    def text(self) -> str:
        """The rows of the window that are not blank at its end, as one text."""
        return "\n".join(self.screen).rstrip("\n")

    @property
    def scrollback(self) -> list[str]:
        """The rows that left the window at the top; those of pagers do not count."""
        with self._changed:
            return list(self._screen.scrolled_off)

    @property
    def transcript(self) -> str:
        """All that the program wrote, escape sequences included."""
        with self._changed:
            return self._transcript.decode(errors="replace")

    @property
    def cursor(self) -> Position:
        with self._changed:
            return Position(self._screen.cursor.y, self._screen.cursor.x)

    @property
    def cursor_shown(self) -> bool:
        """Whether the cursor is visible; many programs hide it while they draw."""
        with self._changed:
            return not self._screen.cursor.hidden

    @property
    def alternate(self) -> bool:
        """Whether the program is on the alternate screen, as a pager is."""
        with self._changed:
            return self._screen.alternate

    def cell(self, row: int, column: int) -> Char:
        """A character with `fg`, `bg` (names, or `rrggbb`), `bold`, `reverse`, ..."""
        with self._changed:
            return self._screen.buffer[row][column]

    def find(self, text: str) -> Position | None:
        """Where a text stands, the topmost; it has to be within one row."""
        found = self.find_all(text)
        return found[0] if found else None

    def find_all(self, text: str) -> list[Position]:
        """Where a text stands in each row that has it."""
        found = []
        with self._changed:
            for row in range(self._screen.lines):
                line, columns = self._screen.line(row)
                at = line.find(text)
                if at >= 0:
                    found.append(Position(row, columns[at]))
        return found

    def cells(self, text: str) -> list[Char]:
        """The characters of a text on the screen, with their colours; the lowest if several."""
        with self._changed:
            found = self.find_all(text)
            if not found:
                raise ScreenError(f"{text!r} is not on the screen\n{self.picture()}")
            row, column = found[-1]
            width = sum(max(1, wcwidth(char)) for char in text)
            cells = [self._screen.buffer[row][column + n] for n in range(width)]
        return [cell for cell in cells if cell.data]

    def wait_for(self, what: str | Callable[[], object], patience: float = PATIENCE) -> None:
        """Wait until a text is on the screen, or something is true.

        Raises:
            ScreenError: it is not for too long, or will not since the program has ended.
        """
        wanted = what if callable(what) else lambda: self.find(what)
        deadline = time.monotonic() + patience
        with self._changed:
            while not wanted():
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = f"ended with status {self._final()}" if self._ended else "goes on"
                    named = repr(what) if isinstance(what, str) else "what was waited for"
                    picture = self.picture()
                    raise ScreenError(f"{named} did not come, the program {why}\n{picture}")
                # Besides the screen, `what` may look at files: look again now and then.
                self._changed.wait(min(left, 0.1))

    def wait_gone(self, text: str, patience: float = PATIENCE) -> None:
        """Wait until a text is no longer on the screen."""
        self.wait_for(lambda: not self.find(text), patience)

    def settle(self, quiet: float = 0.4) -> None:
        """Wait until the program has said nothing for so many seconds, or talks too long.

        For what must *not* appear. A slow machine can only make such a test miss a bug.
        """
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            seen = -1
            while seen != len(self._transcript) and time.monotonic() < deadline:
                seen = len(self._transcript)
                if self._changed.wait_for(lambda: self._ended, quiet):
                    return

    def picture(self) -> str:
        """The window with a frame, for messages."""
        row, column = self.cursor
        with self._changed:
            width = self._screen.columns
            lines = [self._screen.line(at)[0] for at in range(self._screen.lines)]
        frame = "+" + "-" * width + "+"
        body = "\n".join(f"|{line}|" for line in lines)
        return f"{frame}\n{body}\n{frame} cursor at {row}, {column}"

    # -- the program -------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, minus the signal that ended it, or None while it runs."""
        return self._process.poll()

    def _final(self) -> int | None:
        """The status of a program that hung up: it lets go of its terminal before it ends."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        return self.status

    def wait_until_runs(self, name: str) -> None:
        """Wait until a program of that name is in the foreground."""
        self.wait_for(lambda: name in self.foreground)

    @property
    def foreground(self) -> set[str]:
        """The names of the processes that keys like Ctrl-C act upon."""
        group = str(os.tcgetpgrp(self._master))
        return {status.name for status in map(_status, _processes()) if status.group == group}

    def wait_until_asks(self, question: str) -> None:
        """Wait until a question is there and the program waits for its answer.

        Python loses a signal that comes between the two.
        """
        self.wait_for(lambda: self.find(question) and asleep(self.pid))

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait until the program has ended and all it wrote is on the screen."""
        try:
            status = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            raise ScreenError(f"the program goes on\n{self.picture()}") from None
        self._reader.join(patience)
        return status

    def close(self) -> None:
        """Close the window: the program is told, and killed if it does not care."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(_POLITE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()  # the kernel hangs up when the leader of the session is gone
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _read(self) -> None:
        """Show what the program writes, until it is gone."""
        try:
            while data := os.read(self._master, 65536):
                with self._changed:
                    self._transcript += data
                    self._stream.feed(data)
                    self._changed.notify_all()
        except OSError:
            pass  # the last program on this terminal has ended
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


def asleep(pid: int) -> bool:
    """Whether the first thread of a process waits for something, as for its input."""
    return _status(str(pid)).state == "S"


def program(pid: int) -> str:
    """The name of the program that a process runs, empty when it has ended."""
    return _status(str(pid)).name


def unread(pipe: IO[bytes]) -> int:
    """The bytes in a pipe, given by either end, that nobody has read yet."""
    told = fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(told, sys.byteorder)


class _Status(NamedTuple):
    """What the kernel tells of a process."""

    name: str = ""
    state: str = ""
    group: str = ""


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]


def _status(pid: str) -> _Status:
    """The status of a process, empty when there is none any more."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return _Status()
    name, _, rest = text.partition("(")[2].rpartition(") ")
    state, _parent, group = rest.split()[:3]
    return _Status(name, state, group)


class ScreenError(AssertionError):
    """The screen is not as it should be; the message has all of it."""


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """The environment of a terminal: a capable one with UTF-8, no size but the window's."""
    base = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": None, "COLORTERM": None}
    given = {"COLUMNS": None, "LINES": None, **base, **changes}
    kept = {name: value for name, value in os.environ.items() if name not in given}
    return kept | {name: value for name, value in given.items() if value is not None}
