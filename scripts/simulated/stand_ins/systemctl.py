"""A stand-in for systemctl on simulated hosts, where no systemd runs.

It is: the verbs that ansible.builtin.systemd_service and the roles use, on the real unit files and
drop-ins; services of Type=simple, exec, notify and oneshot with ExecStartPre=, ExecStart=,
ExecStartPost=, ExecReload=, ExecStop=, ExecStopPost=, Environment=, EnvironmentFile=, User=,
Group=, SupplementaryGroups=, UMask=, LimitNOFILE=, the five directories, Restart= with its limits,
ProtectSystem=, ReadWritePaths=, ReadOnlyPaths=, PrivateTmp=, NoNewPrivileges= and capabilities.

It is not: dependencies and their order, boot, sockets, timers, control groups, the journal (what a
service prints is in /var/log/units/UNIT.log), system call filters, ProtectHome=, and the rest of
the sandbox. `systemd-analyze verify` looks at those.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keeper
from units import FOLDERS, BadUnit, Unit, full_name

OVER = ("inactive", "failed")  # states of a unit that runs no more


class Refused(Exception):
    """What systemctl says on standard error, with its exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def kept(name: str) -> dict[str, Any]:
    """What the keeper of a unit wrote last, if it was ever started."""
    with contextlib.suppress(FileNotFoundError):
        found: dict[str, Any] = json.loads((keeper.RUN / f"{full_name(name)}.json").read_text())
        return found
    return {}


def alive(name: str) -> bool:
    """Whether a keeper has this unit: its lock is held."""
    return not wait(name, fcntl.LOCK_NB)


def wait(name: str, flags: int = 0) -> bool:
    """Wait until no keeper has this unit."""
    try:
        lock = os.open(keeper.RUN / f"{full_name(name)}.lock", os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | flags)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def state(name: str) -> dict[str, Any]:
    """ActiveState and what goes with it."""
    for _ in range(2):  # its keeper may come to an end between the two looks
        found = kept(name).get("state", {"ActiveState": "inactive", "SubState": "dead",
                                         "MainPID": 0, "Result": "success",
                                         "NRestarts": 0})  # fmt: skip
        if found["ActiveState"] in OVER or alive(name):
            return dict(found)
    return {**found, "ActiveState": "failed", "SubState": "failed", "MainPID": 0}  # keeper killed


def known(name: str) -> Unit:
    unit = Unit(name)
    if unit.load_state == "not-found":
        raise Refused(f"Unit {unit.name} not found.", 5)
    if unit.masked:
        raise Refused(f"Unit {unit.name} is masked.")
    return unit


# -- verbs that change something ---------------------------------------------------------


def start(name: str) -> None:
    unit = known(name)
    if not unit.name.endswith(".service"):
        raise Refused(f"{unit.name}: this stand-in starts services only")
    if state(name)["ActiveState"] == "active":
        return
    stop(name)  # what waits for another try, or is just ending
    if not unit.all("ExecStart"):
        raise Refused(f"{unit.name}: no ExecStart=")
    if unit.get("Type", "simple") not in keeper.KINDS:
        raise Refused(f"{unit.name}: Type={unit.get('Type')} is not known to this stand-in")
    words = [sys.executable, "-E", "-s", str(Path(__file__).with_name("keeper.py")), unit.name]
    keeper.LOGS.mkdir(parents=True, exist_ok=True)
    with (keeper.LOGS / f"{unit.name}.log").open("a") as log, subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
        start_new_session=True, cwd="/", env={"PATH": keeper.PATH}, text=True,
    ) as begun:  # fmt: skip
        assert begun.stdout is not None
        said = begun.stdout.readline().strip()
        begun.returncode = 0  # it stays: not ours to wait for
    if said != "started":
        raise Refused(
            f"Job for {unit.name} failed because of unavailable resources or another system error."
            if state(name)["Result"] == "resources"
            else f"Job for {unit.name} failed ({state(name)['Result']}).\n"
            f"See /var/log/units/{unit.name}.log:\n{tail(unit.name)}"
        )


def tail(name: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        text = (keeper.LOGS / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-10:])
    return ""


def stop(name: str) -> None:
    unit = Unit(name)
    if unit.load_state == "not-found" and not alive(name):
        raise Refused(f"Unit {unit.name} not loaded.", 5)
    if alive(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(kept(name)["keeper"], signal.SIGTERM)
        wait(name)


def restart(name: str) -> None:
    """Systemd would warn and start what it read before; here a forgotten reload is an error."""
    unit = known(name)
    if needs_reload(unit):
        raise Refused(f"{unit.name} changed on disk: run 'systemctl daemon-reload' first.")
    stop(name)
    start(name)


def reload(name: str) -> None:
    unit = known(name)
    lines = unit.all("ExecReload")
    main = state(name)["MainPID"]
    if not lines or not main:
        raise Refused(f"Failed to reload {unit.name}: Job type reload is not applicable.")
    for line in lines:
        words = keeper.substitute(keeper.split_marks(line)[1], {"MAINPID": str(main)})
        subprocess.run(words, check=True, env={"PATH": keeper.PATH, "MAINPID": str(main)})


def enable(name: str) -> None:
    unit = known(name)
    assert unit.path is not None
    for link in unit.links():
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(unit.path)
            print(f"Created symlink {link} → {unit.path}.", file=sys.stderr)


def disable(name: str) -> None:
    for link in known(name).links():
        if link.is_symlink():
            link.unlink()
            print(f"Removed {link}.", file=sys.stderr)


def mask(name: str) -> None:
    path = FOLDERS[0] / full_name(name)
    if path.exists() and not path.is_symlink():
        raise Refused(f"Failed to mask unit: File {path} already exists.")
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/null")


def unmask(name: str) -> None:
    if Unit(name).masked:
        (FOLDERS[0] / full_name(name)).unlink()


def kill(name: str, number: str) -> None:
    """A signal to the main process; not to its keeper, so Restart= sees it."""
    main = state(name)["MainPID"]
    if not main:
        raise Refused(f"Failed to kill unit {full_name(name)}: no main process")
    os.kill(main, getattr(signal, f"SIG{number.removeprefix('SIG')}"))


def reset_failed(name: str) -> None:
    if state(name)["ActiveState"] in OVER:
        wait(name)  # its keeper has said its last word, but may not have ended yet
        (keeper.RUN / f"{full_name(name)}.json").unlink(missing_ok=True)


# -- verbs that tell ---------------------------------------------------------------------


def properties(name: str) -> dict[str, object]:
    unit = Unit(name)
    found: dict[str, object] = {"Id": unit.name, "Names": unit.name, **state(name)}
    found["LoadState"] = unit.load_state
    found["Description"] = unit.get("Description", unit.name, "Unit")
    if unit.path:
        found["FragmentPath"] = unit.path
        found["UnitFileState"] = unit.enabled()
        found["DropInPaths"] = " ".join(map(str, unit.drop_ins))
    found["NeedDaemonReload"] = "yes" if needs_reload(unit) else "no"
    for key in ("Type", "Restart", "User", "Group", "UMask"):
        if unit.get(key):
            found[key] = unit.get(key)
    return found


def needs_reload(unit: Unit) -> bool:
    """Whether the files of a service that runs changed after it began and after daemon-reload."""
    if not alive(unit.name) or kept(unit.name).get("settings") == unit.settings:
        return False
    with contextlib.suppress(FileNotFoundError):
        at = (keeper.RUN / "reloaded").stat().st_mtime_ns
        return any(path.stat().st_mtime_ns > at for path in (unit.path, *unit.drop_ins) if path)
    return True


@contextlib.contextmanager
def job(name: str) -> Iterator[None]:
    """One job of a unit after the other."""
    keeper.RUN.mkdir(exist_ok=True)
    with (keeper.RUN / f"{full_name(name)}.job").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def show(names: list[str], wanted: list[str], bare: bool) -> int:
    for place, name in enumerate(names):
        if place:
            print()
        for key, value in properties(name).items():
            if not wanted or key in wanted:
                print(value if bare else f"{key}={value}")
    return 0


def is_active(names: list[str]) -> int:
    states = [state(name)["ActiveState"] for name in names]
    print("\n".join(states))
    return 0 if "active" in states else 3


def is_failed(names: list[str]) -> int:
    states = [state(name)["ActiveState"] for name in names]
    print("\n".join(states))
    return 0 if "failed" in states else 1


def is_enabled(names: list[str]) -> int:
    good = False
    for name in names:
        said = Unit(name).enabled()
        if said == "not-found":
            line = f"Failed to get unit file state for {full_name(name)}: No such file or directory"
            print(line, file=sys.stderr)
        else:
            print(said)
        good |= said in ("enabled", "static")
    return 0 if good else 1


def status(names: list[str]) -> int:
    for name in names:
        found = properties(name)
        print(f"{found['Id']} - {found['Description']}")
        print(f"  Loaded: {found['LoadState']} ({found.get('FragmentPath', '')})")
        print(f"  Active: {found['ActiveState']} ({found['SubState']}), {found['Result']}")
        print(f"Main PID: {found['MainPID']}\n\n{tail(str(found['Id']))}")
    return 0 if all(state(name)["ActiveState"] == "active" for name in names) else 3


def services() -> list[str]:
    names = {path.name for folder in FOLDERS for path in folder.glob("*.service")}
    return sorted(name for name in names if "@." not in name)


def list_unit_files(names: list[str]) -> int:
    found = [n for n in services() if not names or any(Path(n).match(full_name(m)) for m in names)]
    for name in found:
        print(f"{name} {Unit(name).enabled()} enabled")
    print(f"\n{len(found)} unit files listed.")
    return 0 if found or not names else 1


def list_units(names: list[str]) -> int:
    for name in services():
        if kept(name) and (not names or name in map(full_name, names)):
            now = state(name)
            print(f"{name} loaded {now['ActiveState']} {now['SubState']} {name}")
    return 0


def cat(names: list[str]) -> int:
    for name in names:
        unit = known(name)
        for path in (unit.path, *unit.drop_ins):
            assert path is not None
            print(f"# {path}\n{path.read_text()}")
    return 0


CHANGES: dict[str, Callable[[str], None]] = {
    "start": start, "stop": stop, "restart": restart, "reload": reload, "enable": enable,
    "disable": disable, "mask": mask, "unmask": unmask, "reset-failed": reset_failed,
    "try-restart": lambda name: restart(name) if alive(name) else None,
    "reload-or-restart": lambda name: (reload if Unit(name).all("ExecReload") and alive(name)
                                       else restart)(name),
}  # fmt: skip
TELLS: dict[str, Callable[[list[str]], int]] = {
    "is-active": is_active, "is-failed": is_failed, "is-enabled": is_enabled, "status": status,
    "list-unit-files": list_unit_files, "list-units": list_units, "cat": cat,
}  # fmt: skip

FLAGS = {
    "--now", "--value", "--version", "-q", "--quiet", "-l", "--full", "-a", "--all", "--no-pager",
    "--system", "--plain", "--no-legend", "--no-ask-password", "-f", "--force",
}  # fmt: skip
"""Options that take no value; those that only change what is shown are not looked at."""


def options(words: list[str]) -> tuple[list[str], list[str], set[str]]:
    """Words, wanted properties, and flags; what is not known is refused."""
    rest: list[str] = []
    wanted: list[str] = []
    flags: set[str] = set()
    given = iter(words)
    for word in given:
        name, equals, value = word.partition("=")
        if name in ("-p", "--property", "-P"):
            wanted += (value if equals else next(given, "")).split(",")
            flags |= {"--value"} if name == "-P" else set()
        elif name in ("-t", "--type", "-n", "--lines", "-o", "--output", "--state"):
            value or next(given, "")
        elif word in FLAGS:
            flags.add(word)
        elif word.startswith("-"):
            raise Refused(f"systemctl (stand-in): option {word} is not known here")
        else:
            rest.append(word)
    return rest, wanted, flags


def main(words: list[str]) -> int:
    number = "TERM"
    for option in ("-s", "--signal"):
        if option in words[:-1]:
            place = words.index(option)
            number = words[place + 1]
            words = words[:place] + words[place + 2 :]
    rest, wanted, flags = options(words)
    if "--version" in flags:
        print("systemd 252 (stand-in)")
        return 0
    verb, *names = rest or ["list-units"]
    if verb in ("daemon-reload", "daemon-reexec"):
        keeper.RUN.mkdir(exist_ok=True)
        (keeper.RUN / "reloaded").touch()
    elif verb == "is-system-running":
        print("running")
    elif verb == "show":
        return show(names, wanted, "--value" in flags)
    elif verb in TELLS:
        if {"-q", "--quiet"} & flags:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return TELLS[verb](names)
    elif verb == "kill":
        for name in names:
            kill(name, number)
    elif verb in CHANGES:
        if not names and verb != "reset-failed":
            raise Refused("Too few arguments.")
        for name in names:
            if verb == "stop" or (verb == "disable" and "--now" in flags):
                stop(name)  # not after a start that does not come to an end
            if verb != "stop":
                with job(name):
                    CHANGES[verb](name)
                    if verb == "enable" and "--now" in flags:
                        start(name)
    else:
        raise Refused(f"Unknown command verb {verb}.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Refused, BadUnit) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "status", 1))
