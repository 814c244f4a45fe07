"""What very many idle connections in one process cost, and how that grows with their number.

For each kind of connection, and each number of them, a process of its own: memory, CPU while idle,
the time of an audit, and, when the peers close all at once, the time until the last one is out of
CLOSE_WAIT. The peers are in another process. States are the kernel's, by sock_diag; a run fails
where a loss has no record, or a descriptor is left.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import arguments, scale_shown
from benchmarks.crowd import KINDS, PLAIN, Crowd, crowd
from benchmarks.peers import SPARE, Address, Peers, make_room, peers
from benchmarks.report import Row
from safesock import _kernel_diag
from safesock._kernel import TcpState

SIZES = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
_LEAST = 2  # The first of them is not counted.
_IDLE = 2.0
_COMMANDS = 2
_LONGEST = 120.0
_PORTS = "/proc/sys/net/ipv4/ip_local_port_range"
# Of one connection, with both ends and both programs: more than any of them has taken.
_BYTES = 20_000


@dataclass(frozen=True)
class Measured:
    """So many connections of one kind. Bytes are of each one; the rest is seconds, of all.

    resident: what the process has grown by. traced: what Python has allocated.
    idle: CPU in each second. None where there is no policy: those stay in CLOSE_WAIT.
    late: from the end of the grace to the last one's.
    """

    kind: str
    count: int
    resident: float
    traced: float
    audit: float
    command: float
    idle: float | None = None
    late: float | None = None


@dataclass
class Results:
    """Of one run; *left_out*: which sizes were not possible, and why."""

    python: str
    system: str
    cpus: int
    measured: list[Measured] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def possible(sizes: Sequence[int]) -> tuple[list[int], dict[str, str]]:
    """Those that can be had here, or the most that can be; and why not the others."""
    room = make_room(max(sizes) + SPARE) - SPARE
    reasons = {}
    for size in sizes:
        if size > room:
            reasons[str(size)] = (
                f"a process may have {room + SPARE:,} descriptors here, and no more: "
                f"ulimit -Hn {size + SPARE}, which root may set"
            )
        elif size * _BYTES > _available():
            reasons[str(size)] = f"it takes {size * _BYTES >> 20:,} MiB, and there are not as many"
    left = [size for size in sizes if str(size) not in reasons]
    most = room // 100 * 100
    if reasons and most > max(left, default=0) and most * _BYTES <= _available():
        left.append(most)
    return left, reasons


def _available() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _addresses(count: int) -> int:
    """How many it takes: to each of them only every second port is found at once."""
    low, high = map(int, Path(_PORTS).read_text(encoding="ascii").split())
    return count // max((high - low) // 3, 1) + 1


def measured(kind: str, count: int, traced: float, idle: float = _IDLE) -> Measured:
    """Raises OSError where the system has no room for so many."""
    with peers(_addresses(count)) as others, crowd(kind, others.addresses) as ours:
        resident = ours("connect", count)
        audit, command = ours("audit"), _seconds_of_command(ours.pid, count)
        found = Measured(kind, count, resident, traced, audit, command)
        if kind in PLAIN:
            used = ours("idle", idle) / idle
            late = _seconds_until_over(others, ours, count)
            found = Measured(kind, count, resident, traced, audit, command, used, late)
        else:
            assert others.close_all() == count
            _all_stay(others.addresses, count)
        assert ours("end") == 0, "descriptors are left"
    return found


def traced(kind: str, sizes: Sequence[int], left_out: dict[str, str]) -> dict[int, float]:
    """The bytes that Python has allocated for each, by how many there are; as many as can be."""
    found, total, before = {}, 0.0, 1
    with peers(_addresses(max(sizes))) as others, crowd(kind, others.addresses) as ours:
        ours("trace")
        for size in sorted(sizes):
            try:
                total += ours("connect", size) * (size - before)
            except OSError as error:
                left_out[str(size)] = str(error)
                break
            before = size
            found[size] = total / (size - 1)
    return found


def _seconds_until_over(others: Peers, ours: Crowd, count: int) -> float:
    grace: float = ours("grace")
    assert others.close_all() == count
    closed = time.monotonic()
    while _any_in_close_wait(others.addresses):
        assert time.monotonic() - closed < _LONGEST, "some are still in CLOSE_WAIT"
        time.sleep(0.01)
    late = time.monotonic() - closed - grace
    assert ours("losses") == count  # All of them by FIN.
    assert not _any_in_close_wait(others.addresses)
    return max(late, 0.0)


def _in_close_wait(addresses: Sequence[Address]) -> Iterator[_kernel_diag.Row]:
    for row in _kernel_diag._dump(1 << TcpState.CLOSE_WAIT, None):
        if row.peer in addresses:
            yield row


def _any_in_close_wait(addresses: Sequence[Address]) -> bool:
    return next(_in_close_wait(addresses), None) is not None


def _all_stay(addresses: Sequence[Address], count: int) -> None:
    deadline = time.monotonic() + _LONGEST
    while sum(1 for _ in _in_close_wait(addresses)) < count:
        assert time.monotonic() < deadline, "the peers' FIN has not come"
        time.sleep(0.01)


def _seconds_of_command(pid: int, count: int) -> float:
    command = [sys.executable, "-m", "safesock", "audit", "--pid", str(pid)]
    taken = []
    for _ in range(_COMMANDS):
        before = time.perf_counter()
        printed = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, process_group=0
        ).stdout
        taken.append(time.perf_counter() - before)
        assert f": {count:,} connections\n" in printed
    return min(taken)


def run(sizes: Sequence[int], kinds: Sequence[str] = KINDS, idle: float = _IDLE) -> Results:
    wanted, reasons = possible(sizes)
    system = f"{platform.system()} {platform.release()}"
    results = Results(platform.python_version(), system, os.cpu_count() or 0, left_out=reasons)
    for kind in kinds if wanted else ():
        for size, memory in traced(kind, wanted, results.left_out).items():
            try:
                found = measured(kind, size, memory, idle)
            except OSError as error:
                results.left_out[str(size)] = str(error)
                continue
            results.measured.append(found)
            print(scale_shown.line(found), file=sys.stderr, flush=True)
    for number, why in results.left_out.items():
        print(scale_shown.reason(number, why), file=sys.stderr, flush=True)
    return results


def rows(quick: bool) -> list[Row]:
    results = run((250, 500) if quick else (5_000, 50_000), ("socket.socket", "SafeSocket"))
    ones = [one for one in results.measured if one.kind == "SafeSocket"]
    plain = [one for one in results.measured if one.kind == "socket.socket"]
    if not ones:
        return []  # There is no room for any: the reasons have been told.
    most, count = ones[-1], f"{ones[-1].count:,}"
    assert most.idle is not None
    assert most.late is not None
    return [
        Row(
            f"{count} idle: memory over socket.socket", most.traced - plain[-1].traced, 600, "bytes"
        ),
        Row(f"{count} idle: CPU", most.idle * 100, 0.1, "%"),
        Row(f"{count} idle: safesock.audit()", most.audit, 2.0, "s"),
        Row(f"{count} idle: safesock audit --pid", most.command, 2.0, "s"),
        Row(
            f"{count}: last out of CLOSE_WAIT after grace",
            most.late,
            max(most.count / 10_000, 1.0),
            "s",
        ),
        *_growth(ones),
    ]


def _growth(ones: Sequence[Measured]) -> Iterator[Row]:
    if len(ones) > 1:
        power = scale_shown.slope([(one.count, one.audit) for one in ones])
        yield Row("an audit's time grows by the number to the power", power, None, "")


def _results_of(text: str) -> Results:
    """Raises ValueError where it is not what a run has kept."""
    found = json.loads(text)
    try:
        return Results(**found | {"measured": [Measured(**one) for one in found["measured"]]})
    except (TypeError, KeyError) as error:
        raise ValueError(str(error)) from error


def _results_in(file: Path) -> Results:
    return arguments.found_in("--from", file, _results_of)


def main(words: Sequence[str] | None = None) -> int:
    parser = _parser()
    chosen = parser.parse_args(words)
    try:
        results = _check(chosen)
        if results is None:
            results = run([size for size in SIZES if size <= chosen.most] or [chosen.most])
        print(scale_shown.text(results))
        _write(results, chosen)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--most", type=_most, metavar="N", help="no more connections than N (50,000)")
    add("--from", type=Path, dest="source", metavar="FILE", help="measure nothing: take this JSON")
    add("--json", type=Path, metavar="FILE", help="write the figures")
    add("--chart", type=Path, metavar="FILE", help="draw them, as .svg or .png")
    add("--page", type=Path, metavar="FILE", help="put their table into this page")
    return parser


def _most(text: str) -> int:
    if not text.isdecimal() or int(text) < _LEAST:
        raise argparse.ArgumentTypeError(f"takes a number, from {_LEAST}: not {text!r}")
    return int(text)


def _check(chosen: argparse.Namespace) -> Results | None:
    """All that may be wrong is told before minutes have passed. Raises ValueError. What there is
    already, by --from."""
    if chosen.source is not None and (chosen.json or chosen.most):
        raise ValueError("--from measures nothing: it goes with --chart and --page only")
    if chosen.json is not None:
        arguments.check_file("--json", chosen.json)
    if chosen.page is not None:
        arguments.check_page(
            "--page", chosen.page, lambda text: scale_shown.with_table(text, Results("", "", 0))
        )
    if chosen.chart is not None:
        arguments.check_chart("--chart", chosen.chart)
    if chosen.source is not None:
        return _results_in(chosen.source)
    chosen.most = chosen.most or SIZES[-1]
    return None


def _write(results: Results, chosen: argparse.Namespace) -> None:
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    if not results.measured:
        return  # Why has been told.
    if chosen.page is not None:
        page = chosen.page.read_text(encoding="utf-8")
        chosen.page.write_text(scale_shown.with_table(page, results), encoding="utf-8")
    if chosen.chart is not None:
        scale_shown.draw(chosen.chart, results)


if __name__ == "__main__":
    sys.exit(main())
