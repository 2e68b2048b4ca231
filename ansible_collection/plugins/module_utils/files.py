# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Read and replace a configuration file such that no byte changes that was not meant to.

Files are decoded as latin-1, in which every byte is a character and the other way round.
"""

from __future__ import annotations

import os
import shlex
import tempfile

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import PlxshError


def read(path, missing=None):
    """Return a file as text.

    Args:
        path: the file.
        missing: what to return if it does not exist; None to refuse that.

    Raises:
        PlxshError: it cannot be read.
    """
    try:
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
    path = module.params["path"]
    told = {"diff": {"before": before, "after": after}}
    for side in ("before", "after"):
        told["diff"][side + "_header"] = path
    if before == after:
        return told
    handle, new = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(handle, "wb") as file:
        file.write(after.encode("latin-1"))
    module.add_cleanup_file(new)
    _validate(module, new)
    if module.check_mode:
        return told
    if read(path) != before:
        raise PlxshError("in_use", f"{path} was changed by somebody else meanwhile", "run again")
    if module.params["backup"]:
        told["backup_file"] = module.backup_local(path)
    module.atomic_move(new, path)
    return told


def _validate(module, path):
    command = module.params["validate"]
    if not command:
        return
    if "%s" not in command:
        raise PlxshError("usage", f"validate needs a %s for the path: {command}")
    words = [word.replace("%s", path) for word in shlex.split(command)]
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
