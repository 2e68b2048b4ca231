"""What the shell says of a configuration that is wrong, when it starts."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from shell.conftest import OpenShell, Plx

from plxsh.cli import cli
from plxsh.config_check import complaints
from plxsh.context import Settings


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("", []),
        ('[blockstore]\ndata = "x"\n[shell]\nkeys = "vi"\npager = ""\noutput = "json"\n', []),
        ('[shell.aliases]\nll = "vdi list -o json"\njl = "-o json"\nws = "watch 5"\n', []),
        ("[shel]\nkeys = 1\n", ["an unknown section [shel]; did you mean 'shell'?"]),
        ('[shell]\nkey = "vi"\n', ["an unknown key 'key' in [shell]; did you mean 'keys'?"]),
        ('[tap]\ngc = "1h"\n', ["an unknown key 'gc' in [tap]"]),
        ("tap = 1\n", []),
        ("[shell]\naliases = 1\n", ["[shell.aliases] of the configuration is no table"]),
        ("[shell.aliases]\nll = 3\n", ["is no table of texts; write lines like"]),
        ('[shell.aliases]\nvdi = "tree"\n', ["'vdi' is never used: a command has this name"]),
        ('[shell.aliases]\nll = ""\n', ["the alias 'll' stands for nothing"]),
        ('[shell.aliases]\nll = "ll -x"\n', ["'ll' stands for no command: 'll -x'"]),
        ('[shell.aliases]\na = "vdi lsit"\nb = "tree; tree"\n', ["no command: 'vdi lsit'", "'b'"]),
        ('[shell.aliases]\nll = "vdi \'x"\n', ["is not closed"]),
    ],
)
def test_complaints(config: str, told: list[str]) -> None:
    found = [*complaints(cli, Settings(config=tomllib.loads(config)))]
    assert len(found) == len(told), found
    for text, part in zip(found, told, strict=True):
        assert part in text
        assert "\n" not in text


def test_a_misspelled_lock_master_is_refused_by_every_command(plx: Plx) -> None:
    Path("wrong.toml").write_text('[lock_master]\nadress = "10.0.0.5:8440"\n')
    line = plx.fails(2, "--config", "wrong.toml", "vdi", "list")
    assert "[lock_master] of the configuration has an unknown key 'adress' (it may have" in line
    Path("wrong.toml").write_text('[lock_master]\nkey = "k"\nlisten = "h:1"\nstate = "s"\n')
    assert plx("--config", "wrong.toml", "vdi", "list").out


@pytest.mark.slow
def test_the_shell_says_it_and_starts(open_shell: OpenShell) -> None:
    Path("wrong.toml").write_text('[shell]\nkes = "vi"\n[shell.aliases]\nll = "vdi lsit"\n')
    shell = open_shell("--config", "wrong.toml")
    assert shell.find("plxsh: warning: the configuration has an unknown key 'kes' in [shell]")
    assert shell.find("plxsh: warning: the alias 'll' stands for no command: 'vdi lsit'")
    assert "base" in "".join(shell.run("vdi show base"))
