# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Edit one disk in the configuration file of a Xen domain, and no other byte.

The grammar is that of xl: `name = value` or `name += value`, ended by a newline or a semicolon; a
value is a text, a number or a list. What xl could not read is refused with its line number, also
what looks like Python: guessing what an expression comes to would damage a file some day.
"""

from __future__ import annotations

import re

from ansible_collections.parallax.storage.plugins.module_utils.xldisk import (
    described,
    device_of,
    same,
)

_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\r]+)
    | (?P<comment>\#[^\n]*)
    | (?P<end>[\n;])
    | (?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    | (?P<number>[0-9][0-9a-fx]*)
    | (?P<name>[a-z][0-9a-z_]*)
    | (?P<assign>\+?=)
    | (?P<open>\[)
    | (?P<close>\])
    | (?P<comma>,)
    """,
    re.VERBOSE,
)


class Refused(Exception):
    """The file cannot be edited safely; the message begins with the number of a line."""

    def __init__(self, text, position, why):
        line = text.count("\n", 0, position) + 1
        super().__init__(f"line {line}: {why}")
        self.line = line


class Token:
    """A piece of the file: what it is, and from where to where."""

    def __init__(self, kind, start, end):
        self.kind = kind
        self.start = start
        self.end = end


class Disks:
    """A list that is assigned to `disk`.

    Args:
        start: position of the assignment.
        opened, closed: positions of its brackets.
        items: the tokens of its texts.
        commas: position of the comma behind each, None where there is none.
    """

    def __init__(self, start, opened):
        self.start = start
        self.opened = opened
        self.closed = None
        self.items = []
        self.commas = []


class Config:
    """The text of a file, taken apart.

    Args:
        text: the file, decoded such that encoding it gives the same bytes.

    Raises:
        Refused: xl could not read it, or `disk` is assigned in a way that hides an entry.
    """

    def __init__(self, text):
        self.text = text
        self.lists = []
        self._comments = []
        self._returns = False
        self._tokens = self._scan()
        self._at = 0
        self._read()

    @property
    def entries(self):
        """All disks: pairs of a list and the index in it."""
        return [(disks, index) for disks in self.lists for index in range(len(disks.items))]

    def entry(self, place):
        """Return the text of a disk, without its quotes."""
        token = place[0].items[place[1]]
        return self.text[token.start + 1 : token.end - 1]

    def find(self, vdev):
        """Return the place of the disk with a device name, None for none; raises Refused."""
        found = [place for place in self.entries if self.device(place) == device_of(vdev)]
        if len(found) > 1:
            lines = " and ".join(str(self.line(place)) for place in found)
            raise Refused(
                self.text, self._start(found[1]), f"there are several {vdev}, in lines {lines}"
            )
        return found[0] if found else None

    def line(self, place):
        """Return the number of the line in which a disk stands."""
        return self.text.count("\n", 0, self._start(place)) + 1

    def _start(self, place):
        return place[0].items[place[1]].start

    def device(self, place):
        """Return the device that a disk is for, under one name for all that it has."""
        try:
            return device_of(described(self.entry(place)).get("vdev"))
        except ValueError as error:
            raise Refused(self.text, self._start(place), str(error)) from error

    @property
    def unreadable(self):
        """What xl would stumble over although it is plain what is meant, None for nothing."""
        if self._returns:
            return "xl does not read lines that end with CRLF: convert the file to LF"
        if self._comments and self.text.endswith(self._comments[-1]):
            return "xl wants a newline at the end of the file, behind the comment"
        return None

    @property
    def besides(self):
        """All that stands in the file beside its disks: comments, and what is assigned."""
        told = list(self._comments)
        for token in self._tokens:
            inside = any(disks.start <= token.start <= disks.closed for disks in self.lists)
            if token.kind != "end" and not inside:
                told.append(self.text[token.start : token.end])
        return told

    # -- reading -------------------------------------------------------------------------

    def _refuse(self, token, why):
        raise Refused(self.text, token.start, why)

    def _scan(self):
        tokens = []
        at = 0
        if "\0" in self.text:
            raise Refused(self.text, self.text.index("\0"), "xl does not understand a NUL byte")
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                shown = self.text[at : at + 20].split("\n")[0]
                raise Refused(self.text, at, f"xl does not understand {shown!r}")
            if match.lastgroup == "comment":
                self._comments.append(match[0])
            elif match.lastgroup == "space":
                self._returns = self._returns or "\r" in match[0]
            else:
                tokens.append(Token(match.lastgroup, at, match.end()))
            at = match.end()
        tokens.append(Token("end", at, at))
        return tokens

    def _next(self):
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _expect(self, kind, what):
        token = self._next()
        if token.kind != kind:
            self._refuse(token, f"{what} is missing before {self._shown(token)}")
        return token

    def _shown(self, token):
        return repr(self.text[token.start : token.end]) if token.kind != "end" else "the end"

    def _read(self):
        while self._at < len(self._tokens):
            token = self._next()
            if token.kind == "end":
                continue
            if token.kind != "name":
                self._refuse(token, f"{self._shown(token)} begins no assignment")
            name = self.text[token.start : token.end]
            assign = self._expect("assign", "=")
            plus = assign.end - assign.start == 2
            self._assignment(name, token, plus)
            self._expect("end", f"the end of the assignment to {name}")

    def _assignment(self, name, token, plus):
        value = self._next()
        if value.kind == "open":
            disks = self._list(token.start, value, name == "disk")
            if name == "disk":
                if self.lists and not plus:
                    self._refuse(token, "disk is assigned again, which drops the disks above")
                self.lists.append(disks)
        elif value.kind not in ("string", "number"):
            self._refuse(value, f"{self._shown(value)} is no value")
        elif name == "disk":
            self._refuse(value, "disk is no list")

    def _list(self, start, opened, flat):
        disks = Disks(start, opened.start)
        while True:
            token = self._skip_ends()
            if token.kind == "close":
                disks.closed = token.start
                return disks
            if token.kind == "open" and not flat:
                self._list(start, token, False)
            elif token.kind != "string" and (flat or token.kind != "number"):
                self._refuse(token, f"{self._shown(token)} is no text of a list")
            disks.items.append(token)
            disks.commas.append(None)
            token = self._skip_ends()
            if token.kind == "comma":
                disks.commas[-1] = token.start
            elif token.kind == "close":
                disks.closed = token.start
                return disks
            else:
                self._refuse(token, f"a comma is missing before {self._shown(token)}")

    def _skip_ends(self):
        """Return the next token that is no newline; a list may not go on behind a semicolon."""
        while True:
            token = self._next()
            last = self._at == len(self._tokens)
            if token.kind != "end":
                return token
            if last or self.text[token.start] == ";":
                self._refuse(token, "a list has no end")

    # -- writing -------------------------------------------------------------------------

    def replaced(self, place, entry):
        """Return the file with another text for one disk."""
        token = place[0].items[place[1]]
        quote = self.text[token.start]
        return self._with(token.start, token.end, f"{quote}{entry}{quote}")

    def added(self, entry):
        """Return the file with one more disk, behind the others and laid out as they are."""
        quoted = f"'{entry}'"
        if not self.lists:
            return self._with_statement(f"disk = [ {quoted} ]")
        disks = self.lists[-1]
        if not disks.items:
            tail = " " if self.text[disks.opened + 1] == "]" else ""
            return self._with(disks.opened + 1, disks.opened + 1, f" {quoted}{tail}")
        last, comma = disks.items[-1], disks.commas[-1]
        end = last.end if comma is None else comma + 1
        begin = self.text.rfind("\n", 0, last.start) + 1
        indent = self.text[begin : last.start]
        first = "" if comma is not None else ","
        trailing = "," if comma is not None else ""
        if indent.strip(" \t"):  # other things stand before it in its line
            return self._with(end, end, f"{first} {quoted}{trailing}")
        stop = self._end_of_line(end)
        new = f"{self._newline()}{indent}{quoted}{trailing}"
        if disks.closed < stop:  # the bracket closes in the same line
            return self._with(end, end, first + new)
        return self.text[:end] + first + self.text[end:stop] + new + self.text[stop:]

    def removed(self, place):
        """Return the file without one disk; a comment behind it stays."""
        disks, index = place
        token, comma = disks.items[index], disks.commas[index]
        gap = "" if comma is None else self.text[token.end : comma]
        if gap.strip(" \t"):  # a comment or a newline stands between it and its comma
            return self.text[: token.start] + gap + self.text[comma + 1 :]
        start, end = token.start, token.end if comma is None else comma + 1
        begin, stop = self.text.rfind("\n", 0, start) + 1, self._end_of_line(end)
        before, behind = self.text[begin:start], self.text[end:stop]
        if not before.strip(" \t") and not behind.strip(" \t") and stop < len(self.text):
            return self._with(begin, self.text.index("\n", stop) + 1, "")  # all of its line
        if comma is not None:
            end += len(behind) - len(behind.lstrip(" \t"))
        elif index and not self.text[disks.commas[index - 1] + 1 : start].strip(" \t"):
            start = disks.commas[index - 1]  # in one line: [ 'a', 'b' ] becomes [ 'a' ]
        elif index == 0 and before.endswith(" "):
            start -= 1  # [ 'a' ] becomes [ ]
        return self._with(start, end, "")

    def _with(self, start, end, new):
        return self.text[:start] + new + self.text[end:]

    def _with_statement(self, statement):
        newline = self._newline()
        gap = "" if not self.text or self.text.endswith("\n") else newline
        return f"{self.text}{gap}{statement}{newline}"

    def _newline(self):
        """Return what ends most lines of the file."""
        return "\r\n" if self.text.count("\r\n") * 2 > self.text.count("\n") else "\n"

    def _end_of_line(self, position):
        """Return where the line of a position ends, before its CRLF or newline."""
        found = self.text.find("\n", position)
        if found < 0:
            return len(self.text)
        return found - 1 if self.text[found - 1] == "\r" and found > position else found


def entry_of(line):
    """Return the text of the only disk in a line such as `disk = [ '...' ]`; raises Refused."""
    config = Config(line)
    (place,) = config.entries
    return config.entry(place)


def edited(text, vdev, entry):
    """Return a file with one disk changed, added, or removed if `entry` is None.

    The result is read again: all other disks and all other assignments must be as before.

    Raises:
        Refused: see `Config` and `Config.find`.
    """
    config = Config(text)
    place = config.find(vdev)
    if place is None:
        after = text if entry is None else config.added(entry)
    elif entry is None:
        after = config.removed(place)
    elif same(config.entry(place), entry):
        after = text
    else:
        after = config.replaced(place, entry)
    _check(config, Config(after), vdev, entry)
    return after


def _check(before, after, vdev, entry):
    others = [
        [config.entry(p) for p in config.entries if config.device(p) != device_of(vdev)]
        for config in (before, after)
    ]
    place = after.find(vdev)
    right = place is None if entry is None else place and same(after.entry(place), entry)
    if others[0] != others[1] or before.besides != after.besides or not right:
        raise Refused(before.text, 0, "the edited file would not say what was asked for")
