"""The block script and the real nbd-client understand what our tap lists and why it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from support.tap import make_store, tap_in_thread
from xen.world import ODD, World

from core.blockstore import Blockstore
from core.registry import Registry
from core.session import Session
from core.text import uuid_text

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> str:
    store = make_store(tmp_path)
    with Session.open(store) as session:
        session.create(ODD, 1 << 20)
        session.snapshot(session.registry.find(ODD), "label")
    return store


@pytest.fixture
def socket(world: World, store: str) -> Iterator[str]:
    """The socket of a tap with the VDIs golden, clone and empty, and one with an odd name.

    nbd-client does all but the last step: without netlink it would use an ioctl on the device,
    which is a plain file here.
    """
    client = shutil.which("nbd-client", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert client, "nbd-client is missing (Debian package nbd-client)"
    world.write("bin/nbd-client", f'#!/bin/sh\n. "$WORLD/bin/fault"\nexec {client} -L "$@"\n')
    with tap_in_thread(store) as (_, path):
        yield path


def _refused(world: World, socket: str, name: str) -> tuple[str, list[str]]:
    """What is said about a VDI, and which exports were asked for."""
    world.calls(clear=True)
    path = world.disk(1, target=f"nbd+unix:///{quote(name)}?socket={socket}")
    said = world.refused(path, PLX_PATIENCE="1")
    asked = [call.rpartition("-name ")[2] for call in world.calls() if "-name" in call]
    return said, sorted(set(asked))


def test_names_are_found(world: World, socket: str, store: str) -> None:
    with closing(Blockstore.open(store)) as opened:
        uuids = {record.name: uuid_text(record.uuid) for record in Registry(opened).vdis()}
    for name, export in (
        *((name, uuids[name]) for name in ("golden", "empty", ODD)),
        (uuids["clone"], uuids["clone"]),
        ("1", "1"),
    ):
        said, asked = _refused(world, socket, name)
        assert asked == [export]
        assert "cannot attach" in said  # as far as it comes without a kernel
        assert "ioctl" in said.lower()


def test_names_that_there_are_not(world: World, socket: str) -> None:
    for name in ("gold", "golden: VDI 0", "4e4e4e4e-4e4e-4e4e-4e4e-4e4e4e4e4e4e", ""):
        said, asked = _refused(world, socket, name)
        assert said.startswith("the tap at ")
        assert f"has no VDI '{name}'" in said
        assert asked == []


def test_what_the_tap_says(world: World, socket: str) -> None:
    said, _ = _refused(world, socket, "77")
    assert said == "'77': there is no VDI 77"


def test_a_tap_that_has_ended(world: World, socket: str) -> None:
    said, _ = _refused(world, f"{socket}-no", "golden")
    assert said.startswith("cannot ask the tap at ")
    assert "CONNECT failed" in said
