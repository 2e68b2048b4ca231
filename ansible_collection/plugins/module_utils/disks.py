# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""What the modules share that give a VDI to a machine by its configuration file."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.parallax.storage.plugins.module_utils import files
from ansible_collections.parallax.storage.plugins.module_utils.plxsh import PlxshError, arguments


def disk_module(**own):
    """Return the module with the options that all of them have, and its own."""
    spec = arguments(
        path={"type": "path", "required": True},
        vdi={"type": "str"},
        by={"type": "str", "choices": ["uuid", "name", "id"], "default": "uuid"},
        socket={"type": "path"},
        state={"type": "str", "choices": ["present", "absent"], "default": "present"},
        force={"type": "bool", "default": False},
        **own,
        **files.OPTIONS,
    )
    spec["store"] = {"type": "path"}  # to take a disk away needs none
    return AnsibleModule(
        argument_spec=spec,
        supports_check_mode=True,
        required_if=[("state", "present", ["vdi", "store"])],
    )


def foreign(path, device, text):
    """Return the error of a device that is there already and no disk of Parallax."""
    return PlxshError(
        "would_lose_data",
        f"{device} in {path} is no disk of Parallax: {text}",
        "force: true replaces or removes it",
    )


def refused(path, why):
    """Return the error of a file that cannot be edited safely."""
    return PlxshError("refused", f"{path}, {why}", "edit it by hand; nothing was changed")
