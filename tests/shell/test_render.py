"""Values and tables as people and programs see them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.text import columns as cell_width
from core.text import human_size
from plxsh.render import Column, iso_time, table, yaml_lines

COLUMNS = (
    Column("id", "Id", "number"),
    Column("name", "Name", flexible=True),
    Column("size", "Size", "bytes"),
    Column("who", "Who", optional=True),
)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1048575, "1.0 MiB"),
        (1047000, "1022 KiB"),
        (10 << 20, "10 MiB"),
        (2 << 30, "2 GiB"),
        (256 << 40, "256 TiB"),
        (5 << 60, "5 EiB"),
    ],
)
def test_human_sizes(size: int, text: str) -> None:
    assert human_size(size) == text


@given(st.integers(1024, 1 << 62))
def test_human_sizes_are_about_right(size: int) -> None:
    number, unit = human_size(size).split()
    value = float(number) * 1024 ** (" KMGTPE".index(unit[0]))
    assert abs(value - size) <= size * 0.06


def test_times_keep_their_nanoseconds() -> None:
    assert iso_time(1109878068565111007) == "2005-03-03T19:27:48.565111007Z"


def test_tables_align_and_leave_out_empty_columns() -> None:
    records = [{"id": 9, "name": "a", "size": 1}, {"id": 10, "name": "long", "size": 2048}]
    assert table(records, COLUMNS, False, None) == [
        "Id  Name   Size",
        " 9  a       1 B",
        "10  long  2 KiB",
    ]
    assert table([{**records[0], "who": "x"}], COLUMNS, False, None)[0].endswith("Who")
    assert table([], COLUMNS, False, None) == ["Id  Name  Size"]


def test_wide_characters_count_twice() -> None:
    records = [{"id": 1, "name": "디스크", "size": 1}, {"id": 2, "name": "abcdef", "size": 1}]
    lines = table(records, COLUMNS, False, None)
    assert cell_width("디스크") == 6
    assert len({cell_width(line) for line in lines}) == 1


@given(
    st.lists(st.text(st.characters(categories=["L", "N", "Zs"]), max_size=60), min_size=1),
    st.integers(30, 90),
)
def test_tables_fit_the_terminal(names: list[str], width: int) -> None:
    records = [{"id": n, "name": name, "size": n} for n, name in enumerate(names)]
    lines = table(records, COLUMNS, False, width)
    assert max(map(cell_width, lines)) <= width


def test_a_cut_is_shown() -> None:
    lines = table([{"id": 1, "name": "x" * 70, "size": 0}], COLUMNS, False, 40)
    assert "xxx…" in lines[1]


def read_yaml(lines: list[str]) -> object:
    """Read the few forms that the emitter writes; scalars that are quoted are JSON."""
    result: dict[str, object] = {}
    target, items = result, None
    for line in lines:
        body = line
        if line.startswith("- "):
            assert items is not None
            target = {}
            items.append(target)
            body = line[2:]
        elif line.startswith("  "):
            body = line[2:]
        else:
            target = result
        key, _, value = body.partition(":")
        value = value.strip()
        if not value:
            items = []
            target[key] = items
        elif (value[0].isalpha() or value[0] in "_/") and value not in ("null", "true", "false"):
            target[key] = value
        else:
            target[key] = json.loads(value)
    return result


@given(
    st.lists(
        st.fixed_dictionaries({"id": st.integers(), "name": st.text() | st.none() | st.booleans()}),
        min_size=1,
    )
)
def test_yaml_says_what_was_meant(records: list[dict[str, object]]) -> None:
    document = {"schema": 1, "vdis": records}
    assert read_yaml(yaml_lines(document)) == document


@pytest.mark.parametrize("text", ["yes", "No", "null", "1", "1.5", "", "a: b", "a #b", "-", "~"])
def test_yaml_quotes_what_would_be_read_as_something_else(text: str) -> None:
    assert yaml_lines({"name": text}) == [f"name: {json.dumps(text)}"]


def test_yaml_nests() -> None:
    assert yaml_lines({"a": {"b": [1, "x y"], "c": []}, "d": {}}) == [
        "a:",
        "  b:",
        "  - 1",
        "  - x y",
        "  c: []",
        "d: {}",
    ]
