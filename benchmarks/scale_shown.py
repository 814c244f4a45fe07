"""What `scale` has measured, as lines, as a table in a page, and as a chart."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.marked import between

if TYPE_CHECKING:
    from benchmarks.scale import Measured, Results

BEGIN, END = "<!-- figures of benchmarks.scale -->", "<!-- end of the figures -->"
_HEAD = (
    "connections",
    "bytes each, by Python",
    "bytes each, resident",
    "CPU while idle",
    "out of CLOSE_WAIT",
    "`safesock.audit()`",
    "`safesock audit --pid PID`",
)
_COLOURS = {"socket.socket": "0.6", "asyncio": "0.8", "SafeSocket": "C0"} | {
    "under enforce()": "C1",
    "safesock.asyncio": "C2",
}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The power by which the second grows with the first: least squares, both as logarithms."""
    xs, ys = ([math.log(point[side]) for point in points] for side in (0, 1))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    across = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return across / sum((a - x) ** 2 for a in xs)


def by_kind(results: Results) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for one in results.measured:
        found.setdefault(one.kind, []).append(one)
    return found


def _cells(one: Measured) -> tuple[str, ...]:
    stays = one.late is None
    return (
        f"{one.count:,}",
        f"{one.traced:,.0f}",
        f"{one.resident:,.0f}",
        "" if one.idle is None else f"{one.idle:.2%}",
        "never" if stays else f"{one.late:.2f} s",
        f"{one.audit:.2f} s",
        f"{one.command:.2f} s",
    )


def line(one: Measured) -> str:
    names = [name.strip("`") for name in _HEAD]
    cells = [f"{name} {cell}" for name, cell in zip(names, _cells(one), strict=True) if cell]
    return f"{one.kind}: {', '.join(cells)}"


def growth(ones: Sequence[Measured]) -> list[str]:
    """By which power of the number of connections each of the times grows. Those too short to be
    measured are left out, as is what is the same for one connection and for all."""
    figures: dict[str, Callable[[Measured], float | None]] = {
        "out of CLOSE_WAIT": lambda one: one.late,
        "`safesock.audit()`": lambda one: one.audit,
        "`safesock audit --pid PID`": lambda one: one.command,
    }
    found = []
    for name, figure in figures.items():
        points = [(one.count, value) for one in ones if (value := figure(one)) and value > 0.05]
        if len(points) > 1:
            found.append(f"{name} {slope(points):.2f}")
    return found


def text(results: Results) -> str:
    """All of it, in Markdown."""
    lines = [
        f"Python {results.python}, {results.system}, {results.cpus} processors; both ends of all "
        "connections are on this machine."
    ]
    for kind, ones in by_kind(results).items():
        lines += ["", f"{kind}:", "", f"| {' | '.join(_HEAD)} |", "|---:" * len(_HEAD) + "|"]
        lines += [f"| {' | '.join(_cells(one))} |" for one in ones]
        if powers := growth(ones):
            lines += ["", f"Grows by the number to the power: {', '.join(powers)}."]
    for size, why in results.left_out.items():
        lines += ["", reason(size, why)]
    return "\n".join(lines)


def reason(size: str, why: str) -> str:
    """Why there are no figures."""
    return f"{int(size):,} were not possible: {why}."


def with_table(page: str, results: Results) -> str:
    """The page, with these figures in the place of those before."""
    return between(page, BEGIN, END, f"\n{text(results)}\n")


def digest(results: Results) -> str:
    """What a chart is drawn from, for the test that it is that of the figures."""
    return hashlib.sha256(json.dumps(asdict(results)).encode()).hexdigest()


def draw(file: Path, results: Results) -> None:
    matplotlib, figures = (importlib.import_module(f"matplotlib{part}") for part in ("", ".figure"))
    matplotlib.rcParams["svg.hashsalt"] = "scale"  # The same file for the same figures.
    figure = figures.Figure((9, 7.5), layout="constrained")
    most = max(one.count for one in results.measured)
    figure.suptitle(f"Up to {most:,} idle connections in one process")
    panels: list[tuple[str, Callable[[Measured], float | None], float]] = [
        ("memory of each, in bytes allocated by Python", lambda one: one.traced, 0.0),
        ("CPU while idle, %", lambda one: one.idle and one.idle * 100, 1.0),
        ("all peers close: seconds from the grace's\nend to the last one's", _late, 0.0),
        ("one audit, in seconds; dashed: the command", lambda one: one.audit, 0.0),
    ]
    for axes, (title, value, least) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        top = least
        for kind, ones in by_kind(results).items():
            points = [(one.count, found) for one in ones if (found := value(one)) is not None]
            if not points:
                continue
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, "o-", color=_COLOURS[kind], label=kind, markersize=4)
            top = max(top, *ys)
            if title.endswith("the command"):
                commands = [one.command for one in ones]
                axes.plot(xs, commands, "--", color=_COLOURS[kind], linewidth=1)
                top = max(top, *commands)
        axes.set(title=title, xlabel="connections", xlim=(0, most * 1.05), ylim=(0, top * 1.1 or 1))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(10)
    figure.axes[0].legend(fontsize=8)
    drawn = {"Date": None, "Description": digest(results)} if file.suffix == ".svg" else None
    figure.savefig(file, metadata=drawn)


def _late(one: Measured) -> float | None:
    return one.late
