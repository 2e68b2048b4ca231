"""What goes wrong with modules of this kind: junk, odd names, half-done work, two at a time."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Host = Any
MIB = 1 << 20
ODD_NAMES = [
    "-rf",
    "--help",
    "--force",
    "1.2",
    "a/b",
    "..",
    "日本 語",
    "x'y\"z",
    "a%sb\\n",
    "${HOME}",
    "$(reboot)",
    "#1; ls",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_that_look_like_something_else(stored: Host, name: str) -> None:
    """A VDI and a snapshot may have any name that plxsh takes."""
    assert stored.does("vdi", name=name, size="1M")["vdi"]["name"] == name
    label = f"{name}!" if name == "1.2" else name
    assert stored.does("snapshot", vdi=name, label=label)["snapshot"]["label"] == label
    clone = stored("vdi", name=f"{name} 2", **{"from": f"{name}@{label}"})
    assert clone["vdi"]["parent"].startswith(f"{name}@")
    assert stored("vdi_info", name=name)["vdis"][0]["name"] == name
    assert stored("vdi", name=f"{name} 2", state="absent")["changed"]
    assert stored("snapshot", vdi=name, label=label, state="absent")["changed"]
    assert stored("vdi", name=name, state="absent")["changed"]
    assert stored("vdi_info")["vdis"] == []


@pytest.mark.parametrize("name", ["7", "0123", "a@b", " a", "a\n", "a\u2028b", "", "x" * 300])
def test_names_that_no_vdi_can_have(stored: Host, name: str) -> None:
    assert stored.fails("vdi", name=name, size="1M")["code"] == "usage"


def test_an_id_and_a_uuid_name_what_exists(stored: Host) -> None:
    made = stored("vdi", name="web", size="1M")["vdi"]
    for other in (str(made["id"]), made["uuid"], made["uuid"].upper()):
        told = stored("vdi", name=other, size="1024K")
        assert (told["changed"], told["vdi"]["name"]) == (False, "web")
    assert stored.does("vdi", name=made["uuid"], state="absent")["changed"]


@pytest.mark.parametrize(
    "size", ["9999999999P", "٣M", "1_000", "0x10", "1e6", "+4096", "4096 ", "1MiB "]
)
def test_sizes_that_are_none(stored: Host, size: str) -> None:
    assert stored.fails("vdi", name="web", size=size)["code"] == "usage"


def test_numbers_of_extents_that_are_none(stored: Host) -> None:
    for extents in (0, -1, 10**12):
        assert stored.fails("blockstore", extents=extents)["code"] == "usage"
        none = str(stored.folder / "none")
        told = stored.fails("blockstore", store=none, extent_size="1M", extents=extents)
        assert told["code"] == "usage"
        assert not Path(none).exists()


def test_what_only_a_new_vdi_is_asked_for_is_no_error_later(stored: Host) -> None:
    """A clone that has grown, or has snapshots and data of its own, is asked for as on day one."""
    stored("vdi", name="gold", source=str(stored.image))
    stored("snapshot", vdi="gold", label="v1")
    params = {"name": "vm", "from": "gold@v1"}
    stored.does("vdi", **params)
    stored.plx("vdi", "resize", "vm", "2M")
    stored.plx("snap", "create", "vm", "--label", "mine")
    stored.plx("vdi", "fill", "vm", stored.image)
    assert not stored("vdi", **params)["changed"]
    assert "cut off" in stored.fails("vdi", **params, size="1M")["msg"]
    stored.plx("vdi", "rename", "gold", "platinum")
    assert not stored("vdi", **{**params, "from": "platinum@v1"})["changed"]


def test_check_mode_names_the_parent_as_the_run_does(stored: Host) -> None:
    """Also when `from` names the VDI by its id."""
    gold = stored("vdi", name="gold", size="1M")["vdi"]["id"]
    for label in ("v1", "v2"):
        stored("snapshot", vdi="gold", label=label)
    stored("vdi", name="vm", **{"from": "gold@v1"})
    anew = stored.does("vdi", name="vm", **{"from": f"{gold}@v2"}, force=True)
    assert anew["vdi"]["parent"].startswith("gold@")


# -- half-done work --------------------------------------------------------------------


def test_an_image_that_does_not_fit_leaves_no_vdi(stored: Host) -> None:
    small = {"name": "gold", "source": str(stored.image), "size": "4K"}
    assert "too few" in stored.fails("vdi", **small)["msg"]
    wrong = {"name": "gold", "source": str(stored.image), "checksum": "sha256:" + "0" * 64}
    assert stored.fails("vdi", **wrong)["code"] == "different"
    missing = {"name": "gold", "source": str(stored.folder / "none")}
    assert stored.fails("vdi", **missing)["code"] == "not_found"
    assert stored("vdi_info")["vdis"] == []


def test_an_image_that_is_replaced_while_it_is_read_is_not_marked(stored: Host) -> None:
    """Between its checksum and the fill as well."""
    other = stored.folder / "other.img"
    other.write_bytes(b"other" * 1000)
    swap = stored.folder / "swap"
    swap.write_text(
        f'#!/bin/sh\ncase "$*" in *"vdi fill"*) mv {other} {stored.image} ;; esac\n'
        f'exec {stored.plxsh} "$@"\n'
    )
    swap.chmod(0o755)
    told = stored("vdi", name="gold", source=str(stored.image), plxsh=str(swap))
    assert told["code"] == "changed", told
    assert stored("vdi", name="gold")["vdi"]["checksum"] is None
    assert stored("vdi", name="gold", source=str(stored.image))["vdi"]["intact"] is True


def test_a_missing_store_is_no_missing_vdi(host: Host) -> None:
    for params in ({"state": "absent"}, {"state": "present"}):
        told = host.fails("vdi", name="web", **params)
        assert told["msg"].startswith("there is no blockstore"), told
    assert "no blockstore" in host.fails("vdi_info", name="web")["msg"]
    assert "no blockstore" in host.fails("snapshot_info", vdi="web")["msg"]
    assert "no blockstore" in host.fails("snapshot", vdi="web", label="v1")["msg"]
    assert not host.store.exists()


def test_a_store_of_another_version_is_never_formatted(stored: Host) -> None:
    """`force` is for what is no blockstore."""
    from dataclasses import replace

    from core.blockstore import Blockstore

    with open(stored.store, "r+b") as file:
        opened = Blockstore.open(str(stored.store), "read")
        newer = replace(opened.sb, incompat=1 << 31, sequence=opened.sb.sequence + 1)
        opened.close()
        for block in (0, newer.copy_block):
            file.seek(block * 4096)
            file.write(newer.pack())
    told = stored.fails("blockstore", extent_size="1M", extents=16, force=True)
    assert told["code"] == "newer_store"
    assert stored.fails("blockstore_info")["code"] == "newer_store"


def test_an_empty_label_is_a_mistake(stored: Host) -> None:
    stored("vdi", name="web", size="1M")
    stored.plx("snap", "create", "web")
    for state in ("present", "absent", "rolled_back"):
        assert "empty" in stored.fails("snapshot", vdi="web", label="", state=state)["msg"]
    assert len(stored("snapshot_info", vdi="web")["snapshots"]) == 1


def test_a_snapshot_without_a_label_is_told_of(stored: Host) -> None:
    stored("vdi", name="web", size="1M")
    stored.plx("snap", "create", "web")
    told = stored.does("snapshot_info", vdi="web")
    assert told["snapshots"][0]["label"] is None
    stored.does("snapshot", vdi="web", label="x", retain={"prefix": "x", "keep": 1})


# -- two at a time ---------------------------------------------------------------------


def at_once(host: Host, *jobs: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Run modules at the same time, each in a process of its own; return what they told.

    Each waits its turn for as long as a busy machine may need.
    """
    running = []
    for number, (name, params) in enumerate(jobs):
        words, variables = host.command(name, wait=90, **params)
        own = host.folder / f"job{number}.json"
        own.write_bytes(Path(words[-1]).read_bytes())
        line = [*words[:-1], str(own)]
        running.append(subprocess.Popen(line, env=variables, stdout=subprocess.PIPE, text=True))
    return [json.loads(process.communicate()[0]) for process in running]


def test_two_hosts_make_the_same(host: Host) -> None:
    """Each says what it did, nobody fails, and only one has changed it."""
    store = {"extent_size": "1M", "extents": 16}
    for name, params in (
        ("blockstore", store),
        ("vdi", {"name": "web", "size": "1M"}),
        ("vdi", {"name": "gold", "source": str(host.image)}),
        ("vdi", {"name": "web", "state": "absent"}),
    ):
        told = at_once(host, *[(name, params)] * 3)
        assert not any(one.get("failed") for one in told), told
        assert any(one["changed"] for one in told), told
        assert not host(name, **params)["changed"]
    assert [vdi["name"] for vdi in host("vdi_info")["vdis"]] == ["gold"]
    host.plx("vdi", "validate", "gold", host.image)
    assert host.plx("store", "check")


def test_many_clones_at_once(stored: Host) -> None:
    stored("vdi", name="gold", source=str(stored.image))
    stored("snapshot", vdi="gold", label="v1")
    jobs = [("vdi", {"name": f"vm{n}", "from": "gold@v1"}) for n in range(6)]
    told = at_once(stored, *jobs)
    assert [one.get("changed") for one in told] == [True] * 6, told
    assert len({one["vdi"]["id"] for one in told}) == 6


def test_retaining_twice_at_once(stored: Host) -> None:
    stored("vdi", name="web", size="1M")
    for number in range(5):
        stored.plx("snap", "create", "web", "--label", f"n{number}")
    job = ("snapshot", {"vdi": "web", "retain": {"prefix": "n", "keep": 1}})
    told = at_once(stored, job, job)
    assert not any(one.get("failed") for one in told), told
    deleted = sorted(label for one in told for label in one["deleted"])
    assert deleted == ["n0", "n1", "n2", "n3"]
