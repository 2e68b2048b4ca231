"""The line one types: colours, history, pasting, keys, help on a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyte.screens import Char
from shell.conftest import OpenShell
from support.shell import Shell

pytestmark = pytest.mark.slow

HISTORY = Path(".local/state/parallax/history")


def looks(shell: Shell, word: str) -> set[Char]:
    """Colours and attributes of a word on the screen."""
    with shell.still():
        return {cell._replace(data="") for cell in shell.cells(word)}


def suggested(shell: Shell, text: str) -> bool:
    """Whether a text stands behind the cursor."""
    with shell.still():
        row, column = shell.cursor
        return shell.screen[row][column:].rstrip() == text


def kept() -> list[str]:
    """The lines of the history file."""
    path = Path.home() / HISTORY
    return [line[1:] for line in path.read_text().splitlines() if line.startswith("+")]


# -- colours ---------------------------------------------------------------------------


def wrong_look(shell: Shell) -> Char:
    """How a word looks that is certainly wrong."""
    shell.type("nonsense ")
    shell.wait_for(lambda: coloured(shell, "nonsense"))
    [look] = looks(shell, "nonsense")
    shell.key("c-u")
    shell.prompt()
    return look


def coloured(shell: Shell, word: str) -> bool:
    """Whether a word has one look, and not the usual one."""
    found = looks(shell, word)
    return len(found) == 1 and not any(look.fg == "default" for look in found)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("vdi lisst ", "lisst"),
        ("vdi show wbe ", "wbe"),
        ("vdi list -o jsn ", "jsn"),
        ("vdi list --deltd ", "--deltd"),
        ("vdi create x --size 3Q ", "3Q"),
        ("snap rollback base base@claen ", "base@claen"),
        ("vdi show web extra ", "extra"),
    ],
)
def test_the_wrong_word_is_marked_and_the_others_are_not(
    shell: Shell, line: str, wrong: str
) -> None:
    marked = wrong_look(shell)
    shell.type(line)
    shell.wait_for(lambda: looks(shell, wrong) == {marked})
    for word in line.split():
        if word != wrong:
            assert marked not in looks(shell, word), word


@pytest.mark.parametrize(
    "line",
    [
        "vdi list --output json ",
        'vdi show "My new VDI" ',
        "vdi show 日本語 ",
        "snap diff base@clean base ",
        "vdi create anything --size 3G ",
        "vdi list; tree | grep x ",
        "!anything goes here ",
        "# nor here ",
    ],
)
def test_nothing_is_marked_in_a_line_that_is_right(shell: Shell, line: str) -> None:
    marked = wrong_look(shell)
    shell.type(line)
    shell.settle()
    row = shell.cursor.row
    assert marked not in {shell.cell(row, column)._replace(data="") for column in range(80)}


def test_commands_and_texts_have_colours_of_their_own(shell: Shell) -> None:
    shell.type('vdi show "My new VDI" --output json')
    words = ("vdi", '"My new', "--output")
    shell.wait_for(lambda: len({frozenset(looks(shell, word)) for word in words}) == 3)
    assert [len(looks(shell, word)) for word in words] == [1, 1, 1]


# -- history ---------------------------------------------------------------------------


def test_a_suggestion_from_history_in_grey(shell: Shell) -> None:
    shell.run("vdi show base")
    shell.send("vdi sh")
    shell.wait_for(lambda: suggested(shell, "ow base"))
    with shell.still():
        row, column = shell.cursor
        typed, grey = shell.cell(row, column - 1), shell.cell(row, column)
    assert typed.fg != grey.fg
    shell.key("right")
    shell.wait_for(lambda: suggested(shell, ""))
    shell.key("enter")
    shell.prompt()
    assert "64 KiB" in shell.text


@pytest.mark.parametrize(
    "line",
    [
        "vdi delete -n web",
        "vdi delete web",
        "snap delete base@clean",
        "snap rollback base base@clean",
        "-y vdi delete web",
        "!rm -f x",
        "vdi list; vdi delete web",
        "vdi list > x",
    ],
)
def test_a_destructive_line_is_never_suggested(shell: Shell, line: str) -> None:
    shell.run("vdi show base")
    shell.start(line)
    shell.wait_for(lambda: shell.at_prompt or shell.find("[y/N]") or shell.find("Type "))
    if not shell.at_prompt:
        shell.enter()
    shell.prompt()
    shell.clear()
    shell.send(line[:6])
    shell.settle()
    assert not suggested(shell, line[6:])
    assert line[6:] not in shell.text
    shell.key("c-u")
    shell.send("vdi sh")
    shell.wait_for(lambda: suggested(shell, "ow base"))  # others still are
    shell.key("c-u", "up")
    shell.wait_for(lambda: line in shell.line)  # it is in the history


def test_search_in_history(shell: Shell) -> None:
    shell.run("vdi show base")
    shell.run("vdi list")
    shell.clear()
    shell.key("c-r")
    shell.send("sho")
    shell.wait_for(lambda: "sho" in shell.line and shell.line.endswith("vdi show base"))
    shell.key("enter")
    shell.wait_for("plxsh> vdi show base")
    shell.key("enter")
    shell.prompt()
    assert shell.find("64 KiB (65536 bytes)")


def test_history_goes_on_in_the_next_shell(shell: Shell, open_shell: OpenShell) -> None:
    shell.run("vdi show base")
    shell.key("c-d")
    assert shell.wait() == 0
    again = open_shell()
    again.key("up")
    again.wait_for("> vdi show base")


def test_the_history_file_is_private_and_has_nothing_twice_in_a_row(shell: Shell) -> None:
    for line in ("vdi list", "vdi list", "tree", "vdi list", " vdi show base"):
        shell.run(line)
    path = Path.home() / HISTORY
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert kept() == ["vdi list", "tree", "vdi list"]


def test_a_history_file_that_others_could_read_is_made_private(open_shell: OpenShell) -> None:
    path = Path.home() / HISTORY
    path.parent.mkdir(parents=True)
    path.write_text("\n# a time\n+vdi show base\n")
    path.chmod(0o644)
    shell = open_shell()
    assert path.stat().st_mode & 0o777 == 0o600
    shell.key("up")
    shell.wait_for("> vdi show base")


def test_two_shells_share_a_history(shell: Shell, open_shell: OpenShell) -> None:
    other = open_shell()
    shell.run("vdi show base")
    other.run("vdi show web")
    shell.run("tree")
    assert kept() == ["vdi show base", "vdi show web", "tree"]


def test_a_history_file_of_junk(open_shell: OpenShell) -> None:
    path = Path.home() / HISTORY
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(range(256)) * 64)
    shell = open_shell()
    shell.key("up")
    shell.settle()
    shell.drop()
    assert shell.run("!echo on") == ["on"]


def test_a_history_file_that_cannot_be_written(open_shell: OpenShell) -> None:
    path = Path.home() / HISTORY
    path.mkdir(parents=True)  # a folder is in its place
    shell = open_shell(columns=200)
    [told] = [row for row in shell.screen if "history" in row]
    assert told.startswith("plxsh: ")
    shell.run("vdi show base")
    shell.key("up")
    shell.wait_for("> vdi show base")


# -- pasting and keys ------------------------------------------------------------------


def test_a_paste_of_lines_runs_them_all(shell: Shell) -> None:
    shell.paste("vdi create one --size 1M\nvdi create 'and two' --size 1M\nvdi list\n")
    shell.wait_for("vdi create 'and two' --size 1M")
    shell.settle()
    assert not shell.find("created VDI")  # one can look at it first
    shell.key("enter")
    shell.wait_for("created VDI 5 'and two'")
    shell.wait_for(lambda: any(row.split()[:2] == ["4", "one"] for row in shell.screen))
    shell.prompt()


def test_a_paste_of_one_line_can_be_edited(shell: Shell) -> None:
    shell.paste("vdi show ba")
    shell.wait_for("vdi show ba")
    shell.enter("se")
    shell.wait_for("64 KiB")


def test_a_line_longer_than_the_window(shell: Shell) -> None:
    name = "x" * 150
    shell.send(f"vdi create {name} --size 1M")
    shell.wait_for("--size 1M")
    first, second = (row for row in shell.drawn if "xx" in row)
    assert first + second == f"plxsh> vdi create {name} --size 1M"
    shell.key("enter")
    shell.wait_for("created VDI 4")


def test_ctrl_c_drops_the_line(shell: Shell) -> None:
    shell.type("vdi delete web")
    shell.drop()
    assert "deleted" not in shell.text
    assert "[y/N]" not in shell.text
    assert shell.run("!echo on") == ["on"]
    assert shell.status is None


def test_ctrl_d_leaves_but_not_in_a_line(shell: Shell) -> None:
    shell.type("vdi list")
    shell.key("c-a", "c-d")
    shell.wait_for("> di list")
    shell.drop()
    shell.key("c-d")
    assert shell.wait() == 0


def test_exit_leaves(shell: Shell) -> None:
    shell.start("exit")
    assert shell.wait() == 0


@pytest.mark.parametrize("key", ["f1", "?"])
def test_help_on_the_word_at_the_cursor(shell: Shell, key: str) -> None:
    shell.type("vdi rename ")
    if key == "?":
        shell.send("?")
    else:
        shell.key(key)
    shell.wait_for("Give a VDI another name")
    if shell.alternate:
        shell.send("q")
    shell.wait_for(lambda: shell.line.rstrip().endswith("> vdi rename"))


def test_a_question_mark_in_a_quote_is_one(shell: Shell) -> None:
    shell.run('vdi create "what?" --size 1M')
    assert "what?" in "".join(shell.run("vdi list"))


def test_vi_keys(open_shell: OpenShell) -> None:
    Path("plx.toml").write_text('[shell]\nkeys = "vi"\n')
    shell = open_shell("--config", "plx.toml")
    shell.type("vdi lisx")
    shell.key("esc")
    shell.send("rt0")
    shell.wait_for("vdi list")
    shell.key("enter")
    shell.prompt()
    assert shell.find("My new VDI")


def test_emacs_keys(shell: Shell) -> None:
    shell.type("di list")
    shell.key("c-a")
    shell.send("v")
    shell.wait_for("> vdi list")
    shell.key("c-e", "c-w")
    shell.type("show base")
    shell.key("enter")
    shell.wait_for("64 KiB")


def test_blank(shell: Shell) -> None:
    shell.key("enter")
    shell.prompt()
    shell.type("   ")
    shell.key("enter")
    shell.prompt()
    assert "plxsh: " not in shell.text
