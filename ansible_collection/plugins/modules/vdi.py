#!/usr/bin/python

# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT), or as you like
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: vdi
short_description: Make, fill, resize and delete a virtual disk image
description:
  - Makes a virtual disk image (VDI) in a Parallax blockstore, empty, as a clone of a snapshot or
    filled with an image.
  - What a VDI was filled with is kept in the store, as the label C(sha256:...) of a snapshot that
    is taken right after the fill. So it stays true when somebody writes to the VDI later.
    A snapshot labelled C(filling:sha256:...) is there while a fill goes on.
version_added: 0.1.0
author:
  - The Parallax developers (@parallax-vdi)
extends_documentation_fragment:
  - parallax.storage.attributes
  - parallax.storage.plxsh
options:
  name:
    description:
      - Name of the VDI. For V(state=absent) and for one that exists its id or UUID does as well.
    type: str
    required: true
  state:
    description:
      - Whether there is to be such a VDI.
      - C(plxsh vdi restore) brings a deleted VDI back until its space is collected.
    type: str
    choices: [present, absent]
    default: present
  size:
    description:
      - Size of the VDI, such as V(20G). It is compared as bytes.
      - Without it a new VDI has that of the snapshot or the image, and an old one keeps its own.
      - Making a VDI smaller needs O(force=true).
    type: str
  from:
    description:
      - Snapshot to clone, as V(VDI@LABEL) or V(VDI@BLOCK.OFFSET).
      - It counts when the VDI is made. That it was cloned from another one later on is an error
        unless O(force=true).
      - When the snapshot is no longer there, the VDI stays as it is, with a warning.
    type: str
  source:
    description:
      - Image on the managed host to fill the VDI with, a file or a block device.
      - When the image is another than at the last fill, the VDI is filled again. That loses nothing
        as long as nobody wrote to the VDI in between; else it needs O(force=true).
      - When the image is the same and somebody wrote to the VDI, the VDI stays as it is unless
        O(force=true); RV(vdi.intact) tells.
      - A VDI that holds something else needs O(force=true). One that holds these very bytes is
        taken for filled.
    type: path
  checksum:
    description:
      - Checksum of O(source), V(sha256:) and 64 hexadecimal digits.
      - The image is compared with it before it is used. If the VDI was filled with it already, the
        image is not even read.
    type: str
  format:
    description:
      - Format of O(source), such as V(raw) or V(qcow2). Without it, the format is recognised.
    type: str
  force:
    description:
      - Lose data, where what is asked for cannot be had without.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Fill a gold image
  parallax.storage.vdi:
    store: /srv/blockstore.dat
    name: gold
    source: /srv/debian.img

- name: Clone it
  parallax.storage.vdi:
    store: /srv/blockstore.dat
    name: vm01
    from: gold@v1
    size: 20G

- name: Delete a VDI without snapshots
  parallax.storage.vdi:
    store: /srv/blockstore.dat
    name: vm01
    state: absent

- name: Delete a VDI with all its snapshots
  parallax.storage.vdi:
    store: /srv/blockstore.dat
    name: gold
    state: absent
    force: true
"""

RETURN = r"""
vdi:
  description: The VDI as it is then, or in check mode as it would be; empty when it is absent.
  returned: success
  type: dict
  contains:
    id:
      description: Its number. Not known in check mode for a VDI that is to be made anew.
      type: int
      sample: 1
    name:
      description: Its name.
      type: str
      sample: vm01
    uuid:
      description: Its UUID, which a new VDI does not have yet in check mode.
      type: str
      sample: 6c2960e2-fda8-41bd-ad7d-45f52b9ea293
    size:
      description: Its size in bytes. Unknown in check mode for new VDIs filled with odd formats.
      type: int
      sample: 21474836480
    parent:
      description: The snapshot it was cloned from.
      type: str
      sample: gold@8191.1
    checksum:
      description: Of the image that it was filled with last.
      type: str
      sample: sha256:52a5a148542cba2d681779aa615afaf4c6aa5c0ba3296fe5df0542be19eb4105
    intact:
      description:
        - Whether it still holds what it was filled with. Not told for one that was never filled,
          and for one that is in use.
      type: bool
      sample: true
"""

import os
import re
from contextlib import suppress

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.parallax.storage.plugins.module_utils import fills
from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    Plxsh,
    PlxshError,
    arguments,
    lookup,
    run,
    snapshot_id,
    snapshots_of,
)
from ansible_collections.parallax.storage.plugins.module_utils.sizes import size

_SHOWN = ("id", "name", "uuid", "size", "parent")
_SKEW = 300 * 10**9  # nanoseconds by which the clocks of two hosts may differ
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")


def _told(vdi, marks, intact):
    if vdi is None:
        return {}
    filled = {"checksum": marks.checksum, "intact": intact}
    return {**{key: vdi[key] for key in _SHOWN}, **filled}


def _intact(plxsh, vdi, marks):
    if marks.done is None:
        return None
    written = fills.written_since(plxsh, vdi, marks)
    return None if written is None else not written


class _Vdi:
    """One VDI on its way from what it is to what it is to be.

    In check mode nothing of what is changed can be looked at afterwards, so `vdi`, `checksum`
    and `intact` follow each step themselves; otherwise they are looked up at the end.
    """

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.plxsh = Plxsh(module)
        self.name = self.params["name"]
        self.changed = False
        self.vdi = lookup(self.plxsh, self.name)
        self.marks = fills.Marks()
        self.intact = None
        self.measured = None  # checksum and identity of the image
        self._look_at_fill()
        self.before = _told(self.vdi, self.marks, self.intact)
        self.predicted = dict(self.before)

    def _look_at_fill(self):
        if self.vdi is not None:
            self.marks = fills.marks_of(self.plxsh, self.reference)
            self.intact = _intact(self.plxsh, self.vdi, self.marks)

    @property
    def reference(self):
        """The VDI as plxsh is told: by its id, which no name can be mistaken for."""
        return str(self.vdi["id"])

    def refuse(self, message, hint="force: true does it all the same, and loses what is there"):
        raise PlxshError("would_lose_data", message, hint)

    def result(self):
        """Return what the module tells."""
        if self.changed and not self.plxsh.dry:
            self.vdi = lookup(self.plxsh, self.reference if self.vdi else self.name)
            self.marks = fills.Marks()
            self._look_at_fill()
            after = _told(self.vdi, self.marks, self.intact)
        else:
            after = self.predicted
        shown = [
            {key: value for key, value in told.items() if key != "uuid"}
            for told in (self.before, after)
        ]
        return {
            "changed": self.changed,
            "vdi": after,
            "diff": {"before": shown[0], "after": shown[1]},
        }

    # -- absent --------------------------------------------------------------------------

    def remove(self):
        """Delete it."""
        if self.vdi is None:
            return
        others = [s for s in self.marks.snapshots if not fills.is_mark(s["label"])]
        if others and not self.params["force"]:
            self.refuse(
                f"VDI {self.name!r} has snapshots: {_labels(others)}",
                "delete them first; force: true deletes them with the VDI",
            )
        options = ["--snapshots"] if self.marks.snapshots else []
        self.plxsh.change_surely("vdi", "delete", *options, "--", self.reference)
        self.changed = True
        self.vdi = None
        self.predicted = {}

    # -- present -------------------------------------------------------------------------

    def make(self):
        """Make it what it is to be."""
        wanted = None if self.params["size"] is None else size(self.params["size"])
        origin = self._origin()
        anew = self.vdi is not None and origin is not None and self._is_no_clone_of(origin)
        if self.vdi is None or anew:
            self._create(wanted, origin)
        elif wanted is not None and wanted != self.vdi["size"]:
            if self.params["source"] is not None and wanted < self.vdi["size"]:
                self._check_image(wanted)  # before anything is cut off for an image too large
            self._resize(wanted)
        if self.params["source"] is not None:
            self._fill()

    def _origin(self):
        """Return the snapshot to clone, None for none."""
        reference = self.params["from"]
        if reference is None:
            return None
        if "@" not in reference:
            raise PlxshError("usage", f"{reference!r} is no snapshot", "write VDI@LABEL")
        owner, rest = reference.rsplit("@", 1)
        try:
            found = snapshots_of(self.plxsh, owner)
        except PlxshError as error:
            if error.code != "not_found":
                raise
            found = []
        for snapshot in found:
            if rest in (snapshot["label"], snapshot_id(snapshot)):
                return snapshot
        if self.vdi is None:
            raise PlxshError(
                "not_found", f"there is no snapshot {reference}", "write VDI@LABEL of one there is"
            )
        self.module.warn(f"there is no snapshot {reference} any more; {self.name} stays as it is")
        return None

    def _is_no_clone_of(self, origin):
        if origin["vdi"] == self.vdi["id"]:
            raise PlxshError(
                "usage",
                f"{self.params['from']} is a snapshot of VDI {self.name!r} itself",
                "parallax.storage.snapshot with state: rolled_back goes back to it",
            )
        parent = self.vdi["parent"]
        same_place = parent is not None and parent.rpartition("@")[2] == snapshot_id(origin)
        if same_place and self.vdi["created"] >= origin["time"] - _SKEW:
            return False  # a later snapshot may have the place of one that was deleted
        if not self.params["force"]:
            actual = f"a clone of {parent}" if parent else "no clone"
            wanted = f"{self.params['from']} ({snapshot_id(origin)})"
            self.refuse(
                f"VDI {self.name!r} is {actual}, not of {wanted}",
                "force: true deletes it and makes it anew",
            )
        return True

    def _give_up(self):
        """Delete a VDI that is to be another one; a kill right after leaves it to be made."""
        options = ["--snapshots"] if self.marks.snapshots else []
        self.plxsh.change_surely("vdi", "delete", *options, "--", self.reference)
        self.changed = True
        self.vdi = None
        self.marks = fills.Marks()
        self.intact = None

    def _create(self, wanted, origin):
        options = []
        if origin is not None:
            if wanted is not None and wanted < origin["size"]:
                raise PlxshError(
                    "usage",
                    f"{self.params['from']} has {origin['size']} bytes, a clone of it has no less"
                    f" than that, so not {wanted}",
                )
            options += ["--from", snapshot_id(origin)]
        if wanted is not None:
            options += ["--size", str(wanted)]
        if self.params["source"] is not None:
            self._check_image(wanted)
        name = self.params["name"]
        made = None
        if self.vdi is not None:  # tried under a free name: what is refused loses nothing
            spare = "spare-" + os.urandom(16).hex()
            made = self.plxsh.ask("-n", "vdi", "create", *options, "--", spare)["vdi"]
            made.update(id=None, name=name)
            self._give_up()
        if made is None or not self.plxsh.dry:
            made = self.plxsh.change("vdi", "create", *options, "--", name)["vdi"]
        self.changed = True
        self.vdi = made
        self.predicted = _told(made, self.marks, None)

    def _resize(self, wanted):
        if wanted < self.vdi["size"] and not self.params["force"]:
            self.refuse(
                f"VDI {self.name!r} has {self.vdi['size']} bytes, {wanted} would cut off its end"
            )
        change = ["vdi", "resize", *(["--force"] if self.params["force"] else [])]
        answer = self.plxsh.change_surely(*change, "--", self.reference, str(wanted))["vdi"]
        self.changed = True
        if answer["lost"] and self.intact:
            self.intact = self.predicted["intact"] = False
        self.vdi["size"] = self.predicted["size"] = wanted

    # -- filling -------------------------------------------------------------------------

    def _fill(self):
        checksum = self._checksum_to_have()
        same = checksum == self.marks.checksum
        if same and (self.intact or not self.params["force"]):
            self._tidy()
            return
        if not same and self._is_filled_by_other_means():
            self._take_for_filled(checksum)
            return
        if not self.params["force"]:
            self._refuse_loss()
        self._check_image(self.vdi["size"])
        self.predicted.update(checksum=checksum, intact=True)
        self.changed = True
        if self.plxsh.dry:
            self._predict_size()
            return
        source, image_format = self.params["source"], self.params["format"]
        known = self.measured[1]
        try:
            fills.fill(self.plxsh, self.reference, source, image_format, checksum, known)
        except PlxshError:
            if not self.before:
                self._unmake()
            raise

    def _unmake(self):
        """Delete a VDI that was made for an image that is refused; not one with a mark."""
        with suppress(PlxshError):  # the first error says more
            self.plxsh.change_surely("vdi", "delete", "--", self.reference)

    def _checksum_to_have(self):
        """Return what `checksum` says, or that of the image."""
        given = self.params["checksum"]
        if given is not None:
            given = given.lower()
            if not _CHECKSUM.fullmatch(given):
                raise PlxshError("usage", f"{given!r} is no checksum", "write sha256:HEX")
            return given
        return self._measured()

    def _measured(self):
        """Return the checksum of the image, which is read once."""
        if self.measured is None:
            source = self.params["source"]
            try:
                known = fills.identity(source)
                digest = self.module.digest_from_file(source, "sha256")
            except FileNotFoundError as error:
                raise PlxshError("not_found", f"there is no image {source}") from error
            except (OSError, ValueError) as error:
                raise PlxshError("io", f"cannot read {source}: {error}") from error
            self.measured = (f"sha256:{digest}", known)
        return self.measured[0]

    def _check_image(self, room):
        """Refuse an image that is not the one meant, or too large for a size other than 0."""
        self._check_source(self._checksum_to_have())
        source = self.params["source"]
        needed = fills.image_size(source, self.params["format"])
        if room and needed is not None and needed > room:
            raise PlxshError(
                "usage", f"{source} has {needed} bytes, {room} are too few for it", "give more size"
            )

    def _check_source(self, checksum):
        measured = self._measured()
        if measured != checksum:
            raise PlxshError(
                "different",
                f"{self.params['source']} has the checksum {measured}, not {checksum}",
                "it is another image, or not complete; nothing was changed",
            )

    def _tidy(self):
        """Delete what a kill at the very end of a fill left: the mark that it had begun."""
        if self.marks.begun:
            self.changed = True
            fills.forget_begun(self.plxsh, self.reference, self.marks)

    def _has_contents(self):
        return bool(self.vdi.get("mapped"))

    def _is_filled_by_other_means(self):
        """Say whether it holds the image already, though no mark tells of it."""
        unknown = self.marks.done is None and self._has_contents()
        if not unknown or (self.plxsh.dry and self.changed):
            return False
        options = ["--format", self.params["format"]] if self.params["format"] else []
        try:
            self.plxsh.ask("vdi", "validate", *options, "--", self.reference, self.params["source"])
        except PlxshError as error:
            if error.code in ("different", "usage"):
                return False
            raise
        return True

    def _take_for_filled(self, checksum):
        self._check_source(checksum)
        self.changed = True
        self.predicted.update(checksum=checksum, intact=True)
        self.plxsh.change("snap", "create", self.reference, "--label", checksum)
        fills.forget_begun(self.plxsh, self.reference, self.marks)

    def _refuse_loss(self):
        """Refuse to overwrite what no fill has put there and no snapshot has."""
        if self.marks.interrupted or not self._has_contents() or self.intact:
            return
        if self.marks.done is None:
            self.refuse(f"VDI {self.name!r} holds something else than {self.params['source']}")
        why = "is in use" if self.intact is None else "was written to"
        self.refuse(
            f"{self.params['source']} is another image, and VDI {self.name!r} {why}"
            " since it was filled"
        )

    def _predict_size(self):
        """Say in check mode how large a fill makes a VDI; refuse what plxsh would refuse."""
        if not self.vdi["size"]:
            self.predicted["size"] = fills.image_size(self.params["source"], self.params["format"])
        elif self.before and self.before["size"] == self.vdi["size"]:
            options = ["--format", self.params["format"]] if self.params["format"] else []
            self.plxsh.change("vdi", "fill", *options, "--", self.reference, self.params["source"])


def _labels(snapshots):
    names = [snap["label"] or snapshot_id(snap) for snap in snapshots[:5]]
    return ", ".join(names) + (" and more" if len(snapshots) > 5 else "")


def _once(vdi):
    if vdi.params["state"] == "absent":
        vdi.remove()
    else:
        vdi.make()
    return vdi.result()


def _work(module):
    vdi = _Vdi(module)
    try:
        return _once(vdi)
    except PlxshError:
        now = _Vdi(module)
        if bool(now.before) == bool(vdi.before) or vdi.changed:
            raise
    return _once(now)  # somebody else made it, or deleted it, at the same time


def main():
    spec = arguments(
        name={"type": "str", "required": True},
        state={"type": "str", "choices": ["present", "absent"], "default": "present"},
        size={"type": "str"},
        source={"type": "path"},
        checksum={"type": "str"},
        format={"type": "str"},
        force={"type": "bool", "default": False},
    )
    spec["from"] = {"type": "str"}
    module = AnsibleModule(
        argument_spec=spec,
        supports_check_mode=True,
        mutually_exclusive=[("from", "source")],
        required_by={"checksum": ["source"], "format": ["source"]},
    )
    run(module, _work)


if __name__ == "__main__":
    main()
