"""Two lock masters and one store: a slip of configuration gets no second writer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell.conftest import Plx
from shell.tap import LEASE, QUIET, environment, lock_master, serving

from core.errors import InUse

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("lock-masters")]  # one pair for all


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of two lock masters that are past their quiet time."""
    folder: Path = tmp_path_factory.mktemp("locks")
    states = [str(folder / f"{name}.epoch") for name in ("one", "two")]
    with (
        lock_master("--lease", str(LEASE), "--state", states[0]) as one,
        lock_master("--lease", str(LEASE), "--state", states[1]) as two,
    ):
        time.sleep(QUIET)  # they grant nothing before
        yield one, two


def test_every_slip_is_refused(plx: Plx, masters: tuple[str, str]) -> None:
    one, two = masters
    assert plx("-o", "json", "store", "info").json["store"]["shared_under"] is None
    with serving("--lock-master", one, "tap", "serve", environment=environment()):
        shared = plx("-o", "json", "store", "info").json["store"]["shared_under"]
        assert shared in plx("store", "info").out
        wrong = [["--lock-master", two, "vdi", "create", "new", "--size", "1M"]]
        wrong += [["--lock-master", two, "tap", "serve", "--unix", "other.sock"]]
        wrong += [["vdi", "create", "new", "--size", "1M"], ["tap", "serve", "--unix", "x.sock"]]
        for words in wrong:
            assert (
                "in use by" in plx(*words, status=InUse.exit_status).err
                or shared in plx(*words, status=InUse.exit_status).err
            )
        assert (
            "is in use by"
            in plx("--lock-master", one, "-y", "store", "unshare", status=InUse.exit_status).err
        )
        plx("--lock-master", one, "vdi", "create", "new", "--size", "1M")
        assert "new" in plx("vdi", "list").out
    for words in wrong:
        said = plx(*words, status=InUse.exit_status).err
        assert f"shared under the lock master {shared}" in said
        assert "plxsh store unshare" in said
    assert shared in plx("store", "create", plx.path, "--force", "-y", status=InUse.exit_status).err
    plx("store", "check", "--repair", status=InUse.exit_status)
    plx("--lock-master", one, "store", "check")


def test_unshare_lets_others_have_it(plx: Plx, masters: tuple[str, str]) -> None:
    one, two = masters
    plx("--lock-master", one, "vdi", "create", "new", "--size", "1M")
    plx("vdi", "delete", "new", "-y", status=InUse.exit_status)
    assert "is not that one" in plx("--lock-master", two, "-y", "store", "unshare").err
    plx("vdi", "delete", "new", "-y")
    plx("--lock-master", two, "vdi", "restore", "new")
    plx("--lock-master", one, "vdi", "rename", "new", "x", status=InUse.exit_status)
    plx("--lock-master", two, "-y", "store", "unshare")
    plx("--lock-master", one, "vdi", "rename", "new", "x")
    plx("-y", "store", "unshare")
    plx("store", "check")
