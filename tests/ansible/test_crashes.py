"""A module that is killed at any moment: running it again ends where one run would have."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

KILLER = """#!/bin/sh
# Runs plxsh; call number {when} kills whoever called it when it is done.
echo >> {calls}
if [ $(wc -l < {calls}) -eq {when} ]; then
    {plxsh} "$@"
    kill -9 $PPID
    exit 1
fi
exec {plxsh} "$@"
"""


def killed(host: Any, when: int, name: str, params: dict[str, Any]) -> bool:
    """Run a module that is killed at a call of plxsh; say whether it got so far."""
    calls = host.folder / "calls"
    calls.write_text("")
    killer = host.folder / "killer"
    killer.write_text(KILLER.format(when=when, calls=calls, plxsh=host.plxsh))
    killer.chmod(0o755)
    words, variables = host.command(name, **{**params, "plxsh": str(killer)})
    ran = subprocess.run(words, env=variables, capture_output=True, check=False)
    return ran.returncode == -9


@pytest.mark.parametrize("again", [False, True])
def test_filling(stored: Any, again: bool) -> None:
    params: dict[str, Any] = {"name": "gold", "source": str(stored.image)}
    if again:
        stored("vdi", **params)
        stored.image.write_bytes(b"another image of fewer bytes")
    start = stored.contents()
    checksum = "sha256:" + hashlib.sha256(stored.image.read_bytes()).hexdigest()
    when = 0
    while True:
        when += 1
        stored.store.write_bytes(start)
        if not killed(stored, when, "vdi", params):
            break
        told = stored("vdi", **params)
        assert not told.get("failed"), (when, told)
        assert (told["vdi"]["checksum"], told["vdi"]["intact"]) == (checksum, True), when
        labels = [snap["label"] for snap in stored.plx("snap", "list", "gold")["snapshots"]]
        assert labels[0] == checksum
        assert not any(label.startswith("filling:") for label in labels), when
    assert when > 5
    assert not stored("vdi", **params)["changed"]


def test_taking_and_retaining_snapshots(stored: Any) -> None:
    stored.plx("vdi", "create", "web", "--size", "1M")
    for number in range(3):
        stored.plx("snap", "create", "web", "--label", f"n{number}")
    start = stored.contents()
    params = {"vdi": "web", "label": "n3", "retain": {"prefix": "n", "keep": 1}}
    when = 0
    while True:
        when += 1
        stored.store.write_bytes(start)
        if not killed(stored, when, "snapshot", params):
            break
        assert not stored("snapshot", **params).get("failed")
        labels = [snap["label"] for snap in stored.plx("snap", "list", "web")["snapshots"]]
        assert labels == ["n3"], when
    assert when > 5


def test_a_half_written_image_is_filled_again(stored: Any, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.write_bytes(stored.image.read_bytes()[:100_000])
    stored.plx("vdi", "create", "gold", "--size", stored.image.stat().st_size)
    mark = "filling:sha256:" + hashlib.sha256(stored.image.read_bytes()).hexdigest()
    stored.plx("snap", "create", "gold", "--label", mark)
    stored.plx("vdi", "fill", "gold", half)
    told = stored.does("vdi", name="gold", source=str(stored.image))
    assert told["vdi"]["intact"] is True
    stored.plx("vdi", "validate", "gold", stored.image)
