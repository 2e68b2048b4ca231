"""How soon one can type: the shell's prompt on a terminal, beside an import of its library."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Final

import peers
from figures import OURS, Figure, Goal, Measure, in_turns
from workspace import Workspace, run

LIBRARY: Final = 'python3 -c "import prompt_toolkit"'
INTERPRETER: Final = "python3 -c pass"

_ESCAPE: Final = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|[()][0-9A-Z]|[=>78])")
_PROMPT: Final = re.compile(rb"(^|[\r\n])plxsh[^\r\n]*> *")
_BATCH: Final = 5


def prompt(place: Workspace) -> list[Figure]:
    """From the start of `plxsh` until its prompt is on the terminal."""
    store = place.empty_store("prompt")
    run(*peers.PLXSH, "-s", str(store), "vdi", "create", "disk", "--size", "1G")
    contestants: dict[str, Measure] = {
        OURS: lambda _: _until_prompt(store),
        LIBRARY: lambda _: _python("import prompt_toolkit"),
        INTERPRETER: lambda _: _python("pass"),
    }
    values = in_turns(contestants, place.runs, _BATCH)
    return [Figure("plxsh, until the prompt", "s", values, {LIBRARY: Goal(0.0, 3.0)})]


def _python(code: str) -> float:
    start = time.perf_counter()
    run(sys.executable, "-c", code)
    return time.perf_counter() - start


def _until_prompt(store: Path) -> float:
    """Return the seconds until the shell's prompt comes out of a new pty."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    home = {"HOME": str(store.parent), "TERM": "xterm-256color"}
    start = time.perf_counter()
    process = subprocess.Popen(
        ["setsid", "--ctty", *peers.PLXSH, "-s", str(store)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | home,
    )
    os.close(slave)
    shown = b""
    try:
        while not _PROMPT.search(_ESCAPE.sub(b"", shown)):
            try:
                shown += os.read(master, 65536)
            except OSError as error:  # it ended
                raise RuntimeError(f"no prompt: {shown.decode(errors='replace')}") from error
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()
        os.close(master)
