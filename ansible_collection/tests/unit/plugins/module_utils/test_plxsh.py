# Copyright: The Parallax developers
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
"""What modules make of plxsh: its options, its answers, its errors, and trying again."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile

import pytest

from ansible_collections.parallax.storage.plugins.module_utils import plxsh as subject
from ansible_collections.parallax.storage.plugins.module_utils.plxsh import (
    Plxsh,
    PlxshError,
    answer,
    delete_snapshot,
    lookup,
)


class Module:
    """As much of an AnsibleModule as Plxsh needs."""

    def __init__(self, program, check_mode=False, **params):
        given = {"store": "/srv/store", "plxsh": program, "wait": 0}
        self.params = {**dict.fromkeys(subject.ARGUMENTS), **given, **params}
        self.check_mode = check_mode
        self.tmpdir = tempfile.gettempdir()

    def get_bin_path(self, name):  # noqa: ARG002  # as AnsibleModule has it
        return None

    def run_command(self, words, environ_update, expand_user_and_vars):
        """Run it as that of AnsibleModule does when it has a bad day: what is in pipes is lost."""
        assert not expand_user_and_vars
        ran = subprocess.run(
            words, env={**os.environ, **environ_update}, capture_output=True, check=False
        )
        return ran.returncode, "", ""


@pytest.fixture
def program(tmp_path):
    """Makes a stand-in for plxsh that does what a script says."""

    def make(script):
        path = tmp_path / "plxsh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


ECHO = """printf '{"words": ['; for word; do printf '"%s", ' "$word"; done; echo '""]}'"""


def test_every_option_reaches_plxsh(program):
    module = Module(program(ECHO), lock_master="a:1", cache="none", config="/etc/x")
    words = Plxsh(module).ask("vdi", "list")["words"][:-1]
    common = ["-o", "json", "-q", "--store", "/srv/store"]
    options = ["--lock-master", "a:1", "--cache", "none", "--config", "/etc/x"]
    assert words == [*common, *options, "vdi", "list"]


def test_check_mode_changes_nothing_and_asks_nothing(program):
    path = program(ECHO)
    real, dry = Plxsh(Module(path)), Plxsh(Module(path, check_mode=True))
    for change, option in (
        (real.change, []),
        (real.change_surely, ["-y"]),
        (dry.change, ["-n"]),
        (dry.change_surely, ["-n"]),
        (dry.ask, []),
    ):
        assert change("x")["words"][5:-1] == [*option, "x"]


def test_an_error_is_told_as_plxsh_told_it():
    told = {"error": {"code": "in_use", "message": "VDI 1 is open", "hint": "wait"}}
    err = "plxsh: warning: something\nplxsh: VDI 1 is open\n" + json.dumps(told) + "\n"
    with pytest.raises(PlxshError) as caught:
        answer(["plxsh"], 4, "", err)
    returned = caught.value.returned()
    assert returned == {
        "msg": "VDI 1 is open (wait)",
        "code": "in_use",
        "hint": "wait",
        "cmd": ["plxsh"],
        "rc": 4,
    }


@pytest.mark.parametrize("out", ["", "\n", "no JSON", "[1]", "null", "{"])
def test_what_is_no_answer(out):
    with pytest.raises(PlxshError) as caught:
        answer(["plxsh"], 0, out, "")
    assert caught.value.code == "no_json"


def test_progress_before_the_answer_is_passed_over():
    assert answer(["plxsh"], 0, '{"done": 1}\n{"vdi": 2}\n', "") == {"vdi": 2}


@pytest.mark.parametrize("path", ["plxsh", "/no/such/plxsh"])
def test_no_plxsh(path):
    with pytest.raises(PlxshError) as caught:
        Plxsh(Module(path)).ask("vdi", "list")
    assert caught.value.code == "no_plxsh"


def busy(times, tmp_path):
    """A script that is refused so many times, then answered."""
    told = json.dumps({"error": {"code": "in_use", "message": "in use", "hint": ""}})
    count = tmp_path / "count"
    few = f"[ $(wc -l < {count}) -le {times} ]"
    return f"echo >> {count}; if {few}; then echo '{told}' >&2; exit 4; fi; echo '{{}}'"


def test_who_holds_the_store_for_a_moment_is_waited_for(program, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_PAUSE", 0.01)
    assert Plxsh(Module(program(busy(3, tmp_path)), wait=60)).ask("x") == {}


def test_without_wait_it_is_told_at_once(program, tmp_path):
    with pytest.raises(PlxshError) as caught:
        Plxsh(Module(program(busy(1, tmp_path)))).ask("x")
    assert caught.value.code == "in_use"


class Told:
    """Answers as plxsh would, by the first two words."""

    def __init__(self, **answers):
        self.answers = answers

    def ask(self, *words):
        found = self.answers["_".join(words[:2])]
        if isinstance(found, PlxshError):
            raise found
        return found

    change_surely = ask


def test_a_missing_store_is_no_missing_vdi():
    missing = PlxshError("not_found", "there is no such thing")
    assert lookup(Told(vdi_show=missing, store_info={}), "web") is None
    assert lookup(Told(vdi_show={"vdi": {"id": 1}}), "web") == {"id": 1}
    for answers in (
        {"vdi_show": missing, "store_info": missing},
        {"vdi_show": PlxshError("corrupt", "damaged")},
    ):
        with pytest.raises(PlxshError):
            lookup(Told(**answers), "web")


def test_a_snapshot_that_somebody_else_deleted():
    snapshot = {"block": 1, "offset": 2}
    assert delete_snapshot(Told(snap_delete={}), "0", snapshot)
    gone = PlxshError("not_found", "it was deleted")
    assert not delete_snapshot(Told(snap_delete=gone), "0", snapshot)
    with pytest.raises(PlxshError):
        delete_snapshot(Told(snap_delete=PlxshError("in_use", "it is open")), "0", snapshot)
