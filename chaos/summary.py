"""What a run has come to, as a table and for programs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chaos.run import Run


def as_json(run: Run) -> dict[str, Any]:
    ledger = run.ledger
    return {
        "seed": run.seed,
        "seconds": round(run.elapsed, 1),
        "interrupted": run.interrupted,
        "left_out": run.left_out,
        "connections": run.counts()["connections"],
        "accounted": {
            "with the peer's count": ledger.checked,
            "of these to the byte": ledger.exact,
            "ended before the peer knew them": ledger.nameless,
            "bytes accepted": ledger.sent,
            "bytes received": ledger.received,
        },
        "losses": dict(run.counts("losses")),
        "faults": {kind: count for kind, count in ledger.faults.items() if kind != "none"},
        "disturbances": dict(run.disturbed),
        "counts": dict(run.counts()),
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
    for title, key in (
        ("accounted for", "accounted"),
        ("how they ended", "losses"),
        ("done by the proxy", "faults"),
        ("done to server and cable", "disturbances"),
        ("done in the clients", "counts"),
        ("exceptions, all expected", "exceptions"),
    ):
        lines += ["", title, *_table(Counter(found[key]))]
    lines += ["", "left at the end, after the warm-up", *_processes(run)]
    return "\n".join(lines)


def _table(counts: Counter[str]) -> list[str]:
    return [f"  {name:<36}{count:>16,}" for name, count in counts.most_common()]


def _processes(run: Run) -> list[str]:
    lines = []
    for name, end in run.ends.items():
        more = {what: end["after"][what] - end["before"][what] for what in end["before"]}
        lines.append(
            f"  {name:<12}{end['rounds']:>6} rounds: CLOSE_WAIT 0, descriptors"
            f" {more['descriptors']:+}, threads {more['threads']:+}, memory"
            f" {more['resident'] / 1e6:+.1f} MB, {more['blocks']:+,} blocks"
        )
    return lines
