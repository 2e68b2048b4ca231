# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Names of VDIs as names of inventory hosts: nothing that means something else in a pattern.

The same VDI has the same host name in each run, whichever others are listed: a name that can
stay has it first, and what would collide is told apart by the VDI's id.
"""

from __future__ import annotations

import re

_ODD = re.compile(r"[^\w.-]")
_TAKEN = frozenset(("all", "ungrouped", "localhost", "127.0.0.1"))
"""Names that mean something to Ansible already."""


def host_names(vdis, prefix="", taken=()):
    """Return a host name for each VDI, by id.

    Args:
        vdis: dicts with `id` and `name`, all VDIs of a store.
        prefix: what all host names begin with.
        taken: names that no host may have, such as those of groups.
    """
    refused = _TAKEN.union(taken)
    plain = {vdi["id"]: _plain(prefix + vdi["name"]) for vdi in vdis}
    kept = {
        plain[vdi["id"]]
        for vdi in vdis
        if plain[vdi["id"]] == prefix + vdi["name"] and plain[vdi["id"]] not in refused
    }
    found = {}
    for vdi in sorted(vdis, key=lambda vdi: vdi["id"]):
        number, name = vdi["id"], plain[vdi["id"]]
        if name != prefix + vdi["name"] or name in refused:
            name = f"{name}_{number}"
            while name in kept or name in refused:
                name += "_"
            kept.add(name)
        found[number] = name
    return found


def _plain(name):
    """Return a name without the characters that patterns, shells and file names mind."""
    plain = _ODD.sub("_", name)
    return plain if plain[0].isalnum() or plain[0] == "_" else "_" + plain[1:]
