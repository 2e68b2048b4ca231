"""`plxsh store`: what it would lose, it says and asks for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from shell.conftest import Plx
from support.terminal import Terminal

from core.session import Session

PLXSH = (sys.executable, "-m", "plxsh")
BLOCK = 4096


@pytest.fixture
def damaged(plx: Plx) -> Plx:
    """VDI 1, `web`, has lost its records, `base` a leaf, extent 1 its header."""
    with Session.open(str(plx.path), "read") as session:
        sb = session.store.sb
        records = sb.vdi_slot(1, 0)
        [leaf] = [
            visit.entry >> 1 & (1 << 40) - 1
            for visit in session.live_image(session.registry.find("base")).map.walk()
            if visit.level == 0
        ]
        header = sb.extent_start(1)
    with open(plx.path, "r+b") as file:
        for block, count in ((records, 2), (leaf, 1), (header, 2)):
            file.seek(block * BLOCK)
            file.write(b"!" * BLOCK * count)
    return plx


def test_a_dry_repair_lists_what_the_repair_does(damaged: Plx) -> None:
    before = damaged.bytes()
    dry = damaged("-n", "store", "check", "--repair", status=1)
    planned = [line for line in dry.lines if line.startswith("would repair: ")]
    told = damaged("-n", "-o", "json", "store", "check", "--repair", status=1).json
    assert told["dry_run"] is True
    assert damaged.bytes() == before
    lost = [text for text in told["check"]["lost"] if text.startswith("VDI ")]
    assert lost[0] == "VDI 1 is lost: both records of VDI 1 are damaged"
    assert lost[1].startswith("VDI 0 loses the bytes from 0 to ")
    assert "header and bitmap of extent 1 are made again" in told["check"]["repaired"]
    done = damaged("-y", "-o", "json", "store", "check", "--repair").json["check"]
    assert done["repaired"] == told["check"]["repaired"]
    assert [f"would repair: {text}" for text in done["repaired"]] == planned
    assert done["damaged"] is False
    assert damaged("store", "check").out.endswith(": sound\n")


def test_a_repair_that_loses_something_asks(damaged: Plx) -> None:
    before = damaged.bytes()
    line = damaged.fails(2, "store", "check", "--repair")
    assert (
        "gives up what is damaged: VDI 1 is lost: both records of VDI 1 are damaged, and 1 more"
        in line
    )
    assert line.endswith("and there is no terminal to ask on (-y says yes)")
    assert damaged.bytes() == before


def test_a_repair_that_loses_nothing_does_not_ask(plx: Plx) -> None:
    with open(plx.path, "r+b") as file:
        file.write(b"garbage" * 100)
    assert plx("-n", "store", "check", "--repair", status=1).lines[-2:-1] == [
        "would repair: the superblock and its copy are written again"
    ]
    assert plx("store", "check", "--repair").out.endswith(": repaired\n")


@pytest.mark.slow
def test_a_repair_shows_what_would_be_lost(damaged: Plx) -> None:
    before = damaged.bytes()
    with Terminal([*PLXSH, "store", "check", "--repair"], columns=100) as terminal:
        terminal.wait_for("[y/N]: ")
        assert terminal.find("would lose: VDI 1 is lost: both records of VDI 1 are damaged")
        assert terminal.find("would lose: VDI 0 loses the bytes from 0 to ")
        terminal.enter()
        assert terminal.wait() == 130
        assert terminal.find("not confirmed, nothing was changed")
    assert damaged.bytes() == before
    with Terminal([*PLXSH, "store", "check", "--repair"], columns=100) as terminal:
        terminal.wait_for("[y/N]: ")
        terminal.enter("y")
        assert terminal.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "name", "loss"),
    [
        (["store", "create", "./blockstore.dat", "--extent-size", "1M", "--force"],
         "blockstore.dat", "the blockstore on it with 2 VDIs and all their snapshots"),
        (["store", "create", "disk.img", "--extent-size", "1M", "--force"],
         "disk.img", "everything on it"),
        (["vdi", "export", "base", "./disk.img", "--force"], "disk.img", "what is in it"),
    ],
)  # fmt: skip
def test_what_cannot_be_undone_has_to_be_typed(
    plx: Plx, words: list[str], name: str, loss: str
) -> None:
    path = plx.folder / name
    if name == "disk.img":
        path.write_bytes(b"something" * 100)
    before = path.read_bytes()
    for answer in ("", "y", name.upper()):
        with Terminal([*PLXSH, *words], columns=150) as terminal:
            terminal.wait_for(f"loses {loss}. This cannot be undone. Type {name} to go on")
            terminal.enter(answer)
            assert terminal.wait() == 130
        assert path.read_bytes() == before
    with Terminal([*PLXSH, *words], columns=150) as terminal:
        terminal.wait_for(f"Type {name} to go on")
        terminal.enter(name)
        assert terminal.wait() == 0
    assert path.read_bytes() != before


def test_nothing_is_lost_by_an_export_to_a_new_file_or_a_pipe(plx: Plx) -> None:
    plx("vdi", "export", "base", "new.img")
    plx("vdi", "export", "base", "/dev/null")
    assert Path("new.img").stat().st_size == 64 << 10
