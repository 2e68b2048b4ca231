# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Where the elements of an XML file stand in it, so that one can be changed and no other byte.

The file is told in its own encoding as one of UTF-8, on which expat and all positions work. A
document type is refused: it could define entities, and a small file would become a huge one.
"""

from __future__ import annotations

import codecs
import re
from xml.parsers import expat

_DECLARED = re.compile(rb"<\?xml[^>]*?\sencoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']")
_ENCODINGS = re.compile(r"utf-8|ascii|iso8859-\d+|cp125\d|utf-16(-le|-be)?")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ATTRIBUTE = rb"\s+([^\s=]+)\s*=\s*(\"[^\"]*\"|'[^']*')"
_START_TAG = re.compile(rb"<[^\s/>]+(?:" + _ATTRIBUTE + rb")*\s*/?>")
_DEEPEST = 200


class Refused(Exception):
    """The file cannot be edited safely; the message begins with the number of a line."""

    def __init__(self, line, why):
        super().__init__(f"line {line}: {why}")
        self.line = line


class Element:
    """One element: its name and attributes, and where it stands.

    Args:
        start, head: where its start tag begins, and where that ends.
        tail, end: where its end tag begins, and where that ends; `head` when it has none.
    """

    def __init__(self, name, attributes, start, head):
        self.name = name
        self.attributes = attributes
        self.start = start
        self.head = head
        self.tail = head
        self.end = head
        self.children = []

    def named(self, name):
        """Return the children of a name."""
        return [child for child in self.children if child.name == name]

    def child(self, name):
        """Return the first child of a name, None if there is none."""
        return next(iter(self.named(name)), None)


class Xml:
    """A file, taken apart.

    Args:
        raw: all its bytes.

    Raises:
        Refused: it is no well-formed XML, or of a kind that cannot be edited safely.
    """

    def __init__(self, raw):
        self._mark, self._encoding = _encoding(raw)
        try:
            text = raw[len(self._mark) :].decode(self._encoding)
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, len(self._mark) + error.start) + 1
            raise Refused(line, f"this is not {self._encoding}, as the file says") from error
        self.data = text.encode("utf-8")
        if self.encoded(self.data) != raw:
            raise Refused(
                1, f"{self._encoding} has several ways to write this; convert it to UTF-8"
            )
        if b"\0" in self.data:
            line = self._line(self.data.index(b"\0"))
            raise Refused(line, "a NUL byte is no XML; UTF-16 needs a byte order mark")
        self.root = None
        self._events = []
        self._open = []
        self._parse()

    def encoded(self, data):
        """Return the file that has these contents, in its own encoding."""
        text = data.decode("utf-8")
        return self._mark + text.encode(self._encoding, "xmlcharrefreplace")

    def line(self, element):
        """Return the number of the line in which an element begins."""
        return self._line(element.start)

    def _line(self, position):
        return self.data.count(b"\n", 0, position) + 1

    def text(self, element):
        """Return an element as it is written."""
        return self.data[element.start : element.end].decode("utf-8")

    def value(self, element, name):
        """Return where an attribute's value stands, with its quotes; None if there is none."""
        begin = element.start + 1 + len(element.name.encode())
        for match in re.finditer(_ATTRIBUTE, self.data[begin : element.head]):
            if match[1].decode() == name:
                return begin + match.start(2), begin + match.end(2)
        return None

    def is_empty(self, element):
        """Say whether an element is one tag, `<devices/>`."""
        return self.data[element.head - 2 : element.head] == b"/>"

    # -- reading -------------------------------------------------------------------------

    def _parse(self):
        parser = expat.ParserCreate("utf-8")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._doctype
        parser.CharacterDataHandler = lambda text: self._events.append(("text", text))
        parser.CommentHandler = lambda text: self._events.append(("comment", text))
        parser.StartCdataSectionHandler = lambda: self._events.append(("cdata", ""))
        parser.ProcessingInstructionHandler = lambda *told: self._events.append(("program", told))
        self._parser = parser
        try:
            parser.Parse(self.data, True)
        except expat.ExpatError as error:
            line = self._line(parser.ErrorByteIndex)
            why = expat.ErrorString(error.code)
            raise Refused(line, f"this is no XML: {why}") from error
        finally:
            self._parser = None

    def _start(self, name, attributes):
        at = self._parser.CurrentByteIndex
        if len(self._open) == _DEEPEST:
            raise Refused(self._line(at), f"elements are nested more than {_DEEPEST} deep")
        match = _START_TAG.match(self.data, at)
        element = Element(name, attributes, at, match.end())
        self._events.append(("start", element))
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, _name):
        element = self._open.pop()
        self._events.append(("end", element))
        if not self.is_empty(element):
            element.tail = self._parser.CurrentByteIndex
            element.end = self.data.index(b">", element.tail) + 1

    def _doctype(self, *_told):
        line = self._line(self._parser.CurrentByteIndex)
        raise Refused(line, "a document type is not understood; take the line out")

    # -- comparing -----------------------------------------------------------------------

    def besides(self, left_out):
        """Return all that the file says without some elements, whatever its layout."""
        told = []
        text = ""
        inside = None
        for kind, what in self._events:
            if inside is not None:
                if kind == "end" and what is inside:
                    inside = None
            elif kind == "start" and what in left_out:
                inside = what
            elif kind == "text":
                text += what
            else:
                told += [" ".join(text.split()), _plain(kind, what)]
                text = ""
        return [part for part in told if part]


def _plain(kind, what):
    if kind == "start":
        return kind, what.name, what.attributes
    return (kind, what.name) if kind == "end" else (kind, what)


def _encoding(raw):
    """Return the byte order mark of a file and the name of its encoding; raises Refused."""
    mark, marked = next((pair for pair in _MARKS if raw.startswith(pair[0])), (b"", ""))
    head = raw[len(mark) : 1024]
    match = _DECLARED.match(head.replace(b"\0", b"") if marked.startswith("utf-16") else head)
    said = match[1].decode() if match else marked or "utf-8"
    try:
        name = codecs.lookup(said).name
    except LookupError:
        name = ""
    if not _ENCODINGS.fullmatch(name):
        raise Refused(1, f"the encoding {said} is not understood; convert the file to UTF-8")
    if (marked and not marked.startswith(name)) or (not marked and name.startswith("utf-16")):
        raise Refused(1, f"the file says that it is {said}, and its first bytes say that it is not")
    return mark, marked or name
