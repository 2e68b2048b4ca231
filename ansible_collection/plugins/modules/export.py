#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: export
short_description: Disconnect the clients of a virtual disk image
description:
  - Ends the connections to a VDI or to a snapshot of it, on every host that shares the store.
  - The tap answers what was asked of it, hangs up, and commits when the last client is gone. No
    write that was answered is lost. A guest that does not connect again sees I/O errors, so end the
    guest first.
  - The taps are asked through the lock master. When one of them does not answer the task fails.
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - parallax.storage.attributes
  - parallax.storage.plxsh
options:
  vdi:
    description:
      - The VDI, by its name, its id or its UUID. One that does not exist has no clients.
    type: str
    required: true
  snapshot:
    description:
      - A snapshot of the VDI, by its label or its id. Then those who read it are meant, and those
        who have the VDI itself open are not.
    type: str
  clients:
    description:
      - Only these clients. Each is a process (V(1234)), an address (V(10.0.0.7)), or one of them as
        RV(parallax.storage.export_info#module:connections) tells it.
      - Without it, all of them.
    type: list
    elements: str
    aliases: [client]
  refuse:
    description:
      - For how many seconds, 600 at most, no tap gives it to anyone, so that nobody comes back
        before the next task. V(0) ends that.
      - Without it, clients may come back at once, as many do by themselves.
      - It is not for O(clients). A tap forgets it when it is restarted.
    type: float
  state:
    description:
      - V(disconnected) ends the connections. What makes them is a client, not a task.
    type: str
    choices: [disconnected]
    default: disconnected
seealso:
  - module: parallax.storage.export_info
"""

EXAMPLES = r"""
- name: Make sure that nobody uses a disk that is to be deleted
  parallax.storage.export:
    store: /srv/blockstore.dat
    vdi: vm01
    refuse: 30

- name: Delete it
  parallax.storage.vdi:
    store: /srv/blockstore.dat
    name: vm01
    state: absent

- name: End a backup that reads a snapshot
  parallax.storage.export:
    store: /srv/blockstore.dat
    vdi: vm02
    snapshot: nightly-2026-11-23
    clients:
      - 10.0.0.7
"""

RETURN = r"""
disconnected:
  description: The clients that were disconnected, or would be in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    export:
      description: Name of the export.
      type: str
      sample: vm01
    vdi:
      description: Id of the VDI.
      type: int
      sample: 7
    snapshot:
      description: Id of the snapshot, if it is one.
      type: str
    peer:
      description: The client, a process or an address with its port.
      type: str
      sample: pid 4711
    access:
      description: C(r) or C(w).
      type: str
      sample: w
    since:
      description: When it connected, in nanoseconds since 1970.
      type: int
      sample: 1795428154708803861
    host:
      description: The host of the tap to which it was connected.
      type: str
      sample: host1
    process:
      description: The process of that tap.
      type: int
      sample: 812
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    Plxsh,
    PlxshError,
    arguments,
    lookup,
    run,
)


def _options(params):
    """Return the options of the command; raises PlxshError."""
    clients, refuse = params["clients"], params["refuse"]
    if clients == []:
        raise PlxshError("usage", "clients is empty", "leave it away to mean all of them")
    options = ["--client=" + client for client in clients or ()]
    if refuse is not None:
        options.append(f"--refuse={refuse!r}")
    return options


def _disconnect(plxsh, params):
    """Disconnect the clients and return them; raises PlxshError."""
    options = _options(params)
    vdi = lookup(plxsh, params["vdi"])
    if vdi is None:
        return []
    target, snapshot = vdi["uuid"], params["snapshot"]
    if snapshot is not None:
        target += "@" + snapshot
    try:
        return plxsh.change_surely("tap", "disconnect", *options, "--", target)["disconnected"]
    except PlxshError as error:
        if error.code != "not_found":
            raise
    return []  # what does not exist any more has no clients


def _work(module):
    plxsh = Plxsh(module)
    gone = _disconnect(plxsh, module.params)
    before = [f"{client['peer']} on {client['host']}" for client in gone]
    return {
        "changed": bool(gone),
        "disconnected": gone,
        "diff": {"before": {"clients": before}, "after": {"clients": []}},
    }


def main():
    spec = arguments(
        vdi={"type": "str", "required": True},
        snapshot={"type": "str"},
        clients={"type": "list", "elements": "str", "aliases": ["client"]},
        refuse={"type": "float"},
        state={"type": "str", "choices": ["disconnected"], "default": "disconnected"},
    )
    module = AnsibleModule(
        argument_spec=spec,
        mutually_exclusive=[("clients", "refuse")],
        supports_check_mode=True,
    )
    run(module, _work)


if __name__ == "__main__":
    main()
