"""Plain data as YAML, without a library: only the forms that results have.

What it writes means the same in YAML 1.1 and 1.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

_BARE: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_/ +.()-]*(?<! )")
_NOT_TEXT: Final = frozenset(
    ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf")
)


def yaml_lines(value: Mapping[str, Any]) -> list[str]:
    """Return the lines of a YAML document for plain data."""
    return _yaml_mapping(value)


def _yaml_mapping(value: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += [f"{key}:", *("  " + line for line in _yaml_mapping(item))]
        elif isinstance(item, list | tuple) and item:
            lines.append(f"{key}:")
            for element in item:
                if isinstance(element, Mapping) and element:
                    first, *rest = _yaml_mapping(element)
                    lines += [f"- {first}", *("  " + line for line in rest)]
                else:
                    lines.append(f"- {_yaml_scalar(element)}")
        else:
            lines.append(f"{key}: {_yaml_scalar(item)}")
    return lines


def _yaml_scalar(value: Any) -> str:
    """Return one value; JSON is YAML, and only harmless texts go without quotes."""
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return json.dumps(value)
