"""Debian packages that tests fetch, several of them perhaps at the same time."""

from __future__ import annotations

import fcntl
import subprocess

import pytest


def have_lists(package: str, factory: pytest.TempPathFactory) -> None:
    """Have apt know of a package; one at a time, since apt refuses the second."""
    with open(factory.getbasetemp().parent / "apt.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if subprocess.run(["apt-cache", "show", package], capture_output=True).returncode:
            subprocess.run(["apt-get", "-qq", "update"], capture_output=True)
