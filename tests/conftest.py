"""What every test shares: how hard Hypothesis searches, and when `long` tests run.

HYPOTHESIS_PROFILE is `fast` (the default, `make check`) or `ci` (`make test`).
PARALLAX_LONG=1 lets the tests marked `long` run and searches with profile `long`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import zip_longest
from reprlib import Repr

import pytest
from _pytest.assertion import util
from hypothesis import HealthCheck, settings

LONG = os.environ.get("PARALLAX_LONG") == "1"

# No profile judges by the clock: a loaded machine is no bug.
_untimed = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", _untimed, max_examples=25, stateful_step_count=30)
settings.register_profile("ci", _untimed, max_examples=200, stateful_step_count=50)
settings.register_profile("long", _untimed, max_examples=20_000, stateful_step_count=100)
settings.load_profile("long" if LONG else os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(scope="session", autouse=True)
def run_folder() -> Iterator[str]:
    """A short folder for sockets and state, which every tap and tool that a test starts uses."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="plx")
        patch.setenv("PARALLAX_RUN_DIR", folder)
        patch.setenv("PARALLAX_STATE_DIR", folder)
        yield folder
        shutil.rmtree(folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if LONG:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


LENGTHY = 10_000
"""Characters from which on pytest would look for all differences for minutes."""
SHORT = Repr()
SHORT.maxother = SHORT.maxstring = SHORT.maxlong = 100


def compared(
    full: Callable[[str, object, object], str | None], op: str, left: object, right: object
) -> str | None:
    """Say why a comparison failed, as pytest does; of lengthy things only where they first differ.

    pytest has no setting for that: on CI it writes all differences, and the planted mistakes that
    tests have to find end in comparisons of whole disks.
    """
    if max(len(repr(left)), len(repr(right))) < LENGTHY:
        return full(op, left, right)
    said = f"{SHORT.repr(left)} {op} {SHORT.repr(right)}"
    if op == "==" and isinstance(left, SEQUENCES) and isinstance(right, SEQUENCES):
        pairs = enumerate(zip_longest(left, right))
        at, (one, other) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
        said += f"\n~first at {at}: {SHORT.repr(one)} and {SHORT.repr(other)}"
    return said.replace("%", "%%")


SEQUENCES = (bytes, bytearray, memoryview, str, list, tuple)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    full = util._reprcompare
    assert full is not None
    util._reprcompare = lambda op, left, right: compared(full, op, left, right)
    try:
        return (yield)
    finally:
        util._reprcompare = full
