"""Completion as one sees it: the menu, what is typed for one, the quotes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from shell.conftest import OpenShell
from shell.many import store_of_clones
from support.shell import Shell
from support.terminal import PATIENCE

pytestmark = pytest.mark.slow


def offered(shell: Shell, typed: str, *wanted: str) -> list[str]:
    """Type, press Tab, wait for the menu to have all of `wanted`; return the rows of it."""
    shell.type(typed)
    shell.key("tab")
    shell.wait_for(lambda: all(menu_row(shell, word) for word in wanted))
    with shell.still():
        return shell.screen[shell.cursor.row + 1 : -1]


def menu_row(shell: Shell, word: str) -> str:
    """The row of the menu that offers a word, empty if none does."""
    with shell.still():
        rows = shell.screen[shell.cursor.row + 1 :]
    return next((row for row in rows if row.split()[: len(word.split())] == word.split()), "")


def completed(shell: Shell, typed: str, line: str) -> None:
    """Type, press Tab, and wait until the line at the prompt is another."""
    shell.type(typed)
    shell.key("tab")
    shell.wait_for(lambda: shell.line.partition("> ")[2] == line)


def test_commands_with_what_they_do(shell: Shell) -> None:
    offered(shell, "", "store", "vdi", "snap", "tree")
    assert "virtual disk images" in menu_row(shell, "vdi")


def test_commands_of_a_group(shell: Shell) -> None:
    offered(shell, "vdi ", "create", "list", "fill")
    assert not menu_row(shell, "store")


def test_names_with_size_beside_them(shell: Shell) -> None:
    offered(shell, "vdi show ", "base", "web", "My new VDI", "日本語")
    assert "64 KiB" in menu_row(shell, "base")
    assert "2 MiB" in menu_row(shell, "日本語")


def test_fuzzy_and_in_any_case(shell: Shell) -> None:
    completed(shell, "vdi show mnv", 'vdi show "My new VDI"')


def test_a_name_with_spaces_is_quoted_and_works(shell: Shell) -> None:
    completed(shell, "vdi show new", 'vdi show "My new VDI"')
    shell.key("enter")
    shell.prompt()
    assert any(row.startswith("Name") and "My new VDI" in row for row in shell.screen)


def test_within_a_quote_that_is_open(shell: Shell) -> None:
    completed(shell, 'vdi show "My n', 'vdi show "My new VDI"')


def test_a_name_that_is_not_ascii(shell: Shell) -> None:
    completed(shell, "vdi show 日", "vdi show 日本語")


def test_choosing_from_the_menu(shell: Shell) -> None:
    lines = {f"plxsh> vdi show {name}" for name in ("base", "web", '"My new VDI"', "日本語")}
    shell.type("vdi show ")
    shell.wait_for(lambda: menu_row(shell, "web"))  # it opens without Tab
    shell.key("down")
    shell.wait_for(lambda: shell.line in lines)
    first = shell.line
    shell.key("down")
    shell.wait_for(lambda: shell.line in lines - {first})
    shell.key("up")
    shell.wait_for(lambda: shell.line == first)


def test_snapshots_behind_an_at(shell: Shell) -> None:
    offered(shell, "snap diff base@", "base@clean", "base@patched")
    shell.send("pat")
    shell.key("tab")
    shell.wait_for("diff base@patched")


def test_a_snapshot_label_with_a_space(shell: Shell) -> None:
    shell.type('snap diff "My new VDI@bef')
    shell.key("tab")
    shell.wait_for('snap diff "My new VDI@before upgrade"')


def test_values_of_an_option(shell: Shell) -> None:
    offered(shell, "vdi list -o ", "json", "plain", "table", "yaml")


def test_options(shell: Shell) -> None:
    offered(shell, "vdi create x --", "--size", "--from")
    assert "2G" in menu_row(shell, "--size")


def test_an_option_is_not_offered_twice(shell: Shell) -> None:
    offered(shell, "vdi create x --size 1G --", "--from")
    assert not menu_row(shell, "--size")


def test_files_where_a_path_belongs(shell: Shell) -> None:
    Path("images").mkdir()
    Path("images/disk one.img").write_bytes(b"x")
    Path("images/disk-two.img").write_bytes(b"x")
    completed(shell, "vdi fill web imag", "vdi fill web images/")
    shell.key("tab")
    shell.wait_for("disk-two.img")
    shell.send("one")
    shell.key("tab")
    shell.wait_for('vdi fill web "images/disk one.img"')


def test_tab_does_not_choose_between_two(shell: Shell) -> None:
    shell.run("vdi create Mylene --size 1M")
    offered(shell, "vdi show My", "My new VDI", "Mylene")


def test_tab_and_enter_at_once(shell: Shell) -> None:
    shell.send("use bas\t\r")
    shell.wait_for(lambda: shell.line.startswith("plxsh base>"))


def test_behind_a_semicolon_a_line_begins_anew(shell: Shell) -> None:
    completed(shell, "vdi list; sna", "vdi list; snap")


def test_what_was_made_a_moment_ago(shell: Shell) -> None:
    shell.run("vdi create brandnew --size 1M")
    completed(shell, "vdi show brand", "vdi show brandnew")


def test_in_the_middle_of_a_line(shell: Shell) -> None:
    shell.type("vdi show we --output json")
    for _ in range(len(" --output json")):
        shell.key("left")
    shell.key("tab")
    shell.wait_for("vdi show web --output json")


def test_escape_and_going_on_typing_close_the_menu(open_shell: OpenShell) -> None:
    shell = open_shell(columns=100)
    offered(shell, "vdi show ", "base", "web")
    shell.send("base ")
    shell.wait_for(lambda: not menu_row(shell, "web"))


def test_among_ten_thousand(open_shell: OpenShell, tmp_path: Path) -> None:
    path = tmp_path / "many.dat"
    store_of_clones(path, 10_000)
    shell = open_shell("-s", str(path), patient=False)
    until = time.monotonic() + PATIENCE
    # The names are still being read, and typing goes on meanwhile.
    while not menu_row(shell, "7779") and time.monotonic() < until:
        shell.key("c-u")
        shell.prompt()
        shell.type("vdi show 777")
        shell.settle()
    assert menu_row(shell, "7779")
    shell.key("c-u")
    completed(shell, "vdi show e-7777", "vdi show clone-7777")
