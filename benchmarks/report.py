"""One row of the result: a figure, and the bar that it is held against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Row:
    """A figure, and what it is made of.

    against: what a ratio ("x") is to.
    spread: half the interquartile range of the rounds.
    ours, theirs: the medians that a ratio comes from, in *raw_unit*.
    """

    what: str
    figure: float
    bar: float | None
    unit: str
    note: str = ""
    at_least: bool = False  # The bar is the least there may be, not the most.
    against: str = ""
    spread: float | None = None
    ours: float | None = None
    theirs: float | None = None
    raw_unit: str = ""

    @property
    def name(self) -> str:
        return f"{self.what}, to {self.against}" if self.against else self.what

    @property
    def reached(self) -> bool | None:
        """None where there is no bar."""
        if self.bar is None:
            return None
        return self.figure >= self.bar if self.at_least else self.figure <= self.bar

    @property
    def missed_by(self) -> float:
        """By which share of the bar; 0 where it is reached."""
        if self.bar is None or self.reached:
            return 0.0
        return abs(self.figure / self.bar - 1)

    def __str__(self) -> str:
        spread = "" if self.spread is None else f"±{self.spread:.3f}"
        line = f"{self.name:<66} {self.figure:8.3f} {self.unit:5} {spread:7}"
        if self.bar is not None:
            side = "at least" if self.at_least else "at most"
            verdict = "reached" if self.reached else f"NOT reached, by {self.missed_by:.1%}"
            line += f" (bar {side} {self.bar:g}: {verdict})"
        return f"{line}  {self.note}".rstrip()


@dataclass(frozen=True)
class Compared:
    """What two sides took, and the median of the ratios of their rounds.

    spread: half the interquartile range of those ratios.
    """

    ratio: float
    spread: float
    ours: float
    theirs: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Self:
        """The rounds of both, in the same order."""
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return cls(middle, (high - low) / 2, statistics.median(ours), statistics.median(theirs))

    def row(
        self, what: str, against: str, bar: float | None = None, *, each: int = 1, unit: str = "µs"
    ) -> Row:
        """Of seconds that *each* pieces of the work have taken."""
        scale = {"s": 1.0, "ms": 1e3, "µs": 1e6}[unit] / each
        return Row(
            what,
            self.ratio,
            bar,
            "x",
            against=against,
            spread=self.spread,
            ours=self.ours * scale,
            theirs=self.theirs * scale,
            raw_unit=unit,
        )

    def rates(self, what: str, against: str, bar: float | None = None, *, each: int) -> Row:
        """The same seconds as a ratio of what was done in each, ours to theirs."""
        ratio = 1 / self.ratio
        return Row(
            what,
            ratio,
            bar,
            "x",
            at_least=True,
            against=against,
            spread=self.spread * ratio**2,
            ours=each / self.ours,
            theirs=each / self.theirs,
            raw_unit="per s",
        )


def compared(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Compared:
    """Both sides, *rounds* times.

    They are measured right after each other, in alternating order, so that what disturbs the
    machine disturbs both.
    """
    ours(), theirs()  # Warm caches and specialised bytecode.
    mine, others = [], []
    for turn in range(rounds):
        if turn % 2:
            mine.append(ours())
            others.append(theirs())
        else:
            others.append(theirs())
            mine.append(ours())
    return Compared.of(mine, others)


def short(number: float) -> str:
    """As people read it: three digits at least."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
