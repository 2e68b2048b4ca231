"""The collection where Ansible wants it, and ways to run it: one module, or a playbook."""

from __future__ import annotations

import ast
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PLXSH = BIN / "plxsh"
Told = dict[str, Any]


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for collections with a copy of ours."""
    folder = tmp_path_factory.mktemp("collections")
    target = folder / "ansible_collections/parallax/storage"
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "ansible_collection", target, ignore=ignored)
    return folder


@pytest.fixture(scope="session")
def collection(collections: Path) -> Path:
    """That copy."""
    return collections / "ansible_collections/parallax/storage"


@pytest.fixture
def environment(collections: Path, tmp_path: Path) -> dict[str, str]:
    """Variables under which Ansible finds that copy and nothing of the user's."""
    users = [name for name in os.environ if name.startswith(("PARALLAX_", "ANSIBLE_"))]
    kept = {name: os.environ[name] for name in os.environ if name not in users}
    return {
        **kept,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PARALLAX_RUN_DIR": os.environ["PARALLAX_RUN_DIR"],
        "PARALLAX_STATE_DIR": os.environ["PARALLAX_STATE_DIR"],
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(collections),
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_HOME": str(tmp_path / ".ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests/ansible/callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "records",
        "RECORDS": str(tmp_path / "records"),
    }


@dataclass
class Ran:
    """A playbook that was run: what was shown, and what each task returned."""

    status: int
    shown: str
    records: list[Told]

    @property
    def changed(self) -> list[bool]:
        return [record["result"]["changed"] for record in self.records]


class Host:
    """One managed host, which is this machine: a folder with a store and an image."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], zygote: subprocess.Popen[str]
    ) -> None:
        self.folder = folder
        self.zygote = zygote
        self.plxsh = PLXSH
        self.environment = dict(environment)
        self.store = folder / "blockstore.dat"
        self.image = folder / "debian.img"
        self.image.write_bytes(b"root file system" * 40_000 + b"\n" * 300)
        self.always: dict[str, object] = {}  # options that every module is given

    def command(self, name: str, /, **params: object) -> tuple[list[str], dict[str, str]]:
        """The command line that runs one module, as Ansible runs it, and its variables."""
        given: dict[str, object] = {"store": str(self.store), "plxsh": str(PLXSH)}
        given |= {**self.always, **params}
        arguments = self.folder / f"{name}.json"
        temporary = {"_ansible_remote_tmp": str(self.folder), "_ansible_keep_remote_files": False}
        arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": {**temporary, **given}}))
        module = f"ansible_collections.parallax.storage.plugins.modules.{name}"
        return [sys.executable, "-m", module, str(arguments)], self.environment

    def __call__(self, module: str, /, check: bool = False, **params: object) -> Told:
        """Run one module and return what it told, with `failed` or not."""
        words, variables = self.command(module, _ansible_check_mode=check, **params)
        out, err = self.folder / "out", self.folder / "err"
        job = {"module": words[2], "arguments": words[3], "environment": variables}
        assert self.zygote.stdin is not None
        assert self.zygote.stdout is not None
        self.zygote.stdin.write(json.dumps({**job, "out": str(out), "err": str(err)}) + "\n")
        self.zygote.stdin.flush()
        assert self.zygote.stdout.readline().strip() in ("0", "1")
        assert out.read_text(), err.read_text()
        told: Told = json.loads(out.read_text())
        return told

    def does(self, module: str, /, **params: object) -> Told:
        """Check, run, run again and check again; return what the first run told."""
        predicted = self(module, check=True, **params)
        done = self(module, **params)
        again = self(module, **params)
        last = self(module, check=True, **params)
        for told in (predicted, done, again, last):
            assert not told.get("failed"), told
        foretold(predicted, done)
        documented(module, done)
        assert not again["changed"], again
        assert not last["changed"], last
        return done

    def fails(self, module: str, /, **params: object) -> Told:
        """Run what must fail, in check mode too, and return what it told."""
        before = self.contents()
        predicted = self(module, check=True, **params)
        told = self(module, **params)
        assert told.get("failed"), told
        assert predicted.get("failed"), predicted
        assert predicted["msg"] == told["msg"], (predicted, told)
        assert self.contents() == before
        return told

    def contents(self) -> bytes:
        return self.store.read_bytes() if self.store.exists() else b""

    def plx(self, *words: object) -> Told:
        """Run plxsh and return what it answers."""
        line = [str(PLXSH), "-o", "json", "-y", "-s", str(self.store), *map(str, words)]
        ran = subprocess.run(line, env=self.environment, capture_output=True, text=True, check=True)
        answer: Told = json.loads(ran.stdout)
        return answer

    def play(self, tasks: Sequence[Mapping[str, Any]], *options: str) -> Ran:
        """Run tasks as a playbook."""
        path = self.folder / "play.yml"
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
        path.write_text(json.dumps([play]))
        records = self.folder / "records"
        records.write_text("")
        ran = subprocess.run(
            [BIN / "ansible-playbook", "-i", "localhost,", path, *options],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        told = [json.loads(line) for line in records.read_text().splitlines()]
        return Ran(ran.returncode, ran.stdout + ran.stderr, told)


UNKNOWN = ("id", "uuid", "time", "block", "offset")
"""What no check mode can know before it is made."""


def foretold(predicted: Told, done: Told) -> None:
    """Check mode told the truth: the same keys, the same values but for what is made anew."""
    ignored = {"invocation", "backup_file"}
    assert predicted.keys() - ignored == done.keys() - ignored, (predicted, done)
    for key in predicted.keys() - ignored:
        _same(key, predicted[key], done[key])


def _same(key: str, predicted: Any, done: Any) -> None:
    if isinstance(done, dict):
        assert predicted.keys() == done.keys(), key
        for inner in done:
            _same(inner, predicted[inner], done[inner])
    elif key in UNKNOWN and predicted is None:
        assert done is not None
    else:
        assert predicted == done, key


@functools.cache
def returned(module: str) -> Told:
    """What a module says that it returns."""
    text = (ROOT / f"ansible_collection/plugins/modules/{module}.py").read_text()
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "RETURN":
            described: Told = yaml.safe_load(ast.literal_eval(statement.value))
            return described
    raise AssertionError(f"{module} has no RETURN")


TYPES = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict}
COMMON = {"changed", "diff", "invocation", "warnings", "backup_file"}


def documented(module: str, told: Told) -> None:
    """Every key is one that RETURN describes, with its type."""
    told = {key: value for key, value in told.items() if key not in COMMON}
    _documented(module, told, returned(module))


def _documented(where: str, told: Told, described: Told) -> None:
    for key, value in told.items():
        assert key in described, f"{where} returns {key}, which RETURN does not describe"
        kind = described[key]
        assert value is None or type(value) is TYPES[kind["type"]], (where, key, value)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict) and "contains" in kind:
                _documented(f"{where}.{key}", inner, kind["contains"])


@pytest.fixture(scope="session")
def zygote() -> Iterator[subprocess.Popen[str]]:
    """A process of which each module that runs is a fork."""
    words = [sys.executable, str(ROOT / "tests/ansible/zygote.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def host(tmp_path: Path, environment: dict[str, str], zygote: subprocess.Popen[str]) -> Host:
    return Host(tmp_path, environment, zygote)


@pytest.fixture
def stored(host: Host) -> Host:
    """A host with an empty store."""
    host.plx("store", "create", "--extent-size", "1M", "--extents", "16", host.store)
    return host
