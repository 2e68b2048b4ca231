"""scripts/simulated_hosts.py: several machines on one, for the tests of roles and playbooks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.rooted import SIMULATED_HOSTS

pytestmark = [
    pytest.mark.slow,
    SIMULATED_HOSTS,
    pytest.mark.xdist_group("simulated-hosts"),  # one world for most tests of this file
]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/simulated_hosts.py"
PATIENCE = 60
SIMULATED = [sys.executable, str(SCRIPT)]
Ran = subprocess.CompletedProcess[str]


def simulated(*words: object, variables: Mapping[str, str] | None = None) -> Ran:
    return subprocess.run(
        [*SIMULATED, *map(str, words)], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, timeout=5 * PATIENCE, env={**os.environ, **(variables or {})},
    )  # fmt: skip


@dataclass
class World:
    """Two hosts and the folder that they share."""

    folder: Path
    shared: Path

    def on(self, host: str, *words: object, status: int | None = 0) -> str:
        ran = simulated("exec", self.folder, host, "--", *words)
        assert status is None or ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def sh(self, script: str, status: int | None = 0) -> str:
        return self.on("host1", "sh", "-ec", script, status=status)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hosts") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with short_folder() as folder:
        made = World(folder / "world", folder / "shared")
        # The checkout is shared for the test that has hosts on a host: it may be in /tmp or /root.
        both = ["--shared", made.shared, "--shared", ROOT]
        ran = simulated("up", made.folder, "--hosts", "host1", "host2", *both)
        try:
            assert ran.returncode == 0, ran.stderr
            yield made
        finally:
            assert simulated("down", made.folder).returncode == 0
        assert not made.folder.exists()
        assert not processes(made.folder)


def processes(folder: Path) -> list[str]:
    """Command lines of processes that name this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in line and "pytest" not in line:
                found.append(line)
    return found


def outer() -> dict[str, str]:
    """What must be the same before and after on the machine itself."""
    links = json.loads(subprocess.check_output(["ip", "-j", "address"], text=True))
    return {
        "links": repr(
            [(link["ifname"], [at["local"] for at in link["addr_info"]]) for link in links]
        ),
        "routes": subprocess.check_output(["ip", "route"], text=True),
        "passwd": Path("/etc/passwd").read_text(),
        "hosts": Path("/etc/hosts").read_text(),
        "xen": repr(Path("/etc/xen").exists() and sorted(os.listdir("/etc/xen"))),
    }


# -- machines ----------------------------------------------------------------------------

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 22), 60).close()"


def test_hosts_reach_each_other_by_name(world: World) -> None:
    assert world.on("host1", "hostname").strip() == "host1"
    assert world.on("control", "hostname").strip() == "control"
    for here, there in (("host1", "host2"), ("host2", "host1"), ("control", "host2")):
        world.on(here, sys.executable if here == "control" else "python3", "-c", CONNECT, there)


def test_nothing_is_seen_on_this_machine(world: World) -> None:
    there = world.on("control", "ip", "-br", "link")
    assert "bridge" in there
    assert "host1" in there
    here = subprocess.check_output(["ip", "-br", "link"], text=True)
    names = [line.split()[0].partition("@")[0] for line in here.splitlines()]
    assert not {"bridge", "host0", "host1"} & set(names)
    assert str(world.folder) not in Path("/proc/self/mountinfo").read_text()


def test_a_host_has_files_of_its_own(world: World) -> None:
    before = outer()
    world.sh("echo mine >/etc/xen/mine; useradd --system somebody; rm /etc/debconf.conf; date >/x")
    assert "mine" not in world.on("host2", "ls", "/etc/xen")
    assert "somebody" not in world.on("host2", "cat", "/etc/passwd")
    assert outer() == before
    assert not Path("/x").exists()
    assert Path("/etc/debconf.conf").exists()
    assert "ls: " not in world.on("host2", "ls", "/etc/debconf.conf")


def test_the_kernel_is_not_a_hosts_to_change(world: World) -> None:
    for path in ("/proc/sys/kernel/hostname", "/proc/sys/vm/swappiness"):
        assert "Read-only" in world.sh(f"cat {path} >/tmp/x; cat /tmp/x >{path}", status=None)


def test_the_shared_folder_is_the_same_everywhere(world: World) -> None:
    world.on("host1", "sh", "-c", f"echo one >{world.shared}/file")
    assert world.on("host2", "cat", world.shared / "file") == "one\n"
    assert world.on("control", "cat", world.shared / "file") == "one\n"
    assert (world.shared / "file").read_text() == "one\n"


def test_control_has_our_folder_and_variables(world: World, tmp_path: Path) -> None:
    line = [*SIMULATED, "exec", world.folder, "control", "--", "sh", "-c", 'pwd; echo "$MARK"']
    ran = subprocess.run(
        line, cwd=tmp_path, env={**os.environ, "MARK": "a b"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert ran.stdout == f"{tmp_path}\na b\n"
    told = world.on("host1", "env", status=0)
    assert "HOME=/root" in told
    assert "MARK" not in told


def test_exec_gives_the_status_and_the_input(world: World) -> None:
    assert simulated("exec", world.folder, "host1", "--", "sh", "-c", "exit 7").returncode == 7
    line = [*SIMULATED, "exec", world.folder, "host2", "--", "cat"]
    assert subprocess.run(line, input=b"given", capture_output=True, check=True).stdout == b"given"


def test_who_kills_exec_kills_the_command(world: World) -> None:
    mark = f"{world.shared}/began"
    line = [*SIMULATED, "exec", world.folder, "host1", "--"]
    with subprocess.Popen([*line, "sh", "-c", f"echo >{mark}; exec sleep 3600.5"]) as begun:
        wait_for(Path(mark).exists)
        begun.kill()
    wait_for(lambda: "3600.5" not in world.on("host1", "ps", "ax", "-o", "args"))


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def test_a_venv_can_be_made_on_a_host(world: World) -> None:
    world.sh("python3 -m venv --without-pip /opt/made")
    code = "import _posixsubprocess, ssl; print(7 * 6)"
    told = world.sh(f"setpriv --reuid 65534 --clear-groups /opt/made/bin/python -c '{code}'")
    assert told == "42\n"


# -- begin and end -----------------------------------------------------------------------


def test_a_world_that_is_there_is_not_made_again(world: World) -> None:
    ran = simulated("up", world.folder, "--hosts", "host1")
    assert ran.returncode == 1
    assert f"end them with 'down {world.folder}'" in ran.stderr
    world.on("host2", "true")


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        (["Host"], "no host can be named 'Host'"),
        (["a/b"], "no host can be named 'a/b'"),
        (["control"], "no host can be named 'control'"),
        (["a", "a"], "name each host once"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, hosts: list[str], said: str) -> None:
    ran = simulated("up", tmp_path / "world", "--hosts", *hosts)
    assert ran.returncode == 1
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "world").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "inventory.yml").write_text("mine")
    (tmp_path / "lock").write_text("mine")
    assert "name a new folder" in simulated("up", tmp_path, "--hosts", "host1").stderr
    assert simulated("down", tmp_path).returncode == 0
    assert (tmp_path / "inventory.yml").read_text() == (tmp_path / "lock").read_text() == "mine"
    assert simulated("down", tmp_path / "nothing").returncode == 0


def test_without_root_one_line_says_so(tmp_path: Path) -> None:
    line = ["unshare", "--user", *SIMULATED, "up", str(tmp_path / "world"), "--hosts", "host1"]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("simulated hosts: only root can")
    assert "Traceback" not in ran.stderr


def test_exec_where_nothing_is(world: World, tmp_path: Path) -> None:
    assert "make them with 'up'" in simulated("exec", tmp_path, "host1", "--", "true").stderr
    ran = simulated("exec", world.folder, "host9", "--", "true")
    assert "there are control, host1, host2" in ran.stderr


@pytest.mark.parametrize("moment", ["world.json", "control/pid", "host1/pid", "host2/log"])
def test_up_killed_half_way_leaves_nothing(moment: str) -> None:
    with short_folder() as short:
        folder = short / "world"
        with subprocess.Popen(
            [*SIMULATED, "up", folder, "--hosts", "host1", "host2"], stdout=subprocess.DEVNULL
        ) as begun:
            until = time.monotonic() + PATIENCE
            while not (folder / moment).exists() and begun.poll() is None:
                assert time.monotonic() < until
            begun.kill()
        assert simulated("down", folder).returncode == 0
        assert not folder.exists()
        wait_for(lambda: not processes(folder))
        assert simulated("up", folder, "--hosts", "host1").returncode == 0
        assert simulated("down", folder).returncode == 0
        assert simulated("down", folder).returncode == 0
        assert not processes(folder)


def test_a_machine_ends_with_who_began_it(tmp_path: Path) -> None:
    """Killed before it wrote down the number of the process: then nobody else could end it."""
    plan = {"hosts": ["host1"], "shared": [], "sshd": "/none"}
    (tmp_path / "world.json").write_text(json.dumps(plan))
    line = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    line += [sys.executable, str(SCRIPT.parent / "simulated/machine.py"), str(tmp_path), "host1"]
    ran = subprocess.run(
        line,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ran.returncode == 1
    assert "given up before it began" in ran.stderr


def test_a_machine_that_was_killed_does_not_stop_down() -> None:
    with short_folder() as short:
        folder = short / "world"
        assert simulated("up", folder, "--hosts", "host1", "host2").returncode == 0
        os.kill(int((folder / "host1/pid").read_text().split()[0]), signal.SIGKILL)
        wait_for(
            lambda: "host1 has ended" in simulated("exec", folder, "host1", "--", "true").stderr
        )
        assert simulated("exec", folder, "host2", "--", "true").returncode == 0
        (folder / "mine").write_text("a file of the user")
        assert simulated("down", folder).returncode == 0
        assert [path.name for path in folder.iterdir()] == ["mine"]
        assert not processes(folder)


def test_what_the_machine_has_of_parallax_is_not_on_its_hosts(world: World) -> None:
    """Hosts of a host: there we may spoil the machine first."""
    world.sh(
        """
        mkdir -p /etc/parallax /opt/parallax /var/lib/parallax /etc/systemd/system/x.d
        echo 'trap' | tee /etc/parallax/parallax.toml /etc/default/parallax \
            /etc/modprobe.d/nbd.conf /usr/local/bin/plxsh /etc/xen/vm.cfg /root/secret \
            /etc/systemd/system/parallaxd.service /var/lib/parallax/lock_master.epoch >/dev/null
        useradd --system parallax
        """
    )
    inner = f"{world.shared}/inner"
    up = f"{sys.executable} {SCRIPT} up {inner} --hosts host1"
    seen = """
        find /etc/parallax /opt/parallax /var/lib/parallax /etc/default/parallax /root/secret \
            /etc/modprobe.d/nbd.conf /usr/local/bin/plxsh /etc/xen/vm.cfg \
            /etc/systemd/system/parallaxd.service 2>/dev/null
        grep -r parallax /etc/passwd /etc/group /etc/shadow; test -d /etc/xen/scripts
    """
    inside = f"exec {sys.executable} {SCRIPT} exec {inner} host1 -- sh -c"
    try:
        world.sh(f"ip link set lo up; {up}")
        told = world.sh(f"{inside} '{seen}'")
        assert told == ""
    finally:
        world.sh(f"{sys.executable} {SCRIPT} down {inner}")


# -- Ansible -----------------------------------------------------------------------------

UNIT = """\
[Unit]
Description=A service to try
[Service]
Type=notify
ExecStart=/usr/local/bin/greets
User=greeter
RuntimeDirectory=greets
Restart=on-failure
RestartSec=0
[Install]
WantedBy=multi-user.target
"""
GREETS = """\
#!/bin/sh
systemd-notify --ready --pid=$$ "--status=hello"
exec sleep 100000
"""
PLAY = {
    "hosts": "all",
    "gather_facts": True,
    "gather_subset": ["!all", "!min", "service_mgr"],
    "handlers": [
        {
            "name": "Restart greets",
            "ansible.builtin.systemd_service": {
                "name": "greets", "state": "restarted", "daemon_reload": True,
            },
        }
    ],
    "tasks": [
        {"ansible.builtin.assert": {"that": "ansible_facts.service_mgr == 'systemd'"}},
        {"ansible.builtin.user": {"name": "greeter", "system": True}},
        {
            "ansible.builtin.copy": {
                "dest": "/usr/local/bin/greets", "content": GREETS, "mode": "0755",
            },
        },
        {
            "ansible.builtin.copy": {
                "dest": "/etc/systemd/system/greets.service", "content": UNIT, "mode": "0644",
            },
            "notify": "Restart greets",
        },
        {
            "ansible.builtin.systemd_service": {
                "name": "greets", "state": "started", "enabled": True, "daemon_reload": True,
            },
        },
        {"ansible.builtin.command": "cat /etc/hostname", "changed_when": False, "register": "read"},
        {"ansible.builtin.assert": {"that": "read.stdout == inventory_hostname"}},
    ],
}  # fmt: skip


def test_a_playbook_with_a_service(world: World, environment: dict[str, str]) -> None:
    play = Path(environment["HOME"]) / "play.yml"
    play.write_text(json.dumps([PLAY]))
    words = ["exec", world.folder, "control", "--", "ansible-playbook"]
    words += ["-i", world.folder / "inventory.yml", play]
    first = simulated(*words, variables=environment)
    assert first.returncode == 0, first.stdout + first.stderr
    assert world.on("host2", "systemctl", "is-active", "greets").strip() == "active"
    assert world.on("host2", "systemctl", "is-enabled", "greets").strip() == "enabled"
    again = simulated(*words, variables=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("changed=0 ") == 2
    assert not (Path(environment["HOME"]) / ".ssh").exists()
    for host in ("host1", "host2"):
        world.on(host, "systemctl", "stop", "greets")


# -- the stand-in for systemd ------------------------------------------------------------


@dataclass
class Service:
    """A unit of host1 that a test wrote."""

    world: World
    name: str

    def write(self, settings: str, head: str = "") -> None:
        text = f"[Unit]\n{head}\n[Service]\n{settings}\n[Install]\nWantedBy=multi-user.target\n"
        self.file(f"/etc/systemd/system/{self.name}.service", text)

    def file(self, path: str, text: str, mode: str = "644") -> None:
        line = [*SIMULATED, "exec", self.world.folder, "host1", "--"]
        words = ["sh", "-c", 'mkdir -p "${1%/*}"; cat >"$1"; chmod "$2" "$1"', "sh", path, mode]
        subprocess.run([*line, *words], input=text, text=True, check=True)

    def ctl(self, verb: str, *words: str, status: int | None = 0) -> str:
        return self.world.on("host1", "systemctl", verb, self.name, *words, status=status)

    def show(self, key: str) -> str:
        return self.ctl("show", "--value", "-p", key).strip()

    @property
    def log(self) -> str:
        return self.world.on("host1", "cat", f"/var/log/units/{self.name}.service.log")


@pytest.fixture
def service(world: World, request: pytest.FixtureRequest) -> Iterator[Service]:
    made = Service(world, request.node.name.replace("_", "-").partition("[")[0])
    yield made
    made.ctl("stop", status=None)


def test_verbs_for_a_unit_that_is_not_there(world: World) -> None:
    ctl = ["host1", "systemctl"]
    assert "LoadState=not-found" in world.on(*ctl, "show", "nothing")
    assert "No such file" in world.on(*ctl, "is-enabled", "nothing", status=1)
    assert world.on(*ctl, "is-active", "nothing", status=3) == "inactive\n"
    assert "not found" in world.on(*ctl, "start", "nothing", status=5)
    assert "Unknown command verb" in world.on(*ctl, "edit", "nothing", status=1)
    assert "--user is not known" in world.on(*ctl, "--user", "daemon-reload", status=1)


def sleepers(world: World) -> list[str]:
    lines = world.on("host1", "ps", "ax", "-o", "args").splitlines()
    return sorted(line for line in lines if line.startswith("sleep 7777"))


def test_a_service_starts_and_stops_with_all_that_it_began(service: Service) -> None:
    service.write('ExecStart=/bin/sh -c "sleep 7777.1 & setsid sleep 7777.2 & exec sleep 7777.3"')
    service.ctl("enable", "--now")
    wait_for(lambda: sleepers(service.world) == ["sleep 7777.1", "sleep 7777.2", "sleep 7777.3"])
    assert service.show("ActiveState") == "active"
    main = service.show("MainPID")
    assert "7777.3" in service.world.on("host1", "cat", f"/proc/{main}/cmdline")
    service.ctl("start")
    assert service.show("MainPID") == main
    service.ctl("restart")
    assert service.show("MainPID") != main
    wait_for(lambda: len(sleepers(service.world)) == 3)
    service.ctl("stop")
    assert "sleep 7777" not in service.world.on("host1", "ps", "ax", "-o", "args")
    assert service.ctl("is-active", status=3) == "inactive\n"
    service.ctl("disable")
    assert service.ctl("is-enabled", status=1) == "disabled\n"


def test_a_start_waits_for_the_word_ready(service: Service) -> None:
    mark = f"/run/{service.name}"
    ready = f"sleep 0.3; touch {mark}; systemd-notify --ready --status=serving; sleep 9999"
    service.write(f"Type=notify\nExecStart=/bin/sh -c '{ready}'")
    assert service.world.sh(f"systemctl start {service.name}; ls {mark}").strip() == mark
    assert service.show("StatusText") == "serving"


def test_a_start_fails_when_the_program_ends_before(service: Service) -> None:
    service.write("Type=notify\nExecStart=/bin/sh -c 'echo because >&2; exit 3'")
    told = service.ctl("start", status=1)
    assert "because" in told
    assert service.show("ActiveState") == "failed"
    assert service.show("ExecMainStatus") == "3"
    assert service.ctl("is-failed") == "failed\n"
    service.ctl("reset-failed")
    assert service.show("ActiveState") == "inactive"


def test_a_program_that_ends_well_without_the_word_did_not_start(service: Service) -> None:
    service.write("Type=notify\nExecStart=/bin/true")
    service.ctl("start", status=1)
    assert service.show("Result") == "protocol"


def test_drop_ins_users_and_variables(service: Service) -> None:
    name = service.name
    service.write("ExecStart=/bin/false\nEnvironment=A=1 B=unit\nUMask=0007\nSyslogIdentifier=x")
    service.file(f"/etc/default/{name}", "# a comment\nB='from file'\n")
    service.file(
        f"/etc/systemd/system/{name}.service.d/10-more.conf",
        "[Service]\nExecStart=\nExecStart=/bin/sh -c \\\n  'env; id; umask; exec sleep 9999'\n"
        f"EnvironmentFile=-/etc/default/{name}\nEnvironmentFile=-/none\n"
        'Environment="C=100%% of %n"\nUser=nobody\nSupplementaryGroups=disk\n'
        f"RuntimeDirectory={name}\nRuntimeDirectoryMode=0750\nStateDirectory={name}\n"
        "ExecStartPost=-/bin/false\nExecStartPost=+/bin/sh -c 'id -u; echo main=$MAINPID'\n",
    )
    service.ctl("start")
    wait_for(lambda: "main=" in service.log and "\n0007\n" in service.log)
    log = service.log
    for line in ("A=1", "B=from file", f"C=100% of {name}.service", "USER=nobody"):
        assert f"\n{line}\n" in log
    assert f"RUNTIME_DIRECTORY=/run/{name}" in log
    assert "uid=65534(nobody)" in log
    assert "6(disk)" in log
    # What the two commands say may be mixed, but for whole lines.
    assert "\n0\n" in log
    assert f"\nmain={service.show('MainPID')}\n" in log
    told = service.world.sh(f"stat -c '%U %a' /run/{name} /var/lib/{name}")
    assert told == "nobody 750\nnobody 755\n"
    service.ctl("stop")
    service.world.sh(f"test ! -e /run/{name}; test -d /var/lib/{name}")


def test_a_failed_post_command_fails_the_start(service: Service) -> None:
    service.write("ExecStart=/bin/sleep 8888.1\nExecStartPost=/bin/false")
    service.ctl("start", status=1)
    assert service.show("ActiveState") == "failed"
    assert "8888.1" not in service.world.on("host1", "ps", "ax", "-o", "args")


def test_restart_on_failure_until_the_limit(service: Service) -> None:
    count = f"/run/{service.name}"
    service.write(
        f"ExecStart=/bin/sh -c 'echo >>{count}; exit 1'\nRestart=on-failure\nRestartSec=0",
        "StartLimitBurst=3\nStartLimitIntervalSec=1min 40s",
    )
    service.ctl("start", status=None)
    wait_for(lambda: service.show("ActiveState") == "failed")
    assert service.show("Result") == "start-limit-hit"
    assert service.world.sh(f"wc -l <{count}").strip() == "3"


def test_a_killed_service_is_started_again(service: Service) -> None:
    service.write("ExecStart=/bin/sleep 9999\nRestart=on-failure\nRestartSec=0")
    service.ctl("start")
    main = service.show("MainPID")
    service.ctl("kill", "-s", "KILL")
    wait_for(lambda: service.show("MainPID") not in ("0", main))
    wait_for(lambda: service.show("ActiveState") == "active")
    assert service.show("NRestarts") == "1"


def test_a_status_that_prevents_a_restart(service: Service) -> None:
    count = f"/run/{service.name}"
    service.write(
        f"ExecStart=/bin/sh -c 'echo >>{count}; exit 2'\nRestart=always\n"
        "RestartSec=0\nRestartPreventExitStatus=2 3"
    )
    service.ctl("start", status=None)
    wait_for(lambda: service.show("ActiveState") == "failed")
    assert service.world.sh(f"wc -l <{count}").strip() == "1"


def test_a_service_that_does_not_stop_is_killed(service: Service) -> None:
    mark = f"/run/{service.name}"
    loop = f"trap : TERM; touch {mark}; while :; do sleep 0.1; done"
    service.write(f"ExecStart=/bin/sh -c '{loop}'\nTimeoutStopSec=300ms")
    service.ctl("start")
    wait_for(lambda: service.world.sh(f"ls {mark}", status=None).strip() == mark)
    service.ctl("stop")
    assert service.show("Result") == "timeout"


def test_a_oneshot_that_stays(service: Service) -> None:
    service.write(
        "Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/echo one\nExecStart=/bin/echo two"
    )
    service.ctl("start")
    assert service.show("SubState") == "exited"
    assert "one\ntwo\n" in service.log
    service.ctl("stop")
    assert service.show("ActiveState") == "inactive"


def test_what_a_service_may_write(service: Service) -> None:
    mine = service.world.shared / "mine"
    mine.mkdir(exist_ok=True)
    tries = [f"{mine}/x", "/etc/x", f"{service.world.shared}/x", f"/run/{service.name}/x", "/tmp/x"]
    script = "; ".join(f"touch {path} && echo wrote {path}" for path in tries)
    settings = (
        f"Type=oneshot\nExecStart=/bin/sh -c '{script}; :'\nRuntimeDirectory={service.name}\n"
    )
    settings += "ProtectSystem=strict\nNoNewPrivileges=yes\nCapabilityBoundingSet=CAP_CHOWN\n"
    settings += "ExecStartPost=/bin/grep -E 'CapBnd|NoNewPrivs' /proc/self/status\n"
    service.write(f"{settings}ReadWritePaths={mine} -/none\n")
    service.ctl("start")
    log = service.log
    assert [line[6:] for line in log.splitlines() if line.startswith("wrote ")] == [
        tries[0],
        tries[3],
    ]
    assert "CapBnd:\t0000000000000001" in log
    assert "NoNewPrivs:\t1" in log
    service.write(f"{settings}ReadWritePaths=/none\n")
    service.ctl("start", status=1)
    assert service.show("ExecMainStatus") == "226"


def test_files_changed_without_a_reload_are_told(service: Service) -> None:
    service.write("ExecStart=/bin/sleep 9999")
    service.ctl("start")
    assert service.show("NeedDaemonReload") == "no"
    service.write("ExecStart=/bin/sleep 9998")
    assert service.show("NeedDaemonReload") == "yes"
    assert "daemon-reload" in service.ctl("restart", status=1)
    service.world.on("host1", "systemctl", "daemon-reload")
    assert service.show("NeedDaemonReload") == "no"
    service.ctl("restart")
    main = service.show("MainPID")
    wait_for(lambda: "9998" in service.world.on("host1", "cat", f"/proc/{main}/cmdline"))


def test_two_starts_at_a_time_are_one(service: Service) -> None:
    mark = f"/run/{service.name}"
    run = f"echo >>{mark}; sleep 0.5; systemd-notify --ready; exec sleep 9999"
    service.write(f"Type=notify\nExecStart=/bin/sh -c '{run}'")
    start = f"systemctl start {service.name}"
    service.world.sh(f"{start} & {start}; systemctl is-active {service.name}; wait")
    assert service.world.sh(f"wc -l <{mark}").strip() == "1"


def test_masked(service: Service) -> None:
    service.ctl("mask")
    assert service.ctl("is-enabled", status=1) == "masked\n"
    assert "is masked" in service.ctl("start", status=1)
    service.ctl("unmask")
    assert service.show("LoadState") == "not-found"


def test_a_type_that_the_stand_in_does_not_know_is_refused(service: Service) -> None:
    service.write("Type=forking\nExecStart=/bin/true")
    assert "Type=forking is not known" in service.ctl("start", status=1)


def test_reload(service: Service) -> None:
    service.write(
        "ExecStart=/bin/sh -c 'trap \"echo heard\" HUP; while :; do sleep 0.05; done'\n"
        "ExecReload=/bin/kill -HUP $MAINPID"
    )
    service.ctl("start")
    main = service.show("MainPID")
    caught = f"sed -n 's/SigCgt:.//p' /proc/{main}/status"
    wait_for(lambda: int(service.world.sh(caught), 16) & 1 == 1)  # SIGHUP
    service.ctl("reload")
    wait_for(lambda: "heard" in service.log)


def test_modprobe_knows_nbd_only(world: World) -> None:
    world.sh("echo 'options nbd nbds_max=20' >/etc/modprobe.d/nbd.conf; modprobe nbd")
    assert world.sh("ls /dev/nbd* | wc -l").strip() == "20"
    assert "not known" in world.sh("modprobe kvm", status=1)
