"""The completion menu of the prompt: what the completer finds, quoted as it must be typed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from plxsh.completer import Candidate, complete, complete_file
from plxsh.interpreter import Interpreter
from plxsh.language import Token, quoted, split, tokens


class Menu(Completer):
    """Completes the word at the cursor.

    Args:
        shell: knows the commands and the names.
    """

    def __init__(self, shell: Interpreter) -> None:
        """Complete nothing yet."""
        self._shell = shell

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterator[Completion]:
        """Yield what may stand at the cursor, the best first."""
        del complete_event  # a menu while typing shows the same as one asked for
        before = document.text_before_cursor
        found = tokens(before)
        at_word = bool(found) and found[-1].kind == "word" and found[-1].end == len(before)
        word = found[-1] if at_word else None
        start = word.start if word else len(before)
        quote = before[start] if word and not word.closed and before[start] in "'\"" else ""
        try:
            candidates = self._candidates(found, word)
        except Exception:  # even a bug must not write over what someone types
            return
        for candidate in candidates:
            text = quoted(candidate.text, not candidate.more, quote)
            yield Completion(
                text, start - len(before), display=candidate.text, display_meta=candidate.meta
            )

    def _candidates(self, found: list[Token], word: Token | None) -> Iterable[Candidate]:
        if found and found[-1].kind in ("shell", "comment"):
            return ()
        words, others = [*split(found)][-1]
        fragment = word.text if word else ""
        if word is None and others and others[-1] is found[-1] and others[-1].text in "<>>":
            return complete_file("")
        if word is not None and word in others:
            return complete_file(fragment)
        finished = [token.argument for token in words if token is not word]
        return complete(self._shell.cli, self._shell.settings, finished, fragment)
