"""The block script does what libxl's contract says, whatever happens in the middle."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from xen.world import ODD, ODD_ENCODED, SCRIPT, SOCKET, World, listed, uuid_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_add_and_remove_each_once_and_again(world: World) -> None:
    path = world.disk(3)
    for _ in range(2):
        assert world.run("add", path) == 0, world.log()
        assert world.connected(path)
        assert world.attached() == {"nbd0": "0"}
        assert world.get(f"{path}/node") == str(world.folder / "dev/nbd0")
    for _ in range(2):
        assert world.run("remove", path) == 0, world.log()
        assert world.attached() == {}
        assert world.records() == set()
        assert world.get(f"{path}/node") == ""
    assert world.run("add", path) == 0
    assert world.connected(path)
    assert not (world.folder / "leaks").exists(), "a program keeps a lock's descriptor"


def test_each_vdi_gets_a_device_until_there_is_none(world: World) -> None:
    world.write("exports", "".join(listed(f"v{n}", n) for n in range(4)))
    paths = [world.disk(domain, str(domain)) for domain in range(4)]
    for path in paths[:3]:
        assert world.run("add", path) == 0
    assert world.attached() == {"nbd0": "0", "nbd1": "1", "nbd2": "2"}
    assert "all NBD devices are in use" in world.refused(paths[3], PLX_PATIENCE="1")
    assert world.run("remove", paths[1]) == 0
    assert world.run("add", paths[3]) == 0
    assert world.attached() == {"nbd0": "0", "nbd1": "3", "nbd2": "2"}


@pytest.mark.parametrize("both", [True, False])
def test_read_only(world: World, both: bool) -> None:
    reader = world.disk(1, mode="r")
    assert world.run("add", reader) == 0
    assert any(call.endswith("-name 0 -readonly") for call in world.calls())
    other = world.disk(2, mode="r" if both else "w")
    if both:
        assert world.run("add", other) == 0
        assert len(world.attached()) == 2
    else:
        said = world.refused(other)
        assert said == "VDI '0' is in use by domain 'vm1' (id 1), disk xvda, which may read it"


def test_a_snapshot_is_for_everybody_and_never_written(world: World) -> None:
    for domain in (1, 2):
        assert world.run("add", world.disk(domain, "0@16.0", "r")) == 0
    assert world.attached() == {"nbd0": "0@16.0", "nbd1": "0@16.0"}
    assert "is a snapshot and never written" in world.refused(world.disk(3, "0@16.0", "w"))


@pytest.mark.parametrize("named", ["web", "0", "000"])
def test_one_vdi_is_written_by_one_domain_however_it_is_named(world: World, named: str) -> None:
    first, second = world.disk(7, "0"), world.disk(8, named)
    assert world.run("add", first) == 0
    said = world.refused(second)
    assert said == f"VDI '{named}' is in use by domain 'vm7' (id 7), disk xvda, which may write it"
    assert world.get(f"{second}/hotplug-status") == "busy"
    assert world.run("remove", second) == 0
    assert world.connected(first)
    assert world.run("remove", first) == 0
    assert world.run("add", second) == 0
    assert world.connected(second)
    assert world.get(f"{second}/hotplug-error") == ""


def test_the_same_id_at_another_tap_is_another_vdi(world: World) -> None:
    assert world.run("add", world.disk(1)) == 0
    world.write("address", "/run/./other.sock")
    assert world.run("add", world.disk(2, target="nbd+unix:///0?socket=/run/./other.sock")) == 0
    assert "'vm2'" in world.refused(world.disk(3, target="nbd+unix:///0?socket=/run/other.sock"))
    world.write("address", "tcp:10.0.0.5:10809")
    assert world.run("add", world.disk(3, target="nbd://10.0.0.5/0")) == 0
    assert "is in use by domain 'vm3'" in world.refused(
        world.disk(4, target="nbd://10.0.0.5:10809/web")
    )


def test_two_domains_race_for_one_vdi(world: World) -> None:
    world.write("slow", "10")
    paths = [world.disk(domain, name) for domain, name in enumerate(("0", "web", "0", "web"), 1)]
    running = [world.start("add", path, PLX_PATIENCE="30") for path in paths]
    status = [one.wait() for one in running]
    assert sorted(status) == [0, 1, 1, 1]
    winner = status.index(0)
    assert world.connected(paths[winner])
    (export,) = world.attached().values()
    assert export in ("0", uuid_of(0))
    for loser in set(range(4)) - {winner}:
        assert f"is in use by domain 'vm{winner + 1}'" in world.get(f"{paths[loser]}/hotplug-error")


def test_one_disk_is_added_twice_at_once(world: World) -> None:
    world.write("slow", "10")
    path = world.disk(1)
    running = [world.start("add", path, PLX_PATIENCE="30") for _ in range(2)]
    assert [one.wait() for one in running] == [0, 0]
    assert world.connected(path)
    assert world.attached() == {"nbd0": "0"}


def test_domains_with_a_vdi_each_race_for_devices(world: World) -> None:
    world.write("exports", "".join(listed(f"v{n}", n) for n in range(3)))
    world.write("slow", "10")
    paths = [world.disk(domain, str(domain)) for domain in range(3)]
    running = [world.start("add", path) for path in paths]
    assert [one.wait() for one in running] == [0, 0, 0]
    assert sorted(world.attached().values()) == ["0", "1", "2"]
    assert all(world.connected(path) for path in paths)
    for path in paths:
        node = world.get(f"{path}/node").rpartition("/")[2]
        assert world.attached()[node] == path.split("/")[-2]


def test_a_device_that_is_busy_for_a_moment(world: World) -> None:
    world.write("busy", "")
    assert world.run("add", world.disk(1)) == 0
    assert world.attached() == {"nbd1": "0"}
    assert world.records() == {"nbd1"}


def test_a_device_that_somebody_takes_at_the_last_moment(world: World) -> None:
    world.write("faster", "1\n")
    assert world.run("add", world.disk(1)) == 0
    assert world.attached() == {"nbd0": "foreign", "nbd1": "0"}
    assert world.records() == {"nbd1"}


def test_a_tap_that_is_not_there_yet(world: World) -> None:
    world.write("address", "elsewhere")
    path = world.disk(1)
    running = world.start("add", path, PLX_PATIENCE="30")
    while not any("-name 0" in call for call in world.calls()):
        assert running.process.poll() is None
    world.write("address", SOCKET)
    assert running.wait() == 0
    assert world.connected(path)


@pytest.mark.parametrize("vdi", ["0", "web"])
def test_a_tap_that_does_not_come(world: World, vdi: str) -> None:
    world.write("address", "elsewhere")
    assert "Connection refused" in world.refused(world.disk(1, vdi), PLX_PATIENCE="1")


def test_what_the_tap_says_reaches_the_operator(world: World) -> None:
    world.write("refuse", "VDI 'web' is open for writing on host2, plxsh tap serve (process 812)")
    said = world.refused(world.disk(1))
    assert said == "'0': VDI 'web' is open for writing on host2, plxsh tap serve (process 812)"
    world.write("refuse", "")
    for number in ("9", str(1 << 64)):
        assert f"there is no VDI {number}" in world.refused(world.disk(1, number))
    assert "has no VDI 'nope'" in world.refused(world.disk(1, "nope"))


def test_a_disk_that_is_served_read_only_is_not_given_for_writing(world: World) -> None:
    world.write(
        "bin/nbd-client",
        (world.folder / "bin/nbd-client").read_text().replace("name=$5 ro=0", "name=$5 ro=1"),
    )
    assert "is served read-only" in world.refused(world.disk(1))


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        (ODD, ODD_ENCODED),
        ("a b", "a%20b"),
        ("-readonly", "-readonly"),
        ("$(touch x)", None),
        ("`id`;&|", None),
        ("100%", None),
        (listed("a", 0).strip(), None),
        ("back\\slash", None),
        ("*", None),
        ("日本", None),
        ("%41", None),
        ("a/b", None),
    ],
)
def test_names(world: World, name: str, encoded: str | None) -> None:
    world.write("exports", listed("a", 4) + listed("web", 0) + listed(name, 5))
    first = world.disk(1, encoded or quote(name, safe=""))
    assert world.run("add", first) == 0, world.log()
    assert world.attached() == {"nbd0": uuid_of(5)}
    said = world.refused(world.disk(2, "5"))
    assert "is in use by domain 'vm1'" in said
    assert said.isascii()
    said = world.refused(world.disk(2, encoded or quote(name, safe="")))
    assert said.isascii()
    assert "is in use by domain 'vm1'" in said
    assert not (world.folder / "x").exists()


def test_a_vdi_by_its_uuid_is_the_one_with_that_id_and_that_name(world: World) -> None:
    assert world.run("add", world.disk(1, uuid_of(0))) == 0, world.log()
    assert world.attached() == {"nbd0": uuid_of(0)}
    for called in ("0", "web", uuid_of(0), uuid_of(0).upper()):
        assert "is in use by domain 'vm1'" in world.refused(world.disk(2, called))
    assert world.run("add", world.disk(3, uuid_of(1))) == 0
    assert f"has no VDI '{uuid_of(7)}'" in world.refused(world.disk(4, uuid_of(7)))


def test_a_name_in_the_list_of_a_tap_that_tells_no_uuids(world: World) -> None:
    world.write("exports", "web: VDI 0, snapshots: 1\n")
    assert world.run("add", world.disk(1, "web")) == 0, world.log()
    assert world.attached() == {"nbd0": "0"}


def test_the_only_vdi_of_a_store_needs_no_name(world: World) -> None:
    path = world.disk(1, target=f"nbd+unix:///?socket={SOCKET}")
    assert "has no VDI ''" in world.refused(path)
    world.write("exports", listed("web", 0) + "web@a: snapshot 9.0 of VDI 0\n")
    assert world.run("add", path) == 0
    assert world.attached() == {"nbd0": uuid_of(0)}


@pytest.mark.parametrize(
    "target",
    [
        "",
        "web",
        "/dev/sda",
        "nbd+unix:///0",
        "nbd+unix:///0?socket=",
        "nbd+unix:///0?socket=relative",
        "nbd+unix:///0?socket=/a&x=1",
        "nbd+unix://host/0?socket=/a",
        "nbds://host/0",
        "nbd://host:port/0",
        "nbd://-d/0",
        "nbd://host/0?socket=/a",
        "nbd://ho st/0",
        "nbd+unix:///a b?socket=/a",
        "nbd+unix:///100%?socket=/a",
        "nbd+unix:///%zz?socket=/a",
        "nbd+unix:///a%00b?socket=/a",
        "nbd+unix:///a%0Ab?socket=/a",
        "nbd+unix:///ä?socket=/a",
        "nbd+unix:///a\\b?socket=/a",
    ],
)
def test_targets_that_are_none(world: World, target: str) -> None:
    path = world.disk(1)
    world.set(f"{path}/params", target)
    assert world.refused(path)
    assert world.calls(clear=True)
    assert world.run("remove", path) == 0
    assert not any(call.startswith("nbd-client") for call in world.calls())


# -- what was left behind ------------------------------------------------------------------


def test_a_device_whose_domain_is_gone_is_collected(world: World) -> None:
    assert world.run("add", world.disk(1)) == 0
    world.gone(1)
    path = world.disk(2, ODD_ENCODED)
    assert world.run("add", path) == 0
    assert list(world.attached().values()) == [uuid_of(1)]
    assert "collecting nbd0 of" in world.log()


def test_a_remove_that_failed_is_made_good(world: World) -> None:
    path = world.disk(1)
    assert world.run("add", path) == 0
    world.write("stuck", "")
    assert world.run("remove", path) == 1
    assert "cannot detach" in world.get(f"{path}/hotplug-error")
    world.gone(1)
    other = world.disk(2)
    assert "cannot detach" in world.refused(other, PLX_PATIENCE="1") or world.records() == {"nbd0"}
    world.remove("stuck")
    assert world.run("add", other) == 0
    assert world.connected(other)


def test_a_domain_that_lost_its_disk_keeps_the_device(world: World) -> None:
    """Another VDI attached to it would be written by that domain."""
    lost = world.disk(1)
    assert world.run("add", lost) == 0
    (world.folder / "sys/nbd0/pid").unlink()
    assert world.run("add", world.disk(2, ODD_ENCODED)) == 0
    assert world.attached() == {"nbd1": uuid_of(1)}
    assert "is in use by domain 'vm1'" in world.refused(world.disk(3))
    assert world.run("remove", lost) == 0
    assert world.run("add", world.disk(3)) == 0
    assert world.attached() == {"nbd0": "0", "nbd1": uuid_of(1)}


def test_in_a_driver_domain_other_domains_are_not_seen(world: World) -> None:
    paths = [world.disk(1), world.disk(2, ODD_ENCODED)]
    for domain in (1, 2):
        (world.folder / f"xenstore/local/domain/{domain}/name/=").unlink()
        world.folder.joinpath(f"xenstore/local/domain/{domain}/vm/=").unlink()
        world.folder.joinpath(f"xenstore/local/domain/{domain}").rename(world.folder / f"d{domain}")
    assert [world.run("add", path) for path in paths] == [0, 0]
    assert len(world.attached()) == 2


def test_a_device_that_is_not_ours_is_left_alone(world: World) -> None:
    (world.folder / "sys/nbd0/pid").write_text("1\n")
    (world.folder / "sys/nbd0/export").write_text("foreign\n")
    path = world.disk(1)
    assert world.run("add", path) == 0
    assert world.attached() == {"nbd0": "foreign", "nbd1": "0"}
    # a second remove, when the device has become another domain's
    node = world.get(f"{path}/node")
    assert world.run("remove", path) == 0
    other = world.disk(2)
    assert world.run("add", other) == 0
    assert world.get(f"{other}/node") == node
    world.set(f"{path}/node", node)
    assert world.run("remove", path) == 0
    assert world.connected(other)


def test_a_lost_record(world: World) -> None:
    path = world.disk(1)
    assert world.run("add", path) == 0
    (world.folder / "run/nbd0").unlink()
    assert world.run("remove", path) == 0
    assert world.attached() == {}


# -- one machine on two ids ----------------------------------------------------------------


def test_a_migration_to_the_same_host(world: World) -> None:
    source = world.disk(1, uuid="same")
    assert world.run("add", source) == 0
    twice = world.disk(2, uuid="same")
    assert "is in use by domain 'vm1'" in world.refused(twice)
    incoming = world.disk(3, uuid="same", name="vm1--incoming")
    assert world.run("add", incoming) == 0
    assert world.run("remove", source) == 0
    assert world.connected(incoming)
    other = world.disk(4, uuid="other", name="vm4--incoming")
    assert "is in use by domain 'vm1--incoming'" in world.refused(other)


def test_a_stub_domain_shares_the_disks_of_its_domain(world: World) -> None:
    assert world.run("add", world.disk(1)) == 0
    stub = world.disk(2)
    world.set("/local/domain/2/target", "1")
    assert world.run("add", stub) == 0
    strange = world.disk(3)
    world.set("/local/domain/3/target", "9")
    assert "is in use" in world.refused(strange)


def test_taking_over_is_asked_for(world: World) -> None:
    plxsh = world.folder / "bin/plxsh"
    plxsh.write_text('#!/bin/sh\necho "plxsh $*" >>"$WORLD/calls"\n: >"$WORLD/refuse"\n')
    plxsh.chmod(0o755)
    world.write("refuse", "VDI 'web' is open for writing on host1")
    assert "host1" in world.refused(world.disk(1))
    assert world.run("add", world.disk(1), PLX_TAKE_OVER="1") == 0
    host = subprocess.run(["uname", "-n"], capture_output=True, text=True).stdout.strip()
    assert f"plxsh lock handover 0 {host}" in world.calls()


# -- failure and death at each step --------------------------------------------------------


def _steps(new_world: Callable[[], World], command: str) -> int:
    world = new_world()
    path = world.disk(1, "web")
    if command == "remove":
        assert world.run("add", path) == 0
    world.calls(clear=True)
    assert world.run(command, path) == 0
    return len(world.calls())


def test_a_failure_of_each_step_of_add(new_world: Callable[[], World]) -> None:
    failed = 0
    for number in range(1, _steps(new_world, "add") + 1):
        world = new_world()
        path = world.disk(1, "web")
        world.fault(number, "fail")
        status = world.run("add", path, PLX_PATIENCE="1")
        step = world.calls()[number - 1]
        world.no_fault()
        if status:
            failed += 1
            assert world.attached() == {}, step
            assert world.records() == set(), step
            assert world.get(f"{path}/physical-device") == "", step
            assert world.get(f"{path}/hotplug-error"), step
            assert world.get(f"{path}/hotplug-status") == "error", step
            assert world.run("add", path) == 0, step
        assert world.connected(path), step
        assert world.run("remove", path) == 0, step
        assert (world.attached(), world.records()) == ({}, set()), step
    assert failed >= 5


def test_a_failure_of_each_step_takes_nobodys_disk(new_world: Callable[[], World]) -> None:
    """Whoever cannot read xenstore must not think that the others are gone."""
    world = new_world()
    neighbour, reader = world.disk(7), world.disk(8, "0@16.0", "r")
    for path in (neighbour, reader):
        assert world.run("add", path) == 0
    same, other = world.disk(9), world.disk(10, ODD_ENCODED)
    for path in (same, other):
        number, last = 0, 1
        while number < last:
            number += 1
            world.fault(number, "fail")
            world.run("add", path, PLX_PATIENCE="1")
            last = len(world.calls())
            world.no_fault()
            assert world.connected(neighbour)
            assert world.connected(reader)
            assert not world.connected(same)
            assert world.run("remove", path) == 0
        assert number > 10


def test_a_failure_of_each_step_of_remove(new_world: Callable[[], World]) -> None:
    for number in range(1, _steps(new_world, "remove") + 1):
        world = new_world()
        path = world.disk(1, "web")
        assert world.run("add", path) == 0
        world.fault(number, "fail")
        world.run("remove", path)
        step = world.calls()[number - 1]
        world.no_fault()
        assert world.run("remove", path) == 0, step
        assert (world.attached(), world.records()) == ({}, set()), step


@pytest.mark.parametrize("after", ["add", "remove", "other", "gone"])
@pytest.mark.parametrize("deed", ["kill", "kill-after"])
def test_death_at_each_step_of_add(new_world: Callable[[], World], deed: str, after: str) -> None:
    for number in range(1, _steps(new_world, "add") + 1):
        world = new_world()
        path = world.disk(1, "web")
        world.fault(number, deed)
        assert world.run("add", path) == -9
        step = world.calls()[number - 1]
        world.no_fault()
        if after == "remove":  # what libxl does when a script was killed
            assert world.run("remove", path) == 0, step
            assert (world.attached(), world.records()) == ({}, set()), step
            continue
        if after == "gone":
            world.gone(1)
        if after != "add" and not world.get(f"{path}/physical-device"):
            path = world.disk(2, "web")  # the first domain has no disk that it could write to
        assert world.run("add", path) == 0, (step, world.get(f"{path}/hotplug-error"))
        assert list(world.attached().values()) == [uuid_of(0)], step
        assert len(world.records()) == 1, step
        assert world.run("remove", path) == 0, step
        assert (world.attached(), world.records()) == ({}, set()), step


@pytest.mark.parametrize("deed", ["kill", "kill-after"])
def test_death_at_each_step_of_remove(new_world: Callable[[], World], deed: str) -> None:
    for number in range(1, _steps(new_world, "remove") + 1):
        world = new_world()
        path = world.disk(1, "web")
        assert world.run("add", path) == 0
        world.fault(number, deed)
        assert world.run("remove", path) == -9
        step = world.calls()[number - 1]
        world.no_fault()
        world.gone(1)
        other = world.disk(2, "web")
        assert world.run("add", other) == 0, (step, world.get(f"{other}/hotplug-error"))
        assert list(world.attached().values()) == [uuid_of(0)], step
        assert len(world.records()) == 1, step


def test_nothing_is_attached_after_the_death_of_the_script(world: World) -> None:
    world.write("slow", "600")
    running = world.start("add", world.disk(1))
    client = world.folder / "client"
    while not (client.exists() and client.read_text().strip()):
        assert running.process.poll() is None
    running.process.kill()
    assert running.wait() == -9
    while Path("/proc", client.read_text().strip()).exists():
        time.sleep(0.02)
    assert world.attached() == {}


def test_a_terminated_script_says_so_and_leaves_nothing(world: World) -> None:
    world.write("address", "elsewhere")
    path = world.disk(1)
    running = world.start("add", path, PLX_PATIENCE="30")
    while not any("-name 0" in call for call in world.calls()):
        assert running.process.poll() is None
    running.process.terminate()
    assert running.wait() == 1
    assert "ended by a signal" in world.get(f"{path}/hotplug-error")
    assert (world.attached(), world.records()) == ({}, set())


def test_the_script_is_clean() -> None:
    checked = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
