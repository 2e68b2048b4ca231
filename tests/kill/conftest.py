"""What kills need: stores to break."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kill.jobs import Stores


@pytest.fixture(scope="session", autouse=True)
def _strace() -> None:
    if shutil.which("strace") is None:
        pytest.fail("these tests need strace: install the package 'strace'")


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    """Makes small stores."""
    return Stores(tmp_path)
