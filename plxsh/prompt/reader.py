"""Reads lines from the terminal: with all that a prompt can do, or as plainly as it must be."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from functools import partial
from typing import Final

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import in_terminal
from prompt_toolkit.cursor_shapes import ModalCursorShapeConfig
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Always
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout.controls import BufferControl
from prompt_toolkit.output import ColorDepth

from core.errors import BadRequest
from plxsh.context import configured, default_socket, wants_color
from plxsh.explain import explain
from plxsh.interpreter import Interpreter
from plxsh.language import goes_on
from plxsh.locking import standing
from plxsh.overview import Overviews
from plxsh.prompt.colours import STYLE, LineLexer
from plxsh.prompt.history import open_history
from plxsh.prompt.keys import key_bindings
from plxsh.prompt.menu import Menu
from plxsh.prompt.suggest import SuggestHarmless
from plxsh.prompt.toolbar import toolbar

_KEYS: Final = {"emacs": EditingMode.EMACS, "vi": EditingMode.VI}
_EVERY: Final = 2.0
_MENU_ROWS: Final = 8
_OTHER_ROWS: Final = 3


class PlainReader:
    """Reads lines on a terminal that can do nothing but print.

    Args:
        shell: whose prompt it is.
    """

    def __init__(self, shell: Interpreter) -> None:
        """Prepare nothing."""
        self._shell = shell

    def read(self, _failed: bool) -> str:
        """Return the next line.

        Raises:
            EOFError: there are no more.
            KeyboardInterrupt: it was dropped.
        """
        text = input(f"plxsh{f' {self._shell.used}' if self._shell.used else ''}> ")
        while goes_on(text):
            text += "\n" + input("... ")
        return text


class LineReader:
    """Reads lines with completion, colours, history and a toolbar.

    Args:
        shell: whose prompt it is.
    """

    def __init__(self, shell: Interpreter) -> None:
        """Prepare the prompt.

        Raises:
            BadRequest: the configuration asks for keys that there are not.
        """
        self._shell = shell
        self._failed = False
        settings = shell.settings
        keys = configured(settings.config, "shell", "keys") or "emacs"
        if keys not in _KEYS:
            raise BadRequest(
                f"[shell] keys of the configuration is {keys!r}", f"take {' or '.join(_KEYS)}"
            )
        history, trouble = open_history()
        if trouble:
            settings.warn([trouble])
        menu = Menu(shell)
        self._session: PromptSession[str] = PromptSession(
            self._message,
            auto_suggest=SuggestHarmless(shell),
            bottom_toolbar=self._toolbar,
            color_depth=None if wants_color(settings.no_color) else ColorDepth.DEPTH_1_BIT,
            complete_in_thread=True,
            complete_while_typing=True,
            completer=menu,
            cursor=ModalCursorShapeConfig() if keys == "vi" else None,
            editing_mode=_KEYS[keys],
            enable_suspend=True,
            history=history,
            include_default_pygments_style=False,
            key_bindings=key_bindings(menu, self._explain),
            prompt_continuation=_continuation,
            refresh_interval=_EVERY,
            style=STYLE,
        )
        buffer = self._session.default_buffer
        buffer.enable_history_search = Always()
        for control in self._session.layout.find_all_controls():
            if isinstance(control, BufferControl) and control.buffer is buffer:
                control.lexer = LineLexer(shell)  # the session would hide that names changed
        self._overviews = Overviews(
            settings.names,
            default_socket(),
            self._repaint,
            partial(standing, settings),
        )

    def read(self, failed: bool) -> str:
        """Return the next line; the prompt shows whether the one before failed.

        Raises:
            EOFError: the user wants to leave.
            KeyboardInterrupt: the user dropped the line.
        """
        self._failed = failed
        self._shell.settings.names.look_again()
        _begin_a_row()
        return self._session.prompt()

    def _message(self) -> StyleAndTextTuples:
        # A low window has no room for the menu; this is asked for at every redraw.
        rows = shutil.get_terminal_size().lines - _OTHER_ROWS
        self._session.reserve_space_for_menu = max(0, min(_MENU_ROWS, rows))
        self._shell.follow()
        name = [("class:prompt.vdi", f" {self._shell.used}")] if self._shell.used else []
        end = "class:prompt.failed" if self._failed else "class:prompt"
        return [("class:prompt", "plxsh"), *name, (end, "> ")]

    def _toolbar(self) -> StyleAndTextTuples:
        return toolbar(self._shell, self._overviews.latest())

    def _repaint(self) -> None:
        """Show news in the toolbar: what the thread that has them calls."""
        # The prompt may end between the look of prompt_toolkit, whether it runs, and its call.
        with suppress(RuntimeError, AttributeError):
            self._session.app.invalidate()

    def _explain(self) -> None:
        """Show help on the word at the cursor above the prompt."""
        document = self._session.default_buffer.document
        text = explain(self._shell, document.text, document.cursor_position)

        async def show() -> None:
            async with in_terminal():
                click.echo(f"\n{text}\n")
                sys.stdout.flush()

        self._session.app.create_background_task(show())


def _continuation(_width: int, _line: int, wrapped: int) -> str:
    """Return what stands before a line of a paste; nothing where a long line goes on."""
    return "" if wrapped else "... "


def _begin_a_row() -> None:
    """Go to a new row of the terminal, unless the cursor is at the beginning of one.

    Blanks that fill a row exactly take the cursor to the next only if something stands
    there already; zsh does the same.
    """
    width = shutil.get_terminal_size().columns
    click.echo(" " * (width - 1) + "\r\x1b[K", nl=False, color=True)
    sys.stdout.flush()


def can_edit() -> bool:
    """Say whether the terminal can do what `LineReader` needs."""
    return os.environ.get("TERM", "dumb") not in ("dumb", "") and sys.stdout.isatty()
