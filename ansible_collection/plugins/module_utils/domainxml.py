# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Edit one disk in the XML of a libvirt domain, and no other byte.

A disk that is one of Parallax already is changed where it differs: what else it has, such as its
address on the bus, stays as it is written. Another one is replaced, and keeps what belongs to the
machine and not to the image.
"""

from __future__ import annotations

import re

from ansible_collections.parallax.storage.plugins.module_utils.xmltext import Refused, Xml

_KEPT = ("address", "alias", "blockio", "boot", "iotune", "product", "serial", "vendor", "wwn")
"""What a disk keeps when it gets another image."""
_OUR_SOCKET = "/parallax/nbd.sock"
_TAG = re.compile(r"<[^<>]*>")
_COMMENTS = re.compile(rb"(?:[ \t]*<!--.*?-->)*", re.DOTALL)


class Domain:
    """The XML of a domain, taken apart.

    Args:
        raw: all bytes of the file.

    Raises:
        Refused: it is not the XML of one domain, or cannot be edited safely.
    """

    def __init__(self, raw):
        self.xml = Xml(raw)
        self.root = self.xml.root
        if self.root.name != "domain":
            self._refuse(self.root, f"this is no domain but <{self.root.name}>")
        devices = self.root.named("devices")
        if len(devices) > 1:
            self._refuse(devices[1], "there are several <devices>")
        self.devices = devices[0] if devices else None
        self.disks = self.devices.named("disk") if self.devices else []
        for element in [self.root, *devices, *self.disks]:
            if "xmlns" in element.attributes:
                self._refuse(element, f"libvirt sees no <{element.name}> with an xmlns")

    def find(self, target):
        """Return the disk with a target, None for none; raises Refused."""
        found = [disk for disk in self.disks if self._target(disk) == target]
        if len(found) > 1:
            lines = " and ".join(str(self.xml.line(disk)) for disk in found)
            self._refuse(found[1], f"there are several {target}, in lines {lines}")
        return found[0] if found else None

    def text(self, disk):
        """Return a disk as it is written, empty for None."""
        return "" if disk is None else self.xml.text(disk)

    def _refuse(self, element, why):
        raise Refused(self.xml.line(element), why)

    def _target(self, disk):
        targets = disk.named("target")
        if len(targets) > 1:
            self._refuse(targets[1], "a disk has several targets")
        return targets[0].attributes.get("dev") if targets else None

    # -- writing -------------------------------------------------------------------------

    def removed(self, disk):
        """Return the contents without a disk, and without its lines if they are empty then."""
        data = self.xml.data
        begin, stop = data.rfind(b"\n", 0, disk.start) + 1, data.find(b"\n", disk.end)
        if not data[begin : disk.start].strip() and stop >= 0 and not data[disk.end : stop].strip():
            return data[:begin] + data[stop + 1 :]
        return data[: disk.start] + data[disk.end :]

    def added(self, element):
        """Return the contents with one more disk, behind the others and laid out as they are."""
        if self.devices is None:
            return self._inside(self.root, f"<devices>{element}</devices>")
        before = self.disks or self.devices.named("emulator")
        return self._behind(before[-1], element) if before else self._inside(self.devices, element)

    def replaced(self, disk, element):
        """Return the contents with another disk in the place of one."""
        new = Xml(element.encode()).root
        old_bus, new_bus = (each.child("target").attributes.get("bus") for each in (disk, new))
        kept = [
            self.xml.text(child)
            for child in disk.children
            if child.name in _KEPT and (child.name != "address" or old_bus == new_bus)
        ]
        text = self._laid_out(element, self._indent(disk.start), kept)
        return self._spliced([(disk.start, disk.end, text)])

    def merged(self, disk, element):
        """Return the contents with what an element says in a disk; the same if it says so."""
        wanted = Xml(element.encode())
        gone = [] if wanted.root.named("readonly") else disk.named("readonly")
        if "bus" in self._unlike(disk.child("target"), wanted.root.child("target")):
            gone += disk.named("address")
        changes = list(self._changes(disk, wanted, wanted.root))
        return self._spliced(changes + [self._without(child) for child in gone])

    def _changes(self, old, wanted, new):
        """Yield what is to be changed in an element: where, and what is to stand there."""
        for name in self._unlike(old, new):
            at = self.xml.value(old, name)
            if at is None:
                end = old.head - (2 if self.xml.is_empty(old) else 1)
                yield end, end, f" {name}={_quoted(new.attributes[name])}"
            else:
                yield (*at, _quoted(new.attributes[name]))
        for child in new.children:
            present = old.child(child.name)
            if present is not None:
                yield from self._changes(present, wanted, child)
            else:
                last = old.children[-1]
                text = self._line(last.start) + wanted.text(child)
                yield last.end, last.end, text

    @staticmethod
    def _unlike(old, new):
        """Return the attributes that are to have another value."""
        usual = {"device": "disk"} if old.name == "disk" else {}
        had = {**usual, **old.attributes}
        return [name for name, value in new.attributes.items() if had.get(name) != value]

    def _without(self, child):
        before = self.xml.data[: child.start]
        begin = len(before if self._indent(child.start) is None else before.rstrip())
        return begin, child.end, ""

    def _behind(self, element, text):
        indent = self._indent(element.start)
        end = element.end
        if indent is not None:  # a comment behind an element in its line belongs to it
            end = _COMMENTS.match(self.xml.data, end).end()
        return self._spliced([(end, end, self._line(element.start) + self._laid_out(text, indent))])

    def _inside(self, parent, text):
        """Put an element into one that has nothing of its kind, before what else is in it."""
        around = self._indent(parent.start)
        indent = None if around is None else around + self._unit()
        first = next(iter(parent.children), None)
        if first is not None and parent is self.root:
            return self._behind(parent.children[-1], text)
        if first is not None:
            indent = self._indent(first.start)
        new = self._laid_out(text, indent)
        begin = "" if indent is None else self._newline() + indent
        close = "" if around is None else self._newline() + around
        if self.xml.is_empty(parent):
            end = parent.head - 2
            bare = len(self.xml.data[:end].rstrip())
            whole = f">{begin}{new}{close}</{parent.name}>"
            return self._spliced([(bare, parent.head, whole)])
        if self.xml.data[parent.head : parent.tail]:
            close = ""
        return self._spliced([(parent.head, parent.head, begin + new + close)])

    def _laid_out(self, text, indent, more=()):
        """Return an element with a line for each tag, or as it is where no lines are kept.

        Args:
            more: texts to put before its end, each as it is.
        """
        *tags, last = _TAG.findall(text)
        if indent is None:
            return "".join([*tags, *more, last])
        lines, depth = [], 0
        for tag in tags:
            depth -= tag.startswith("</")
            lines.append(self._unit() * depth + tag)
            depth += not tag.startswith("</") and not tag.endswith("/>")
        lines += [self._unit() * depth + one for one in more]
        return (self._newline() + indent).join([*lines, last])

    def _unit(self):
        """Return one step of indentation."""
        steps = [self._indent(child.start) for child in self.root.children[:1]]
        return steps[0] if steps and steps[0] else "  "

    def _indent(self, position):
        """Return what stands before a position in its line, None if that is more than space."""
        begin = self.xml.data.rfind(b"\n", 0, position) + 1
        before = self.xml.data[begin:position].decode("utf-8")
        return before if begin and not before.strip(" \t") else None

    def _line(self, position):
        """Return what begins a line like that of a position, nothing where lines are not kept."""
        indent = self._indent(position)
        return "" if indent is None else self._newline() + indent

    def _newline(self):
        data = self.xml.data
        return "\r\n" if data.count(b"\r\n") * 2 > data.count(b"\n") else "\n"

    def _spliced(self, splices):
        data = self.xml.data
        for start, end, text in sorted(splices, reverse=True):
            data = data[:start] + text.encode() + data[end:]
        return data


def _quoted(value):
    for character, reference in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&apos;")):
        value = value.replace(character, reference)
    return "'" + re.sub(r"[\t\n\r]", lambda found: f"&#{ord(found[0])};", value) + "'"


def is_parallax(disk, socket=None):
    """Say whether a disk is one of Parallax: on the socket of a tap, the usual one or `socket`."""
    sources = disk.named("source")
    if disk.attributes.get("type") != "network" or len(sources) != 1:
        return False
    hosts = sources[0].named("host")
    if sources[0].attributes.get("protocol") != "nbd" or len(hosts) != 1:
        return False
    path = hosts[0].attributes.get("socket", "")
    return hosts[0].attributes.get("transport") == "unix" and (
        path == socket or path.endswith(_OUR_SOCKET)
    )


def socket_of(element):
    """Return the socket of the tap in an element that plxsh has printed."""
    return Xml(element.encode()).root.child("source").child("host").attributes["socket"]


def edited(raw, target, element):
    """Return a file with one disk changed, added, or removed if `element` is None.

    The result is read again: all else must say what it said.

    Raises:
        Refused: see `Domain` and `Domain.find`.
    """
    domain = Domain(raw)
    disk = domain.find(target)
    if element is not None and domain.root.attributes.get("type") == "xen":
        raise Refused(
            domain.xml.line(domain.root), "libvirt gives no NBD disk to a Xen domain; use xl"
        )
    if disk is None:
        data = domain.xml.data if element is None else domain.added(element)
    elif element is None:
        data = domain.removed(disk)
    elif is_parallax(disk, socket_of(element)):
        data = domain.merged(disk, element)
    else:
        data = domain.replaced(disk, element)
    after = domain.xml.encoded(data)
    _check(domain, Domain(after), target, element)
    return after


def _check(before, after, target, element):
    sides = []
    for domain in (before, after):
        left_out = [domain.find(target)]
        if before.devices is None and domain.devices is not None:
            left_out.append(domain.devices)
        sides.append(domain.xml.besides(left_out))
    disk = after.find(target)
    if element is None:
        right = disk is None
    else:
        right = disk is not None and after.merged(disk, element) == after.xml.data
    if sides[0] != sides[1] or not right:
        raise Refused(1, "the edited file would not say what was asked for")
