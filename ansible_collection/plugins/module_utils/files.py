# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Read and replace a configuration file such that no byte changes that was not meant to.

Files are decoded as latin-1, in which every byte is a character and the other way round; `shown`
makes of such a text what people read. A symbolic link stays one: the file behind it is replaced.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import PlxshError

OPTIONS = {
    "backup": {"type": "bool", "default": False},
    "validate": {"type": "str"},
    "unsafe_writes": {"type": "bool", "default": False},
}
"""Options of every module that edits a file; doc_fragments/files.py describes them."""

_MOST = 16 << 20


def shown(text):
    """Return a text that was read as people and JSON want it; bytes that are no UTF-8 are lost."""
    return text.encode("latin-1").decode("utf-8", "replace")


def read(path, missing=None):
    """Return a file as text.

    Args:
        path: the file.
        missing: what to return if it does not exist; None to refuse that.

    Raises:
        PlxshError: it cannot be read.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST:
            raise PlxshError(
                "usage", f"{path} is no file of at most {_MOST >> 20} MiB", "name the right one"
            )
        with open(path, "rb") as file:
            return file.read().decode("latin-1")
    except FileNotFoundError as error:
        if missing is None:
            raise PlxshError(
                "not_found", f"there is no {path}", "make it with its other settings first"
            ) from error
        return missing
    except OSError as error:
        raise PlxshError("io", f"cannot read {path}: {error.strerror}") from error


def write(module, before, after):
    """Put a new text in the place of an old one, whole or not at all; return what to tell.

    Nothing is written in check mode, except a temporary file for the command that validates.
    """
    named = module.params["path"]
    told = {"diff": {"before": shown(before), "after": shown(after)}}
    for side in ("before", "after"):
        told["diff"][side + "_header"] = named
    if before == after:
        return told
    handle, new = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(handle, "wb") as file:
        file.write(after.encode("latin-1"))
    module.add_cleanup_file(new)
    _validate(module, new)
    if module.check_mode:
        return told
    path = os.path.realpath(named)
    if read(path) != before:
        raise PlxshError("in_use", f"{named} was changed by somebody else meanwhile", "run again")
    if module.params["backup"]:
        told["backup_file"] = module.backup_local(path)
    module.atomic_move(new, path, unsafe_writes=module.params["unsafe_writes"])
    return told


def _validate(module, path):
    command = module.params["validate"]
    if not command:
        return
    if "%s" not in command:
        raise PlxshError("usage", f"validate needs a %s for the path: {command}")
    try:
        words = [word.replace("%s", path) for word in shlex.split(command)]
    except ValueError as error:
        raise PlxshError("usage", f"validate cannot be taken apart: {error}: {command}") from error
    status, out, err = module.run_command(words)
    if status != 0:
        why = f"{words[0]} refuses the new file: {(err or out).strip()}"
        raise PlxshError(
            "refused",
            why,
            "nothing was changed",
            words,
            status,
        )
