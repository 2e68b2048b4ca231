# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Options of the modules that edit a configuration file."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  backup:
    description:
      - Keep a copy of the file as it was, with the time in its name.
    type: bool
    default: false
  validate:
    description:
      - A command that must succeed on the new file before it takes the place of the old one, in
        check mode too. C(%s) stands for its path. No shell is used.
    type: str
  unsafe_writes:
    description:
      - Overwrite the file in place when it cannot be replaced in one step, as one that is mounted
        into a container. Somebody who reads it meanwhile, or a crash, may see half of it.
    type: bool
    default: false
"""
