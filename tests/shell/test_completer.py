"""What may stand at the cursor, for every kind of place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from shell.many import store_of_clones
from support.shell import populated

from core.blockstore import Blockstore
from core.lock_messages import TAP, TOOL, UNKNOWN, Holding, Who
from core.session import Session
from plxsh.cli import cli
from plxsh.completer import Candidate, complete, complete_file, complete_prefix
from plxsh.context import Settings
from plxsh.interpreter import Interpreter
from plxsh.names import Names


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("plxsh.names._REST", 0)
    monkeypatch.setattr("plxsh.paths._DEADLINE", 60.0)
    return patient(Settings(store=populated(tmp_path)))


def patient(settings: Settings) -> Settings:
    """Wait for names as long as it takes: a test proves no speed."""
    settings.names = Names(settings.store, 60)
    return settings


def words(settings: Settings, line: str, fragment: str = "") -> list[str]:
    return [candidate.text for candidate in complete(cli, settings, line.split(), fragment)]


def about(settings: Settings, line: str, fragment: str) -> dict[str, str]:
    return {c.text: c.meta for c in complete(cli, settings, line.split(), fragment)}


# -- commands and options --------------------------------------------------------------


def test_commands_with_what_they_do(settings: Settings) -> None:
    found = about(settings, "", "")
    assert {"store", "vdi", "snap", "tree", "help", "exit"} <= found.keys()
    assert found["snap"] == "Take, list, compare and delete snapshots"
    assert {c.kind for c in complete(cli, settings, [], "")} == {"group", "command"}
    assert words(settings, "", "sn")[0] == "snap"
    assert words(settings, "vdi", "rest")[0] == "restore"
    assert words(settings, "-o json vdi", "li")[0] == "list"


def test_nothing_behind_a_wrong_command(settings: Settings) -> None:
    assert words(settings, "nonsense") == words(settings, "vdi nonsense") == []
    assert words(settings, "nonsense", "-") == []


def test_a_command_within_a_command(settings: Settings) -> None:
    assert "snap" in words(settings, "watch")
    assert words(settings, "watch 5 vdi", "lis") == ["list"]
    assert words(settings, "help vdi", "lis") == ["list"]
    assert words(settings, "watch vdi show", "ba") == ["base"]


def test_aliases(settings: Settings) -> None:
    settings.config = {"shell": {"aliases": {"show-all": "vdi list", "sh": "vdi show"}}}
    assert about(settings, "", "show-")["show-all"] == "alias of vdi list"
    assert words(settings, "sh", "ba") == ["base"]
    assert "show-all" not in words(settings, "vdi", "sh")
    settings.config = {"shell": {"aliases": 7}}
    assert "vdi" in words(settings, "")


def test_options_with_what_they_mean(settings: Settings) -> None:
    found = about(settings, "vdi create x", "-")
    assert found["--size"] == "Size of the new VDI, such as 2G"
    assert [*found][:2] == ["--from", "--size"]
    assert "--dry-run" in found
    assert "-n" not in found
    assert words(settings, "vdi create x", "-n")[0] == "-n"
    assert words(settings, "tree", "-")[0] == "-o"


def test_an_option_is_offered_once(settings: Settings) -> None:
    assert "--size" not in words(settings, "vdi create x --size 1G", "--")
    assert "--size" not in words(settings, "vdi create x --size=1G", "--")
    assert "--dry-run" not in words(settings, "-n vdi create x", "--")
    assert "--dry-run" not in words(settings, "vdi create x -n", "--")


def test_no_options_behind_two_dashes(settings: Settings) -> None:
    assert words(settings, "vdi show --", "-") == []
    assert words(settings, "vdi show --", "ba") == ["base"]


def test_options_where_nothing_else_may_stand(settings: Settings) -> None:
    assert words(settings, "vdi list") == ["--deleted"]
    assert words(settings, "vdi show base") == []


def test_values_of_options(settings: Settings) -> None:
    assert words(settings, "vdi list -o") == ["table", "json", "yaml", "plain"]
    assert words(settings, "vdi list -o", "aml") == ["yaml"]
    assert words(settings, "vdi list", "--output=j") == ["--output=json"]
    assert words(settings, "vdi list", "--deleted=") == []
    assert words(settings, "vdi list", "--nonsense=") == []
    assert words(settings, "vdi create x --size", "10") == ["10G", "10M", "10T", "10K"]
    assert "2G" not in words(settings, "vdi create x --size", "x")
    assert words(settings, "vdi create x --from", "ba") == ["base@"]
    assert words(settings, "vdi fill base disk --format", "q") == ["qcow2", "qed", "qcow"]
    assert words(settings, "tap serve --tcp", "127")[0] == "127.0.0.1:10809"
    assert words(settings, "tap serve --metrics", "127") == ["127.0.0.1:8441"]
    assert words(settings, "vdi list --lock-master", "127") == ["127.0.0.1:8440"]
    assert set(words(settings, "snap every base", "1")) == {"1s", "1m", "1h", "1d", "10ms"}
    assert words(settings, "snap every base", "o") == ["off"]
    assert words(settings, "disk xen base", "xvd")[0] == "xvda"
    assert words(settings, "disk xen base xvda") == ["r", "w"]


def test_locks_and_hosts_as_they_were_seen_last(settings: Settings) -> None:
    here = Who(1, "one", 7, "serves disks", TAP)
    there = Who(2, "two", 8, "of an earlier version", UNKNOWN)
    tool = Who(3, "three", 9, "plxsh tap disconnect tap", TOOL)
    settings.shell = Interpreter(cli, settings)
    settings.names.holders = {
        held.name: held
        for held in (
            Holding("vdi/1", 5, False, here),
            Holding("session/aa", 1, False, here),
            Holding("session/bb", 2, False, there),
            Holding("session/cc", 3, False, tool),
        )
    }
    assert about(settings, "lock break", "vdi") == {"vdi/1": "one, process 7 (serves disks)"}
    assert words(settings, "lock break", "session") == []
    assert about(settings, "lock handover web", "") == {
        "one": "serves disks",
        "two": "of an earlier version",
    }
    settings.names.holders = {}
    assert words(settings, "lock break") == []
    assert "one" not in words(settings, "lock handover web")


def test_what_is_open_comes_first_where_it_is_to_be_closed(settings: Settings) -> None:
    found = [word for word in words(settings, "vdi show") if "@" not in word]
    settings.shell = Interpreter(cli, settings)
    settings.names.opened = frozenset({1})
    assert words(settings, "tap disconnect")[:2] == ["web", "base"]
    assert sorted(words(settings, "vdi show")) == sorted(found)
    assert words(settings, "tap disconnect", "base@") == ["base@patched", "base@clean"]
    settings.names.opened = frozenset()
    assert words(settings, "tap disconnect")[:2] == ["base", "web"]
    settings.shell = None  # for bash and its like: nothing is served now
    assert words(settings, "tap disconnect")[:2] == ["base", "web"]


# -- names -----------------------------------------------------------------------------


def test_vdis_with_size_and_snapshots(settings: Settings) -> None:
    assert about(settings, "vdi show", "") == {
        "base": "64 KiB, 2 snapshots",
        "web": "64 KiB",
        "My new VDI": "1 MiB, 1 snapshot",
        "日本語": "2 MiB, 1 snapshot",
    }


def test_vdis_that_are_open(settings: Settings) -> None:
    settings.names.opened = frozenset({1})
    found = about(settings, "vdi show", "")
    assert found["web"] == "64 KiB, open"
    assert "open" not in found["base"]


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [("BA", "base"), ("mnv", "My new VDI"), ("new", "My new VDI"), ("本", "日本語")],
)
def test_vdis_are_found_by_any_part(settings: Settings, fragment: str, expected: str) -> None:
    assert words(settings, "vdi show", fragment)[0] == expected


def test_a_name_like_an_option_is_offered_by_its_id(settings: Settings) -> None:
    with Session.open(settings.store) as session:
        session.snapshot(session.create("-dash"))
        session.delete(session.registry.find(session.create("-gone").name))
    patient(settings)
    assert about(settings, "vdi show", "")["4"] == "-dash, 0 B, 1 snapshot"
    assert not [word for word in words(settings, "snap delete") if word.startswith("-")]
    assert "5" in words(settings, "vdi restore")


def test_behind_the_name_of_the_program_that_is_running(settings: Settings) -> None:
    Interpreter(cli, settings)
    assert words(settings, "plxsh vdi", "lis") == ["list"]
    assert "snap" in words(settings, "plxsh")


def test_ids_once_a_digit_is_typed(settings: Settings) -> None:
    assert about(settings, "vdi show", "1") == {"1": "web, 64 KiB"}
    assert "0" not in words(settings, "vdi show", "")


def test_snapshots_behind_an_at(settings: Settings) -> None:
    found = about(settings, "snap delete", "base@")
    assert [*found] == ["base@patched", "base@clean"]
    assert found["base@clean"].endswith(", 64 KiB")
    assert words(settings, "snap delete", "base@cl") == ["base@clean"]
    assert words(settings, "snap delete", "0@cl") == ["0@clean"]
    assert words(settings, "snap delete", "BASE@CL") == ["base@clean"]
    assert words(settings, "snap delete", "My new VDI@u") == ["My new VDI@before upgrade"]
    assert words(settings, "snap delete", "web@") == words(settings, "snap delete", "x@") == []


def test_vdis_that_have_snapshots_come_before_the_at(settings: Settings) -> None:
    found = complete(cli, settings, ["snap", "delete"], "")
    assert [c.text for c in found] == ["base@", "My new VDI@", "日本語@"]
    assert all(c.more for c in found)


def test_a_snapshot_without_a_label_is_its_id(settings: Settings) -> None:
    with Session.open(settings.store) as session:
        record = session.registry.find("日本語")
        [first] = session.snapshots(record)
        for _ in range(2):
            session.snapshot(record, "twice")
        hidden = [*session.snapshots(session.registry.find("日本語"))][1]
    assert words(settings, "snap delete", "日本語@") == [
        "日本語@twice",
        f"日本語@{hidden.id}",
        f"日本語@{first.id}",
    ]


def test_a_vdi_or_a_snapshot(settings: Settings) -> None:
    assert words(settings, "snap diff", "base") == ["base", "base@"]
    assert words(settings, "snap diff base", "base@p") == ["base@patched"]
    assert words(settings, "disk qemu", "web") == ["web"]


def test_snapshots_by_block_and_offset(settings: Settings) -> None:
    with Session.open(settings.store, "read") as session:
        block = session.find_snapshot("base@clean").id.block
    text = str(block)
    found = about(settings, "snap delete", text)
    assert found[text] == "2 snapshots of base"
    assert found[f"{text}.0"].startswith("base@clean, ")
    assert words(settings, f"snap delete {text}") == ["1", "0"]
    assert words(settings, f"snap delete {text}", "0") == ["0"]
    assert words(settings, f"snap delete {text} 0") == []
    assert words(settings, "snap delete", f"{text}.") == [f"{text}.1", f"{text}.0"]
    assert text not in words(settings, "vdi create x --from", text)
    assert words(settings, "snap delete " + "9" * 5000, "") == []


def test_snapshots_of_the_vdi_of_use(settings: Settings) -> None:
    with Session.open(settings.store, "read") as session:
        raw = session.registry.find("base").uuid.hex()
    settings.vdi = f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"
    assert words(settings, "snap delete", "@") == ["@patched", "@clean"]
    assert words(settings, "snap delete", "")[:2] == ["@patched", "@clean"]


def test_deleted_vdis(settings: Settings) -> None:
    with Session.open(settings.store) as session:
        session.delete(session.registry.find("web"))
        session.create("two")
        session.delete(session.registry.find("two"))
    found = about(settings, "vdi restore", "")
    assert {*found} == {"web", "two"}
    assert found["web"].startswith("64 KiB, deleted ")
    assert "web" not in words(settings, "vdi show", "")
    with Session.open(settings.store) as session:
        session.create("web")
        session.delete(session.registry.find("web"))
    found = about(settings, "vdi restore", "")
    ids = [text for text, meta in found.items() if meta.startswith("web, ")]
    assert [*found] == ["two", *ids]  # there are two of it
    assert len(ids) == 2
    assert all(text.isdigit() for text in ids)
    assert words(settings, "vdi restore", ids[0]) == [ids[0]]


def test_names_of_another_store(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Names.__init__, "__defaults__", (60.0, "host"))  # as `patient`
    (tmp_path / "second").mkdir()
    other = populated(tmp_path / "second")
    with Session.open(other) as session:
        session.create("elsewhere")
    for line in (f"-s {other} vdi show", f"vdi show --store {other}"):
        assert words(settings, line, "else") == ["elsewhere"]
    assert words(settings, "vdi show", "else") == []


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    settings = patient(Settings(store=str(tmp_path / "nothing")))
    for line in ("vdi show", "vdi restore", "snap delete", "snap diff"):
        for fragment in ("", "1", "x", "x@", "@"):
            assert words(settings, line, fragment) == []
    assert "list" in words(settings, "vdi")


# -- files -----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    os.mkdir("images")
    Path("images/disk one.img").write_bytes(b"x" * 1536)
    Path("disk.img").write_bytes(b"")


@pytest.mark.usefixtures("files")
def test_files_where_a_path_belongs(settings: Settings) -> None:
    for line in ("vdi fill base", "vdi export base", "store create", "source", "tree -o", "-s"):
        assert words(settings, line) == ["disk.img", "images/"], line
    assert complete(cli, settings, ["vdi", "fill", "base"], "images/ONE") == [
        Candidate("images/disk one.img", "1.5 KiB", "file")
    ]
    assert complete(cli, settings, ["vdi", "fill", "base"], "ima") == [
        Candidate("images/", "folder", "folder", True)
    ]
    assert words(settings, "", "--store=dis") == ["--store=disk.img"]
    assert complete_file("dis") == [Candidate("disk.img", "0 B", "file")]


# -- other shells, many names ----------------------------------------------------------


@pytest.mark.usefixtures("files")
def test_other_shells_get_what_begins_so(settings: Settings) -> None:
    def prefix(line: str, fragment: str) -> list[str]:
        return [c.text for c in complete_prefix(cli, settings, line.split(), fragment)]

    assert prefix("vdi show", "My") == ["My new VDI"]
    assert prefix("vdi show", "my") == prefix("vdi show", "new") == []
    assert prefix("vdi fill base", "images/d") == ["images/disk one.img"]
    assert prefix("vdi create x", "--s") == ["--size", "--store"]
    assert prefix("snap delete", "base@") == ["base@patched", "base@clean"]


@pytest.mark.parametrize("fragment", ["", "c", "clone-99", "99", "ln9", "zzz"])
def test_many_names_cost_no_more_than_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fragment: str
) -> None:
    """Nothing is read for a key, and only what is shown is described."""
    path = tmp_path / "many.dat"
    store_of_clones(path, 2000)
    os.utime(path, (1, 1))
    settings = patient(Settings(store=str(path)))
    assert len(settings.names.vdis()) == 2001
    described = opened = 0

    def size(_: int) -> str:
        nonlocal described
        described += 1
        return ""

    def refuse(*_: object) -> None:
        nonlocal opened
        opened += 1

    monkeypatch.setattr("plxsh.offers.human_size", size)
    monkeypatch.setattr(Blockstore, "__init__", refuse)
    monkeypatch.setattr("plxsh.names._REST", 0)
    found: Sequence[Candidate] = complete(cli, settings, ["vdi", "show"], fragment)
    assert described == len(found) <= 500
    assert opened == 0


def test_other_shells_get_all_of_many(tmp_path: Path) -> None:
    path = tmp_path / "many.dat"
    store_of_clones(path, 1000)
    settings = patient(Settings(store=str(path)))
    assert len(complete_prefix(cli, settings, ["vdi", "show"], "clone-")) == 1000
