"""--dry-run changes nothing and says exactly what the command then does."""

from __future__ import annotations

from pathlib import Path

import pytest
from shell.conftest import Plx
from shell.test_main import commands

from core import mkfs
from core.device import FileDevice
from plxsh.cli import cli
from plxsh.context import Settings
from plxsh.dry_run import Overlay
from plxsh.grammar import read
from plxsh.groups import Command

CHANGES = [
    ("vdi create new --size 1M", "would create VDI 2 'new' of 1 MiB"),
    ("vdi create new --from base@clean", "would create VDI 2 'new' of 64 KiB, a clone of base@"),
    ("vdi rename web www", "would rename VDI 1 'web' to 'www'"),
    ("vdi resize base 1M", "would resize VDI 0 'base' from 64 KiB to 1 MiB"),
    (
        "vdi resize base 4K --force",
        "would resize VDI 0 'base' from 64 KiB to 4 KiB, losing 8 KiB of data\n",
    ),
    ("vdi delete web", "would delete VDI 1 'web' (64 KiB, 0 B of its own)\n"),
    ("vdi restore old", "would restore VDI 2 'old' (4 KiB, 0 B of its own)\n"),
    ("vdi restore old --name new", "would restore VDI 2 'old' (4 KiB, 0 B of its own) as 'new'\n"),
    ("vdi fill web disk.img", "would fill VDI 1 'web' from disk.img: 3 B"),
    ("vdi export web out.img", "would export web to out.img: 64 KiB"),
    ("snap create web --label x", "would take snapshot "),
    ("snap delete base@clean", "would delete snapshot "),
    ("snap rollback base base@clean", "would roll back VDI 0 'base' to snapshot "),
    (
        "snap every base 10ms --keep 100",
        "would give VDI 0 'base' a schedule: a snapshot every",
    ),
    ("snap every base off", "would give VDI 0 'base' no schedule\n"),
    ("store grow --extents 8", "would grow "),
    ("store create new.dat --extent-size 1M", "would format new.dat: 6 extents of 1 MiB"),
    ("store gc", "would free 0 B\n"),
    ("store unshare", "would unshare "),
    ("tap serve --unix nbd.sock", "would serve "),
    ("tap disconnect web", "would disconnect no client of VDI 1 'web'"),
]


LOOKS = {
    "store info",
    "vdi list",
    "vdi show",
    "vdi validate",
    "snap list",
    "snap diff",
    "tree",
    "tap list",
    "lock list",
    "lock master",
    "tap serve",  # what clients write is theirs; its dry run is tested all the same
    "disk xen",
    "disk qemu",
    "disk libvirt",
    "use",
    "watch",
    "help",
    "exit",
    "completion bash",
    "completion zsh",
    "completion fish",
}
"""Commands that change neither store nor file; a new command has to be put here or above."""


def test_no_command_that_changes_something_is_without_a_dry_run() -> None:
    effects = {}
    for words in commands(cli):
        command = read(cli, words, Settings()).roles[-1].command
        assert isinstance(command, Command)
        effects[" ".join(words)] = command.effect
    tried = {name for name in effects for line, _ in CHANGES if f"{line} ".startswith(f"{name} ")}
    elsewhere = {"store check", "source"}  # tests of repairs; what a script runs
    elsewhere |= {"lock break", "lock handover"}  # tests beside a tap
    changing = {name for name, effect in effects.items() if effect != "looks"}
    assert changing <= tried | elsewhere
    assert effects.keys() - changing == LOOKS


def prepare(plx: Plx, command: str) -> None:
    """Make what a command is about."""
    Path("disk.img").write_bytes(b"abc")
    if "restore" in command:
        plx("vdi", "create", "old", "--size", "4K")
        plx("-y", "vdi", "delete", "old")


@pytest.mark.parametrize(("command", "text"), CHANGES)
def test_it_says_what_would_happen_and_changes_nothing(plx: Plx, command: str, text: str) -> None:
    prepare(plx, command)
    before, files = plx.bytes(), sorted(plx.folder.iterdir())
    result = plx("-n", *command.split())
    assert result.out.startswith(text)
    assert result.out.count("\n") == 1
    machine = plx("-n", "-o", "json", *command.split()).json
    assert machine["dry_run"] is True
    assert "would " + machine["would"] == result.out.rstrip("\n")
    assert plx.bytes() == before
    assert sorted(plx.folder.iterdir()) == files


@pytest.mark.parametrize(
    "command",
    [command for command, _ in CHANGES if command.split()[0] in ("vdi", "snap")],
)
def test_the_prediction_comes_true(plx: Plx, command: str) -> None:
    prepare(plx, command)
    predicted = plx("-n", "-o", "json", *command.split()).json
    told = plx("-n", *command.split()).out.removeprefix("would ")
    done = plx("-y", "-o", "json", *command.split()).json
    del predicted["dry_run"], predicted["would"]
    unknown = {"uuid", "created", "modified", "time"}
    assert predicted.keys() == done.keys()
    for key, value in predicted.items():
        if isinstance(value, dict):
            known = value.keys() - unknown
            assert value.keys() == done[key].keys()
            assert {k: value[k] for k in known} == {k: done[key][k] for k in known}
        else:
            assert value == done[key]
    assert told


def test_store_grow_and_create_come_true(plx: Plx) -> None:
    predicted = plx("-n", "-o", "json", "store", "grow", "--extents", "8").json["store"]
    assert plx("-o", "json", "store", "grow", "--extents", "8").json["store"] == predicted


def test_the_overlay_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "store.dat"
    mkfs.create(str(path), 1 << 20, 6)
    before = path.read_bytes()
    overlay = Overlay(FileDevice(str(path)))
    overlay.pwritev(4000, [b"x" * 200, b"y" * 9000])
    wanted = bytearray(before)
    wanted[4000:13200] = b"x" * 200 + b"y" * 9000
    assert overlay.pread(0, 16384) == wanted[:16384]
    assert overlay.pread(4100, 50) == wanted[4100:4150]
    overlay.discard(5000, 100)
    wanted[5000:5100] = bytes(100)
    parts = [bytearray(3000), bytearray(6000)]
    overlay.preadv(3000, parts)
    assert b"".join(parts) == wanted[3000:12000]
    overlay.close()
    assert path.read_bytes() == before
