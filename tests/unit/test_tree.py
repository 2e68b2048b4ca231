"""The family tree: what is gathered, and that every drawing of it says the same."""

from __future__ import annotations

import os
import random
import re
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pydot
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stores import poke, small_store

from core import tree_picture
from core.blockstore import Blockstore
from core.errors import BadRequest, IoFailed, NotFound
from core.format import BLOCK_MASK, FREE, LOG_RECORDS, NO_VDI, VdiRecord
from core.session import Session
from core.snaplog import Snapshot, SnapshotId
from core.text import columns, human_size
from core.tree import Branch, Export, Fold, Point, Tree, read_tree
from core.tree_frames import arrange, frame_columns
from core.tree_picture import dot_text, draw, picture_kind, save
from core.tree_text import Span, plain, text_drawing

# pydot reads dot text with names that the newest pyparsing calls old.
pytestmark = pytest.mark.filterwarnings("ignore:.* deprecated - use:DeprecationWarning")

NOW = time.time_ns()
DAY = 86400 * 10**9
HOSTILE = [
    'say "hi"',
    '"all quoted"',
    "back\\slash",
    "C:\\new\\table\\N\\G\\E",
    "ends in \\",
    'ends in \\"',
    "<b>bold</b>",
    "<",
    "a & b && c",
    "&lt;&#65;&amp;amp;",
    "</svg>]]>",
    "{a|b}",
    "a;b->c[label=d]",
    "node",
    "digraph",
    "//x /* y */ #z",
    "%s %n %%",
    "Größe äöü",
    "磁盘 диск קובץ",
    "disk 💾",
    "e\u0301 combining",
    "x" * 255,
    "磁" * 85,
    "two  spaces",
]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Session.open(small_store(tmp_path, 4096)) as opened:
        yield opened


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands: all that is made is as old as `now`, however long that takes."""
    monkeypatch.setattr(time, "time_ns", lambda: NOW)


def newest(session: Session, record: VdiRecord) -> Snapshot:
    return next(session.snapshots(current(session, record)))


def current(session: Session, record: VdiRecord) -> VdiRecord:
    found = session.registry.get(record.id)
    assert found is not None
    return found


def clone(session: Session, parent: VdiRecord, name: str, take: bool = True) -> VdiRecord:
    if take:
        session.snapshot(parent)
    return session.create(name, 0, newest(session, parent))


def rewrite(session: Session, record: VdiRecord, **changes: object) -> None:
    """Put a record into the table that no command would write."""
    old = current(session, record)
    session.registry.write(replace(old, sequence=old.sequence + 1, **changes))  # type: ignore[arg-type]


def damage(session: Session, record: VdiRecord) -> None:
    sb = session.store.sb
    for slot in (0, 1):
        poke(session.store.device.name, sb.vdi_slot(record.id, slot), b"\xff" * 64, 100)


def random_family(session: Session, count: int, seed: int = 1) -> None:
    rnd = random.Random(seed)
    records = [session.create("base", 1 << 30)]
    while len(records) < count:
        name = f"vdi-{len(records)}"
        if rnd.random() < 0.1:
            records.append(session.create(name, 1 << 30))
            continue
        parent = rnd.choice(records[: max(3, len(records) // 2)])
        snapshots = list(session.snapshots(current(session, parent)))
        if not snapshots or rnd.random() < 0.2:
            for _ in range(rnd.choice([1, 1, 2, 5])):
                session.snapshot(parent)
            snapshots = list(session.snapshots(current(session, parent)))
        records.append(session.create(name, 0, rnd.choice(snapshots)))


def invented(count: int) -> Tree:
    """A tree of VDIs in one long line of clones, without a store."""
    tree = Tree()
    for number in range(count):
        add(tree, number, number - 1 if number else None)
    return tree


def text_lines(tree: Tree, width: int = 80, unicode: bool = True) -> list[str]:
    return plain(text_drawing(tree, time.time_ns(), width, unicode).lines)


def parsed(tree: Tree) -> pydot.Dot:
    graphs = pydot.graph_from_dot_data(dot_text(tree))
    assert graphs is not None
    [graph] = graphs
    return graph


def nodes(graph: pydot.Graph) -> dict[str, dict[str, str]]:
    """Attributes of all nodes: cards and frames."""
    found = {n.get_name(): n.get_attributes() for n in graph.get_nodes()}
    return {name: look for name, look in found.items() if name not in ("node", "edge", "graph")}


def edges(graph: pydot.Graph) -> set[tuple[str, str]]:
    return {(str(e.get_source()), str(e.get_destination())) for e in graph.get_edges()}


def cells(graph: pydot.Graph) -> dict[str, Cell]:
    """All that has an id of its own, cards' lines and VDIs in frames included."""
    found = {}
    for look in nodes(graph).values():
        label = ET.fromstring(look["label"][1:-1])
        for td in label.iter("TD"):
            if "ID" in td.attrib:
                for line_break in td.iter("BR"):
                    line_break.tail = "\n" + (line_break.tail or "")
                found[td.get("ID", "")] = Cell(
                    "".join(td.itertext()).replace("\xa0", " ").replace("\\\\", "\\").split("\n"),
                    td.get("TOOLTIP", "").replace("\\\\", "\\").split("\n"),
                    {*td.attrib.values()},
                )
    return found


class Cell(NamedTuple):
    lines: list[str]
    tooltip: list[str]
    looks: set[str]


# -- what is gathered ------------------------------------------------------------------


def test_an_empty_store_has_an_empty_tree(session: Session) -> None:
    tree = read_tree(session.store)
    assert tree == Tree()
    assert text_lines(tree) == []
    assert nodes(parsed(tree)) == {}


def test_a_chain_of_snapshots_is_one_number(session: Session) -> None:
    base = session.create("base", 1 << 20)
    ids = [session.snapshot(base) for _ in range(100)]
    session.create("clone", 0, snapshot_of(session, base, ids[40]))
    tree = read_tree(session.store)
    assert [(p.id, p.fold.count) for p in tree.branches[0].points] == [
        (ids[0], 0),
        (ids[40], 39),
        (ids[99], 58),
    ]
    assert tree.branches[0].snapshots == 100
    assert (tree.branches[1].parent, tree.branches[1].fork) == (0, ids[40])
    assert tree.children == {None: [0], 0: [1]}


def snapshot_of(session: Session, record: VdiRecord, where: SnapshotId) -> Snapshot:
    return next(s for s in session.snapshots(current(session, record)) if s.id == where)


def test_deleted_snapshots_do_not_count_unless_clones_hang_on_them(session: Session) -> None:
    base = session.create("base", 1 << 20)
    ids = [session.snapshot(base) for _ in range(10)]
    session.create("clone", 0, snapshot_of(session, base, ids[4]))
    for n in (0, 2, 4, 5, 9):
        session.delete_snapshot(snapshot_of(session, base, ids[n]))
    points = read_tree(session.store).branches[0].points
    assert [(p.id, p.state, p.fold.count) for p in points] == [
        (ids[1], "live", 0),
        (ids[4], "deleted", 1),
        (ids[8], "live", 2),
    ]


def test_clones_come_in_the_order_of_their_forks(session: Session) -> None:
    base = session.create("base", 1 << 20)
    old, new = session.snapshot(base), session.snapshot(base)
    session.create("on new", 0, snapshot_of(session, base, new))
    session.create("on old", 0, snapshot_of(session, base, old))
    session.create("on old too", 0, snapshot_of(session, base, old))
    names = [branch.name for branch, _ in read_tree(session.store).walk()]
    assert names == ["base", "on old", "on old too", "on new"]


def test_a_family_is_ancestors_and_descendants(session: Session) -> None:
    base = session.create("base", 1 << 20)
    child = clone(session, base, "child")
    clone(session, base, "sibling")
    clone(session, child, "grandchild")
    session.create("stranger", 1 << 20)

    def family(number: int) -> list[str]:
        return [branch.name for branch, _ in read_tree(session.store, number).walk()]

    assert family(child.id) == ["base", "child", "grandchild"]
    assert family(base.id) == ["base", "child", "grandchild", "sibling"]
    assert family(3) == ["base", "child", "grandchild"]
    assert family(4) == ["stranger"]
    [first, last] = read_tree(session.store, child.id).branches[0].points
    assert first.fold == last.fold == Fold()


def test_deleted_vdis_are_drawn_only_for_their_clones(session: Session) -> None:
    base = session.create("base", 1 << 20)
    session.delete(session.create("gone", 1 << 20))
    child = clone(session, base, "child")
    session.delete(current(session, clone(session, base, "gone too")), True)
    rewrite(session, base, state=2, deleted_ns=1)
    tree = read_tree(session.store)
    assert {b.name: b.state for b in tree.branches.values()} == {"base": "deleted", "child": "live"}
    assert tree.children[base.id] == [child.id]
    assert "base (deleted)" in "\n".join(text_lines(tree))
    card = cells(parsed(tree))[f"vdi_{base.id}"]
    assert card.lines == ["0: base", "0 B own of 1 MiB, deleted"]
    assert card.tooltip[-1] == "deleted"


@pytest.mark.parametrize("how", ["free", "reused", "never there"])
def test_a_clone_whose_parent_is_gone_is_a_root_with_a_note(session: Session, how: str) -> None:
    base = session.create("base", 1 << 20)
    child = clone(session, base, "child")
    if how == "free":
        rewrite(session, base, state=FREE)
    elif how == "reused":
        rewrite(session, base, uuid=b"another one's id")
    else:
        rewrite(session, child, parent_vdi=99)
    tree = read_tree(session.store)
    assert child.id in tree.children[None]
    assert "which is gone" in tree.branches[child.id].note
    lines = text_lines(tree)
    assert any(line.startswith(f"! VDI {child.id}: clone of ") for line in lines)
    assert f"vdi_{child.id}" in cells(parsed(tree))


def test_a_reader_beside_a_writer_finds_the_fork_of_a_new_clone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is read in order: a clone may be younger than what was read of its parent."""
    base = session.create("base", 1 << 20)
    before = current(session, base)
    clone(session, base, "clone")
    scan = type(session.registry).scan
    monkeypatch.setattr(
        type(session.registry),
        "scan",
        lambda registry: ((n, before if n == base.id else r) for n, r in scan(registry)),
    )
    tree = read_tree(session.store)
    assert [p.state for p in tree.branches[base.id].points] == ["live"]
    assert tree.branches[base.id].note == ""


# -- damage ----------------------------------------------------------------------------


def test_a_damaged_record_is_one_node_and_keeps_its_clones(session: Session) -> None:
    base = session.create("base", 1 << 20)
    child = clone(session, base, "child")
    alone = session.create("alone", 1 << 20)
    damage(session, base)
    damage(session, alone)
    tree = read_tree(session.store)
    assert {n: b.state for n, b in tree.branches.items()} == {
        0: "damaged",
        1: "live",
        2: "damaged",
    }
    assert tree.children == {None: [0, 2], 0: [1]}
    assert "both records" in tree.branches[0].note
    assert tree.branches[1].fork == SnapshotId(child.parent_block, child.parent_offset)
    text = "\n".join(text_lines(tree))
    assert "(damaged)" in text
    assert "! VDI 0: block" in text
    found = cells(parsed(tree))
    fork = f"vdi_0_at_{child.parent_block}_{child.parent_offset}"
    assert set(found) == {"vdi_0", "vdi_1", "vdi_2", fork}
    assert found[fork].tooltip[1] == "not in the log"
    assert "both records" in found["vdi_0"].tooltip[-1]


def test_a_damaged_log_shows_what_can_be_read(session: Session) -> None:
    base = session.create("base", 1 << 20)
    ids = [session.snapshot(base) for _ in range(LOG_RECORDS + 3)]
    child = session.create("child", 0, snapshot_of(session, base, ids[2]))
    page = current(session, base).log_previous >> 1 & BLOCK_MASK
    poke(session.store.device.name, page, b"\xff" * 64, 2000)
    tree = read_tree(session.store)
    assert [(p.id, p.state) for p in tree.branches[0].points] == [
        (ids[2], "damaged"),
        (ids[LOG_RECORDS], "live"),
        (ids[-1], "live"),
    ]
    assert f"block {page}" in tree.branches[0].note
    assert tree.children[0] == [child.id]
    assert f"vdi_0_at_{ids[2].block}_{ids[2].offset}" in cells(parsed(tree))


def test_a_fork_that_the_log_does_not_have_is_drawn(session: Session) -> None:
    base = session.create("base", 1 << 20)
    child = clone(session, base, "child")
    rewrite(session, child, parent_block=77, parent_offset=3)
    branch = read_tree(session.store).branches[0]
    assert (branch.points[0].id, branch.points[0].state) == ((77, 3), "damaged")
    assert branch.note


def test_loops_of_parents_are_cut(session: Session) -> None:
    records = [session.create(f"vdi-{n}", 1 << 20) for n in range(6)]
    for number, parent in {0: 0, 1: 2, 2: 3, 3: 1, 4: 3}.items():
        rewrite(
            session,
            records[number],
            parent_vdi=parent,
            parent_uuid=records[parent].uuid,
            parent_block=9,
        )
    tree = read_tree(session.store)
    assert sorted(b.id for b, _ in tree.walk()) == [0, 1, 2, 3, 4, 5]
    assert tree.children[None] == [0, 1, 5]
    assert all("descendant" in tree.branches[n].note for n in (0, 1))
    assert [b.id for b, _ in read_tree(session.store, 2).walk()] == [1, 3, 2]
    assert len(text_lines(tree)) >= 7
    assert {f"vdi_{n}" for n in range(6)} <= set(cells(parsed(tree)))


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            st.integers(-1, 11), st.sampled_from([1, 1, 2, 3]), st.booleans(), st.integers(0, 2)
        ),
        max_size=10,
    ),
    st.none() | st.integers(0, 11),
)
def test_whatever_records_claim_is_drawn(
    tmp_path_factory: pytest.TempPathFactory,
    claims: list[tuple[int, int, bool, int]],
    family: int | None,
) -> None:
    """Any parents, states and damage: each VDI that is live appears exactly once."""
    folder = tmp_path_factory.mktemp("claims")
    live = set()
    with Session.open(small_store(folder)) as session:
        records = [session.create(f"vdi-{n}", 1 << 20) for n in range(len(claims))]
        for record, (parent, state, broken, offset) in zip(records, claims, strict=True):
            uuid = records[parent].uuid if 0 <= parent < len(records) else bytes(16)
            rewrite(
                session,
                record,
                state=state,
                parent_vdi=NO_VDI if parent < 0 else parent,
                parent_uuid=uuid,
                parent_offset=offset,
            )
            if broken:
                damage(session, record)
            if broken or state == 1:
                live.add(record.id)
        tree = read_tree(session.store, family)
    (folder / "store").unlink()
    walked = [branch.id for branch, _ in tree.walk()]
    assert len(walked) == len(set(walked)) == len(tree.branches)
    if family is None:
        assert live <= set(walked)
    else:
        assert (family in walked) == (family in live) or set(walked) & live
    assert len(text_lines(tree)) >= len(walked)
    assert {f"vdi_{n}" for n in walked} <= set(cells(parsed(tree)))


# -- as text ---------------------------------------------------------------------------


@pytest.mark.usefixtures("still")
def test_the_text_is_aligned_and_says_it_all(session: Session) -> None:
    base = session.create("base", 10 << 30)
    web = clone(session, base, "web")
    clone(session, web, "web-1")
    clone(session, base, "db", take=False)
    [at_base] = read_tree(session.store).branches[base.id].points
    [at_web] = read_tree(session.store).branches[web.id].points
    assert text_lines(read_tree(session.store)) == [
        "ID  NAME           SIZE  OWN  SNAPS  AGE  FROM",
        " 0  base         10 GiB  0 B      1  now  -",
        f" 1  ├─ web       10 GiB  0 B      1  now  0@{at_base.id}",
        f" 2  │  └─ web-1  10 GiB  0 B      0  now  1@{at_web.id}",
        f" 3  └─ db        10 GiB  0 B      0  now  0@{at_base.id}",
    ]
    ascii_only = text_lines(read_tree(session.store), unicode=False)
    assert [line[4:15] for line in ascii_only[1:]] == [
        "base       ",
        "|- web     ",
        "|  `- web-1",
        "`- db      ",
    ]


@pytest.mark.parametrize("width", [60, 80, 132])
@pytest.mark.parametrize("unicode", [True, False])
def test_long_names_are_cut_to_the_width(session: Session, width: int, unicode: bool) -> None:
    parent = session.create(HOSTILE[0], 1 << 20)
    for name in HOSTILE[1:]:
        parent = clone(session, parent, name)
    lines = text_lines(read_tree(session.store), width, unicode)
    assert len(lines) == len(HOSTILE) + 1
    assert max(map(columns, lines)) <= width
    sizes = {columns(line[: line.index(" MiB")]) for line in lines[1:]}
    assert len(sizes) == 1
    assert all("@" in line for line in lines[2:])
    assert "x" * 8 in "\n".join(lines)
    if not unicode:
        assert all(line.isascii() for line in lines)


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("focus", [None, 0])
def test_every_width_is_kept_and_what_is_left_out_is_said(
    session: Session, unicode: bool, focus: int | None
) -> None:
    base = session.create("base", 10 << 30)
    for name in HOSTILE:
        clone(session, base, name)
    child = clone(session, base, "磁" * 40)
    for depth in range(12):
        child = clone(session, child, f"deep {depth}")
    damage(session, clone(session, base, "damaged"))
    exports = [Export(1, None, False, 12)]
    tree = read_tree(session.store, focus, exports)
    wide = text_drawing(tree, NOW, 300, unicode)
    assert wide.left_out == []
    headings = plain(wide.lines)[0].split()
    for width in range(20, 121):
        drawing = text_drawing(tree, NOW, width, unicode)
        lines = plain(drawing.lines)
        assert max(map(columns, lines)) <= width
        assert sorted(lines[0].split() + drawing.left_out) == sorted(headings)
        assert len(lines) >= len(wide.lines)
    assert text_drawing(tree, NOW, 20, unicode).left_out == headings[2:]


@pytest.mark.usefixtures("still")
def test_the_tree_of_one_vdi_shows_its_snapshots_and_clones_below_them(session: Session) -> None:
    base = session.create("base", 1 << 20)
    ids = [session.snapshot(base, f"l{n}") for n in range(50)]
    web = session.create("web", 0, snapshot_of(session, base, ids[3]))
    at_web = session.snapshot(current(session, web), "mine")
    session.create("web-1", 0, snapshot_of(session, web, at_web))
    session.create("db", 0, snapshot_of(session, base, ids[-1]))
    lines = text_lines(read_tree(session.store, base.id), 120)
    room = lines[0].index("SIZE") - 3
    newest_shown = [f"├─ @{where} l{n}" for n, where in [*enumerate(ids)][10:-1]]
    assert [line[4:room].rstrip() for line in lines[1:]] == [
        "base",
        f"├─ @{ids[0]} l0",
        "├─ +2 snapshots, now",
        f"├─ @{ids[3]} l3",
        "│  └─ web",
        f"│     └─ @{at_web} mine",
        "│        └─ web-1",
        "├─ +6 snapshots, now",
        *newest_shown,
        f"└─ @{ids[-1]} l49",
        "   └─ db",
    ]
    below = text_lines(read_tree(session.store, web.id), 120)
    assert sum("@" in line for line in below) == 2, "of the parent only the fork is shown"
    assert text_drawing(read_tree(session.store, web.id), NOW).lines[3][2].look == "focus"


def test_looks_say_what_is_wrong() -> None:
    tree = invented(3)
    tree.branches[0] = replace(tree.branches[0], state="deleted")
    tree.branches[1] = replace(tree.branches[1], state="damaged", name="", note="block 9 is bad")
    lines = text_drawing(tree, NOW).lines
    assert lines[0][0].look == "heading"
    assert Span("name-0 (deleted)", "deleted") in lines[1]
    assert Span("(damaged)", "damaged") in lines[2]
    assert Span("name-2") in lines[3]
    assert lines[4] == [Span("! VDI 1: block 9 is bad", "damaged")]


def test_a_name_that_fits_is_never_cut() -> None:
    tree = invented(3)
    tree.branches[2] = replace(tree.branches[2], name="n" * 36)
    assert "n" * 36 in text_lines(tree, 80)[3]
    assert "n" * 36 not in text_lines(tree, 60)[3]


def test_a_very_deep_family_keeps_room_for_names() -> None:
    lines = text_lines(invented(1000), 80)
    assert len(lines) == 1001
    assert max(map(columns, lines)) <= 80
    assert all(f"name-{n}" in line for n, line in enumerate(lines[1:]))


def test_control_characters_reach_no_terminal_and_no_picture(session: Session) -> None:
    record = session.create("plain", 1 << 20)
    rewrite(session, record, name="a\x1b[31m\x00\nb\u202ec")
    tree = read_tree(session.store)
    text = "\n".join(text_lines(tree)[1:]) + dot_text(tree).replace("\n", "")
    assert text.isprintable()
    assert "a\\x1b[31m\\x00\\nb\\u202ec" in text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 << 30, "10 GiB"),
        (256 << 40, "256 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert human_size(size) == text


# -- as a picture ----------------------------------------------------------------------


def test_a_card_lists_snapshots_and_clones_hang_on_them(session: Session) -> None:
    base = session.create("base", 1 << 20)
    ids = [session.snapshot(base, "first" if n == 0 else "") for n in range(9)]
    session.create("clone", 0, snapshot_of(session, base, ids[5]))
    graph = parsed(read_tree(session.store))
    assert set(nodes(graph)) == {"vdi_0", "vdi_1"}
    first, fork, last = (f"at_{ids[n].block}_{ids[n].offset}" for n in (0, 5, 8))
    found = cells(graph)
    assert set(found) == {"vdi_0", "vdi_1", *(f"vdi_0_{port}" for port in (first, fork, last))}
    assert found["vdi_0"].lines == ["0: base", "0 B own of 1 MiB"]
    assert found["vdi_0"].tooltip[:2] == ["base", "VDI 0, 1 MiB, 0 B of its own"]
    assert f"9 snapshots, the last shown {ids[8]}" in found["vdi_0"].tooltip
    assert found[f"vdi_0_{first}"].lines == [f"first  {ids[0]}"]
    assert found[f"vdi_0_{first}"].tooltip[:2] == [f"snapshot {ids[0]} of VDI 0 base", "first"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:]{8} UTC", found[f"vdi_0_{first}"].tooltip[2])
    assert edges(graph) == {(f"vdi_0:{fork}:e", "vdi_1")}
    label = nodes(graph)["vdi_0"]["label"]
    assert re.findall(r"\+(\d+) snapshots,", label) == ["4", "2"]
    assert re.search(r'TOOLTIP="4 snapshots left out, 0 B of their own&#10;from [^"]*UTC', label)


def test_names_come_back_from_the_dot_text(session: Session) -> None:
    for name in HOSTILE:
        session.create(name, 1 << 20)
    clone(session, current(session, session.registry.find(HOSTILE[3])), "clone")
    found = cells(parsed(read_tree(session.store)))
    for number, name in enumerate(HOSTILE):
        lines, tooltip, _ = found[f"vdi_{number}"]
        assert "".join(lines).startswith(f"{number}: {name}")
        assert all(columns(line) <= 32 for line in lines[:-1])
        assert tooltip[0] == name


def test_what_is_open_is_marked(session: Session) -> None:
    base = session.create("base", 1 << 20)
    ids = [session.snapshot(base) for _ in range(9)]
    clone(session, base, "clone")
    exports = [Export(0, ids[4], True, 1), Export(1, None, False, 2)]
    tree = read_tree(session.store, exports=exports)
    assert [p.id for p in tree.branches[0].points if p.exports] == [ids[4]]
    lines = text_lines(tree)
    at = lines[0].index("OPEN")
    assert [line[at : at + 12].rstrip() for line in lines] == ["OPEN", "s", "w 2 clients"]
    assert [Span("base", "open")] == [s for s in text_drawing(tree, NOW).lines[1] if s.look]
    found = cells(parsed(tree))
    assert found["vdi_0"].lines[-1] == "a snapshot is open"
    assert found["vdi_1"].lines[-1] == "open, 2 clients"
    assert found[f"vdi_0_at_{ids[4].block}_{ids[4].offset}"].tooltip[-1] == "open to read, 1 client"
    [base_data, clone_data] = tree.data()
    assert clone_data["exports"] == [{"read_only": False, "clients": 2}]
    assert [p["exports"] for p in base_data["points"] if p["exports"]] == [
        [{"read_only": True, "clients": 1}]
    ]


# -- frames ----------------------------------------------------------------------------


def framed(tree: Tree) -> list[tuple[str, list[int]]]:
    return [(f.kind, [b.id for _, b in f.cells]) for f in arrange(tree).frames]


def test_many_clones_of_one_snapshot_stand_in_a_frame(session: Session) -> None:
    base = session.create("base", 1 << 20)
    session.snapshot(base)
    for n in range(30):
        clone(session, base, f"clone-{n}", take=False)
    tree = read_tree(session.store)
    assert framed(tree) == [("crowd", [*range(1, 31)])]
    graph = parsed(tree)
    assert set(nodes(graph)) == {"vdi_0", "frame_1"}
    assert ">30 clones<" in nodes(graph)["frame_1"]["label"]
    [(start, end)] = edges(graph)
    assert start.startswith("vdi_0:at_")
    assert end == "frame_1"


def test_few_clones_stand_for_themselves(session: Session) -> None:
    base = session.create("base", 1 << 20)
    session.snapshot(base)
    for n in range(8):
        clone(session, base, f"clone-{n}", take=False)
    assert framed(read_tree(session.store)) == []


def test_a_long_chain_is_a_frame_in_reading_order() -> None:
    tree = invented(30)
    assert framed(tree) == [("chain", [*range(1, 29)])]
    assert framed(invented(8)) == []
    graph = parsed(tree)
    assert edges(graph) == {("vdi_0:at_0_0:e", "frame_1"), ("frame_1", "vdi_29")}
    rows = ET.fromstring(nodes(graph)["frame_1"]["label"][1:-1]).findall(".//TABLE/TR")
    first = [td.get("ID") for td in rows[0]]
    assert first == [f"vdi_{n}" for n in range(1, 1 + len(first))]
    assert len(first) > 1


def test_small_families_are_lists_when_a_tree_is_too_tall() -> None:
    tree = invented(1)
    for number in range(1, 1023):
        add(tree, number, (number - 1) // 2)
    layout = arrange(tree)
    assert {frame.kind for frame in layout.frames} == {"families"}
    inside = [b.id for frame in layout.frames for _, b in frame.cells]
    assert sorted(inside + [b.id for b in layout.lines]) == [*range(1023)]
    for frame in layout.frames:
        depths = {branch.id: depth for depth, branch in frame.cells}
        for depth, branch in frame.cells:
            assert branch.parent is not None
            assert depth == depths.get(branch.parent, -1) + 1
        assert 1 <= frame_columns(layout, frame) <= 12


def add(tree: Tree, number: int, parent: int | None) -> None:
    """Add a clone of the one snapshot of `parent` to an invented tree."""
    fork = None if parent is None else SnapshotId(parent, 0)
    tree.branches[number] = Branch(number, f"name-{number}", "live", parent=parent, fork=fork)
    tree.children.setdefault(parent, []).append(number)
    if parent is not None and fork is not None and not tree.branches[parent].points:
        tree.branches[parent] = replace(tree.branches[parent], points=(Point(fork),))


@pytest.mark.parametrize("count", [200, 1000])
def test_large_families(count: int) -> None:
    tree = big_tree(count)
    assert len(text_lines(tree)) == count + 1
    assert {f"vdi_{n}" for n in range(count)} <= set(cells(parsed(tree)))


def big_tree(count: int) -> Tree:
    rnd = random.Random(count)
    tree = invented(1)
    for number in range(1, count):
        add(tree, number, rnd.randrange(number))
    return tree


def test_nothing_heavy_is_loaded() -> None:
    """Scripts ask for the tree often; numpy and pydot would take most of the time."""
    code = "import core.tree, sys; print([m for m in ('numpy', 'pydot') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["tree", "tree.gif", "svg", ".svg", "tree.svg.txt"])
def test_a_name_that_says_no_format_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="does not say what to draw"):
        save(Tree(), str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_formats_are_known_by_suffix() -> None:
    kinds = [picture_kind(name) for name in ("a.dot", "a.svg", "A.PNG", "x/y.pdf", "a.b.ps")]
    assert kinds == ["dot", "svg", "png", "pdf", "ps:cairo"]


def test_dot_files_need_no_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    save(invented(3), str(tmp_path / "t.dot"))
    assert (tmp_path / "t.dot").read_text() == dot_text(invented(3))
    with pytest.raises(NotFound, match="Graphviz") as caught:
        save(invented(3), str(tmp_path / "t.svg"))
    assert "apt install graphviz" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["t.dot"]


@pytest.fixture
def fake_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a script in the place of Graphviz."""

    def install(script: str) -> None:
        (tmp_path / "bin").mkdir()
        program = tmp_path / "bin" / "dot"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    return install


@pytest.mark.parametrize("script", ["echo half a picture; echo sorry >&2; exit 3", "true"])
def test_what_was_there_survives_a_failure(
    tmp_path: Path, fake_dot: Callable[[str], None], script: str
) -> None:
    fake_dot(script)
    target = tmp_path / "t.svg"
    target.write_text("the picture of yesterday")
    with pytest.raises(IoFailed, match="Graphviz failed"):
        save(invented(2), str(target))
    assert target.read_text() == "the picture of yesterday"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "t.svg"]


@pytest.mark.slow
def test_a_slow_picture_is_announced(fake_dot: Callable[[str], None]) -> None:
    told: list[str] = []
    fake_dot("cat > /dev/null; sleep 1.5; echo picture")
    assert draw(invented(2), "png", slow=lambda: told.append("slow")) == b"picture\n"
    assert told == ["slow"]


def test_what_is_quick_is_not_announced(
    fake_dot: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_picture, "_PATIENCE", 60.0)  # this machine may be slow
    told: list[str] = []
    fake_dot("cat > /dev/null; echo picture")
    assert draw(invented(2), "png", slow=lambda: told.append("slow")) == b"picture\n"
    assert told == []


def test_reading_tells_how_far_it_is(session: Session) -> None:
    for n in range(3):
        session.create(f"vdi-{n}", 1 << 20)
    told: list[tuple[int, int | None]] = []
    read_tree(session.store, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3)]


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    real, link = tmp_path / "real.dot", tmp_path / "link.dot"
    real.write_text("old")
    link.symlink_to(real)
    with open(real) as reader:
        save(invented(2), str(link))
        assert reader.read() == "old"
    assert link.is_symlink()
    assert real.read_text() == dot_text(invented(2))
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(real.stat().st_mode) == 0o666 & ~mask


def test_an_impossible_place_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot write"):
        save(invented(2), str(tmp_path / "nowhere" / "t.dot"))
    (tmp_path / "d.dot").mkdir()
    with pytest.raises(BadRequest, match="cannot write"):
        save(invented(2), str(tmp_path / "d.dot"))
    assert [p.name for p in tmp_path.iterdir()] == ["d.dot"]


SVG = "{http://www.w3.org/2000/svg}"


def tips(svg: ET.Element) -> dict[str, tuple[str, str]]:
    """What is written in each group with a tooltip, and the tooltip, by the group's id."""
    found = {}
    for group in svg.iter(f"{SVG}g"):
        tip = group.find(f"{SVG}g[@class='tip']")
        if tip is not None:
            text = "".join(t.text or "" for t in tip.iter(f"{SVG}text"))
            found[group.get("id", "")] = text.replace("\xa0", " "), tip.findtext(f"{SVG}title", "")
    return found


def size_of(svg: ET.Element) -> tuple[int, int]:
    """Width and height in CSS pixels."""
    return int(svg.get("width", "")), int(svg.get("height", ""))


@pytest.mark.slow
def test_svg_shows_every_name_just_as_it_is(session: Session) -> None:
    first = session.create(HOSTILE[0], 1 << 20)
    for name in HOSTILE[1:]:
        clone(session, first, name)
    svg = ET.fromstring(draw(read_tree(session.store), "svg", "all <of> & them"))
    assert svg.findtext(f"{SVG}title") == "all <of> & them"
    found = tips(svg)
    for number, name in enumerate(HOSTILE):
        text, tooltip = found[f"a_vdi_{number}"]
        assert text.startswith(f"{number}: {name}")
        assert tooltip.splitlines()[0].replace("\xa0", " ") == name


@pytest.mark.slow
def test_svg_is_fit_for_a_browser(session: Session) -> None:
    base = session.create("base", 1 << 20)
    ids = [session.snapshot(base, f"l{n}") for n in range(9)]
    for n in (0, 8):
        session.create(f"clone-{n}", 0, snapshot_of(session, base, ids[n]))
    svg = ET.fromstring(draw(read_tree(session.store), "svg"))
    found = tips(svg)
    tooltip = found[f"a_vdi_0_at_{ids[8].block}_{ids[8].offset}"][1]
    assert str(ids[8]) in tooltip
    assert "UTC" in tooltip
    assert "1 MiB" in tooltip
    assert any(tip.startswith("7 snapshots left out") for _, tip in found.values())
    assert any(f"cloned from snapshot {ids[0]} of VDI 0" in tip for _, tip in found.values())
    assert not [*svg.iter(f"{SVG}a")], "links go nowhere"
    assert all(title.text for title in svg.iter(f"{SVG}title"))
    assert "parallax" not in "".join(title.text or "" for title in svg.iter(f"{SVG}title"))
    assert "prefers-color-scheme: dark" in svg.findtext(f"{SVG}style", "")
    width, height = size_of(svg)
    assert 200 < width < 1500
    assert 50 < height < 1000


@pytest.mark.slow
def test_every_colour_has_one_for_the_dark(session: Session) -> None:
    base = session.create("base", 1 << 20)
    ids = [session.snapshot(base) for _ in range(9)]
    child = clone(session, base, "child")
    for n in range(12):
        clone(session, base, f"more-{n}", take=False)
    damage(session, clone(session, base, "damaged"))
    session.delete_snapshot(newest(session, base))
    clone(session, child, "grandchild")
    rewrite(session, child, state=2, deleted_ns=1)
    svg = draw(read_tree(session.store, exports=[Export(0, ids[3], True, 1)]), "svg").decode()
    style, picture = svg.split("</style>")
    used = set(re.findall(r'(?:fill|stroke)="(#\w+)"', picture))
    assert len(used) > 8
    assert all(f'[fill="{colour}"]' in style for colour in used)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "begin", "end"),
    [
        (".ps", b"%!PS-Adobe", b"%%EOF\n"),
        (".pdf", b"%PDF-", b"%%EOF\n"),
        (".png", b"\x89PNG", b"IEND\xaeB`\x82"),
        (".svg", b"<?xml", b"</svg>\n"),
    ],
)
def test_pictures_are_whole_files(
    session: Session, tmp_path: Path, suffix: str, begin: bytes, end: bytes
) -> None:
    for name in HOSTILE:
        session.create(name, 1 << 20)
    target = tmp_path / f"t{suffix}"
    save(read_tree(session.store), str(target))
    picture = target.read_bytes()
    assert picture.startswith(begin)
    assert picture.endswith(end)


@pytest.mark.slow
def test_200_vdis_make_a_picture_that_is_neither_a_row_nor_a_column(tmp_path: Path) -> None:
    path = small_store(tmp_path, 4096)
    with Session.open(path) as session:
        random_family(session, 200)
    store = Blockstore.open(path)
    tree = read_tree(store)
    store.close()
    assert len(tree.branches) == 200
    svg = ET.fromstring(draw(tree, "svg"))
    width, height = size_of(svg)
    assert 1 / 5 < width / height < 5
    assert {f"a_vdi_{n}" for n in range(200)} <= set(tips(svg))


SHAPES: dict[str, Callable[[int], int | None]] = {
    "fan": lambda _: 0,
    "chain": lambda n: n - 1,
    "unrelated": lambda _: None,
    "binary": lambda n: (n - 1) // 2,
    "ten fans": lambda n: n % 10 if n > 9 else None,
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_1000_vdis_are_drawn_at_a_size_to_read(shape: str) -> None:
    tree = invented(1)
    for number in range(1, 1000):
        add(tree, number, SHAPES[shape](number))
    svg = ET.fromstring(draw(tree, "svg"))
    assert {f"a_vdi_{n}" for n in range(1000)} <= set(tips(svg))
    width, height = size_of(svg)
    assert 1000 < width < 4500
    assert 1000 < height < 4500


@pytest.mark.slow
def test_10000_snapshots_are_a_few_lines() -> None:
    tree = invented(1)
    points = (Point(SnapshotId(1, 0)), Point(SnapshotId(9, 3), fold=Fold(9998, NOW - DAY, NOW)))
    tree.branches[0] = replace(tree.branches[0], snapshots=10_000, points=points)
    svg = ET.fromstring(draw(tree, "svg"))
    assert max(size_of(svg)) < 500
    assert any("9998 snapshots" in text for text, _ in tips(svg).values())
