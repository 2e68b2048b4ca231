"""The interactive shell: reads lines at a prompt and has them run."""

from __future__ import annotations

import sys
from typing import Final

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import in_terminal
from prompt_toolkit.cursor_shapes import ModalCursorShapeConfig
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Always
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.output import ColorDepth

from core.errors import BadRequest
from plxsh.context import configured, default_socket, wants_color
from plxsh.explain import explain
from plxsh.interpreter import Interpreter
from plxsh.overview import Overviews
from plxsh.prompt.colours import STYLE, LineLexer
from plxsh.prompt.history import open_history
from plxsh.prompt.keys import key_bindings
from plxsh.prompt.menu import Menu
from plxsh.prompt.suggest import SuggestHarmless
from plxsh.prompt.toolbar import toolbar

_KEYS: Final = {"emacs": EditingMode.EMACS, "vi": EditingMode.VI}
_EVERY: Final = 2.0


class Repl:
    """A prompt on the terminal.

    Args:
        shell: runs what is typed.
    """

    def __init__(self, shell: Interpreter) -> None:
        """Prepare the prompt.

        Raises:
            BadRequest: the configuration asks for keys that there are not.
        """
        self._shell = shell
        self._status = 0
        settings = shell.settings
        keys = configured(settings.config, "shell", "keys") or "emacs"
        if keys not in _KEYS:
            raise BadRequest(
                f"[shell] keys of the configuration is {keys!r}", f"take {' or '.join(_KEYS)}"
            )
        history, trouble = open_history()
        if trouble:
            settings.warn([trouble])
        self._session: PromptSession[str] = PromptSession(
            self._message,
            auto_suggest=SuggestHarmless(shell),
            bottom_toolbar=self._toolbar,
            color_depth=None if wants_color(settings.no_color) else ColorDepth.DEPTH_1_BIT,
            complete_in_thread=True,
            complete_while_typing=True,
            completer=Menu(shell),
            cursor=ModalCursorShapeConfig() if keys == "vi" else None,
            editing_mode=_KEYS[keys],
            enable_suspend=True,
            history=history,
            include_default_pygments_style=False,
            key_bindings=key_bindings(self._explain),
            lexer=LineLexer(shell),
            prompt_continuation="... ",
            refresh_interval=_EVERY,
            style=STYLE,
        )
        self._session.default_buffer.enable_history_search = Always()
        self._overviews = Overviews(settings.names, default_socket(), self._session.app.invalidate)

    def run(self) -> int:
        """Read and run lines until `exit` or Ctrl-D; return the exit status of the shell."""
        settings = self._shell.settings
        if not settings.quiet:
            click.echo("'help' lists the commands, ? helps where you are, Ctrl-D leaves", err=True)
        while not self._shell.leaving:
            try:
                line = self._session.prompt()
                self._status = self._shell.run(line)
            except EOFError:
                break
            except KeyboardInterrupt:
                self._status = 130
        return 0

    def _message(self) -> StyleAndTextTuples:
        failed = "class:prompt.failed" if self._status else "class:prompt"
        name = [("class:prompt.vdi", f" {self._shell.used}")] if self._shell.used else []
        return [("class:prompt", "plxsh"), *name, (failed, "> ")]

    def _toolbar(self) -> StyleAndTextTuples:
        return toolbar(self._shell, self._overviews.latest())

    def _explain(self) -> None:
        """Show help on the word at the cursor above the prompt."""
        document = self._session.default_buffer.document
        text = explain(self._shell, document.text, document.cursor_position)

        async def show() -> None:
            async with in_terminal():
                click.echo(f"\n{text}\n")
                sys.stdout.flush()

        self._session.app.create_background_task(show())
