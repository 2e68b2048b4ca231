"""`make bench`: this project beside its peers, one run, one table.

    python benchmarks/bench.py [--size 4G] [--runtime 2] [--runs 5] [--only NAME] [--quick]

The table goes to standard output, all values to a JSON file. docs/benchmarks.md says how
to read them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import collection
import completion
import datapath
import fill
import machine
import memory
import metadata
import prompt
import snapshots
from figures import Figure, as_json, as_table
from workspace import Workspace

from core.format import BLOCK

PARTS: Final[dict[str, Callable[[Workspace], list[Figure]]]] = {
    "data": datapath.existing_data,  # before the clones: a snapshot takes the blocks away
    "clone-writes": datapath.fresh_clone,
    "memory": memory.open_clones,
    "fill": fill.images,
    "snapshots": metadata.snapshots,
    "schedule": snapshots.schedule,
    "clones": metadata.clones,
    "gc": collection.marking,
    "start-up": metadata.start_up,
    "prompt": prompt.prompt,
    "completion": completion.keys,
}
_UNITS: Final = {"M": 1 << 20, "G": 1 << 30}
_NEEDED: Final = 6


def _size(text: str) -> int:
    """Return the bytes that 512M or 4G stand for."""
    unit = _UNITS.get(text[-1:].upper())
    if unit is None or not text[:-1].isdigit() or not int(text[:-1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 512M or 4G")
    return int(text[:-1]) * unit


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure this project beside its peers.")
    parser.add_argument("--size", type=_size, help="of the image, at least 8M [4G]")
    parser.add_argument("--runtime", type=float, help="seconds of one fio run [2]")
    parser.add_argument("--runs", type=int, help="of everything, in turns [5]")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    parser.add_argument("--quick", action="store_true", help="see that it works, measure nothing")
    parser.add_argument(
        "--dir", type=Path, default=Path("/var/tmp"), help="on a disk [%(default)s]"
    )
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="[%(default)s]")
    return parser.parse_args()


def main() -> None:
    """Measure, and show the table."""
    wanted = _arguments()
    quick = wanted.quick
    size = wanted.size or (32 << 20 if quick else 4 << 30)
    if shutil.disk_usage(wanted.dir).free < _NEEDED * size:
        sys.exit(f"bench: {wanted.dir} needs {_NEEDED * size >> 20} MiB of free space")
    facts = machine.described(wanted.dir)
    with tempfile.TemporaryDirectory(prefix="parallax-bench-", dir=wanted.dir) as folder:
        place = Workspace(
            Path(folder),
            size=size,
            seconds=wanted.runtime or (0.2 if quick else 2.0),
            runs=wanted.runs or (1 if quick else 5),
            many=50 if quick else 10_000,
            crowd=5 if quick else 100,
        )
        figures = _measure(place, wanted.only or list(PARTS))
    settings = {"size": size, "runtime": place.seconds, "runs": place.runs, "block": BLOCK}
    result = {"machine": facts, "settings": settings, "figures": as_json(figures)}
    wanted.json.parent.mkdir(parents=True, exist_ok=True)
    wanted.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for fact, value in facts.items():
        print(f"- {fact}: {value}")
    print(f"- image of {size >> 20} MiB, {place.runs} runs in turns, fio for {place.seconds} s\n")
    print(as_table(figures))


def _measure(place: Workspace, names: list[str]) -> list[Figure]:
    """Measure some parts, in the order in which they have to be."""
    figures: list[Figure] = []
    for name, part in PARTS.items():
        if name in names:
            start = time.monotonic()
            print(f"bench: {name} ...", file=sys.stderr)
            figures += part(place)
            print(f"bench: {name} took {time.monotonic() - start:.0f} s", file=sys.stderr)
    return figures


if __name__ == "__main__":
    main()
