#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: blockstore_info
short_description: Look at a blockstore
description:
  - Returns size, use and contents of a Parallax blockstore, also while it is in use.
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - parallax.storage.attributes.info
  - parallax.storage.plxsh
"""

EXAMPLES = r"""
- name: Look at a blockstore
  parallax.storage.blockstore_info:
    store: /srv/blockstore.dat
  register: room

- name: Stop when there is too little room
  ansible.builtin.assert:
    that: room.blockstore.free > 10 * 1024 ** 3
"""

RETURN = r"""
exists:
  description: Whether there is a blockstore. If not, RV(blockstore) is empty.
  returned: success
  type: bool
blockstore:
  description: The blockstore. Sizes are bytes.
  returned: success
  type: dict
  contains:
    path:
      description: The file or the device.
      type: str
    uuid:
      description: Its UUID.
      type: str
    version:
      description: Version of its format.
      type: int
    created:
      description: When it was made, in nanoseconds since 1970.
      type: int
    size:
      description: All extents.
      type: int
    extent_size:
      description: One extent.
      type: int
    extents:
      description: How many extents it has.
      type: int
    used:
      description: What is used.
      type: int
    free:
      description: What is free.
      type: int
    vdis:
      description: How many VDIs it has.
      type: int
    snapshots:
      description: How many snapshots they have.
      type: int
    damaged:
      description: How many VDIs cannot be read.
      type: int
    served_by:
      description: Who has it open for writing.
      type: str
    shared_under:
      description: UUID of the lock master under which hosts share it.
      type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    Plxsh,
    PlxshError,
    arguments,
    run,
)


def _work(module):
    try:
        found = Plxsh(module).ask("store", "info")["store"]
    except PlxshError as error:
        there = os.path.exists(module.params["store"])  # then it is the configuration
        if error.code != "not_a_store" and (error.code != "not_found" or there):
            raise
        found = {}
    return {"changed": False, "exists": bool(found), "blockstore": found}


def main():
    run(AnsibleModule(argument_spec=arguments(), supports_check_mode=True), _work)


if __name__ == "__main__":
    main()
