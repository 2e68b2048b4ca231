"""Results to standard output: a table for people, JSON, YAML or plain lines for programs.

A command hands over plain data: dictionaries of numbers, texts and None, sizes in bytes,
times in nanoseconds since 1970 UTC. JSON and YAML show exactly that, next to `schema`,
which changes when a key changes its meaning or goes away. `plain` is one line a record,
its columns between tabs, `-` for what there is not. Only `table` rounds.

Tables are laid out here: a table library takes seconds for 10,000 rows.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import click

from core.text import columns as cell_width
from core.text import human_size
from plxsh.context import Settings

SCHEMA: Final = 1
"""Version of the keys in JSON and YAML."""

Record = Mapping[str, Any]
Kind = Literal["text", "number", "bytes", "time"]

_MIN_FLEXIBLE: Final = 12


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Args:
        key: which value of a record it shows.
        title: its heading.
        kind: how the value is shown to people.
        optional: left out of tables when no record has a value.
        flexible: may be cut when the terminal is narrow.
    """

    key: str
    title: str
    kind: Kind = "text"
    optional: bool = False
    flexible: bool = False


# -- values ----------------------------------------------------------------------------


def iso_time(time_ns: int) -> str:
    """Return nanoseconds since 1970 as a UTC time in RFC 3339 form, all nine digits."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _plain(value: Any, kind: Kind) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return iso_time(value) if kind == "time" else str(value)


def _human(value: Any, kind: Kind) -> str:
    if value is None or value == "":
        return "-"
    if kind == "bytes" and isinstance(value, int):
        return human_size(value)
    if kind == "time" and isinstance(value, int):
        local = datetime.fromtimestamp(value / 1e9, UTC).astimezone()
        return f"{local:%Y-%m-%d %H:%M:%S}"
    return _plain(value, kind)


# -- whole results ---------------------------------------------------------------------


def rows(
    settings: Settings, key: str, records: Sequence[Record], columns: Sequence[Column]
) -> None:
    """Show a list of records; in JSON and YAML it is the value of `key`."""
    if settings.output in ("json", "yaml"):
        data(settings, {key: records})
    elif settings.output == "plain":
        _write(
            "\t".join([_plain(record.get(c.key), c.kind) for c in columns]) for record in records
        )
    else:
        _write(table(records, columns, settings.color, _width()))


def fields(settings: Settings, key: str, record: Record, columns: Sequence[Column]) -> None:
    """Show one record, a line for each column; plain lines are `key<tab>value`."""
    if settings.output in ("json", "yaml"):
        data(settings, {key: record})
    elif settings.output == "plain":
        _write(f"{c.key}\t{_plain(record.get(c.key), c.kind)}" for c in columns)
    else:
        shown = [c for c in columns if not (c.optional and record.get(c.key) in (None, ""))]
        left = max(len(c.title) for c in shown)
        _write(
            click.style(c.title.ljust(left), bold=True) * settings.color
            + c.title.ljust(left) * (not settings.color)
            + "  "
            + _fields_value(record.get(c.key), c.kind)
            for c in shown
        )


def _fields_value(value: Any, kind: Kind) -> str:
    """Return a value where there is room to be exact."""
    text = _human(value, kind)
    exact = kind == "bytes" and isinstance(value, int) and value >= 1024
    return f"{text} ({value} bytes)" if exact else text


def outcome(
    settings: Settings, would: str, done: str, what: str, result: Record, plain: str = ""
) -> None:
    """Show what a command that changes something did, or would do with --dry-run.

    Args:
        would: the verb after "would".
        done: the verb for what happened.
        what: the rest of the sentence.
        result: for JSON and YAML.
        plain: what a script wants to know, for standard output.
    """
    if settings.output in ("json", "yaml"):
        if settings.dry_run:
            result = {"dry_run": True, "would": f"{would} {what}", **result}
        data(settings, result)
    elif settings.dry_run:
        click.echo(f"would {would} {what}")
    else:
        if plain:
            click.echo(plain)
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


# -- tables ----------------------------------------------------------------------------


def _width() -> int | None:
    """Return the columns of the terminal, None when standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    records: Sequence[Record], columns: Sequence[Column], color: bool, width: int | None
) -> list[str]:
    """Return the lines of a table: headings, then one line a record.

    Args:
        records: what to show.
        columns: of what to show, left to right.
        color: headings in bold.
        width: columns of the terminal; flexible ones are cut to fit. None: no limit.
    """
    shown = [
        c for c in columns if not c.optional or any(r.get(c.key) not in (None, "") for r in records)
    ]
    cells = [[_human(record.get(c.key), c.kind) for record in records] for c in shown]
    widths = [
        max(map(cell_width, [c.title, *column])) for c, column in zip(shown, cells, strict=True)
    ]
    _shrink(shown, widths, width)
    right = [c.kind in ("number", "bytes") for c in shown]
    head = _line([c.title for c in shown], widths, right)
    body = [_line(row, widths, right) for row in zip(*cells, strict=True)]
    return [click.style(head, bold=True) if color else head, *body]


def _shrink(columns: Sequence[Column], widths: list[int], width: int | None) -> None:
    """Cut the widest flexible columns until the table fits, down to a minimum."""
    while width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        candidates = [n for n, c in enumerate(columns) if c.flexible and widths[n] > _MIN_FLEXIBLE]
        if not candidates:
            return
        widths[max(candidates, key=widths.__getitem__)] -= 1


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = []
    for text, width, to_right in zip(cells, widths, right, strict=True):
        short = _fit(text, width)
        pad = " " * (width - cell_width(short))
        parts.append(pad + short if to_right else short + pad)
    return "  ".join(parts).rstrip()


def _fit(text: str, width: int) -> str:
    """Cut a text to so many columns, with an ellipsis when something is missing."""
    if cell_width(text) <= width:
        return text
    while cell_width(text) > width - 1:
        text = text[:-1]
    return text + "…"


# -- YAML ------------------------------------------------------------------------------

_BARE: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_/ +.()-]*(?<! )")
_NOT_TEXT: Final = frozenset(
    ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf")
)


def yaml_lines(value: Record) -> list[str]:
    """Return the lines of a YAML document (1.1 and 1.2 alike) for plain data."""
    return _yaml_mapping(value)


def _yaml_mapping(value: Record) -> list[str]:
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += [f"{key}:", *("  " + line for line in _yaml_mapping(item))]
        elif isinstance(item, list | tuple) and item:
            lines.append(f"{key}:")
            for element in item:
                if isinstance(element, Mapping) and element:
                    first, *rest = _yaml_mapping(element)
                    lines += [f"- {first}", *("  " + line for line in rest)]
                else:
                    lines.append(f"- {_yaml_scalar(element)}")
        else:
            lines.append(f"{key}: {_yaml_scalar(item)}")
    return lines


def _yaml_scalar(value: Any) -> str:
    """Return one value; JSON is YAML, and only harmless texts go without quotes."""
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return json.dumps(value)
