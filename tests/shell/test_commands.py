"""Every command does what it says, and says it in every output form."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from shell.conftest import Plx

from core.image import Image
from core.session import Session

VDI_KEYS = {
    "id", "name", "uuid", "size", "own", "shared", "mapped", "snapshots", "schedule",
    "schedule_ns", "schedule_keep", "parent",
    "created", "modified", "deleted", "served_by", "clients", "state",
}  # fmt: skip


def test_store_create_makes_a_sparse_file(empty: Plx) -> None:
    result = empty("-o", "json", "store", "create", "new.dat", "--extent-size", "1M").json
    made = Path("new.dat").stat()
    assert result["schema"] == 1
    assert result["store"]["size"] == made.st_size == 6 << 20
    assert made.st_blocks * 512 < 1 << 20
    assert empty("-s", "new.dat", "vdi", "list").out == ""


def test_store_create_says_what_it_did_when_someone_watches(empty: Plx) -> None:
    args = ("store", "create", "new.dat", "--extent-size", "1M")
    assert empty(*args).err == ""
    os.unlink("new.dat")
    result = empty("-v", *args)
    assert (result.out, result.err) == ("", "formatted new.dat: 6 extents of 1 MiB\n")
    os.unlink("new.dat")
    assert empty("-v", "-q", *args).err == ""


def test_store_create_force_overwrites(plx: Plx) -> None:
    plx("-y", "store", "create", plx.path, "--extent-size", "1M", "--force")
    assert plx("vdi", "list").out == ""


def test_store_info(plx: Plx) -> None:
    info = plx("-o", "json", "store", "info").json["store"]
    assert (info["size"], info["extents"], info["extent_size"]) == (6 << 20, 6, 1 << 20)
    assert (info["vdis"], info["snapshots"], info["damaged"]) == (2, 1, 0)
    assert info["used"] + info["free"] == 5 << 20
    assert 0 < info["used"] < 1 << 20
    assert info["served_by"] is None
    assert "Size             6 MiB (6291456 bytes)" in plx("-o", "table", "store", "info").lines
    assert "size\t6291456" in plx("-o", "plain", "store", "info").lines
    assert "  size: 6291456" in plx("-o", "yaml", "store", "info").lines


def test_store_info_counts_what_is_written(plx: Plx) -> None:
    before = plx("-o", "json", "store", "info").json["store"]["used"]
    with (
        Session.open(str(plx.path)) as session,
        session.opened(session.registry.find("web")) as vdi,
    ):
        vdi.write(32768, b"x" * 16384)
    # four data blocks and one node, the path to the root
    after = plx("-o", "json", "store", "info").json["store"]["used"]
    assert after - before == 5 * 4096


def test_store_grow(plx: Plx) -> None:
    result = plx("-o", "json", "store", "grow", "--extents", "9").json["store"]
    assert (result["extents"], result["extents_before"]) == (9, 6)
    assert plx.path.stat().st_size == 9 << 20
    assert plx("-o", "json", "store", "info").json["store"]["extents"] == 9


def test_store_check_of_a_sound_store(plx: Plx) -> None:
    assert plx("store", "check").out.endswith(" unreachable: sound\n")
    result = plx("-o", "json", "store", "check").json["check"]
    assert (result["damaged"], result["vdis"], result["snapshots"]) == (False, 2, 1)


def test_store_check_finds_damage_and_repairs_it(plx: Plx) -> None:
    with Session.open(str(plx.path), "read") as session:
        block = session.store.sb.vdi_slot(1, 0)
    with open(plx.path, "r+b") as file:
        file.seek(block * 4096)
        file.write(b"!" * 8192)  # both slots of VDI 1
    result = plx("store", "check", status=1)
    assert f"damage: block {block}: " in result.out
    assert result.out.endswith(": damaged\n")
    before = plx.bytes()
    dry = plx("-n", "store", "check", "--repair", status=1).out
    assert "would repair: VDI 1 is lost: " in dry
    assert plx.bytes() == before
    assert plx("-o", "json", "store", "check", status=1).json["check"]["damaged"] is True
    assert plx("-y", "store", "check", "--repair").out.endswith(": repaired\n")
    assert plx("store", "check").out.endswith(": sound\n")
    assert plx("vdi", "list").out.split("\t")[1] == "base"


def test_vdi_list_in_every_form(plx: Plx, snapshot: tuple[str, str]) -> None:
    parent = "base@" + ".".join(snapshot)
    rows = [line.split("\t") for line in plx("vdi", "list").lines]
    assert rows[0][:3] == ["0", "base", "65536"]
    assert rows[0][5:] == ["1", "-", "-", "ok", "-"]
    assert rows[1] == ["1", "web", "65536", "0", "8192", "0", parent, "-", "ok", "-"]
    listed = plx("-o", "json", "vdi", "list").json
    assert listed["schema"] == 1
    assert [set(vdi) for vdi in listed["vdis"]] == [VDI_KEYS, VDI_KEYS]
    assert listed["vdis"][1]["shared"] == 8192
    table = plx("-o", "table", "vdi", "list").lines
    assert table[0].split() == ["Id", "Name", "Size", "Own", "Shared", "Snaps", "Changed", "Parent"]
    row = table[2].split()
    assert row[:9] == ["1", "web", "64", "KiB", "0", "B", "8", "KiB", "0"]
    assert row[-1] == parent
    yaml = plx("-o", "yaml", "vdi", "list").lines
    assert yaml[:3] == ["schema: 1", "vdis:", "- id: 0"]
    assert f'  parent: "{parent}"' in yaml


def test_vdi_list_shows_a_damaged_record_as_one_line(plx: Plx) -> None:
    with Session.open(str(plx.path), "read") as session:
        at = session.store.sb.vdi_slot(0, 0) * 4096
    with open(plx.path, "r+b") as file:
        file.seek(at)
        file.write(b"!" * 8192)
    result = plx("vdi", "list")
    assert [line.split("\t")[0] for line in result.lines] == ["0", "1"]
    assert result.lines[0].endswith("\tdamaged\t-")
    assert result.lines[1].split("\t")[1] == "web"
    assert result.err == "plxsh: warning: block 2: both records of VDI 0 are damaged\n"
    listed = plx("-o", "json", "vdi", "list").json["vdis"]
    assert listed[0]["state"] == "damaged"
    assert "block 2" in listed[0]["error"]
    assert set(listed[0]) >= VDI_KEYS
    assert "(damaged)" in plx("-o", "table", "vdi", "list").lines[1]


def test_vdi_show_takes_id_name_and_uuid(plx: Plx) -> None:
    by_name = plx("-o", "json", "vdi", "show", "web").json["vdi"]
    assert plx("-o", "json", "vdi", "show", "1").json["vdi"] == by_name
    assert plx("-o", "json", "vdi", "show", by_name["uuid"]).json["vdi"] == by_name
    assert set(by_name) == VDI_KEYS
    assert "Size       64 KiB (65536 bytes)" in plx("-o", "table", "vdi", "show", "1").lines
    assert "size\t65536" in plx("vdi", "show", "1").lines
    assert "  name: web" in plx("-o", "yaml", "vdi", "show", "1").lines


def test_vdi_create_prints_the_id(plx: Plx, snapshot: tuple[str, str]) -> None:
    assert plx("vdi", "create", "My new VDI").out == "2\n"
    assert plx("vdi", "create", "two words", *snapshot).out == "3\n"
    assert plx("vdi", "create", "dotted", "--from", ".".join(snapshot)).out == "4\n"
    assert plx("vdi", "create", "labelled", "--from", "base@clean", "--size", "128K").out == "5\n"
    sizes = [vdi["size"] for vdi in plx("-o", "json", "vdi", "list").json["vdis"]]
    assert sizes == [65536, 65536, 0, 65536, 65536, 131072]
    made = plx("-o", "json", "vdi", "create", "db", "--size", "2GiB").json["vdi"]
    assert (made["id"], made["size"], made["state"]) == (6, 2 << 30, "ok")


def test_vdi_rename_resize_delete(plx: Plx) -> None:
    renamed = plx("-o", "json", "vdi", "rename", "web", "www").json["vdi"]
    assert renamed == {"id": 1, "name": "www", "name_before": "web"}
    resized = plx("-o", "json", "vdi", "resize", "www", "128K").json["vdi"]
    assert resized == {"id": 1, "size": 131072, "size_before": 65536, "lost": 0}
    assert plx("vdi", "resize", "www", "64K").out == ""
    deleted = plx("-o", "json", "-y", "vdi", "delete", "www").json["vdi"]
    assert deleted == {"id": 1, "name": "www", "snapshots": 0}
    assert len(plx("vdi", "list").lines) == 1
    assert "has 1 snapshot" in plx.fails(4, "-y", "vdi", "delete", "base")
    plx("-y", "vdi", "delete", "base", "--snapshots")
    assert plx("vdi", "list").out == ""


def test_vdi_delete_and_restore(plx: Plx) -> None:
    plx("vdi", "export", "base", "base.img")
    plx("-y", "vdi", "delete", "web")
    plx("-y", "vdi", "delete", "base", "--snapshots")
    rows = [line.split("\t") for line in plx("vdi", "list", "--deleted").lines]
    assert [[row[0], row[1], *row[3:]] for row in rows] == [
        ["0", "base", "65536", "8192", "1"],
        ["1", "web", "65536", "0", "0"],
    ]
    listed = plx("-o", "json", "vdi", "list", "--deleted").json["vdis"]
    assert [set(vdi) for vdi in listed] == [VDI_KEYS, VDI_KEYS]
    assert [vdi["state"] for vdi in listed] == ["deleted", "deleted"]
    assert isinstance(listed[0]["deleted"], int)
    table = plx("-o", "table", "vdi", "list", "--deleted").lines
    assert table[0].split() == ["Id", "Name", "Deleted", "Size", "Own", "Snaps"]
    for word in ("restorable", "unreachable"):
        assert word in plx("-o", "json", "store", "check").out
    result = plx("-v", "vdi", "restore", "base")
    assert result.err == "restored VDI 0 'base' (64 KiB, 8 KiB of its own, 1 snapshot: 'clean')\n"
    assert plx("-o", "json", "vdi", "restore", "1", "--name", "www").json["vdi"] == {
        "id": 1, "name": "www", "snapshots": 0
    }  # fmt: skip
    plx("vdi", "validate", "base", "base.img")
    assert plx("snap", "list", "base").out
    assert [line.split("\t")[6] for line in plx("vdi", "list").lines][1].startswith("base@")
    assert plx("vdi", "list", "--deleted").out == ""
    assert plx("store", "check").out.endswith(": sound\n")


def test_vdi_fill_validate_export(plx: Plx) -> None:
    image = os.urandom(5000) + bytes(20000) + b"end"
    Path("disk.img").write_bytes(image)
    plx("vdi", "create", "new")
    filled = plx("-o", "json", "vdi", "fill", "new", "disk.img").json
    assert (filled["vdi"], filled["bytes"]) == ({"id": 2, "size": 25003}, 25003)
    assert plx("vdi", "validate", "new", "disk.img").out == ""
    equal = plx("-o", "json", "vdi", "validate", "new", "disk.img").json["validate"]
    assert equal == {"equal": True, "source": "disk.img", "bytes": 25003}
    plx("vdi", "export", "new", "copy.img")
    assert Path("copy.img").read_bytes() == image
    assert plx("vdi", "export", "new", "-").out.encode("utf-8", "surrogateescape")[-3:] == b"end"
    Path("disk.img").write_bytes(image[:-1] + b"!")
    assert "differs at byte 25002" in plx.fails(1, "vdi", "validate", "new", "disk.img")


def test_vdi_export_replaces_a_file_only_when_told_to(plx: Plx) -> None:
    Path("out.img").write_bytes(b"precious")
    assert "use --force" in plx.fails(2, "vdi", "export", "web", "out.img")
    assert "no terminal to ask on" in plx.fails(2, "vdi", "export", "web", "out.img", "--force")
    assert Path("out.img").read_bytes() == b"precious"
    plx("-y", "vdi", "export", "web", "out.img", "--force")
    assert Path("out.img").stat().st_size == 65536


def test_snapshot_contents_by_all_names(plx: Plx, snapshot: tuple[str, str]) -> None:
    wanted = bytes(4096) + b"a" * 8192 + bytes(53248)
    for n, words in enumerate([snapshot, (".".join(snapshot),), ("base@clean",), ("0@clean",)]):
        plx("vdi", "export", *words, f"{n}.img")
        assert Path(f"{n}.img").read_bytes() == wanted
        plx("vdi", "validate", *words, f"{n}.img")


def test_snap_create_and_list(plx: Plx, snapshot: tuple[str, str]) -> None:
    taken = plx("snap", "create", "base", "--label", "second").out
    block, offset = taken.split()
    assert (block, int(offset)) == (snapshot[0], int(snapshot[1]) + 1)
    rows = [line.split("\t") for line in plx("snap", "list", "base").lines]
    assert [row[:2] + row[4:] for row in rows] == [
        [block, offset, "second"],
        [*snapshot, "clean"],
    ]
    assert plx("snap", "list", "base", "1").lines == ["\t".join(rows[0])]
    listed = plx("-o", "json", "snap", "list", "0").json["snapshots"]
    assert [snap["label"] for snap in listed] == ["second", "clean"]
    assert isinstance(listed[0]["time"], int)
    assert set(listed[0]) == {
        "block", "offset", "time", "root", "label", "vdi", "size", "mapped", "scheduled"
    }  # fmt: skip
    table = plx("-o", "table", "snap", "list", "base").lines
    assert table[0].split() == ["Block", "Offset", "Time", "Age", "Root", "Label"]
    assert "- block: " in plx("-o", "yaml", "snap", "list", "base").out
    made = plx("-o", "json", "snap", "create", "base").json["snapshot"]
    assert made["label"] is None


def test_snap_delete_by_two_words(plx: Plx, snapshot: tuple[str, str]) -> None:
    plx("-y", "snap", "delete", *snapshot)
    assert plx("snap", "list", "base").out == ""
    assert plx("-o", "json", "snap", "list", "base").json == {"schema": 1, "snapshots": []}
    plx("vdi", "export", "web", "web.img")  # the clone is not affected


def test_snap_rollback(plx: Plx) -> None:
    plx("-y", "snap", "rollback", "base", "base@clean")
    plx("vdi", "export", "base", "a.img")
    plx("vdi", "validate", "base@clean", "a.img")


def test_snap_diff(plx: Plx, snapshot: tuple[str, str]) -> None:
    assert plx("snap", "diff", "base@clean", "base").out == "8192\t4096\n"
    assert plx("snap", "diff", *snapshot, "base").out == "8192\t4096\n"
    assert plx("snap", "diff", *snapshot, *snapshot).out == ""
    changes = plx("-o", "json", "snap", "diff", "base", "web").json["changes"]
    assert changes == [{"offset": 8192, "length": 4096}]
    table = plx("-o", "table", "snap", "diff", "base@clean", "base").lines
    assert [line.split() for line in table] == [["Offset", "Length"], ["8192", "4096"]]


def test_snap_diff_ends_where_the_larger_image_ends(empty: Plx) -> None:
    with Session.open(str(empty.path)) as session:
        record = session.create("odd", 5000)
        with session.opened(record) as vdi:
            vdi.snapshot("empty")
            vdi.write(0, b"z" * 5000)
    assert empty("snap", "diff", "odd@empty", "odd").out == "0\t5000\n"


def test_snap_diff_lists_ranges_whose_bytes_differ(empty: Plx) -> None:
    """And not those that were written with what they held, or with zeros where nothing was."""
    with Session.open(str(empty.path)) as session:
        record = session.create("disk", 1 << 20)
        with session.opened(record) as vdi:
            vdi.write(0, b"a" * 65536)
            vdi.snapshot("before")
            vdi.write(4096, b"a" * 8192)
            vdi.write(16384, b"b" * 4096)
            vdi.write(24576, b"a" * 4095 + b"b" + b"b" * 4096)
            vdi.allocate_zeros(512 << 10, 128 << 10)
            vdi.trim(32768, 4096)
    expected = "16384\t4096\n24576\t12288\n"
    assert empty("snap", "diff", "disk@before", "disk").out == expected
    assert empty("snap", "diff", "disk", "disk@before").out == expected


def test_snap_diff_reads_what_was_written_anew(empty: Plx, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session.open(str(empty.path)) as session:
        record = session.create("disk", 3 << 20)
        with session.opened(record) as vdi:
            vdi.write(0, b"a" * (2 << 20))
            vdi.snapshot("before")
            vdi.write(1 << 20, b"b" * 8192)
    read: list[int] = []
    read_into = Image.read_into

    def counted(image: Image, offset: int, buffer: memoryview, wait: bool = True) -> None:
        read.append(len(buffer))
        read_into(image, offset, buffer, wait)

    monkeypatch.setattr(Image, "read_into", counted)
    assert empty("snap", "diff", "disk@before", "disk").out == f"{1 << 20}\t8192\n"
    assert read == [8192, 8192]


@pytest.mark.parametrize("form", ["table", "plain", "json", "yaml"])
def test_tree_finds_its_place(plx: Plx, form: str) -> None:
    assert "web" in plx("-o", form, "tree").out


def test_the_vdi_of_use_where_another_argument_follows(plx: Plx) -> None:
    plx("-c", "use base; vdi export now.img; vdi validate now.img")
    plx("-c", "use base; vdi export @clean clean.img")
    assert Path("now.img").read_bytes() != Path("clean.img").read_bytes()
    plx("-y", "-c", "use base; snap rollback @clean")
    plx("vdi", "validate", "base", "clean.img")
    asked = ("disk xen xvda", "disk xen xvda w", "disk xen web xvda", "disk xen web xvda r")
    found = [plx("-c", f"use base; {line}").out for line in asked]
    uuids = {vdi["uuid"]: vdi["name"] for vdi in plx("-o", "json", "vdi", "list").json["vdis"]}
    meant = [re.search(r"access=(..).*///([-0-9a-f]{36})", line) for line in found]
    assert [(line[1], uuids[line[2]]) for line in meant if line] == [
        ("rw", "base"),
        ("rw", "base"),
        ("rw", "web"),
        ("ro", "web"),
    ]
    told = plx.fails(3, "-c", "use base; vdi export @claen x.img")
    assert told == (
        "plxsh: vdi export: there is no snapshot base@claen (did you mean 'base@clean'?)"
    )


def test_contents_that_are_missing(plx: Plx) -> None:
    for command in ("export", "validate"):
        assert "VDI|SNAPSHOT is missing" in plx.fails(2, "vdi", command, "now.img")
    assert "SNAPSHOT is missing" in plx.fails(2, "snap", "rollback", "base")


def test_json_is_all_there_is_on_standard_output(plx: Plx) -> None:
    for args in (
        ["vdi", "create", "x"],
        ["snap", "create", "x"],
        ["vdi", "rename", "x", "y"],
        ["-y", "vdi", "delete", "y", "--snapshots"],
        ["store", "grow", "--extents", "7"],
    ):
        result = plx("-v", "-o", "json", *args)
        assert json.loads(result.out)["schema"] == 1
