"""The tables of docs/cost.md, made of the results, between two marks."""

from __future__ import annotations

from benchmarks.marked import between
from benchmarks.report import Row, short
from benchmarks.results import Results

BEGIN = "<!-- results: python -m benchmarks --page writes what is between these marks -->"
END = "<!-- the end of the results -->"


def with_results(text: str, results: Results) -> str:
    """The page with the tables of these. Raises ValueError where it has no place for them."""
    return between(text, BEGIN, END, tables(results))


def tables(results: Results) -> str:
    barred = results.with_bar()
    lines = [
        f"{results.machine}; safesock {results.safesock}, {results.date[:10]}. {_effort(results)}",
        *(["This was a quick run: few rounds, and noisy."] if results.quick else []),
        *([f"Without {', '.join(results.failed)}, which failed."] if results.failed else []),
        "",
        f"**{len(barred) - len(results.missed())} of {len(barred)} bars are reached.**",
        "",
        "| what | to | figure | bar | | ours, theirs |",
        "|---|---|---|---|---|---|",
        *(_barred(row) for row in barred),
        "",
        "Without a bar:",
        "",
        "| what | to | figure | ours, theirs |",
        "|---|---|---|---|",
        *(_compared(row) for row in results.all_rows() if row.bar is None),
        "",
    ]
    return "\n".join(lines)


def _effort(results: Results) -> str:
    load = " to ".join(f"{each:.1f}" for each in results.load)
    return f"It took {sum(results.seconds.values()) / 60:.0f} minutes, at a load average of {load}."


def _barred(row: Row) -> str:
    side = "at least" if row.at_least else "at most"
    verdict = "reached" if row.reached else f"**missed by {_percent(row.missed_by)}**"
    bar = f"{side} {row.bar:g} {_unit(row)}".strip()
    return f"| {row.what} | {row.against} | {_figure(row)} | {bar} | {verdict} | {medians(row)} |"


def _compared(row: Row) -> str:
    return f"| {row.what} | {row.against} | {_figure(row)} | {medians(row)} |"


def _figure(row: Row) -> str:
    if row.unit == "x":
        return f"{row.figure:.3f}{'' if row.spread is None else f' ± {row.spread:.3f}'}"
    return f"{short(row.figure)} {_unit(row)}".strip()


def _unit(row: Row) -> str:
    return "" if row.unit == "x" else row.unit


def medians(row: Row) -> str:
    if row.ours is None or row.theirs is None:
        return row.note
    return f"{short(row.ours)}, {short(row.theirs)} {row.raw_unit}".strip()


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"
