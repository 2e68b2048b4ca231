# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""What is known of the VDIs of a store, one dict each: what plxsh lists, and what follows."""

from __future__ import annotations

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    PlxshError,
    snapshot_id,
    snapshots_of,
)


def vdi_facts(plxsh, store, with_snapshots, warn):
    """Return the facts of all VDIs of a store, those of damaged ones too.

    Args:
        plxsh: a `Plxsh`.
        store: the path of the store.
        with_snapshots: whether to list the snapshots, which is one command more for each VDI.
        warn: is called with what else could not be read.

    Raises:
        PlxshError: the VDIs cannot be listed.
    """
    vdis = plxsh.ask("vdi", "list")["vdis"]
    lineage = _Lineage(plxsh.ask("tree")["vdis"])
    hosts = _hosts(plxsh, warn)
    found = []
    for vdi in vdis:
        facts = {**vdi, "store": store, "host": hosts.get(vdi["id"]), **lineage.of(vdi["id"])}
        if with_snapshots and vdi["state"] == "ok":
            facts["snapshot_list"] = _snapshots(plxsh, vdi, warn)
        found.append(facts)
    return found


class _Lineage:
    """Who was cloned from whom, as `plxsh tree` tells it."""

    def __init__(self, tree):
        self._tree = {vdi["id"]: vdi for vdi in tree}

    def of(self, number):
        """Return the facts about the ancestor and the clones of a VDI."""
        vdi = self._tree.get(number) or {"parent": None, "fork": None}
        parent = self._tree.get(vdi["parent"])
        parent = parent if parent and parent["state"] == "live" else None
        clones = [
            other["name"]
            for other in self._tree.values()
            if other["parent"] == number and other["state"] == "live"
        ]
        return {
            "parent_name": parent["name"] if parent else None,
            "parent_label": self._label(parent, vdi["fork"]),
            "clones": sorted(clones),
        }

    @staticmethod
    def _label(parent, fork):
        points = parent["points"] if parent and fork else ()
        labels = (
            point["label"]
            for point in points
            if (point["block"], point["offset"]) == (fork["block"], fork["offset"])
        )
        return next(labels, None) or None


def _hosts(plxsh, warn):
    """Return which host has a VDI open, by the id of the VDI, as the lock master tells it."""
    try:
        locks = plxsh.ask("lock", "list")["locks"]
    except PlxshError as error:
        warn(f"nobody says which host has a VDI open: {error.message}")
        return {}
    return {
        int(lock["lock"].partition("/")[2]): lock["host"]
        for lock in locks
        if lock["lock"].startswith("vdi/")
    }


def _snapshots(plxsh, vdi, warn):
    """Return the snapshots of a VDI, newest first; None when they cannot be read."""
    try:
        found = snapshots_of(plxsh, str(vdi["id"]))
    except PlxshError as error:
        warn(f"the snapshots of VDI {vdi['id']} {vdi['name']!r} are not listed: {error.message}")
        return None
    return [
        {"id": snapshot_id(one), **{key: one[key] for key in ("label", "time", "size")}}
        for one in found
    ]
