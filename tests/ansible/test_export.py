"""Disconnecting clients, and seeing who has what open: beside a tap, with two, with none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.tap import NbdError, RawClient, free_port, short_folder

pytestmark = pytest.mark.slow

Host = Any
HERE = os.uname().nodename
LEASE = 10  # a tap may not be given the processor for some seconds


@contextmanager
def service(host: Host, ready: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A command of plxsh that runs until the end of the block."""
    line = [str(host.plxsh), "-v", "--store", str(host.store), *map(str, words)]
    with subprocess.Popen(line, env=host.environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = ""
            while ready not in said:
                said = process.stderr.readline()
                assert said, process.wait()
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture
def filled(stored: Host) -> Host:
    """A store with the VDIs `web` and `mail` and the snapshot `web@v1`."""
    for name in ("web", "mail"):
        stored.plx("vdi", "create", name, "--size", "1M")
    stored.plx("snap", "create", "web", "--label", "v1")
    return stored


@pytest.fixture
def tap(filled: Host) -> Iterator[str]:
    """The socket of a tap of this host."""
    with short_folder() as folder:
        filled.environment["PARALLAX_RUN_DIR"] = str(folder)
        filled.always["wait"] = 90  # for a tap that is not given the processor
        with service(filled, "serving", "tap", "serve"):
            yield str(folder / "nbd.sock")


def refused(host: Host, module: str, **params: object) -> dict[str, Any]:
    """What a module answers that must fail, in check mode too; the tap may commit meanwhile."""
    predicted, told = (host(module, check=check, wait=0, **params) for check in (True, False))
    assert predicted.get("failed"), predicted
    assert told.get("failed"), told
    assert predicted["msg"] == told["msg"]
    found: dict[str, Any] = told
    return found


def test_a_client_is_disconnected_once(filled: Host, tap: str) -> None:
    with RawClient(tap) as web, RawClient(tap) as mail, RawClient(tap) as reader:
        assert web.go("web").write(0, b"kept") == 0
        mail.go("mail")
        reader.go("web@v1")
        done = filled.does("export", vdi="web")
        assert done["changed"]
        (gone,) = done["disconnected"]
        assert (gone["export"], gone["peer"], gone["host"]) == ("web", f"pid {os.getpid()}", HERE)
        before = {"clients": [f"pid {os.getpid()} on {HERE}"]}
        assert done["diff"] == {"before": before, "after": {"clients": []}}
        assert web.hung_up()
        assert mail.read(0, 4) == bytes(4)
        done = filled.does("export", vdi="web", snapshot="v1", clients=[str(os.getpid())])
        assert [client["access"] for client in done["disconnected"]] == ["r"]
        assert reader.hung_up()
    with RawClient(tap) as again:
        assert again.go("web").read(0, 4) == b"kept"


def test_check_mode_disconnects_nobody(filled: Host, tap: str) -> None:
    with RawClient(tap) as web:
        web.go("web")
        assert filled("export", check=True, vdi="web", refuse=600)["changed"]
        assert web.write(0, b"on") == 0
        with RawClient(tap) as other:
            other.go("web")


def test_other_clients_stay(filled: Host, tap: str) -> None:
    with RawClient(tap) as web:
        web.go("web")
        done = filled.does("export", vdi="web", clients=["10.0.0.7", "1", f"x{os.getpid()}"])
        assert (done["changed"], done["disconnected"]) == (False, [])
        assert web.write(0, b"on") == 0
        assert "empty" in refused(filled, "export", vdi="web", clients=[])["msg"]
        told = refused(filled, "export", vdi="web", clients=["1"], refuse=5)
        assert "mutually exclusive" in told["msg"]
        assert "600" in refused(filled, "export", vdi="web", refuse=601)["msg"]
        assert web.write(0, b"on") == 0


def test_a_disk_is_retired_and_nobody_comes_back(filled: Host, tap: str) -> None:
    with RawClient(tap) as client:
        client.go("mail")
        assert "is open" in refused(filled, "vdi", name="mail", state="absent")["msg"]
        assert filled("export", vdi="mail", refuse=60)["changed"]
        with RawClient(tap) as late, pytest.raises(NbdError, match="an operator has"):
            late.go("mail")
        assert filled("vdi", name="mail", state="absent")["changed"]
        assert client.hung_up()
    again = filled("export", vdi="mail", refuse=60)  # when the play is run once more
    assert (again["changed"], again["disconnected"]) == (False, [])
    filled("export", vdi="web", refuse=60)
    filled("export", vdi="web", refuse=0)
    with RawClient(tap) as client:
        client.go("web")


def test_nobody_is_connected_without_a_tap(filled: Host) -> None:
    assert not filled.does("export", vdi="web")["changed"]
    for words in ({"vdi": "web", "snapshot": "v1"}, {"vdi": "nobody"},
                  {"vdi": "web", "snapshot": "nothing"}):  # fmt: skip
        assert filled("export", **words)["disconnected"] == []
    nowhere = str(filled.folder / "none")
    assert refused(filled, "export", vdi="web", store=nowhere)["code"] == "not_found"


def test_who_cannot_be_asked_is_no_reason_to_go_on(filled: Host, tap: str) -> None:
    with RawClient(tap) as client:
        client.go("web")
        filled.environment["PARALLAX_RUN_DIR"] = str(filled.folder)
        assert refused(filled, "export", vdi="web")["code"] == "in_use"
        assert client.write(0, b"on") == 0


# -- export_info -----------------------------------------------------------------------


def test_who_has_what_open(filled: Host, tap: str) -> None:
    with RawClient(tap) as web, RawClient(tap) as reader:
        web.go("web")
        reader.go("web@v1")
        told = filled.does("export_info")
        assert told["serving"]
        assert sorted(client["export"] for client in told["connections"]) == ["web", "web@v1"]
        (holder,) = told["holders"]
        assert (holder["host"], holder["purpose"]) == (HERE, "plxsh tap serve")
        assert len(filled("export_info", vdi="web")["connections"]) == 2
        told = filled("export_info", vdi="mail")
        assert (told["connections"], told["holders"]) == ([], [])
        other = filled.folder / "other.dat"
        shutil.copyfile(filled.store, other)
        assert filled("export_info", store=str(other))["connections"] == []
        assert "is no VDI" in refused(filled, "export_info", vdi="nobody")["msg"]


def test_without_a_tap_nothing_is_open(filled: Host) -> None:
    told = filled.does("export_info", socket=str(filled.folder / "none"))
    assert (told["serving"], told["connections"], told["holders"]) == (False, [], [])


def test_two_hosts_and_their_lock_master(filled: Host) -> None:
    with ExitStack() as stack:
        folders = [stack.enter_context(short_folder()) for _ in range(2)]
        address = f"127.0.0.1:{free_port()}"
        state = folders[0] / "epoch"
        words = ("--listen", address, "--state", state, "--lease", LEASE)
        master = stack.enter_context(service(filled, "listens on", "lock", "master", *words))
        taps = [str(folder / "nbd.sock") for folder in folders]
        for folder, unix in zip(folders, taps, strict=True):
            filled.environment["PARALLAX_RUN_DIR"] = str(folder)
            serve = ("--lock-master", address, "tap", "serve", "--unix", unix)
            stack.enter_context(service(filled, "serving", *serve))
        filled.always.update(lock_master=address, wait=90)
        first, second = (stack.enter_context(RawClient(unix)) for unix in taps)
        reader = stack.enter_context(RawClient(taps[0]))
        first.go("web")
        second.go("mail")
        reader.go("web@v1")
        told = filled("export_info", socket=taps[1])
        assert [client["export"] for client in told["connections"]] == ["mail"]
        assert sorted(holder["vdi"] for holder in told["holders"]) == [0, 1]
        assert len({holder["process"] for holder in told["holders"]}) == 2
        for name, client in (("web", first), ("mail", second)):
            assert filled("export", vdi=name)["changed"]
            assert client.hung_up()
        assert filled.does("export", vdi="web", snapshot="v1")["changed"]
        assert reader.hung_up()
        until = time.monotonic() + 90  # a VDI is committed before it is given up
        while holders := filled("export_info", socket=taps[1])["holders"]:
            assert time.monotonic() < until, holders
        master.send_signal(signal.SIGTERM)
        master.wait(60)
        told = filled("export_info", socket=taps[1])
        assert "holders" not in told
        assert "cannot be asked" in str(told["warnings"])
        assert refused(filled, "export", vdi="web")["code"] == "io"


def test_in_a_play(filled: Host, tap: str) -> None:
    task = {"parallax.storage.export": {"store": str(filled.store), "vdi": "web", "client": "1"}}
    with RawClient(tap) as web:
        web.go("web")
        ran = filled.play([task, {"parallax.storage.export": {
            "store": str(filled.store), "vdi": "web"}}], "--diff")  # fmt: skip
        assert ran.status == 0, ran.shown
        assert ran.changed == [False, True]
        assert web.hung_up()
