"""Names and labels that somebody wrote into a store to hurt who looks at it.

They break the rules for names (no command would take them), but the checksums are right.
Every command runs on them, in every form of output.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import click
import pytest
from shell.conftest import Plx
from support.forge import Forger

from core.session import Session
from core.tap import metrics
from core.tap.counts import Counts
from core.text import printable
from plxsh.classic import TOOLS
from plxsh.cli import cli, run
from plxsh.completer import complete
from plxsh.context import OUTPUTS, Settings
from plxsh.interpreter import Interpreter
from plxsh.names import Names
from plxsh.overview import Overview
from plxsh.prompt.toolbar import toolbar

HOSTILE = "a\x1b[31m\x07\r\x7f\x9b\u202eb\u2066\u200b\u200f\ufeff\u2028\u00ad\tc\nd"
SHOWN = r"a\x1b[31m\x07\r\x7f\x9b\u202eb\u2066\u200b\u200f\ufeff\u2028\xad\tc\nd"
_RAW = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)

COMMANDS: dict[str, list[list[str]]] = {
    "store check": [[], ["--repair"]],
    "store create": [["{store}"]],
    "store gc": [[], ["--deleted"]],
    "store grow": [["7"]],
    "store info": [[]],
    "store unshare": [[]],
    "vdi create": [["new", "--from", "{snap}"], ["new", "--from", "0@nothing"], [HOSTILE]],
    "vdi delete": [["0"], ["0", "--snapshots"], ["1"]],
    "vdi export": [["0", "out.img"], ["{snap}", "out.img"], [HOSTILE, "out.img"]],
    "vdi fill": [["0", "in.img"], ["1", "in.img"]],
    "vdi list": [[], ["--deleted"]],
    "vdi rename": [["0", "fine"], ["0", HOSTILE]],
    "vdi resize": [["0", "4K"], ["0", "1M"], ["0", "4K", "--force"]],
    "vdi restore": [["2"], [HOSTILE]],
    "vdi show": [["0"], ["1"], ["{uuid}"], [HOSTILE], ["x" + HOSTILE]],
    "vdi validate": [["0", "in.img"], ["{snap}", "in.img"]],
    "snap create": [["0"], ["0", "--label", HOSTILE]],
    "snap delete": [["{snap}"], ["0@" + HOSTILE], ["0@x" + HOSTILE]],
    "snap diff": [["{snap}", "0"], ["0", "1"]],
    "snap every": [["0", "1s", "--keep", "1"], ["0", "off"]],
    "snap list": [["0"], [HOSTILE]],
    "snap rollback": [["0", "{snap}"], ["1", "{snap}"]],
    "tree": [[], ["0"], ["tree.dot"]],
    "tap disconnect": [["0"]],
    "tap list": [[]],
    "lock break": [["vdi/0"]],
    "lock handover": [["0", "elsewhere"]],
    "lock list": [[]],
    "disk libvirt": [["0", "vda"], ["0", "vda", "--by", "name"], ["{snap}", "vda", "--by", "name"]],
    "disk qemu": [["0"], ["0", "--by", "name"], ["0", "--by", "name", "--blockdev"]],
    "disk xen": [["0", "xvda"], ["0", "xvda", "--by", "name"]],
    "use": [["0"], [HOSTILE]],
    "help": [["vdi"], [HOSTILE]],
    "completion answer": [
        ["bash", "plxsh vdi show ", ""],
        ["zsh", "plxsh", "vdi", "show", ""],
        ["fish", "plxsh", "vdi", "show", "0"],
        ["fish", "plxsh", "snap", "delete", "0@"],
        ["fish", "plxsh", "vdi", "restore", ""],
    ],
    "completion bash": [[]],
    "completion fish": [[]],
    "completion zsh": [[]],
}
"""What each command is given. It shows nothing of a store, or goes on for ever: `NOT_RUN`."""
NOT_RUN = {"exit", "lock master", "source", "tap serve", "watch"}


@pytest.fixture
def hostile(plx: Plx) -> Plx:
    """A store whose VDIs 0, 1 (a clone) and 2 (deleted), and a snapshot, have such names."""
    with Session.open(str(plx.path)) as session:
        session.delete(session.create("gone", 4096))
        session.registry.find("web")
    forger = Forger(plx.path)
    for vdi in (0, 1, 2):
        forger.set_record(vdi, name=HOSTILE)
    forger.set_line(0, 0, label=HOSTILE)
    forger.save()
    (plx.folder / "in.img").write_bytes(b"i" * 4096)
    return plx


def leaves(group: click.Group, context: click.Context, before: str = "") -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, context, f"{before}{name} ")
        else:
            yield f"{before}{name}"


def test_every_command_is_here() -> None:
    assert {*leaves(cli, click.Context(cli))} == COMMANDS.keys() | NOT_RUN


def raw(text: str) -> str | None:
    """What of the name stands in a text as it is, None if nothing does."""
    found = _RAW.search(text) or re.search("\t?c\nd", text) or re.search("\tc", text)
    return found and ascii(text[max(0, found.start() - 60) : found.end() + 20])


@pytest.mark.parametrize("command", COMMANDS)
def test_no_output_shows_them_as_they_are(
    hostile: Plx, command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(str(hostile.path)) as session:
        record = session.registry.get(0)
        assert record
        places = {
            "store": str(hostile.path),
            "uuid": record.uuid.hex("-", 4),
            "snap": str(next(session.snapshots(record)).id),
        }
    before = hostile.bytes()
    monkeypatch.setenv("PARALLAX_PAGER", "cat")
    for args in COMMANDS[command]:
        words = [arg.format_map(places) if "{" in arg else arg for arg in args]
        for form in OUTPUTS:
            capfd.readouterr()
            status = run(["-v", "-y", "-o", form, *command.split(), *words])
            out, err = capfd.readouterr()
            assert "bug in Parallax" not in err
            assert not raw(out), (form, words, raw(out))
            assert not raw(err), (form, words, raw(err))
            if hostile.bytes() != before:
                hostile.path.write_bytes(before)
            assert status in (0, 1, 2, 3, 4), err


@pytest.mark.parametrize(
    "command", ["vdi list", "vdi list --deleted", "vdi show 0", "snap list 0", "tree", "tree 1"]
)
@pytest.mark.parametrize("form", ["table", "plain"])
def test_they_are_shown_as_escapes(hostile: Plx, command: str, form: str) -> None:
    assert SHOWN in hostile("-o", form, *command.split()).out


def test_json_has_them_whole(hostile: Plx) -> None:
    assert [vdi["name"] for vdi in hostile("-o", "json", "vdi", "list").json["vdis"]] == (
        [HOSTILE] * 2
    )
    assert hostile("-o", "json", "snap", "list", "0").json["snapshots"][0]["label"] == HOSTILE


def test_a_vdi_with_such_a_name_can_be_dealt_with(hostile: Plx) -> None:
    hostile("-y", "vdi", "rename", "0", "base")
    hostile("-y", "vdi", "rename", "1", "web")
    assert [line.split("\t")[1] for line in hostile("vdi", "list").lines] == ["base", "web"]


def test_the_shell_shows_escapes(hostile: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hostile("-c", "use 0; use").out.strip().endswith(SHOWN)
    settings = Settings(store=str(hostile.path))
    settings.names = Names(settings.store, 60)
    shell = Interpreter(cli, settings)
    record = settings.names.whole(60).live[0]
    shell.use(record)
    monkeypatch.setenv("COLUMNS", "500")
    bar = "".join(piece[1] for piece in toolbar(shell, Overview(holder=HOSTILE, locks=HOSTILE)))
    assert f"VDI {SHOWN}" in bar
    assert not raw(bar)
    assert settings.named(f"VDI '{settings.vdi}'") == f"VDI '{SHOWN}'"
    for line in ("vdi show", "snap delete", "snap diff", "vdi restore", "lock break"):
        for fragment in ("", "0", "0@", "1", "a"):
            for found in complete(cli, settings, line.split(), fragment):
                assert found.text.isprintable()
                assert found.meta.isprintable()
    found = complete(cli, settings, ["vdi", "show"], "")
    assert {one.text for one in found} >= {"0", "1"}


@pytest.mark.parametrize("tool", ["vdi_list", "vdi_tree"])
def test_the_original_tools(
    hostile: Plx, tool: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hostile.path.exists()
    monkeypatch.setattr(sys, "argv", [tool])
    capfd.readouterr()
    with pytest.raises(SystemExit):
        TOOLS[tool]()
    out, err = capfd.readouterr()
    assert SHOWN in out
    assert not raw(out + err)


def test_metrics_label_them_with_escapes() -> None:
    told = {HOSTILE: Counts(reads=3)}
    page = b"".join(metrics._about_exports(told, {HOSTILE: 1})).decode()
    assert not raw(page)
    assert page.count(SHOWN.replace("\\", "\\\\")) == page.count("{export=") > 0


def test_what_can_be_shown_is_not_touched() -> None:
    for text in ("web", "日本語", "Ünï — cödé", "a b", "עברית", "🐧"):
        assert printable(text) is text
    assert printable(HOSTILE) == SHOWN
