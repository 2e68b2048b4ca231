"""What is asked before data is lost: it names the loss and who depends on it."""

from __future__ import annotations

import pytest
from shell.conftest import Plx
from shell.test_main import on_terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # a fork beside threads of the tests
]


def asked(*args: str, answer: str) -> tuple[int, str]:
    """Return the exit status, and what was shown as one line."""
    status, shown = on_terminal(*args, answer=answer)
    return status, " ".join(shown.split())


def test_deleting_a_vdi_names_its_snapshots_and_can_be_undone(plx: Plx) -> None:
    plx("-y", "vdi", "delete", "web")
    for label in ("second", "third"):
        plx("snap", "create", "base", "--label", label)
    status, shown = asked("vdi", "delete", "base", "--snapshots", answer="n\n")
    assert (
        "deleting VDI 0 'base' (64 KiB, 0 B of its own, 3 snapshots: 'third', 'second', 'clean');"
        " 'vdi restore' brings it back until its space is collected. Go on? [y/N]: "
    ) in shown
    assert status == 130
    assert "base" in plx("vdi", "list").out
    assert asked("vdi", "delete", "base", "--snapshots", answer="y\n")[0] == 0
    assert plx("vdi", "list").out == ""


def test_many_snapshots_are_counted(plx: Plx) -> None:
    for _ in range(6):
        plx("snap", "create", "web")
    told = plx("-n", "vdi", "delete", "web", "--snapshots").out
    assert ", 6 snapshots: " in told
    assert told.endswith(" and 1 more)\n")


def test_a_snapshot_goes_only_when_its_label_is_typed(plx: Plx, snapshot: tuple[str, str]) -> None:
    for answer in ("\n", "y\n", "Clean\n"):
        status, shown = asked("snap", "delete", *snapshot, answer=answer)
        assert status == 130
        assert f"deleting snapshot {'.'.join(snapshot)} 'clean' of VDI 0 'base' (taken 2" in shown
        assert "12 KiB of its own); clones of it keep all they have: 'web'" in shown
        assert "This cannot be undone. Type clean to go on: " in shown
    assert plx("snap", "list", "base").out
    assert asked("snap", "delete", *snapshot, answer="clean\n")[0] == 0
    assert plx("snap", "list", "base").out == ""


def test_a_snapshot_without_a_label_goes_by_its_id(plx: Plx) -> None:
    where = ".".join(plx("snap", "create", "web").out.split())
    status, shown = asked("snap", "delete", where, answer=f"{where}\n")
    assert status == 0
    assert f"Type {where} to go on: " in shown
    assert "clones of it" not in shown


@pytest.mark.usefixtures("plx")
def test_cutting_data_off_needs_the_name() -> None:
    status, shown = asked("vdi", "resize", "base", "4K", "--force", answer="y\n")
    assert status == 130
    assert "making VDI 0 'base' 4 KiB large loses 8 KiB of data; 1 snapshot of it stays" in shown
    assert "Type base to go on: " in shown
    assert asked("vdi", "resize", "base", "4K", "--force", answer="base\n")[0] == 0
    assert asked("vdi", "resize", "base", "0", "--force", answer="")[0] == 0  # nothing to lose


@pytest.mark.usefixtures("plx")
def test_rolling_back_needs_the_name(snapshot: tuple[str, str]) -> None:
    status, shown = asked("snap", "rollback", "base", *snapshot, answer="\n")
    assert status == 130
    assert "loses the 8 KiB written since its newest snapshot" in shown
    assert asked("snap", "rollback", "base", *snapshot, answer="base\n")[0] == 0
    shown = asked("snap", "rollback", "base", *snapshot, answer="\n")[1]
    assert "loses nothing that no snapshot has" in shown


@pytest.mark.usefixtures("plx")
def test_what_is_refused_is_not_asked_about() -> None:
    status, shown = asked("vdi", "delete", "base", "--snapshots", answer="")
    assert status == 4
    assert "has clones: 'web'" in shown
    assert "Go on?" not in shown
