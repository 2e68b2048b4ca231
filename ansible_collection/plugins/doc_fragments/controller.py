# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Options that plugins on the controller have in common: where plxsh runs, and on which store."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  store:
    description:
      - The blockstore, a file or a block device, on the host where C(plxsh) runs.
    type: str
    required: true
    vars:
      - name: parallax_store
  lock_master:
    description:
      - Lock master of the hosts that share the store, as V(HOST:PORT) or V(unix:PATH).
      - Without it, what the configuration of that host says, else that of the host itself.
    type: str
    vars:
      - name: parallax_lock_master
  cache_mode:
    description:
      - V(none) goes past the page cache, for hosts that share a device.
    type: str
    choices: [host, none]
    vars:
      - name: parallax_cache
  config:
    description:
      - Configuration file of plxsh on that host.
    type: str
  plxsh:
    description:
      - The program and the words before its options, such as V([sudo, -n, /usr/local/bin/plxsh]).
    type: list
    elements: str
    default: [plxsh]
    vars:
      - name: parallax_plxsh
  ssh:
    description:
      - What runs a command on the host with the store, such as V([ssh, host1]). It is given the
        command as one word, quoted for a POSIX shell.
      - It must not ask for a password. Without it, C(plxsh) runs on the controller.
    type: list
    elements: str
    default: []
    vars:
      - name: parallax_ssh
  timeout:
    description:
      - Seconds until a command that has not answered is ended.
    type: int
    default: 60
  wait:
    description:
      - How many seconds to try again while somebody else holds what is needed.
    type: int
    default: 10
requirements:
  - Parallax (C(plxsh)) on the host with the store
"""
