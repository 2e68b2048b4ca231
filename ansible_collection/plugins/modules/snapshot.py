#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot
short_description: Take, delete, roll back to and schedule snapshots of a virtual disk image
description:
  - Takes and deletes snapshots by label, makes the contents of a VDI those of one of its
    snapshots, keeps only the newest of a series, and has snapshots taken at an interval.
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - parallax.storage.attributes
  - parallax.storage.plxsh
options:
  vdi:
    description:
      - The VDI, by its name, its id or its UUID.
    type: str
    required: true
  label:
    description:
      - Label of the snapshot. When several snapshots of the VDI have it, the newest is meant, and
        V(state=absent) deletes them all.
    type: str
  state:
    description:
      - V(present) takes a snapshot if none has the label.
      - V(absent) deletes it. Clones that were made from it are not affected.
      - V(rolled_back) makes the contents of the VDI those of the snapshot. What was written since
        the newest snapshot is lost, so that needs O(force=true) if there is any. The VDI must not
        be in use.
    type: str
    choices: [present, absent, rolled_back]
    default: present
  retain:
    description:
      - Delete the oldest snapshots whose label begins with a prefix, until so many are left.
      - Snapshots that tell what a VDI was filled with are never deleted by this.
    type: dict
    suboptions:
      prefix:
        description:
          - What the labels begin with.
        type: str
        required: true
      keep:
        description:
          - How many of them stay, at least 1.
        type: int
        required: true
  schedule:
    description:
      - Have the tap take snapshots while the VDI is in use and something was written.
    type: dict
    suboptions:
      every:
        description:
          - The interval, such as V(10ms), V(1s), V(5m), V(1h), V(1d), or V(off) for none.
        type: str
        required: true
      keep:
        description:
          - How many of the snapshots so taken stay. When more are there already, it needs
            O(force=true).
        type: int
  force:
    description:
      - Lose data, where what is asked for cannot be had without.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Take a snapshot that can be cloned
  parallax.storage.snapshot:
    store: /srv/blockstore.dat
    vdi: gold
    label: v1

- name: Take one a day, and keep a week of them
  parallax.storage.snapshot:
    store: /srv/blockstore.dat
    vdi: vm01
    label: "nightly-{{ ansible_facts.date_time.date }}"
    retain:
      prefix: nightly-
      keep: 7

- name: Have one taken every hour while the disk is in use
  parallax.storage.snapshot:
    store: /srv/blockstore.dat
    vdi: vm01
    schedule:
      every: 1h
      keep: 48

- name: Go back, and lose what was written since
  parallax.storage.snapshot:
    store: /srv/blockstore.dat
    vdi: vm01
    label: nightly-2026-11-23
    state: rolled_back
    force: true
"""

RETURN = r"""
snapshot:
  description:
    - The snapshot with the label, as it is then, or in check mode as it would be; empty when there
      is none.
  returned: success
  type: dict
  contains:
    label:
      description: Its label.
      type: str
      sample: v1
    block:
      description: First part of its id; not known in check mode for a VDI that is in use.
      type: int
      sample: 8191
    offset:
      description: Second part of its id.
      type: int
      sample: 1
    size:
      description: Size of the VDI then, in bytes.
      type: int
      sample: 21474836480
    time:
      description: Nanoseconds since 1970; not known before it is taken.
      type: int
      sample: 1795428154708803861
deleted:
  description: Labels of the snapshots that were deleted, the oldest last.
  returned: success
  type: list
  elements: str
  sample: [nightly-2026-11-15]
schedule:
  description: The schedule of the VDI then.
  returned: success
  type: dict
  contains:
    every:
      description: The interval, null without a schedule.
      type: str
      sample: 1h
    keep:
      description: How many stay.
      type: int
      sample: 48
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.parallax.storage.plugins.module_utils.fills import is_mark
from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    Plxsh,
    PlxshError,
    arguments,
    delete_snapshot,
    run,
    snapshot_id,
    snapshots_of,
)

_SHOWN = ("label", "block", "offset", "size", "time")
_OFF = ("off", "no", "false", "0")  # `every: off` arrives as a boolean


class _Snapshots:
    """The snapshots and the schedule of one VDI, on their way to what they are to be."""

    def __init__(self, module):
        self.params = module.params
        self.plxsh = Plxsh(module)
        self.vdi = self.plxsh.ask("vdi", "show", "--", self.params["vdi"])["vdi"]
        self.reference = str(self.vdi["id"])
        self.snapshots = snapshots_of(self.plxsh, self.reference)
        self.deleted = []
        self.schedule = {"every": self.vdi["schedule"], "keep": self.vdi["schedule_keep"]}
        self.contents = None  # a label once the contents are changed to that of it
        self.changed = False
        self.before = self._told()

    def _told(self):
        labels = [snap["label"] or snapshot_id(snap) for snap in self.snapshots]
        told = {"snapshots": labels, "schedule": dict(self.schedule)}
        return {**told, "rolled_back_to": self.contents}

    def found(self):
        """Return the newest snapshot with the label, None if there is none."""
        label = self.params["label"]
        return next((s for s in self.snapshots if label and s["label"] == label), None)

    def result(self):
        found = self.found() or {}
        return {
            "changed": self.changed,
            "snapshot": {key: found[key] for key in _SHOWN if found},
            "deleted": self.deleted,
            "schedule": self.schedule,
            "diff": {"before": self.before, "after": self._told()},
        }

    def take(self):
        """Take one with the label unless there is one."""
        if self.params["label"] and self.found() is None:
            taken = self.plxsh.change(
                "snap", "create", self.reference, "--label", self.params["label"]
            )
            shown = taken["snapshot"]
            if self.plxsh.dry and self.vdi["served_by"]:
                shown.update(block=None, offset=None)  # its holder will choose the place
            self.snapshots.insert(0, shown)
            self.changed = True

    def delete(self, doomed):
        """Delete some; what a kill leaves is found again and deleted by the next run."""
        for snapshot in doomed:
            self.snapshots.remove(snapshot)
            really = snapshot["time"] is not None  # else check mode only says it was taken
            if really and not delete_snapshot(self.plxsh, self.reference, snapshot):
                continue
            self.deleted.append(snapshot["label"])
            self.changed = True

    def roll_back(self):
        """Make the contents those of the snapshot with the label."""
        found = self.found()
        if found is None:
            raise PlxshError(
                "not_found",
                f"VDI {self.vdi['name']!r} has no snapshot {self.params['label']!r}",
                "parallax.storage.snapshot_info lists them",
            )
        name = f"{self.reference}@{snapshot_id(found)}"
        same_size = found["size"] == self.vdi["size"]
        if same_size and not self.plxsh.ask("snap", "diff", name, self.reference)["changes"]:
            return
        if not self.params["force"] and self._is_kept_nowhere():
            raise PlxshError(
                "would_lose_data",
                f"VDI {self.vdi['name']!r} holds what no snapshot has",
                "take a snapshot first; force: true loses them",
            )
        self.plxsh.change_surely("snap", "rollback", self.reference, name)
        self.contents = found["label"]
        self.changed = True

    def _is_kept_nowhere(self):
        """Say whether no snapshot has the contents; what is its own may be 0 all the same."""
        names = (f"{self.reference}@{snapshot_id(snap)}" for snap in self.snapshots)
        return bool(self.vdi["own"]) or all(
            self.plxsh.ask("snap", "diff", name, self.reference)["changes"] for name in names
        )

    def retain(self, prefix, keep):
        """Delete all but the newest of a series."""
        if keep < 1 or not prefix:
            raise PlxshError("usage", "retain needs a prefix, and keep of at least 1")
        series = [
            s
            for s in self.snapshots
            if s["label"] and s["label"].startswith(prefix) and not is_mark(s["label"])
        ]
        self.delete(series[keep:])

    def set_schedule(self, every, keep):
        """Set or end the schedule."""
        off = every.lower() in _OFF
        if off:
            words = ["snap", "every", self.reference, "off"]
        elif keep is None:
            raise PlxshError("usage", "a schedule needs keep: how many snapshots stay?")
        else:
            words = ["snap", "every", self.reference, every, "--keep", str(keep)]
        # What an interval comes to, plxsh knows: 60m is 1h.
        wanted = self.plxsh.ask("-n", *words)["vdi"]
        keys = ("schedule_ns", "schedule_keep")
        if all(wanted[key] == self.vdi[key] for key in keys):
            return
        taken = sum(snap["scheduled"] for snap in self.snapshots)
        if not off and taken > keep and not self.params["force"]:
            raise PlxshError(
                "would_lose_data",
                f"{taken} scheduled snapshots are there, with keep {keep} the oldest are dropped",
                "force: true drops them",
            )
        self.plxsh.change_surely(*words)
        self.schedule = {"every": wanted["schedule"], "keep": wanted["schedule_keep"]}
        self.changed = True


def _work(module):
    params = module.params
    if params["label"] == "":  # a variable that is empty by mistake
        raise PlxshError("usage", "the label is empty", "leave it out for none")
    snapshots = _Snapshots(module)
    if params["state"] == "absent":
        label = params["label"]
        snapshots.delete([snap for snap in snapshots.snapshots if snap["label"] == label])
    elif params["state"] == "rolled_back":
        snapshots.roll_back()
    else:
        snapshots.take()
    if params["retain"]:
        snapshots.retain(**params["retain"])
    if params["schedule"]:
        snapshots.set_schedule(**params["schedule"])
    return snapshots.result()


def main():
    spec = arguments(
        vdi={"type": "str", "required": True},
        label={"type": "str"},
        state={
            "type": "str",
            "choices": ["present", "absent", "rolled_back"],
            "default": "present",
        },
        retain={
            "type": "dict",
            "options": {
                "prefix": {"type": "str", "required": True},
                "keep": {"type": "int", "required": True},
            },
        },
        schedule={
            "type": "dict",
            "options": {"every": {"type": "str", "required": True}, "keep": {"type": "int"}},
        },
        force={"type": "bool", "default": False},
    )
    module = AnsibleModule(
        argument_spec=spec,
        supports_check_mode=True,
        required_one_of=[("label", "retain", "schedule")],
        required_if=[("state", "absent", ["label"]), ("state", "rolled_back", ["label"])],
    )
    run(module, _work)


if __name__ == "__main__":
    main()
