"""Garbage collection now and then, by a process of its own: no guest waits for it.

The child is a session like any other beside this one. One runs at a time; what it says goes
to the log; it ends when the tap does.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from core.tap.loop import READ, Loop
from core.tap.timers import Timers

logger = logging.getLogger(__name__)

FULL_EVERY: Final = 300.0
"""Seconds between collections because the store was full."""
_FULL_DELAY: Final = 1.0
_GRACE: Final = 10.0
_LINE: Final = 1000


@dataclass(frozen=True)
class Chore:
    """A program to run every so often.

    Attributes:
        command: the program and its arguments; none to run nothing.
        variables: what its environment has beside that of this process.
        every: seconds between its runs, 0 to run it only when it is needed.
    """

    command: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    every: float = 0.0


class Collecting:
    """Runs a command that collects garbage.

    Args:
        chore: the command; between its times it runs when the store was full.
        loop: tells when the child said something or ended.
        timers: begin it.

    Attributes:
        runs: how many ended well.
        failures: how many did not.
    """

    def __init__(self, chore: Chore, loop: Loop, timers: Timers) -> None:
        """Run nothing before `start`."""
        self._chore = chore
        self._loop = loop
        self._timers = timers
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = -1
        self._said = b""
        self._last_full = -FULL_EVERY
        self._closed = False
        self.runs = 0
        self.failures = 0

    @property
    def running(self) -> bool:
        """Whether a collection is under way."""
        return self._child is not None

    def start(self) -> None:
        """Begin the interval."""
        if self._chore.command and self._chore.every:
            self._timers.at(time.monotonic() + self._chore.every, self._due)

    def full(self) -> None:
        """Collect soon, because a request found no room; not more often than `FULL_EVERY`."""
        now = time.monotonic()
        if self._chore.command and now - self._last_full >= FULL_EVERY:
            self._last_full = now
            self._timers.at(now + _FULL_DELAY, self._run)

    def _due(self) -> None:
        self._run()
        self._timers.at(time.monotonic() + self._chore.every, self._due)

    def _run(self) -> None:
        """Begin a collection, unless there is one."""
        if self._child is not None or self._closed:
            return
        try:
            child = subprocess.Popen(
                self._chore.command,
                env=os.environ | self._chore.variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            self.failures += 1
            logger.error("cannot collect garbage: %s", error, extra={"event": "collect_failed"})
            return
        assert child.stdout is not None
        self._child = child
        self._said = b""
        os.set_blocking(child.stdout.fileno(), False)
        self._loop.watch(child.stdout.fileno(), self._hear, READ)
        self._ended = os.pidfd_open(child.pid)
        self._loop.watch(self._ended, self._reap, READ)
        logger.info("collecting garbage", extra={"event": "collecting", "pid": child.pid})

    def _hear(self, _events: int) -> None:
        """Log what the child says, line by line."""
        assert self._child is not None
        assert self._child.stdout is not None
        try:
            said = os.read(self._child.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not said:  # at its end it would be ready all the time
            self._loop.change(self._child.stdout.fileno(), 0)
        *lines, self._said = (self._said + said).split(b"\n")
        for line in lines:
            self._log_line(line)

    def _log_line(self, line: bytes) -> None:
        text = line[:_LINE].decode(errors="replace").strip()
        if text:
            logger.info("collection: %s", text, extra={"event": "collection_said"})

    def _reap(self, _events: int) -> None:
        """Take note of the child's end."""
        child = self._child
        assert child is not None
        assert child.stdout is not None
        self._hear(READ)
        self._log_line(self._said)
        self._forget()
        status = child.wait()
        fields = {"event": "collected", "status": status}
        if status == 0:
            self.runs += 1
            logger.info("collected garbage", extra=fields)
        else:
            self.failures += 1
            logger.warning("the collection ended with status %d", status, extra=fields)

    def _forget(self) -> None:
        child, self._child = self._child, None
        assert child is not None
        assert child.stdout is not None
        self._loop.unwatch(child.stdout.fileno())
        self._loop.unwatch(self._ended)
        os.close(self._ended)
        child.stdout.close()

    def close(self) -> None:
        """Tell the child to end, if there is one; it leaves the store as it was."""
        self._closed = True
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for the child's end; one that does not end is killed."""
        child = self._child
        if child is None:
            return
        self._forget()
        try:
            child.wait(_GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
