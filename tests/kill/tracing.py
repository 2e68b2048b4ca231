"""Run a program under strace: see what it writes and syncs, and make one of these fail.

A point is one call of the program, "the third pwritev". strace counts calls by name in each
thread, so a point of a program with threads may be met by whichever thread is there first.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

WRITES = ("pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate")
SYNCS = ("fdatasync", "fsync")
SOCKETS = ("recvfrom", "sendto", "sendmsg")
PLXSH = (sys.executable, "-m", "plxsh")
KILLED = -9

_LINE = re.compile(r"(?P<pid>\d+) +(?:<\.\.\. \w+ resumed>|(?P<name>\w+)\()(?P<rest>.*)")
_RESULT = re.compile(r"\) += (?P<value>-?\d+|\?)(?: (?P<error>E[A-Z]+))?[^=]*$")


class Point(NamedTuple):
    """The `count`-th call of `name`, counted from 1."""

    name: str
    count: int

    def __str__(self) -> str:
        return f"{self.name} {self.count}"


class Fault(NamedTuple):
    """What happens at a point: `effect` is what strace injects there."""

    effect: str
    lasting: bool = False

    def at(self, point: Point) -> str:
        return f"inject={point.name}:{self.effect}:when={point.count}{'+' if self.lasting else ''}"


KILL = Fault("signal=SIGKILL")
EIO = Fault("error=EIO")
FULL = Fault("error=ENOSPC", lasting=True)


class Call(NamedTuple):
    """One finished call in a log; `start` and `end` are lines of it.

    `result` is None when the program was killed inside. `text` has the arguments.
    """

    thread: str
    name: str
    text: str
    result: int | None
    start: int
    end: int


def strace(
    command: Sequence[str],
    log: Path,
    inject: str | None = None,
    calls: Iterable[str] = (*WRITES, *SYNCS),
    data: int = 0,
) -> list[str]:
    """Return the command line that runs `command` under strace.

    Args:
        command: program and arguments.
        log: where strace writes what it saw.
        inject: a fault, see `Fault.at`.
        calls: what to look at.
        data: so many bytes of each buffer go to the log, as hexadecimal.
    """
    options = ["-f", "-qq", "-y", "-o", str(log), "-e", f"trace={','.join(calls)}"]
    options += ["-xx", "-s", str(data)] if data else ["-s", "0"]
    if inject:
        options += ["-e", inject]
    if inject is None or "signal" not in inject:
        options.append("--seccomp-bpf")  # faster, but then strace injects no signals
    return ["strace", *options, "--", *command]


def run(
    command: Sequence[str], log: Path, inject: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end under strace."""
    line = strace(command, log, inject)
    return subprocess.run(
        line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


def calls_in(log: Path) -> list[Call]:
    """Return the calls in a log in the order in which they began."""
    open_calls: dict[str, tuple[str, str, int]] = {}
    found = []
    number = 0
    for number, line in enumerate(log.read_text().splitlines()):
        match = _LINE.match(line)
        if match is None:
            continue
        pid, rest = match["pid"], match["rest"]
        if match["name"]:
            name, text, start = match["name"], rest, number
        else:
            name, text, start = open_calls.pop(pid)
            text += rest
        if rest.endswith("<unfinished ...>"):
            open_calls[pid] = name, text.removesuffix("<unfinished ...>"), start
            continue
        result = _RESULT.search(text)
        value = int(result["value"]) if result and result["value"] != "?" else None
        found.append(Call(pid, name, text, value, start, number))
    for pid, (name, text, start) in open_calls.items():
        found.append(Call(pid, name, text, None, start, number))
    return sorted(found, key=lambda call: call.start)


def points(log: Path, names: Iterable[str] = (*WRITES, *SYNCS)) -> list[Point]:
    """Return where faults can be put into a program that ran as in this log."""
    counts: Counter[tuple[str, str]] = Counter()
    wanted = set(names)
    found: dict[Point, None] = {}  # in order, and each once
    for call in calls_in(log):
        if call.name in wanted:
            counts[call.thread, call.name] += 1
            found[Point(call.name, counts[call.thread, call.name])] = None
    return list(found)
