"""A million clients whose server restarts: who is back when, and who gives up?

A simulation, in virtual time, of `Reconnect`: each client has its `Budget`, and waits by a tenacity
strategy. All lose their connection within a tenth of a second, and dial at once. The server is back
after a while, accepts so many per second, and has a bounded backlog: what does not fit is refused,
or dropped as Linux does (its SYN is sent again every second or two, until the timeout).

The first attempt is the same for all, so the peak is that of the time when the server is back.
"""

from __future__ import annotations

import argparse
import bisect
import gc
import heapq
import importlib
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tenacity

from benchmarks import arguments
from benchmarks.report import Row
from safesock import Reconnect
from safesock._budget import Budget
from safesock._reconnect import DEFAULT_WAIT

Wait = Callable[[tenacity.RetryCallState], float]

_SPREAD = 0.1  # Seconds within which all have lost their connection.
_TIMEOUT = 10.0  # What `Connector` gives one attempt.
_TICK = 0.1  # Seconds that are counted together.
_SHOWN = 60  # Seconds in the plot.
# When Linux sends a SYN, and sends it again: tcp_syn_linear_timeouts is 4.
_SYNS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0)


@dataclass(frozen=True)
class Scene:
    """The clients, and what they meet."""

    clients: int = 1_000_000
    outage: float = 2.0
    seconds_for_all: float = 20.0  # What the server takes to accept them all, one after the other.
    drops: bool = False

    @property
    def rate(self) -> float:
        return self.clients / self.seconds_for_all

    @property
    def backlog(self) -> int:
        """net.core.somaxconn, for a million."""
        return max(self.clients * 4096 // 1_000_000, 1)


@dataclass
class Outcome:
    back: list[float] = field(default_factory=list)  # When the server accepted them.
    gave_up: int = 0
    attempts: int = 0
    by_tick: Counter[int] = field(default_factory=Counter)  # Attempts.

    def seconds_until(self, share: float) -> float | None:
        """Until this share of all is back, if it ever is."""
        wanted = round(share * (len(self.back) + self.gave_up))
        return None if wanted > len(self.back) else self.back[wanted - 1]

    def attempts_in_second(self, second: int) -> int:
        return sum(self.by_tick[tick] for tick in range(10 * second, 10 * second + 10))

    def peak(self, since: float) -> int:
        """The most attempts in any second from then on."""
        first = round(since / _TICK)
        last = max(self.by_tick, default=first)
        ticks = [self.by_tick[tick] for tick in range(first, max(last, first + 9) + 1)]
        return max(sum(ticks[at : at + 10]) for at in range(len(ticks) - 9))


def waits(base: float, cap: float) -> dict[str, Wait]:
    """Exponential backoff with the three kinds of jitter."""
    half = tenacity.wait_exponential(multiplier=base / 2, max=cap / 2)
    return {
        "full jitter": tenacity.wait_random_exponential(multiplier=base, max=cap),
        "equal jitter": half + tenacity.wait_random_exponential(multiplier=base / 2, max=cap / 2),
        "no jitter": tenacity.wait_exponential(multiplier=base, max=cap),
    }


class _Server:
    def __init__(self, scene: Scene) -> None:
        self._back_at = scene.outage
        self._each = 1 / scene.rate
        self._longest = scene.backlog / scene.rate
        self._busy_until = 0.0

    def is_up(self, now: float) -> bool:
        return now >= self._back_at

    def accepts(self, now: float) -> float | None:
        """When it will have accepted who comes now, or None where the backlog is full."""
        begin = max(self._busy_until, now)
        if begin - now >= self._longest:
            return None
        self._busy_until = begin + self._each
        return self._busy_until


class _Agenda:
    """What is due when, in order; a heap for each tick is much quicker than one for all."""

    def __init__(self) -> None:
        self._later: dict[int, list[tuple[float, int, int]]] = {}
        self._now: list[tuple[float, int, int]] = []
        self._tick = 0

    def add(self, at: float, client: int, syn: int = 0) -> None:
        tick = int(at / _TICK)
        if tick <= self._tick:
            heapq.heappush(self._now, (at, client, syn))
        else:
            self._later.setdefault(tick, []).append((at, client, syn))

    def __iter__(self) -> Iterator[tuple[float, int, int]]:
        while self._now or self._later:
            while self._now:
                yield heapq.heappop(self._now)
            if self._later:
                self._tick = min(self._later)
                self._now = self._later.pop(self._tick)
                heapq.heapify(self._now)


def simulate(scene: Scene, wait: Wait, seed: int = 1) -> Outcome:
    random.seed(seed)  # tenacity's strategies take theirs from there.
    choice = Reconnect(wait=wait)
    outcome, server, agenda = Outcome(), _Server(scene), _Agenda()
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    budgets = []
    for client in range(scene.clients):
        budget = Budget(choice.attempts, choice.deadline, choice.stable_after)
        lost = random.uniform(0, _SPREAD)
        budget.resume(lost)
        budgets.append(budget)
        agenda.add(lost, client)
    for now, client, syn in agenda:
        budget = budgets[client]
        if syn == 0:
            budget.tries()
            outcome.attempts += 1
            outcome.by_tick[int(now / _TICK)] += 1
        if syn < len(_SYNS) and server.is_up(now):
            accepted = server.accepts(now)
            if accepted is not None:
                outcome.back.append(accepted)
                continue
            if scene.drops:
                agenda.add(*_again(now, client, syn, budget))
                continue
        state.attempt_number = budget.tried
        pause = wait(state)
        if budget.may_try(now, pause):
            agenda.add(now + pause, client)
        else:
            outcome.gave_up += 1
    assert len(outcome.back) + outcome.gave_up == scene.clients
    return outcome


def _again(now: float, client: int, syn: int, budget: Budget) -> tuple[float, int, int]:
    """The next SYN, or, when there is none, the end of the attempt."""
    ends = now + min(_TIMEOUT - _SYNS[syn], budget.left(now))
    if syn + 1 < len(_SYNS) and (sends := now + _SYNS[syn + 1] - _SYNS[syn]) < ends:
        return sends, client, syn + 1
    return ends, client, len(_SYNS)


def _simulate_all(scene: Scene) -> dict[str, Outcome]:
    gc.disable()  # Millions of objects, and no cycles.
    try:
        all_three = waits(DEFAULT_WAIT.multiplier, DEFAULT_WAIT.max) | {"full jitter": DEFAULT_WAIT}
        return {name: simulate(scene, wait) for name, wait in all_three.items()}
    finally:
        gc.enable()


# What is shown of it -----------------------------------------------------------------------------


def rows(quick: bool) -> list[Row]:
    scene = Scene(20_000 if quick else 1_000_000)
    outcomes = _simulate_all(scene)
    full, none = outcomes["full jitter"], outcomes["no jitter"]
    peaks = full.peak(scene.outage) / none.peak(scene.outage)
    herd = f"herd of {scene.clients:,}"
    return [
        Row(f"{herd}: the last is back after", max(full.back), 60, "s"),
        Row(f"{herd}: give up", full.gave_up / scene.clients * 100, 1, "%"),
        Row(f"{herd}: peak against no jitter", peaks, 0.5, "x"),
    ]


def _print(scene: Scene, outcomes: dict[str, Outcome]) -> None:
    print(
        f"{scene.clients:,} clients; the server is back after {scene.outage:g} s, "
        f"and accepts {scene.rate:,.0f} per second",
        f"{'':14}{'half back':>10}{'99 % back':>10}{'last back':>10}{'gave up':>10}"
        f"{'attempts':>12}{'peak per second':>17}",
        sep="\n",
    )
    for name, outcome in outcomes.items():
        times = [outcome.seconds_until(share) for share in (0.5, 0.99)]
        half, most = ("never" if at is None else f"{at:.1f} s" for at in times)
        print(
            f"{name:14}{half:>10}{most:>10}{f'{max(outcome.back):.1f} s':>10}"
            f"{outcome.gave_up / scene.clients:>10.1%}{outcome.attempts:>12,}"
            f"{outcome.peak(scene.outage):>17,}",
            flush=True,
        )


_TRIED = ((0.5, 8), (1, 8), (1, 16), (1, 30), (2, 16), (2, 30), (4, 16), (4, 30))


def _print_table() -> None:
    """For other figures than the default's."""
    scenes = [Scene(20_000, outage, rate) for outage in (1, 10, 30) for rate in (10, 20, 40)]
    columns = [f"{scene.outage} s, {scene.seconds_for_all} s" for scene in scenes]
    print(
        "Full jitter: which share gives up, by the outage and the time the server takes for all\n"
    )
    print("| base, cap | " + " | ".join(columns) + " |", "|---" * 10 + "|", sep="\n")
    for base, cap in _TRIED:
        wait = waits(base, cap)["full jitter"]
        shares = [simulate(scene, wait).gave_up / scene.clients for scene in scenes]
        shown = " | ".join(f"{share:.1%}" for share in shares)
        print(f"| {base} s, {cap} s | {shown} |", flush=True)


def _plot(file: Path, scene: Scene, outcomes: dict[str, Outcome]) -> None:
    matplotlib, figures = (importlib.import_module(f"matplotlib{part}") for part in ("", ".figure"))
    matplotlib.rcParams["svg.hashsalt"] = "herd"  # The same file for the same figures.
    figure = figures.Figure((9, 7.5), layout="constrained")
    figure.suptitle(
        f"{scene.clients:,} clients lose their connections at once. The server is back after "
        f"{scene.outage:g} s,\nrefuses what its backlog of {scene.backlog:,} does not hold, and "
        f"accepts {scene.rate:,.0f} per second."
    )
    back, tries = figure.subplots(2, 1, sharex=True)
    moments = [step / 4 for step in range(4 * _SHOWN + 1)]
    edges = range(_SHOWN + 1)
    for name, outcome in outcomes.items():
        shares = [100 * bisect.bisect(outcome.back, at) / scene.clients for at in moments]
        lost = f"{outcome.gave_up / scene.clients:.1%} gave up"
        label = f"{name}: the last back at {max(outcome.back):.0f} s, {lost}"
        back.plot(moments, shares, label=label, linewidth=2)
        rates = [outcome.attempts_in_second(second) for second in range(_SHOWN)]
        tries.stairs(rates, edges, linewidth=1.5)
    ends = (scene.outage, scene.outage + scene.seconds_for_all)
    back.plot(ends, (0, 100), ":", color="grey", label="what the server can accept")
    back.set(ylabel="back, % of the clients", xlim=(0, _SHOWN), ylim=(0, 102))
    tries.axhline(scene.rate, linestyle=":", color="grey")
    tries.set(xlabel="seconds since the loss", ylabel="attempts per second", yscale="log")
    tries.set_ylim(scene.clients / 5_000, 3 * scene.clients)
    for axes in (back, tries):
        axes.grid(alpha=0.3)
    back.legend(loc="center right")
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.herd", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="20,000 clients")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as .svg or .png")
    parser.add_argument("--table", action="store_true", help="try other figures for the default")
    chosen = parser.parse_args(words)
    try:
        if chosen.plot is not None:
            arguments.check_chart("--plot", chosen.plot)
        if chosen.table:
            _print_table()
        else:
            _show(Scene(20_000 if chosen.quick else 1_000_000), chosen.plot)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _show(scene: Scene, plot: Path | None) -> None:
    outcomes = _simulate_all(scene)
    _print(scene, outcomes)
    if plot is not None:
        _plot(plot, scene, outcomes)


if __name__ == "__main__":
    sys.exit(main())
