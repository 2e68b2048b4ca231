"""Runs one service for as long as it is started: the part of systemd that stays.

    keeper.py UNIT

It says "started" or "failed" on its output when that is decided. SIGTERM stops the service. What
it knows is in /run/simulated/UNIT.json; the lock on UNIT.lock is held as long as it lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import grp
import json
import os
import pwd
import resource
import selectors
import shlex
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import sandbox
from units import BadUnit, Unit

RUN = Path("/run/simulated")
LOGS = Path("/var/log/units")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DIRECTORIES = {"Runtime": "/run", "State": "/var/lib", "Cache": "/var/cache",
               "Logs": "/var/log", "Configuration": "/etc"}  # fmt: skip
CLEAN = {-signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM, -signal.SIGPIPE, 0}
KINDS = ("simple", "exec", "notify", "oneshot")
ENDING = (signal.SIGINT, signal.SIGTERM)  # which the keeper follows in a way of its own
BECOME_SUBREAPER = 36


class Failed(Exception):
    """The service did not start, or did not stop: systemd's word for why."""


class Keeper:
    """One service."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.kind = unit.get("Type", "simple")
        self.user = unit.get("User", "root")
        self.state: dict[str, object] = {
            "ActiveState": "inactive", "SubState": "dead", "MainPID": 0, "NRestarts": 0,
            "Result": "success", "ExecMainStatus": 0, "ExecMainCode": 0, "StatusText": "",
            "ActiveEnterTimestampMonotonic": 0, "InvocationID": "",
        }  # fmt: skip
        self.main = 0
        self.ended: dict[int, int] = {}
        self.told: set[str] = set()
        self.stopping = False
        self.events = selectors.DefaultSelector()
        self.directories: dict[str, list[str]] = {}

    # -- state -------------------------------------------------------------------------

    def become(self, active: str, sub: str, **more: object) -> None:
        self.state |= {"ActiveState": active, "SubState": sub, "MainPID": self.main, **more}
        new = RUN / f"{self.unit.name}.new"
        keeper = {"keeper": os.getpid(), "settings": self.unit.settings, "state": self.state}
        new.write_text(json.dumps(keeper))
        new.replace(RUN / f"{self.unit.name}.json")

    def answer(self, word: str) -> None:
        """Tell who waits, once."""
        with contextlib.suppress(OSError):
            os.write(1, word.encode() + b"\n")
        quiet = os.open("/dev/null", os.O_WRONLY)
        os.dup2(quiet, 1)
        os.close(quiet)

    # -- waiting -----------------------------------------------------------------------

    def listen(self) -> None:
        """Hear of signals and of what the service says about itself."""
        heard, woken = socket.socketpair()
        heard.setblocking(False)
        woken.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        self._kept = woken
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.events.register(heard, selectors.EVENT_READ)
        path = RUN / f"{self.unit.name}.notify"
        path.unlink(missing_ok=True)
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(path))
        notify.setblocking(False)
        path.chmod(0o777)
        self.events.register(notify, selectors.EVENT_READ, self._hear)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _hear(self, message: bytes) -> None:
        for line in message.decode("utf-8", "replace").splitlines():
            name, _, value = line.partition("=")
            if name == "STATUS":
                self.state["StatusText"] = value
            elif name == "MAINPID" and value.isdigit():
                self.main = int(value)
            self.told.add(line)

    def wait(self, seconds: float, until: Callable[[], bool]) -> bool:
        """Whether it came true in that time."""
        end = time.monotonic() + seconds
        while True:
            self._reap()
            if until():
                return True
            left = end - time.monotonic()
            if left <= 0:
                return False
            for key, _ in self.events.select(None if left == float("inf") else left):
                assert isinstance(key.fileobj, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    message = key.fileobj.recv(65536)
                    if key.data:
                        key.data(message)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self.ended[pid] = os.waitstatus_to_exitcode(status)

    # -- processes ---------------------------------------------------------------------

    def make_directories(self) -> None:
        """RuntimeDirectory= and its kin: the user's, with their modes."""
        owner, group = ids(self.user, self.unit.get("Group"))
        for kind, base in DIRECTORIES.items():
            mode = int(self.unit.get(f"{kind}DirectoryMode", "0755"), 8)
            paths = [f"{base}/{word}" for word in self.unit.words(f"{kind}Directory")]
            for path in paths:
                os.makedirs(path, mode=0o755, exist_ok=True)
                if kind != "Configuration":
                    os.chown(path, owner, group)
                os.chmod(path, mode)
            self.directories[kind] = paths

    def environment(self) -> dict[str, str]:
        given = {"PATH": PATH, "LANG": "C.UTF-8"}
        if self.unit.get("User"):
            entry = pwd.getpwnam(self.user)
            given |= {"USER": entry.pw_name, "LOGNAME": entry.pw_name, "HOME": entry.pw_dir,
                      "SHELL": entry.pw_shell}  # fmt: skip
        if self.kind == "notify":
            given["NOTIFY_SOCKET"] = str(RUN / f"{self.unit.name}.notify")
        for kind, paths in self.directories.items():
            if paths:
                given[f"{kind.upper()}_DIRECTORY"] = ":".join(paths)
        given["INVOCATION_ID"] = str(self.state["InvocationID"])
        if self.main:
            given["MAINPID"] = str(self.main)
        return given | self.unit.environment()

    def spawn(self, line: str) -> int:
        """Start one Exec line as systemd would; 203 is a program that is not there."""
        marks, line = split_marks(line)
        given = self.environment()
        words = substitute(line, given)
        # What would end the program ends its process before the program is there, too.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            return pid
        try:
            for number in (signal.SIGHUP, *ENDING):  # whoever began this host may ignore it
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            os.setsid()
            log = os.open(LOGS / f"{self.unit.name}.log", os.O_WRONLY | os.O_APPEND)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(self.unit.get("WorkingDirectory", "/").lstrip("-").replace("~", "/root"))
            os.umask(int(self.unit.get("UMask", "0022"), 8))
            limit_files(self.unit.get("LimitNOFILE"))
            if not os.access(words[0], os.X_OK):
                print(f"{words[0]}: no such program", file=sys.stderr, flush=True)
                os._exit(203)
            if not set(marks) & {"+", "!"}:
                if not sandbox.enter(self.unit, self.directories):
                    os._exit(226)
                words = [*self.privileges(), *words]
            signal.set_wakeup_fd(-1)
            os.execvpe(words[0], words, given)
        except Exception as error:
            print(f"cannot run it: {error!r}", file=sys.stderr, flush=True)
        os._exit(216)

    def privileges(self) -> list[str]:
        """Who the process is and what it may: all of it by setpriv."""
        words = ["setpriv"]
        if self.unit.get("User") or self.unit.get("Group"):
            owner, group = ids(self.user, self.unit.get("Group"))
            groups = {group, *(grp.getgrnam(name).gr_gid
                               for name in self.unit.words("SupplementaryGroups"))}  # fmt: skip
            groups |= set(os.getgrouplist(self.user, group))
            listed = ",".join(map(str, sorted(groups)))
            words += ["--reuid", str(owner), "--regid", str(group), "--groups", listed]
        if self.unit.flag("NoNewPrivileges"):
            words.append("--no-new-privs")
        section = self.unit.settings.get("Service", {})
        if "CapabilityBoundingSet" in section:
            words += ["--bounding-set", capabilities(self.unit.words("CapabilityBoundingSet"))]
        ambient = self.unit.words("AmbientCapabilities")
        if ambient:
            chosen = capabilities(ambient).removeprefix("-all,")
            words += ["--inh-caps", chosen, "--ambient-caps", chosen]
        return [*words, "--"]

    def run(self, key: str, patience: float) -> None:
        """Run all lines of ExecStartPre= and such, one after the other."""
        for line in self.unit.all(key):
            pid = self.spawn(line)
            if not self.wait(patience, lambda pid=pid: pid in self.ended):  # type: ignore[misc]
                raise Failed("timeout")
            status = self.ended.pop(pid)
            if status and "-" not in split_marks(line)[0]:
                raise Failed("exit-code" if status > 0 else "signal")

    def kill(self, number: int) -> None:
        """To all that the service has started: what systemd has a control group for."""
        told: set[int] = set()
        for _ in range(3):  # also to those that were started meanwhile
            new = set(descendants()) - told
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= new

    # -- one life ----------------------------------------------------------------------

    def start(self) -> None:
        patience = self.unit.seconds("TimeoutStartSec", 90) or float("inf")
        self.told.clear()
        self.state["InvocationID"] = uuid.uuid4().hex
        self.make_directories()
        self.become("activating", "start-pre")
        self.run("ExecStartPre", patience)
        for line in self.unit.all("ExecStart"):
            self.main = self.spawn(line)
            self.become("activating", "start", ExecMainPID=self.main)
            if self.kind == "oneshot" and not self.wait(patience, self.over):
                raise Failed("timeout")
            if self.kind == "oneshot":
                self.judge()
        if self.kind == "notify":
            came = self.wait(patience, lambda: "READY=1" in self.told or self.over())
            if not came:
                raise Failed("timeout")
            if "READY=1" not in self.told:
                self.judge()
                raise Failed("stopped" if self.stopping else "protocol")
        self.run("ExecStartPost", patience)
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        sub = "exited" if self.kind == "oneshot" else "running"
        if self.kind != "oneshot" or self.unit.flag("RemainAfterExit"):
            self.become("active", sub, ActiveEnterTimestampMonotonic=now, Result="success")
        self.answer("started")

    def over(self) -> bool:
        return self.stopping or self.main in self.ended

    def judge(self) -> None:
        """Raise if the main process ended badly."""
        if self.main not in self.ended:
            return
        status = self.ended[self.main]
        self.state |= {"ExecMainStatus": abs(status), "ExecMainCode": 1 if status >= 0 else 2}
        accepted = {int(word) for word in self.unit.words("SuccessExitStatus") if word.isdigit()}
        if status not in CLEAN | accepted:
            raise Failed("exit-code" if status > 0 else "signal")

    def live(self) -> str:
        """Start, and wait for the end; systemd's word for how it ended."""
        result = "success"
        try:
            self.start()
            if self.kind != "oneshot":
                self.wait(float("inf"), self.over)
            elif self.unit.flag("RemainAfterExit"):
                self.wait(float("inf"), lambda: self.stopping)
        except Failed as failure:
            result = str(failure)
        except (BadUnit, OSError, KeyError, ValueError) as error:
            log(self.unit.name, f"cannot start: {error}")
            result = "resources"
        self.become("deactivating", "stop-sigterm")
        ended = self.end()
        return ended if result == "success" else result

    def end(self) -> str:
        """Stop what is left of the service."""
        patience = self.unit.seconds("TimeoutStopSec", 90)
        result = "success"
        try:
            if self.main and self.main not in self.ended:
                self.run("ExecStop", patience)
        except Failed as failure:
            result = str(failure)
        number = getattr(signal, self.unit.get("KillSignal", "SIGTERM"))
        self.kill(number)
        if not self.wait(patience, lambda: not descendants()):
            result = "timeout"
            self.kill(signal.SIGKILL)
            self.wait(90, lambda: not descendants())
        try:
            self.judge()
        except Failed as failure:
            result = str(failure) if result == "success" else result
        with contextlib.suppress(Failed):
            self.run("ExecStopPost", patience)
        self.main = 0
        return result

    def again(self, result: str, status: int) -> bool:
        """Whether Restart= asks for another try."""
        if self.stopping:
            return False
        policy = self.unit.get("Restart", "no")
        prevented = self.unit.words("RestartPreventExitStatus")
        if result == "exit-code" and str(status) in prevented:
            return False
        wanted = {
            "always": True,
            "on-success": result == "success",
            "on-failure": result != "success",
            "on-abnormal": result in ("signal", "timeout"),
            "on-abort": result == "signal",
        }
        return wanted.get(policy, False)

    def keep(self) -> None:
        """Live, and live again, as long as the unit wants it."""
        starts: list[float] = []
        interval = self.unit.seconds("StartLimitIntervalSec", 10, "Unit")
        burst = int(self.unit.get("StartLimitBurst", "5", "Unit"))
        while True:
            now = time.monotonic()
            starts = [*(t for t in starts if now - t < interval), now]
            if len(starts) > burst:
                result = "start-limit-hit"
                break
            result = self.live()
            if not self.again(result, int(str(self.state["ExecMainStatus"]))):
                break
            log(self.unit.name, f"ended ({result}), will be started again")
            self.become("activating", "auto-restart", Result=result)
            self.answer("failed")
            self.ended.clear()
            if self.wait(self.unit.seconds("RestartSec", 0.1), lambda: self.stopping):
                result = "success"
                break
            self.state["NRestarts"] = int(str(self.state["NRestarts"])) + 1
        for path in self.directories.get("Runtime", []):
            if self.unit.get("RuntimeDirectoryPreserve", "no") == "no":
                sandbox.remove(path)
        if result == "success":
            self.become("inactive", "dead", Result=result)
        else:
            log(self.unit.name, f"failed ({result})")
            self.become("failed", "failed", Result=result)
        self.answer("failed" if result != "success" else "started")


def ids(user: str, group: str) -> tuple[int, int]:
    entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    if not group:
        return entry.pw_uid, entry.pw_gid
    return entry.pw_uid, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid


def limit_files(text: str) -> None:
    """LimitNOFILE=, as far as this machine lets us: in a container root may not raise it."""
    if text:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        wanted = [min(int(part), most) for part in text.split(":")]
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted[0], wanted[-1]))


def split_marks(line: str) -> tuple[str, str]:
    rest = line.lstrip("-+!:@")
    return line[: len(line) - len(rest)], rest


def substitute(line: str, given: dict[str, str]) -> list[str]:
    """Words of a command line: ${NAME} within a word, $NAME as words of its own."""
    words: list[str] = []
    for word in shlex.split(line):
        if word.startswith("$") and word[1:].isidentifier():
            words += given.get(word[1:], "").split()
            continue
        for name, value in given.items():
            word = word.replace(f"${{{name}}}", value)
        words.append(word.replace("$$", "$"))
    return words


def capabilities(names: list[str]) -> str:
    """As setpriv writes a set of them."""
    if names and names[0].startswith("~"):
        chosen = ["+all", *(f"-{name.lstrip('~')}" for name in names)]
    else:
        chosen = ["-all", *(f"+{name}" for name in names)]
    return ",".join(word.lower().replace("cap_", "") for word in chosen)


def descendants() -> list[int]:
    """All processes that this one, or what it started, has started and that still run."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def log(name: str, text: str) -> None:
    with (LOGS / f"{name}.log").open("a") as file:
        file.write(f"systemd: {name}: {text}\n")


def main(name: str) -> None:
    RUN.mkdir(exist_ok=True)
    unit = Unit(name)
    log(unit.name, "starting")
    lock = os.open(RUN / f"{unit.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    keeper = Keeper(unit)
    ctypes.CDLL(None).prctl(BECOME_SUBREAPER, 1)
    keeper.listen()
    keeper.keep()


if __name__ == "__main__":
    main(sys.argv[1])
