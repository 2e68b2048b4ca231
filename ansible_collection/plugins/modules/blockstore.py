#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: blockstore
short_description: Make a Parallax blockstore, and give it more room
description:
  - Formats a file or a block device as a blockstore, which holds virtual disk images (VDIs).
  - Gives a blockstore more extents; nothing in it moves, and it may be in use meanwhile.
  - A blockstore that exists is never formatted again and never made smaller.
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - parallax.storage.attributes
  - parallax.storage.plxsh
options:
  store:
    aliases: [path]
  extent_size:
    description:
      - Size of an extent, such as V(2G). Extents are what a blockstore grows by.
      - It cannot be changed later. Without it a new blockstore gets V(2G), and that of one that
        exists is not looked at.
    type: str
  extents:
    description:
      - How many extents it is to have. Without it a new blockstore gets 6, and one that exists
        stays as it is.
    type: int
  force:
    description:
      - Format a file or a device that holds something other than a blockstore, which is lost then.
      - For a device that hosts share, use it with C(run_once); two hosts that format it at once do
        not see each other.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Make a blockstore of 12 GiB in a sparse file
  parallax.storage.blockstore:
    path: /srv/blockstore.dat
    extent_size: 2G
    extents: 6

- name: Give it 4 GiB more
  parallax.storage.blockstore:
    path: /srv/blockstore.dat
    extents: 8
"""

RETURN = r"""
store:
  description: The blockstore as it is then; in check mode, as it would be.
  returned: success
  type: dict
  contains:
    path:
      description: The file or the device.
      type: str
      sample: /srv/blockstore.dat
    uuid:
      description: Its UUID, which a new blockstore does not have yet in check mode.
      type: str
      sample: b5ef75a4-8803-4869-b13f-82e9004c39e1
    size:
      description: Bytes of all extents.
      type: int
      sample: 12884901888
    extent_size:
      description: Bytes of one extent.
      type: int
      sample: 2147483648
    extents:
      description: How many extents it has.
      type: int
      sample: 6
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    Plxsh,
    PlxshError,
    arguments,
    run,
)
from ansible_collections.parallax.storage.plugins.module_utils.sizes import size

_KEYS = ("path", "uuid", "size", "extent_size", "extents")


def _found(plxsh):
    try:
        shown = plxsh.ask("store", "info")["store"]
    except PlxshError as error:
        if error.code in ("not_found", "not_a_store"):
            return None
        raise
    return {key: shown[key] for key in _KEYS}


def _create(plxsh, path, params):
    words = ["store", "create"]
    if params["extent_size"] is not None:
        words += ["--extent-size", str(size(params["extent_size"]))]
    if params["extents"] is not None:
        words += ["--extents", str(params["extents"])]
    if params["force"]:
        made = plxsh.change_surely(*words, "--force", "--", path)
    else:
        made = plxsh.change(*words, "--", path)
    return {key: made["store"][key] for key in _KEYS}


def _grow(plxsh, store, params):
    wanted = params["extent_size"]
    if wanted is not None and size(wanted) != store["extent_size"]:
        raise PlxshError(
            "usage",
            f"{store['path']} has extents of {store['extent_size']} bytes, not {size(wanted)}",
            "the size of its extents is chosen when a blockstore is made",
        )
    extents = params["extents"]
    if extents in (None, store["extents"]):
        return store
    grown = plxsh.change("store", "grow", "--extents", str(extents))["store"]  # refuses to shrink
    return {**store, "size": grown["size"], "extents": grown["extents"]}


def _work(module):
    params = module.params
    plxsh = Plxsh(module)
    before = _found(plxsh)
    if before is None:
        try:
            after = _create(plxsh, params["store"], params)
        except PlxshError:
            before = _found(plxsh)  # did somebody else make it meanwhile?
            if before is None:
                raise
    if before is not None:
        after = _grow(plxsh, before, params)
    told = [
        {key: value for key, value in (shown or {}).items() if key != "uuid"}
        for shown in (before, after)
    ]
    return {
        "changed": before != after,
        "store": after,
        "diff": {"before": told[0], "after": told[1]},
    }


def main():
    spec = arguments(
        extent_size={"type": "str"},
        extents={"type": "int"},
        force={"type": "bool", "default": False},
    )
    spec["store"] = {"type": "path", "required": True, "aliases": ["path"]}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    run(module, _work)


if __name__ == "__main__":
    main()
