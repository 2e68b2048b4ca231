"""Commands in the interactive shell: what they show, how they are stopped, what goes wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from shell.conftest import OpenShell
from support.shell import PLXSH, Shell
from support.tap import short_folder
from support.terminal import Terminal, asleep, unread

from core.check import check_store
from core.session import Session

pytestmark = pytest.mark.slow


def names(store: Path) -> list[str]:
    with Session.open(str(store), "read") as session:
        return [record.name for record in session.registry.vdis()]


def sound(store: Path) -> bool:
    with Session.open(str(store), "read") as session:
        return not check_store(session.store).findings


# -- results ---------------------------------------------------------------------------


def test_a_command_shows_its_table_and_the_prompt_comes_back(shell: Shell) -> None:
    head, *rows = shell.run("vdi list")
    assert head.split()[:3] == ["Id", "Name", "Size"]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3"]
    assert "My new VDI" in rows[2]
    assert "日本語" in rows[3]


def test_words_mean_the_same_as_on_the_command_line(shell: Shell) -> None:
    assert shell.run("plxsh vdi list")[0] == shell.run("vdi list")[0]  # rows have an age
    plain = shell.run("vdi list -o plain")
    assert shell.run("plxsh vdi list -o plain") == plain
    assert shell.run("-o plain vdi list") == plain
    assert shell.run("-o json vdi list")[0].startswith('{"schema": 1, "vdis": [')


def test_output_into_a_file_and_a_pipe(shell: Shell) -> None:
    shown = shell.run("vdi list -o json | jq -r .vdis[].name")
    assert shown == ["base", "web", "My new VDI", "日本語"]
    assert shell.run("vdi list > list.txt") == []
    assert Path("list.txt").read_text().count("\n") == 4
    assert shell.run("snap list base >> list.txt") == []
    assert Path("list.txt").read_text().count("\n") == 6
    assert shell.run('vdi show "My new VDI" | grep ^name > found') == []
    assert Path("found").read_text() == "name\tMy new VDI\n"
    assert "base" in shell.run("vdi list")[1]  # standard output is the terminal again


def test_a_reader_that_leaves_early_does_no_harm(shell: Shell) -> None:
    assert shell.run("vdi list | true") == []
    assert shell.run("store info -o json | head -c 3; vdi show web -o plain | head -1")[-1]
    assert len(shell.run("vdi list")) == 5


def test_the_unix_shell(shell: Shell) -> None:
    assert shell.run("!echo $((6 * 7)) and more") == ["42 and more"]
    assert shell.run("!echo one | tr a-z A-Z; echo two") == ["ONE", "two"]
    shell.run("!false")
    assert shell.run("!echo still here") == ["still here"]


def test_a_program_in_the_unix_shell_has_the_terminal(shell: Shell) -> None:
    shell.start("!read answer; echo got $answer")
    shell.wait_until_runs("sh")
    shell.enter("something")
    shell.wait_for("got something")
    shell.prompt()


def test_output_without_a_newline_at_its_end(shell: Shell) -> None:
    assert shell.run("!printf abc")[0].rstrip("%⏎") == "abc"
    assert shell.line == "plxsh>"


def test_an_image_is_not_written_to_the_terminal(shell: Shell) -> None:
    shown = shell.run("vdi export base -")
    assert len(shown) == 1
    assert shown[0].startswith("plxsh: vdi export: ")
    assert shell.run("vdi export base - -q | wc -c") == ["65536"]


def test_several_commands_on_a_line(shell: Shell) -> None:
    shown = shell.run("vdi create one --size 1M; vdi create two --size 1M; vdi list -o plain")
    assert "created VDI 5 'two' of 1 MiB" in shown
    assert shown[-2].split()[:2] == ["4", "one"]


def test_a_failure_ends_the_rest_of_a_line(shell: Shell) -> None:
    shown = shell.run("vdi show nothing; vdi list")
    assert len(shown) == 1
    assert shown[0].startswith("plxsh: vdi show: ")


def test_aliases_of_the_configuration(open_shell: OpenShell) -> None:
    Path("plx.toml").write_text('[shell.aliases]\nll = "vdi list -o plain"\nshow = "vdi show"\n')
    shell = open_shell("--config", "plx.toml")
    assert shell.run("ll")[0].startswith("0")
    assert any("64 KiB" in row for row in shell.run("show base"))


def test_source_runs_the_commands_of_a_file(shell: Shell, store: Path) -> None:
    Path("script").write_text("# two VDIs\nvdi create one --size 1M\nvdi create 'and two'\n")
    shell.run("source script")
    assert names(store)[4:] == ["one", "and two"]
    Path("wrong").write_text("vdi list\nvdi show nothing\nvdi create three\n")
    shown = shell.run("source wrong")
    assert "wrong: line 2" in shown[-1]
    assert "three" not in names(store)
    assert len(shell.run("source missing")) == 1


def test_watch_repeats_until_ctrl_c(shell: Shell, store: Path) -> None:
    before = shell.run("vdi list")
    shell.start("watch 0.3 vdi list")
    shell.wait_for(lambda: shell.alternate and shell.find("My new VDI"))
    with Session.open(str(store)) as session:
        session.create("newcomer", 1 << 20)
    shell.wait_for("newcomer")
    shell.key("c-c")
    shell.wait_for(lambda: not shell.alternate)
    shell.prompt()
    assert before[1] in shell.screen  # what was there before is there again
    assert "Traceback" not in shell.text


def test_watch_ends_with_the_reader_of_its_output(shell: Shell) -> None:
    assert len(shell.run("watch 0.1 vdi list -o plain | head -3")) == 3


def test_help_shows_commands_and_examples(shell: Shell) -> None:
    shown = shell.run("help")
    assert any(row.split()[:1] == ["vdi"] for row in shown)
    shown = "\n".join(shell.run("help vdi rename"))
    assert "Usage: " in shown
    assert "vdi rename web www" in shown


# -- stopping --------------------------------------------------------------------------


def test_ctrl_c_during_a_fill(shell: Shell, store: Path) -> None:
    os.mkfifo("slow")
    shell.start("vdi fill web slow")
    with open("slow", "wb") as source:  # waits until the fill reads
        source.write(b"x" * 4096)
        source.flush()
        shell.wait_for(lambda: not unread(source) and asleep(shell.pid))
        shell.key("c-c")
        shell.wait_for("interrupted")
        shell.prompt()
    assert "VDI 'web' is as before" in " ".join(shell.screen).replace("  ", " ")
    assert "64 KiB" in "".join(shell.run("vdi show web"))
    assert sound(store)
    shell.run("vdi create another --size 1M")
    assert "another" in names(store)


def test_ctrl_c_stops_a_pipe_and_the_unix_shell(shell: Shell) -> None:
    for line in ("!sleep 100", "vdi list | sleep 101"):
        shell.start(line)
        shell.wait_until_runs("sleep")
        shell.key("c-c")
        shell.wait_for("^C")
        shell.prompt()
        shell.clear()
    assert len(shell.run("vdi list")) == 5


def test_ctrl_c_ends_what_serves(shell: Shell) -> None:
    with short_folder() as folder:
        shell.start(f"tap serve --unix {folder}/nbd")
        shell.wait_for("Ctrl-C ends it")
        shell.key("c-c")
        shell.prompt()
    assert len(shell.run("vdi list")) == 5


def test_what_is_typed_while_a_command_runs_is_kept(shell: Shell) -> None:
    os.mkfifo("gate")
    shell.start("!cat gate")
    shell.wait_until_runs("cat")
    shell.send("vdi show base -o plain\rvdi show w")
    Path("gate").write_text("open\n")
    shell.wait_for(lambda: shell.line.startswith("plxsh> vdi show w"))
    assert shell.find("65536")


def test_confirmation_is_asked_and_no_is_the_default(shell: Shell, store: Path) -> None:
    for answer in ("", "n", "x", "yess"):
        shell.start("vdi delete web")
        shell.wait_for("[y/N]")
        assert "VDI 1 'web'" in " ".join(shell.screen)
        shell.enter(answer)
        shell.wait_for("nothing was changed")
        shell.prompt()
        shell.clear()
    assert "web" in names(store)
    shell.start("vdi delete web")
    shell.wait_for("[y/N]")
    shell.enter("y")
    shell.wait_for("deleted VDI 1 'web'")
    assert "web" not in names(store)


def test_a_line_that_ends_in_a_backslash_goes_on(shell: Shell) -> None:
    shell.type("vdi show \\")
    shell.key("enter")
    shell.wait_for(lambda: shell.line == "...")
    shell.type("  web -o plain")
    shell.key("enter")
    shell.prompt()
    assert shell.find("65536")


def test_ctrl_c_is_no_consent(shell: Shell, store: Path) -> None:
    told = "plxsh: vdi delete: not confirmed, nothing was changed"
    for key in ("c-c", "c-d"):
        shell.start("vdi delete web")
        shell.wait_until_asks("[y/N]")
        shell.key(key)
        shell.wait_for(lambda: told in shell.screen)  # in a row of its own
        shell.prompt()
        shell.clear()
    assert "web" in names(store)
    assert shell.status is None


def test_yes_and_dry_run_do_not_ask(shell: Shell, store: Path) -> None:
    assert any("would delete VDI 1 'web'" in row for row in shell.run("vdi delete web -n"))
    assert "web" in names(store)
    shell.run("vdi delete -y web")
    assert "web" not in names(store)


@pytest.mark.usefixtures("store")
def test_ctrl_z_and_back() -> None:
    """Suspended at the prompt and in a command, as every program under a Unix shell."""
    bash = Terminal(["bash", "--norc", "--noprofile", "-i"], {"PS1": "bash$ ", "HISTFILE": None})
    with bash:
        bash.wait_for("bash$")
        bash.enter(" ".join(PLXSH))
        bash.wait_for("plxsh>")
        bash.send("vdi sho")
        bash.wait_for("> vdi sho")
        bash.key("c-z")
        bash.wait_for("Stopped")
        bash.wait_for(lambda: bash.screen[bash.cursor.row] == "bash$")
        bash.enter("fg")
        bash.wait_for(lambda: bash.screen[bash.cursor.row] == "plxsh> vdi sho")
        bash.enter("w base")
        bash.wait_for("64 KiB")
        bash.wait_for(lambda: bash.screen[bash.cursor.row] == "plxsh>")
        bash.enter("!sleep 0.5; echo slept")
        bash.wait_until_runs("sleep")
        bash.key("c-z")
        bash.wait_for(lambda: bash.screen[bash.cursor.row] == "bash$")
        bash.enter("fg")
        bash.wait_for(lambda: "slept" in bash.screen)


# -- going wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("vdi lst", "did you mean 'list'"),
        ("vid list", "did you mean 'vdi'"),
        ("vdi show wbe", "web"),
        ('vdi show "My new', "not closed"),
        ("vdi show", "VDI"),
        ("vdi list --sise", "--sise"),
        ("vdi list |", "no command"),
        ("vdi list >", "no file"),
        ("| wc", "no command"),
        ("vdi list > /nowhere/file", "/nowhere/file"),
        ("vdi create x --size 3Q", "3Q"),
        ("\x11\x01\x11\x1b\x11\x08x", "no command"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_the_shell_goes_on(
    open_shell: OpenShell, line: str, says: str
) -> None:
    shell = open_shell(columns=200)
    shown = shell.run(line)
    assert len(shown) == 1, shell.picture()
    assert shown[0].startswith("plxsh: ")
    assert says.lower() in shown[0].lower()
    assert shell.run("!echo on") == ["on"]


def test_a_store_that_vanishes(shell: Shell, store: Path) -> None:
    hidden = store.with_name("elsewhere")
    store.rename(hidden)
    shown = " ".join(shell.run("vdi list"))
    assert shown.startswith("plxsh: vdi list: ")
    assert shell.run("!echo on") == ["on"]
    shell.send("vdi show ")
    shell.key("tab")
    shell.settle()
    shell.drop()
    assert "Traceback" not in shell.transcript
    hidden.rename(store)
    assert len(shell.run("vdi list")) == 5


def test_a_store_that_is_replaced_by_junk(shell: Shell, store: Path) -> None:
    store.write_bytes(os.urandom(1 << 20))
    shown = " ".join(shell.run("vdi list"))
    assert shown.startswith("plxsh: vdi list: ")
    shell.send("snap list ")
    shell.key("tab")
    shell.settle()
    shell.drop()
    assert shell.run("!echo on") == ["on"]
    assert "Traceback" not in shell.transcript


def test_a_shell_without_a_store(open_shell: OpenShell) -> None:
    shell = open_shell("-s", "missing.dat")
    assert shell.run("vdi list")[0].startswith("plxsh: vdi list: ")
    shell.run("store create missing.dat --extent-size 1M")
    shell.run("vdi create first")
    assert "first" in "".join(shell.run("vdi list"))


def test_the_folder_goes_away(open_shell: OpenShell, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    os.chdir(folder)
    try:
        shell = open_shell()
        shutil.rmtree(folder)
        assert shell.run("!echo on")[-1] == "on"
        assert len(shell.run("vdi list")) == 5
    finally:
        os.chdir(tmp_path)
