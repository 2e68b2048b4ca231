#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: export_info
short_description: See who is connected to the tap of a host
description:
  - Returns the NBD clients of the tap that runs on the managed host, and what each has open.
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - parallax.storage.attributes.info
  - parallax.storage.plxsh
options:
  vdi:
    description:
      - Only those who have this VDI or a snapshot of it open; by its name, id or UUID.
    type: str
  socket:
    description:
      - Socket of the tap, if it is not the usual one.
    type: path
"""

EXAMPLES = r"""
- name: See who uses a disk
  parallax.storage.export_info:
    store: /srv/blockstore.dat
    vdi: vm01
  register: users

- name: Stop when it is in use
  ansible.builtin.assert:
    that: not users.connections
"""

RETURN = r"""
serving:
  description: Whether a tap runs.
  returned: success
  type: bool
connections:
  description: The open connections. Sizes and counts are since the connection was made.
  returned: success
  type: list
  elements: dict
  contains:
    export:
      description: Name by which the client asked for it.
      type: str
    vdi:
      description: Id of the VDI.
      type: int
    snapshot:
      description: The snapshot, if it is one.
      type: str
    size:
      description: Bytes.
      type: int
    peer:
      description: The client.
      type: str
    access:
      description: C(r) or C(w).
      type: str
    since:
      description: When it connected, in nanoseconds since 1970.
      type: int
    requests:
      description: How many requests it made.
      type: int
    bytes_read:
      description: Bytes it read.
      type: int
    bytes_written:
      description: Bytes it wrote.
      type: int
    read_rate:
      description: Bytes a second it read lately.
      type: int
    write_rate:
      description: Bytes a second it wrote lately.
      type: int
    schedule:
      description: The schedule of snapshots of the VDI.
      type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    Plxsh,
    PlxshError,
    arguments,
    run,
)


def _work(module):
    plxsh = Plxsh(module)
    vdi, socket = module.params["vdi"], module.params["socket"]
    wanted = None
    if vdi is not None:
        wanted = plxsh.ask("vdi", "show", "--", vdi)["vdi"]["id"]
    try:
        found = plxsh.ask("tap", "list", *(["--unix", socket] if socket else []))["connections"]
    except PlxshError as error:
        if error.code != "not_found":
            raise
        return {"changed": False, "serving": False, "connections": []}
    chosen = [connection for connection in found if wanted in (None, connection["vdi"])]
    return {"changed": False, "serving": True, "connections": chosen}


def main():
    spec = arguments(vdi={"type": "str"}, socket={"type": "path"})
    run(AnsibleModule(argument_spec=spec, supports_check_mode=True), _work)


if __name__ == "__main__":
    main()
