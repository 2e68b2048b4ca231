"""Lock masters and their clients on real sockets, with leases short enough to wait for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.lock_epoch import Epochs, Start
from core.lock_service import LockService
from core.lock_timing import Timing

SHORT = Timing(lease=8.0, worst_io=1.0, skew=0.25, margin=1.0)
"""For tests in which leases end; a process may stand still for some seconds without that."""
ROOT = Path(__file__).parents[2]
KEY = b"a key of more than sixteen bytes"


class FreshEpochs:
    """For masters in tests that nothing has to wait for."""

    uuid = ""

    def __init__(self, epoch: int = 1) -> None:
        self._epoch = epoch

    def start(self, hold: float) -> Start:  # noqa: ARG002
        return Start(self._epoch, 0.0)

    def raise_to(self, epoch: int) -> None:
        pass

    def settle(self) -> None:
        pass


@contextmanager
def service(
    unix: str = "",
    listen: tuple[str, int] | None = None,
    epochs: Epochs | None = None,
    **options: Any,
) -> Iterator[LockService]:
    """Run a lock master; on TCP it wants KEY, unless it is told what else."""
    options.setdefault("timing", SHORT)
    if listen is not None and "tls" not in options:
        options.setdefault("key", KEY)
    master = LockService(unix, listen, epochs=epochs or FreshEpochs(), **options)
    try:
        master.start()
        yield master
    finally:
        master.close()


def soon(is_so: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something is so; the time is only a limit for what never comes."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


CLIENT = """
import json, sys, time
from core import lock_connection
from core.errors import ParallaxError
from core.lock_connection import LockConnection
lock_connection.FIRST = 60.0
locks = LockConnection(sys.argv[1], "another process", key=sys.argv[2].encode)
grants = {}
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    word, *rest = json.loads(line)
    try:
        if word == "acquire":
            grants[rest[0]] = locks.acquire(*rest[:1], wait=rest[1])
            said = grants[rest[0]].token
        elif word == "check":
            grants[rest[0]].check()
            said = "valid"
        elif word == "release":
            said = grants.pop(rest[0]).release()
        elif word == "lost":
            said = locks.is_lost()
    except ParallaxError as error:
        said = f"{error.code}: {error}"
    print(json.dumps(said), flush=True)
locks.close()
"""


class Process:
    """A session in a process of its own."""

    def __init__(self, address: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, address, KEY.decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self._heard() == "ready"

    def say(self, *words: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._heard()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def _heard(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)


@contextmanager
def process(address: str) -> Iterator[Process]:
    other = Process(address)
    try:
        yield other
    finally:
        other.end()
