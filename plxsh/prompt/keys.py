"""Keys of the prompt that prompt_toolkit does not have by itself."""

from __future__ import annotations

from collections.abc import Callable

from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition, completion_is_selected
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent

from plxsh.language import tokens


def key_bindings(explain: Callable[[], None]) -> KeyBindings:
    """Return the bindings.

    Args:
        explain: shows help on the word at the cursor.
    """
    keys = KeyBindings()

    @keys.add("enter", filter=completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        """Take what is chosen in the menu; another Enter runs the line."""
        buffer = event.current_buffer
        buffer.complete_state = None
        before = buffer.document.text_before_cursor
        if not before.endswith(("@", "/")) and not before.endswith(" "):
            buffer.insert_text(" ")

    @keys.add("f1")
    def _(_: KeyPressEvent) -> None:
        explain()

    @keys.add("?", filter=Condition(_outside_quotes))
    def _(_: KeyPressEvent) -> None:
        explain()

    return keys


def _outside_quotes() -> bool:
    """Say whether a `?` would be no part of a quoted word or of a Unix command."""
    before = get_app().current_buffer.document.text_before_cursor
    found = tokens(before)
    if not found or before.endswith("\\"):
        return not before.endswith("\\")
    return found[-1].kind not in ("shell", "comment") and found[-1].closed
