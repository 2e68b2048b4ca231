"""What an error advises can be done: commands and options that hints name exist, and work."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from shell.conftest import Plx

from core import errors
from core.format import BLOCK
from plxsh import classic
from plxsh.cli import cli, run
from plxsh.context import Settings

ROOT = Path(__file__).parents[2]
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}
COMMAND = re.compile(r"'((?:plxsh )?(?:[a-z_]+)(?: [^']*)?)'")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
QUOTED = re.compile(r"'[^']*'")
SAMPLES = {"SIZE": "1", "SNAPSHOT": "v@l", "INTERVAL": "1h", "N": "1", "SECONDS": "1"}


def text_of(node: ast.expr) -> str | None:
    """A string with `7` for what is only known at run time, None for another expression."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) or "7" for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (text_of(left) or "7") + (text_of(right) or "7")
        case ast.BoolOp(values=parts) | ast.Tuple(elts=parts):
            return " or ".join(filter(None, map(text_of, parts)))
        case ast.IfExp(body=body, orelse=orelse):
            return " or ".join(filter(None, map(text_of, (body, orelse))))
    return None


@cache
def hints() -> list[tuple[str, str]]:
    """(where, text) of the hints of errors, also of those that stand in a variable before."""
    found = []
    for path in sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("plxsh/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            said: list[ast.expr] = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS:
                said = [*node.args[1:], *(word.value for word in node.keywords)]
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.Return) and node.value:
                said = [node.value]
            for expression in said:
                text = text_of(expression)
                if text and "\n" not in text:
                    found.append((f"{path.relative_to(ROOT)}:{expression.lineno}", text))
    return found


def leaves(command: click.Command) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        context = click.Context(command, obj=Settings())
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from leaves(found)
    yield command


@cache
def options() -> frozenset[str]:
    context = click.Context(cli, obj=Settings())
    commands = [*leaves(cli), *classic.TOOLS.values()]
    return frozenset(
        option for one in commands for param in one.get_params(context) for option in param.opts
    )


def refusal(words: list[str]) -> str:
    """Why a command line cannot be parsed; empty when it only lacks arguments, or nothing."""
    command: click.Command = cli
    context = click.Context(cli, obj=Settings())
    if words[0] == "plxsh":
        words = words[1:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        if found is None:
            return f"there is no command {words[0]}"
        command, words = found, words[1:]
    known = {option for param in command.get_params(context) for option in param.opts}
    missing = [word for word in words if OPTION.fullmatch(word) and word not in known]
    if missing:
        return f"{command.name} has no option {missing[0]}"
    try:
        command.make_context("x", list(words), obj=Settings())
    except (click.MissingParameter, click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        return ""
    except click.ClickException as error:
        return error.format_message()
    return ""


def commands_in(text: str) -> Iterator[str]:
    for line in COMMAND.findall(text):
        line = line.rpartition("| ")[2].partition(" < ")[0]
        first = line.split()[0]
        if first == "plxsh" or (first in cli.list_commands(click.Context(cli)) and " " in line):
            yield line


def test_commands_that_hints_name_can_be_parsed() -> None:
    found = 0
    for where, text in hints():
        for line in commands_in(text):
            words = [SAMPLES.get(word, word) for word in shlex.split(line)]
            assert refusal(words) == "", (where, line)
            found += 1
    assert found > 30


def test_options_that_hints_name_exist() -> None:
    found = 0
    for where, text in hints():
        if where.startswith("core/qemu_img.py"):
            continue  # it speaks of those of qemu-img
        ours = QUOTED.sub(lambda quoted: quoted[0] if [*commands_in(quoted[0])] else "", text)
        for option in OPTION.findall(ours):
            assert option in options(), (where, text)
            found += 1
    assert found > 30


def test_what_looks_through_hints_finds_mistakes() -> None:
    assert refusal(["plxsh", "vdi", "crate"])
    assert refusal(["vdi", "create", "x", "--sise", "1"])
    assert refusal(["plxsh", "vdi", "create", "x", "--size", "much"])
    assert refusal(["plxsh", "vdi", "create"]) == ""
    assert [*commands_in("use 'vdi list', 'ls x' or 'a | plxsh vdi fill VDI -'")] == [
        "vdi list",
        "plxsh vdi fill VDI -",
    ]


# -- followed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "hint", "followed"),
    [
        (["vdi", "show", "none"], "'plxsh vdi list'", ["vdi list"]),
        (["vdi", "show", "bsae"], "did you mean 'base'?", ["vdi show base"]),
        (["vdi", "restore", "none"], "'plxsh vdi list --deleted'", ["vdi list --deleted"]),
        (["snap", "delete", "base@none"], "'plxsh snap list VDI'", ["snap list base"]),
        (["vdi", "create", "x", "--from", "base@"], "'plxsh snap list VDI'", ["snap list base"]),
        (
            ["vdi", "fill", "web", "large.img"],
            "make the VDI larger with 'vdi resize'",
            ["vdi resize web 1M", "vdi fill web large.img"],
        ),
        (
            ["vdi", "export", "base", "large.img"],
            "use --force to replace it",
            ["-y vdi export base large.img --force"],
        ),
        (["snap", "every", "base", "1h"], "--keep, such as 100", ["snap every base 1h --keep 100"]),
        (["-y", "vdi", "delete", "odd"], "--snapshots", ["-y vdi delete odd --snapshots"]),
        (
            ["vdi", "create", "x", "--from", "base@clean", "--size", "4K"],
            "clone it without --size, then use 'vdi resize --force'",
            ["vdi create x --from base@clean", "-y vdi resize x 4K --force"],
        ),
        (
            ["vdi", "resize", "base", "4K"],
            "use --force to lose them",
            ["-y vdi resize base 4K --force"],
        ),
        (["store", "create", "large.img"], "--force", ["-y store create large.img --force"]),
        (["-s", "x", "vdi", "list"], "'plxsh store create x'", ["store create x", "-s x vdi list"]),
        pytest.param(
            ["vdi", "fill", "web", "b.vmdk"],
            "--format vmdk",
            ["vdi fill web b.vmdk --format vmdk"],
            marks=pytest.mark.slow,
        ),
        (["vdi", "fill", "web", "b.vmdk"], "--format raw", ["vdi fill web b.vmdk --format raw"]),
        (
            ["vdi", "export", "odd", "o.vhd", "--format", "vpc"],
            "export it as raw",
            ["vdi export odd o.img"],
        ),
        (
            ["vdi", "create"],
            "write 'plxsh vdi create NAME [BLOCK OFFSET]'",
            ["vdi create name"],
        ),
    ],
)
def test_a_hint_that_is_followed_helps(
    plx: Plx,
    capfd: pytest.CaptureFixture[str],
    args: list[str],
    hint: str,
    followed: list[str],
) -> None:
    Path("large.img").write_bytes(b"x" * (1 << 20))
    Path("b.vmdk").write_bytes(b"KDMV".ljust(BLOCK, b"\0"))
    if "vmdk --format vmdk" in followed[0]:
        subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", "b.vmdk", "64K"], check=True)
    plx("vdi", "create", "odd", "--size", "1001")
    plx("snap", "create", "odd")
    assert run(args) != 0
    assert hint in capfd.readouterr().err
    for line in followed:
        plx(*shlex.split(line))


PLXSH = [sys.executable, "-m", "plxsh"]


@pytest.mark.slow
@pytest.mark.parametrize("program", ["gzip", "xz", "bzip2", "zstd", "lz4"])
def test_a_compressed_image_is_unpacked_as_the_hint_says(plx: Plx, program: str) -> None:
    data = bytes(range(256)) * 200
    Path("disk.img").write_bytes(data)
    with open("disk.packed", "wb") as packed:
        subprocess.run([program, "-c", "disk.img"], stdout=packed, check=True)
    line = plx.fails(2, "vdi", "fill", "web", "disk.packed")
    assert f"disk.packed is compressed ({program})" in line
    [pipe] = re.findall(r"'(.*?)'", line.partition("on the way: ")[2])
    pipe = pipe.replace("FILE", "disk.packed").replace("VDI", "web")
    assert "plxsh" in pipe
    subprocess.run(pipe.replace("plxsh", shlex.join(PLXSH)), shell=True, check=True)
    plx("vdi", "validate", "web", "disk.img", status=1)  # it was larger
    assert plx("vdi", "export", "web", "back.img").status == 0
    assert Path("back.img").read_bytes()[: len(data)] == data


@pytest.mark.slow
def test_a_qcow2_image_on_standard_input_is_filled_in_as_the_hint_says(plx: Plx) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "b.qcow2", "64K"], check=True)
    piped = f"cat b.qcow2 | {shlex.join(PLXSH)} vdi fill web -"
    done = subprocess.run(piped, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "save it to a file and fill from that" in done.stderr
    assert "--format qcow2" not in done.stderr  # that is refused here
    plx("vdi", "fill", "web", "b.qcow2")


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("vdi_fill", ["web", "b.vmdk"]),
        ("vdi_validate", ["web", "b.vmdk"]),
        ("parallax-mkfs", ["b.vmdk", "1048576", "6"]),
    ],
)
def test_original_tools_advise_no_option_that_they_do_not_have(
    plx: Plx, tool: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("b.vmdk").write_bytes(b"KDMV".ljust(BLOCK, b"\0"))
    assert classic.run(classic.TOOLS[tool], words) == 2
    assert "plxsh" in capfd.readouterr().err.partition(": ")[2]
    assert plx.path.exists()
