#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: export_info
short_description: See who has virtual disk images open
description:
  - Returns the NBD clients of the tap that runs on the managed host, and what each has open.
  - Returns also who holds which VDIs, on any host that has the same lock master.
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

- name: Stop when it is in use, here or on another host
  ansible.builtin.assert:
    that:
      - not users.connections
      - not users.holders
    fail_msg: "In use: {{ users.connections + users.holders }}"
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
    store:
      description: The blockstore.
      type: str
    export:
      description: Name of the export.
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
holders:
  description:
    - Who has VDIs open for writing, or keeps writers away while it reads them (as an export to a
      file does), on any host, as the lock master tells it.
    - A tap has a VDI open as long as it has clients of it; a command of plxsh while it runs.
      Without a tap and a lock master it is empty, because then a command has the whole store.
  returned: when the lock master can be asked
  type: list
  elements: dict
  contains:
    vdi:
      description: Id of the VDI.
      type: int
      sample: 7
    host:
      description: The host.
      type: str
      sample: host2
    process:
      description: The process there.
      type: int
      sample: 812
    purpose:
      description: What it does.
      type: str
      sample: plxsh tap serve
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    Plxsh,
    PlxshError,
    arguments,
    run,
)


_VDI = "vdi/"  # how the names of locks on VDIs begin


def _connections(plxsh, store, socket):
    """Return the connections of the tap of this host, None without a tap; raises PlxshError."""
    try:
        found = plxsh.ask("tap", "list", *(["--unix", socket] if socket else []))["connections"]
    except PlxshError as error:
        if error.code != "not_found":
            raise
        return None
    here = os.path.realpath(store)
    return [connection for connection in found if os.path.realpath(connection["store"]) == here]


def _holders(plxsh):
    """Return who holds VDIs; raises PlxshError."""
    found = []
    for lock in plxsh.ask("lock", "list")["locks"]:
        if lock["lock"].startswith(_VDI):
            who = {key: lock[key] for key in ("host", "process", "purpose")}
            found.append({"vdi": int(lock["lock"][len(_VDI) :]), **who})
    return found


def _work(module):
    plxsh = Plxsh(module)
    vdi = module.params["vdi"]
    wanted = None
    if vdi is not None:
        wanted = plxsh.ask("vdi", "show", "--", vdi)["vdi"]["id"]

    def chosen(rows):
        return [row for row in rows if wanted in (None, row["vdi"])]

    connections = _connections(plxsh, module.params["store"], module.params["socket"])
    told = {"serving": connections is not None, "connections": chosen(connections or [])}
    try:
        told["holders"] = chosen(_holders(plxsh))
    except PlxshError as error:
        if error.code != "io":
            raise
        module.warn(f"the lock master cannot be asked who has VDIs open: {error.message}")
    return {"changed": False, **told}


def main():
    spec = arguments(vdi={"type": "str"}, socket={"type": "path"})
    run(AnsibleModule(argument_spec=spec, supports_check_mode=True), _work)


if __name__ == "__main__":
    main()
