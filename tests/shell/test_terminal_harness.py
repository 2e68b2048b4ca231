"""The terminal of the tests is itself right: every screen test stands on it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.terminal import ScreenError, Terminal

pytestmark = pytest.mark.slow

Open = Callable[..., Terminal]
BASH = ("bash", "--norc", "--noprofile", "-i")
PS1 = {"PS1": "ready$ ", "HISTFILE": None}


@pytest.fixture
def open_terminal() -> Iterator[Open]:
    """Opens terminals, and closes them after the test."""
    opened: list[Terminal] = []

    def opening(*argv: str, **options: object) -> Terminal:
        opened.append(Terminal(argv, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield opening
    for terminal in opened:
        terminal.close()


@pytest.fixture
def bash(open_terminal: Open) -> Terminal:
    terminal = open_terminal(*BASH, env=PS1)
    terminal.wait_for("ready$")
    return terminal


def test_what_is_typed_is_run(bash: Terminal) -> None:
    bash.enter("echo $((6 * 7))")
    bash.wait_for(lambda: bash.cursor == (2, 7))
    assert bash.screen[:3] == ["ready$ echo $((6 * 7))", "42", "ready$"]
    assert bash.text.endswith("\nready$")
    assert bash.find("42") == (1, 0)
    assert bash.find("43") is None


def test_it_is_the_controlling_terminal(bash: Terminal) -> None:
    bash.enter("echo here > /dev/tty; tty; sleep 100 &")
    bash.wait_for("/dev/pts/")
    assert "here" in bash.screen
    bash.enter("kill %1; sleep 100; echo interrupted")
    bash.wait_until_runs("sleep")
    bash.key("c-c")
    bash.wait_for("^C")
    bash.wait_for(lambda: bash.screen[bash.cursor.row] == "ready$")
    assert "interrupted" not in bash.screen  # Ctrl-C drops the rest of the line
    bash.key("c-d")
    assert bash.wait() == 130


def test_status_of_what_ends(open_terminal: Open) -> None:
    terminal = open_terminal("sh", "-c", "echo gone; exit 3")
    assert terminal.wait() == 3
    assert terminal.text == "gone"
    terminal = open_terminal("sh", "-c", "kill -TERM $$")
    assert terminal.wait() == -signal.SIGTERM


def test_all_output_is_there_when_it_ends(open_terminal: Open) -> None:
    terminal = open_terminal("seq", "5000")
    assert terminal.wait() == 0
    assert [*terminal.scrollback, *terminal.screen][:5000] == [str(n) for n in range(1, 5001)]
    assert terminal.transcript.startswith("1\r\n2\r\n")


def test_what_does_not_come_fails_with_the_screen(bash: Terminal) -> None:
    with pytest.raises(ScreenError, match=r"'nothing' did not come(.|\n)*\|ready\$ +\|"):
        bash.wait_for("nothing", patience=0.2)
    bash.enter("exit 5")
    with pytest.raises(ScreenError, match="ended with status 5"):
        bash.wait_for("nothing")
    with pytest.raises(ScreenError, match="is not on the screen"):
        bash.cells("nothing")


def test_who_lets_go_of_the_terminal_ends_a_little_later(open_terminal: Open) -> None:
    terminal = open_terminal("sh", "-c", "exec <&- >&- 2>&-; sleep 0.3; exit 5")
    with pytest.raises(ScreenError, match="ended with status 5"):
        terminal.wait_for("nothing")


def test_what_a_program_is_doing(open_terminal: Open) -> None:
    terminal = open_terminal("sh", "-c", "printf 'what? '; read answer; sleep 100; exit 5")
    terminal.wait_until_asks("what?")
    with pytest.raises(ScreenError, match="did not come, the program goes on"):
        terminal.wait_for(lambda: "sleep" in terminal.foreground, patience=0.2)
    terminal.key("enter")
    terminal.wait_until_runs("sleep")
    terminal.key("c-c")
    assert terminal.wait() == -signal.SIGINT


def test_wait_for_what_goes_and_for_files(bash: Terminal, tmp_path: Path) -> None:
    bash.enter("echo something")
    bash.wait_for("something")
    bash.enter(f"clear; touch {tmp_path}/made")
    bash.wait_gone("something")
    bash.wait_for((tmp_path / "made").exists)


def test_the_cursors_position_is_told(open_terminal: Open) -> None:
    ask = (
        "import os, tty; tty.setraw(0); os.write(1, b'\\x1b[3;5Hx\\x1b[6n');"
        "print(repr(os.read(0, 99)), end='\\r\\n'); os.write(1, b'y' * 80 + b'\\x1b[6n');"
        "print(repr(os.read(0, 99)))"
    )
    terminal = open_terminal(sys.executable, "-c", ask)
    assert terminal.wait() == 0
    assert r"\x1b[3;6R" in terminal.text
    assert r"\x1b[4;80R" in terminal.text  # never beyond the window


def test_colours_and_attributes(open_terminal: Open) -> None:
    codes = {
        "red": "31",
        "loud": "1;92;44",
        "many": "38;5;208",
        "true": "38;2;1;2;3",
        "back": "48;2;250;128;0;7",
    }
    text = "".join(f"\x1b[{code}m{name}\x1b[0m plain " for name, code in codes.items())
    terminal = open_terminal("printf", "%s", text)
    assert terminal.wait() == 0
    red, loud, many, true, back = (terminal.cells(name)[-1] for name in codes)
    assert (red.fg, red.bg, red.bold) == ("red", "default", False)
    assert (loud.fg, loud.bg, loud.bold) == ("brightgreen", "blue", True)
    assert many.fg == "ff8700"
    assert true.fg == "010203"
    assert (back.bg, back.reverse) == ("fa8000", True)
    assert terminal.cells("plain")[0] == terminal.cell(0, 4)._replace(data="p")


def test_wide_characters_take_two_columns(open_terminal: Open) -> None:
    terminal = open_terminal("printf", "日本語 x\\n\x1b[1m日\x1b[0m本")
    assert terminal.wait() == 0
    assert terminal.screen[:2] == ["日本語 x", "日本"]
    assert terminal.find("x") == (0, 7)
    assert [cell.bold for cell in terminal.cells("日本")] == [True, False]
    narrow = open_terminal("printf", "abcd日本", columns=5)
    assert narrow.wait() == 0
    assert narrow.screen[:2] == ["abcd", "日本"]


def test_keys_reach_the_program(open_terminal: Open) -> None:
    terminal = open_terminal("cat", "-v", env={"TERM": "dumb"})
    terminal.send("é")
    terminal.key("up", "f1", "f5", "s-tab", "home", "delete", "a-f", "esc", "c-a")
    terminal.key("enter")
    terminal.wait_for(r"M-CM-)^[[A^[OP^[[15~^[[Z^[[H^[[3~^[f^[^A")
    terminal.key("c-d")
    assert terminal.wait() == 0


def test_keys_of_an_application(open_terminal: Open) -> None:
    """With DECCKM set, arrows are ESC O A; bash's line editor knows both."""
    terminal = open_terminal("sh", "-c", "printf '\\033[?1h'; exec cat -v")
    terminal.wait_for(lambda: "[?1h" in terminal.transcript)
    terminal.key("up", "end", "enter")
    terminal.wait_for("^[OA^[OF")


def test_paste_is_marked_for_those_who_want_to_know(bash: Terminal, open_terminal: Open) -> None:
    assert "\x1b[?2004h" in bash.transcript
    bash.paste("echo one\necho two")
    bash.wait_for("echo two")
    bash.settle(0.2)
    assert "one" not in bash.screen  # nothing runs before Enter
    bash.key("enter")
    bash.wait_for(lambda: {"one", "two"} <= {*bash.screen})
    terminal = open_terminal("cat", "-v")
    terminal.paste("a\nb\n")
    # cat may answer in the middle of a row that is being echoed.
    terminal.wait_for(lambda: terminal.transcript.count("b") == 2)
    assert "200~" not in terminal.text


def test_the_window_changes_its_size(open_terminal: Open) -> None:
    told = "trap 'echo now $(stty size)' WINCH; seq 30; while :; do sleep 0.1; done"
    terminal = open_terminal("sh", "-c", told)
    terminal.wait_for("30")
    terminal.resize(40, 10)
    terminal.wait_for("now 10 40")
    assert len(terminal.screen) == 10
    assert len(terminal.picture().splitlines()[0]) == 42
    assert "20" in terminal.scrollback
    terminal.resize(100, 30)
    terminal.wait_for("now 30 100")


def test_a_smaller_window_keeps_what_is_above_the_cursor(open_terminal: Open) -> None:
    terminal = open_terminal("sh", "-c", "printf 'one\\ntwo\\n'; exec cat")
    terminal.wait_for(lambda: terminal.cursor == (2, 0))  # the end of a row comes by itself
    terminal.resize(80, 5)
    assert terminal.screen == ["one", "two", "", "", ""]
    terminal.resize(80, 2)
    assert terminal.screen == ["two", ""]
    assert terminal.scrollback == ["one"]
    assert terminal.cursor == (1, 0)


def test_a_pager_and_back(bash: Terminal, tmp_path: Path) -> None:
    (tmp_path / "long").write_text("".join(f"line {n}\n" for n in range(100)))
    bash.enter(f"echo before; less {tmp_path}/long")
    bash.wait_for("line 22")
    assert bash.alternate
    assert "before" not in bash.screen
    bash.key("pagedown")
    bash.wait_for("line 40")
    bash.resize(80, 10)
    bash.settle()
    assert bash.alternate
    assert len(bash.screen) == 10
    assert bash.find("line")
    bash.send("q")
    bash.wait_for("before")
    assert not bash.alternate
    assert bash.find("line 4") is None
    bash.wait_for(lambda: bash.screen[bash.cursor.row] == "ready$")
    assert bash.scrollback == []


def test_close_ends_who_does_not_listen(open_terminal: Open) -> None:
    terminal = open_terminal("sh", "-c", "trap '' HUP; echo deaf; while :; do sleep 1; done")
    terminal.wait_for("deaf")
    terminal.close()
    assert terminal.status == -signal.SIGKILL
    terminal.close()  # once more does nothing


def test_environment(open_terminal: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "7")
    monkeypatch.setenv("KEPT", "yes")
    monkeypatch.setenv("TAKEN", "away")
    shown = "echo [$COLUMNS] [$KEPT] [$TAKEN] [$GIVEN] $TERM; pwd"
    env = {"TAKEN": None, "GIVEN": "too"}
    terminal = open_terminal("sh", "-c", shown, env=env, cwd="/usr")
    terminal.wait()
    assert terminal.screen[:2] == ["[] [yes] [] [too] xterm-256color", "/usr"]
