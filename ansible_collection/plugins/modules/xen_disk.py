#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_disk
short_description: One disk in the configuration file of a Xen domain
description:
  - Gives a virtual disk image (VDI) or a snapshot to a Xen domain, or takes it away, by editing the
    list C(disk) of an xl configuration file. Everything else in the file stays as it is, byte for
    byte.
  - Entries of the original tap driver, such as C(tap:parallax:0,sda1,w,0), are read and converted.
  - A file that xl could not read, or that cannot be edited safely, is refused with the number of
    the line. Files with Python expressions are of that kind.
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - parallax.storage.attributes
  - parallax.storage.files
  - parallax.storage.plxsh
options:
  path:
    description:
      - The configuration file. It must exist, unless the disk is to be absent.
      - A symbolic link, as in C(/etc/xen/auto), stays one; the file behind it is changed.
    type: path
    required: true
  vdev:
    description:
      - Name of the device in the domain, such as V(xvda). It says which entry is meant, however
        the device is written there (V(51712), V(0xca00) and V(d0p0) are V(xvda), too).
    type: str
    required: true
  vdi:
    description:
      - The VDI by its name, id or UUID, or a snapshot as V(VDI@LABEL).
    type: str
  by:
    description:
      - What the VDI is called in the file. Only its V(uuid) is never another's; a V(name) may be
        given to another VDI, and some day an V(id) is.
      - An entry that calls the VDI something else than this is changed, once. A running machine is
        not concerned.
    type: str
    choices: [uuid, name, id]
    default: uuid
  access:
    description:
      - V(r) or V(w). Without it a VDI can be written and a snapshot cannot.
    type: str
    choices: [r, w]
  backend:
    description:
      - The domain that runs the tap, if that is not dom0.
    type: str
  socket:
    description:
      - Socket of the tap, if it is not the usual one.
    type: path
  state:
    description:
      - Whether the domain is to have this disk.
    type: str
    choices: [present, absent]
    default: present
  force:
    description:
      - Replace or remove a disk that is not one of Parallax.
    type: bool
    default: false
  store:
    required: false
"""

EXAMPLES = r"""
- name: Give a VDI to a domain
  parallax.storage.xen_disk:
    store: /srv/blockstore.dat
    path: /etc/xen/vm01.cfg
    vdi: vm01
    vdev: xvda

- name: Take a disk away
  parallax.storage.xen_disk:
    path: /etc/xen/vm01.cfg
    vdev: xvdb
    state: absent
    backup: true
"""

RETURN = r"""
entry:
  description: The entry for the disk, as it stands in the file then; empty when there is none.
  returned: success
  type: str
  sample: format=raw,vdev=xvda,access=rw,script=block-plx,target=nbd+unix:///4d3e8a5c-91b0-4c57-a2a1-0f6f8a1c2b3d?socket=/run/parallax/nbd.sock
entry_before:
  description: The entry as it was; empty when there was none.
  returned: success
  type: str
  sample: tap:parallax:1,xvda,w,0
backup_file:
  description: The copy of the file as it was.
  returned: when something was changed with O(backup=true)
  type: str
  sample: /etc/xen/vm01.cfg.4711.2026-11-23@10:00:00~
"""

from ansible_collections.parallax.storage.plugins.module_utils import (
    disks,
    files,
    xlconfig,
    xldisk,
)
from ansible_collections.parallax.storage.plugins.module_utils.plxsh import Plxsh, run


def _wanted(module):
    """Return the entry that is to be there, None for none."""
    params = module.params
    if params["state"] == "absent":
        return None
    words = ["disk", "xen", "--by", params["by"]]
    for option in ("backend", "socket"):
        if params[option] is not None:
            words += ["--" + option, params[option]]
    words += ["--", params["vdi"], params["vdev"]]
    words += [params["access"]] if params["access"] else []
    return xlconfig.entry_of(Plxsh(module).ask(*words)["disk"]["line"])


def _entry(config, vdev):
    place = config.find(vdev)
    return "" if place is None else config.entry(place)


def _work(module):
    params = module.params
    before = files.read(params["path"], missing="" if params["state"] == "absent" else None)
    try:
        config = xlconfig.Config(before)
        entry = _entry(config, params["vdev"])
        after = xlconfig.edited(before, params["vdev"], _wanted(module))
    except xlconfig.Refused as refused:
        raise disks.refused(params["path"], refused) from refused
    if before != after and entry and not params["force"] and not xldisk.is_parallax(entry):
        raise disks.foreign(params["path"], params["vdev"], files.shown(entry))
    if config.unreadable:
        module.warn(f"{params['path']}: {config.unreadable}")
    result = {
        "changed": before != after,
        "entry": files.shown(_entry(xlconfig.Config(after), params["vdev"])),
        "entry_before": files.shown(entry),
    }
    return {**result, **files.write(module, before, after)}


def main():
    module = disks.disk_module(
        vdev={"type": "str", "required": True},
        access={"type": "str", "choices": ["r", "w"]},
        backend={"type": "str"},
    )
    run(module, _work)


if __name__ == "__main__":
    main()
