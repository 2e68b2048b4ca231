"""What was measured, how it compares with its peers, and one table of it all.

Everything is a ratio of values measured in turns within one run, since absolute values
belong to one machine on one day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

Measure = Callable[[int], float]
"""Measures once; told the number of the run, from 0."""

OURS: Final = "parallax"


@dataclass(frozen=True)
class Goal:
    """A bound on the ratio of this project to a peer."""

    least: float = 0.0
    most: float = float("inf")

    def reached(self, ratio: float) -> bool:
        return self.least <= ratio <= self.most

    def __str__(self) -> str:
        if self.most == float("inf"):
            return f"≥ {self.least:g}"
        return f"{self.least:g}-{self.most:g}" if self.least else f"≤ {self.most:g}"


@dataclass(frozen=True)
class Row:
    """One figure of this project beside that of one peer."""

    name: str
    unit: str
    ours: float
    peer: str
    theirs: float
    ratio: float
    least: float
    most: float
    goal: Goal | None

    @property
    def reached(self) -> bool | None:
        return None if self.goal is None else self.goal.reached(self.ratio)


@dataclass(frozen=True)
class Figure:
    """The values of one thing that was measured, run by run, for each contestant.

    `values` begins with what all others are compared with, which is this project.
    """

    name: str
    unit: str
    values: Mapping[str, list[float]]
    goals: Mapping[str, Goal] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        ours, *peers = self.values
        rows = []
        for peer in peers:
            pairs = zip(self.values[ours], self.values[peer], strict=True)
            ratios = [mine / theirs for mine, theirs in pairs]
            rows.append(
                Row(
                    self.name,
                    self.unit,
                    median(self.values[ours]),
                    peer,
                    median(self.values[peer]),
                    median(ratios),
                    min(ratios),
                    max(ratios),
                    self.goals.get(peer),
                )
            )
        return rows


def in_turns(
    contestants: Mapping[str, Measure], runs: int, batch: int = 1
) -> dict[str, list[float]]:
    """Let everyone have `runs` runs, in turns; a run is the median of `batch` measures."""
    values: dict[str, list[float]] = {who: [] for who in contestants}
    for run in range(runs):
        parts: dict[str, list[float]] = {who: [] for who in contestants}
        for _ in range(batch):
            for who, measure in contestants.items():
                parts[who].append(measure(run))
        for who, part in parts.items():
            values[who].append(median(part))
    return values


def as_json(figures: list[Figure]) -> list[dict[str, Any]]:
    """Return all values and ratios in a form for json.dump."""
    return [
        {
            "name": figure.name,
            "unit": figure.unit,
            "values": dict(figure.values),
            "ratios": [
                {
                    "peer": row.peer,
                    "median": row.ratio,
                    "min": row.least,
                    "max": row.most,
                    "goal": str(row.goal) if row.goal else None,
                    "reached": row.reached,
                }
                for row in figure.rows()
            ],
        }
        for figure in figures
    ]


_HEADS: Final = ("figure", "unit", OURS, "peer", "its value", "ratio", "min-max", "goal", "")


def as_table(figures: list[Figure]) -> str:
    """Return a table that is readable as it is and as Markdown."""
    lines = [_HEADS, *(_cells(row) for figure in figures for row in figure.rows())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = {2, 4, 5}
    text = [
        " | ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = " | ".join(
        "-" * (width - 1) + ":" if at in right else "-" * width for at, width in enumerate(widths)
    )
    return "\n".join(f"| {line} |" for line in [text[0], rule, *text[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    verdict = {None: "", True: "yes", False: "NO"}[row.reached]
    return (
        row.name,
        row.unit,
        number(row.ours),
        row.peer,
        number(row.theirs),
        f"{row.ratio:.2f}",
        f"{row.least:.2f}-{row.most:.2f}",
        str(row.goal) if row.goal else "",
        verdict,
    )


def number(value: float) -> str:
    """Return a value with three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
