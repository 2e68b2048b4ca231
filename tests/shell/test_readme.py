"""The README's tour and the quick start are typed into a terminal, and it shows what they say.

A `console` block has lines that begin with "$ ", what follows them is what the terminal
shows. "..." stands for any text within a line, and alone on a line for any lines. What
depends on how mke2fs lays out an image may differ from the page: sizes, the spaces around
them, and the block number that the first snapshot of a page is given.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE = 120
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SIZE = re.compile(r"[\d\\.]+\\ [KM]iB")
_SNAPSHOT = re.compile(r"^(\d+) 0\n")
_DONE = re.compile(r"\x1e(\d+)\n")
_PRIVATE_RUN = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs none /run && mount -t tmpfs none /var/lib && exec "$@"',
    "sh",
)


class Terminal:
    """A shell on a terminal of 80 columns."""

    def __init__(self, folder: Path) -> None:
        self._master, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (24, 80))
        env = {k: v for k, v in os.environ.items() if not k.startswith("PARALLAX_")}
        env |= {
            "PATH": f"{Path(sys.executable).parent}:{env['PATH']}:/usr/sbin:/sbin",
            "XDG_RUNTIME_DIR": str(folder),
            "LC_ALL": "C.UTF-8",
            "NO_COLOR": "1",
        }
        self._shell = subprocess.Popen(
            [*private_run(), "bash", "--norc"],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=terminal,
            stderr=terminal,
            text=True,
        )
        os.close(terminal)

    def type(self, line: str, expected: str) -> tuple[int, str]:
        """Run a command line; return its exit status and what the terminal shows.

        A command in the background is given the time to show what is expected of it.
        """
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{{ {line}\n}} </dev/null; printf '\\036%s\\n' $?\n")
        self._shell.stdin.flush()
        raw, shown = b"", ""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if select.select([self._master], [], [], 0.1)[0]:
                raw += os.read(self._master, 1 << 16)  # maybe half a character, or half a "\r\n"
                shown = raw.decode(errors="replace").replace("\r\n", "\n")
            done = _DONE.search(shown)
            text = shown[: done.start()] + shown[done.end() :] if done else shown
            if done and (not line.endswith("&") or matches(expected, text)):
                return int(done[1]), text
        pytest.fail(f"no end of: {line}\n{shown}")

    def close(self) -> None:
        """End the shell, and with it what it has started."""
        assert self._shell.stdin is not None
        self._shell.stdin.write("kill $(jobs -p) 2>/dev/null; wait\n")
        self._shell.stdin.close()
        os.close(self._master)
        self._shell.wait(PATIENCE)


def private_run() -> Sequence[str]:
    """Return what gives root a /run of its own, so that no service here is disturbed."""
    if os.geteuid() == 0:
        tried = subprocess.run([*_PRIVATE_RUN, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return _PRIVATE_RUN
    return ()


def matches(expected: str, shown: str) -> bool:
    """Say whether the terminal shows what it should; of a line written over, the last counts."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in shown.split("\n")[:-1]]
    shown = "".join(plain(line.replace("\x1b[K", "")) + "\n" for line in lines)
    pattern = ""
    for line in expected.splitlines():
        if line.strip() == "...":
            pattern += "(?:.*\n)*"
        else:
            escaped = ".*".join(map(re.escape, plain(line).split("...")))
            pattern += _SIZE.sub(r"[\\d.]+ [KM]iB", escaped) + "\n"
    return re.fullmatch(pattern, shown) is not None


def plain(line: str) -> str:
    """Return a line with one space where there are several."""
    return " ".join(line.split())


def typed(page: Path) -> Iterator[tuple[str, str]]:
    """Yield each command line of a page, and what the terminal is to show then."""
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        assert block.startswith("$ "), f"a console block begins with a command: {block}"
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, expected = part.partition("\n")
            while line.endswith("\\"):
                more, _, expected = expected.partition("\n")
                line = f"{line[:-1]}{more.removeprefix('> ').lstrip()}"
            yield line, expected


@pytest.mark.parametrize("page", ["README.md", "docs/quick-start.md"])
def test_every_line_does_what_the_page_says(page: str, tmp_path: Path) -> None:
    commands = list(typed(ROOT / page))
    assert len(commands) >= 15
    terminal = Terminal(tmp_path)
    on_page = in_truth = "none yet"
    try:
        for line, expected in commands:
            line, expected = (text.replace(on_page, in_truth) for text in (line, expected))
            status, shown = terminal.type(line, expected)
            first, snapshot = _SNAPSHOT.match(expected), _SNAPSHOT.match(shown)
            if on_page == "none yet" and first and snapshot:
                on_page, in_truth = first[1], snapshot[1]
                expected = expected.replace(on_page, in_truth)
            if line == "parallaxd &":  # it says nothing: wait as a user does
                terminal.type("until plxsh tap list 2>&1 | wc -l | grep -qx 0; do :; done", "")
            assert matches(expected, shown), f"$ {line}\n{shown}\n--- expected\n{expected}"
            refused = f"\n{shlex.split(line)[0]}: " in f"\n{expected}"
            assert (status != 0) == refused, f"exit status {status}: {line}"
    finally:
        terminal.close()
    assert not (tmp_path / "nbd.sock").exists(), "the tap was not ended"


def test_the_pages_name_each_other_and_what_exists() -> None:
    for page in (ROOT / "README.md", ROOT / "docs/quick-start.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
