# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Run plxsh from the controller, there or through ssh: for plugins, which have no module.

Only what asks is run from here; what changes something is left to modules.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import Plxsh, PlxshError

VARIABLES = (
    "parallax_store",
    "parallax_lock_master",
    "parallax_cache",
    "parallax_plxsh",
    "parallax_ssh",
)
"""Variables that stand for options; doc_fragments/controller.py says for which."""


def asking(option):
    """Return a `Plxsh` with the options of a plugin.

    Args:
        option: returns the value of an option by its name; doc_fragments/controller.py has them.

    Raises:
        PlxshError: the options name no program.
    """
    if not option("plxsh"):
        raise PlxshError("usage", "plxsh is an empty list", "name the program")
    return _Asking(option)


def told(error):
    """Return what plxsh said, with the hint, for people."""
    return error.returned()["msg"]


class _Options:
    """As much of a module as `Plxsh` wants to know."""

    check_mode = False

    def __init__(self, option):
        names = ("store", "lock_master", "config", "wait")
        self.params = {name: option(name) for name in names}
        self.params.update(plxsh=option("plxsh")[0], cache=option("cache_mode"))

    def get_bin_path(self, name):
        """Leave the name as it is: the PATH that counts may be that of another host."""
        return name


class _Asking(Plxsh):
    """plxsh behind other words, or on another host."""

    def __init__(self, option):
        super().__init__(_Options(option))
        self._words = option("plxsh")
        self._ssh = option("ssh")
        self._timeout = option("timeout")

    def _execute(self, command):
        words = [*self._words, *command[1:]]
        if self._ssh:
            words = [*self._ssh, shlex.join(words)]
        try:
            return _finish(words, self._timeout)
        except OSError as error:
            raise PlxshError(
                "no_plxsh",
                f"cannot run {words[0]}: {error.strerror}",
                "install it on the controller, or say with plxsh or ssh where it is",
                words,
            ) from error


def _finish(words, timeout):
    """Run a command; after `timeout` seconds end it and all that it has started."""
    with subprocess.Popen(
        words,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that nothing can ask on the terminal
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return 1, "", f"no answer within {timeout} seconds to {shlex.join(words)}"
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
