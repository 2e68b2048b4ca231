"""`snap every`: schedules as commands set and show them."""

from __future__ import annotations

import pytest
from shell.conftest import Plx

from core.session import Session


def tick(path: str, count: int) -> None:
    """Take scheduled snapshots of base, as a tap does."""
    with Session.open(path) as session, session.opened(session.registry.find("base")) as vdi:
        for number in range(count):
            vdi.write(number % 4 * 4096, number.to_bytes(4, "big"))
            vdi.snapshot(scheduled=True)
            vdi.drop_scheduled()


def test_a_schedule_is_set_shown_and_ended(plx: Plx) -> None:
    done = plx("-o", "json", "snap", "every", "base", "10ms", "--keep", "100")
    schedule = {"schedule": "10ms", "schedule_ns": 10_000_000, "schedule_keep": 100}
    assert done.json["vdi"] == {"id": 0, "name": "base", **schedule}
    shown = plx("-o", "json", "vdi", "show", "base").json["vdi"]
    assert schedule.items() <= shown.items()
    listed = {vdi["name"]: vdi for vdi in plx("-o", "json", "vdi", "list").json["vdis"]}
    assert schedule.items() <= listed["base"].items()
    assert listed["web"]["schedule"] is listed["web"]["schedule_keep"] is None
    assert "10ms" in plx("-o", "table", "vdi", "show", "base").out
    assert "Snapshot every" not in plx("-o", "table", "vdi", "show", "web").out
    plx("snap", "every", "base", "off")
    assert plx("-o", "json", "vdi", "show", "base").json["vdi"]["schedule"] is None


def test_the_list_marks_those_of_a_schedule(plx: Plx) -> None:
    assert "Scheduled" not in plx("-o", "table", "snap", "list", "base").out
    plx("snap", "every", "base", "1s", "--keep", "2")
    tick(plx.path, 5)
    plx("snap", "create", "base", "--label", "mine")
    shown = plx("-o", "json", "snap", "list", "base").json["snapshots"]
    assert [(s["label"], s["scheduled"]) for s in shown] == [
        ("mine", False),
        (None, True),
        (None, True),
        ("clean", False),
    ]
    assert "Scheduled" in plx("-o", "table", "snap", "list", "base").out


def test_who_keeps_less_is_asked(plx: Plx) -> None:
    plx("snap", "every", "base", "1s", "--keep", "5")
    tick(plx.path, 5)
    plx("snap", "every", "base", "1s", "--keep", "5")
    refused = plx("snap", "every", "base", "1s", "--keep", "2", status=2)
    assert "drops 3 scheduled snapshots" in refused.err
    plx("-y", "snap", "every", "base", "1s", "--keep", "2")
    assert len(plx("-o", "json", "snap", "list", "base").json["snapshots"]) == 6
    plx("snap", "every", "base", "off")
    tick(plx.path, 1)
    assert len(plx("-o", "json", "snap", "list", "base").json["snapshots"]) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["10ms"], "how many"),
        (["off", "--keep", "3"], "keeps nothing"),
        (["5ms", "--keep", "3"], "too short"),
        (["often", "--keep", "3"], "is no interval"),
        (["1s", "--keep", "0"], "at least 1"),
    ],
)
def test_what_is_no_schedule_is_refused(plx: Plx, words: list[str], message: str) -> None:
    before = plx.bytes()
    assert message in plx("snap", "every", "base", *words, status=2).err
    assert plx.bytes() == before
