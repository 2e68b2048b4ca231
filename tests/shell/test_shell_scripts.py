"""Scripts: from standard input, from -c and -f, with what a person sees of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.shell import PLXSH
from support.terminal import Terminal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]

OnTerminal = Callable[..., Terminal]


def piped(script: str | bytes, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script that comes through a pipe."""
    data = script.encode() if isinstance(script, str) else script
    done = subprocess.run([*PLXSH, *options], input=data, capture_output=True, check=False)
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.fixture
def on_terminal() -> Iterator[OnTerminal]:
    """Runs a line of the Unix shell on a terminal, with `plxsh` in it, to its end."""
    opened: list[Terminal] = []

    def running(line: str, **options: object) -> Terminal:
        line = line.replace("plxsh", " ".join(PLXSH))
        opened.append(Terminal(["sh", "-c", line], **options))  # type: ignore[arg-type]
        return opened[-1]

    yield running
    for terminal in opened:
        terminal.close()


def test_a_script_on_standard_input_gives_data_only() -> None:
    done = piped("# a comment\nvdi list\n\nsnap list base 1; vdi show web\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("0\tbase\t")
    assert "patched" in done.stdout
    assert "name\tweb" in done.stdout
    assert "\x1b" not in done.stdout
    assert "plxsh" not in done.stdout


def test_the_first_error_ends_a_script() -> None:
    done = piped("vdi show nothing\nvdi list\n")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("plxsh: standard input: line 1: vdi show: ")
    assert done.stderr.count("\n") == 1


def test_errors_name_the_line() -> None:
    done = piped("vdi list\n\n# nothing\nvdi lisst\n")
    assert done.returncode == 2
    assert "line 4" in done.stderr
    assert "did you mean" in done.stderr.lower()
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "junk", [bytes(range(256)) * 16, b"\xff\xfe", b"vdi list\n\0\0\0\n"], ids=["all", "bom", "nul"]
)
def test_binary_junk_on_standard_input(junk: bytes) -> None:
    done = piped(junk)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("plxsh: ")
    assert done.stderr.count("\n") == 1


def test_a_script_as_other_systems_write_it() -> None:
    script = b"\xef\xbb\xbfsnap list \\\r\n base\r\nvdi show web # it\r\n\r\n"
    done = piped(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert "patched" in done.stdout
    assert "name\tweb\n" in done.stdout
    Path("script").write_bytes(script)
    assert piped("source script").stdout == done.stdout


def test_standard_input_has_one_name() -> None:
    for options in ((), ("-f", "-"), ("source", "-")):
        done = piped("vdi list\nvdi show x\n", *options)
        assert "plxsh: standard input: line 2: vdi show: " in done.stderr


def test_a_backslash_at_the_very_end_means_nothing() -> None:
    assert "name\tweb" in piped("vdi show web \\").stdout


def test_an_unbalanced_quote_runs_nothing() -> None:
    done = piped('vdi list\nvdi show "My new\n')
    assert done.returncode == 2
    assert done.stdout == ""
    assert "not closed" in done.stderr
    assert done.stderr.count("\n") == 1


def test_quotes_and_names_that_are_not_ascii() -> None:
    done = piped("vdi show 'My new VDI'\nvdi show \"日本語\"\nvdi show My\\ new\\ VDI\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("name\tMy new VDI") == 2
    assert "name\t日本語" in done.stdout


def test_lines_given_with_c(on_terminal: OnTerminal) -> None:
    terminal = on_terminal("plxsh -c 'vdi show web; snap list base'")
    assert terminal.wait() == 0
    assert terminal.find("base@")
    assert terminal.find("patched")
    terminal = on_terminal("plxsh -c 'vdi show nothing; vdi list'")
    assert terminal.wait() == 3
    assert terminal.find("plxsh: vdi show: ")
    assert not terminal.find("web")


def test_a_script_file(on_terminal: OnTerminal) -> None:
    Path("script").write_text("vdi create made --size 1M\nvdi list | grep made > made.txt\n")
    terminal = on_terminal("plxsh -f script && echo well")
    assert terminal.wait() == 0
    assert terminal.find("created VDI 4 'made'")
    assert terminal.find("well")
    assert Path("made.txt").read_text().startswith("4\tmade")


def test_a_script_file_that_is_not_there(on_terminal: OnTerminal) -> None:
    terminal = on_terminal("plxsh -f missing")
    assert terminal.wait() == 3
    assert terminal.text.startswith("plxsh: ")
    assert "missing" in terminal.text


def test_a_script_from_a_pipe_shows_tables_on_a_terminal(on_terminal: OnTerminal) -> None:
    terminal = on_terminal("echo 'vdi list' | plxsh")
    assert terminal.wait() == 0
    head = terminal.screen[0]
    assert head.split()[:2] == ["Id", "Name"]
    assert terminal.cell(0, head.index("Name")).bold


def test_a_script_cannot_be_asked_and_changes_nothing(on_terminal: OnTerminal) -> None:
    terminal = on_terminal("echo 'vdi delete web' | plxsh")
    assert terminal.wait() == 2
    assert terminal.find("no terminal to ask on")
    terminal = on_terminal("echo 'vdi delete web -n; vdi list' | plxsh")
    assert terminal.wait() == 0
    assert terminal.find("would delete VDI 1 'web'")
    assert terminal.find("base@")  # web is still listed, with its parent


def test_json_of_a_script_is_one_document_a_command() -> None:
    done = piped("vdi list\nvdi show web\n", "-o", "json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert len(first["vdis"]) == 4
    assert second["vdi"]["name"] == "web"


def test_ctrl_c_ends_a_script(on_terminal: OnTerminal) -> None:
    terminal = on_terminal(
        "trap : INT; echo '!echo going; sleep 100\nvdi list' | plxsh; echo left $?"
    )
    terminal.wait_for("going")
    terminal.wait_until_runs("sleep")  # dash loses a signal that comes before
    terminal.key("c-c")
    terminal.wait_for("left 130")
    assert not terminal.find("base")


def test_use_and_exit_in_a_script() -> None:
    done = piped("use base\nsnap list\nexit\nvdi list\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "patched" in done.stdout
    assert "web" not in done.stdout
