# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Options that all modules have in common: which store, and how to reach it."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  store:
    description:
      - The blockstore, a file or a block device.
    type: path
    required: true
  lock_master:
    description:
      - Lock master of the hosts that share the store, as V(HOST:PORT) or V(unix:PATH).
      - Without it, what the configuration of the managed host says, else that of the host itself.
    type: str
  cache:
    description:
      - V(none) goes past the page cache, for hosts that share a device.
    type: str
    choices: [host, none]
  config:
    description:
      - Configuration file of plxsh on the managed host.
    type: path
  plxsh:
    description:
      - The program C(plxsh) on the managed host, if it is not in the PATH.
    type: path
    default: plxsh
  wait:
    description:
      - How many seconds to try again while somebody else holds what is needed.
    type: int
    default: 10
requirements:
  - Parallax (C(plxsh)) on the managed host
"""
