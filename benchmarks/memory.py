"""How much memory the tap needs when many clones of one image are open."""

from __future__ import annotations

import random
import re
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import peers
from figures import OURS, Figure, Goal, in_turns
from nbdclient import Client
from workspace import Workspace

from core.blockstore import DEFAULT_CACHE

_READS: Final = 256
_LONG: Final = 1 << 20
_BOUND: Final = "80 MiB"
_OVERLAY: Final = "one qemu-nbd, one overlay"


def open_clones(place: Workspace) -> list[Figure]:
    """Resident memory with a crowd of clones open, after reads from each of them.

    All of it counts, the node cache as well, so this is more than the goal asks for.
    """
    names = [f"open-{number}" for number in range(place.crowd)]
    place.clone(names)

    def ours(run: int) -> float:
        with peers.tap(place.store) as server:
            return _after_reads(place, server, names, run)

    def theirs(run: int) -> float:
        image = place.overlay("open")
        with peers.qemu_nbd(image, "qcow2") as server:
            size = _after_reads(place, server, [""], run)
        image.unlink()
        return size

    contestants = {OURS: ours, _BOUND: lambda _: 80.0, _OVERLAY: theirs}
    cache = DEFAULT_CACHE >> 20
    name = f"memory of the tap, {place.crowd} open clones, node cache of {cache} MiB included"
    goals = {_BOUND: Goal(0.0, 1.0)}
    return [Figure(name, "MiB", in_turns(contestants, place.runs), goals)]


def _after_reads(place: Workspace, server: peers.Server, exports: list[str], run: int) -> float:
    """Open exports, read here and there from each, and return the server's memory in MiB."""
    where = random.Random(run)
    with ExitStack() as clients:
        for export in exports:
            client = clients.enter_context(closing(Client(server.socket, export)))
            client.read(where.randrange(place.size // _LONG) * _LONG, _LONG)
            for _ in range(_READS):
                client.read(where.randrange(place.size // 4096) * 4096, 4096)
        return _resident(server.pid) / (1 << 20)


def _resident(pid: int) -> int:
    """Return the bytes of memory that a process occupies now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
