"""Editing one disk of a libvirt domain: nothing else in its XML may change."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.module_utils import utility

domainxml = utility("domainxml")
Refused = utility("xmltext").Refused

ELEMENT = (
    "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
    "<source protocol='nbd' name='1'>"
    "<host transport='unix' socket='/run/parallax/nbd.sock'/></source>"
    "<target dev='vda' bus='virtio'/></disk>"
)
READ_ONLY = ELEMENT.replace("</disk>", "<readonly/></disk>").replace("name='1'", "name='2@16.0'")


def edited(text: str | bytes, element: str | None, target: str = "vda") -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    after = domainxml.edited(raw, target, element)
    assert isinstance(after, bytes)
    return after


# -- any domain --------------------------------------------------------------------------

OTHERS = [
    '<disk type="file" device=\'disk\'><source file="/a &amp; b.img"/><target dev="vdb"/></disk>',
    "<disk><!-- vda --><target dev='sda' bus='sata'/><serial><![CDATA[<vda>]]></serial></disk>",
    "<disk type='block' >\n      <source dev='/dev/x'\n/><target\n dev = 'hdc' /></disk >",
    "<disk device='cdrom'/>",
    "<interface type='network'><target dev='vda'/><mac address='52:54:00:00:00:01'/></interface>",
    "<!-- <disk><target dev='vda'/></disk> -->",
    "<emulator>/usr/bin/qemu-system-x86_64</emulator>",
    "<controller type='scsi' model='a&#x20;b&gt;'/>",
    "<?keep <disk> this?>",
    "größe 日本",
]
MINE = [
    ELEMENT,
    READ_ONLY,
    "<disk type='network'><target bus='virtio' dev='v&#100;a'/><!-- mine -->\n"
    '<source name="7" protocol="nbd"><reconnect delay="3"/>'
    "<host socket='/srv/parallax/nbd.sock' transport='unix'/></source><boot order='1'/></disk>",
    "<disk type='file' device='cdrom'><source file='/a.img'/><target dev='vda' bus='sata'/>"
    "<readonly/><serial>a &amp;>b</serial><address type='drive' unit='0'/></disk>",
]
HEADS = [
    "",
    "<?xml version='1.0'?>\n",
    '<?xml version="1.0" encoding="utf-8" standalone="yes"?>\n<!--\nWARNING: vda\n-->\n',
]
GAP = st.sampled_from(
    ["", "\n", "\n    ", "\n\t\t", "  ", "\n\n    <!-- why --> ", " <!-- ]]> -->\n "]
)


@st.composite
def domains(draw: st.DrawFn, mine: st.SearchStrategy[str | None]) -> tuple[bytes, str | None]:
    """A domain, and the disk vda in it."""
    chosen = draw(mine)
    devices = draw(st.lists(st.sampled_from(OTHERS), unique=True, max_size=4))
    if chosen is not None:
        devices.insert(draw(st.integers(0, len(devices))), chosen)
    inside = "".join(draw(GAP) + device for device in devices) + draw(GAP)
    attribute = draw(st.sampled_from(["", ' a="b>"']))
    held = [f"<devices{attribute}>{inside}</devices>"]
    if not devices and draw(st.booleans()):
        held = draw(st.sampled_from([[], ["<devices/>"], ["<devices />"]]))
    around = ["<name>vda</name>", "<metadata><x:disk xmlns:x='u'>&lt;</x:disk></metadata>"]
    held = [*draw(st.lists(st.sampled_from(around), unique=True)), *held]
    held += draw(
        st.sampled_from([[], ["<qemu:commandline><qemu:arg value='-s'/></qemu:commandline>"]])
    )
    root = "<domain type='kvm' xmlns:qemu=\"http://libvirt.org/schemas/domain/qemu/1.0\">"
    text = draw(st.sampled_from(HEADS)) + root
    text += "".join(draw(GAP) + part for part in held) + draw(GAP) + "</domain>"
    text += draw(st.sampled_from(["", "\n", "\n<!-- end -->\n"]))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    mark = b"\xef\xbb\xbf" if draw(st.booleans()) else b""
    return mark + text.encode(), chosen


def span(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """What stands before the disk vda, that disk, and what stands behind it."""
    domain = domainxml.Domain(raw)
    disk = domain.find("vda")
    start, end = (
        disk.start + len(raw) - len(domain.xml.data),
        disk.end + len(raw) - len(domain.xml.data),
    )
    return raw[:start], raw[start:end], raw[end:]


def bare(raw: bytes) -> bytes:
    """A file without space, and with no element in one tag."""
    return b"".join(re.sub(rb"<devices\s*/>", b"<devices></devices>", raw).split())


@given(domains(st.just(None)), st.sampled_from([ELEMENT, READ_ONLY]))
def test_adding_inserts_and_removing_takes_that_away(case: tuple[bytes, None], new: str) -> None:
    raw, _ = case
    added = edited(raw, new)
    before, disk, behind = span(added)
    assert bare(disk) == bare(new.encode())
    left = bare(before + behind)
    assert left.replace(b"<devices></devices>", b"") == bare(raw).replace(
        b"<devices></devices>", b""
    )
    if b"<devices/>" not in raw and b"<devices />" not in raw and b"<devices" in raw:
        common = len(before) - len(before.lstrip())
        assert common == 0 or raw.startswith(before.rstrip())
        assert raw.endswith(behind.lstrip())
    assert edited(added, new) == added
    assert bare(edited(added, None)) == left
    assert edited(raw, None) == raw


@given(domains(st.sampled_from(MINE)), st.sampled_from([ELEMENT, READ_ONLY]))
def test_changing_touches_that_disk_alone(case: tuple[bytes, str], new: str) -> None:
    raw, _ = case
    before, _, behind = span(raw)
    changed = edited(raw, new)
    assert span(changed)[0] == before
    assert span(changed)[2] == behind
    assert edited(changed, new) == changed


@given(domains(st.sampled_from(MINE)))
def test_removing_leaves_all_but_that_disk(case: tuple[bytes, str]) -> None:
    raw, _ = case
    before, _, behind = span(raw)
    removed = edited(raw, None)
    assert bare(removed) == bare(before + behind)
    assert removed.startswith(before.rstrip())
    assert removed.endswith(behind.lstrip())


@given(domains(st.sampled_from([None, *MINE])), st.data())
def test_a_damaged_file_is_edited_right_or_refused(
    case: tuple[bytes, str | None], data: st.DataObject
) -> None:
    raw, _ = case
    at = data.draw(st.integers(0, len(raw)))
    cut = data.draw(st.integers(0, 40))
    junk = data.draw(
        st.sampled_from([b"", b"<", b">", b"/", b"'", b"\x00", b"\xff", b"<disk>", b"&x;", b"]]>"])
    )
    damaged = raw[:at] + junk + raw[at + cut :]
    try:
        after = edited(damaged, ELEMENT)
    except Refused as refused:
        if refused.line in range(1, damaged.count(b"\n") + 2):
            return
        raise
    assert edited(after, ELEMENT) == after
    assert bare(edited(after, None)) in (bare(edited(damaged, None)), bare(damaged)) or (
        b"<devices" not in damaged
    )


@given(st.binary(max_size=60) | st.text(alphabet="<>/=' domainevsk!?[]-&;", max_size=60))
def test_no_junk_is_taken_for_a_domain(junk: bytes | str) -> None:
    with pytest.raises(Refused):
        edited(junk, ELEMENT)


# -- examples ----------------------------------------------------------------------------

LAID_OUT = """\
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='nbd' name='1'>
        <host transport='unix' socket='/run/parallax/nbd.sock'/>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<domain/>", "<domain><devices>ONE</devices></domain>"),
        ("<domain></domain>", "<domain><devices>ONE</devices></domain>"),
        ("<domain><devices/></domain>", "<domain><devices>ONE</devices></domain>"),
        (
            "<domain>\n  <name>a</name>\n</domain>\n",
            "<domain>\n  <name>a</name>\n  <devices>\nLINES  </devices>\n</domain>\n",
        ),
        (
            "<domain>\n  <devices a='/>' />\n</domain>\n",
            "<domain>\n  <devices a='/>'>\nLINES  </devices>\n</domain>\n",
        ),
        (
            "<domain>\n  <devices>\n    <!-- none -->\n  </devices>\n</domain>\n",
            "<domain>\n  <devices>\nLINES    <!-- none -->\n  </devices>\n</domain>\n",
        ),
        (
            "<domain>\n  <devices>\n    <emulator>/q</emulator> <!-- e -->\n    <video/>\n"
            "  </devices>\n</domain>\n",
            "<domain>\n  <devices>\n    <emulator>/q</emulator> <!-- e -->\nLINES    <video/>\n"
            "  </devices>\n</domain>\n",
        ),
        (
            "<domain>\n  <devices>\n    <disk/>\n    <video/>\n    <disk/>\n    <input/>\n"
            "  </devices>\n</domain>\n",
            "<domain>\n  <devices>\n    <disk/>\n    <video/>\n    <disk/>\nLINES    <input/>\n"
            "  </devices>\n</domain>\n",
        ),
    ],
)
def test_where_a_disk_is_put(before: str, after: str) -> None:
    wanted = after.replace("ONE", ELEMENT).replace("LINES", LAID_OUT).encode()
    assert edited(before, ELEMENT) == wanted
    tabs = [text.replace("\n", "\r\n").replace("  ", "\t") for text in (before, wanted.decode())]
    assert edited(tabs[0], ELEMENT) == tabs[1].encode()


OURS = """\
<domain>
  <devices>
    <disk type="network" snapshot='no'>
      <driver name="qemu" cache="none" type='raw'/>
      <source index='3' protocol='nbd' name="7"><reconnect delay='3'/>
        <host transport='unix' socket='/x/parallax/nbd.sock'/>
      </source>
      <target dev="vda" rotation_rate='1' bus="sata"/>
      <readonly/>
      <boot order="1"/>
      <address type="drive" unit="5"/>
    </disk> <!-- root -->
  </devices>
</domain>
"""


def test_a_disk_of_ours_changes_where_it_differs() -> None:
    wanted = (
        OURS.replace('name="7"', "name='1'")
        .replace("/x/parallax", "/run/parallax")
        .replace('bus="sata"', "bus='virtio'")
        .replace("\n      <readonly/>", "")
        .replace('\n      <address type="drive" unit="5"/>', "")
    )
    assert edited(OURS, ELEMENT).decode() == wanted
    bus = ELEMENT.replace("virtio", "sata").replace("'1'", "'7'").replace("/run/", "/x/")
    assert edited(OURS, bus).decode() == OURS.replace("\n      <readonly/>", "")
    assert edited(OURS, bus.replace("</disk>", "<readonly/></disk>")) == OURS.encode()


def test_a_changed_attribute_is_written_as_xml_wants_it() -> None:
    odd = '/run/a&amp;b &lt;c&gt; &apos;d&apos; "e&#10;f&#9;]]&gt;/parallax/nbd.sock'
    element = ELEMENT.replace("/run/parallax/nbd.sock", odd)
    after = edited(OURS, element)
    host = domainxml.Domain(after).find("vda").child("source").child("host")
    assert host.attributes["socket"] == "/run/a&b <c> 'd' \"e\nf\t]]>/parallax/nbd.sock"
    assert odd in after.decode()


def test_another_disk_is_replaced_and_keeps_what_is_the_machines() -> None:
    theirs = OURS.replace("transport='unix'", "name='host1'").encode()
    wanted = f"""\
<domain>
  <devices>
{LAID_OUT[:-12]}      <boot order="1"/>
    </disk> <!-- root -->
  </devices>
</domain>
"""
    assert edited(theirs, ELEMENT).decode() == wanted
    assert b"unit=" in edited(theirs, ELEMENT.replace("virtio", "sata"))


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "iso-8859-1", "us-ascii", "windows-1252", "utf-16"]
)
def test_a_file_keeps_its_encoding(encoding: str) -> None:
    said = encoding.removesuffix("-sig")
    comment = "root" if encoding == "us-ascii" else "gr\xf6\xdfe"
    text = f"<?xml version='1.0' encoding='{said}'?>\n{OURS}".replace("root", comment)
    after = edited(text.encode(encoding), ELEMENT.replace("name='1'", "name='größe 日本'"))
    assert after.startswith(text.encode(encoding)[:90])
    assert f"<!-- {comment} -->" in after.decode(encoding)
    source = domainxml.Domain(after).find("vda").child("source")
    assert source.attributes["name"] == "größe 日本"


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("", 1, "no element found"),
        ("<network/>", 1, "no domain but <network>"),
        ("<!-- a -->\n<domstatus><domain/></domstatus>", 2, "no domain but <domstatus>"),
        ("<domains>\n<domain/><domain/></domains>", 1, "no domain but <domains>"),
        ("<domain/>\n<domain/>", 2, "junk after document element"),
        ("<domain>\n<devices/>\n<devices/></domain>", 3, "several <devices>"),
        (
            "<domain><devices>\n<disk><target dev='vda'/></disk>\n"
            "<disk><target dev='vda'/></disk>\n</devices></domain>",
            3,
            "several vda, in lines 2 and 3",
        ),
        (
            "<domain><devices><disk>\n<target dev='vda'/>\n<target dev='vdb'/></disk></devices>"
            "</domain>",
            3,
            "several targets",
        ),
        ("<domain xmlns='u'/>", 1, "no <domain> with an xmlns"),
        ("<domain>\n<devices xmlns='u'/></domain>", 2, "no <devices> with an xmlns"),
        ("<domain>\n<name>a</nam></domain>", 2, "mismatched tag"),
        ("<domain><name>\n&a;</name></domain>", 2, "undefined entity"),
        ("<!DOCTYPE domain SYSTEM 'd'>\n<domain/>", 1, "document type"),
        (
            "<?xml version='1.0'?>\n<!DOCTYPE a [<!ENTITY a 'aaaa'>"
            "<!ENTITY b '&a;&a;&a;&a;'>]>\n<domain>&b;</domain>",
            2,
            "document type",
        ),
        ("<?xml version='1.0' encoding='utf-7'?>\n<domain/>", 1, "encoding utf-7"),
        ("<?xml version='1.0' encoding='klingon'?>\n<domain/>", 1, "encoding klingon"),
        ("<?xml version='1.0' encoding='utf-16'?>\n<domain/>", 1, "its first bytes say"),
        ("\ufeff<?xml version='1.0' encoding='iso-8859-1'?>\n<domain/>", 1, "its first bytes say"),
        (b"<domain>\n<name>\xe9</name></domain>", 2, "this is not utf-8"),
        ("<domain/>".encode("utf-16-le"), 1, "byte order mark"),
        ("<domain>" * 300, 1, "nested more than 200 deep"),
        ("\n<domain type='xen'/>", 2, "no NBD disk to a Xen domain"),
        ("<domain type='kvm'>\x00</domain>", 1, "a NUL byte"),
    ],
)
def test_what_cannot_be_edited_safely_is_refused_with_its_line(
    text: str | bytes, line: int, why: str
) -> None:
    with pytest.raises(Refused, match=f"^line {line}: .*{re.escape(why)}"):
        edited(text, ELEMENT)


def test_a_disk_of_a_xen_domain_can_be_removed() -> None:
    assert edited(f"<domain type='xen'><devices>{ELEMENT}</devices></domain>", None) == (
        b"<domain type='xen'><devices></devices></domain>"
    )


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        (("", ""), True),
        (("/run/parallax/nbd.sock", "/run/other/nbd.sock"), False),
        (("/run/parallax/nbd.sock", "/mine.sock"), True),
        (("type='network'", "type='file'"), False),
        (("protocol='nbd'", "protocol='rbd'"), False),
        (("transport='unix'", "transport='tcp'"), False),
        (("<host", "<host name='b'/><host"), False),
        (("<source", "<source/><source"), False),
    ],
)
def test_which_disks_are_of_parallax(change: tuple[str, str], ours: bool) -> None:
    raw = f"<domain><devices>{ELEMENT.replace(*change)}</devices></domain>".encode()
    disk = domainxml.Domain(raw).find("vda")
    assert domainxml.is_parallax(disk, "/mine.sock") is ours


def test_no_edit_leaves_the_rest_of_the_file_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of defence: the module reads its own result before it is written."""
    raw = "<domain><name>a</name><devices><disk/><!-- b --></devices></domain>"
    right = raw.replace("<disk/>", f"<disk/>{ELEMENT}")
    for wrong in (
        right.replace("<name>a", "<name>b"),
        right.replace("<disk/>", "<disk a='b'/>"),
        right.replace(" b ", " c "),
        right.replace("'1'", "'2'"),
        raw,
    ):
        monkeypatch.setattr(domainxml.Domain, "added", lambda *_, wrong=wrong: wrong.encode())
        with pytest.raises(Refused, match="would not say what was asked for"):
            edited(raw, ELEMENT)
