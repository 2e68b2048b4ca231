"""Every command with -o json: one document on standard output, and YAML says the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from shell.conftest import Plx
from shell.tap import connect, environment, serving
from shell.test_main import commands
from support.yaml_reader import load

from core import mkfs
from plxsh.cli import cli

COMMANDS = {
    "store create": ["new.dat", "--extent-size", "1M"],
    "store info": [],
    "store grow": ["--extents", "8"],
    "store check": [],
    "store gc": [],
    "store unshare": [],
    "vdi create": ["new", "--from", "base@clean"],
    "vdi list": [],
    "vdi show": ["web"],
    "vdi fill": ["web", "disk.img"],
    "vdi validate": ["base", "disk.img"],
    "vdi export": ["base", "out.img"],
    "vdi rename": ["web", "www"],
    "vdi resize": ["web", "1M"],
    "vdi delete": ["web"],
    "vdi restore": ["old"],
    "snap create": ["base", "--label", "x y"],
    "snap list": ["base"],
    "snap every": ["base", "1h", "--keep", "48"],
    "snap delete": ["base@spare"],
    "snap rollback": ["base", "base@clean"],
    "snap diff": ["base@clean", "base"],
    "tree": [],
    "tap list": ["--unix", "none.sock"],
    "tap disconnect": ["web"],
    "lock list": [],
    "lock break": ["vdi/1"],
    "lock handover": ["web", "host2"],
    "disk xen": ["base", "xvda"],
    "disk qemu": ["base"],
    "disk libvirt": ["base"],
}
"""What each command is given; where nothing can be shown, how it fails."""

NO_DATA = {"tap serve", "lock master", "use", "watch", "source", "help", "exit", "completion"}
"""Commands without a result of their own."""

FAILS = {"tap list": 3, "lock break": 3, "lock handover": 3}

SIZES = {
    "size", "own", "shared", "mapped", "used", "free", "extent_size", "allocated", "unreachable",
    "restorable", "bytes", "lost", "freed", "leftovers", "length", "created", "modified", "time",
    "size_before", "schedule_ns", "schedule_keep",
}  # fmt: skip


@pytest.fixture
def filled(plx: Plx) -> Plx:
    """A store with something of everything."""
    plx("vdi", "export", "base", "disk.img")
    plx("snap", "create", "base", "--label", "spare")
    plx("vdi", "create", "old", "--size", "4K")
    plx("-y", "vdi", "delete", "old")
    return plx


def test_no_command_is_forgotten() -> None:
    known = COMMANDS.keys() | NO_DATA
    for words in commands(cli):
        assert words[0] in known or " ".join(words) in known, words


def values(data: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a document with its value."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield key, value
            yield from values(value)
    elif isinstance(data, list):
        for item in data:
            yield from values(item)


def check(result: str) -> dict[str, Any]:
    assert result.count("\n") == 1
    document = json.loads(result)
    assert isinstance(document, dict)
    assert next(iter(document)) == "schema"
    assert document["schema"] == 1
    assert len(document) > 1
    for key, value in values(document):
        if key in SIZES:
            assert value is None or type(value) is int or isinstance(value, list), (key, value)
    return document


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_document_and_yaml_says_the_same(filled: Plx, name: str) -> None:
    words = [*name.split(), *COMMANDS[name]]
    status = FAILS.get(name, 0)
    before = filled.bytes()
    told: list[object] = []
    for form in ("json", "yaml"):
        result = filled("-y", "-o", form, *words, status=status)
        if status:
            assert result.out == ""
            continue
        lines = result.out.splitlines()
        told.append(check(result.out) if form == "json" else load(lines))
        filled.path.write_bytes(before)
        for made in ("out.img", "new.dat"):
            Path(made).unlink(missing_ok=True)
    if told:
        first, second = (_steady(document) for document in told)
        assert first == second


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_in_json_is_one_document(filled: Plx, name: str) -> None:
    result = filled("-n", "-o", "json", *name.split(), *COMMANDS[name], status=FAILS.get(name, 0))
    if name not in FAILS:
        check(result.out)


@pytest.mark.slow
def test_the_list_of_a_running_tap(plx: Plx) -> None:
    with serving("tap", "serve", "--unix", "nbd.sock", environment=environment()) as folder:
        path = os.path.join(folder, "nbd.sock")
        with closing(connect(path, "web")):
            told = [plx("-o", form, "tap", "list", "--unix", path).out for form in ("json", "yaml")]
        document = check(told[0])
        assert document["connections"]
        read = load(told[1].splitlines())
        assert read.keys() == document.keys()
        assert [row.keys() for row in read["connections"]] == [
            row.keys() for row in document["connections"]
        ]


def test_empty_lists_are_lists(empty: Plx) -> None:
    for words, key in (
        (["vdi", "list"], "vdis"),
        (["tree"], "vdis"),
        (["lock", "list"], "locks"),
    ):
        for form in ("json", "yaml"):
            out = empty("-o", form, *words).out
            document = check(out) if form == "json" else load(out.splitlines())
            assert document[key] == []


def test_strange_names_survive(empty: Plx) -> None:
    names = ["yes", "a: b", "- x", "0x1f", "日本語", '"quoted"', "#1", "null", "1e5", "a\\b", "{x}"]
    for name in names:
        empty("vdi", "create", "--", name)
    for form in ("json", "yaml"):
        out = empty("-o", form, "vdi", "list").out
        document = json.loads(out) if form == "json" else load(out.splitlines())
        assert [vdi["name"] for vdi in document["vdis"]] == names


def test_warnings_stay_out_of_the_data(plx: Plx) -> None:
    with open(plx.path, "r+b") as file:
        file.write(b"garbage" * 100)
    result = plx("-o", "json", "-v", "vdi", "list")
    assert "warning" in result.err
    check(result.out)


def test_an_error_is_json_on_standard_error(plx: Plx) -> None:
    result = plx("-o", "json", "vdi", "show", "nobody", status=3)
    assert result.out == ""
    line, data = result.err.splitlines()
    assert line.startswith("plxsh: vdi show: there is no VDI 'nobody'")
    assert json.loads(data)["error"].keys() == {"code", "message", "hint"}


def test_the_size_of_a_store_of_another_geometry(tmp_path: Path, plx: Plx) -> None:
    other = tmp_path / "other.dat"
    mkfs.create(str(other), 4 << 20, 7)
    told = plx("-s", other, "-o", "json", "store", "info").json["store"]
    assert (told["size"], told["extent_size"], told["extents"]) == (28 << 20, 4 << 20, 7)


VOLATILE = {"uuid", "created", "modified", "time", "deleted", "own", "returned"}


def _steady(data: Any) -> Any:
    """The data without what another run of a command makes anew."""
    if isinstance(data, dict):
        return {
            k: v if k not in VOLATILE else "?"
            for k, v in ((k, _steady(v)) for k, v in data.items())
        }
    return [_steady(item) for item in data] if isinstance(data, list) else data
