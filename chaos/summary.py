"""What a run has come to, as a table and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from chaos.tally import STRAIGHT

if TYPE_CHECKING:
    from chaos.run import Run


def as_json(run: Run) -> dict[str, Any]:
    """Of "accounted", all the connections are those with the peer's count and those of the three
    that are not; the bytes accepted are the sum of those that follow."""
    ledger, counts = run.ledger, run.counts()
    straight = counts.pop(STRAIGHT, 0)
    return {
        "seed": run.seed,
        "seconds": round(run.elapsed, 1),
        "interrupted": run.interrupted,
        "left_out": run.left_out,
        "connections": counts["connections"],
        "accounted": {
            "with the peer's count": ledger.checked,
            "of these to the byte": ledger.exact,
            "of these by bounds only, and not in the bytes": ledger.in_part,
            "ended before the peer knew them": ledger.nameless,
            "straight to the server: not counted": straight,
            "not matched, as the run was cut short": ledger.unmatched,
            "bytes accepted": ledger.sent,
            "bytes received": ledger.received,
            **ledger.short,
        },
        "losses": dict(run.counts("losses")),
        "faults": {kind: count for kind, count in ledger.faults.items() if kind != "none"},
        "disturbances": dict(run.disturbed),
        "counts": dict(counts),
        "exceptions": dict(run.counts("expected")),
        "processes": run.ends,
        "broken": run.broken,
    }


def as_text(run: Run) -> str:
    found = as_json(run)
    connections = found["connections"]
    rate = connections / run.elapsed if run.elapsed else 0.0
    lines = [f"{connections:,} connections in {run.elapsed:.0f} s, {rate:.0f} a second"]
    if run.interrupted:
        lines[0] += "; interrupted"
    if run.left_out:
        lines.append(f"left out, links and packets that are lost: {run.left_out}")
    lines += ["", "accounted for", *_table(found["accounted"].items())]
    for title, key in (
        ("how they ended", "losses"),
        ("done by the proxy", "faults"),
        ("done to server and cable", "disturbances"),
        ("done in the clients", "counts"),
        ("exceptions, all expected", "exceptions"),
    ):
        lines += ["", title, *_table(Counter(found[key]).most_common())]
    lines += ["", "left at the end, after the warm-up", *_processes(run)]
    return "\n".join(lines)


def _table(counts: Iterable[tuple[str, int]]) -> list[str]:
    return [f"  {name:<52}{count:>16,}" for name, count in counts]


def _processes(run: Run) -> list[str]:
    lines = []
    for name, end in run.ends.items():
        more = {what: end["after"][what] - end["before"][what] for what in end["before"]}
        lines.append(
            f"  {name:<12}{end['rounds']:>6} rounds: CLOSE_WAIT {end['after']['close_wait']}, tasks"
            f" {end['after']['tasks']}, descriptors {more['descriptors']:+}, threads"
            f" {more['threads']:+}, memory {more['resident'] / 1e6:+.1f} MB,"
            f" {more['blocks']:+,} blocks"
        )
    return lines
