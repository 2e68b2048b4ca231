# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Edit one disk in the configuration file of a Xen domain, and no other byte.

The grammar is that of xl: `name = value` or `name += value`, ended by a newline or a semicolon; a
value is a text, a number or a list. What xl could not read is refused with its line number, also
what looks like Python: guessing what an expression comes to would damage a file some day.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\r]+)
    | (?P<comment>\#[^\n]*)
    | (?P<end>[\n;])
    | (?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    | (?P<number>[0-9][0-9a-fA-FxX]*)
    | (?P<name>[A-Za-z_][0-9A-Za-z_]*)
    | (?P<assign>\+?=)
    | (?P<open>\[)
    | (?P<close>\])
    | (?P<comma>,)
    """,
    re.VERBOSE,
)
_OLD_PREFIX = re.compile(r"(?:phy|file|aio|tap2?|qcow2?|vhd|vdi|drbd|nbd|iscsi):")
_FORMATS = ("raw", "qcow", "qcow2", "qed", "vhd", "empty")
_BARE = {"r": ("access", "ro"), "ro": ("access", "ro"), "w": ("access", "rw")}
_BARE.update(rw=("access", "rw"), cdrom=("devtype", "cdrom"))
_DEFAULTS = {"format": "raw", "access": "rw", "devtype": "disk", "backend": "0"}


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
        opened, closed: positions of its brackets.
        items: the tokens of its texts.
        commas: position of the comma behind each, None where there is none.
    """

    def __init__(self, opened):
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
        found = [p for p in self.entries if _vdev_of(self._described(p)) == vdev]
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

    def _described(self, place):
        try:
            return described(self.entry(place))
        except ValueError as error:
            raise Refused(self.text, self._start(place), str(error)) from error

    # -- reading -------------------------------------------------------------------------

    def _refuse(self, token, why):
        raise Refused(self.text, token.start, why)

    def _scan(self):
        tokens = []
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                shown = self.text[at : at + 20].split("\n")[0]
                raise Refused(self.text, at, f"xl does not understand {shown!r}")
            if match.lastgroup not in ("space", "comment"):
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
            disks = self._list(value, name == "disk")
            if name == "disk":
                if self.lists and not plus:
                    self._refuse(token, "disk is assigned again, which drops the disks above")
                self.lists.append(disks)
        elif value.kind not in ("string", "number"):
            self._refuse(value, f"{self._shown(value)} is no value")
        elif name == "disk":
            self._refuse(value, "disk is no list")

    def _list(self, opened, flat):
        disks = Disks(opened.start)
        while True:
            token = self._skip_ends()
            if token.kind == "close":
                disks.closed = token.start
                return disks
            if token.kind == "open" and not flat:
                self._list(token, False)
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


def _vdev_of(described_disk):
    return described_disk.get("vdev")


def described(entry):
    """Return what a disk says, by the names that xl gives the parts.

    Raises:
        ValueError: there are parts that xl does not have.
    """
    if "\\" in entry:
        raise ValueError("a disk with a backslash is not understood")
    found = {}
    rest = entry
    names = ["target", "format", "vdev", "access"]
    while rest.strip():
        part, behind = (*rest.split(",", 1), "")[:2]
        part = part.strip()
        key, equals, value = part.partition("=")
        if equals and re.fullmatch(r"[a-z-]+", key):
            if key == "target":  # swallows everything behind it
                found["target"] = rest.lstrip()[len("target=") :].strip()
                break
            found[key] = value
        elif part in _BARE and "target" in found:
            name, value = _BARE[part]
            found[name] = value
        else:
            _positional(found, names, part)
        rest = behind
    if "access" in found:
        found["access"] = _BARE.get(found["access"], ("", found["access"]))[1]
    return found


def _positional(found, names, part):
    while names and names[0] in found:
        names.pop(0)
    if names and names[0] == "format" and part and part not in _FORMATS:
        names.pop(0)  # only historic entries leave the format out
        while names and names[0] in found:
            names.pop(0)
    historic = found.get("target", "").startswith("tap:parallax:")
    if not names and historic and "backend" not in found:
        found["backend"] = part
        return
    if not names:
        raise ValueError(f"there are too many parts: {part!r}")
    name = names.pop(0)
    if name == "target" and _OLD_PREFIX.match(part):
        names[:] = ["vdev", "access"]  # the prefix is the format
    if name == "vdev":
        part = part.partition(":")[0]  # hdc:cdrom
    if part:
        found[name] = part


def is_parallax(entry):
    """Say whether a disk is one of Parallax, of today or of the original tap driver."""
    told = described(entry)
    return told.get("script") == "block-plx" or told.get("target", "").startswith("tap:parallax:")


def same(entry, other):
    """Say whether two texts describe the same disk, in whatever order."""
    return {**_DEFAULTS, **described(entry)} == {**_DEFAULTS, **described(other)}


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
        [config.entry(p) for p in config.entries if _vdev_of(config._described(p)) != vdev]
        for config in (before, after)
    ]
    place = after.find(vdev)
    right = place is None if entry is None else place and same(after.entry(place), entry)
    if others[0] != others[1] or not right:
        raise Refused(before.text, 0, "the edited file would not say what was asked for")
