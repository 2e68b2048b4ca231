"""Bad input is one clear line and an exit status, and changes nothing."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from google_crc32c import value as crc32c
from shell.conftest import Plx

from core.format import BLOCK
from core.session import Session
from plxsh.classic import TOOLS
from plxsh.cli import cli
from plxsh.context import Settings


def patch_superblock(path: Path, offset: int, value: int, copies: bool = True) -> None:
    """Change one 32-bit field of the superblock and its copy, checksums included."""
    with open(path, "r+b") as file:
        for at in (0, (1 << 20) - BLOCK) if copies else (0,):
            file.seek(at)
            block = bytearray(file.read(BLOCK))
            struct.pack_into("<I", block, offset, value)
            struct.pack_into("<I", block, 8, 0)
            struct.pack_into("<I", block, 8, crc32c(bytes(block)))
            file.seek(at)
            file.write(block)


VERSION_AT, INCOMPAT_AT = 28, 44


# -- the store -------------------------------------------------------------------------


def test_store_missing(plx: Plx) -> None:
    assert plx.fails(3, "-s", "nowhere.dat", "vdi", "list") == (
        "plxsh: vdi list: there is no blockstore at nowhere.dat (make one with"
        " 'plxsh store create nowhere.dat', or name another with --store)"
    )
    assert "no blockstore" in plx.fails(3, "-s", "nowhere.dat", "vdi", "create", "x")
    assert "no blockstore" in plx.fails(3, "-n", "-s", "nowhere.dat", "vdi", "create", "x")


@pytest.mark.parametrize(
    "contents",
    [b"", b"hello", bytes(8 << 20), os.urandom(1 << 20)],
    ids=["nothing", "text", "zeros", "noise"],
)
def test_not_a_store(plx: Plx, contents: bytes) -> None:
    Path("other").write_bytes(contents)
    assert "other holds no blockstore" in plx.fails(3, "-s", "other", "vdi", "list")


def test_a_folder_is_no_store(plx: Plx) -> None:
    assert "name one that is" in plx.fails(2, "-s", plx.folder, "vdi", "list")


def test_truncated(plx: Plx) -> None:
    os.truncate(plx.path, 5 << 20)
    line = plx.fails(5, "vdi", "list")
    assert "is truncated: it has 5242880 bytes, the store 6291456" in line


def test_wrong_version(plx: Plx) -> None:
    patch_superblock(plx.path, VERSION_AT, 7)
    line = plx.fails(3, "vdi", "list")
    assert "has format version 7, this Parallax reads version 1" in line


def test_unknown_incompatible_feature(plx: Plx) -> None:
    patch_superblock(plx.path, INCOMPAT_AT, 0x40)
    line = plx.fails(3, "vdi", "list")
    assert "uses features this Parallax does not know (incompat 0x40)" in line
    assert "use a newer Parallax" in line


def test_corrupted_superblock_the_copy_takes_over_and_says_so(plx: Plx) -> None:
    with open(plx.path, "r+b") as file:
        file.write(b"garbage" * 100)
    result = plx("vdi", "list")
    assert len(result.lines) == 2
    assert result.err == (
        "plxsh: warning: block 0: the superblock is damaged, its copy in block 255 was used;"
        " repair with 'plxsh store check --repair'\n"
    )
    assert "warning" in plx("-q", "vdi", "create", "still").err
    plx("store", "check", "--repair")
    assert plx("vdi", "list").err == ""


def test_both_superblocks_corrupted(plx: Plx) -> None:
    with open(plx.path, "r+b") as file:
        for at in (16, (1 << 20) - 2048):
            file.seek(at)
            file.write(b"garbage" * 100)
    assert "and its copy are damaged" in plx.fails(5, "vdi", "list")


def test_create_refuses_a_store_and_a_file_system(plx: Plx) -> None:
    before = plx.bytes()
    args = ("store", "create", plx.path, "--extent-size", "1M")
    assert "already holds a blockstore" in plx.fails(2, *args)
    assert "already holds a blockstore" in plx.fails(2, "-n", *args)
    Path("image").write_bytes(bytes(0x438) + b"\x53\xef" + bytes(4096))
    assert "ext2, ext3 or ext4" in plx.fails(2, "store", "create", "image")
    assert "no terminal to ask on" in plx.fails(2, *args, "--force")
    assert plx.bytes() == before


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--extents", "5"], "5 extents are too few"),
        (["--extent-size", "3M"], "take a power of two"),
        (["--extent-size", "2GB"], "'2GB' is no size; write bytes or a power of 1024"),
        (["--extents", "x"], "--extents: 'x' is no whole number"),
    ],
)
def test_create_with_bad_geometry(plx: Plx, args: list[str], text: str) -> None:
    assert text in plx.fails(2, "store", "create", "new.dat", *args)
    assert not Path("new.dat").exists()


def test_create_where_there_is_no_folder(plx: Plx) -> None:
    assert "there is no folder" in plx.fails(3, "store", "create", "no/such/new.dat")
    assert "no/such/new.dat" in plx.fails(3, "-n", "store", "create", "no/such/new.dat")


def test_grow_cannot_shrink(plx: Plx) -> None:
    assert "has 6 extents already" in plx.fails(2, "store", "grow", "--extents", "6")
    assert "has 6 extents already" in plx.fails(2, "-n", "store", "grow", "--extents", "6")


# -- VDIs and snapshots ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "the value is empty"),
        ("n" * 256, "the name has 256 bytes"),
        ("ü" * 128, "the name has 256 bytes"),
        ("web", "the name 'web' is taken by VDI 1"),
        ("17", "would be taken for an id"),
        ("a@b", "contains '@'"),
        ("a\nb", "cannot be shown"),
        (" a", "spaces at its ends"),
    ],
)
def test_impossible_names(plx: Plx, name: str, text: str) -> None:
    before = plx.bytes()
    assert text in plx.fails(2, "vdi", "create", name)
    assert text in plx.fails(2, "-n", "vdi", "create", name)
    if name != "web":
        assert text in plx.fails(2, "vdi", "rename", "web", name)
    assert plx.bytes() == before


def test_unknown_vdi(plx: Plx) -> None:
    for args in (
        ["vdi", "show"],
        ["snap", "create"],
        ["snap", "list"],
        ["-y", "vdi", "delete"],
        ["disk", "qemu"],
        ["tree"],
    ):
        line = plx.fails(3, *args, "bsae")
        assert line.endswith("there is no VDI 'bsae' (did you mean 'base'?)")
    assert "there is no VDI 7 ('plxsh vdi list'" in plx.fails(3, "vdi", "show", "7")


def test_unknown_snapshot(plx: Plx, snapshot: tuple[str, str]) -> None:
    block = snapshot[0]
    line = plx.fails(3, "snap", "delete", "base@claen")
    assert line.endswith("there is no snapshot base@claen (did you mean 'base@clean'?)")
    for words in ([block, "99"], [f"{block}.99"], ["base@claen"], ["5.0"], ["99999999.0"]):
        assert "there is no snapshot" in plx.fails(3, "-y", "snap", "delete", *words)
    assert "there is no VDI 'bse'" in plx.fails(3, "vdi", "create", "x", "--from", "bse@clean")
    assert "names no snapshot" in plx.fails(2, "-y", "snap", "delete", "base")
    assert "does not name one snapshot" in plx.fails(2, "-y", "snap", "delete", "a", "b")


def test_rollback_to_the_snapshot_of_another_vdi(plx: Plx) -> None:
    line = plx.fails(2, "snap", "rollback", "web", "base@clean")
    assert "is no snapshot of VDI 'web'" in line


def test_a_snapshot_given_twice(plx: Plx, snapshot: tuple[str, str]) -> None:
    args = ("vdi", "create", "x", *snapshot, "--from", "base@clean")
    assert "the snapshot is given twice" in plx.fails(2, *args)


def test_deleting_what_has_clones(plx: Plx) -> None:
    line = plx.fails(4, "-y", "vdi", "delete", "base", "--snapshots")
    assert "VDI 'base' has clones: 'web' (delete the clones first)" in line


def test_what_cannot_be_restored(plx: Plx) -> None:
    line = plx.fails(2, "vdi", "restore", "web")
    assert line.endswith(
        "VDI 1 'web' is not deleted ('plxsh vdi list --deleted' shows those that are)"
    )
    for _ in range(2):
        plx("vdi", "create", "old")
        plx("-y", "vdi", "delete", "old")
    plx("vdi", "create", "old")
    line = plx.fails(2, "vdi", "restore", "old")
    assert line.endswith("2 deleted VDIs have the name 'old': 2, 3 (give the id)")
    for dry in ([], ["-n"]):
        line = plx.fails(2, *dry, "vdi", "restore", "3")
        assert line.endswith("the name 'old' is taken by VDI 4 (give another one with --name)")
        assert "the name '7' would be taken" in plx.fails(
            2, *dry, "vdi", "restore", "3", "--name", "7"
        )
    line = plx.fails(3, "vdi", "restore", "odl")
    assert "there is no deleted VDI 'odl', or its space was collected" in line
    assert line.endswith("(did you mean 'old'?)")
    with Session.open(str(plx.path)) as session:
        session.collect()
    assert "there is no deleted VDI '3'" in plx.fails(3, "vdi", "restore", "3")


def test_source_missing_and_too_large(plx: Plx) -> None:
    before = plx.bytes()
    assert "nosuch.img" in plx.fails(3, "vdi", "fill", "base", "nosuch.img")
    assert "nosuch.img" in plx.fails(3, "-n", "vdi", "fill", "base", "nosuch.img")
    Path("big.img").write_bytes(os.urandom(65537))
    assert "65537" in plx.fails(2, "vdi", "fill", "base", "big.img")
    assert "65537" in plx.fails(2, "-n", "vdi", "fill", "base", "big.img")
    assert plx("vdi", "list").out.count("\n") == 2
    assert len(plx.bytes()) == len(before)


def test_shrinking_that_would_lose_data(plx: Plx) -> None:
    line = plx.fails(2, "vdi", "resize", "base", "8K")
    assert "4096 bytes of data lie behind byte 8192" in line
    line = plx.fails(2, "vdi", "resize", "base", "8K", "--force")
    assert "loses 4 KiB of data" in line
    assert "-y says yes" in line
    assert plx("-o", "json", "vdi", "show", "base").json["vdi"]["size"] == 65536
    plx("-y", "vdi", "resize", "base", "8K", "--force")
    assert plx("-o", "json", "vdi", "show", "base").json["vdi"]["size"] == 8192


@pytest.mark.parametrize("size", ["2GB", "1.5G", "-1", "", "G", "2 G", "0x10", "1KiBB", "٣"])
def test_sizes_that_do_not_parse(plx: Plx, size: str) -> None:
    line = plx.fails(2, "vdi", "create", "x", f"--size={size}")
    assert "is no size; write bytes or a power of 1024: 4096, 64K, 2G, 1T, 2GiB" in line


def test_a_size_beyond_the_limit(plx: Plx) -> None:
    assert "the most is" in plx.fails(2, "vdi", "create", "x", "--size", "257T")


def test_no_space(plx: Plx) -> None:
    Path("big.img").write_bytes(os.urandom(6 << 20))
    plx("vdi", "create", "big")
    line = plx.fails(6, "vdi", "fill", "big", "big.img")
    assert line.startswith("plxsh: vdi fill: ")
    assert plx("store", "check").out.endswith(": sound\n")
    assert plx("vdi", "create", "more").out == "3\n"


def test_asking_without_a_terminal(plx: Plx, snapshot: tuple[str, str]) -> None:
    before = plx.bytes()
    for args in (
        ["vdi", "delete", "web"],
        ["snap", "delete", *snapshot],
        ["snap", "rollback", "base", "base@clean"],
    ):
        line = plx.fails(2, *args)
        assert "there is no terminal to ask on (-y says yes)" in line
    assert plx.bytes() == before


def test_read_only_file(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: str, flags: int, *args: int) -> int:
        if flags & os.O_RDWR and path == str(plx.path):
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *args)

    monkeypatch.setattr("core.device.os.open", refusing)
    line = plx.fails(4, "vdi", "create", "x")
    assert line.endswith("Permission denied (check permissions, or run as its owner)")
    assert len(plx("vdi", "list").lines) == 2


@contextmanager
def writer(path: Path) -> Iterator[int]:
    """Hold the store open for writing in another process."""
    script = (
        "import sys; from core.session import Session;"
        "s = Session.open(sys.argv[1]); print(flush=True); sys.stdin.read(); s.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.stdin.close()
            process.wait()


def test_a_second_writer(plx: Plx, snapshot: tuple[str, str]) -> None:
    before = plx.bytes()
    with writer(plx.path) as pid:
        for args in (
            ["vdi", "create", "x"],
            ["vdi", "rename", "web", "y"],
            ["vdi", "resize", "web", "1M"],
            ["-y", "vdi", "delete", "web"],
            ["vdi", "fill", "web", "/dev/null"],
            ["vdi", "export", "web", "web.img"],
            ["snap", "create", "web"],
            ["-y", "snap", "delete", *snapshot],
            ["-y", "snap", "rollback", "base", *snapshot],
            ["snap", "diff", *snapshot, "web"],
            ["store", "grow", "--extents", "8"],
            ["store", "check"],
            ["-y", "store", "create", str(plx.path), "--force"],
            ["-n", "vdi", "create", "x"],
        ):
            line = plx.fails(4, *args)
            assert "is in use by" in line
            assert f"(pid {pid})" in line
        assert not Path("web.img").exists()
        # Readers work beside it. No VDI is known to be open, only the store.
        listed = plx("-o", "json", "vdi", "list").json["vdis"]
        assert f"(pid {pid})" in listed[0]["served_by"]
        assert "In use by" not in plx("-o", "table", "vdi", "list").out
        assert f"(pid {pid})" in plx("-o", "table", "vdi", "show", "web").out
        assert f"(pid {pid})" in plx("-o", "json", "store", "info").json["store"]["served_by"]
        plx("snap", "list", "base")
        plx("vdi", "export", *snapshot, "snap.img")
        plx("tree")
    assert plx.bytes() == before


# -- usage and configuration -----------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["vid"], "there is no command 'vid' (did you mean 'vdi'?)"),
        (["store", "create", ""], "PATH: the path is empty (see 'plxsh store create --help')"),
        (["-s", "", "vdi", "list"], "--store: the path is empty"),
        (["disk", "qemu", "web", "--socket="], "--socket: the path is empty"),
        (["watch", "vid"], "plxsh: there is no command 'vid' (did you mean 'vdi'?)"),
        (["watch", "vdi", "lst"], "plxsh: vdi: there is no command 'lst'"),
        (["watch", "vdi", "list", "--foo"], "plxsh: vdi list: there is no option '--foo'"),
        (["watch", "watch", "tree"], "watch: 'watch' cannot be watched"),
        (["help", "vid"], "plxsh: there is no command 'vid' (did you mean 'vdi'?)"),
        (["help", "vdi", "crate"], "plxsh: vdi: there is no command 'crate'"),
        (["help", "vdi", "show", "x"], "help: 'x' is no command (help is on commands"),
        (["-c", "plxsh"], "plxsh: this is the shell already"),
        (["vdi", "crate"], "there is no command 'crate' (did you mean 'create'?)"),
        (
            ["vdi", "create"],
            "NAME is missing (write 'plxsh vdi create NAME [BLOCK OFFSET]';"
            " see 'plxsh vdi create --help')",
        ),
        (["store", "grow"], "--extents is missing (write 'plxsh store grow --extents N'"),
        (["watch"], "watch: COMMAND is missing (write 'plxsh watch [SECONDS] COMMAND...'"),
        (["vdi", "list", "extra"], "'extra' is left over (a name with spaces needs quotes"),
        (["vdi", "show", "--foo"], "no option '--foo' (see 'plxsh vdi show --help')"),
        (["vdi", "list", "--outptu"], "no option '--outptu' (did you mean '--output'?)"),
        (["vdi", "list", "-o"], "the option '-o' needs a value (see 'plxsh vdi list --help')"),
        (["vdi", "list", "--yes=1"], "the option '--yes' takes no value (see"),
        (["-s"], "plxsh: the option '-s' needs a value (see 'plxsh --help')"),
        ([""], "there is no command '' ('plxsh --help' lists them)"),
        (["-o", "xml", "vdi", "list"], "'xml' is not one of"),
        (["snap", "list", "base", "0"], "N: 0 is not possible; take at least 1 (see"),
        (["snap", "diff", "a@b"], "does not name two of them"),
        (["snap", "diff", "1", "2", "3"], "does not name two of them"),
        (["tap", "serve", "--tcp", "10809"], "is no address; write ADDR:PORT"),
    ],
)
def test_usage_errors_are_one_line(plx: Plx, args: list[str], text: str) -> None:
    assert text in plx.fails(2, *args)


@pytest.mark.parametrize(
    "args",
    [
        ["vdi", "create", "c", "--from", "base@"],
        ["vdi", "create", "c", "--from", "@"],
        ["vdi", "create", "c", "--from", "@clean"],
        ["vdi", "create", "c", "--from", ""],
        ["vdi", "create", "c", ""],
        ["vdi", "create", ""],
        ["vdi", "create", "c", "--size", ""],
        ["vdi", "show", ""],
        ["vdi", "rename", "web", ""],
        ["vdi", "export", "base@", "out.img"],
        ["vdi", "export", "base", "out.img", "--format", ""],
        ["vdi", "validate", "base@", "/dev/null"],
        ["vdi", "fill", "web", "image", "--format="],
        ["snap", "create", "base", "--label", ""],
        ["-y", "snap", "delete", "base@"],
        ["-y", "snap", "rollback", "base", "base@"],
        ["snap", "diff", "base@", "base"],
        ["disk", "qemu", "base@"],
        ["-s", "", "vdi", "list"],
        ["tap", "serve", "--gc-every", ""],
        ["-c", "use base; vdi create c --from @"],
    ],
)
def test_an_empty_word_names_nothing(plx: Plx, args: list[str]) -> None:
    """The empty variable of a script, where the newest snapshot has no label."""
    plx("snap", "create", "base")
    Path("image").write_bytes(bytes(BLOCK))
    before = plx.bytes()
    line = plx.fails(2, *args)
    assert re.search(r"is empty|is no size|nothing (behind|before) the '@'|has no VDI", line), line
    assert plx.bytes() == before
    assert not Path("out.img").exists()


def test_no_command_takes_an_empty_word() -> None:
    """Whatever argument or option it is; those of the shells' completion are what is typed."""
    samples = {"SIZE": "1", "INTERVAL|off": "1s", "VDEV": "xvda", "integer": "1", "float": "1"}

    def sample(param: click.Parameter) -> list[str]:
        count = getattr(param, "count", max(1, param.nargs))
        if isinstance(param.type, click.Choice):
            return [str(param.type.choices[0])] * count
        kind = param.type.name.removesuffix(" range")
        return [samples.get(kind, "127.0.0.1:80" if ":" in kind else "a@b")] * count

    def refused(command: click.Command, emptied: click.Parameter) -> bool:
        words: list[str] = []
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        last = emptied if emptied in arguments else None
        for param in arguments:
            if param.required or param is last or (last and param in arguments):
                words += [""] if param is emptied else sample(param)
        if isinstance(emptied, click.Option):
            words = [emptied.opts[0], "", *words]
        try:
            command.make_context("x", ["--", *words] if last else words, obj=Settings())
        except click.UsageError as error:
            return "missing" not in error.format_message().lower()
        return False

    for top in (cli, *TOOLS.values()):
        for command in every_command(top):
            for param in command.params:
                if not getattr(param, "is_flag", False):
                    assert refused(command, param), (command.name, param.opts)


def every_command(command: click.Command) -> Iterator[click.Command]:
    """All below a command that are no groups and no secret of the completion."""
    if not isinstance(command, click.Group):
        yield command
        return
    context = click.Context(command, obj=Settings())
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if found is not None and not found.hidden:
            yield from every_command(found)


@pytest.mark.parametrize(
    "args",
    [
        ["tap", "list", "--unix", "LONG"],
        ["tap", "serve", "--unix", "LONG"],
        ["-n", "tap", "serve", "--unix", "LONG"],
        ["disk", "qemu", "web", "--socket", "LONG"],
        ["disk", "xen", "web", "xvda", "--socket", "LONG"],
        ["disk", "libvirt", "web", "--socket", "LONG"],
    ],
)
def test_a_socket_path_has_an_end(plx: Plx, args: list[str]) -> None:
    """In bytes, and what is said names the path that was given."""
    path = "/" + "ü" * 60 + "/nbd.sock"
    line = plx.fails(2, *(path if arg == "LONG" else arg for arg in args))
    assert f"a socket path has at most 100 bytes, {path} has 130 (use a shorter one" in line


def test_the_usual_socket_may_be_too_long_as_well(
    plx: Plx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARALLAX_RUN_DIR", "/" + "r" * 120)
    for args in (["tap", "serve"], ["tap", "list"], ["disk", "qemu", "web"]):
        line = plx.fails(2, *args)
        assert "a socket path has at most 100 bytes" in line
        assert "PARALLAX_RUN_DIR" in line


def test_errors_as_json(plx: Plx) -> None:
    result = plx("-o", "json", "vdi", "show", "bsae", status=3)
    line, machine = result.err.splitlines()
    assert line.startswith("plxsh: vdi show: there is no VDI 'bsae'")
    assert json.loads(machine) == {
        "error": {
            "code": "not_found",
            "message": "there is no VDI 'bsae'",
            "hint": "did you mean 'base'?",
        }
    }
    assert result.out == ""
    usage = plx("-o", "json", "vdi", "show", status=2).err.splitlines()[-1]
    assert json.loads(usage)["error"]["code"] == "usage"


def test_configuration_that_cannot_be_read(plx: Plx) -> None:
    assert "cannot read the configuration no.toml" in plx.fails(3, "--config", "no.toml", "tree")
    Path("bad.toml").write_text("[blockstore\n")
    assert "bad.toml: " in plx.fails(2, "--config", "bad.toml", "tree")
    Path("type.toml").write_text("[blockstore]\ndata = 7\n")
    os.environ.pop("PARALLAX_STORE")
    assert "not a text" in plx.fails(2, "--config", "type.toml", "tree")
    for section in ("blockstore", "shell"):
        Path("flat.toml").write_text(f"{section} = 'x'\n")
        told = plx.fails(2, "--config", "flat.toml", "tree")
        assert f"{section} of the configuration is 'x', not a section (write [{section}])" in told
    Path("form.toml").write_text("[shell]\noutput = 'xml'\n")
    assert "there is no output form 'xml'" in plx.fails(2, "--config", "form.toml", "tree")


@pytest.mark.parametrize("where", ["> blockstore.dat", ">> blockstore.dat", "> link"])
def test_output_does_not_go_over_the_store(plx: Plx, where: str) -> None:
    os.symlink(plx.path, "link")
    before = plx.bytes()
    line = plx.fails(2, "-c", f"vdi list {where}")
    assert "is the blockstore itself" in line
    assert plx.bytes() == before
