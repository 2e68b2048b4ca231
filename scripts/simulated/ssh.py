"""SSH of the simulated hosts: a server for each, a key of this run, and how Ansible gets there."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from simulated.failure import Failure

ROOT = Path(__file__).resolve().parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNPACKED = ROOT / ".venv/sshd"
"""Where scripts/setup.sh unpacks Debian's openssh-server when it is not installed."""

FILES = ("key", "key.pub", "host_key", "host_key.pub", "known_hosts", "ssh_config")
CONTROL_PATH = "/run/ssh-%C"  # on `control`; short, as a Unix socket has to be


def server() -> Path:
    """The sshd to use."""
    for candidate in (shutil.which("sshd", path=PATH), str(UNPACKED / "usr/sbin/sshd")):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise Failure("no sshd on this machine: run 'sh scripts/setup.sh test', which fetches one")


def write(folder: Path, addresses: Mapping[str, str]) -> None:
    """Make keys, and the files with which ssh finds the hosts and nothing of the user's."""
    for name in ("key", "host_key"):
        line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "simulated", "-f"]
        subprocess.run([*line, folder / name], check=True, stdin=subprocess.DEVNULL)
    of_host = (folder / "host_key.pub").read_text().strip()
    known = [f"{name},{address} {of_host}" for name, address in addresses.items()]
    (folder / "known_hosts").write_text("\n".join(known) + "\n")
    lines = []
    for name, address in addresses.items():
        lines += [f"Host {name} {address}", f"    HostName {address}"]
    lines += [
        "Host *",
        "    User root",
        f'    IdentityFile "{folder / "key"}"',
        "    IdentitiesOnly yes",
        "    IdentityAgent none",
        f'    UserKnownHostsFile "{folder / "known_hosts"}"',
        "    GlobalKnownHostsFile /dev/null",
        "    StrictHostKeyChecking yes",
        "    BatchMode yes",
        "    ControlMaster auto",
        "    ControlPersist 60s",
        f"    ControlPath {CONTROL_PATH}",
    ]
    (folder / "ssh_config").write_text("\n".join(lines) + "\n")


def arguments(folder: Path) -> str:
    """Ansible's ansible_ssh_args. It looks for ControlPersist on the command line."""
    wanted = "-o ControlMaster=auto -o ControlPersist=60s"
    config = shlex.quote(str(folder / "ssh_config"))
    return f"-F {config} {wanted} -o ControlPath={CONTROL_PATH}"


def server_config(sshd: Path) -> str:
    """The sshd_config of a host. PAM is left out: it belongs to the outer machine's login."""
    sftp = "usr/lib/openssh/sftp-server"
    unpacked = sshd.parents[2] / sftp
    lines = {
        "HostKey": "/etc/ssh/host_key",
        "AuthorizedKeysFile": "/etc/ssh/authorized_keys",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UsePAM": "no",
        "UseDNS": "no",
        "PidFile": "none",
        "PrintMotd": "no",
        "MaxStartups": "200",
        "MaxSessions": "200",
        "LogLevel": "ERROR",
        "SetEnv": f"PATH={PATH} LANG=C.UTF-8",
        "Subsystem": f"sftp {unpacked if unpacked.exists() else '/' + sftp}",
    }
    return "".join(f"{key} {value}\n" for key, value in lines.items())
