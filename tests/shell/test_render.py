"""Values and tables as people and programs see them."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shell.conftest import Plx, Result
from support.yaml_reader import load

from core.text import columns as cell_width
from core.text import human_age, human_size
from plxsh import render
from plxsh.context import Settings
from plxsh.render import Column, field_lines, iso_time
from plxsh.yaml_text import yaml_lines

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


SECOND = 1_000_000_000
MINUTE, HOUR, DAY, YEAR = 60, 3600, 86_400, 31_556_952


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "now"),
        (0.9, "now"),
        (1, "1 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (HOUR - 1, "59 min"),
        (HOUR, "1 h"),
        (47 * HOUR, "47 h"),
        (2 * DAY, "2 d"),
        (14 * DAY - 1, "13 d"),
        (21 * DAY, "3 w"),
        (YEAR - 1, "52 w"),
        (YEAR, "1 y"),
        (2.5 * YEAR, "2.5 y"),
        (30.5 * YEAR, "30 y"),
        (-1, "now"),
        (-60, "now"),
        (-61, "in 1 min"),
        (-3 * HOUR, "in 3 h"),
        (-2 * YEAR, "in 2 y"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    now = 1_700_000_000 * SECOND
    assert human_age(now - int(seconds * SECOND), now) == text


@given(st.integers(-(1 << 62), 1 << 62), st.integers(0, 1 << 62))
def test_ages_are_short(then: int, now: int) -> None:
    assert len(human_age(then, now).removeprefix("in ")) <= len("59 min")


def test_times_keep_their_nanoseconds() -> None:
    assert iso_time(1109878068565111007) == "2005-03-03T19:27:48.565111007Z"


def table(
    records: list[dict[str, object]], width: int | None = None, columns: tuple[Column, ...] = ()
) -> list[str]:
    return render.table(records, columns or COLUMNS, False, width)[0]


def left_out(records: list[dict[str, object]], width: int, *columns: Column) -> list[str]:
    return [c.key for c in render.table(records, columns or COLUMNS, False, width)[1]]


def test_tables_align_and_leave_out_empty_columns() -> None:
    records = [{"id": 9, "name": "a", "size": 1}, {"id": 10, "name": "long", "size": 2048}]
    assert table(records) == [
        "Id  Name   Size",
        " 9  a       1 B",
        "10  long  2 KiB",
    ]
    assert table([{**records[0], "who": "x"}])[0].endswith("Who")
    assert table([]) == ["Id  Name  Size"]


def test_wide_characters_count_twice() -> None:
    records = [{"id": 1, "name": "디스크", "size": 1}, {"id": 2, "name": "abcdef", "size": 1}]
    lines = table(records)
    assert cell_width("디스크") == 6
    assert len({cell_width(line) for line in lines}) == 1


@given(
    st.lists(st.text(st.characters(categories=["L", "N", "Zs"]), max_size=60), min_size=1),
    st.integers(1, 90),
)
def test_tables_fit_the_terminal(names: list[str], width: int) -> None:
    records = [{"id": n, "name": name, "size": n} for n, name in enumerate(names)]
    lines = table(records, width)
    assert max(map(cell_width, lines)) <= max(width, cell_width("0  …"))


def test_a_cut_is_shown() -> None:
    lines = table([{"id": 1, "name": "x" * 70, "size": 0}], 40)
    assert "xxx…" in lines[1]


def test_texts_are_cut_before_columns_go_and_the_right_ones_go_first() -> None:
    records: list[dict[str, object]] = [{"id": 1, "name": "x" * 70, "size": 0, "who": "you"}]
    assert left_out(records, 30) == []
    assert left_out(records, 27) == []
    assert left_out(records, 26) == ["who"]
    assert left_out(records, 20) == ["size", "who"]
    assert table(records, 20) == ["Id  Name", " 1  xxxxxxxxxxxxxxx…"]
    assert table(records, 8)[1] == " 1  xxx…"


def test_the_highest_rank_goes_first() -> None:
    shown = (
        Column("id", "Id", rank=9),
        Column("time", "Time", rank=1),
        Column("root", "Root", rank=2),
        Column("label", "Label"),
    )
    record: dict[str, object] = {"id": 1, "time": "t" * 9, "root": "r" * 9, "label": "x" * 9}
    assert left_out([record], 35, *shown) == []
    assert left_out([record], 34, *shown) == ["root"]
    assert left_out([record], 23, *shown) == ["time", "root"]
    assert left_out([record], 4, *shown) == ["time", "root", "label"]


def test_ages_and_lists_in_tables() -> None:
    shown = (Column("made", "Made", "age"), Column("who", "Who", optional=True))
    records: list[dict[str, object]] = [{"made": 0, "who": []}, {"made": None, "who": ["a", "b"]}]
    lines = table(records, None, shown)
    assert lines[1].split()[-2:] == ["y", "-"]
    assert lines[2].split() == ["-", "a,", "b"]
    assert "Who" not in table(records[:1], None, shown)[0]


def test_ages_are_exact_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = (Column("made", "Made", "age"),)
    record = {"made": 1109878068565111007}
    render.rows(Settings(output="plain"), "all", [record], shown)
    render.rows(Settings(output="json"), "all", [record], shown)
    plain, data = capsys.readouterr().out.splitlines()
    assert plain == "2005-03-03T19:27:48.565111007Z"
    assert json.loads(data) == {"schema": 1, "all": [record]}
    render.fields(Settings(output="table"), "one", record, shown)
    exact = capsys.readouterr().out
    assert exact.startswith("Made  2005-03-03 19:27:48 (2")
    assert exact.endswith(" y ago)\n")


def test_what_does_not_fit_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "12")
    records = [{"id": n, "name": "name", "size": n, "who": "x"} for n in range(3)]
    render.rows(Settings(output="table"), "all", records, COLUMNS)
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "Id  Name"
    assert err == "2 columns do not fit: Size, Who\n"
    monkeypatch.setenv("COLUMNS", "18")
    render.rows(Settings(output="table"), "all", records, COLUMNS)
    assert capsys.readouterr().err == "1 column does not fit: Who\n"
    render.rows(Settings(output="table", quiet=True), "all", records, COLUMNS)
    assert capsys.readouterr().err == ""


def test_a_record_loses_nothing_on_a_narrow_terminal() -> None:
    values = [("Name", "base"), ("UUID", "0123456789" * 3), ("Label", "디스크디스크디스크")]
    assert field_lines(values, False, None)[0] == "Name   base"
    assert field_lines(values, False, 20) == [
        "Name   base",
        "UUID",
        "  012345678901234567",
        "  890123456789",
        "Label",
        "  디스크디스크디스크",
    ]
    times = field_lines([("Created", "2026-11-23 06:05:38 (3 s ago)")], False, 20)
    assert times == ["Created", "  2026-11-23", "  06:05:38 (3 s ago)"]
    assert field_lines(values[2:], False, 13)[1:] == ["  디스크디스", "  크디스크"]


@given(
    st.lists(
        st.fixed_dictionaries({"id": st.integers(), "name": st.text() | st.none() | st.booleans()}),
        min_size=1,
    )
)
def test_yaml_says_what_was_meant(records: list[dict[str, object]]) -> None:
    document = {"schema": 1, "vdis": records}
    assert load(yaml_lines(document)) == document


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


# -- outputs that take nothing -----------------------------------------------------------


class Full(io.StringIO):
    """An output that takes nothing."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def full(plx: Plx, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command whose standard output is full."""

    def run(*words: str) -> Result:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Full())
            patch.setattr("plxsh.guard.forget", lambda _: None)  # that of this process stays
            return plx("-q", *words, status=6)

    return run


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("vdi create zz", "created VDI 2 'zz' of 0 B"),
        ("snap create base --label l", "took snapshot "),
        ("-o json vdi rename web www", "renamed VDI 1 'web' to 'www'"),
        ("-o yaml vdi resize web 1M", "resized VDI 1 'web' from 64 KiB to 1 MiB"),
        ("-y -o json store gc", "freed "),
        ("-o json store create new.dat --extent-size 1M", "formatted new.dat: 6 extents"),
    ],
)
def test_what_was_done_is_told_even_if_the_output_is_full(
    full: Callable[..., Result], command: str, told: str
) -> None:
    line, *more = full(*command.split()).err.splitlines()
    assert f": {told}" in line
    assert ", but cannot write the output: No space left on device (" in line
    assert len(more) == ("json" in command)
    assert all(json.loads(text)["error"]["result"] for text in more)


@pytest.mark.parametrize("command", ["-n vdi create zz", "vdi show web", "store check --repair"])
def test_what_was_not_done_is_not_told(plx: Plx, full: Callable[..., Result], command: str) -> None:
    before = plx.bytes()
    [line] = full(*command.split()).err.splitlines()
    assert ": cannot write the output: No space left on device (" in line
    assert plx.bytes() == before


def test_a_repair_is_told_even_if_the_output_is_full(plx: Plx, full: Callable[..., Result]) -> None:
    with open(plx.path, "r+b") as file:
        file.write(b"garbage" * 100)
    told = full("store", "check", "--repair").err
    assert f"store check: repaired {plx.path} (1 step), but cannot write the output: " in told
