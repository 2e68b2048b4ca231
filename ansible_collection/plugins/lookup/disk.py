# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The text that gives a VDI to a virtual machine, for templates of whole configurations."""

from __future__ import annotations

DOCUMENTATION = r"""
name: disk
short_description: The text that gives a VDI to a virtual machine
description:
  - Returns what C(plxsh disk) prints for a virtual disk image (VDI) or a snapshot, for templates of
    configurations that are written as a whole. To change one disk of a file that is there, use
    M(parallax.storage.xen_disk) or M(parallax.storage.libvirt_disk).
  - C(plxsh) runs on the controller, or through O(ssh) on a host; it reads the blockstore.
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - parallax.storage.controller
options:
  _terms:
    description:
      - VDIs by their names, ids or UUIDs, or snapshots as V(VDI@LABEL).
    type: list
    elements: str
    required: true
  kind:
    description:
      - V(xen) is an entry of the list C(disk) in an xl configuration, without quotes around it; it
        has no character that ends a quoted text.
      - V(qemu) is an option C(-drive) of QEMU, V(blockdev) an option C(-blockdev), each as words
        of a shell. The node name of V(blockdev) is always C(d0), so it is for one disk.
      - V(libvirt) is the element C(<disk>) of a domain.
    type: str
    choices: [xen, qemu, blockdev, libvirt]
    default: xen
  device:
    description:
      - Name of the device in the machine, such as V(xvda); one for each of the terms, in order.
      - Required with V(xen), and with V(libvirt) for more than one disk; one alone is V(vda). QEMU
        gives names itself.
    type: list
    elements: str
    default: []
    aliases: [vdev, target]
  bus:
    description:
      - The bus of the device, with V(libvirt).
    type: str
  access:
    description:
      - V(r) or V(w), with V(xen) and V(libvirt). Without it a VDI can be written and a snapshot
        cannot.
    type: str
    choices: [r, w]
  backend:
    description:
      - The domain that runs the tap, with V(xen), if that is not dom0.
    type: str
  by:
    description:
      - What the text calls the VDI. Only its V(uuid) is never another's; a V(name) may be given to
        another VDI, and some day an V(id) is.
    type: str
    choices: [uuid, name, id]
    default: uuid
  socket:
    description:
      - Socket of the tap on the host of the machine, if it is not the usual one.
    type: str
notes:
  - A VDI that does not exist is an error, in check mode too; C(errors='ignore') leaves it out.
seealso:
  - module: parallax.storage.xen_disk
  - module: parallax.storage.libvirt_disk
"""

EXAMPLES = r"""
- name: Write the configuration of a Xen domain with two disks
  ansible.builtin.copy:
    dest: /etc/xen/vm01.cfg
    content: |
      name = 'vm01'
      memory = 512
      disk = [ '{{ disks | join("', '") }}' ]
    mode: "0644"
  vars:
    disks: >-
      {{ query('parallax.storage.disk', 'vm01', 'vm01-data', device=['xvda', 'xvdb'],
      store='/srv/blockstore.dat') }}

- name: Say how QEMU is started, with a store that only its host has
  ansible.builtin.debug:
    msg: >-
      qemu-system-x86_64 -m 512 {{ lookup('parallax.storage.disk', 'vm01', kind='qemu',
      store='/srv/blockstore.dat', ssh=['ssh', 'host1']) }}
"""

RETURN = r"""
_raw:
  description: The texts, one for each of the terms.
  type: list
  elements: str
  sample:
    - format=raw,vdev=xvda,access=rw,script=block-plx,target=nbd+unix:///4d3e8a5c-91b0-4c57-a2a1-0f6f8a1c2b3d?socket=/run/parallax/nbd.sock
"""

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ansible_collections.parallax.storage.plugins.module_utils import xlconfig
from ansible_collections.parallax.storage.plugins.module_utils.plxsh import PlxshError
from ansible_collections.parallax.storage.plugins.plugin_utils.controller import (
    VARIABLES,
    asking,
    told,
)

_OF_KIND = {
    "xen": ("access", "backend"),
    "qemu": (),
    "blockdev": (),
    "libvirt": ("access", "bus"),
}
"""Options that do not mean something for every kind of text."""


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        """Return the text for each VDI or snapshot."""
        self.set_options(var_options=self._templated(variables or {}), direct=kwargs)
        try:
            self._refuse_what_has_no_meaning(terms)
            plxsh = asking(self.get_option)
            devices = self.get_option("device") or [None] * len(terms)
            disks = zip(terms, devices, strict=True)
            return [self._text(plxsh, vdi, device) for vdi, device in disks]
        except PlxshError as error:
            raise AnsibleError(told(error)) from None

    def _templated(self, variables):
        """Return the variables that are options with templates in them evaluated."""
        given = [name for name in VARIABLES if name in variables]
        return {name: self._templar.template(variables[name]) for name in given}

    def _refuse_what_has_no_meaning(self, terms):
        kind, devices = self.get_option("kind"), self.get_option("device")
        some = {name for names in _OF_KIND.values() for name in names}
        for name in sorted(some.difference(_OF_KIND[kind])):
            if self.get_option(name) is not None:
                raise PlxshError("usage", f"{name} means nothing for {kind}", "leave it out")
        if devices and kind in ("qemu", "blockdev"):
            raise PlxshError("usage", f"device means nothing for {kind}", "QEMU gives names itself")
        needed = kind == "xen" or (kind == "libvirt" and len(terms) > 1)
        if len(devices) != len(terms) and (devices or needed):
            raise PlxshError(
                "usage",
                f"there are {len(terms)} disks and {len(devices)} devices",
                "give one device for each disk, such as device='xvda'",
            )

    def _text(self, plxsh, vdi, device):
        kind = self.get_option("kind")
        words = ["disk", "qemu" if kind == "blockdev" else kind, "--by", self.get_option("by")]
        words += ["--blockdev"] if kind == "blockdev" else []
        words += ["--target", device] if kind == "libvirt" and device else []
        for name in ("backend", "bus", "socket"):
            if self.get_option(name):
                words += ["--" + name, self.get_option(name)]
        words += ["--", str(vdi)]  # an id is a number
        words += [device] if kind == "xen" else []
        words += [self.get_option("access")] if self.get_option("access") else []
        line = plxsh.ask(*words)["disk"]["line"]
        return xlconfig.entry_of(line) if kind == "xen" else line
