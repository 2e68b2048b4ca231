"""The benchmarks run from beginning to end, and their arithmetic is right."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from core import mkfs
from core.check import check_store
from core.session import Session

FOLDER = Path(__file__).parents[2] / "benchmarks"
QEMU = {"qemu-nbd raw", "qemu-nbd qcow2", "nbdkit file"}
DIRECT = {"qemu-nbd raw, cache none"}
FILL = {"qemu-img convert -O qcow2", "cp"}
WRITE = {"4 KiB write + fdatasync"}
SCHEDULE = {"without a schedule"}
PEERS = {
    "4 KiB random read, depth 1": QEMU,
    "4 KiB random read, depth 16": QEMU,
    "4 KiB random write, depth 1": QEMU,
    "4 KiB random write, depth 16": QEMU,
    "1 MiB sequential read": QEMU,
    "1 MiB sequential write": QEMU,
    "4 KiB random read, depth 1, cache none": DIRECT,
    "4 KiB random read, depth 16, cache none": DIRECT,
    "4 KiB random write, depth 1, cache none": DIRECT,
    "4 KiB random write, depth 16, cache none": DIRECT,
    "1 MiB sequential read, cache none": DIRECT,
    "1 MiB sequential write, cache none": DIRECT,
    "4 KiB random write to a fresh clone, depth 16": {"qemu-nbd fresh overlay"},
    "4 KiB random write to a fresh clone, depth 16, with a flush": {"qemu-nbd fresh overlay"},
    "memory of the tap, 5 open clones, node cache of 64 MiB included": {
        "80 MiB",
        "one qemu-nbd, one overlay",
    },
    "fill, full image of 32 MiB, on disk": FILL,
    "fill, full image of 32 MiB, command returns": FILL,
    "fill, sparse image with 4 MiB of data, on disk": FILL | {"an eighth of a full fill"},
    "snapshot, the first of a VDI": WRITE,
    "snapshot number 50 and on": WRITE | {"the first"},
    "snapshot of 1 GiB mapped": WRITE,
    "snapshot of 512 GiB mapped": WRITE | {"of 1 GiB"},
    "snapshot of 512 GiB after a write of 4 KiB": WRITE | {"of 1 GiB"},
    "1 MiB sequential write, a snapshot each 10 ms": SCHEDULE,
    "4 KiB sequential write, depth 16, a snapshot each 10 ms": SCHEDULE,
    "4 KiB random write, depth 16, a snapshot each 10 ms": SCHEDULE,
    "clone of 1 GiB mapped": WRITE,
    "clone of 512 GiB mapped": WRITE | {"of 1 GiB"},
    "clone number 50 and on of one image": WRITE | {"the first ones"},
    "vdi list of 50 clones": {"1 s"},
    "gc, mark 50,000 blocks under nodes of their own": {"10 million/s"},
    "gc, mark 512 GiB under nodes that are shared": {"10 million/s"},
    "plxsh vdi list, start-up": {"qemu-img snapshot -l"},
    "plxsh, until the prompt": {'python3 -c "import prompt_toolkit"', "python3 -c pass"},
    "a key with 50 VDIs": {"10 VDIs", "50 ms"},
    "held up while 50 are read": {"nothing is read", "50 ms"},
}
"""Every figure of a quick run, and whom it is compared with."""


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quick_run_measures_everything(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    here = tmp_path / "here"
    here.mkdir()
    command = [sys.executable, str(FOLDER / "bench.py"), "--quick"]
    command += ["--dir", str(tmp_path), "--json", str(result)]
    done = subprocess.run(command, cwd=here, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(result.read_text())["figures"]
    assert [figure["name"] for figure in figures] == list(PEERS)
    for figure in figures:
        peers = PEERS[figure["name"]]
        assert set(figure["values"]) == peers | {"parallax"}
        assert {ratio["peer"] for ratio in figure["ratios"]} == peers
        assert all(value > 0 for values in figure["values"].values() for value in values)
        assert figure["name"] in done.stdout
    here.rmdir()  # what was left in it would keep it
    assert list(tmp_path.iterdir()) == [result], "something was left behind"


@pytest.mark.usefixtures("benchmark_modules")
def test_ratios_are_of_the_same_run() -> None:
    figures = module("figures")
    values = {"parallax": [2.0, 30.0, 8.0], "peer": [1.0, 10.0, 2.0]}
    goals = {"peer": figures.Goal(3.0)}
    [row] = figures.Figure("a figure", "MiB/s", values, goals).rows()
    assert (row.ours, row.theirs) == (8.0, 2.0)
    assert (row.least, row.ratio, row.most) == (2.0, 3.0, 4.0)
    assert row.reached


@pytest.mark.usefixtures("benchmark_modules")
@pytest.mark.parametrize(
    ("least", "most", "ratio", "reached"),
    [(1.2, None, 1.19, False), (1.2, None, 1.2, True), (0, 4.0, 4.1, False), (0, 4.0, 1.0, True)],
)
def test_goals(least: float, most: float | None, ratio: float, reached: bool) -> None:
    goal = module("figures").Goal
    assert (goal(least) if most is None else goal(least, most)).reached(ratio) is reached


@pytest.mark.usefixtures("benchmark_modules")
def test_contestants_take_turns() -> None:
    calls: list[tuple[str, int]] = []

    def contestant(name: str, value: float):  # type: ignore[no-untyped-def]
        def measure(run: int) -> float:
            calls.append((name, run))
            return value + run

        return measure

    contestants = {"a": contestant("a", 1.0), "b": contestant("b", 5.0)}
    assert module("figures").in_turns(contestants, 2) == {"a": [1.0, 2.0], "b": [5.0, 6.0]}
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


@pytest.mark.usefixtures("benchmark_modules")
def test_wide_tree_can_be_read_and_written(tmp_path: Path) -> None:
    store = tmp_path / "store.dat"
    mkfs.create(str(store), 4 << 20, 6)
    with Session.open(str(store), "write") as session:
        record = module("widetree").create_mapped(session, "wide", 2)
        session.snapshot(record)
        vdi = session.open_vdi(record)
        assert vdi.size == 1 << 30
        leaf = 2 << 20
        data = vdi.read(0, leaf)
        assert all(data[at : at + 4096].strip(b"\0") for at in range(0, leaf, 4096))
        vdi.write(5 * 4096, bytes(range(256)) * 16)
        assert vdi.read(vdi.size - leaf, leaf) == data
        assert vdi.read(0, 5 * 4096) == data[: 5 * 4096]
        session.release(vdi)
        damage = [f for f in check_store(session.store).findings if f.severity == "damage"]
        assert all("in two places" in finding.message for finding in damage)
