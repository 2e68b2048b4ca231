"""The original tools: the output that old scripts read, usage lines, exit statuses."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from shell.conftest import Plx, Result
from shell.tap import connect, read
from shell.test_bad_input import writer
from shell.test_startup import HEAVY
from support.rooted import SIMULATED_HOSTS

from core.session import Session
from plxsh import classic
from plxsh.classic import TOOLS

Tool = Callable[..., Result]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tool:
    def run(name: str, *args: str, status: int = 0) -> Result:
        monkeypatch.setattr(sys, "argv", [name, *args])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            TOOLS[name]()
        out, err = capfd.readouterr()
        assert left.value.code == status, err
        return Result(status, out, err)

    return run


def test_the_tour_of_the_original_quick_start(empty: Plx, tool: Tool) -> None:
    os.unlink(empty.path)
    image = os.urandom(20000)
    Path("image").write_bytes(image)
    assert tool("parallax-mkfs", str(empty.path), "1048576", "6").out == ""
    assert tool("vdi_create", "My new VDI").out == "0\n"
    assert tool("vdi_list").out == (
        "       0                                               My new VDI\n"
    )
    assert tool("vdi_fill", "0", "./image").out == "5\n"
    assert tool("vdi_validate", "0", "./image").out == ""
    block, offset = tool("vdi_snap_offline", "0").out.split()
    assert tool("vdi_create", "Copy 1", block, offset).out == "1\n"
    assert [line.split(maxsplit=1) for line in tool("vdi_list").lines] == [
        ["0", "My new VDI"],
        ["1", "Copy 1"],
    ]
    assert tool("vdi_validate", "1", "./image").out == ""
    assert "Copy 1" in tool("vdi_tree").out
    assert tool("vdi_snap", "1").out
    tool("vdi_snap_delete", block, offset)
    assert len(tool("vdi_snap_list", "0").lines) == 1


ORIGINAL = r"""
dd if=/dev/zero of=./image bs=4K count=1 seek=4095
mkfs.ext3 ./image
mkdir ./mnt
mount -o loop ./image ./mnt
echo "My system" > ./mnt/README
umount mnt
ln -s $PWD/room/blockstore.dat /blockstore.dat
parallax-mkfs /blockstore.dat 2147483648 6
plxlockmaster & master=$!
exec >&3
./vdi_create "My new VDI"
./vdi_list
./vdi_fill 0 ./image
./vdi_validate 0 ./image
./vdi_snap_offline 0
./vdi_snap_list 0
./vdi_create "FC3 - Copy 1" $(./vdi_snap_list 0 1 | awk 'NR == 2 { print $1, $2 }')
./vdi_list
kill $master && wait $master
"""
"""The lines of the quick start of 2005. What it leaves open is filled in: how large the image is,
what is installed in it, where the blockstore is, and what `mount` needs beside the image."""
PRIVATE_ROOT = r"""
set -e
ip link set lo up
mount -t tmpfs none root
for name in $(ls /); do
    if test -L /$name; then cp -P /$name root
    elif test -d /$name; then mkdir -p root/$name && mount --rbind /$name root/$name
    fi
done
mount -t tmpfs none root/run
mount -t tmpfs none root/var/lib
exec chroot root sh -e -c "cd '$PWD'; $0" 3>&1 >&2
"""
"""A root folder, services and a network of its own, in which nobody else is disturbed."""


@pytest.mark.slow
@SIMULATED_HOSTS
def test_the_original_quick_start_to_the_letter(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    for folder in ("root", "room"):
        (tmp_path / folder).mkdir()
    for name in TOOLS:
        (tmp_path / name).symlink_to(programs / name)
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", PRIVATE_ROOT, ORIGINAL],
        env={"PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin", "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made, first, blocks, taken, head, snapshot, copied, again, copy = done.stdout.splitlines()
    assert (made, blocks, copied) == ("0", "4096", "1")
    assert first == again == "       0                                               My new VDI"
    assert copy == "       1                                             FC3 - Copy 1"
    assert head.split() == ["Block", "idx", "timestamp", "radix", "root", "d"]
    assert snapshot.split()[:2] == taken.split()
    assert (tmp_path / "room" / "blockstore.dat").stat().st_size == 6 << 31
    assert not os.path.lexists("/blockstore.dat")


def test_the_columns_of_the_snapshot_list(plx: Plx, tool: Tool) -> None:
    with Session.open(str(plx.path), "read") as session:
        [snapshot] = session.snapshots(session.registry.find("base"))
    head, row = tool("vdi_snap_list", "0").lines
    assert head == "   Block idx                            timestamp   radix root d"
    assert len(row) == 63
    assert re.fullmatch(
        r" +\d+ +\d+ {7}[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4} \d{6} +\d+", row
    )
    assert row[:12].split() == [str(snapshot.id.block), str(snapshot.id.offset)]
    assert row.split()[-1] == str(snapshot.root_block)
    assert row.split()[-2] == f"{snapshot.time_ns // 1000 % 1_000_000:06d}"


def test_the_newest_snapshots(plx: Plx, tool: Tool) -> None:
    plx("snap", "create", "base")
    assert len(tool("vdi_snap_list", "base").lines) == 3
    assert len(tool("vdi_snap_list", "base", "1").lines) == 2
    assert len(tool("vdi_snap_list", "base", "0").lines) == 1


def test_fill_counts_up_on_a_terminal(
    plx: Plx, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("image").write_bytes(b"x" * 65536)
    plx("vdi", "create", "new")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    counts = [int(n) for n in tool("vdi_fill", "new", "image").out.replace("\r", " ").split()]
    assert counts[-1] == 16
    assert counts == sorted(counts)


def test_validate_says_no(plx: Plx, tool: Tool) -> None:
    Path("image").write_bytes(bytes(65536))
    plx("vdi", "export", "web", "copy")
    assert tool("vdi_validate", "web", "copy").err == ""
    result = tool("vdi_validate", "web", "image", status=1)
    assert result.err == "vdi_validate: image differs at byte 4096\n"


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_usage_and_help(tool: Tool, name: str) -> None:
    result = tool(name, "1", "2", "3", "4", status=2)
    assert result.out == ""
    assert result.err.startswith(f"{name}: ")
    assert result.err.endswith(f"see '{name} --help')\n")
    assert result.err.count("\n") == 1
    for option in ("-h", "--help"):
        told = tool(name, option)
        assert told.lines[0].startswith(f"Usage: {name} [OPTIONS]")
        assert re.search(rf"^Examples?:\n  {name}", told.out, re.MULTILINE)
    for option in ("--wrong", "--dry-run", "-s"):
        line = tool(name, option, status=2).err
        assert "there is no option" in line
        assert option in line


def test_the_usage_names_the_original_arguments(tool: Tool) -> None:
    usage = {name: tool(name, "--help").lines[0].partition("[OPTIONS]")[2] for name in TOOLS}
    assert {name: words.strip() for name, words in usage.items()} == {
        "parallax-mkfs": "PATH EXTENT_BYTES EXTENTS",
        "vdi_create": "NAME [BLOCK OFFSET]",
        "vdi_fill": "VDI SOURCE",
        "vdi_validate": "VDI SOURCE",
        "vdi_list": "",
        "vdi_snap_list": "VDI [N]",
        "vdi_tree": "[FILE.ps]",
        "vdi_snap": "VDI",
        "vdi_snap_offline": "VDI",
        "vdi_snap_delete": "BLOCK OFFSET",
        "parallaxd": "",
        "plxlockmaster": "",
    }


def test_every_tool_is_installed_under_its_name() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) - {"plxsh"} == set(TOOLS)
    for name, tool in TOOLS.items():
        module, _, attribute = scripts[name].partition(":")
        assert (module, getattr(classic, attribute)) == ("plxsh.classic", tool)


def test_errors_name_the_tool(plx: Plx, tool: Tool) -> None:
    assert tool("vdi_snap", "bsae", status=3).err == (
        "vdi_snap: there is no VDI 'bsae' (did you mean 'base'?)\n"
    )
    assert tool("vdi_create", status=2).err == (
        "vdi_create: NAME is missing"
        " (write 'vdi_create NAME [BLOCK OFFSET]'; see 'vdi_create --help')\n"
    )
    assert "'x' is no whole number" in tool("vdi_snap_list", "0", "x", status=2).err
    assert "does not name one snapshot" in tool("vdi_snap_delete", "a", "b", status=2).err
    assert "BLOCK OFFSET" in tool("vdi_create", "x", "16", status=2).err
    assert "is no size" in tool("parallax-mkfs", "new", "2 GB", "6", status=2).err
    assert "'x' is no whole number" in tool("parallax-mkfs", "new", "2G", "x", status=2).err
    assert "already holds" in tool("parallax-mkfs", str(plx.path), "1048576", "6", status=2).err
    assert len(plx("vdi", "list").lines) == 2


def test_a_name_that_begins_with_a_hyphen(plx: Plx, tool: Tool) -> None:
    assert tool("vdi_create", "--", "-x").out == "2\n"
    assert plx("vdi", "list").lines[2].split("\t")[1] == "-x"


def test_help_needs_no_configuration(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALLAX_CONFIG", "missing.toml")
    assert tool("vdi_list", "--help").out
    assert "cannot read the configuration missing.toml" in tool("vdi_list", status=3).err


@pytest.mark.usefixtures("plx")
def test_the_tools_are_read_without_what_only_some_of_them_need() -> None:
    code = (
        "import sys; from plxsh.classic import TOOLS, vdi_list; sys.argv = ['vdi_list'];"
        "import atexit; atexit.register(lambda: print(*sys.modules)); vdi_list()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, modules = done.stdout.splitlines()[:2], done.stdout.splitlines()[2].split()
    assert [line.split() for line in listed] == [["0", "base"], ["1", "web"]]
    assert {"plxsh.classic", "core.registry"} <= set(modules)
    assert set(modules) & HEAVY == set()


def test_a_damaged_record_does_not_break_the_list(plx: Plx, tool: Tool) -> None:
    with open(plx.path, "r+b") as file:
        file.seek(2 * 4096)
        file.write(b"!" * 8192)
    result = tool("vdi_list")
    assert [line.split() for line in result.lines] == [["0", "(damaged)"], ["1", "web"]]
    assert "block 2" in result.err


def test_an_open_store_is_refused(plx: Plx, tool: Tool) -> None:
    with writer(plx.path) as pid:
        for args in (["vdi_snap", "0"], ["vdi_snap_offline", "0"], ["vdi_create", "x"]):
            assert f"(pid {pid})" in tool(*args, status=4).err
        assert len(tool("vdi_list").lines) == 2


def test_the_store_comes_from_the_environment_or_the_file(
    plx: Plx, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARALLAX_STORE")
    config = Path.home() / ".config" / "parallax" / "parallax.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[blockstore]\ndata = "{plx.path}"\n')
    assert len(tool("vdi_list").lines) == 2
    monkeypatch.setenv("PARALLAX_STORE", "other.dat")
    assert "no blockstore at other.dat" in tool("vdi_list", status=3).err
    monkeypatch.delenv("PARALLAX_STORE")
    config.unlink()
    monkeypatch.setattr("plxsh.context.DEFAULT_STORE", "default.dat")
    assert "no blockstore at default.dat" in tool("vdi_list", status=3).err


@pytest.mark.parametrize("terminal", [True, False])
def test_the_daemon_says_on_a_terminal_what_it_serves(
    plx: Plx, tool: Tool, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    def serve(_: Session, *, ready: Callable[[], None], **where: object) -> None:
        assert where["unix"] == "run/parallax/nbd.sock"
        ready()

    monkeypatch.setattr("core.tap.server.serve", serve)
    monkeypatch.delenv("PARALLAX_RUN_DIR")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    result = tool("parallaxd")
    assert result.out == ""
    told = f"serving {plx.path} on run/parallax/nbd.sock; Ctrl-C ends it\n"
    assert result.err == (told if terminal else "")


DAEMONS = ("parallaxd", "plxlockmaster")
EXAMPLES = [line for tool in TOOLS.values() for line in tool.examples]


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in EXAMPLES if line not in DAEMONS])
def test_the_example_works(plx: Plx, snapshot: tuple[str, str], line: str) -> None:
    plx("vdi", "export", "base", "image")
    os.rename(plx.path, "store")
    environment = {
        **os.environ,
        "PARALLAX_STORE": "store",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        line.replace("16 0", " ".join(snapshot)),
        shell=True,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def listens(path: str) -> bool:
    """Whether somebody does; a socket file is there a little before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("plx")
def test_the_example_of_the_daemon_works() -> None:
    with tempfile.TemporaryDirectory(prefix="plx") as folder:
        path = f"{folder}/parallax/nbd.sock"
        code = "import os; os.geteuid = lambda: 1000; from plxsh.classic import parallaxd as d; d()"
        environment = {**os.environ, "XDG_RUNTIME_DIR": folder}
        del environment["PARALLAX_RUN_DIR"]
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as daemon:
            until = time.monotonic() + 60
            while not listens(path) and time.monotonic() < until:
                assert daemon.poll() is None
                time.sleep(0.05)
            with closing(connect(path, "base@clean")) as clean:
                assert read(clean, 4096, 4096) == b"a" * 4096
            daemon.terminate()
            assert daemon.wait() == 0


@pytest.mark.slow
def test_the_example_of_the_lock_master_works(tmp_path: Path) -> None:
    config = tmp_path / "parallax.toml"
    config.write_text(f'[lock_master]\nlisten = "127.0.0.1:0"\nstate = "{tmp_path}/new/epoch"\n')
    program = Path(sys.executable).parent / "plxlockmaster"
    with subprocess.Popen(
        [program],
        env={**os.environ, "PARALLAX_CONFIG": str(config)},
        stderr=subprocess.PIPE,
    ) as master:
        until = time.monotonic() + 60
        assert master.stderr is not None
        while b"listens on" not in master.stderr.readline() and time.monotonic() < until:
            assert master.poll() is None
        assert (tmp_path / "new" / "epoch").exists()
        master.terminate()
        assert b"lock master stopped" in master.communicate()[1]
        assert master.returncode == 0
