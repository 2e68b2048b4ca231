"""Filling a VDI that has data: what would be lost is said, and asked for, before it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shell.conftest import Plx

from core.session import Session

IMAGE = os.urandom(65536)


@pytest.fixture(autouse=True)
def image() -> None:
    Path("disk.img").write_bytes(IMAGE)


def test_it_asks_when_no_snapshot_has_the_data(plx: Plx) -> None:
    before = plx.bytes()
    line = plx.fails(2, "vdi", "fill", "base", "disk.img")
    assert "filling VDI 0 'base' loses the 8 KiB written since its newest snapshot" in line
    assert plx.bytes() == before
    plx("vdi", "fill", "base", "disk.img", "-y")
    plx("vdi", "validate", "base", "disk.img")
    line = plx.fails(2, "vdi", "fill", "base", "disk.img")
    assert "loses the 68 KiB written" in line


def test_it_does_not_ask_when_a_snapshot_has_it_all(plx: Plx) -> None:
    plx("snap", "create", "base")
    plx("vdi", "fill", "base", "disk.img")
    plx("vdi", "fill", "web", "disk.img")  # a clone that nothing was written to
    plx("vdi", "validate", "web", "disk.img")


def test_it_asks_when_a_crash_left_the_data_to_nobody(plx: Plx) -> None:
    """Who takes a VDI over calls nothing its own, and yet no snapshot has what was written."""
    plx("snap", "create", "web", "--label", "first")
    with Session.open(str(plx.path)) as session:
        with session.opened(session.registry.find("web")) as web:
            web.write(0, b"a guest" * 1000)
        with session.opened(session.registry.find("web")) as web:
            web.map.disown()
    assert plx("-o", "json", "vdi", "show", "web").json["vdi"]["own"] == 0
    line = plx.fails(2, "vdi", "fill", "web", "disk.img")
    assert "filling VDI 1 'web' loses contents that no snapshot has" in line
    line = plx.fails(2, "snap", "rollback", "web", "web@first")
    assert "loses contents that no snapshot has" in line
    plx("snap", "create", "web")
    plx("vdi", "fill", "web", "disk.img")
    plx("store", "check")


def test_what_is_wrong_with_the_source_comes_before_the_question(plx: Plx) -> None:
    assert "cannot read missing" in plx.fails(3, "vdi", "fill", "base", "missing")
    Path("large").write_bytes(bytes(1 << 20))
    assert "no terminal" not in plx.fails(2, "vdi", "fill", "base", "large")


def test_a_named_pipe_is_read_once(plx: Plx) -> None:
    os.mkfifo("pipe")
    with subprocess.Popen(
        [sys.executable, "-c", "open('pipe', 'wb').write(open('disk.img', 'rb').read())"]
    ) as writer:
        plx("vdi", "fill", "web", "pipe")
    assert writer.returncode == 0
    plx("vdi", "validate", "web", "disk.img")
