# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""Names and labels are data: who may name a VDI must not run a template on the controller."""

from __future__ import annotations

import ansible.template

_ALL_TRUSTED = not hasattr(ansible.template, "trust_as_template")
"""Before ansible-core 2.19 every text of an inventory is a template unless it says otherwise."""


def untrusted(value):
    """Return dicts, lists and texts such that no text in them is taken for a template."""
    if isinstance(value, dict):
        return {key: untrusted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [untrusted(inner) for inner in value]
    if _ALL_TRUSTED and isinstance(value, str) and "{" in value:
        # Only those: others would be shown with a mark. Newer versions will not have this import.
        from ansible.utils.unsafe_proxy import wrap_var

        return wrap_var(value)
    return value
