"""Playbooks as an operator runs them: a fleet from one image, changed once and then no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def tasks(host: Any) -> list[dict[str, Any]]:
    """The five tasks of the README."""
    config = host.folder / "vm01.cfg"
    config.write_text("name = 'vm01'\nmemory = 256\n")
    store, module = str(host.store), "parallax.storage."
    return [
        {module + "blockstore": {"path": store, "extent_size": "1M", "extents": 6}},
        {module + "vdi": {"store": store, "name": "gold", "source": str(host.image)}},
        {module + "snapshot": {"store": store, "vdi": "gold", "label": "v1"}},
        {module + "vdi": {"store": store, "name": "vm01", "from": "gold@v1"}},
        {
            module + "xen_disk": {
                "store": store,
                "path": str(config),
                "vdi": "vm01",
                "vdev": "xvda",
            }
        },
    ]


def test_five_things_change_and_then_none(host: Any, tasks: list[dict[str, Any]]) -> None:
    first = host.play(tasks, "--diff")
    assert first.status == 0, first.shown
    assert first.changed == [True] * 5
    assert "+disk = [ 'format=raw,vdev=xvda," in first.shown
    assert '+    "name": "gold"' in first.shown
    host.plx("vdi", "validate", "vm01", host.image)
    before = host.contents()
    assert host.play(tasks).changed == [False] * 5
    last = host.play(tasks, "--check", "--diff")
    assert last.changed == [False] * 5
    assert host.contents() == before


def test_check_mode_tells_each_task_beforehand(host: Any, tasks: list[dict[str, Any]]) -> None:
    """Each task is checked, run, run again and checked again, all in one playbook."""
    four = [{**task, "check_mode": check} for task in tasks for check in (True, False, False, True)]
    ran = host.play(four, "--diff")
    assert ran.status == 0, ran.shown
    assert ran.changed == [True, True, False, False] * 5
    for at in range(0, len(ran.records), 4):
        predicted, done, *_ = (record["result"] for record in ran.records[at : at + 4])
        assert predicted.keys() == done.keys()


def test_defaults_of_the_group_reach_every_module(host: Any, collection: Path) -> None:
    import yaml

    runtime = yaml.safe_load((collection / "meta/runtime.yml").read_text())
    modules = sorted(path.stem for path in (collection / "plugins/modules").glob("*.py"))
    assert runtime["action_groups"]["parallax"] == modules
    tasks = [{"parallax.storage.blockstore_info": {}}]
    defaults = {"group/parallax.storage.parallax": {"store": str(host.store)}}
    ran = host.play([{"block": tasks, "module_defaults": defaults}])
    assert ran.status == 0, ran.shown
    assert ran.records[0]["result"]["exists"] is False


def test_an_error_tells_what_plxsh_said(host: Any) -> None:
    task = {"parallax.storage.vdi": {"store": str(host.store), "name": "web"}}
    ran = host.play([task])
    assert ran.status == 2
    told = ran.records[0]["result"]
    assert told["code"] == "not_found"
    assert told["msg"].startswith(f"there is no blockstore at {host.store} (make one with")
