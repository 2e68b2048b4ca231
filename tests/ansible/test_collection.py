"""The collection as its reviewers judge it: sanity, documentation, lint, build and install."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
MODULES = sorted(p.stem for p in (ROOT / "ansible_collection/plugins/modules").glob("*.py"))


def run(words: list[Any], folder: Path, variables: dict[str, str]) -> str:
    ran = subprocess.run(
        words, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_sanity(collection: Path, environment: dict[str, str]) -> None:
    """All checks of ansible-test, without a file that ignores some."""
    assert not list(collection.glob("tests/sanity/*"))
    ansible_test(collection, environment, "sanity")


def test_units(collection: Path, environment: dict[str, str]) -> None:
    ansible_test(collection, environment, "units", "--num-workers", "1")


def ansible_test(collection: Path, environment: dict[str, str], *words: str) -> None:
    home = BIN.parent / "ansible-test"
    assert (home / ".stamp").exists(), "run scripts/setup.sh sanity"
    kept = {"HOME": str(home), "PATH": environment["PATH"], "LC_ALL": "C.UTF-8"}
    # No index: what was not installed beforehand is not fetched now.
    line = [BIN / "ansible-test", *words, "--color", "no", "--python", VERSION]
    run(line, collection, {**kept, "PIP_NO_INDEX": "1"})


def test_documentation(collection: Path, environment: dict[str, str]) -> None:
    words = ["antsibull-docs", "lint-collection-docs", "--plugin-docs", "--skip-rstcheck"]
    run([*words, collection], collection, environment)
    told = json.loads(run(["ansible-doc", "--json", "--list", "-t", "module",
                           "parallax.storage"], collection, environment))  # fmt: skip
    assert sorted(told) == [f"parallax.storage.{name}" for name in MODULES]
    run([BIN / "antsibull-changelog", "lint"], collection, environment)


@pytest.mark.parametrize("name", MODULES)
def test_every_option_and_key_is_described(name: str) -> None:
    """What ansible-test lets pass: examples of each module, types and descriptions of keys."""
    texts = assigned(name)
    described = yaml.safe_load(texts["DOCUMENTATION"])
    assert described["module"] == name
    for option in described.get("options", {}).values():
        assert option.get("description") or option.keys() <= {"aliases", "required"}
    assert returned(yaml.safe_load(texts["RETURN"]))
    assert any(f"parallax.storage.{name}" in task for task in yaml.safe_load(texts["EXAMPLES"]))


def assigned(name: str) -> dict[str, str]:
    tree = ast.parse((ROOT / f"ansible_collection/plugins/modules/{name}.py").read_text())
    return {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id in ("DOCUMENTATION", "EXAMPLES", "RETURN")
    }


def returned(keys: dict[str, Any]) -> bool:
    return all(
        key["description"] and key["type"] and returned(key.get("contains", {}))
        for key in keys.values()
    )


def test_examples_pass_the_production_profile(environment: dict[str, str], tmp_path: Path) -> None:
    plays = [
        {
            "name": f"Examples of {name}",
            "hosts": "all",
            "tasks": yaml.safe_load(assigned(name)["EXAMPLES"]),
        }
        for name in MODULES
    ]
    readme = (ROOT / "ansible_collection/README.md").read_text()
    plays += yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0])
    play = tmp_path / "play.yml"
    play.write_text("---\n" + yaml.dump(plays, Dumper=Indented, sort_keys=False))
    words = [BIN / "ansible-lint", "--offline", "--profile", "production", "--nocolor", play]
    run(words, tmp_path, environment)


class Indented(yaml.SafeDumper):
    """Lists are indented, as the linter wants them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)


def test_build_and_install(collection: Path, environment: dict[str, str], tmp_path: Path) -> None:
    galaxy = BIN / "ansible-galaxy"
    run([galaxy, "collection", "build", "--output-path", tmp_path], collection, environment)
    (built,) = tmp_path.glob("parallax-storage-*.tar.gz")
    variables = {**environment, "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "installed")}
    del variables["PYTHONPATH"]  # where the copy is
    run(
        [galaxy, "collection", "install", "--offline", "-p", tmp_path / "installed", built],
        tmp_path,
        variables,
    )
    shown = run([BIN / "ansible-doc", "parallax.storage.vdi"], tmp_path, variables)
    assert os.path.join(tmp_path, "installed") in shown
