"""The language of a line: words, quotes, `;`, `|`, `>`, `<`, `!` and `#`.

It is what people know of the Unix shell, and no more: nothing is expanded but a leading
`~`. A part behind `|` or `!` belongs to that shell, which gets it as it stands. Tokens
know where they were, so that the prompt can colour and complete what is half written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from core.errors import BadRequest

Kind = Literal["word", "operator", "shell", "comment"]

_OPERATOR: Final = re.compile(r"&&|\|\||>>|[;\n|<>&]")
_ENDS: Final = (";", "\n", "&&")
_BLANK: Final = " \t\r"
_ESCAPED_IN_QUOTES: Final = '"\\$`\n'
_SAFE: Final = re.compile(r"[\w./:@+,-][\w./:@%+=,-]*")
"""What no shell expands: `=` and `%` only where they do not begin a word."""
_NOT_IN_DOUBLE_QUOTES: Final = re.compile(r'["\\$`!]')
_NOT_IN_SINGLE_QUOTES: Final = re.compile(r"([\\']+)")


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of a line.

    Args:
        kind: a word; an operator; a text for the Unix shell; a comment.
        start: where it begins in the line, in characters.
        end: where it ends.
        text: what it means, without quotes.
        closed: False when a quote in it is still open.
        tilde: it begins with a `~` that is not quoted.
    """

    kind: Kind
    start: int
    end: int
    text: str
    closed: bool = True
    tilde: bool = False

    @property
    def argument(self) -> str:
        """The word as a command gets it."""
        return os.path.expanduser(self.text) if self.tilde else self.text


@dataclass(slots=True)
class Statement:
    """One command of a line.

    Args:
        line: on which line it begins, from 1.
        words: the command and its arguments.
        shell: what comes behind `!`, instead of words.
        pipe: what comes behind `|`: a command of the Unix shell.
        output: the file behind `>` or `>>`.
        append: it was `>>`.
        input: the file behind `<`.
    """

    line: int
    words: list[Token] = field(default_factory=list)
    shell: str | None = None
    pipe: str | None = None
    output: str | None = None
    append: bool = False
    input: str | None = None

    @property
    def arguments(self) -> list[str]:
        """The words as a command gets them."""
        return [word.argument for word in self.words]

    def __bool__(self) -> bool:
        """Say whether there is anything to do."""
        return bool(self.words) or self.shell is not None


def goes_on(text: str) -> bool:
    """Say whether a line ends in a backslash, so that the next one belongs to it."""
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def tokens(text: str) -> list[Token]:
    """Return the tokens of a text of one line or more; never fails."""
    found: list[Token] = []
    at, size = 0, len(text)
    begins = True  # a statement, where `!` means something
    while at < size:
        c = text[at]
        operator = _OPERATOR.match(text, at)
        if c in _BLANK or text.startswith("\\\n", at) or text[at:] == "\\":
            at += 1 if c in _BLANK else 2
            continue
        if c == "#":
            end = _line_end(text, at)
            found.append(Token("comment", at, end, text[at:end]))
        elif c == "!" and begins:
            found.append(Token("operator", at, at + 1, c))
            end = _line_end(text, at)
            found.append(Token("shell", at + 1, end, text[at + 1 : end].strip()))
        elif operator:
            end = operator.end()
            found.append(Token("operator", at, end, operator[0]))
            if operator[0] == "|":
                start, end = end, _shell_end(text, end)
                found.append(Token("shell", start, end, text[start:end].strip()))
        else:
            token = _word(text, at)
            end = token.end
            found.append(token)
        begins = found[-1].text in _ENDS and found[-1].kind == "operator"
        at = end
    return found


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _shell_end(text: str, at: int) -> int:
    """Return where a part for the Unix shell ends: at `;` or a new line, not in quotes."""
    quote = ""
    while at < len(text):
        c = text[at]
        if c == "\\" and quote != "'":
            at += 1
        elif quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in ";\n":
            break
        at += 1
    return min(at, len(text))


def _word(text: str, start: int) -> Token:
    """Return the word that begins at `start`, its quotes and escapes resolved."""
    parts: list[str] = []
    quote = ""
    at, size = start, len(text)
    while at < size:
        c = text[at]
        if c == "\\" and quote != "'":
            following = text[at + 1 : at + 2]
            if quote and following not in _ESCAPED_IN_QUOTES:
                parts.append(c)
            parts.append(following if following != "\n" else "")
            at += 2
            continue
        if quote:
            if c == quote:
                quote = ""
            else:
                parts.append(c)
        elif c in "'\"":
            quote = c
        elif c in _BLANK or _OPERATOR.match(c):
            break
        else:
            parts.append(c)
        at += 1
    at = min(at, size)
    return Token("word", start, at, "".join(parts), not quote, text[start] == "~")


def split(found: Iterable[Token]) -> Iterator[tuple[list[Token], list[Token]]]:
    """Yield for every statement, finished or not, its words and its other tokens.

    The file behind `>` or `<` is one of the others, as is the `;` at the end.
    """
    words: list[Token] = []
    others: list[Token] = []
    for token in found:
        is_file = bool(others) and others[-1].text in (">", ">>", "<")
        is_file = is_file and (not words or words[-1].start < others[-1].start)
        if token.kind == "word" and not is_file:
            words.append(token)
        else:
            others.append(token)
        if token.kind == "operator" and token.text in _ENDS:
            yield words, others
            words, others = [], []
    yield words, others


def statements(text: str) -> list[Statement]:
    """Return the commands of a text of one line or more.

    Raises:
        BadRequest: a quote is not closed, or an operator stands where it cannot.
    """
    found: list[Statement] = []
    line = 1
    now = Statement(line)
    waiting = ""  # the operator whose file comes next
    before: Token | None = None
    for token in tokens(text):
        if waiting and token.kind != "word":
            raise BadRequest(f"no file stands behind '{waiting}'", "as in: vdi list > vdis.txt")
        if not token.closed:
            raise BadRequest(
                f"the quote in {text[token.start : token.end]!r} is not closed",
                "close it, or write \\ before a quote that is meant as such",
            )
        if token.kind == "word" and waiting:
            _redirect(now, waiting, token.argument)
            waiting = ""
        elif token.kind == "word":
            if not now:
                now.line = text.count("\n", 0, token.start) + 1
            now.words.append(token)
        elif token.kind == "shell":
            assert before is not None
            if not token.text:
                raise BadRequest(
                    f"no command stands behind '{before.text}'", f"as in: {_EXAMPLE[before.text]}"
                )
            if before.text == "!":
                now.shell = token.text
            else:
                now.pipe = token.text
        elif token.kind == "operator":
            if token.text in _ENDS:
                found.append(now)
                now = Statement(text.count("\n", 0, token.end) + 1)
            elif token.text == "!":
                now.line = text.count("\n", 0, token.start) + 1
            else:
                _refuse(token, before, now)
                waiting = token.text if token.text in ("<", ">", ">>") else ""
        before = token
    if waiting:
        raise BadRequest(f"no file stands behind '{waiting}'", "as in: vdi list > vdis.txt")
    if any(statement.pipe and statement.output for statement in (*found, now)):
        raise BadRequest("output goes to a file or to a command, not to both", "use | tee FILE")
    return [statement for statement in (*found, now) if statement]


_EXAMPLE: Final = {"!": "!ls", "|": "vdi list | wc -l"}


def _redirect(statement: Statement, operator: str, path: str) -> None:
    if operator == "<":
        statement.input = path
    else:
        statement.output, statement.append = path, operator == ">>"


def _refuse(token: Token, before: Token | None, statement: Statement) -> None:
    """Refuse an operator that this language does not have, or not here."""
    if token.text in ("&", "||"):
        raise BadRequest(
            f"'{token.text}' means nothing here", "put it in quotes, or run it in a Unix shell"
        )
    if not statement:
        raise BadRequest(f"no command stands before '{token.text}'", "as in: vdi list | wc -l")
    if before is not None and before.text in ("1", "2", "&") and before.end == token.start:
        raise BadRequest(
            f"'{before.text}{token.text}' means nothing here",
            "only standard output can be redirected; put a space before '>' if 2 is an argument",
        )


def quoted(word: str, closed: bool = True, quote: str = "") -> str:
    """Return a word as it is to be typed, in quotes only if it needs them.

    It means the same here and at the prompts of sh, bash, zsh and fish, where more than here
    is expanded. Double quotes that were asked for are those of sh alone: at other prompts a
    `!` in them is looked up in the history, and fish does not know the escaped backtick.

    Args:
        word: what it is to mean.
        closed: False leaves the quote open, so that more can be typed.
        quote: the quote to use, needed or not.
    """
    if not quote and (_SAFE.fullmatch(word) or not (word or closed)):
        return word
    if quote == '"' or not (quote or _NOT_IN_DOUBLE_QUOTES.search(word)):
        text = '"' + re.sub(r'(["\\$`])', r"\\\1", word)
        return text + '"' if closed else text
    # In single quotes a backslash is one to sh, half of one to fish: it stands outside.
    literal, *rest = _NOT_IN_SINGLE_QUOTES.split(word)
    text = f"'{literal}"
    for escaped, literal in zip(rest[::2], rest[1::2], strict=True):
        text += "'" + "".join(f"\\{c}" for c in escaped) + f"'{literal}"
    if not closed:
        return text
    return text.removesuffix("'") if rest and not literal else text + "'"
