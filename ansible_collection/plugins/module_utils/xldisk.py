# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""What one entry of the list `disk` in an xl configuration file says, read as xl itself reads it.

libxlutil takes an entry apart from left to right: `key=value`, prefixes such as `phy:`, and parts
without a name, whose meaning depends on what came before. An entry of the original tap driver,
`tap:parallax:0,sda1,w,0`, has one part more than xl takes today, and is understood all the same.
"""

from __future__ import annotations

import re

_PREFIX = re.compile(r"(?:raw|qcow2?|vhd|iscsi|e?nbd|drbd|tap2?|tapdisk|aio|ioemu|file|phy):")
_KEY = re.compile(r"([a-z][-a-z0-9]*)=(.*)", re.DOTALL)
_FLAGS = ("cdrom", "direct-io-safe", "discard", "no-discard", "colo", "no-colo")
_KEYS = ("format", "devtype", "access", "backend", "backendtype", "vdev", "script")
_KEYS += ("colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk")
_KEYS += ("specification", "transport", "grant_usage")
_FORMATS = ("raw", "qcow", "qcow2", "qed", "vhd", "empty", "")
_ACCESS = {"r": "ro", "ro": "ro", "w": "rw", "rw": "rw"}
_DEFAULTS = {"format": "raw", "access": "rw", "devtype": "disk", "backend": "0"}
_HISTORIC = "tap:parallax:"
_NUMBERED = re.compile(r"d([0-9]{1,7})p([0-9]{1,3})")


def device_of(vdev):
    """Return one name for all that xl has for a device: d0p1 is xvda1, d26p0 is xvdaa."""
    match = _NUMBERED.fullmatch(vdev or "")
    if match is None:
        return vdev
    number, letters = int(match[1]), ""
    while number >= 0:
        letters = chr(ord("a") + number % 26) + letters
        number = number // 26 - 1
    return "xvd" + letters + (match[2].lstrip("0"))


def described(entry):
    """Return what a disk says, by the names that xl gives the parts, as xl reads it.

    Raises:
        ValueError: xl would refuse it or fail on it later, and it is no historic entry.
    """
    if "\\" in entry:
        raise ValueError("a disk with a backslash is not understood")
    found = {}
    rest = entry.lstrip(" \t")
    prefix = ""
    while rest:
        match = _PREFIX.match(rest)
        if match is not None:  # it stands for the format
            prefix = match[0]
            rest = rest[match.end() :]
        elif rest.startswith("target="):  # swallows everything behind it
            target = rest[len("target=") :]
            _set(found, "target", target[:-1] if target.endswith(",") else target)
            rest = ""
        else:
            part, rest = (*rest.split(",", 1), "")[:2]
            _part(found, part, prefix)
        if match is None:
            rest = rest.lstrip(" \t")
    for key in ("vdev", "script", "format", "access"):
        if found.get(key, "") != found.get(key, "").strip():
            raise ValueError(f"xl takes the space in {key}={found[key]!r} for a part of it")
    if "format" in found and found["format"] not in _FORMATS:
        raise ValueError(f"{found['format']!r} is no format that xl knows")
    if "access" in found:
        if found["access"] not in _ACCESS:
            raise ValueError(f"{found['access']!r} is no access that xl knows")
        found["access"] = _ACCESS[found["access"]]
    return found


def _set(found, key, value):
    if found.setdefault(key, value) != value:
        raise ValueError(f"{key} is given twice, as {found[key]!r} and as {value!r}")


def _part(found, part, prefix):
    match = _KEY.fullmatch(part)
    if match is not None and match[1] in _KEYS:
        _set(found, match[1], match[2])
    elif match is not None:
        raise ValueError(f"{match[1]} is no parameter that xl knows")
    elif part == "cdrom":
        found["devtype"] = "cdrom"
    elif part in _FLAGS:
        found[part] = "yes"
    else:
        _positional(found, part, prefix)


def _positional(found, part, prefix):
    """Take a part that has no name: what it is depends on what is known already."""
    if "target" not in found:
        found["target"] = prefix + part
    elif "format" not in found and not prefix:
        found["format"] = part
    elif "vdev" not in found:
        vdev, colon, kind = part.partition(":")  # hdc:cdrom
        if colon and kind not in ("cdrom", "disk"):
            raise ValueError(f"{kind!r} in {part!r} is no type of device")
        found["vdev"] = vdev
        if colon:
            found["devtype"] = kind
    elif "access" not in found:
        found["access"] = part
    elif found["target"].startswith(_HISTORIC) and "backend" not in found:
        found["backend"] = part
    else:
        raise ValueError(f"there are too many parts: {part!r}")


def is_parallax(entry):
    """Say whether a disk is one of Parallax, of today or of the original tap driver."""
    told = described(entry)
    return told.get("script") == "block-plx" or told.get("target", "").startswith(_HISTORIC)


def same(entry, other):
    """Say whether two texts describe the same disk, in whatever order."""
    return {**_DEFAULTS, **described(entry)} == {**_DEFAULTS, **described(other)}
