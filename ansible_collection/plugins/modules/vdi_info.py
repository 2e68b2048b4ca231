#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: vdi_info
short_description: Look at virtual disk images
description:
  - Returns what a blockstore knows of its virtual disk images (VDIs).
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - parallax.storage.attributes.info
  - parallax.storage.plxsh
options:
  name:
    description:
      - Only this VDI, by its name, id or UUID. The list is empty if there is none.
    type: str
"""

EXAMPLES = r"""
- name: Look at all VDIs
  parallax.storage.vdi_info:
    store: /srv/blockstore.dat
  register: images

- name: Name those that somebody uses
  ansible.builtin.debug:
    msg: "{{ images.vdis | selectattr('clients') | map(attribute='name') }}"
"""

RETURN = r"""
vdis:
  description: The VDIs, in the order of their ids. Sizes are bytes.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Its number.
      type: int
    name:
      description: Its name.
      type: str
    uuid:
      description: Its UUID.
      type: str
    size:
      description: Its size.
      type: int
    own:
      description: What only it holds since its newest snapshot.
      type: int
    shared:
      description: What it maps besides.
      type: int
    mapped:
      description: The sum of both.
      type: int
    snapshots:
      description: How many snapshots it has.
      type: int
    schedule:
      description: At which interval snapshots are taken.
      type: str
    schedule_ns:
      description: The same in nanoseconds.
      type: int
    schedule_keep:
      description: How many of those are kept.
      type: int
    parent:
      description: The snapshot it was cloned from.
      type: str
    created:
      description: When it was made, in nanoseconds since 1970.
      type: int
    modified:
      description: When it was changed last.
      type: int
    deleted:
      description: When it was deleted; not set for those that are listed here.
      type: int
    served_by:
      description: Who serves it.
      type: str
    clients:
      description: Who uses it.
      type: list
      elements: str
    state:
      description:
        - C(ok), or C(damaged) for one that cannot be read, of which little else is known.
      type: str
    error:
      description: What is damaged.
      returned: for one that is damaged
      type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    Plxsh,
    arguments,
    lookup,
    run,
)


def _work(module):
    plxsh = Plxsh(module)
    name = module.params["name"]
    if name is None:
        found = plxsh.ask("vdi", "list")["vdis"]
    else:
        found = [vdi for vdi in [lookup(plxsh, name)] if vdi is not None]
    return {"changed": False, "vdis": found}


def main():
    spec = arguments(name={"type": "str"})
    run(AnsibleModule(argument_spec=spec, supports_check_mode=True), _work)


if __name__ == "__main__":
    main()
