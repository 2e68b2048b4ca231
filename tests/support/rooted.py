"""What tests need that only root can make: skipped for others, but never on CI."""

from __future__ import annotations

import os

import pytest

SIMULATED_HOSTS = pytest.mark.skipif(
    os.geteuid() != 0 and "CI" not in os.environ, reason="only root can make simulated hosts"
)
SECOND_USER = pytest.mark.skipif(
    os.geteuid() != 0 and "CI" not in os.environ, reason="only root can be another user as well"
)
NOBODY = 65534
