"""Completion in bash, zsh and fish: what plxsh answers, and what these shells make of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from shell.conftest import Plx
from support.terminal import Terminal

from core.session import Session
from plxsh.classic import TOOLS
from plxsh.cli import COMMANDS

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "plxsh/completions"
SHELLS = ("bash", "zsh", "fish")
HEAVY = {"numpy", "prompt_toolkit", "pydot", "websockets", "core.session", "tempfile"}


# -- the answer ------------------------------------------------------------------------


@pytest.fixture
def answer(
    store: Path,  # noqa: ARG001
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., list[str]]:
    """Asks as the scripts do; nothing may come on standard error, nor a failure."""
    monkeypatch.setattr("plxsh.commands.completion._PATIENCE", 60.0)
    plx = Plx(tmp_path, capfd)

    def ask(shell: str, *asked: str) -> list[str]:
        quiet = ("--config", os.devnull, "-o", "plain")
        result = plx(*quiet, "completion", "answer", shell, "--", *asked)
        assert result.err == ""
        return result.lines

    return ask


Answer = Callable[..., list[str]]


def test_a_word_in_each_line_with_what_it_is(answer: Answer) -> None:
    for shell in ("zsh", "fish"):
        kind, *lines = answer(shell, "plxsh", "vdi", "show", "")
        found = dict(line.split("\t") for line in lines)
        assert kind == "words"
        assert [*found] == ["base", "web", "My new VDI", "日本語"]
        assert found["web"] == "64 KiB"
        assert "1 snapshot" in found["日本語"]
    assert dict(line.split("\t") for line in answer("fish", "plxsh", "sn")[1:]).keys() == {"snap"}


@pytest.mark.parametrize(
    ("line", "replaced", "words"),
    [
        ("plxsh vdi show My", "My", [r"My\ new\ VDI"]),
        (r"plxsh vdi show My\ n", r"My\ n", [r"My\ new\ VDI"]),
        ('plxsh vdi show "My n', "My n", ["My new VDI"]),
        ("plxsh vdi show 'My n", "My n", ["My new VDI"]),
        ('plxsh vdi show My" n', " n", [" new VDI"]),
        ('plxsh vdi show "My new"', '"My new"', [r"My\ new\ VDI"]),
        ("plxsh vdi show 日", "日", ["日本語"]),
        ("plxsh snap diff base@p", "@p", ["@patched"]),
        ("plxsh snap diff base@p", "p", ["patched"]),
        ("plxsh snap diff base@p", "base@p", ["base@patched"]),
        ('plxsh snap diff "My new VDI"@', "@", [r"@before\ upgrade"]),
        ("plxsh snap rollback base ba", "ba", ["base@patched", "base@clean"]),
        ("plxsh --output=js", "js", ["json"]),
        ("plxsh vdi show we --output json", "json", ["json"]),
    ],
)
def test_bash_gets_words_quoted_as_the_one_at_the_cursor(
    answer: Answer, line: str, replaced: str, words: list[str]
) -> None:
    assert answer("bash", line, replaced) == ["words", *words]


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_bash_reads_every_name_back(
    plx: Plx, capfd: pytest.CaptureFixture[str], quote: str
) -> None:
    names = ["it's", 'say "x"', "a$HOME", "back\\slash", "semi;colon", "star*", "naïve café", "a`b"]
    names += ["a!b", "~", "{a,b}", "^#?[c]"]
    for name in names:
        plx("vdi", "create", f"-{name}" if name.startswith("-") else f"x{name}")
    capfd.readouterr()
    kind, *words = plx("completion", "answer", "bash", "--", f"plxsh vdi show {quote}x", "x").lines
    assert kind == "words"
    script = "".join(f"printf '%s\\n' {quote}{word}{quote}\n" for word in words)
    read = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert read.stdout.splitlines() == [f"x{name}" for name in names]


@pytest.mark.parametrize(
    "words",
    [
        ["plxsh", "vdi", "fill", "web", "no such file"],
        ["plxsh", "-s", ""],
        ["plxsh", "vdi", "show", "web", "--store=x"],
        ["plxsh", "source", "~/"],
        ["vdi_fill", "web", ""],
        ["/opt/parallax/bin/vdi_tree", ""],
    ],
)
def test_files_are_left_to_the_shell(answer: Answer, words: list[str]) -> None:
    assert answer("zsh", *words) == ["files"]
    assert answer("bash", " ".join(words).replace("no such file", "none"), "") == ["files"]


@pytest.mark.parametrize("line", ["plxsh vdi list >", "plxsh vdi list > x", "plxsh -q < y"])
def test_bash_finds_the_file_of_a_redirection(answer: Answer, line: str) -> None:
    assert answer("bash", line, line.split()[-1].strip(">")) == ["files"]


def test_original_tools(answer: Answer) -> None:
    assert answer("bash", "vdi_fill My", "My") == ["words", r"My\ new\ VDI"]
    assert answer("zsh", "/usr/local/bin/vdi_snap_list", "we") == ["words", "web\t64 KiB"]
    assert answer("zsh", "vdi_fill", "we", "--")[1:] == ["--help\tShow this message and exit"]


def test_the_store_of_the_line_of_the_environment_or_of_the_configuration(
    answer: Answer, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = ["words", "web\t64 KiB"]
    monkeypatch.setenv("PARALLAX_STORE", "/nothing/here")
    assert answer("fish", "plxsh", "vdi", "show", "we") == []
    assert answer("fish", "plxsh", "-s", str(store), "vdi", "show", "we") == web
    assert answer("fish", "plxsh", "vdi", "show", f"--store={store}", "we") == web
    monkeypatch.setenv("HERE", str(tmp_path))
    assert answer("bash", "plxsh -s $HERE/blockstore.dat vdi show we", "we") == ["words", "web"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert answer("bash", "plxsh -s ~/blockstore.dat vdi show we", "we") == ["words", "web"]
    monkeypatch.delenv("PARALLAX_STORE")
    config = tmp_path / "own.toml"
    config.write_text(f'[blockstore]\ndata = "{store}"\n[shell.aliases]\nll = "vdi list"\n')
    assert answer("fish", "plxsh", "vdi", "show", "we") == []
    assert answer("fish", "plxsh", "--config", str(config), "vdi", "show", "we") == web
    monkeypatch.setenv("PARALLAX_CONFIG", str(config))
    assert answer("fish", "plxsh", "vdi", "show", "we") == web
    assert answer("fish", "vdi_snap", "we") == web
    assert answer("fish", "plxsh", "ll", "-o", "js") == ["words", "json\t"]


def test_a_damaged_or_missing_store_gives_no_names_and_says_nothing(
    answer: Answer, store: Path
) -> None:
    show = ("plxsh", "vdi", "show", "")
    assert len(answer("zsh", *show)) == 5  # one line more than VDIs
    whole = store.read_bytes()
    store.write_bytes(whole[:4096] + os.urandom(1 << 16))
    assert answer("zsh", *show) == []
    store.write_bytes(os.urandom(8192))
    assert answer("zsh", *show) == []
    store.unlink()
    assert answer("zsh", *show) == []
    assert answer("zsh", "plxsh", "vdi", "sh") != []


def test_control_characters_never_reach_a_terminal(
    answer: Answer, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(str(store)) as session:
        session.registry.write(replace(session.registry.find("web"), name="w\x1b[2J\nfiles"))
        session.registry.write(replace(session.registry.find("base"), name="w"))
    assert answer("fish", "plxsh", "vdi", "show", "w") == ["words", "w\t64 KiB, 2 snapshots"]
    found = answer("fish", "plxsh", "vdi", "show", "1")
    assert found == ["words", "1\tw\\x1b[2J\\nfiles, 64 KiB"]
    config = tmp_path / "own.toml"
    config.write_text('[shell.aliases]\nxx = "vdi\\nlist"\n')
    monkeypatch.setenv("PARALLAX_CONFIG", str(config))
    assert answer("zsh", "plxsh", "x") == ["words", "xx\talias of vdi\\nlist"]


@pytest.mark.parametrize("text", ["[blockstore\n", "[blockstore]\ndata = 7\n", "\xff\0"])
def test_a_configuration_that_cannot_be_read_gives_nothing(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="latin-1")
    monkeypatch.delenv("PARALLAX_STORE")
    monkeypatch.setenv("PARALLAX_OUTPUT", "nonsense")
    for name in ("bad.toml", "missing.toml", str(tmp_path)):
        monkeypatch.setenv("PARALLAX_CONFIG", name)
        assert answer("bash", "plxsh vdi ", "") == []


@pytest.mark.parametrize(
    "line",
    [
        "",
        "plxsh -c 'vdi_",
        'plxsh -c "vdi show we',
        "plxsh nonsense here ",
        "plxsh vdi show \udcff\udcfe\x01\x1b[2J",
        "plxsh vdi show 'a\"b\\",
        "plxsh --nonsense=",
        "plxsh vdi show " + "x" * 50_000,
        "plxsh vdi show # w",
    ],
)
def test_nonsense_gives_nothing(answer: Answer, line: str) -> None:
    assert answer("bash", line, "") == []
    assert answer("bash", line, "not the end of it") == []
    assert answer("zsh", *line.split(" ")) == []


def test_no_words_at_all(answer: Answer) -> None:
    for shell in SHELLS:
        assert answer(shell) == []


def test_it_imports_nothing_heavy(store: Path) -> None:  # noqa: ARG001
    script = "import sys; from plxsh.cli import run; run(sys.argv[1:]); print(*sys.modules)"
    ask = ["completion", "answer", "fish", "--", "plxsh", "snap", "diff", "base@"]
    done = subprocess.run(
        [sys.executable, "-c", script, *ask], capture_output=True, text=True, check=True
    )
    *lines, last = done.stdout.splitlines()
    assert any("base@clean" in line for line in lines) or "base@clean" in last
    assert HEAVY & {*last.split()} == set()
    assert "plxsh.completer" in last.split()


# -- the scripts -----------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_knows_the_tools_and_no_commands(
    shell: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = Plx(tmp_path, capfd)("completion", shell).out
    assert script == (SCRIPTS / f"plxsh.{shell}").read_text()
    code = "\n".join(line for line in script.splitlines() if not line.lstrip().startswith("# "))
    assert {*re.findall(r"(?<![\w-])(?:vdi_\w+|parallax[\w-]+|plxlockmaster)", code)} == {*TOOLS}
    words = {*re.findall(r"[\w-]+", code)}
    assert words & {*COMMANDS} <= {"completion"}


def test_the_package_has_the_scripts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["plxsh"]
    packed = {path for pattern in patterns for path in (ROOT / "plxsh").glob(pattern)}
    assert {SCRIPTS / f"plxsh.{shell}" for shell in SHELLS} == packed


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_no_mistakes_of_syntax(shell: str) -> None:
    subprocess.run([shell, "-n", SCRIPTS / f"plxsh.{shell}"], check=True)
    if shell == "bash" and shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPTS / "plxsh.bash"], check=True)


# -- the shells ------------------------------------------------------------------------

START = {
    "bash": ["bash", "--norc", "--noprofile"],
    "zsh": ["zsh", "--no-globalrcs"],
    "fish": ["fish", "--no-config"],
}
READ = {
    "bash": 'eval "$(plxsh completion bash)"',
    "zsh": 'eval "$(plxsh completion zsh)"',
    "fish": "plxsh completion fish | source",
}
PROMPT = "ready> "
PATIENT = "from plxsh.commands import completion\ncompletion._PATIENCE = 60.0\n"
"""Has `plxsh` wait for the names however slow the machine is."""


class UnixShell(Terminal):
    """A shell of that name with completion, at a prompt; `plxsh` and its tools in the PATH."""

    def __init__(self, shell: str, folder: Path, *, read: bool = True) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {"PATH": path, "HOME": str(folder), "ZDOTDIR": str(folder), "PS1": PROMPT}
        env |= {"XDG_CONFIG_HOME": str(folder / "config"), "SHELL": None}
        patient = folder / "patient"
        patient.mkdir()
        (patient / "sitecustomize.py").write_text(PATIENT)
        env |= {"PYTHONPATH": str(patient)}
        (folder / ".zshrc").write_text(
            f"fpath=({folder}/functions $fpath)\n"
            f"autoload -Uz compinit\ncompinit -u\nPS1='{PROMPT}'\n"
        )
        self.shell = shell
        super().__init__(START[shell], env, columns=100, rows=30, cwd=folder)
        try:
            if shell == "fish":
                self.wait_for(lambda: self.screen[self.cursor.row].endswith((">", "#")))
                self.send(f"function fish_prompt; echo -n '{PROMPT}'; end\r")
                self.send("set -g fish_autosuggestion_enabled 0\r")
            self.wait_for(lambda: self.line == "")
            if read:
                self.run(READ[shell])
        except BaseException:
            self.close()
            raise

    @property
    def line(self) -> str | None:
        """What is typed at the prompt; None while there is none."""
        with self._changed:
            row = self.screen[self.cursor.row]
            at_end = self.cursor.column >= len(PROMPT)
        return row[len(PROMPT) :] if row.startswith(PROMPT.rstrip()) and at_end else None

    def run(self, line: str) -> None:
        """Run a line and clear the screen."""
        self.type(f"{line}; clear")
        self.key("enter")
        self.wait_for(lambda: self.line == "" and self.cursor.row == 0)

    def clear(self) -> None:
        """Drop the line and what is listed."""
        self.key("c-u")
        self.wait_for(lambda: self.line == "")
        self.run("true")

    def type(self, text: str) -> None:
        """Type, and wait until it is there."""
        self.send(text)
        self.wait_for(lambda: (self.line or "").endswith(text.rstrip()))

    def completes(self, typed: str, line: str) -> None:
        """Type, press Tab, wait for the line; a space behind the word is seen by typing on.

        Args:
            typed: what is typed.
            line: what it becomes, with the space that is or is not there at the end.
        """
        self.clear()
        self.type(typed)
        self.key("tab")
        self.wait_for(lambda: self.line == line.rstrip())
        self.send("_")
        self.wait_for(lambda: self.line == f"{line}_")

    def lists(self, typed: str, *wanted: str) -> str:
        """Type, press Tab (bash wants it twice), wait for the list to have all of `wanted`."""
        self.clear()
        self.type(typed)
        self.key(*["tab"] * (2 if self.shell == "bash" else 1))
        self.wait_for(lambda: all(text in self.listed for text in wanted))
        return self.listed

    @property
    def listed(self) -> str:
        """What is on the screen besides the line, which bash repeats."""
        return "\n".join(row for row in self.screen if not row.startswith(PROMPT.rstrip()))


Open = Callable[..., UnixShell]


@pytest.fixture
def opened(store: Path, tmp_path: Path) -> Iterator[Open]:  # noqa: ARG001
    """Opens shells with that store, and closes them after the test."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/disk one.img").touch()
    (tmp_path / "certificates").mkdir()
    shells: list[UnixShell] = []

    def opening(shell: str, *, read: bool = True) -> UnixShell:
        shells.append(UnixShell(shell, tmp_path, read=read))
        return shells[-1]

    yield opening
    for shell in shells:
        shell.close()


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_words_are_completed_and_quoted(opened: Open, shell: str) -> None:
    unix = opened(shell)
    for typed, line in [
        ("plxsh sna", "plxsh snap "),
        ("plxsh vdi sh", "plxsh vdi show "),
        ("plxsh vdi create x --si", "plxsh vdi create x --size "),
        ("plxsh vdi list -o js", "plxsh vdi list -o json "),
        ("plxsh --output=js", "plxsh --output=json "),
        ("plxsh vdi show we", "plxsh vdi show web "),
        ("plxsh vdi show My", r"plxsh vdi show My\ new\ VDI "),
        (r"plxsh vdi show My\ n", r"plxsh vdi show My\ new\ VDI "),
        ('plxsh vdi show "My n', 'plxsh vdi show "My new VDI" '),
        ("plxsh vdi show 'My n", "plxsh vdi show 'My new VDI' "),
        ("plxsh vdi show 日", "plxsh vdi show 日本語 "),
        ("plxsh snap diff base@pat", "plxsh snap diff base@patched "),
        ("plxsh snap rollback base My", r"plxsh snap rollback base My\ new\ VDI@before\ upgrade "),
        ('plxsh snap diff "My new VDI@b', 'plxsh snap diff "My new VDI@before upgrade" '),
        ("plxsh vdi fill web images/disk", r"plxsh vdi fill web images/disk\ one.img "),
        ("plxsh vdi fill web ~/images/disk", r"plxsh vdi fill web ~/images/disk\ one.img "),
        ("plxsh tap serve --tls=certi", "plxsh tap serve --tls=certificates/"),
        ("plxsh vdi list > images/disk", r"plxsh vdi list > images/disk\ one.img "),
        ("vdi_snap_li", "vdi_snap_list "),
        ("vdi_fill My", r"vdi_fill My\ new\ VDI "),
        ("plxsh -s blockstore.dat vdi show we", "plxsh -s blockstore.dat vdi show web "),
        ("true; plxsh vdi show we", "true; plxsh vdi show web "),
        ("true && plxsh vdi show we", "true && plxsh vdi show web "),
        ("true | plxsh vdi show we", "true | plxsh vdi show web "),
    ]:
        unix.completes(typed, line)


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_choices_are_listed(opened: Open, shell: str) -> None:
    unix = opened(shell)
    unix.lists("plxsh vdi ", "create", "fill", "show", "validate")
    unix.lists("plxsh vdi create x --s", "--size", "--store")
    unix.lists("plxsh snap diff base@", "@clean", "@patched")
    listed = unix.lists("plxsh vdi show ", "base", "web", "日本語")
    assert "images" not in listed


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_what_a_word_is_stands_beside_it(opened: Open, shell: str) -> None:
    unix = opened(shell)
    unix.lists("plxsh vdi ", "Make a VDI, empty or a clone", "Delete a VDI")
    unix.lists("plxsh vdi create x --s", "Size of the new VDI", "Blockstore to work on")
    unix.lists("plxsh vdi show ", "64 KiB, 2 snapshots", "My new VDI", "1 MiB, 1 snapshot")
    unix.lists("plxsh snap diff base@", "64 KiB")


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_nothing_is_offered_and_nothing_said(opened: Open, shell: str, store: Path) -> None:
    unix = opened(shell)
    for typed in ("plxsh -c 'vdi sho", "plxsh vdi show nothing", "plxsh -s /none vdi show "):
        unix.clear()
        unix.type(typed)
        unix.key("tab", "tab")
        unix.settle(1.5)
        assert unix.line == typed.rstrip(), unix.picture()
        assert unix.listed.strip() == "", unix.picture()
    store.unlink()
    unix.clear()
    unix.type("plxsh vdi show ")
    unix.key("tab")
    unix.settle(1.5)
    assert unix.line == "plxsh vdi show", unix.picture()
    assert unix.listed.strip() == "", unix.picture()


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_the_plxsh_beside_the_program_on_the_line_is_asked(
    opened: Open, shell: str, tmp_path: Path
) -> None:
    unix = opened(shell)
    (tmp_path / "bin").symlink_to(Path(sys.executable).parent)
    unix.run("set PATH /usr/bin /bin" if shell == "fish" else "PATH=/usr/bin:/bin")
    unix.completes("bin/plxsh vdi show we", "bin/plxsh vdi show web ")
    unix.completes("~/bin/vdi_fill we", "~/bin/vdi_fill web ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "file"), [("zsh", "functions/_plxsh"), ("fish", "config/fish/completions/plxsh.fish")]
)
def test_a_file_in_the_usual_folder_is_found(
    opened: Open, shell: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    shutil.copy(SCRIPTS / f"plxsh.{shell}", tmp_path / file)
    if shell == "fish":  # which looks there only when it reads its configuration
        monkeypatch.setitem(START, "fish", ["fish"])
    unix = opened(shell, read=False)
    unix.completes("plxsh vdi show we", "plxsh vdi show web ")


@pytest.mark.slow
def test_fish_says_what_it_would_offer(store: Path) -> None:  # noqa: ARG001
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def offered(line: str) -> list[str]:
        code = 'plxsh completion fish | source; complete -C "$argv[1]"'
        done = subprocess.run(
            ["fish", "-c", code, line],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    assert offered("plxsh vdi sh") == ["show\tShow all about one VDI"]
    assert offered("plxsh vdi show My") == ["My new VDI\t1 MiB, 1 snapshot"]
    assert offered("plxsh -s /none vdi show ") == []
    assert offered("command plxsh vdi show we") == ["web\t64 KiB"]
