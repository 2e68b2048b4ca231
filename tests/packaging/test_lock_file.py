"""requirements.lock: what the services run with. It fits pyproject.toml and names every file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = {
    canonicalize_name(entry[1]): entry[0]
    for entry in re.finditer(r"^([\w.-]+)==.*\n(?:    .*\n?)*", LOCK, re.MULTILINE)
}
AGAIN = "run 'make lock' and commit what it writes"


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_it_has_a_release_that_the_project_allows(needed: Requirement) -> None:
    entry = LOCKED.get(canonicalize_name(needed.name), "")
    found = re.match(r"[\w.-]+==(\S+)", entry)
    assert found, f"{needed.name} is not in the lock file: {AGAIN}"
    assert Version(found[1]) in needed.specifier, f"{found[0]} is not {needed}: {AGAIN}"


def test_it_has_nothing_that_nobody_asks_for() -> None:
    wanted = {canonicalize_name(needed.name) for needed in NEEDED}
    for name, entry in LOCKED.items():
        askers = set(re.findall(r"^    #(?: via)? +([\w.-]+)", entry, re.MULTILINE)) - {"via"}
        assert name in wanted or askers & LOCKED.keys(), f"{name} by {askers or 'nobody'}: {AGAIN}"


def test_it_names_files_by_their_hashes_and_no_place() -> None:
    for name, entry in LOCKED.items():
        assert entry.count("--hash=sha256:") >= 2, name  # a wheel and the sources, or many wheels
    rest = re.sub(r"^( +#.*|#.*|[\w.-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?)$", "", LOCK,
                  flags=re.MULTILINE)  # fmt: skip
    assert rest.strip() == ""
    assert "://" not in LOCK


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_the_next_major_release_is_not_taken_unseen(needed: Requirement) -> None:
    """Why each ends where it does is told beside what it is for."""
    ends = [spec for spec in needed.specifier if spec.operator == "<"]
    assert len(ends) == 1, f"{needed} has no upper bound"
    why = (ROOT / "docs/decisions/0002-dependencies.md").read_text()
    name = canonicalize_name(needed.name).replace("-", "[-_]")
    assert re.search(rf"^\| {name} \|.*<{re.escape(ends[0].version)}\b", why, re.MULTILINE)
