"""The charts of the results, as SVG: the same file for the same figures. They take matplotlib."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import Row, short
from benchmarks.results import Results

_OURS, _THEIRS, _MISSED = "C0", "C7", "C3"


def draw(results: Results, folder: Path) -> list[Path]:
    """Those for which there are figures; the files that it has written."""
    written = []
    for name, (benchmark, drawn) in CHARTS.items():
        rows = results.with_bar() if benchmark is None else results.rows.get(benchmark, [])
        if not rows:
            continue
        matplotlib = importlib.import_module("matplotlib")
        with matplotlib.rc_context({"svg.hashsalt": name}):
            file = folder / f"{name}.svg"
            drawn(rows).savefig(file, metadata={"Date": None})
        written.append(file)
    return written


def _figure(width: float, height: float) -> Any:
    figures = importlib.import_module("matplotlib.figure")
    return figures.Figure((width, height), layout="constrained")


def _bars(rows: list[Row]) -> Any:
    figure = _figure(9, 1.5 + 0.3 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        assert row.bar
        share = row.bar / max(row.figure, 1e-9) if row.at_least else row.figure / row.bar
        axes.barh(place, min(share, 3), color=_OURS if row.reached else _MISSED)
        if share > 3:
            axes.text(2.98, place, f"{share:.1f}", ha="right", va="center", color="white")
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)], fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xlabel="of what the bar allows: up to 1 it is reached", xlim=(0, 3))
    return figure


def _streams(rows: list[Row]) -> Any:
    """One panel for each work."""
    works = list(dict.fromkeys(row.what for row in rows))
    figure = _figure(9, 10)
    figure.suptitle("The time of the same work; safesock on asyncio's loop is 1")
    for axes, work in zip(figure.subplots(-(-len(works) // 2), 2).T.flat, works, strict=False):
        of_work = [row for row in rows if row.what == work]
        taken: dict[str, float] = {}
        for row in of_work:
            assert row.ours is not None
            assert row.theirs is not None
            ours = "safesock on uvloop" if row.against.endswith("uvloop") else "safesock"
            taken.setdefault(ours, row.ours)
            taken[row.against] = row.theirs
        names = list(taken)[::-1]
        colours = [_OURS if name.startswith("safesock") else _THEIRS for name in names]
        axes.barh(names, [taken[name] / taken["safesock"] for name in names], color=colours)
        axes.set_title(work)
        axes.axvline(1, color=_OURS, linewidth=1)
    return figure


def _side_by_side(title: str, unit: str) -> Callable[[list[Row]], Any]:
    """Both sides of each row, as they are."""

    def drawn(rows: list[Row]) -> Any:
        shown = [row for row in rows if row.raw_unit == unit]
        figure = _figure(9, 1.5 + 0.7 * len(shown))
        axes = figure.subplots()
        axes.set_title(title)
        for place, row in enumerate(reversed(shown)):
            pairs = (("safesock", row.ours, 0.2, _OURS), (row.against, row.theirs, -0.2, _THEIRS))
            for who, value, aside, colour in pairs:
                assert value is not None
                axes.barh(place + aside, value, 0.36, color=colour)
                axes.text(value, place + aside, f" {who}: {short(value)}", va="center", fontsize=8)
        axes.set_yticks(range(len(shown)), [row.what for row in reversed(shown)], fontsize=8)
        axes.set_xlabel(unit)
        axes.margins(x=0.5)
        return figure

    return drawn


# By the name of the file: of which benchmark, or None for all that has a bar, and how.
CHARTS: dict[str, tuple[str | None, Callable[[list[Row]], Any]]] = {
    "bars": (None, _bars),
    "streams": ("streams", _streams),
    "redialled": ("redialled", _side_by_side("Connections made and lost, more is better", "per s")),
    "pooled": ("pooled", _side_by_side("What it costs to notice a drop, less is better", "µs")),
}
