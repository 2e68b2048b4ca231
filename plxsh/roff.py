"""Man pages as text: man(7) macros, escapes, and the fonts that man pages use.

Words of a help text get their font by what they look like: options and commands are bold,
what a user replaces is italic. Nothing that reaches the page can be taken for a macro.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

_ESCAPES: Final = str.maketrans(
    {
        "\\": r"\e",
        "'": r"\(aq",
        "`": r"\(ga",
        "^": r"\(ha",
        "~": r"\(ti",
    }
)
_USAGE: Final = re.compile(r"[A-Za-z]\w*(?:[.@:-]\w+)*|--?[a-z][\w-]*")
_SENTENCE: Final = re.compile(r"(?<=\S\.) +(?=[A-Z\"(\[\\])")


def escape(text: str) -> str:
    """Return running text that shows as it is; a hyphen may be typeset as one."""
    plain = text.translate(_ESCAPES)
    return "".join(c if c.isascii() else rf"\[u{ord(c):04X}]" for c in plain)


def literal(text: str) -> str:
    """Return what is typed: a hyphen can be copied to a command line."""
    return escape(text).replace("-", r"\-")


def bold(text: str) -> str:
    """Return what is typed, in bold."""
    return rf"\fB{literal(text)}\fR"


def italic(text: str) -> str:
    """Return what stands for something else, in italic."""
    return rf"\fI{literal(text)}\fR"


def usage(text: str) -> str:
    """Return usage: lower case is typed, upper case replaced, brackets are left alone."""
    parts = []
    end = 0
    for word in _USAGE.finditer(text):
        parts.append(literal(text[end : word.start()]))
        parts.append((italic if word[0].isupper() else bold)(word[0]))
        end = word.end()
    return "".join([*parts, literal(text[end:])])


class Prose:
    """Gives the words of help texts their fonts.

    Args:
        commands: first words of commands, such as `plxsh` and `vdi_list`.
        replaced: upper-case words that stand for something else, such as `NAME`.
    """

    def __init__(self, commands: Collection[str], replaced: Collection[str]) -> None:
        """Build one pattern of everything that has a font."""
        names = "|".join(re.escape(name) for name in sorted(commands, key=len, reverse=True))
        words = "|".join(re.escape(word) for word in sorted(replaced, key=len, reverse=True))
        self._special = re.compile(
            rf"(?<!\w)'(?P<quoted>(?:{names})(?: [^']*)?)'(?!\w)"
            r"|(?<![\w-])(?P<option>--?[A-Za-z][\w-]*)"
            r"|(?P<dash>(?<!\S)-(?=[ ,]))"
            r"|(?P<compound>\b[A-Z]+(?:[.@:|][A-Z]+)+\b)"
            r"|(?P<path>(?<!\S)(?:[~/]|\$[A-Z_]+/)[\w./-]*\w)"
            r"|(?P<plain>\b[\w-]+\.[a-z]{2,6}\b|\bCtrl-\w\b)"
            rf"|(?<![\w/-])(?P<page>(?:{names}))\((?P<section>\d)\)"
            rf"|\b(?P<replaced>{words or '(?!)'})\b"
        )

    def __call__(self, text: str) -> str:
        """Return a paragraph, one line of source for each sentence."""
        parts = []
        end = 0
        for found in self._special.finditer(text):
            parts.append(escape(text[end : found.start()]))
            parts.append(self._font(found))
            end = found.end()
        marked = "".join([*parts, escape(text[end:])])
        return "\n".join(map(guard, _SENTENCE.sub("\n", marked).split("\n")))

    def _font(self, found: re.Match[str]) -> str:
        kind = found.lastgroup
        if kind == "section":
            return f"{bold(found['page'])}({found['section']})"
        word = found[kind or 0]
        if kind in ("quoted", "option", "dash"):
            return bold(word)
        return literal(word) if kind == "plain" else italic(word)


def guard(line: str) -> str:
    """Keep a line that begins with a dot or a quote from being a macro."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


class Page:
    """One man page; what is written to it is roff already, except titles.

    Args:
        name: such as `plxsh-vdi`.
        section: of the manual, such as 1.
        date: of the release, or empty.
        source: what it comes from, such as `Parallax 0.1.0`.
    """

    def __init__(self, name: str, section: int, date: str, source: str) -> None:
        """Begin the page."""
        self._lines = [
            rf".\" Written by scripts/manpages.py from the help of {name}.",
            f'.TH {literal(name)} {section} "{date}" "{source}" "Parallax manual"',
            ".nh",  # names and options stay in one piece
            ".ad l",
        ]

    def heading(self, title: str) -> None:
        """Begin a section."""
        self._lines.append(f".SH {literal(title)}")

    def name(self, name: str, purpose: str) -> None:
        """Write the line that `whatis` and `apropos` know a page by, without fonts."""
        first = purpose[0] if purpose[1:2].isupper() else purpose[0].lower()
        self._lines.append(rf"{literal(name)} \- {escape(first + purpose[1:])}")

    def subheading(self, title: str) -> None:
        """Begin a part of a section; `title` is roff."""
        self._lines.append(f".SS {title}")

    def paragraph(self, text: str) -> None:
        """Write a paragraph."""
        self._begin_paragraph()
        self._lines.append(text)

    def item(self, tag: str, text: str) -> None:
        """Write what something means."""
        self._lines += [".TP", tag, text]

    def items(self, items: Iterable[tuple[str, str]]) -> None:
        """Write what short things mean, without space between them."""
        self._lines.append(".PD 0")
        for tag, text in items:
            self.item(tag, text)
        self._lines.append(".PD")

    def lines(self, texts: Iterable[str]) -> None:
        """Write lines of roff, each on a line of its own."""
        self._lines.append(".nf")
        self._lines += map(guard, texts)
        self._lines.append(".fi")

    def verbatim(self, texts: Iterable[str]) -> None:
        """Write lines as they are typed, indented."""
        self._begin_paragraph()
        self._lines.append(".RS 4")
        self.lines(literal(text) for text in texts)
        self._lines.append(".RE")

    def references(self, pages: Iterable[tuple[str, int]]) -> None:
        """Write the names and sections of other pages."""
        self._lines.append(",\n".join(f"{bold(name)}({section})" for name, section in pages))

    def _begin_paragraph(self) -> None:
        """Begin a paragraph, unless a heading has just done that."""
        if not self._lines[-1].startswith((".SH ", ".SS ")):
            self._lines.append(".PP")

    def text(self) -> str:
        """Return the whole page."""
        return "\n".join(self._lines) + "\n"
