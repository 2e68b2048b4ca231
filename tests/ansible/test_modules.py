"""Each module by itself: check, run, run again, check again, and what it refuses."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Host = Any
MIB = 1 << 20


def checksum(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


# -- blockstore ------------------------------------------------------------------------


def test_a_blockstore_is_made_once_and_grows(host: Host) -> None:
    made = host.does("blockstore", extent_size="1M", extents=8)
    assert made["changed"]
    assert made["store"]["size"] == 8 * MIB
    assert not host("blockstore", extent_size="1024K", extents=8)["changed"]
    grown = host.does("blockstore", extents=9)
    assert (grown["store"]["extents"], grown["store"]["size"]) == (9, 9 * MIB)
    assert grown["diff"]["before"]["extents"] == 8
    assert not host("blockstore")["changed"]


def test_a_blockstore_is_never_made_smaller_or_anew(stored: Host) -> None:
    assert "shrink" in stored.fails("blockstore", extents=8)["msg"]
    assert "extents of" in stored.fails("blockstore", extent_size="2M")["msg"]
    assert "no size" in stored.fails("blockstore", extent_size="1MB")["msg"]
    assert not stored("blockstore", force=True)["changed"]


def test_a_file_with_something_else_needs_force(host: Host) -> None:
    precious = bytes(5 << 20) + b"precious" * 1000 + bytes(5 << 20)
    host.store.write_bytes(precious)
    assert (
        "already holds data, at byte 5242880" in host.fails("blockstore", extent_size="1M")["msg"]
    )
    assert host.store.read_bytes() == precious
    assert host.does("blockstore", extent_size="1M", force=True)["changed"]


def test_no_plxsh_is_told(host: Host) -> None:
    told = host.fails("blockstore", plxsh="no-such-program")
    assert told["code"] == "no_plxsh"


# -- vdi -------------------------------------------------------------------------------


def test_a_vdi_is_made_resized_and_deleted(stored: Host) -> None:
    made = stored.does("vdi", name="web", size="2M")
    assert (made["vdi"]["size"], made["diff"]["before"]) == (2 * MIB, {})
    assert not stored("vdi", name="web", size="2048K")["changed"]
    assert not stored("vdi", name="web")["changed"]
    assert stored.does("vdi", name="web", size="3M")["vdi"]["size"] == 3 * MIB
    assert "cut off" in stored.fails("vdi", name="web", size="1M")["msg"]
    assert stored.does("vdi", name="web", size="1M", force=True)["vdi"]["size"] == MIB
    assert stored.does("vdi", name="web", state="absent")["vdi"] == {}
    assert stored.plx("vdi", "list")["vdis"] == []


def test_junk_sizes_are_refused(stored: Host) -> None:
    for size in ("2 G", "2GB", "-1", "1.5G", "", "big"):
        assert "no size" in stored.fails("vdi", name="web", size=size)["msg"]


def test_a_clone_remembers_its_snapshot(stored: Host) -> None:
    stored.plx("vdi", "create", "gold", "--size", "1M")
    for label in ("v1", "v2"):
        stored.plx("snap", "create", "gold", "--label", label)
    clone = stored.does("vdi", name="vm", **{"from": "gold@v1"}, size="2M")
    assert clone["vdi"]["parent"].startswith("gold@")
    assert clone["vdi"]["size"] == 2 * MIB
    assert "clone of gold@" in stored.fails("vdi", name="vm", **{"from": "gold@v2"})["msg"]
    anew = stored.does("vdi", name="vm", **{"from": "gold@v2"}, size="2M", force=True)
    assert anew["changed"]
    assert anew["vdi"]["parent"] != clone["vdi"]["parent"]
    stored.plx("snap", "delete", "gold@v2")
    told = stored("vdi", name="vm", **{"from": "gold@v2"})
    assert not told["changed"]
    assert "stays as it is" in str(told["warnings"])
    assert "no snapshot" in stored.fails("vdi", name="other", **{"from": "gold@v2"})["msg"]
    assert "no less" in stored.fails("vdi", name="other", **{"from": "gold@v1"}, size="1K")["msg"]


def test_a_vdi_is_filled_once(stored: Host) -> None:
    filled = stored.does("vdi", name="gold", source=str(stored.image))
    assert filled["vdi"]["checksum"] == checksum(stored.image)
    assert filled["vdi"]["intact"] is True
    assert filled["vdi"]["size"] == stored.image.stat().st_size
    stored.plx("vdi", "validate", "gold", stored.image)
    labels = [snap["label"] for snap in stored.plx("snap", "list", "gold")["snapshots"]]
    assert labels == [checksum(stored.image)]


def test_another_image_is_filled_unless_somebody_wrote(stored: Host, tmp_path: Path) -> None:
    stored("vdi", name="gold", source=str(stored.image))
    stored.image.write_bytes(b"second" * 50_000)
    stored.plx("vdi", "resize", "gold", "1M")
    again = stored.does("vdi", name="gold", source=str(stored.image))
    assert again["changed"]
    assert again["vdi"]["checksum"] == checksum(stored.image)

    other = tmp_path / "written"
    other.write_bytes(b"what a guest wrote" * 100)
    stored.plx("vdi", "fill", "gold", other)
    told = stored("vdi", name="gold", source=str(stored.image))
    assert (told["changed"], told["vdi"]["intact"]) == (False, False)

    stored.image.write_bytes(b"third" * 50_000)
    assert "was written to" in stored.fails("vdi", name="gold", source=str(stored.image))["msg"]
    stored.does("vdi", name="gold", source=str(stored.image), force=True)
    stored.plx("vdi", "resize", "gold", stored.image.stat().st_size, "--force")
    stored.plx("vdi", "validate", "gold", stored.image)


def test_force_brings_back_what_somebody_overwrote(stored: Host, tmp_path: Path) -> None:
    stored("vdi", name="gold", source=str(stored.image))
    other = tmp_path / "written"
    other.write_bytes(b"x" * 8192)
    stored.plx("vdi", "fill", "gold", other)
    stored.plx("snap", "create", "gold", "--label", "after")
    told = stored("vdi", name="gold", source=str(stored.image))
    assert told["vdi"]["intact"] is False
    assert stored.does("vdi", name="gold", source=str(stored.image), force=True)["changed"]
    stored.plx("vdi", "validate", "gold", stored.image)


def test_what_was_filled_by_hand_is_known_by_its_contents(stored: Host) -> None:
    stored.plx("vdi", "create", "gold")
    stored.plx("vdi", "fill", "gold", stored.image)
    told = stored.does("vdi", name="gold", source=str(stored.image))
    assert told["vdi"]["intact"] is True
    stored.plx("vdi", "create", "other")
    stored.plx("vdi", "fill", "other", stored.image)
    stored.image.write_bytes(b"another image" * 50_000)
    assert "something else" in stored.fails("vdi", name="other", source=str(stored.image))["msg"]


def test_a_checksum_is_compared_first_and_saves_reading_later(stored: Host) -> None:
    right = checksum(stored.image)
    params = {"name": "gold", "source": str(stored.image)}
    stored.plx("vdi", "create", "gold")
    wrong = stored.fails("vdi", **params, checksum="sha256:" + "0" * 64)
    assert right in wrong["msg"]
    assert "no checksum" in stored.fails("vdi", **params, checksum="md5:1")["msg"]
    assert stored.does("vdi", **params, checksum=right)["changed"]
    stored.image.unlink()
    assert not stored("vdi", **params, checksum=right)["changed"]
    assert "debian.img" in stored.fails("vdi", **params)["msg"]


def test_a_vdi_with_snapshots_goes_only_with_force(stored: Host) -> None:
    stored("vdi", name="gold", source=str(stored.image))
    stored.plx("snap", "create", "gold", "--label", "v1")
    assert "v1" in stored.fails("vdi", name="gold", state="absent")["msg"]
    stored.plx("snap", "delete", "gold@v1")
    assert stored.does("vdi", name="gold", state="absent")["changed"]


# -- snapshot --------------------------------------------------------------------------


def test_snapshots_by_label(stored: Host) -> None:
    stored.plx("vdi", "create", "web", "--size", "1M")
    taken = stored.does("snapshot", vdi="web", label="v1")
    assert taken["snapshot"]["label"] == "v1"
    assert taken["diff"]["after"]["snapshots"] == ["v1"]
    gone = stored.does("snapshot", vdi="web", label="v1", state="absent")
    assert (gone["deleted"], gone["snapshot"]) == (["v1"], {})
    assert stored.fails("snapshot", vdi="nobody", label="v1")["code"] == "not_found"


def test_only_the_newest_of_a_series_stay(stored: Host) -> None:
    stored("vdi", name="web", source=str(stored.image))
    for label in ("night-1", "night-2", "other", "night-3"):
        stored.plx("snap", "create", "web", "--label", label)
    retain = {"prefix": "night-", "keep": 2}
    told = stored.does("snapshot", vdi="web", label="night-4", retain=retain)
    assert told["deleted"] == ["night-2", "night-1"]
    labels = [snap["label"] for snap in stored.plx("snap", "list", "web")["snapshots"]]
    assert labels == ["night-4", "night-3", "other", checksum(stored.image)]
    stored.does("snapshot", vdi="web", retain={"prefix": "sha256:", "keep": 1})
    assert "at least 1" in stored.fails("snapshot", vdi="web", retain={**retain, "keep": 0})["msg"]


def test_a_rollback_loses_data_only_with_force(stored: Host) -> None:
    stored("vdi", name="web", source=str(stored.image))
    stored.plx("snap", "create", "web", "--label", "clean")
    assert not stored.does("snapshot", vdi="web", label="clean", state="rolled_back")["changed"]
    other = stored.folder / "other"
    other.write_bytes(b"x" * 5000)
    stored.plx("vdi", "fill", "web", other)
    back = {"vdi": "web", "label": "clean", "state": "rolled_back"}
    assert "no snapshot has" in stored.fails("snapshot", **back)["msg"]
    told = stored.does("snapshot", **back, force=True)
    assert told["diff"]["after"]["rolled_back_to"] == "clean"
    stored.plx("vdi", "validate", "web", stored.image)
    stored.plx("vdi", "fill", "web", other)
    stored.plx("snap", "create", "web", "--label", "kept")
    assert stored.does("snapshot", **back)["changed"]


def test_a_schedule_is_compared_as_time(stored: Host) -> None:
    stored.plx("vdi", "create", "web", "--size", "1M")
    hourly = stored.does("snapshot", vdi="web", schedule={"every": "1h", "keep": 5})
    assert hourly["schedule"] == {"every": "1h", "keep": 5}
    assert not stored("snapshot", vdi="web", schedule={"every": "60m", "keep": 5})["changed"]
    off = stored.does("snapshot", vdi="web", schedule={"every": False})
    assert off["schedule"] == {"every": None, "keep": None}
    assert "keep" in stored.fails("snapshot", vdi="web", schedule={"every": "1h"})["msg"]
    stored.fails("snapshot", vdi="web", schedule={"every": "soon", "keep": 1})


# -- looking ---------------------------------------------------------------------------


def test_looking_changes_nothing(stored: Host) -> None:
    stored("vdi", name="web", source=str(stored.image))
    stored.plx("snap", "create", "web", "--label", "v1")
    before = stored.contents()
    assert [vdi["name"] for vdi in stored.does("vdi_info")["vdis"]] == ["web"]
    assert stored.does("vdi_info", name="web")["vdis"][0]["snapshots"] == 2
    assert stored.does("vdi_info", name="nobody")["vdis"] == []
    assert len(stored.does("snapshot_info", vdi="web")["snapshots"]) == 2
    assert len(stored.does("snapshot_info", vdi="web", label="v1")["snapshots"]) == 1
    told = stored.does("blockstore_info")
    assert (told["exists"], told["blockstore"]["vdis"]) == (True, 1)
    nowhere = stored.does("blockstore_info", store=str(stored.folder / "none"))
    assert (nowhere["exists"], nowhere["blockstore"]) == (False, {})
    assert stored.does("export_info", socket=str(stored.folder / "none"))["serving"] is False
    assert stored.contents() == before


# -- xen_disk --------------------------------------------------------------------------


CONFIG = b"name = 'vm'\r\n# all disks: \xe9\r\ndisk = [\r\n  'phy:/dev/a,xvdb,w', # data\r\n]\r\n"


def test_a_disk_of_a_xen_domain(stored: Host) -> None:
    stored.plx("vdi", "create", "vm", "--size", "1M")
    path = stored.folder / "vm.cfg"
    path.write_bytes(CONFIG)
    os.chmod(path, 0o640)
    disk = {"path": str(path), "vdev": "xvda"}
    told = stored.does("xen_disk", **disk, vdi="vm", validate="grep -q block-plx %s")
    assert told["entry"].startswith("format=raw,vdev=xvda,access=rw,script=block-plx,target=nbd")
    assert told["entry"] in told["diff"]["after"]
    assert path.read_bytes().replace(f"  '{told['entry']}',\r\n".encode(), b"") == CONFIG
    assert path.stat().st_mode & 0o777 == 0o640
    read_only = stored.does("xen_disk", **disk, vdi="vm", access="r", backup=True)
    assert "access=ro" in read_only["entry"]
    gone = stored.does("xen_disk", **disk, state="absent")
    assert gone["entry"] == ""
    assert path.read_bytes() == CONFIG
    assert len(list(stored.folder.glob("vm.cfg.*~"))) == 1


def test_what_is_not_safe_leaves_the_file_alone(stored: Host) -> None:
    stored.plx("vdi", "create", "vm", "--size", "1M")
    path = stored.folder / "vm.cfg"
    disk = {"path": str(path), "vdev": "xvdb", "vdi": "vm"}
    assert stored.fails("xen_disk", **disk)["code"] == "not_found"
    path.write_bytes(CONFIG)
    assert "no disk of Parallax" in stored.fails("xen_disk", **disk)["msg"]
    told = stored.fails("xen_disk", **disk, force=True, validate="false %s")
    assert "refuses the new file" in told["msg"]
    assert "banana" in stored.fails("xen_disk", **{**disk, "vdev": "banana"})["msg"]
    assert path.read_bytes() == CONFIG
    path.write_bytes(b"import os\n" + CONFIG)
    assert "line 1: " in stored.fails("xen_disk", **disk)["msg"]
    assert path.read_bytes() == b"import os\n" + CONFIG
    path.write_bytes(CONFIG)
    assert stored.does("xen_disk", **disk, force=True)["changed"]


def test_a_historic_entry_is_converted(stored: Host) -> None:
    stored.plx("vdi", "create", "vm", "--size", "1M")
    path = stored.folder / "vm.cfg"
    path.write_text("disk = ['tap:parallax:0,sda1,w,0' ]\n")
    told = stored.does("xen_disk", path=str(path), vdev="sda1", vdi="vm")
    assert told["entry_before"] == "tap:parallax:0,sda1,w,0"
    assert path.read_text() == f"disk = ['{told['entry']}' ]\n"


def test_a_refill_that_is_refused_leaves_the_vdi_protected(stored: Host) -> None:
    stored("vdi", name="gold", source=str(stored.image))
    good = stored.image.read_bytes()
    stored.image.write_bytes(b"KDMV" + good[4:])
    assert "vmdk" in stored.fails("vdi", name="gold", source=str(stored.image))["msg"]
    other = stored.folder / "written"
    other.write_bytes(b"what a guest wrote" * 100)
    stored.plx("vdi", "fill", "gold", other)
    stored.image.write_bytes(b"third" * 50_000)
    assert "was written to" in stored.fails("vdi", name="gold", source=str(stored.image))["msg"]


def test_an_image_that_is_refused_leaves_no_new_vdi(stored: Host) -> None:
    stored.image.write_bytes(b"KDMV" + bytes(600))
    assert stored("vdi", name="new", source=str(stored.image))["failed"]
    assert not stored("vdi_info", name="new")["vdis"]


def test_a_rollback_is_seen(stored: Host) -> None:
    """What is its own is 0 after a rollback, and yet it is not the image of the last fill."""
    filled = stored("vdi", name="gold", source=str(stored.image))
    stored.image.write_bytes(b"second" * 50_000)
    stored("vdi", name="gold", source=str(stored.image))
    first = filled["vdi"]["checksum"]
    stored("snapshot", vdi="gold", label=first, state="rolled_back")
    assert stored("vdi", name="gold", source=str(stored.image))["vdi"]["intact"] is False
    assert stored.does("vdi", name="gold", source=str(stored.image), force=True)["changed"]


@pytest.mark.parametrize(
    "params",
    [{"from": "vm@v1"}, {"from": "gold@v1", "size": "1P"}, {"from": "gold@v1", "size": "4K"}],
)
def test_what_cannot_be_made_anew_is_not_deleted(stored: Host, params: dict[str, str]) -> None:
    for name in ("vm", "gold"):
        stored.plx("vdi", "create", name, "--size", "1M")
        stored.plx("snap", "create", name, "--label", "v1")
    stored.fails("vdi", name="vm", force=True, **params)


def test_cutting_off_is_foretold(stored: Host) -> None:
    filled = {"name": "gold", "source": str(stored.image)}
    stored("vdi", **filled)
    assert "too few" in stored.fails("vdi", **filled, size="100K", force=True)["msg"]
    assert stored.does("vdi", name="gold", size="100K", force=True)["vdi"]["intact"] is False


def test_a_configuration_that_is_missing_is_no_missing_store(stored: Host) -> None:
    assert stored.fails("blockstore_info", config="/nope")["code"] == "not_found"
