"""Runs every benchmark, each in a process of its own. Each asserts that the result is right before
it says what it cost.

    python -m benchmarks --json results.json --charts charts    measure, keep and draw
    python -m benchmarks --from results.json --charts charts    draw again what was measured
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import alone, arguments, charts, page
from benchmarks.results import Results

# In the order in which they run. Each is a module with `rows(quick)`, which gives its rows.
BENCHMARKS = (
    "hot_path",
    "listened",
    "enforced",
    "audited",
    "idle",
    "imports",
    "reconnects",
    "redialled",
    "pooled",
    "streams",
    "herd",
    "scale",
)
# What they take beside safesock.
_TAKES = {
    "redialled": ("twisted",),
    "pooled": ("urllib3",),
    "streams": ("anyio", "trio", "uvloop"),
}
_STATUS = """exit status: 0, also where a bar is missed, as machines are noisy; 1 if a benchmark has
failed, or, with --strict, a bar is missed; 2 for wrong arguments."""


def main(words: Sequence[str] | None = None) -> int:
    parser = _parser()
    chosen = parser.parse_args(words)
    try:
        results = _check(chosen)
        if results is None:
            results = _measured(chosen)
        else:
            for row in results.all_rows():
                print(row)
        _write(results, chosen)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    missed = results.missed()
    print(f"{len(results.with_bar()) - len(missed)} of {len(results.with_bar())} bars are reached")
    for row in missed:
        print(f"NOT reached, by {row.missed_by:.1%}: {row.name}")
    for name in results.failed:
        print(f"{name} has FAILED", file=sys.stderr)
    return int(bool(results.failed or (chosen.strict and missed)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few rounds: noisy, but it has run")
    add("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    add("--from", dest="results", type=Path, metavar="FILE", help="measure nothing: take this JSON")
    add("--json", type=Path, metavar="FILE", help="write the results to it")
    add("--charts", type=Path, metavar="DIR", help="draw charts into it, as SVG")
    add("--page", type=Path, metavar="FILE", help="write the tables into this page: docs/cost.md")
    add("--strict", action="store_true", help="exit status 1 where a bar is missed")
    return parser


def _check(chosen: argparse.Namespace) -> Results | None:
    """All that may be wrong is told before minutes have passed. Raises ValueError. What there is
    already, by --from."""
    if chosen.results is not None and (chosen.quick or chosen.only or chosen.json):
        raise ValueError("--from measures nothing: it goes with --charts and --page only")
    if chosen.only and chosen.page is not None:
        raise ValueError("--page takes the results of all: with --only its tables would be a part")
    if chosen.json is not None:
        arguments.check_file("--json", chosen.json)
    if chosen.page is not None:
        arguments.check_page(
            "--page", chosen.page, lambda text: page.with_results(text, Results.here(quick=True))
        )
    if chosen.charts is not None:
        arguments.check_folder("--charts", chosen.charts)
        arguments.check_drawing("--charts")
    if chosen.results is not None:
        return arguments.found_in("--from", chosen.results, Results.from_json)
    for name in chosen.only or BENCHMARKS:
        for package in _TAKES.get(name, ()):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"{name} takes {package}: pip install -e '.[bench]'")
    return None


def _measured(chosen: argparse.Namespace) -> Results:
    results = Results.here(chosen.quick)
    print(results.machine, flush=True)
    try:
        _measure(results, chosen.only or BENCHMARKS)
    except KeyboardInterrupt:
        if chosen.json is not None:
            chosen.json.write_text(results.to_json(), encoding="utf-8")
            print(f"interrupted: {chosen.json} has what there is", file=sys.stderr)
        raise
    return results


def _measure(results: Results, names: Sequence[str]) -> None:
    for name in names:
        begin = time.monotonic()
        rows = results.rows.setdefault(name, [])
        try:
            for row in alone.rows_of(name, results.quick):
                print(row, flush=True)
                rows.append(row)
        except subprocess.CalledProcessError:
            results.failed.append(name)
        results.seconds[name] = round(time.monotonic() - begin, 1)
    results.load.append(os.getloadavg()[0])


def _write(results: Results, chosen: argparse.Namespace) -> None:
    if chosen.json is not None:
        chosen.json.write_text(results.to_json(), encoding="utf-8")
    if chosen.charts is not None:
        charts.draw(results, chosen.charts)
    if chosen.page is not None:
        text = chosen.page.read_text(encoding="utf-8")
        chosen.page.write_text(page.with_results(text, results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
