"""Files, folders and devices that a path may become, in folders of any size.

A folder is read until a deadline: from one with a hundred thousand files, or on a disk
that hangs, one gets what was read by then.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from core.text import human_size

_DEADLINE: Final = 0.1
_LOOK_AT_CLOCK: Final = 256


@dataclass(frozen=True, slots=True)
class PathEntry:
    """One entry of a folder.

    Args:
        path: as it is to be typed; that of a folder ends in `/`.
        name: its last part, which is what a typed name is compared with.
        is_folder: it is one, or a link to one.
    """

    path: str
    name: str
    is_folder: bool

    def describe(self) -> str:
        """Return what it is: `folder`, the size of a file, `device`."""
        if self.is_folder:
            return "folder"
        try:
            status = os.stat(self.path)
        except OSError:
            return ""
        if stat.S_ISREG(status.st_mode):
            return human_size(status.st_size)
        return "device" if stat.S_ISBLK(status.st_mode) else "special"


def split(fragment: str) -> tuple[str, str]:
    """Return the folder of a path, as it was typed but with `~` resolved, and the rest."""
    folder, slash, name = fragment.rpartition("/")
    if fragment.startswith("~"):
        if not slash:
            return os.path.expanduser(fragment) + "/", ""
        return os.path.expanduser(folder) + slash, name
    return folder + slash, name


def entries(fragment: str, only_folders: bool = False) -> list[PathEntry]:
    """Return what is in the folder in which `fragment` ends, by name.

    Hidden entries are there once the dot is typed.

    Args:
        fragment: the beginning of a path.
        only_folders: leave out everything else.
    """
    folder, name = split(fragment)
    hidden = name.startswith(".")
    found = [
        PathEntry(folder + entry.name + "/" * is_folder, entry.name, is_folder)
        for entry, is_folder in _scan(folder or ".")
        if (is_folder or not only_folders) and entry.name.startswith(".") <= hidden
    ]
    return sorted(found, key=lambda entry: entry.name)


def _scan(folder: str) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """Yield the entries of a folder, and whether each is a folder, until the deadline."""
    deadline = time.monotonic() + _DEADLINE
    try:
        with os.scandir(folder) as listing:
            for count, entry in enumerate(listing):
                if count % _LOOK_AT_CLOCK == 0 and time.monotonic() > deadline:
                    return
                if entry.name.isprintable():
                    yield entry, entry.is_dir()
    except (OSError, ValueError):
        return
