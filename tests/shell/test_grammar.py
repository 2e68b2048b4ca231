"""What each word of a line is, finished or not, right or wrong."""

from __future__ import annotations

import pytest
from click.core import ParameterSource

from plxsh.cli import cli
from plxsh.context import Settings
from plxsh.grammar import Reading, read

ALIASES = {"shell": {"aliases": {"ll": "vdi list", "sc": "snap create --label x"}}}


def reading(line: str) -> Reading:
    return read(cli, line.split(), Settings(config=ALIASES))


def kinds(line: str) -> str:
    """The roles by their first letters; values with their parameter."""
    return " ".join(
        role.param.name or "?" if role.kind == "value" and role.param else role.kind[0]
        for role in reading(line).roles
    )


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", ""),
        ("vdi", "g"),
        ("vdi list", "g c"),
        ("vdi lsit", "g w"),
        ("vdi lsit all the rest", "g w w w w"),
        ("bogus", "w"),
        ("vdi list extra", "g c w"),
        ("vdi show web", "g c vdi"),
        ("vdi show web extra", "g c vdi w"),
        ("vdi create x --size 2G", "g c name o size"),
        ("vdi create x --size=2G", "g c name o"),
        ("vdi create x --size 2Q", "g c name o w"),
        ("vdi create x --bogus", "g c name w"),
        ("vdi create x --size", "g c name o"),
        ("vdi delete web --snapshots=yes", "g c vdi w"),
        ("vdi create -- -x", "g c o name"),
        ("vdi fill web -", "g c vdi source"),
        ("snap diff 16 0 web", "g c pair pair pair"),
        ("snap diff a@b c@d e@f", "g c pair pair w"),
        ("snap delete 16 0", "g c snapshot snapshot"),
        ("snap delete 16.0 1", "g c snapshot w"),
        ("vdi export 16 0 out", "g c contents contents target"),
        ("vdi export web out", "g c contents target"),
        ("-o json vdi list", "o output g c"),
        ("-ojson vdi list", "o g c"),
        ("vdi list -o json", "g c o output"),
        ("vdi list -o jsn", "g c o w"),
        ("vdi list -nyv", "g c o"),
        ("vdi list -nz", "g c w"),
        ("tree -o x.svg", "c o file"),
        ("ll", "c"),
        ("ll extra", "c w"),
        ("sc web", "c vdi"),
        ("watch vdi list", "c g c"),
        ("watch 5 vdi show web", "c words g c vdi"),
        ("watch 0.5 vdi list", "c words g c"),
        ("watch 5 5", "c words w"),
        ("watch vdi lsit", "c g w"),
        ("help vdi create", "c g c"),
    ],
)
def test_roles(line: str, wanted: str) -> None:
    assert kinds(line) == wanted


@pytest.mark.parametrize(
    ("line", "command", "option", "argument"),
    [
        ("", "cli", None, None),
        ("vdi", "vdi", None, None),
        ("vdi show", "show", None, "vdi"),
        ("vdi show web", "show", None, None),
        ("vdi fill web", "fill", None, "source"),
        ("vdi fill web --format", "fill", "image_format", None),
        ("vdi create x", "create", None, "words"),
        ("vdi create x --from", "create", "source", None),
        ("snap delete 16", "delete", None, "snapshot"),
        ("snap delete 16 0", "delete", None, None),
        ("snap diff a@b", "diff", None, "pair"),
        ("snap diff a@b 16 0", "diff", None, None),
        ("vdi export 16", "export", None, "target"),
        ("vdi export 16 0", "export", None, "target"),
        ("-o", "cli", "output", None),
        ("vdi list -o", "list", "output", None),
        ("ll", "list", None, None),
        ("sc", "create", None, "vdi"),
        ("watch", "cli", None, None),
        ("watch 5", "cli", None, None),
        ("watch 5 vdi show", "show", None, "vdi"),
    ],
)
def test_what_comes_next(line: str, command: str, option: str | None, argument: str | None) -> None:
    found = reading(line)
    assert found.command.name == command
    assert (found.option and found.option.name) == option
    assert (found.argument and found.argument.name) == argument


def test_behind_two_dashes_there_are_no_options() -> None:
    assert reading("vdi create").options
    assert not reading("vdi create --").options


def test_broken_aliases_do_not_stop_reading() -> None:
    for broken in ({"shell": {"aliases": {"a": "b; c"}}}, {"shell": {"aliases": 5}}, {"shell": 1}):
        found = read(cli, ["a"], Settings(config=broken))
        assert [role.kind for role in found.roles] == ["wrong"]


@pytest.mark.parametrize(
    "line",
    [
        "vdi create x --size 2G --from base@clean",
        "vdi create x --size=2G 16 0",
        "vdi resize web 4G --force",
        "vdi fill -y web - --format raw",
        "vdi export 16 0 out --format qcow2",
        "snap diff 16 0 web",
        "snap create web --label x",
        "store create p --extent-size 2M --extents 8",
        "tree web -o x.svg --output json",
        "disk xen web xvda r --backend dom1",
        "vdi list -nqy -o json",
        "vdi show -- -x",
    ],
)
def test_it_reads_what_click_reads(line: str) -> None:
    """Every option and argument that click finds given has a word here, and no other."""
    found = reading(line)
    assert all(role.kind != "wrong" for role in found.roles)
    depth = [role.kind for role in found.roles].count("group") + 1
    words = line.split()[depth:]
    parsed = found.command.make_context("x", words, obj=Settings(), resilient_parsing=False)
    given = {
        param.name
        for param in found.command.get_params(parsed)
        if parsed.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
    }
    assert found.context.params.keys() == given
