"""The key that a lock master shares with its clients: named by somebody, or of its own.

A lock master lets nobody in over TCP who shows neither a key nor a certificate, on loopback
as elsewhere: every user of a host reaches that. One that was given neither makes a key of
its own, in a file for its user alone and at a place where the tools of that user look. So
this host's root and that user are let in without more ado, and nobody else is.
"""

from __future__ import annotations

import os
import pwd
import secrets
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from core.device import io_error, make_folder_of
from core.errors import BadRequest, NotFound, ReadOnly

OWN_KEY: Final = "lock_master.key"
"""Name of the key of its own, in the folder where a lock master keeps its state."""

_LEAST: Final = 16
_MOST: Final = 4096
_RANDOM: Final = 32
_NAMED: Final = "name its key with PARALLAX_LOCK_KEY or [lock_master] key"


def read_key(path: str) -> bytes:
    """Read a shared key from a file; white space around it does not count.

    Raises:
        NotFound: there is no such file.
        BadRequest: others may read it, or it is too short or too long.
        IoFailed, ReadOnly: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(_MOST + 1)
    except OSError as error:
        raise io_error(error, f"cannot read the key {path}") from error
    return _checked(path, mode, key)


def _checked(path: str, mode: int, read: bytes) -> bytes:
    """Return the key in what a file holds."""
    key = read.strip()
    if mode & 0o077:
        raise BadRequest(f"others may read the key {path}", f"run 'chmod 600 {path}'")
    if not _LEAST <= len(key) <= _MOST:
        raise BadRequest(
            f"the key {path} has {len(key)} bytes, not {_LEAST} to {_MOST}",
            f"make one: 'openssl rand -base64 32 > {path}'",
        )
    return key


# -- a key of its own --------------------------------------------------------------------


def find_own_key(folders: Iterable[str]) -> bytes:
    """Return the key that a lock master of this user, or of this host, has made.

    Args:
        folders: where to look, the user's own first.

    Raises:
        NotFound: none has made one here.
        ReadOnly: it is another user's.
        BadRequest: others may read or replace it, or it is no key.
        IoFailed: it cannot be read.
    """
    for folder in folders:
        path = os.path.join(folder, OWN_KEY)
        if os.path.lexists(path):
            return _read_own(path)
    raise NotFound("it wants a key, and no lock master has made one here", _NAMED)


def make_own_key(folder: str) -> bytes:
    """Return the key of a lock master of this user, made at its first start.

    It appears whole and readable by this user only, or not at all. Of two starts at once both
    have the same.

    Args:
        folder: where it is; made when it is not there.

    Raises:
        As `find_own_key`, and NoSpace, ReadOnly, IoFailed: it cannot be made there.
    """
    path = os.path.join(folder, OWN_KEY)
    make_folder_of(path)
    if not os.path.lexists(path):
        _refuse_folder(folder)
        try:
            _make(path)
        except OSError as error:
            raise io_error(error, f"cannot make the key {path}") from error
    return _read_own(path)


def _make(path: str) -> None:
    """Write a new key beside its place, then give it its name, unless somebody else did."""
    folder = os.path.dirname(path)
    fd, fresh = tempfile.mkstemp(prefix=f".{OWN_KEY}.", dir=folder)
    try:
        with open(fd, "wb") as file:
            file.write(secrets.token_hex(_RANDOM).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        os.unlink(fresh)


def _read_own(path: str) -> bytes:
    """Read a key that nobody but this user, or root, can have put there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise ReadOnly(
            f"cannot read its key {path}: {error.strerror}",
            f"run this as {_owner(path)}, or {_NAMED}",
        ) from error
    except OSError as error:
        raise io_error(error, f"cannot read the key {path}") from error
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not _is_trusted(found.st_uid):
            raise BadRequest(f"{path} is no key that this user has made", "remove it")
        _refuse_folder(os.path.dirname(path))
        return _checked(path, found.st_mode, file.read(_MOST + 1))


def _refuse_folder(folder: str) -> None:
    """Refuse a folder in which others can put a key of theirs."""
    try:
        found = os.stat(folder)
    except OSError as error:
        raise io_error(error, f"cannot look at {folder}") from error
    if found.st_mode & 0o022 or not _is_trusted(found.st_uid):
        raise BadRequest(
            f"others may replace the key of the lock master in {folder}",
            f"make it this user's, and run 'chmod go-w {folder}'",
        )


def _is_trusted(uid: int) -> bool:
    """Say whether this user relies on what another one has made: root's, and root on all."""
    return os.geteuid() in (0, uid) or uid == 0


def _owner(path: str) -> str:
    """Return who can read a file that this user cannot."""
    try:
        uid = os.lstat(path).st_uid
        return " or ".join(dict.fromkeys((pwd.getpwuid(uid).pw_name, "root")))
    except (OSError, KeyError):
        return "root"
