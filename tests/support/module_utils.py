"""Imports module utilities of the collection by the names that they have on a managed host."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

COLLECTION = Path(__file__).resolve().parents[2] / "ansible_collection"


def utility(name: str) -> Any:
    """Return one of `plugins/module_utils`."""
    path = "ansible_collections"
    for part in ("", ".parallax", ".storage"):
        path += part
        if path not in sys.modules:
            package = ModuleType(path)
            package.__path__ = [str(COLLECTION)] if part == ".storage" else []
            sys.modules[path] = package
    return import_module(f"{path}.plugins.module_utils.{name}")
