"""Run fio's nbd engine against one server and return what it measured."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Load:
    """What fio asks of a server.

    `amount` is the number of bytes after which it stops; 0 is until the time is over.
    `flush` ends it with a FLUSH, which counts; `flush_every` has one after so many writes
    (0: none). With `verify` what was written is read again
    and compared, which does not count.
    """

    pattern: str
    block: int
    depth: int
    amount: int = 0
    flush: bool = False
    verify: bool = False
    flush_every: int = 0

    @property
    def writes(self) -> bool:
        return "write" in self.pattern


def run(uri: str, load: Load, seconds: float, seed: int) -> float:
    """Put one load on the server at `uri`; return requests a second.

    Runs with the same `seed` ask for the same blocks in the same order.
    """
    command = [
        "fio",
        "--name=bench",
        "--ioengine=nbd",
        f"--uri={uri}",
        "--thread",
        f"--rw={load.pattern}",
        f"--bs={load.block}",
        f"--iodepth={load.depth}",
        f"--randseed={seed + 1}",
        f"--end_fsync={int(load.flush)}",
        "--output-format=json",
    ]
    if load.flush_every:
        command.append(f"--fsync={load.flush_every}")
    if load.verify:
        command += ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]
    if load.amount:
        command += [f"--io_size={load.amount}"]
    else:
        command += ["--time_based", f"--runtime={round(seconds * 1000)}ms"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    brace = done.stdout.find("{")  # the engine says hello before the JSON begins
    if done.returncode or brace < 0:
        raise RuntimeError(f"fio failed on {uri}: {done.stderr or done.stdout}")
    job: dict[str, Any] = json.loads(done.stdout[brace:])["jobs"][0]
    result = job["write" if load.writes else "read"]
    if job["error"] or not result["total_ios"]:
        raise RuntimeError(f"fio failed on {uri}: error {job['error']}, {done.stderr}")
    return float(result["iops"])
