"""Reads the forms of YAML that the commands write: block mappings, block lists, scalars."""

from __future__ import annotations

import json
from typing import Any


def load(lines: list[str]) -> Any:
    """The data of a document; fails on what it does not know."""
    value, rest = _mapping(list(lines), 0)
    assert not rest, rest
    return value


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _mapping(lines: list[str], indent: int) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = {}
    while lines and _indent(lines[0]) == indent and not lines[0].lstrip().startswith("- "):
        key, colon, text = lines.pop(0).strip(" ").partition(":")
        assert colon
        assert key not in found, key
        if text:
            found[key] = _scalar(text.removeprefix(" "))
        elif lines[0].lstrip().startswith("- "):
            found[key], lines = _list(lines, _indent(lines[0]))
        else:
            assert _indent(lines[0]) == indent + 2
            found[key], lines = _mapping(lines, indent + 2)
    return found, lines


def _list(lines: list[str], indent: int) -> tuple[list[Any], list[str]]:
    found: list[Any] = []
    while lines and _indent(lines[0]) == indent and lines[0][indent:].startswith("- "):
        item = lines[0][indent + 2 :]
        if item[0] not in '"[{' and (": " in item or item.endswith(":")):
            lines[0] = " " * (indent + 2) + item
            value, lines = _mapping(lines, indent + 2)
            found.append(value)
        else:
            found.append(_scalar(item))
            lines = lines[1:]
    return found, lines


def _scalar(text: str) -> Any:
    if text in ("null", "true", "false") or text[0] in '"[{-0123456789' or text in ("NaN",):
        return json.loads(text)
    return text
