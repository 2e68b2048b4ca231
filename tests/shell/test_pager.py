"""Long output on a terminal goes through a pager, and nothing else does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shell.many import store_of_clones
from support.shell import Shell
from support.terminal import Terminal

from core.errors import BadRequest
from plxsh.context import Settings
from plxsh.pager import pager, show

PLXSH = (sys.executable, "-m", "plxsh")
SHOWN = "".join(f"line {number}\n" for number in range(30))


@pytest.fixture(autouse=True)
def no_pager(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAGER", "LESS", "LV"):
        monkeypatch.delenv(name, raising=False)


# -- which one -------------------------------------------------------------------------


def test_which_pager(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pager(Settings()) == "less"
    monkeypatch.setenv("PATH", "/nonexistent")
    assert pager(Settings()) == ""
    monkeypatch.setenv("PAGER", "more")
    assert pager(Settings()) == "more"
    configured = Settings(config={"shell": {"pager": "most -s"}})
    assert pager(configured) == "most -s"
    monkeypatch.setenv("PARALLAX_PAGER", "cat")
    assert pager(configured) == ""
    monkeypatch.setenv("PARALLAX_PAGER", "")
    assert pager(configured) == ""
    monkeypatch.delenv("PARALLAX_PAGER")
    with pytest.raises(BadRequest, match=r"\[shell\] pager of the configuration is 1"):
        pager(Settings(config={"shell": {"pager": 1}}))


@pytest.fixture
def paged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Settings], str]:
    """Shows a text on a terminal of 20 columns and 10 rows; returns what a pager was given."""
    monkeypatch.setenv("PARALLAX_PAGER", f"tee {tmp_path}/given >/dev/null; echo paged")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(
        "plxsh.pager.shutil.get_terminal_size", lambda **_: os.terminal_size((20, 10))
    )
    monkeypatch.setattr("plxsh.pager.termios.tcgetattr", lambda _: [])
    monkeypatch.setattr("plxsh.pager.termios.tcsetattr", lambda *_: None)
    given = tmp_path / "given"

    def showing(text: str, settings: Settings) -> str:
        given.write_text("")
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout.isatty", lambda: True)
            show(settings, text)
        return given.read_text()

    return showing


@pytest.mark.parametrize(
    ("text", "long"),
    [
        ("x\n" * 9, False),
        ("x\n" * 10, True),
        ("x" * 20 + "\n" + "x\n" * 8, False),
        ("x" * 21 + "\n" + "x\n" * 8, True),
        ("\x1b[1m" + "x" * 20 + "\x1b[0m\n" + "x\n" * 8, False),
        ("디" * 11 + "\n" + "x\n" * 8, True),
        ("", False),
    ],
)
def test_what_is_long(
    text: str,
    long: bool,
    paged: Callable[[str, Settings], str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert paged(text, Settings()) == (text if long else "")
    shown = capfd.readouterr().out
    assert shown == "paged\n" if long else shown.startswith(text[:1])


def test_where_nothing_is_paged(
    paged: Callable[[str, Settings], str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert paged(SHOWN, Settings(paged=False)) == ""
    assert capfd.readouterr().out == SHOWN
    monkeypatch.setenv("TERM", "dumb")
    assert paged(SHOWN, Settings()) == ""
    assert capfd.readouterr().out == SHOWN
    monkeypatch.setenv("TERM", "xterm")
    show(Settings(), SHOWN)  # no terminal
    assert capfd.readouterr().out == SHOWN


def test_a_pager_that_there_is_not(
    paged: Callable[[str, Settings], str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARALLAX_PAGER", "no-such-pager -x")
    paged(SHOWN, Settings())
    assert capfd.readouterr().out == SHOWN


def test_who_leaves_early_breaks_nothing(
    paged: Callable[[str, Settings], str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARALLAX_PAGER", "head -1; exit 3")
    paged("x" * 9 + "\n" + SHOWN * 100_000, Settings())
    assert capfd.readouterr().out == "x" * 9 + "\n"


def test_less_is_told_to_show_colours(
    paged: Callable[[str, Settings], str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARALLAX_PAGER", "cat >/dev/null; echo $LESS")
    paged(SHOWN, Settings())
    monkeypatch.setenv("LESS", "S")
    paged(SHOWN, Settings())
    assert capfd.readouterr().out == "FRXK\nS\n"


# -- on a terminal ---------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> dict[str, str | None]:
    """The environment of a store with 101 VDIs."""
    path = tmp_path / "many.dat"
    store_of_clones(path, 100)
    return {"PARALLAX_STORE": str(path), "PAGER": None, "LESS": None, "TERM": "xterm"}


@pytest.mark.slow
def test_a_long_list_is_read_page_by_page(many: dict[str, str | None]) -> None:
    with Terminal([*PLXSH, "vdi", "list"], env=many, rows=20) as terminal:
        terminal.wait_for(lambda: terminal.screen[-1] == ":")
        assert terminal.screen[0].split()[:2] == ["Id", "Name"]
        terminal.send(" ")
        terminal.wait_for("clone-30")
        terminal.send("G")
        terminal.wait_for("clone-100")
        terminal.send("q")
        assert terminal.wait() == 0
        assert not terminal.find("plxsh:")


@pytest.mark.slow
def test_between_two_prompts(many: dict[str, str | None]) -> None:
    with Shell(env=many, rows=20) as shell:
        shell.enter("vdi list")
        shell.wait_for(lambda: shell.screen[-1] == ":")
        shell.key("c-c")
        shell.prompt()
        shell.enter("vdi show clone-7")
        shell.wait_for("Served by")
        shell.prompt()


@pytest.mark.slow
def test_a_pager_that_is_left_at_once(many: dict[str, str | None]) -> None:
    line = f"{' '.join(PLXSH)} vdi list; echo status $?; stty -a | grep -o ' .*icanon'"
    with Terminal(["sh", "-c", line], env=many, rows=20) as terminal:
        terminal.wait_for(lambda: terminal.screen[-1] == ":")
        terminal.send("q")
        terminal.wait_for("status 0")
        terminal.wait_for("icanon")
        assert not terminal.find("-icanon")


@pytest.mark.slow
def test_a_pager_that_is_killed_gives_the_terminal_back(many: dict[str, str | None]) -> None:
    many["PARALLAX_PAGER"] = "stty raw -echo </dev/tty; cat >/dev/null; kill -9 $$"
    line = f"{' '.join(PLXSH)} vdi list; echo over; stty -a"
    with Terminal(["sh", "-c", line], env=many, rows=20) as terminal:
        terminal.wait_for("icanon")
        terminal.wait()
        assert not terminal.find("-icanon")
        assert not terminal.find("-echo ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"TERM": "dumb"}, {"PARALLAX_PAGER": ""}, {"PAGER": "cat"}], ids=str
)
def test_without_a_pager_it_scrolls(
    many: dict[str, str | None], change: dict[str, str | None]
) -> None:
    with Terminal([*PLXSH, "vdi", "list"], env={**many, **change}, rows=20) as terminal:
        assert terminal.wait() == 0
        assert terminal.find("clone-100")
        assert len(terminal.scrollback) > 80
