"""The man pages: fresh, sound, complete, found by `man` once the wheel is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from inspect import cleandoc
from pathlib import Path

import click
import pytest
from shell.conftest import Plx
from shell.test_main import commands

from plxsh.classic import TOOLS
from plxsh.cli import cli
from plxsh.context import Settings
from plxsh.manual import Manual
from plxsh.roff import Page, Prose, usage

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/man").glob("*.[1-8]"))
ODD = (
    ".TH is no macro here",
    "'quoted' at the start",
    r"back\slash \fBnot bold\fR \e",
    "a - b -- c --long-option -x",
    "~ ^ ` ' \" @ # ... I/O",
    "    indented .5 'x'",
    "ä, 日本 and … are not ASCII",
)


def rendered(text: str, width: int = 78) -> str:
    """What a page looks like on a terminal of so many columns, without fonts."""
    command = ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", f"-rLL={width}n"]
    done = subprocess.run(command, input=text.encode("ascii"), capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode()


def one_line(text: str) -> str:
    return " ".join(text.split())


def resolved(words: list[str]) -> click.Command:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        below = command.get_command(click.Context(command, obj=Settings()), word)
        assert below is not None
        command = below
    return command


def test_the_pages_are_those_of_the_help(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs/man", tmp_path / "man")
    (tmp_path / "man/plxsh-gone.1").touch()
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/manpages.py", tmp_path / "man"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = {path.name: path.read_text() for path in (tmp_path / "man").iterdir()}
    stale = {path.name for path in PAGES if written.get(path.name) != path.read_text()}
    stale |= set(written) - {path.name for path in PAGES}
    assert not stale, "the help has changed: run scripts/manpages.py"
    assert "plxsh-gone.1" not in written


def test_a_release_has_its_date_and_version() -> None:
    text = Manual("1.2.3", "2030-01-02").pages()["vdi_list.1"]
    assert '.TH vdi_list 1 "2030-01-02" "Parallax 1.2.3"' in text
    assert "2030-01-02" in rendered(text)


def test_every_program_and_group_has_a_page() -> None:
    names = {path.stem for path in PAGES}
    words = {f"plxsh-{words[0]}" for words in commands(cli)}
    assert names == {"plxsh"} | words | set(TOOLS)
    daemons = [path.name for path in PAGES if path.suffix != ".1"]
    assert sorted(daemons) == ["parallaxd.8", "plxlockmaster.8"]


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_sound(path: Path) -> None:
    shown = rendered(path.read_text())
    assert max(map(len, shown.splitlines())) <= 78
    for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"):
        assert re.search(rf"^{title}$", shown, re.MULTILINE), title
    told = subprocess.run(["lexgrog", path], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f'{path}: "{path.stem} - ')
    for name, section in re.findall(r"([\w-]+)\((\d)\)", one_line(shown.partition("SEE ALSO")[2])):
        assert (ROOT / "docs/man" / f"{name}.{section}").exists(), name


@pytest.mark.slow
def test_the_pages_have_everything_that_help_has() -> None:
    shown = {path.stem: rendered(path.read_text()) for path in PAGES}
    everything = [("plxsh-" + words[0], resolved(words)) for words in commands(cli)]
    everything += [("plxsh", cli), *TOOLS.items()]
    for page, command in everything:
        text = shown[page]
        context = click.Context(command, obj=Settings())
        for example in getattr(command, "examples", ()):
            assert f"\n           {example}\n" in text
        for param in command.params:
            record = param.get_help_record(context)
            if isinstance(param, click.Option) and record is not None:
                assert re.search(rf"^ +{re.escape(record[0])}( |$)", text, re.MULTILINE), record
        for paragraph in cleandoc(command.help or "").split("\n\n"):
            if not paragraph.startswith("Exit status: "):
                plain = one_line(paragraph).replace("'", "")
                assert plain in one_line(text).replace("'", ""), paragraph
    for words in commands(cli):
        for page in ("plxsh", f"plxsh-{words[0]}"):
            assert re.search(rf"^ +plxsh {' '.join(words)}\b", shown[page], re.MULTILINE), words


@pytest.mark.slow
def test_the_first_page_has_the_shell_and_what_it_listens_to() -> None:
    shown = rendered((ROOT / "docs/man/plxsh.1").read_text())
    shell = shown.partition("INTERACTIVE SHELL")[2].partition("EXIT STATUS")[0]
    assert "vdi list -o json | jq ." in shell
    assert re.search(r"^ +130 +Interrupted", shown, re.MULTILINE)
    sources = "".join(path.read_text() for path in (ROOT / "plxsh").rglob("*.py"))
    heard = set(re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"|envvar="([A-Z_]+)"', sources))
    names = {name for pair in heard for name in pair if name}
    assert {"PARALLAX_STORE", "NO_COLOR"} <= names
    for name in names:
        assert re.search(rf"^ +{name}( |$)", shown, re.MULTILINE), f"{name} is not described"


def test_who_reads_about_a_command_does_not_change_it(plx: Plx) -> None:
    Manual("1.2.3", "").pages()
    plx("help", "snap", "rollback")
    for option in ("-h", "--help"):
        assert plx("snap", "rollback", option).out.startswith("Usage: plxsh snap rollback")
        assert plx("snap", option).out.startswith("Usage: plxsh snap")


def test_options_are_bold_and_what_is_replaced_italic() -> None:
    assert usage("[r|w] NAME... --long-option") == (
        r"[\fBr\fR|\fBw\fR] \fINAME\fR... \fB\-\-long\-option\fR"
    )
    prose = Prose(["plxsh", "vdi_list"], ["NAME", "N"])
    assert prose("Take NAME or VDI@LABEL with --all, see vdi_list(1). Not a NAMESPACE.") == (
        r"Take \fINAME\fR or \fIVDI@LABEL\fR with \fB\-\-all\fR, see \fBvdi_list\fR(1)."
        "\nNot a NAMESPACE."
    )
    assert prose("or 'plxsh vdi list', but 'other words'") == (
        r"or \fBplxsh vdi list\fR, but \(aqother words\(aq"
    )
    assert prose("copy-on-write in parallax-1.toml") == r"copy-on-write in parallax\-1.toml"


@pytest.mark.slow
def test_nothing_in_a_text_is_taken_for_a_macro() -> None:
    page = Page("odd", 1, "", "")
    page.heading("ODD")
    page.verbatim(ODD)
    shown = [line.removeprefix(" " * 11) for line in rendered(page.text()).splitlines()]
    assert [line for line in shown if line in ODD] == list(ODD)
    prose = Prose([], [])
    for text in ODD:
        page = Page("odd", 1, "", "")
        page.heading("ODD")
        page.paragraph(prose(text.strip()))
        shown_text = one_line(rendered(page.text()).partition("ODD")[2].rpartition("odd(1)")[0])
        assert shown_text.replace("\u2010", "-") == one_line(text)


@pytest.mark.slow
def test_man_finds_the_pages_of_the_wheel(tmp_path: Path) -> None:
    for name in ("core", "plxsh", "docs/man", "deploy"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / "src" / name, ignore=ignore)
    for name in ("pyproject.toml", "LICENSE", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / "src")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    build = ["wheel", *offline, "--no-build-isolation", "-w", "dist", "./src"]
    subprocess.run([*pip, *build], cwd=tmp_path, check=True)
    [wheel] = (tmp_path / "dist").iterdir()
    prefix = tmp_path / "installed"
    install = ["install", *offline, "--ignore-installed", "--prefix", prefix, wheel]
    subprocess.run([*pip, *install], check=True)
    environment = {**os.environ, "MANPATH": str(prefix / "share/man"), "MANWIDTH": "80"}
    for path in PAGES:
        page = prefix / "share/man" / f"man{path.suffix[1:]}" / path.name
        assert page.read_text() == path.read_text()
    for words in (["plxsh"], ["plxsh", "vdi"], ["vdi_create"], ["parallax-mkfs"], ["parallaxd"]):
        done = subprocess.run(
            ["man", *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{'-'.join(words)}(")
