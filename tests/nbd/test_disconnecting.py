"""Clients that an operator disconnects: answered first, committed last, refused if asked for."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_locks import FakeLocks, tap_under, wait_for
from support.tap import CONTENTS, NbdError, RawClient, contents_of, make_store

from core.errors import BadRequest, InUse, NoSpace
from core.session import Session
from core.tap import protocol as p
from core.tap.disconnecting import _is_meant

pytestmark = pytest.mark.timeout(120)
LONG = 3600.0
"""Seconds between commits of the tap by itself: none in a test."""


@pytest.fixture
def locks() -> FakeLocks:
    return FakeLocks()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    return make_store(tmp_path)


def meant(store: str, name: str, peers: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """The argument that names an export."""
    with Session.open(store, "read") as session:
        vdi, at, _ = name.partition("@")
        snapshot = str(session.find_snapshot(name).id) if at else None
        record = session.registry.find(vdi)
        found = {"vdi": record.id, "uuid": record.uuid.hex(), "snapshot": snapshot}
        return {**found, "peers": peers, **more}


def ask(locks: FakeLocks, method: str, argument: dict[str, Any]) -> list[dict[str, Any]]:
    clients = locks.ask_for("session/1", method, **argument)["clients"]
    assert isinstance(clients, list)
    return clients


def test_all_clients_of_an_export_go_and_what_they_wrote_is_committed(
    store: str, locks: FakeLocks
) -> None:
    clone = meant(store, "clone")
    with (
        tap_under(locks, store, commit_interval=LONG) as (_, unix, _),
        RawClient(unix) as one,
        RawClient(unix) as two,
        RawClient(unix) as other,
    ):
        assert one.go("clone").write(0, b"one") == 0
        assert two.go("clone").write(8192, b"two") == 0
        assert other.go("empty").write(0, b"stays") == 0
        told = ask(locks, "clients", clone)
        assert [(c["export"], c["access"]) for c in told] == [("clone", "w")] * 2
        assert contents_of(store, "clone")[:3] == CONTENTS[:3]
        assert ask(locks, "disconnect", clone) == told
        assert f"vdi/{clone['vdi']}" not in locks.held  # and given up
        data = contents_of(store, "clone")
        assert (data[:3], data[8192:8195]) == (b"one", b"two")
        assert one.hung_up()
        assert two.hung_up()
        assert other.read(0, 5) == b"stays"
        assert ask(locks, "disconnect", clone) == []
        with RawClient(unix) as again:  # they may come back
            assert again.go("clone").read(0, 3) == b"one"


def test_readers_of_a_snapshot_go_and_writers_of_its_vdi_stay(store: str, locks: FakeLocks) -> None:
    snapshot = meant(store, "golden@base")
    with (
        tap_under(locks, store) as (_, unix, _),
        RawClient(unix) as reader,
        RawClient(unix) as writer,
    ):
        reader.go("golden@base")
        writer.go("golden")
        (told,) = ask(locks, "disconnect", snapshot)
        assert (told["export"], told["access"]) == ("golden@base", "r")
        assert reader.hung_up()
        assert writer.write(0, b"on") == 0


@pytest.mark.parametrize("kind", [p.CMD_WRITE, p.CMD_FLUSH])
def test_no_write_that_was_answered_is_lost(store: str, locks: FakeLocks, kind: int) -> None:
    """Clients write without a pause while they are disconnected, and count the answers."""
    empty = meant(store, "empty")
    answered: dict[int, int] = {}
    block, depth, clients = 4096, 8, 3

    def work(unix: str, number: int, begun: threading.Event) -> None:
        with RawClient(unix) as client:
            client.go("empty")
            sent, done = 0, 0
            try:
                while True:
                    while sent - done < depth:
                        sent += 1
                        data = sent.to_bytes(8, "big") * (block // 8)
                        client.send(p.CMD_WRITE, number * block, data=data)
                        if kind == p.CMD_FLUSH:
                            client.send(p.CMD_FLUSH)
                    assert client.reply().flags == 0
                    if kind == p.CMD_FLUSH:
                        assert client.reply().flags == 0
                    done += 1
                    answered[number] = done
                    if done == 50:
                        begun.set()
            except OSError:
                pass

    with tap_under(locks, store, commit_interval=LONG) as (_, unix, _):
        events = [threading.Event() for _ in range(clients)]
        threads = [
            threading.Thread(target=work, args=(unix, number, event))
            for number, event in enumerate(events)
        ]
        for thread in threads:
            thread.start()
        for event in events:
            assert event.wait(60)
        assert len(ask(locks, "disconnect", empty)) == clients
        data = contents_of(store, "empty")  # while the tap goes on: it was committed
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    for number in range(clients):
        kept = int.from_bytes(data[number * block : number * block + 8], "big")
        assert kept >= answered[number] >= 50, number


def test_a_client_that_takes_no_replies_is_not_waited_for(
    store: str, locks: FakeLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tap.farewell.LAST_REPLIES", 0.2)
    golden = meant(store, "golden")
    with tap_under(locks, store) as (tap, unix, _), RawClient(unix) as deaf:
        deaf.go("golden")
        deaf.sock.sendall(b"".join(deaf.request(p.CMD_READ, 0, 1 << 20) for _ in range(32)))
        wait_for(lambda: any(client.blocked for client in tap._clients))
        assert len(ask(locks, "disconnect", golden)) == 1


@pytest.mark.slow
def test_only_some_clients(store: str, locks: FakeLocks) -> None:
    with tap_under(locks, store, tcp=("127.0.0.1", 0)) as (tap, unix, _), RawClient(unix) as here:
        (port,) = (address[1] for address in tap.addresses if isinstance(address, tuple))
        there = subprocess.Popen(
            ["qemu-io", "-f", "raw", f"nbd://127.0.0.1:{port}/clone"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            here.go("clone")
            wait_for(lambda: len(ask(locks, "clients", meant(store, "clone"))) > 1)
            for stranger in ("1", "10.0.0.7", "", "pid"):
                assert ask(locks, "disconnect", meant(store, "clone", (stranger,))) == []
            (told,) = ask(locks, "disconnect", meant(store, "clone", ("x", "127.0.0.1")))
            assert told["peer"].startswith("127.0.0.1:")
            assert here.write(0, b"on") == 0
            (told,) = ask(locks, "disconnect", meant(store, "clone", (str(os.getpid()),)))
            assert told["peer"] == f"pid {os.getpid()}"
            assert here.hung_up()
        finally:
            there.communicate(b"quit\n", timeout=60)


@pytest.mark.parametrize(
    ("peer", "wanted", "yes"),
    [
        ("pid 12", "12", True),
        ("pid 12", "pid 12", True),
        ("pid 12", "1", False),
        ("pid 12", "", False),
        ("10.0.0.7:5000", "10.0.0.7", True),
        ("10.0.0.7:5000", "10.0.0.7:5000", True),
        ("10.0.0.7:5000", "10.0.0.7:500", False),
        ("10.0.0.7:5000", "10.0.0.77", False),
        ("10.0.0.7:5000", "5000", False),
        ("[::1]:5000", "::1", True),
        ("[::1]:5000", "[::1]", True),
        ("[::1]:5000", "[::1]:5000", True),
        ("[::1]:5000", "", False),
    ],
)
def test_who_is_meant(peer: str, wanted: str, yes: bool) -> None:
    assert _is_meant(peer, (wanted,)) is yes
    assert _is_meant(peer, ())


def test_an_export_can_be_refused_for_a_while(store: str, locks: FakeLocks) -> None:
    clone = meant(store, "clone")
    with tap_under(locks, store) as (_, unix, _), RawClient(unix) as client:
        client.go("clone")
        assert len(ask(locks, "disconnect", {**clone, "refuse": 600})) == 1
        for name in ("clone", str(clone["vdi"])):
            with RawClient(unix) as late, pytest.raises(NbdError, match="an operator has VDI"):
                late.go(name)
        with RawClient(unix) as other:
            other.go("golden@base")
        assert ask(locks, "disconnect", clone) == []  # says nothing of refusing
        with RawClient(unix) as late, pytest.raises(NbdError):
            late.go("clone")
        assert ask(locks, "disconnect", {**clone, "refuse": 0}) == []
        with RawClient(unix) as late:
            late.go("clone")


def test_a_refusal_is_that_of_one_vdi_and_not_of_its_number(store: str, locks: FakeLocks) -> None:
    clone = meant(store, "clone")
    other = {**clone, "uuid": "00" * 16, "refuse": 600}
    with tap_under(locks, store) as (_, unix, _), RawClient(unix) as client:
        client.go("clone")
        assert ask(locks, "clients", other) == ask(locks, "disconnect", other) == []
        with RawClient(unix) as late:
            late.go("clone")


def test_a_commit_that_fails_is_told(
    store: str, locks: FakeLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = meant(store, "clone")
    with (
        tap_under(locks, store, commit_interval=LONG) as (_, unix, session),
        RawClient(unix) as one,
    ):
        assert one.go("clone").write(0, b"kept") == 0
        with monkeypatch.context() as patch:

            def full(*_: object) -> None:
                raise NoSpace("the disk is full")

            patch.setattr(session, "begin_commit", full)
            with pytest.raises(NoSpace, match="the disk is full"):
                ask(locks, "disconnect", clone)
            assert one.hung_up()
            assert f"vdi/{clone['vdi']}" in locks.held
        with RawClient(unix) as again:  # nothing is lost
            assert again.go("clone").read(0, 4) == b"kept"
        wait_for(lambda: f"vdi/{clone['vdi']}" not in locks.held)
        assert contents_of(store, "clone")[:4] == b"kept"


def test_while_the_lease_has_lapsed_it_waits(store: str, locks: FakeLocks) -> None:
    clone = meant(store, "clone")
    with (
        tap_under(locks, store, commit_interval=0.2) as (tap, unix, _),
        RawClient(unix) as one,
    ):
        one.go("clone")
        assert one.write(0, b"late") == 0
        locks.lapse()
        wait_for(lambda: tap._shared.gate.shut)
        asked = locks.request("session/1", "disconnect", **clone)
        assert one.hung_up()
        with pytest.raises(TimeoutError):
            asked.result(0.5)
        locks.renew()
        assert '"pid ' in asked.result(60)
    assert contents_of(store, "clone")[:4] == b"late"


def test_two_who_ask_at_once_are_both_answered(store: str, locks: FakeLocks) -> None:
    clone = meant(store, "clone")
    with tap_under(locks, store, commit_interval=LONG) as (_, unix, _), RawClient(unix) as one:
        assert one.go("clone").write(0, b"both") == 0
        with locks.lock:
            asked = [locks.request("session/1", "disconnect", **clone) for _ in range(3)]
        for future in asked:
            future.result(60)
        assert contents_of(store, "clone")[:4] == b"both"
        assert f"vdi/{clone['vdi']}" not in locks.held


def test_a_vdi_on_its_way_to_another_host_is_left_alone(
    store: str, locks: FakeLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = meant(store, "clone")
    with tap_under(locks, store) as (tap, unix, _), RawClient(unix) as one:
        one.go("clone")
        export = tap._shared.exports.find(clone["vdi"])
        assert export is not None
        monkeypatch.setattr(export, "leaving", True)
        with pytest.raises(InUse, match="handed over"):
            ask(locks, "disconnect", clone)
        assert one.write(0, b"on") == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"vdi": "x"},
        {"uuid": "not hex"},
        {"peers": None},
        {"refuse": -1},
        {"refuse": 601},
        {"refuse": "long"},
        {"refuse": float("nan")},
    ],
)
def test_an_argument_that_makes_no_sense(
    store: str, locks: FakeLocks, wrong: dict[str, Any]
) -> None:
    argument = {**meant(store, "clone"), **wrong} if wrong else {}
    with tap_under(locks, store) as (_, unix, _), RawClient(unix) as one:
        one.go("clone")
        with pytest.raises(BadRequest):
            ask(locks, "disconnect", argument)
        assert one.write(0, b"on") == 0
