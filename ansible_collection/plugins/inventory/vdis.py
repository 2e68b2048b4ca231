# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The VDIs of a store as inventory hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vdis
short_description: The virtual disk images of a blockstore as hosts
description:
  - Lists the virtual disk images (VDIs) of a blockstore with C(plxsh), and makes each an inventory
    host. What is known of it is in the variable C(parallax).
  - The file ends with C(parallax.yml), C(parallax.yaml), C(vdis.yml) or C(vdis.yaml).
  - C(parallax) has what M(parallax.storage.vdi_info) returns of a VDI, with C(name), its true name;
    C(store), the blockstore; C(host), the host that has it open, as the lock master names it, or
    none; C(parent_name) and C(parent_label), the VDI and the label of the snapshot that it was
    cloned from, which may have been deleted since; C(clones), the names of those that were cloned
    from it; and on request C(snapshot_list).
  - A VDI that is damaged is left out, with a warning.
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
  - parallax.storage.controller
options:
  plugin:
    description:
      - Says that the file is for this plugin.
    type: str
    required: true
    choices: [parallax.storage.vdis]
  vdis:
    description:
      - Only VDIs whose names match one of these shell patterns.
    type: list
    elements: str
    default: ["*"]
  exclude:
    description:
      - Not VDIs whose names match one of these shell patterns.
    type: list
    elements: str
    default: []
  clones_of:
    description:
      - Only VDIs that were cloned from one of these, each a VDI by its name, or a snapshot as
        V(VDI@LABEL). Clones of clones are not meant.
    type: list
    elements: str
    default: []
  gold_images:
    description:
      - What to do with VDIs that have clones. V(group) lists them, in the group O(gold_group)
        besides; V(exclude) leaves them out.
    type: str
    choices: [group, exclude]
    default: group
  snapshots:
    description:
      - List the snapshots of each VDI in C(parallax.snapshot_list), newest first, with C(id),
        C(label), C(time) (nanoseconds since 1970) and C(size). It takes one command for each VDI.
    type: bool
    default: false
  group:
    description:
      - Group of all hosts that are listed.
    type: str
    default: parallax_vdis
  gold_group:
    description:
      - Group of those that have clones.
    type: str
    default: parallax_gold
  host_prefix:
    description:
      - What the names of the hosts begin with, before the names of the VDIs.
      - Two stores may have VDIs of the same name; one prefix each keeps them apart.
    type: str
    default: ""
notes:
  - A host is named as its VDI. Where patterns, shells or file names mind a character of the name,
    it becomes an underscore, and the id of the VDI is put behind, as C(my_disk_7) for V(my disk).
    Names that Ansible uses itself, such as V(all) and V(localhost), get the id as well.
  - With O(cache), C(host), C(served_by) and C(clients) are as old as the cache.
seealso:
  - module: parallax.storage.vdi_info
"""

EXAMPLES = r"""
# fleet.parallax.yml: all VDIs, plxsh runs here
plugin: parallax.storage.vdis
store: /srv/blockstore.dat

---
# fleet.parallax.yml: the machines made from one gold image; plxsh runs on a host of the fleet
plugin: parallax.storage.vdis
store: /srv/blockstore.dat
lock_master: 192.0.2.10:8440
ssh: [ssh, host1]
clones_of: [gold@v1]
exclude: ["*-test"]
compose:
  vm_host: parallax.host
groups:
  running: parallax.host is not none
  large: parallax.own > 4 * 1024 ** 3
keyed_groups:
  - key: parallax.host
    prefix: "on"
  - key: parallax.parent_label
    prefix: image
"""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable

from ansible_collections.parallax.storage.plugins.module_utils.plxsh import PlxshError
from ansible_collections.parallax.storage.plugins.plugin_utils.controller import asking, told
from ansible_collections.parallax.storage.plugins.plugin_utils.facts import vdi_facts
from ansible_collections.parallax.storage.plugins.plugin_utils.hostnames import host_names
from ansible_collections.parallax.storage.plugins.plugin_utils.untrusted import untrusted

_ENDINGS = tuple(f"{name}.{kind}" for name in ("parallax", "vdis") for kind in ("yml", "yaml"))


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    NAME = "parallax.storage.vdis"

    def verify_file(self, path):
        """Say whether the file is for this plugin."""
        return super().verify_file(path) and os.path.basename(path).endswith(_ENDINGS)

    def parse(self, inventory, loader, path, cache=True):
        """Add the hosts of a file to the inventory."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            facts = self._facts(path, cache)
        except PlxshError as error:
            raise AnsibleParserError(told(error)) from None
        for vdi in facts:
            if vdi["state"] != "ok":
                self._warn(f"VDI {vdi['id']} is {vdi['state']} and left out: {vdi['error']}")
        usable = [vdi for vdi in facts if vdi["state"] == "ok"]
        self._add(usable, [vdi for vdi in usable if self._is_wanted(vdi)])

    def _facts(self, path, may_be_cached):
        """Return the facts of all VDIs, from the cache if that is wanted and has them."""
        if not self.get_option("cache"):
            return self._read()
        # Another store or host in the same file is another entry.
        asked = ("store", "lock_master", "config", "plxsh", "ssh", "snapshots")
        key = self.get_cache_key(repr([path, *map(self.get_option, asked)]))
        if may_be_cached:
            try:
                return self._cache[key]
            except KeyError:
                pass
        self._cache[key] = facts = self._read()
        return facts

    def _read(self):
        plxsh = asking(self.get_option)
        store, snapshots = self.get_option("store"), self.get_option("snapshots")
        return vdi_facts(plxsh, store, snapshots, self._warn)

    def _warn(self, text):
        self.display.warning(f"{self.get_option('store')}: {text}")

    def _is_wanted(self, vdi):
        """Say whether the options let a VDI be listed."""
        name, parent, label = vdi["name"], vdi["parent_name"], vdi["parent_label"]
        clones_of = self.get_option("clones_of")
        if clones_of and not {parent, f"{parent}@{label}", vdi["parent"]}.intersection(clones_of):
            return False
        if self.get_option("gold_images") == "exclude" and vdi["clones"]:
            return False
        return _matches(name, self.get_option("vdis")) and not _matches(
            name, self.get_option("exclude")
        )

    def _add(self, known, wanted):
        """Add those that are wanted of all known VDIs."""
        groups = {name: self.get_option(name) for name in ("group", "gold_group")}
        names = host_names(known, self.get_option("host_prefix"), groups.values())
        self._refuse_strangers([(names[vdi["id"]], vdi) for vdi in wanted])
        added = {name: self.inventory.add_group(groups[name]) for name in groups}
        for vdi in wanted:
            host = self.inventory.add_host(names[vdi["id"]], group=added["group"])
            if vdi["clones"]:
                self.inventory.add_child(added["gold_group"], host)
            self.inventory.set_variable(host, "parallax", untrusted(vdi))
            self._construct(host)

    def _refuse_strangers(self, hosts):
        """Refuse two VDIs under one host name, before anything is added."""
        for host, vdi in hosts:
            there = self.inventory.get_host(host)
            other = there.get_vars().get("parallax") if there else None
            if isinstance(other, Mapping) and other.get("uuid") not in (None, vdi["uuid"]):
                raise AnsibleParserError(
                    f"{host} would be VDI {vdi['name']!r} of {vdi['store']}, and is one of"
                    f" {other.get('store')} already (host_prefix keeps them apart)"
                )

    def _construct(self, host):
        strict = self.get_option("strict")
        variables = self.inventory.get_host(host).get_vars()
        self._set_composite_vars(self.get_option("compose"), variables, host, strict)
        self._add_host_to_composed_groups(self.get_option("groups"), {}, host, strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), {}, host, strict)


def _matches(name, patterns):
    return any(fnmatchcase(name, pattern) for pattern in patterns)
