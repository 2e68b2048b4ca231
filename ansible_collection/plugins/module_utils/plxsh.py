# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Run `plxsh -o json` on the managed host: the one way in which modules reach a store.

Check mode is the dry run of plxsh itself, which goes through the whole command on a copy in
memory. So it refuses what the command would refuse, and predicts what the command would do.
"""

from __future__ import annotations

import json
import os
import tempfile
import time

ARGUMENTS = {
    "store": {"type": "path", "required": True},
    "lock_master": {"type": "str"},
    "cache": {"type": "str", "choices": ["host", "none"]},
    "config": {"type": "path"},
    "plxsh": {"type": "path", "default": "plxsh"},
    "wait": {"type": "int", "default": 10},
}
"""Options of every module; doc_fragments/plxsh.py describes them."""

_BUSY = ("in_use", "too_early")
_PAUSE = 0.25
_INTO_FILES = 'exec </dev/null >"$0" 2>"$1"; shift; exec "$@"'
_CANNOT_RUN = (126, 127)  # of the shell


class PlxshError(Exception):
    """What plxsh said when it did not do something.

    Args:
        code: a word for the kind of error, such as not_found or in_use.
        message: what was wrong.
        hint: what to do next, or empty.
        command: the words of the command.
        status: its exit status.
    """

    def __init__(self, code, message, hint="", command=(), status=2):
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.command = command
        self.status = status

    def returned(self):
        """Return the arguments of `fail_json`."""
        told = f"{self.message} ({self.hint})" if self.hint else self.message
        return {
            "msg": told,
            "code": self.code,
            "hint": self.hint,
            "cmd": list(self.command),
            "rc": self.status,
        }


def arguments(**own):
    """Return the argument spec of a module: what all have, and its own."""
    return {**ARGUMENTS, **own}


class Plxsh:
    """plxsh with the options that a task was given.

    Args:
        module: the AnsibleModule.
        store: the blockstore.
    """

    def __init__(self, module, store=None):
        self._module = module
        self.dry = module.check_mode
        given = module.params
        path = given["plxsh"]
        # A path is taken as it is; a name is looked up as the shell would.
        self._program = path if "/" in path else module.get_bin_path(path)
        self._options = ["-o", "json", "-q", "--store", store or given["store"]]
        for name in ("lock_master", "cache", "config"):
            if given[name]:
                self._options += ["--" + name.replace("_", "-"), given[name]]
        self._wait = given["wait"]

    def ask(self, *words):
        """Run a command that changes nothing and return its answer; raises PlxshError."""
        return self._run([], words)

    def change(self, *words):
        """Run a command that changes something, or try it in check mode; raises PlxshError."""
        return self._run(["-n"] if self.dry else [], words)

    def change_surely(self, *words):
        """Run a command as `change`; it does not ask before data is lost."""
        return self._run(["-n"] if self.dry else ["-y"], words)

    def _run(self, options, words):
        if self._program is None:
            raise PlxshError(
                "no_plxsh",
                f"there is no {self._module.params['plxsh']} in the PATH of this host",
                "install Parallax there, or name the program with the option plxsh",
            )
        command = [self._program, *self._options, *options, *words]
        end = time.monotonic() + self._wait
        while True:
            try:
                return self._once(command)
            except PlxshError as error:
                # A command of somebody else holds the store for less than a second.
                if error.code not in _BUSY or time.monotonic() + _PAUSE > end:
                    raise
            time.sleep(_PAUSE)

    def _once(self, command):
        return answer(command, *self._execute(command))

    def _execute(self, command):
        """Run a command and return its exit status, output and errors; raises PlxshError."""
        # Into files: run_command loses what a command writes into its pipes and ends between the
        # look at the pipes, each second, and that at the process. What plxsh made could not be
        # told then.
        with tempfile.TemporaryDirectory(dir=self._module.tmpdir) as folder:
            paths = [os.path.join(folder, name) for name in ("out", "err")]
            status = self._module.run_command(
                ["/bin/sh", "-c", _INTO_FILES, *paths, *command],
                environ_update={"PYTHONIOENCODING": "utf-8"},
                expand_user_and_vars=False,
            )[0]
            out, err = (_text(path) for path in paths)
        if status in _CANNOT_RUN:
            raise PlxshError(
                "no_plxsh",
                f"cannot run {self._program}: {err.strip().rpartition(': ')[2]}",
                "install Parallax there, or name the program with the option plxsh",
                command,
                status,
            )
        return status, out, err


def _text(path):
    """Return what a program has written, empty if it did not come to that."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def answer(command, status, out, err):
    """Return what plxsh answered.

    Args:
        command: its words.
        status: how it ended.
        out: what it wrote.
        err: its errors.

    Raises:
        PlxshError: it did not do it, or answered something else.
    """
    if status != 0:
        raise _error(err, command, status)
    found = _document(out)
    if found is None:
        raise PlxshError("no_json", f"plxsh answered no JSON: {out!r}", "", command, 0)
    return found


def _document(text):
    """Return the last line of a text as a JSON object, None if it is none."""
    lines = text.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _error(text, command, status):
    told = (_document(text) or {}).get("error")
    if isinstance(told, dict):
        return PlxshError(
            told.get("code", "error"),
            told.get("message", ""),
            told.get("hint", ""),
            command,
            status,
        )
    last = (text.strip().splitlines() or ["it said nothing"])[-1]
    return PlxshError("error", f"plxsh failed: {last}", "", command, status)


def lookup(plxsh, vdi):
    """Return what plxsh knows of a VDI, None if there is none; raises PlxshError."""
    try:
        return plxsh.ask("vdi", "show", "--", vdi)["vdi"]
    except PlxshError as error:
        if error.code != "not_found":
            raise
    plxsh.ask("store", "info")  # raises if it is the store that is not there
    return None


def snapshots_of(plxsh, vdi):
    """Return the snapshots of a VDI, newest first; raises PlxshError."""
    return plxsh.ask("snap", "list", "--", vdi)["snapshots"]


def delete_snapshot(plxsh, vdi, snapshot):
    """Delete a snapshot; return false if somebody else was faster. Raises PlxshError."""
    try:
        plxsh.change_surely("snap", "delete", f"{vdi}@{snapshot_id(snapshot)}")
    except PlxshError as error:
        if error.code != "not_found":
            raise
        return False
    return True


def snapshot_id(snapshot):
    """Return the id of a snapshot as plxsh reads it."""
    return f"{snapshot['block']}.{snapshot['offset']}"


def run(module, work):
    """Do the work of a module and leave with its result, or with what plxsh said."""
    try:
        result = work(module)
    except PlxshError as error:
        module.fail_json(**error.returned())
    module.exit_json(**result)
