"""Results to standard output: a table for people, JSON, YAML or plain lines for programs.

A command hands over plain data: dictionaries of numbers, texts and None, sizes in bytes,
times in nanoseconds since 1970 UTC. JSON and YAML show exactly that, next to `schema`,
which changes when a key changes its meaning or goes away. `plain` is one line a record,
its columns between tabs, `-` for what there is not. Only `table` rounds. Both write what
no terminal should be given as escapes (`core.text.printable`), JSON and YAML as their own.

Tables are laid out here: a table library takes seconds for 10,000 rows.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import click

from core.text import columns as cell_width
from core.text import human_age, human_ago, human_size, printable
from plxsh import pager
from plxsh.context import Settings
from plxsh.yaml_text import yaml_lines

SCHEMA: Final = 1
"""Version of the keys in JSON and YAML."""

Record = Mapping[str, Any]
Kind = Literal["text", "number", "bytes", "time", "age"]

_FLEXIBLE: Final = 12
"""Columns of the terminal below which no text is cut as long as something can be left out."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Args:
        key: which value of a record it shows.
        title: its heading.
        kind: how the value is shown to people; "time" and "age" are nanoseconds since 1970.
        optional: left out of tables when no record has a value.
        flexible: may be cut when the terminal is narrow.
        rank: where the terminal is too narrow still, the highest rank is left out first,
            of equals the one on the right; the first column stays.
    """

    key: str
    title: str
    kind: Kind = "text"
    optional: bool = False
    flexible: bool = False
    rank: int = 0


# -- values ----------------------------------------------------------------------------


def iso_time(time_ns: int) -> str:
    """Return nanoseconds since 1970 as a UTC time in RFC 3339 form, all nine digits."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _missing(value: Any) -> bool:
    """Say whether there is nothing to show."""
    return value is None or value in ("", [], ())


def _plain(value: Any, kind: Kind) -> str:
    if _missing(value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item, kind) for item in value)
    return iso_time(value) if kind in ("time", "age") else printable(str(value))


def local_time(time_ns: int) -> str:
    """Return nanoseconds since 1970 as people here read them, to the second."""
    local = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}"


def _human(value: Any, kind: Kind, now_ns: int) -> str:
    if kind == "bytes" and isinstance(value, int):
        return human_size(value)
    if kind == "time" and isinstance(value, int):
        return local_time(value)
    if kind == "age" and isinstance(value, int):
        return human_age(value, now_ns)
    return _plain(value, kind)


# -- whole results ---------------------------------------------------------------------


def rows(
    settings: Settings,
    key: str,
    records: Sequence[Record],
    columns: Sequence[Column],
    plain: Sequence[Column] = (),
) -> None:
    """Show a list of records.

    Args:
        settings: the form.
        key: what the list is called in JSON and YAML.
        records: the list.
        columns: those of a table.
        plain: those of plain lines, which scripts count on, if they are others.
    """
    if settings.output in ("json", "yaml"):
        data(settings, {key: records})
    elif settings.output == "plain":
        _write(
            "\t".join([_plain(record.get(c.key), c.kind) for c in plain or columns])
            for record in records
        )
    else:
        shown, left_out = table(records, columns, settings.color, _width())
        lines(settings, shown)
        if left_out:
            what = "column does" if len(left_out) == 1 else "columns do"
            names = ", ".join(column.title for column in left_out)
            settings.note(f"{len(left_out)} {what} not fit: {names}")


def fields(settings: Settings, key: str, record: Record, columns: Sequence[Column]) -> None:
    """Show one record, a line for each column; plain lines are `key<tab>value`."""
    if settings.output in ("json", "yaml"):
        data(settings, {key: record})
    elif settings.output == "plain":
        _write(f"{c.key}\t{_plain(record.get(c.key), c.kind)}" for c in columns)
    else:
        shown = [c for c in columns if not (c.optional and _missing(record.get(c.key)))]
        values = [(c.title, _exact(record.get(c.key), c.kind)) for c in shown]
        lines(settings, field_lines(values, settings.color, _width()))


def _exact(value: Any, kind: Kind) -> str:
    """Return a value where there is room to be exact."""
    now = time.time_ns()
    if kind in ("time", "age") and isinstance(value, int):
        return f"{local_time(value)} ({human_ago(value, now)})"
    text = _human(value, kind, now)
    exact = kind == "bytes" and isinstance(value, int) and value >= 1024
    return f"{text} ({value} bytes)" if exact else text


def field_lines(values: Sequence[tuple[str, str]], color: bool, width: int | None) -> list[str]:
    """Return lines of titles and values, side by side; nothing is cut.

    Args:
        values: title and value each.
        color: titles in bold.
        width: columns of the terminal; what is longer goes on in the next line.
    """
    left = max(cell_width(title) for title, _ in values)
    shown = []
    for title, value in values:
        head = title + " " * (left - cell_width(title))
        bold = click.style(head, bold=True) if color else head
        if width is None or left + 2 + cell_width(value) <= width:
            shown.append(f"{bold}  {value}")
        else:
            shown.append(click.style(title, bold=True) if color else title)
            shown += ["  " + part for part in _folded(value, max(2, width - 2))]
    return shown


def _folded(text: str, width: int) -> list[str]:
    """Return a text in parts of at most so many columns, cut at a space where there is one."""
    parts = [""]
    for character in text:
        if cell_width(parts[-1] + character) > width:
            head, space, rest = parts[-1].rpartition(" ")
            parts[-1:] = [head, rest] if space else [parts[-1], ""]
        parts[-1] += character
    return parts


def outcome(
    settings: Settings, would: str, done: str, what: str, result: Record, plain: str = ""
) -> None:
    """Show what a command that changes something did, or would do with --dry-run.

    If that cannot be written, standard error has it (`plxsh.guard`).

    Args:
        would: the verb after "would".
        done: the verb for what happened.
        what: the rest of the sentence.
        result: for JSON and YAML.
        plain: what a script wants to know, for standard output.
    """
    if not settings.dry_run:
        settings.changed(f"{done} {what}", result)
    if settings.output in ("json", "yaml"):
        if settings.dry_run:
            result = {"dry_run": True, "would": f"{would} {what}", **result}
        data(settings, result)
    elif settings.dry_run:
        click.echo(printable(f"would {would} {what}"))
    else:
        if plain:
            click.echo(printable(plain))
        settings.note(f"{done} {what}")


def data(settings: Settings, result: Record) -> None:
    """Write a result as JSON or YAML, with the version of its keys in front."""
    versioned = {"schema": SCHEMA, **result}
    if settings.output == "yaml":
        _write(yaml_lines(versioned))
    else:
        click.echo(json.dumps(versioned))


def _write(lines: Iterable[str]) -> None:
    """Write lines in one go: thousands of them are common."""
    text = "".join([line + "\n" for line in lines])
    if text:
        click.echo(text, nl=False)


def lines(settings: Settings, shown: Iterable[str]) -> None:
    """Write lines for people."""
    pager.show(settings, "".join([line + "\n" for line in shown]))


# -- tables ----------------------------------------------------------------------------


def _width() -> int | None:
    """Return the columns of the terminal, None when standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    records: Sequence[Record], columns: Sequence[Column], color: bool, width: int | None
) -> tuple[list[str], list[Column]]:
    """Return the lines of a table, headings first, and the columns that do not fit.

    Args:
        records: what to show.
        columns: of what to show, left to right.
        color: headings in bold.
        width: columns of the terminal, None for no limit. Texts are cut to fit, then
            columns are left out.
    """
    now = time.time_ns()
    shown = [
        c for c in columns if not (c.optional and all(_missing(r.get(c.key)) for r in records))
    ]
    cells = {c: [_human(record.get(c.key), c.kind, now) for record in records] for c in shown}
    widths = {c: max(map(cell_width, [c.title, *column])) for c, column in cells.items()}
    left_out = [] if width is None else _fit_columns(widths, width)
    shown = list(widths)
    fits = list(widths.values())
    right = [c.kind in ("number", "bytes", "age") for c in shown]
    head = _line([c.title for c in shown], fits, right)
    rows = zip(*(cells[c] for c in shown), strict=True)
    body = [_line(row, fits, right) for row in rows]
    return [click.style(head, bold=True) if color else head, *body], [
        c for c in columns if c in left_out
    ]


def _fit_columns(widths: dict[Column, int], width: int) -> list[Column]:
    """Make columns narrower until a table fits; take out and return those with no room."""
    left_out: list[Column] = []

    def excess() -> int:
        return sum(widths.values()) + 2 * (len(widths) - 1) - width

    first, *others = widths
    # The first text is what a row is about: without it the rest says little.
    name = next((c for c in widths if c.flexible), first)
    while excess() > 0:
        spared = sum(max(0, widths[c] - _FLEXIBLE) for c in widths if c.flexible)
        candidates = [c for c in others if c in widths and c is not name]
        if excess() <= spared or not candidates:
            break
        last = max(reversed(candidates), key=lambda column: column.rank)
        del widths[last]
        left_out.append(last)
    while excess() > 0:
        wide = [c for c in widths if c.flexible and widths[c] > _FLEXIBLE]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    for column in reversed(list(widths)):  # a terminal of next to no columns
        widths[column] = max(1, widths[column] - max(0, excess()))
    return left_out


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = []
    for text, width, to_right in zip(cells, widths, right, strict=True):
        short = fit(text, width)
        pad = " " * (width - cell_width(short))
        parts.append(pad + short if to_right else short + pad)
    return "  ".join(parts).rstrip()


def fit(text: str, width: int) -> str:
    """Cut a text to so many columns, with an ellipsis when something is missing."""
    if cell_width(text) <= width:
        return text
    while cell_width(text) > width - 1:
        text = text[:-1]
    return text + "…"
