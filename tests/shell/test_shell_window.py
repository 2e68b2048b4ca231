"""What stands around the line: prompt, toolbar, pager; windows of any size; no colours."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from shell.conftest import OpenShell
from shell.tap import environment, held_port, serving
from support.shell import Shell
from support.terminal import Terminal

from core.session import Session

pytestmark = pytest.mark.slow

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def colours(text: str) -> set[str]:
    """The codes for colours and attributes in what a program wrote, without the resets."""
    return set(_ESCAPE.findall(text)) - {"\x1b[0m", "\x1b[m"}


def toolbar(shell: Shell) -> str:
    return shell.drawn[-1]


def many(store: Path, count: int = 100) -> None:
    with Session.open(str(store)) as session:
        for number in range(count):
            session.create(f"disk-{number:03}", 1 << 20)


# -- toolbar and prompt ----------------------------------------------------------------


def test_the_toolbar_shows_the_store_and_its_use(shell: Shell, store: Path) -> None:
    shell.wait_for(lambda: store.name in toolbar(shell) and "MiB" in toolbar(shell))
    assert "of 5 MiB" in toolbar(shell)
    with shell.still():
        [colour] = {cell.fg for cell in shell.cells("MiB used")}
    assert colour != "default"


@pytest.mark.parametrize("columns", [80, 140])
def test_the_toolbar_shows_who_has_the_store(
    open_shell: OpenShell, store: Path, columns: int
) -> None:
    shell = open_shell(columns=columns)
    shell.wait_for(lambda: "free" in toolbar(shell))
    with Session.open(str(store)):
        shell.wait_for(lambda: "locked by" in toolbar(shell))
        if columns > 80:
            assert f"(pid {os.getpid()})" in toolbar(shell)
    shell.wait_for(lambda: "free" in toolbar(shell))


def test_the_toolbar_follows_the_lock_master(
    open_shell: OpenShell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with held_port() as port:
        address = f"127.0.0.1:{port}"
        monkeypatch.setenv("PARALLAX_LOCK_MASTER", address)
        shell = open_shell(columns=140)
        shell.wait_for(lambda: f"lock master {address} is down" in toolbar(shell))
        state = str(tmp_path / "locks.epoch")
        words = ("lock", "master", "--listen", address, "--state", state)
        with serving(*words, environment=environment()):
            shell.wait_for(lambda: "is down" not in toolbar(shell))
            assert f"lock master {address} " in toolbar(shell)
        shell.wait_for(lambda: f"lock master {address} is down" in toolbar(shell))


def test_the_toolbar_shows_the_tap_beside_it(
    open_shell: OpenShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = environment()
    with serving("tap", "serve", environment=variables):
        monkeypatch.setenv("PARALLAX_RUN_DIR", variables["PARALLAX_RUN_DIR"])
        shell = open_shell(columns=140)
        shell.wait_for(lambda: "lock master in the tap" in toolbar(shell))
    shell.wait_for(lambda: "lock master embedded, free" in toolbar(shell))


def test_the_toolbar_warns_of_a_dry_run(open_shell: OpenShell) -> None:
    shell = open_shell("-n")
    shell.wait_for(lambda: "dry run" in toolbar(shell))
    assert "would create" in shell.run("vdi create other")[0]


def test_use_shows_in_prompt_and_toolbar_and_is_the_default(shell: Shell, store: Path) -> None:
    shell.run("use base")
    assert shell.find_all("base>") or "base" in shell.line
    shell.wait_for(lambda: "base" in toolbar(shell))
    shell.run("snap create --label nightly")
    shell.clear()
    assert "nightly" in "".join(shell.run("snap list"))
    assert "64 KiB" in "".join(shell.run("vdi show"))
    assert any("clean" in row for row in shell.run("snap diff @clean @nightly; snap list"))
    with Session.open(str(store), "read") as session:
        assert session.find_snapshot("base@nightly")
    shell.run("use --none")
    assert "base" not in shell.line
    assert shell.run("snap list")[0].startswith("plxsh: snap list: ")


def test_use_of_a_name_with_spaces(shell: Shell) -> None:
    shell.run('use "My new VDI"')
    assert "My new VDI" in shell.line
    assert "before upgrade" in "".join(shell.run("snap list"))


def test_a_destructive_command_does_not_take_the_default(shell: Shell, store: Path) -> None:
    shell.run("use web")
    shown = shell.run("vdi delete")
    assert shown[0].startswith("plxsh: vdi delete: ")
    with Session.open(str(store), "read") as session:
        assert session.registry.find("web")


def test_the_vdi_in_use_goes_away(shell: Shell) -> None:
    shell.run("use web")
    shell.run("vdi delete -y web")
    assert shell.run("vdi show")[0].startswith("plxsh: vdi show: there is no VDI 'web' (")
    assert shell.run("use")[0].startswith("plxsh: use: there is no VDI 'web' (")
    shell.wait_for(lambda: "VDI web is gone" in toolbar(shell))
    assert shell.run("!echo on") == ["on"]
    shell.run("vdi restore web")
    shell.wait_for(lambda: "gone" not in toolbar(shell))


def test_the_vdi_in_use_gets_another_name(shell: Shell, store: Path) -> None:
    shell.run("use web")
    shell.wait_for(lambda: "VDI web" in toolbar(shell))
    with Session.open(str(store)) as session:
        session.rename(session.registry.find("web"), "www")
    shell.wait_for(lambda: "plxsh www>" in shell.line and "VDI www" in toolbar(shell))
    assert shell.run("use") == ["www"]


def test_a_vdi_that_was_just_made_is_not_gone(shell: Shell) -> None:
    for number in range(3):
        shell.run(f"vdi create fresh{number}; use fresh{number}")
        assert "gone" not in toolbar(shell)


# -- pager -----------------------------------------------------------------------------


def test_long_output_goes_through_a_pager(shell: Shell, store: Path) -> None:
    many(store)
    shell.start("vdi list")
    shell.wait_for(lambda: shell.find("disk-005"))
    assert not shell.find("disk-099")
    shell.send("G")
    shell.wait_for("disk-099")
    shell.send("q")
    shell.prompt()
    assert shell.run("!echo on") == ["on"]


def test_leaving_a_pager_early_is_no_error(shell: Shell, store: Path) -> None:
    many(store, 110)
    shell.start("vdi list")
    shell.wait_for("disk-005")
    shell.key("c-c")
    shell.prompt()
    assert "plxsh: " not in shell.text
    assert shell.status is None


def test_output_that_fits_is_not_paged(shell: Shell) -> None:
    shell.run("vdi list")
    assert "\x1b[?1049h" not in shell.transcript


# -- windows of any size ---------------------------------------------------------------


def test_toolbar_and_tables_follow_the_window(shell: Shell, store: Path) -> None:
    many(store, 1)
    shell.wait_for(lambda: store.name in toolbar(shell))
    wide = len(shell.run("vdi list")[0])
    shell.resize(50, 16)
    shell.wait_for(lambda: store.name in shell.screen[15])
    narrow = shell.run("vdi list")
    assert max(map(len, narrow)) <= 50
    assert len(narrow[0]) < wide
    shell.resize(120, 30)
    shell.wait_for(lambda: store.name in shell.screen[29])
    assert not shell.screen[15].startswith(" " + store.name)


def test_twenty_columns(open_shell: OpenShell) -> None:
    shell = open_shell(columns=20)
    shown = shell.run("vdi list")
    assert any("base" in row for row in shown)
    assert [row.split()[0] for row in shown[1:5]] == ["0", "1", "2", "3"]  # one row a VDI
    shell.send("vdi show ")
    shell.key("tab")
    shell.settle()
    shell.drop()
    shell.run("use base")
    assert "Traceback" not in shell.transcript
    assert "Window too small" not in shell.transcript


def test_a_window_of_five_rows(open_shell: OpenShell) -> None:
    shell = open_shell(rows=5)
    shell.type("vdi show ")
    shell.key("tab")
    shell.settle()
    shell.drop()
    assert shell.run("!echo on")[-1] == "on"
    assert "Window too small" not in shell.transcript


# -- terminals without colours, and dumb ones ------------------------------------------


@pytest.mark.parametrize("how", ["environment", "option"])
def test_no_color(open_shell: OpenShell, how: str) -> None:
    if how == "environment":
        shell = open_shell(env={"NO_COLOR": "1"})
    else:
        shell = open_shell("--no-color")
    shell.run("vdi list")
    shell.type("vdi wrong ")
    shell.key("c-u")
    shell.run("tree")
    seen = colours(shell.transcript)
    coloured = {code for code in seen if re.search(r"[;\[](3[0-8]|4[0-8]|9\d|10\d)[;m]", code)}
    assert coloured == set()


def test_colours_are_there_otherwise(shell: Shell) -> None:
    shell.type("vdi wrong ")
    shell.wait_for(lambda: len(colours(shell.transcript)) > 2)


def test_a_dumb_terminal(open_shell: OpenShell, store: Path) -> None:
    shell = open_shell(env={"TERM": "dumb"})
    shown = shell.run("vdi list")
    assert "My new VDI" in "".join(shown)
    shell.start("vdi delete web")
    shell.wait_for("[y/N]")
    shell.enter("")
    shell.prompt()
    shell.start("watch 0.2 vdi show web")
    shell.wait_for(lambda: shell.text.count("State      ok") > 1)
    shell.key("c-c")
    shell.prompt()
    assert "\x1b" not in shell.transcript.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
    shell.key("c-d")
    assert shell.wait() == 0
    with Session.open(str(store), "read") as session:
        assert session.registry.find("web")


def test_a_terminal_that_nobody_describes(open_shell: OpenShell) -> None:
    shell = open_shell(env={"TERM": "no-such-terminal"})
    assert len(shell.run("vdi list")) == 5


def test_the_window_is_closed(shell: Shell) -> None:
    shell.type("vdi li")
    shell.close()
    assert shell.status is not None
    assert isinstance(shell, Terminal)
