"""Unit files as the stand-in for systemd reads them: with drop-ins, resets and specifiers."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

FOLDERS = [
    Path(folder)
    for folder in (
        "/etc/systemd/system",
        "/run/systemd/system",
        "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system",
    )
]
UNITS = {
    "us": 1e-6, "ms": 1e-3, "": 1, "s": 1, "sec": 1, "second": 1, "seconds": 1, "m": 60,
    "min": 60, "minute": 60, "minutes": 60, "h": 3600, "hr": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
}  # fmt: skip
Settings = dict[str, dict[str, list[str]]]


class BadUnit(Exception):
    """A unit file that systemd would refuse, or that this stand-in cannot run."""


def full_name(name: str) -> str:
    """`parallaxd` is `parallaxd.service`."""
    kinds = "service|socket|target|timer|mount|path|slice|scope|device|automount|swap"
    return name if re.search(rf"\.({kinds})$", name) else f"{name}.service"


class Unit:
    """One unit, as its files say it now."""

    def __init__(self, name: str) -> None:
        self.name = full_name(name)
        base, _, kind = self.name.rpartition(".")
        self.prefix, at, self.instance = base.partition("@")
        self.names = [self.name, *([f"{self.prefix}@.{kind}"] if at else [])]
        self.path = self._find()
        self.drop_ins = self._find_drop_ins()
        self.settings: Settings = {}
        if self.path and not self.masked:
            for path in (self.path, *self.drop_ins):
                merge(self.settings, path)

    def _find(self) -> Path | None:
        for name in self.names:
            for folder in FOLDERS:
                if os.path.lexists(folder / name):
                    return folder / name
        return None

    def _find_drop_ins(self) -> list[Path]:
        found: dict[str, Path] = {}  # a name in an earlier folder hides the same in a later one
        for name in self.names:
            for folder in FOLDERS:
                for path in (folder / f"{name}.d").glob("*.conf"):
                    found.setdefault(path.name, path)
        return [found[name] for name in sorted(found)]

    @property
    def masked(self) -> bool:
        return self.path is not None and os.path.realpath(self.path) == "/dev/null"

    @property
    def load_state(self) -> str:
        if self.path is None:
            return "not-found"
        return "masked" if self.masked else "loaded"

    # -- what it says ------------------------------------------------------------------

    def all(self, key: str, section: str = "Service") -> list[str]:
        return [self._expand(value) for value in self.settings.get(section, {}).get(key, [])]

    def get(self, key: str, default: str = "", section: str = "Service") -> str:
        values = self.all(key, section)
        return values[-1] if values else default

    def words(self, key: str, section: str = "Service") -> list[str]:
        return [word for value in self.all(key, section) for word in shlex.split(value)]

    def flag(self, key: str) -> bool:
        return self.get(key).lower() in ("1", "yes", "y", "true", "t", "on")

    def seconds(self, key: str, default: float, section: str = "Service") -> float:
        text = self.get(key, section=section)
        return seconds(text) if text else default

    def _expand(self, value: str) -> str:
        base = self.name.rpartition(".")[0]
        known = {
            "%": "%", "n": self.name, "N": base, "p": self.prefix, "i": self.instance,
            "t": "/run", "S": "/var/lib", "C": "/var/cache", "L": "/var/log", "E": "/etc",
            "T": "/tmp", "V": "/var/tmp", "H": socket.gethostname(), "h": "/root", "u": "root",
        }  # fmt: skip

        def specifier(found: re.Match[str]) -> str:
            if found[1] not in known:
                raise BadUnit(f"{self.path}: specifier {found[0]} is not known to this stand-in")
            return known[found[1]]

        return re.sub("%(.)", specifier, value)

    def environment(self) -> dict[str, str]:
        """Environment= and EnvironmentFile=, in systemd's order: files come last."""
        given: dict[str, str] = {}
        for word in self.words("Environment"):
            name, equals, value = word.partition("=")
            if equals:
                given[name] = value
        for file in self.all("EnvironmentFile"):
            path = Path(file.lstrip("-"))
            if path.exists() or not file.startswith("-"):
                given.update(assignments(path.read_text()))
        return given

    def enabled(self) -> str:
        """What `systemctl is-enabled` says."""
        if self.path is None:
            return "not-found"
        if self.masked:
            return "masked"
        if not (self.words("WantedBy", "Install") or self.words("RequiredBy", "Install")):
            return "static"
        return "enabled" if all(map(os.path.islink, self.links())) else "disabled"

    def links(self) -> list[Path]:
        """The links that `enable` makes."""
        here = FOLDERS[0]
        wanted = [here / f"{by}.wants" / self.name for by in self.words("WantedBy", "Install")]
        needed = [here / f"{by}.requires" / self.name for by in self.words("RequiredBy", "Install")]
        return [*wanted, *needed, *(here / alias for alias in self.words("Alias", "Install"))]


def merge(settings: Settings, path: Path) -> None:
    """Add what one file says; an empty value forgets what was said before."""
    section = ""
    for line in lines(path.read_text()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not section:
            raise BadUnit(f"{path}: not a setting: {line}")
        values = settings.setdefault(section, {}).setdefault(key, [])
        if value:
            values.append(value)
        else:
            values.clear()


def lines(text: str) -> Iterator[str]:
    """Lines without comments; one that ends in a backslash goes on."""
    whole = ""
    for line in text.splitlines():
        if line.lstrip().startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            whole += line[:-1] + " "
        elif (whole + line).strip():
            yield (whole + line).strip()
            whole = ""
        else:
            whole = ""


def assignments(text: str) -> dict[str, str]:
    """What an EnvironmentFile= says."""
    found = {}
    for line in lines(text):
        name, equals, value = line.partition("=")
        if equals:
            found[name.strip()] = "".join(shlex.split(f"{value.strip()}", posix=True)[:1])
    return found


def seconds(text: str) -> float:
    """A span of time: 90, 1min 30s, infinity."""
    if text == "infinity":
        return float("inf")
    total = 0.0
    parts = re.findall(r"([\d.]+)\s*([a-z]*)", text)
    if not parts or any(unit not in UNITS for _, unit in parts):
        raise BadUnit(f"not a span of time: {text}")
    for number, unit in parts:
        total += float(number) * UNITS[unit]
    return total
