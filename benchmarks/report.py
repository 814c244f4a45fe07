"""One row of the result: a figure, and the bar that it is held against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    what: str
    figure: float
    bar: float | None
    unit: str
    note: str = ""
    at_least: bool = False  # The bar is the least there may be, not the most.

    def __str__(self) -> str:
        if self.bar is None:
            return f"{self.what:<52} {self.figure:8.3f} {self.unit:5} {self.note}".rstrip()
        reached = self.figure >= self.bar if self.at_least else self.figure <= self.bar
        side = "at least" if self.at_least else "at most"
        verdict = "reached" if reached else "NOT reached"
        figures = f"{self.figure:8.3f} {self.unit:5} (bar {side} {self.bar:g}: {verdict})"
        return f"{self.what:<52} {figures}{'  ' if self.note else ''}{self.note}"


def median_ratio(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[float, float]:
    """The median of ours/theirs over *rounds*, and the spread (half the interquartile range).

    The two are measured right after each other, in alternating order, so that what disturbs the
    machine disturbs both.
    """
    ours(), theirs()  # Warm caches and specialised bytecode.
    ratios = []
    for turn in range(rounds):
        if turn % 2:
            mine = ours()
            other = theirs()
        else:
            other = theirs()
            mine = ours()
        ratios.append(mine / other)
    return statistics.median(ratios), _spread(ratios)


def _spread(values: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2
