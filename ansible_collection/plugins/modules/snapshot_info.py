#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_info
short_description: Look at the snapshots of a virtual disk image
description:
  - Returns the snapshots of a virtual disk image (VDI), the newest first.
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - parallax.storage.attributes.info
  - parallax.storage.plxsh
options:
  vdi:
    description:
      - The VDI, by its name, its id or its UUID. It is an error if there is none.
    type: str
    required: true
  label:
    description:
      - Only those with this label.
    type: str
"""

EXAMPLES = r"""
- name: Look at the snapshots of a VDI
  parallax.storage.snapshot_info:
    store: /srv/blockstore.dat
    vdi: gold
  register: gold

- name: Show their labels
  ansible.builtin.debug:
    msg: "{{ gold.snapshots | map(attribute='label') }}"
"""

RETURN = r"""
snapshots:
  description: The snapshots, the newest first. Sizes are bytes.
  returned: success
  type: list
  elements: dict
  contains:
    block:
      description: First part of its id.
      type: int
    offset:
      description: Second part of its id.
      type: int
    time:
      description: When it was taken, in nanoseconds since 1970.
      type: int
    root:
      description: The block of the store where its tree begins.
      type: int
    label:
      description: Its label.
      type: str
    vdi:
      description: Id of the VDI.
      type: int
    size:
      description: Size of the VDI then.
      type: int
    mapped:
      description: How much of it holds data.
      type: int
    scheduled:
      description: Whether a schedule took it.
      type: bool
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    Plxsh,
    arguments,
    run,
    snapshots_of,
)


def _work(module):
    label = module.params["label"]
    found = snapshots_of(Plxsh(module), module.params["vdi"])
    return {
        "changed": False,
        "snapshots": [snap for snap in found if label in (None, snap["label"])],
    }


def main():
    spec = arguments(vdi={"type": "str", "required": True}, label={"type": "str"})
    run(AnsibleModule(argument_spec=spec, supports_check_mode=True), _work)


if __name__ == "__main__":
    main()
