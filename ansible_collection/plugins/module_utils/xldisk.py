# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""What one entry of the list `disk` in an xl configuration file says, read as xl itself reads it.

libxlutil takes an entry apart from left to right: `key=value`, flags, prefixes such as `phy:`, and
parts without a name, whose meaning depends on what came before. An entry of the original tap
driver, `tap:parallax:0,sda1,w,0`, has one part more than xl takes today, and is understood all the
same.
"""

from __future__ import annotations

import re

_FORMATS = ("raw", "qcow", "qcow2", "qed", "vhd", "empty")
_FORMAT_PREFIXES = ("raw", "qcow", "qcow2", "vhd")
_SCRIPT_PREFIXES = ("iscsi", "nbd", "enbd", "drbd")
_OTHER_PREFIXES = ("tap", "tap2", "tapdisk", "aio", "ioemu", "file", "phy")
_PREFIX = re.compile("(" + "|".join(_FORMAT_PREFIXES + _SCRIPT_PREFIXES + _OTHER_PREFIXES) + "):")
_UNKNOWN_PREFIX = re.compile("([a-z][a-z0-9]*):(?![a-z0-9])")

_TEXTS = ("backend", "vdev", "script", "active-disk", "hidden-disk", "colo-host", "colo-export")
"""Keys that are given once; an empty value counts as none."""
_CHOICES = {
    "format": {"": "raw", **{name: name for name in _FORMATS}},
    "backendtype": {name: name for name in ("phy", "tap", "qdisk", "standalone")},
    "specification": {name: name for name in ("xen", "virtio")},
}
"""Keys that may be repeated with the same value, and what their values mean."""
_SWITCHES = {
    "access": {"r": "ro", "ro": "ro", "w": "rw", "rw": "rw", "": "rw"},
    "devtype": {"cdrom": "cdrom", "disk": "disk"},
    "grant_usage": {"0": "no", "1": "yes"},
}
"""Keys of which the last one counts, and what their values mean."""
_FLAGS = {
    "cdrom": ("devtype", "cdrom"),
    "direct-io-safe": ("direct-io-safe", "yes"),
    "discard": ("discard", "yes"),
    "no-discard": ("discard", "no"),
    "colo": ("colo", "yes"),
    "no-colo": ("colo", "no"),
    "trusted": ("trusted", "yes"),
    "untrusted": ("trusted", "no"),
}
"""Words of which the last of each kind counts, and what they mean."""
_PORT = re.compile(r"\s*[+-]?0*[1-9]")
_DEFAULTS = {"format": "raw", "access": "rw", "devtype": "disk", "backend": "0"}
_HISTORIC = "tap:parallax:"

_NUMBER = r"\+?(?:0[xX][0-9a-fA-F]+|[0-9]+)"
_NUMBERED = re.compile(f"({_NUMBER})")
_DISK_AND_PARTITION = re.compile(f"d({_NUMBER})p({_NUMBER})")
_NAMED = re.compile("(xvd|hd|sd)([a-z]{1,5})([1-9][0-9]{0,2})?")
_MOST = {"xvd": ((1 << 20) - 1, 255), "hd": (3, 63), "sd": (15, 15)}
"""The last disk and the last partition of a kind of name."""
_MOST_OF_ALL = 0x7FFFFFFF
_EXTENDED = 1 << 28
"""In the numbers of Xen's disks and partitions from the 16th on."""


# -- devices -----------------------------------------------------------------------------


def device_of(vdev):
    """Return the number of a device, which is the same however it is written.

    The first disk is xvda, d0p0, 51712, 0xca00 and some more to libxl, which takes the name of a
    disk or partition, its place, and the number that the guest sees. What is none of them is
    returned as it is.
    """
    named, placed = _NAMED.fullmatch(vdev), _DISK_AND_PARTITION.fullmatch(vdev)
    if named is not None:
        number = _number_of(named[1], _disk_of(named[2]), int(named[3] or 0))
    elif placed is not None:
        number = _number_of("xvd", _integer(placed[1]), _integer(placed[2]))
    else:
        number = _integer(vdev) if _NUMBERED.fullmatch(vdev) else None
        if number is not None and number > _MOST_OF_ALL:
            number = None
        if number is not None and number >= _EXTENDED:  # the first 16 have two
            number = _number_of("xvd", (number - _EXTENDED) >> 8, number & 255) or number
    return vdev if number is None else number


def _number_of(kind, disk, partition):
    """Return the number of a partition, 0 for the whole disk; None if there is none."""
    if disk is None or partition is None or disk > _MOST[kind][0] or partition > _MOST[kind][1]:
        return None
    if kind == "hd":
        return (3 if disk < 2 else 22) << 8 | (disk & 1) << 6 | partition
    if kind == "sd":
        return 8 << 8 | disk << 4 | partition
    if disk > 15 or partition > 15:
        return _EXTENDED | disk << 8 | partition
    return 202 << 8 | disk << 4 | partition


def _disk_of(letters):
    """Return which disk letters stand for: a is 0, z 25, aa 26."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def _integer(text):
    """Return what C reads in a number: octal behind a 0, hexadecimal behind 0x; None if nothing."""
    digits = text.lstrip("+")
    octal = digits.startswith("0") and digits.isdigit()
    try:
        return int(digits, 8 if octal else 0)
    except ValueError:
        return None


# -- entries -----------------------------------------------------------------------------


def described(entry):
    """Return what a disk says, by the names that xl gives the parts, as xl reads it.

    Raises:
        ValueError: xl would refuse it or fail on it later, and it is no historic entry.
    """
    if "\\" in entry:
        raise ValueError("a disk with a backslash is not understood")
    found = _Reader(entry).found
    for key in ("vdev", "script"):
        if found.get(key, "") != found.get(key, "").strip():
            raise ValueError(f"xl takes the space in {key}={found[key]!r} for a part of it")
    if found.get("devtype") == "cdrom":
        found["access"] = "ro"
        if not found.get("target"):
            found["format"] = "empty"
    elif "target" not in found:
        raise ValueError("it has no target, and is no CD drive")
    if "vdev" not in found:
        raise ValueError("it has no vdev")
    return found


class _Reader:
    """Takes an entry apart.

    Attributes:
        found: what it says.
    """

    def __init__(self, entry):
        self.found = {}
        self._prefix = ""
        self._has_access = False
        rest = entry.lstrip(" \t")
        while rest:
            rest = self._read(rest).lstrip(" \t")

    def _read(self, rest):
        """Take one part, and return what is behind it."""
        prefix, unknown = _PREFIX.match(rest), _UNKNOWN_PREFIX.match(rest)
        if prefix is not None:
            self._prefixed(prefix[1])
            return rest[prefix.end() :]
        if unknown is not None:
            raise ValueError(f"{unknown[0]} is no prefix that xl knows")
        part, behind = (*rest.split(",", 1), "")[:2]
        key, equals, value = part.partition("=")
        if equals and key == "target":  # swallows everything behind it
            value = rest[len("target=") :]
            self._text(key, value[:-1] if value.endswith(",") else value)
            return ""
        if equals:
            self._keyed(key, value)
        elif part in _FLAGS:
            key, value = _FLAGS[part]
            self.found[key] = value
        else:
            self._positional(part)
        return behind

    def _prefixed(self, name):
        self._prefix = name + ":"
        if name in _FORMAT_PREFIXES:
            self._choice("format", name)
        elif name in _SCRIPT_PREFIXES:
            self._text("script", "block-" + name)

    def _keyed(self, key, value):
        if key in _TEXTS:
            self._text(key, value)
        elif key in _CHOICES:
            self._choice(key, value)
        elif key in _SWITCHES:
            self.found[key] = self._meaning(key, value, _SWITCHES[key])
        elif key == "colo-port":
            if _PORT.match(value) is None:
                raise ValueError(f"{value!r} is no colo-port")
            self.found[key] = value
        else:
            raise ValueError(f"{key!r} is no parameter that xl knows")

    def _text(self, key, value):
        if self.found.get(key):
            raise ValueError(f"{key} is given twice, as {self.found[key]!r} and as {value!r}")
        self.found[key] = value

    def _choice(self, key, value):
        meaning = self._meaning(key, value, _CHOICES[key])
        if self.found.setdefault(key, meaning) != meaning:
            raise ValueError(f"{key} is given twice, as {self.found[key]!r} and as {value!r}")

    @staticmethod
    def _meaning(key, value, meanings):
        if value not in meanings:
            raise ValueError(f"{value!r} is no {key} that xl knows")
        return meanings[value]

    def _positional(self, part):
        """Take a part that has no name: what it is depends on what is known already."""
        found = self.found
        if "target" not in found:
            found["target"] = part and self._prefix + part
        elif "format" not in found and not self._prefix:
            if ":" in part and not found["target"]:  # an empty CD drive, without a format
                self._vdev(part)
                found["format"] = "empty"
            else:
                self._choice("format", part)
        elif "vdev" not in found:
            self._vdev(part)
        elif not self._has_access:
            self._has_access = True
            self._keyed("access", part)
        elif found["target"].startswith(_HISTORIC) and "backend" not in found:
            found["backend"] = part
        else:
            raise ValueError(f"there are too many parts: {part!r}")

    def _vdev(self, part):
        vdev, colon, kind = part.rpartition(":")  # hdc:cdrom
        if not colon:
            vdev = part
        self._text("vdev", vdev)
        if colon:
            self._keyed("devtype", kind)


def is_parallax(entry):
    """Say whether a disk is one of Parallax, of today or of the original tap driver."""
    told = described(entry)
    return told.get("script") == "block-plx" or told.get("target", "").startswith(_HISTORIC)


def same(entry, other):
    """Say whether two texts describe the same disk, in whatever order and words."""
    one, two = ({**_DEFAULTS, **described(text)} for text in (entry, other))
    return {**one, "vdev": device_of(one["vdev"])} == {**two, "vdev": device_of(two["vdev"])}
