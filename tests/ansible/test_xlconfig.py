"""Editing one disk of an xl configuration file: nothing else in it may change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.module_utils import utility

ENTRY = (
    "format=raw,vdev=xvda,access=rw,script=block-plx,target=nbd+unix:///0?socket=/run/p/nbd.sock"
)


xlconfig = utility("xlconfig")
xldisk = utility("xldisk")

# -- any file ----------------------------------------------------------------------------

OTHERS = [
    "phy:/dev/vg/data,xvdb,w",
    "/srv/a.img,raw,xvdc,rw",
    "/srv/c.iso,,hdc,cdrom",
    "format=qcow2, vdev=xvdd, access=ro, target=/srv/x,y=z.qcow2",
    "tap:parallax:3,sdb1,r,0",
    "phy:/dev/cd,hdb:cdrom,r",
]
MINE = [
    ENTRY,
    "tap:parallax:0,xvda,w,0",
    "phy:/dev/vg/root,xvda,w",
    "/srv/a.img,raw,xvda,rw",
    "vdev=xvda,target=/srv/a#,b.img",
]
STATEMENTS = [
    "name = 'vm01'",
    "memory = 256; vcpus = 2",
    "# disk = [ 'phy:/dev/x,xvda,w' ]",
    "vif = [ 'bridge=xenbr0', # first\n  'bridge=xenbr1',\n]",
    'extra = "a # no comment, \\" no end"',
    "",
    "  on_crash='restart'   # xvda ' \" [",
    "cpuid = [ 'host', [ 1, 2 ] ]",
]
SPACE = st.sampled_from(["", " ", "  ", "\t"])
GAP = st.sampled_from(["", " ", "\n", "\n   ", " # why\n  ", "\n# ',' ]\n\t"])


@st.composite
def configs(draw: st.DrawFn, mine: st.SearchStrategy[str | None]) -> tuple[str, str | None]:
    """A file that xl can read and the entry for xvda in it."""
    chosen = draw(mine)
    entries = draw(st.lists(st.sampled_from(OTHERS), unique=True, max_size=3))
    if chosen is not None:
        entries.insert(draw(st.integers(0, len(entries))), chosen)
    statements = draw(st.lists(st.sampled_from(STATEMENTS), max_size=4))
    if entries or draw(st.booleans()):
        items = ""
        for number, entry in enumerate(entries):
            quote = draw(st.sampled_from("'\""))
            last = number == len(entries) - 1
            comma = "," if not last or draw(st.booleans()) else ""
            items += draw(GAP) + quote + entry + quote + draw(GAP) + comma
        head = draw(SPACE) + "disk" + draw(SPACE) + "=" + draw(SPACE) + "["
        statement = f"{head}{items}{draw(GAP)}]{draw(SPACE)}"
        statements.insert(draw(st.integers(0, len(statements))), statement)
    text = "\n".join(statements) + draw(st.sampled_from(["", "\n", "\n\n"]))
    return (text.replace("\n", "\r\n") if draw(st.booleans()) else text), chosen


def entries(text: str) -> list[str]:
    config = xlconfig.Config(text)
    return [config.entry(place) for place in config.entries]


@given(configs(st.just(None)))
def test_adding_inserts_and_removing_takes_that_away(case: tuple[str, None]) -> None:
    text, _ = case
    added = xlconfig.edited(text, "xvda", ENTRY)
    assert entries(added) == [*entries(text), ENTRY]
    assert subsequence(text, added)
    assert xlconfig.edited(added, "xvda", ENTRY) == added
    removed = xlconfig.edited(added, "xvda", None)
    assert entries(removed) == entries(text)
    assert subsequence(removed, added)
    assert xlconfig.edited(text, "xvda", None) == text


@given(configs(st.sampled_from(MINE)))
def test_changing_touches_that_entry_alone(case: tuple[str, str]) -> None:
    text, mine = case
    changed = xlconfig.edited(text, "xvda", ENTRY)
    kept = mine if xldisk.same(mine, ENTRY) else ENTRY
    assert text.count(mine) == 1 or mine in "".join(STATEMENTS)
    at = xlconfig.Config(text).find("xvda")
    token = at[0].items[at[1]]
    assert changed == text[: token.start + 1] + kept + text[token.end - 1 :]


@given(configs(st.sampled_from(MINE)))
def test_removing_leaves_all_but_that_entry_its_comma_and_spaces(case: tuple[str, str]) -> None:
    text, mine = case
    removed = xlconfig.edited(text, "xvda", None)
    before = entries(text)
    before.remove(mine)
    assert entries(removed) == before
    at = xlconfig.Config(text).find("xvda")
    token = at[0].items[at[1]]
    gone = text[: token.start] + text[token.end :]
    for character in set(gone) - set(" \t\r\n,"):
        assert removed.count(character) == gone.count(character), character
    assert subsequence(removed, text)


@given(st.text(alphabet="disk=[]',\"\n\r\t #;x\\+1a:%"))
def test_any_text_is_edited_right_or_refused(text: str) -> None:
    try:
        added = xlconfig.edited(text, "xvda", ENTRY)
    except xlconfig.Refused as refused:
        lines = range(1, text.count("\n") + 2)
        if refused.line in lines:
            return
        raise
    assert entries(added).count(ENTRY) == 1
    assert subsequence(text, added)


def subsequence(short: str, long: str) -> bool:
    """Say whether a text is left when some characters of another are taken out."""
    left = iter(long)
    return all(character in left for character in short)


# -- examples ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "disk = [ 'NEW' ]\n"),
        ("a=1", "a=1\ndisk = [ 'NEW' ]\n"),
        ("a=1\r\nb=2", "a=1\r\nb=2\r\ndisk = [ 'NEW' ]\r\n"),
        ("disk=[]\n", "disk=[ 'NEW' ]\n"),
        ("disk = [ ]\n", "disk = [ 'NEW' ]\n"),
        ("disk = ['a,,xvdb']\n", "disk = ['a,,xvdb', 'NEW']\n"),
        ("disk = ['a,,xvdb',]\n", "disk = ['a,,xvdb', 'NEW',]\n"),
        (
            "disk = [\n  'a,,xvdb', # root\n]\n",
            "disk = [\n  'a,,xvdb', # root\n  'NEW',\n]\n",
        ),
        (
            "disk = [\n  'a,,xvdb' # root\n]\n",
            "disk = [\n  'a,,xvdb', # root\n  'NEW'\n]\n",
        ),
        ("disk = [\n  'a,,xvdb' ]\n", "disk = [\n  'a,,xvdb',\n  'NEW' ]\n"),
        ("disk = []\ndisk += ['a,,xvdb']\n", "disk = []\ndisk += ['a,,xvdb', 'NEW']\n"),
        ("disk = [ 'tap:parallax:0,xvda,w,0' ]", "disk = [ 'NEW' ]"),
        ('disk = [ "phy:/dev/a,xvda,w" , ]\n', 'disk = [ "NEW" , ]\n'),
    ],
)
def test_where_a_disk_is_put(before: str, after: str) -> None:
    assert xlconfig.edited(before, "xvda", ENTRY) == after.replace("NEW", ENTRY)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nimport os\n", 2),
        ("a = 1\n\nb = 'x' + 'y'\n", 3),
        ("disk = [ 'a,,xvdb' ] + more\n", 1),
        ("disk = [\n 'phy:%s,xvda,w' % name ]\n", 2),
        ("disk = [ f'{a},,xvdb' ]\n", 1),
        ("disk = [ d for d in disks ]\n", 1),
        ("disk = 'a,,xvda'\n", 1),
        ("a=1\ndisk = [ 'a,,xvdb'\n", 3),
        ("disk = [ 'a,,xvdb' 'b,,xvdc' ]\n", 1),
        ("disk = [ 'a,,xvda',\n 'phy:b,xvda,w' ]\n", 2),
        ("disk = ['a,,xvdb']\ndisk = ['b,,xvdc']\n", 2),
        ("disk = [ '''a,,xvdb''' ]\n", 1),
        ("disk = [ 'a,,xvdb,rw,more' ]\n", 1),
        ("disk = [ 'a\\n,,xvdb' ]\n", 1),
        ("if True:\n    disk = []\n", 1),
        ("a = 'no end\n", 1),
        ("a = 1\nDisk = []\n", 2),
        ("_a = 1\n", 1),
        ("a = 0xFF\n", 1),
        ("a = 1\n#\0\n", 2),
        ("disk = [ 'phy:/a,xvda ,w' ]\n", 1),
        ("disk = [ 'vdev=xvdb,vdev=xvdc' ]\n", 1),
        ("a=1\ndisk = [\n'a,,hdc:tape' ]\n", 3),
        ("disk = [ 'a,,xvdb,x' ]\n", 1),
        ("disk = [ 'a,bin,xvdb' ]\n", 1),
        ("disk = [ 'foo=b,xvdb' ]\n", 1),
        ("disk = [ 'phy:/a,xvda,w',\n 'phy:/b,d0p0,w' ]\n", 2),
    ],
)
def test_what_cannot_be_edited_safely_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(xlconfig.Refused, match=f"^line {line}: "):
        xlconfig.edited(text, "xvda", ENTRY)


def test_the_same_disk_in_another_order_stays_as_it_is() -> None:
    text = (
        "disk = [ 'vdev=xvda, script=block-plx, format=raw,"
        "target=nbd+unix:///0?socket=/run/p/nbd.sock' ]\n"
    )
    assert xlconfig.edited(text, "xvda", ENTRY) == text
    assert xlconfig.edited(text, "xvda", ENTRY.replace("rw", "ro")) != text


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("tap:parallax:0,sda1,w,0", {"target": "tap:parallax:0", "vdev": "sda1", "access": "rw"}),
        ("/a.img,raw,xvdb,ro", {"target": "/a.img", "vdev": "xvdb", "access": "ro"}),
        ("phy:/dev/a,hdc:cdrom,r", {"target": "phy:/dev/a", "vdev": "hdc", "access": "ro"}),
        ("vdev=xvda,target=/a,vdev=b", {"target": "/a,vdev=b", "vdev": "xvda"}),
    ],
)
def test_what_an_entry_says(entry: str, told: dict[str, str]) -> None:
    described = xldisk.described(entry)
    assert {key: described[key] for key in told} == told


@pytest.mark.parametrize(
    ("number", "names"),
    [
        (51712, ["xvda", "d0p0", "51712", "0xca00", "0XCA00", "0145000", "+51712", "d0x0p00"]),
        (51712, ["0x10000000", "268435456"]),
        (51713, ["xvda1", "d0p1", "51713", "0xca01"]),
        (51727, ["xvda15", "d0p15", "0xca0f"]),
        (51952, ["xvdp", "d15p0", "d0xfp0", "51952"]),
        (0x10001000, ["xvdq", "d16p0", "d020p0", "0x10001000", "268439552"]),
        (0x10000010, ["xvda16", "d0p16", "268435472"]),
        (0x10000000 | 26 << 8 | 15, ["xvdaa15", "d26p15", "d0x1Ap0xf"]),
        (0x1FFFFFFF, ["xvdbgqcv255", "d1048575p255", "536870911"]),
        (768, ["hda", "768", "0x300"]),
        (833, ["hdb1", "833"]),
        (5632, ["hdc", "5632", "0x1600"]),
        (5696, ["hdd", "5696"]),
        (2048, ["sda", "2048", "04000"]),
        (2051, ["sda3", "2051"]),
        (2303, ["sdp15", "2303"]),
    ],
)
def test_a_device_is_the_same_however_it_is_written(number: int, names: list[str]) -> None:
    """By the rules of xen-vbd-interface(7), and of the C function that reads numbers."""
    assert {xldisk.device_of(name) for name in names} == {number}
    name = next(name for name in names if not name.isdigit())
    entry = ENTRY.replace("xvda", name)
    for other in names:
        text = f"disk = [ 'file:/srv/root.img,{other},w' ]\n"
        assert xlconfig.edited(text, name, entry) == f"disk = [ '{entry}' ]\n"
        assert xlconfig.edited(text, name, None) == "disk = [ ]\n"
        mine = f"disk = [ '{entry.replace(name, other)}' ]\n"
        assert xlconfig.edited(mine, name, entry) == mine


@pytest.mark.parametrize(
    "name",
    [
        *("", "xvd", "xvda0", "xvda01", "xvda256", "xvdbgqcw", "hde", "hda64", "sdq", "sda16"),
        *(
            "d0",
            "d0p",
            "d0p256",
            "d1048576p0",
            "d08p0",
            "08",
            "0x",
            "1_0",
            "0b1",
            "-1",
            "2147483648",
        ),
        *(
            "2147483648",
            "51712x",
            "0xcg",
            "XVDA",
            "vda",
            "\u0665",
            "d\u0660p0",
            "xvdaaaaaaaa",
            "d0p0p0",
        ),
    ],
)
def test_what_is_no_device_is_itself(name: str) -> None:
    assert xldisk.device_of(name) == name


@pytest.mark.parametrize(
    "entry",
    [
        *("a,,xvdb,grant_usage=1", "grant_usage=0,a,,xvdb", "trusted,a,,xvdb", "a,,xvdb,untrusted"),
        *("specification=virtio,a,,xvdb", "a,,xvdb,backendtype=qdisk", ",hdc:cdrom,r"),
        *(",,hdc,cdrom", "vdev=hdc,cdrom", ",hdc:cdrom", "format=raw,vdev=hdc,devtype=cdrom"),
    ],
)
def test_disks_beside_which_one_is_edited(entry: str) -> None:
    before = f"disk = [ '{entry}', 'phy:/dev/a,xvda,w' ]\n"
    after = f"disk = [ '{entry}', '{ENTRY}' ]\n"
    assert xlconfig.edited(before, "xvda", ENTRY) == after
    if "cdrom" in entry:
        assert xldisk.described(entry)["format"] == "empty"


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("a,,xvdb,grant-usage=1", "'grant-usage' is no parameter that xl knows"),
        ("a,,xvdb,grant_usage=2", "'2' is no grant_usage that xl knows"),
        ("no_such=1,a,,xvdb", "'no_such' is no parameter that xl knows"),
        ("Format=raw,a,,xvdb", "'Format' is no parameter that xl knows"),
        ("foo:/a,xvdb", "foo: is no prefix that xl knows"),
        ("vdev=xvdb", "it has no target, and is no CD drive"),
        ("phy:/a", "it has no vdev"),
        ("vdev=xvdb,vdev=xvdb,target=/a", "vdev is given twice, as 'xvdb' and as 'xvdb'"),
        ("/a,,xvdb,devtype=tape", "'tape' is no devtype that xl knows"),
    ],
)
def test_what_xl_would_refuse_is_named(entry: str, why: str) -> None:
    with pytest.raises(xlconfig.Refused) as caught:
        xlconfig.edited(f"disk = [\n'{entry}' ]\n", "xvda", ENTRY)
    assert str(caught.value) == f"line 2: {why}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a = 1\n# b\r\n", None),
        ("a = 'b\r'\n", None),
        ("a = 1\r\n", "CRLF"),
        ("a = [ 1,\r\n2 ]\n", "CRLF"),
        ("a = 1 # b", "newline"),
        ("a = 'b # c'", None),
    ],
)
def test_what_xl_stumbles_over_is_told(text: str, why: str | None) -> None:
    told = xlconfig.Config(text).unreadable
    assert told is None if why is None else why in told


def test_no_edit_leaves_the_rest_of_the_file_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of defence: the module reads its own result before it is written."""
    text = "a = 1\ndisk = [ 'phy:/dev/b,xvdb,w' ]\n"
    for wrong in (
        f"a = 2\ndisk = [ 'phy:/dev/b,xvdb,w', '{ENTRY}' ]\n",
        f"a = 1\ndisk = [ 'phy:/dev/c,xvdb,w', '{ENTRY}' ]\n",
        f"a = 1 # b\ndisk = [ 'phy:/dev/b,xvdb,w', '{ENTRY}' ]\n",
        text,
    ):
        monkeypatch.setattr(xlconfig.Config, "added", lambda *_, wrong=wrong: wrong)
        with pytest.raises(xlconfig.Refused, match="would not say what was asked for"):
            xlconfig.edited(text, "xvda", ENTRY)
