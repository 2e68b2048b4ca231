"""What a unit's process may write to: ProtectSystem= and its kin, by mounts of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from units import Unit

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS = 0x20000
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000
MOUNT_SETATTR, HERE, WHOLE_TREE, READ_ONLY = 442, -100, 0x8000, 1
PROTECTED = {
    "strict": ["/"],
    "full": ["/usr", "/boot", "/etc"],
    "yes": ["/usr", "/boot"],
    "true": ["/usr", "/boot"],
}


def enter(unit: Unit, directories: Mapping[str, Iterable[str]]) -> bool:
    """Enter what the unit asks for; False, with a line on standard error, if it cannot be had."""
    try:
        _enter(unit, directories)
    except OSError as error:
        print(f"cannot set up mounts: {error}", file=sys.stderr, flush=True)
        return False
    return True


def _enter(unit: Unit, directories: Mapping[str, Iterable[str]]) -> None:
    read_only = PROTECTED.get(unit.get("ProtectSystem"), []) + unit.words("ReadOnlyPaths")
    writable = unit.words("ReadWritePaths")
    writable += [path for paths in directories.values() for path in paths]
    private_tmp = unit.flag("PrivateTmp")
    if not read_only and not private_tmp:
        return
    _done(LIBC.unshare(NEW_MOUNTS), "unshare")
    _mount("none", "/", "", RECURSIVE | PRIVATE)
    if private_tmp:
        for path in ("/tmp", "/var/tmp"):
            _mount("tmpfs", path, "tmpfs", 0, "mode=1777")
    if "/" in read_only:
        writable += ["/dev", "/proc", *(["/tmp", "/var/tmp"] if private_tmp else [])]
    kept = [path for path in map(_optional, writable) if path]
    for path in kept:
        _mount(path, path, "", BIND | RECURSIVE)
    # The kernel's settings are the outer machine's: they stay read-only on a simulated host.
    for path in filter(None, map(_optional, read_only)):
        _attribute(path, READ_ONLY, 0, WHOLE_TREE)
    for path in kept:
        _attribute(path, 0, READ_ONLY, 0 if path == "/proc" else WHOLE_TREE)


def _optional(path: str) -> str:
    """A path of a list in a unit file: with a dash it may be missing."""
    real = path.lstrip("-+")
    if not os.path.exists(real):
        if path.startswith("-") or real in ("/boot", "/usr", "/etc"):
            return ""
        raise FileNotFoundError(2, "no such path", real)
    return real


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    done = LIBC.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode())
    _done(done, target)


def _attribute(path: str, put: int, clear: int, flags: int) -> None:
    wanted = (ctypes.c_uint64 * 4)(put, clear, 0, 0)
    done = LIBC.syscall(MOUNT_SETATTR, HERE, path.encode(), flags, wanted, ctypes.sizeof(wanted))
    _done(done, path)


def _done(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def remove(path: str) -> None:
    """A runtime directory, when its service has ended."""
    shutil.rmtree(path, ignore_errors=True)
