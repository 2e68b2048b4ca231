#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_disk
short_description: One disk in the XML of a libvirt domain
description:
  - Gives a virtual disk image (VDI) or a snapshot to a QEMU domain of libvirt, or takes it away, by
    editing one element C(<disk>) in a domain XML file. Everything else in the file stays as it is,
    byte for byte.
  - A disk that is one of Parallax already is changed only where it differs. What else it has, such
    as C(<address>), C(<boot>) or the attributes of C(<driver>), stays.
  - A file that is no XML of one domain, or that cannot be edited safely, is refused with the number
    of the line.
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
      - The file. It must exist, unless the disk is to be absent.
      - A symbolic link stays one; the file behind it is changed.
    type: path
    required: true
  target:
    description:
      - Name of the disk, as V(vda). It says which disk is meant.
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
      - A disk that calls the VDI something else than this is changed, once. A running machine is
        not concerned.
    type: str
    choices: [uuid, name, id]
    default: uuid
  bus:
    description:
      - What the disk hangs on. Without it a disk keeps its bus, and a new one gets V(virtio) when
        it is named as V(vda), V(scsi) as V(sda), and V(ide) as V(hda).
      - When the bus changes, the C(<address>) of the disk is dropped; libvirt gives it a new one.
    type: str
    choices: [virtio, scsi, sata, ide, usb]
  readonly:
    description:
      - Whether the domain may only read it. Without it a VDI can be written and a snapshot cannot.
      - Disks on V(bus=sata) and V(bus=ide) cannot be read-only.
    type: bool
  socket:
    description:
      - Socket of the tap, if it is not the usual one.
      - An NBD disk on this socket, or on one named C(parallax/nbd.sock), counts as one of Parallax.
    type: path
  state:
    description:
      - Whether the domain is to have this disk.
    type: str
    choices: [present, absent]
    default: present
  force:
    description:
      - Replace or remove a disk that is not one of Parallax. What replaces it keeps what belongs to
        the machine, such as C(<boot>), C(<serial>) and, on the same bus, C(<address>).
    type: bool
    default: false
  store:
    required: false
notes:
  - libvirtd has its own copy of the XML, below C(/etc/libvirt/qemu). It reads the file again with
    C(virsh define), which a handler can do. A running domain gets the disk at its next start.
  - Only libvirt's driver for QEMU knows NBD. For Xen domains there is M(parallax.storage.xen_disk).
seealso:
  - module: parallax.storage.xen_disk
"""

EXAMPLES = r"""
- name: Give a VDI to a domain
  parallax.storage.libvirt_disk:
    store: /srv/blockstore.dat
    path: /srv/domains/vm01.xml
    vdi: vm01
    target: vda
  notify: Define the domain # a handler that runs virsh define /srv/domains/vm01.xml

- name: Give a snapshot to read
  parallax.storage.libvirt_disk:
    store: /srv/blockstore.dat
    path: /srv/domains/vm01.xml
    vdi: tools@v3
    target: sdb
    validate: virt-xml-validate %s domain

- name: Take a disk away
  parallax.storage.libvirt_disk:
    path: /srv/domains/vm01.xml
    target: sdb
    state: absent
    backup: true
"""

RETURN = r"""
element:
  description: The disk as it stands in the file then; empty when there is none.
  returned: success
  type: str
  sample: >-
    <disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd'
    name='4d3e8a5c-91b0-4c57-a2a1-0f6f8a1c2b3d'><host transport='unix'
    socket='/run/parallax/nbd.sock'/></source><target dev='vda' bus='virtio'/></disk>
element_before:
  description: The disk as it was; empty when there was none.
  returned: success
  type: str
  sample: <disk type='file' device='disk'><source file='/srv/a.img'/><target dev='vda'/></disk>
backup_file:
  description: The copy of the file as it was.
  returned: when something was changed with O(backup=true)
  type: str
  sample: /srv/domains/vm01.xml.4711.2026-11-23@10:00:00~
"""

from ansible_collections.parallax.storage.plugins.module_utils import disks, domainxml, files
from ansible_collections.parallax.storage.plugins.module_utils.plxsh import Plxsh, run
from ansible_collections.parallax.storage.plugins.module_utils.xmltext import Refused

_BUSES = ["virtio", "scsi", "sata", "ide", "usb"]


def _wanted(module, disk):
    """Return the element that is to be there, None for none."""
    params = module.params
    if params["state"] == "absent":
        return None
    words = ["disk", "libvirt", "--by", params["by"], "--target", params["target"]]
    present = disk.child("target").attributes.get("bus") if disk else None
    bus = params["bus"] or (present if present in _BUSES else None)
    for option, value in (("--bus", bus), ("--socket", params["socket"])):
        words += [option, value] if value is not None else []
    words += ["--", params["vdi"]]
    if params["readonly"] is not None:
        words.append("r" if params["readonly"] else "w")
    return Plxsh(module).ask(*words)["disk"]["line"]


def _refuse_foreign(params, disk, wanted, text):
    socket = params["socket"] if wanted is None else domainxml.socket_of(wanted)
    if disk is None or params["force"] or domainxml.is_parallax(disk, socket):
        return
    raise disks.foreign(params["path"], params["target"], " ".join(text.split()))


def _edited(module, before):
    """Return the new contents, and the disk as it was and as it will be."""
    params = module.params
    if not before and params["state"] == "absent":
        return before, "", ""
    raw = before.encode("latin-1")
    try:
        domain = domainxml.Domain(raw)
        disk = domain.find(params["target"])
        wanted = _wanted(module, disk)
        _refuse_foreign(params, disk, wanted, domain.text(disk))
        after = domainxml.edited(raw, params["target"], wanted)
    except Refused as refused:
        raise disks.refused(params["path"], refused) from refused
    new = domainxml.Domain(after)
    return after.decode("latin-1"), domain.text(disk), new.text(new.find(params["target"]))


def _work(module):
    missing = "" if module.params["state"] == "absent" else None
    before = files.read(module.params["path"], missing)
    after, old, new = _edited(module, before)
    result = {"changed": before != after, "element": new, "element_before": old}
    return {**result, **files.write(module, before, after)}


def main():
    module = disks.disk_module(
        target={"type": "str", "required": True},
        bus={"type": "str", "choices": _BUSES},
        readonly={"type": "bool"},
    )
    run(module, _work)


if __name__ == "__main__":
    main()
