"""The layering of `core`: a module imports only modules above it in `ORDER`.

This list is the one place that says so. It also keeps the engine free of the shell: no
printing, no command-line or drawing library.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "core"

ORDER = (
    "errors",
    "text",
    "lock_timing",
    "lock_messages",
    "locks",
    "remote",
    "lock_epoch",
    "lock_tokens",
    "lock_unleased",
    "lock_table",
    "lock_calls",
    "lock_master",
    "lock_client",
    "lock_wire",
    "schedule",
    "format",
    "soundness",
    "progress",
    "disk",
    "device",
    "direct",
    "listen",
    "notify",
    "lock_key",
    "ending",
    "lock_auth",
    "lock_channel",
    "lock_here",
    "lock_peer",
    "lock_service",
    "lock_metrics",
    "lock_serve",
    "lock_link",
    "lock_connection",
    "slots",
    "session_list",
    "blockset",
    "entries",
    "extent_disk",
    "claiming",
    "extent",
    "leased",
    "blockstore",
    "contents",
    "mkfs",
    "features",
    "sharing",
    "radix",
    "snaplog",
    "registry",
    "commit",
    "tidying",
    "image",
    "batch",
    "vdi",
    "reclaim",
    "give_back",
    "collection",
    "parts",
    "taking_over",
    "open_vdis",
    "collecting",
    "finding",
    "vdi_table",
    "answering",
    "beside",
    "session",
    "signatures",
    "qemu_img",
    "source",
    "transfer",
    "findings",
    "slot_check",
    "checker",
    "check",
    "repair",
    "tree",
    "tree_text",
    "tree_frames",
    "tree_labels",
    "tree_svg",
    "tree_picture",
    "tap",
)
FORBIDDEN = {"click", "plxsh", "prompt_toolkit", "pydot", "rich"}
PACKAGE_ITSELF = -1

Rank = tuple[int, int]


def rank(module: str) -> Rank | None:
    """The place of a dotted module in the order; None if it has none.

    Inside the tap, `protocol` comes first and `server` last; those between are equals.
    """
    parts = module.split(".")[1:]
    if not parts:
        return PACKAGE_ITSELF, 0
    if parts[0] not in ORDER or len(parts) > (2 if parts[0] == "tap" else 1):
        return None
    inside = {"protocol": 0, "server": 2}.get(parts[1], 1) if len(parts) == 2 else PACKAGE_ITSELF
    return ORDER.index(parts[0]), inside


def may_import(importer: Rank, imported: Rank) -> bool:
    middle_of_tap = (ORDER.index("tap"), 1)
    return imported < importer or importer == imported == middle_of_tap


def imports(tree: ast.AST, package: str, modules: set[str]) -> Iterator[tuple[ast.stmt, str]]:
    """Every import at any depth, as absolute dotted names of modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node, submodule if submodule in modules else base


def violations(core: Path) -> list[str]:
    """One line per broken rule, with file and line."""
    names: dict[Path, str] = {}
    for path in sorted(core.rglob("*.py")):
        parts = ("core", *path.relative_to(core).with_suffix("").parts)
        names[path] = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    modules = set(names.values())
    found = []
    for path, name in names.items():
        where = path.relative_to(core.parent)
        here = rank(name)
        if here is None:
            found.append(f"{where}: unknown module; give it a place in ORDER")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node, target in imports(tree, package, modules):
            top = target.split(".")[0]
            lazily = name == "core.tree_picture" and node not in tree.body
            if top in FORBIDDEN and not (top == "pydot" and lazily):
                found.append(f"{where}:{node.lineno}: core must not import {top}")
            elif top == "core":
                there = rank(target)
                if there is None:
                    found.append(f"{where}:{node.lineno}: {target} has no place in ORDER")
                elif not may_import(here, there):
                    found.append(f"{where}:{node.lineno}: {target} is not above {name}")
        found += [
            f"{where}:{node.lineno}: core must not print"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ]
    return list(dict.fromkeys(found))


def test_core_keeps_its_layers() -> None:
    assert violations(CORE) == []


GOOD = {
    "__init__.py": "",
    "errors.py": "import os",
    "radix.py": "from core.errors import X\nfrom core import blockstore, format as f",
    "blockstore.py": "from .device import Y\nfrom core import __version__",
    "device.py": "import core.errors",
    "format.py": "",
    "tree_picture.py": "def draw():\n    import pydot",
    "tap/__init__.py": "",
    "tap/protocol.py": "import struct",
    "tap/replies.py": "from . import protocol\nfrom .export import Export",
    "tap/export.py": "from ..vdi import Vdi\nfrom core.tap.protocol import MAGIC",
    "tap/server.py": "from .replies import R\nfrom ..errors import X",
    "vdi.py": "",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "core" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "core"


def test_layers_kept_are_accepted(tmp_path: Path) -> None:
    assert violations(plant(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("device.py", "from core.vdi import Vdi", "core/device.py:1: core.vdi is not above"),
        ("device.py", "\nimport core.vdi as v", "core/device.py:2: core.vdi is not above"),
        ("device.py", "from core import vdi", "core.vdi is not above core.device"),
        ("device.py", "from . import vdi", "core.vdi is not above core.device"),
        ("device.py", "from .vdi import Vdi", "core.vdi is not above core.device"),
        ("device.py", "def f():\n    import core.vdi", "core/device.py:2: core.vdi is not"),
        ("device.py", "import core.device", "core.device is not above core.device"),
        ("vdi.py", "from core.tap.protocol import X", "core.tap.protocol is not above core.vdi"),
        ("__init__.py", "from core.errors import X", "core.errors is not above core"),
        ("tap/__init__.py", "from . import server", "core.tap.server is not above core.tap"),
        ("tap/protocol.py", "from .replies import R", "core.tap.replies is not above"),
        ("tap/replies.py", "from ..tap import server", "core.tap.server is not above"),
        ("helpers.py", "", "core/helpers.py: unknown module"),
        ("extra/radix.py", "", "core/extra/radix.py: unknown module"),
        ("vdi.py", "import core.helpers", "core.helpers has no place in ORDER"),
        ("vdi.py", "import rich.table", "core must not import rich"),
        ("vdi.py", "def f():\n    from click import echo", "core must not import click"),
        ("vdi.py", "from plxsh.render import table", "core must not import plxsh"),
        ("vdi.py", "def f():\n    import pydot", "core must not import pydot"),
        ("tree.py", "import pydot", "core must not import pydot"),
        ("vdi.py", "def f():\n    print('hello')", "core/vdi.py:2: core must not print"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, name: str, text: str, message: str) -> None:
    found = violations(plant(tmp_path, {**GOOD, name: text}))
    assert len(found) == 1
    assert message in found[0]
