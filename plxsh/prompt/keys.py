"""Keys of the prompt that prompt_toolkit does not have, or not like this."""

from __future__ import annotations

import os
from collections.abc import Callable

from prompt_toolkit.application import get_app
from prompt_toolkit.buffer import Buffer, CompletionState
from prompt_toolkit.completion import CompleteEvent, Completer
from prompt_toolkit.filters import Condition, completion_is_selected
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent

from plxsh.language import goes_on, quoted, tokens

_UNFINISHED = ("@", "/", " ")


def key_bindings(completer: Completer, explain: Callable[[], None]) -> KeyBindings:
    """Return the bindings.

    Args:
        completer: what Tab asks.
        explain: shows help on the word at the cursor.
    """
    keys = KeyBindings()

    @keys.add("tab")
    def _(event: KeyPressEvent) -> None:
        """Complete as far as it is clear, then choose from the menu."""
        buffer = event.current_buffer
        state = buffer.complete_state
        if state is not None and state.complete_index is not None:
            buffer.complete_next()
        else:
            _complete(buffer, completer)

    @keys.add("enter", filter=completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        """Take what is chosen in the menu; another Enter runs the line."""
        buffer = event.current_buffer
        buffer.complete_state = None
        _finish_word(buffer)

    @keys.add("enter", filter=Condition(_at_backslash) & ~completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        """Go on in the next line, as a script would."""
        event.current_buffer.newline(copy_margin=False)

    @keys.add("f1")
    def _(_: KeyPressEvent) -> None:
        explain()

    @keys.add("?", filter=Condition(_outside_quotes))
    def _(_: KeyPressEvent) -> None:
        explain()

    return keys


def _complete(buffer: Buffer, completer: Completer) -> None:
    """Insert what all that begins so has in common; open the menu if that is nothing.

    This asks at once, whatever the menu is doing that opens while one types: what is typed
    behind Tab must find the word complete. The answer has its deadline.
    """
    document = buffer.document
    found = list(completer.get_completions(document, CompleteEvent(completion_requested=True)))
    if not found:
        return
    fragment, quote = _typed(document.text_before_cursor, found[0].start_position)
    begun = [completion for completion in found if completion.display_text.startswith(fragment)]
    clear = begun if len(begun) == 1 else found if len(found) == 1 else []
    texts = [completion.display_text for completion in begun]
    common = os.path.commonprefix(texts)  # noqa: RUF071  # character by character is right here
    menu_is_open = buffer.complete_state is not None
    if clear and (fragment or not clear[0].text.startswith("-")):
        buffer.complete_state = None
        buffer.apply_completion(clear[0])
        _finish_word(buffer)
    elif len(common) > len(fragment):
        buffer.delete_before_cursor(-found[0].start_position)
        buffer.insert_text(quoted(common, False, quote))
    else:
        buffer.complete_state = CompletionState(document, found)
        if menu_is_open:
            buffer.go_to_completion(0)


def _typed(before: str, start: int) -> tuple[str, str]:
    """Return what there is of the word at the cursor, without quotes, and its open quote."""
    if not start:
        return "", ""
    word = tokens(before)[-1]
    first = before[word.start]
    return word.text, first if not word.closed and first in "'\"" else ""


def _finish_word(buffer: Buffer) -> None:
    """Put a space behind a word that is complete."""
    before = buffer.document.text_before_cursor
    found = tokens(before)
    if not found or not found[-1].closed or before.endswith(_UNFINISHED):
        return
    if buffer.document.current_char == " ":
        buffer.cursor_right()
    else:
        buffer.insert_text(" ")


def _at_backslash() -> bool:
    """Say whether the line ends in a backslash, and the cursor stands behind it."""
    document = get_app().current_buffer.document
    return document.is_cursor_at_the_end and goes_on(document.text)


def _outside_quotes() -> bool:
    """Say whether a `?` would be no part of a quoted word or of a Unix command."""
    before = get_app().current_buffer.document.text_before_cursor
    if before.endswith("\\"):
        return False
    found = tokens(before)
    return not found or (found[-1].kind not in ("shell", "comment") and found[-1].closed)
