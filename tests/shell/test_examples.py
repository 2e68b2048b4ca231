"""Every example of every help text works as it stands, in a shell."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from shell.conftest import Plx
from shell.tap import as_user, serving
from shell.test_main import commands

from core.session import Session
from plxsh.cli import cli
from plxsh.context import Settings


def examples() -> list[str]:
    """What the help texts show behind two spaces, as users see it."""
    found: list[str] = []
    for words in commands(cli):
        command: click.Command = cli
        context = click.Context(cli, info_name="plxsh", obj=Settings())
        for word in words:
            assert isinstance(command, click.Group)
            below = command.get_command(context, word)
            assert below is not None
            command = below
            context = click.Context(command, context, word)
        found += re.findall(r"^  (plxsh .*)$", command.get_help(context), re.MULTILINE)
    return found


@pytest.fixture
def shell_environment(plx: Plx, tmp_path: Path) -> dict[str, str]:
    """`plxsh` on the path, a store with `base`, `base@clean` and `web`, an image of base."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "plxsh"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m plxsh "$@"\n')
    script.chmod(0o755)
    plx("snap", "create", "base")  # so that a fill loses nothing
    plx("vdi", "export", "base", "disk.img")
    Path("nightly.plx").write_text("# every night\nuse base; snap create --label nightly\n")
    os.rename(plx.path, plx.folder / "store")
    path = f"{folder}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PARALLAX_STORE": str(plx.folder / "store")}


EXAMPLES = [*dict.fromkeys(examples())]
SERVING = [line for line in EXAMPLES if line.startswith("plxsh tap")]
MASTERS = [line for line in EXAMPLES if line.startswith("plxsh lock master")]
HOLDING = [line for line in EXAMPLES if line.startswith("plxsh -y lock") or " handover" in line]
"""Those that want others to hold something: tests beside a tap run them."""
WATCHING = [line for line in EXAMPLES if line.startswith("plxsh watch")]
_OTHERS = SERVING + MASTERS + HOLDING + WATCHING


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in EXAMPLES if line not in _OTHERS])
def test_the_example_works(line: str, shell_environment: dict[str, str]) -> None:
    if line == "plxsh -y vdi delete web --snapshots":
        with Session.open(shell_environment["PARALLAX_STORE"]) as session:
            session.snapshot(session.registry.find("web"))
    if line.startswith("plxsh vdi restore old"):
        with Session.open(shell_environment["PARALLAX_STORE"]) as session:
            session.delete(session.create("old"))
    done = subprocess.run(
        line, shell=True, env=shell_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_examples_of_the_tap_work(shell_environment: dict[str, str]) -> None:
    assert [line.split()[2] for line in SERVING] == ["list", *["serve"] * 4]
    for line in SERVING[1:]:
        words = re.sub(r":\d+", ":0", line).split()[1:]
        with serving(*words, environment=shell_environment):
            if words == ["tap", "serve"]:
                done = as_user(*SERVING[0].split()[1:], environment=shell_environment)
                assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("line", MASTERS)
def test_the_examples_of_the_lock_master_work(line: str, shell_environment: dict[str, str]) -> None:
    words = re.sub(r":\d+", ":0", line).split()[1:]
    with serving(*words, environment=shell_environment):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("line", WATCHING)
def test_the_examples_of_watch_go_on_until_ctrl_c(
    line: str, shell_environment: dict[str, str]
) -> None:
    with subprocess.Popen(
        f"exec {line}",
        shell=True,
        env=shell_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
