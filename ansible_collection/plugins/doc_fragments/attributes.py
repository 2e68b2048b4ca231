# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""How far modules follow the conventions of Ansible: the same for each kind of module."""

from __future__ import annotations


class ModuleDocFragment:
    # Modules that change something.
    DOCUMENTATION = r"""
attributes:
  check_mode:
    support: full
    description:
      - Can run in C(check_mode) and return changed status prediction without modifying target.
  diff_mode:
    support: full
    description:
      - Returns details on what has changed, or would change in check mode.
  idempotent:
    support: full
    description:
      - Running it again changes nothing.
  platform:
    support: full
    platforms: linux
    description:
      - Target OS/families that can be operated against.
"""

    # Modules that only look.
    INFO = r"""
attributes:
  check_mode:
    support: full
    description:
      - Can run in C(check_mode) and return changed status prediction without modifying target.
  diff_mode:
    support: N/A
    description:
      - It changes nothing.
  idempotent:
    support: N/A
    description:
      - It changes nothing.
  platform:
    support: full
    platforms: linux
    description:
      - Target OS/families that can be operated against.
"""
