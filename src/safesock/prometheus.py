"""Connections, losses, reconnects, time in CLOSE_WAIT and unacknowledged bytes as a page for
Prometheus. Nothing but the standard library is needed.

    metrics = safesock.prometheus.instrument()
    ...
    body = metrics.text()  # What GET /metrics gives, as safesock.prometheus.CONTENT_TYPE
"""

from __future__ import annotations

import bisect
import itertools

from safesock import _forks, _hub
from safesock._loss import Cause
from safesock._measures import LOSSES, METRICS, Metric, measures
from safesock._subscribe import Subscription

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from safesock.events import Event

__all__ = ["CONTENT_TYPE", "Metrics", "instrument"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The Content-Type of what `Metrics.text` gives."""


class Metrics(Subscription):
    """What `instrument` gives: counts from then on, until `remove`, or the end of a `with` block. A
    forked child goes on with its parent's counts."""

    __module__ = "safesock.prometheus"

    def __init__(self) -> None:
        super().__init__(self._count)
        # A signal handler that closes a connection may come in the middle of it.
        self._lock = _forks.lock()
        self._series = {metric: _Series(metric) for metric in METRICS}
        for cause in Cause:
            if cause is not Cause.CLOSED:
                self._series[LOSSES].add(0, cause.value)  # It is there before the first one.

    def _count(self, event: Event) -> None:
        with self._lock:
            for measure in measures(event):
                self._series[measure.metric].add(measure.amount, measure.value)

    def text(self) -> str:
        """The counts until now, in Prometheus's text exposition format 0.0.4."""
        with self._lock:
            lines = [line for series in self._series.values() for line in series.lines()]
        return "".join(f"{line}\n" for line in lines)


def instrument() -> Metrics:
    """Counts what becomes of all connections of this process from now on: see `Metrics.text`.

    safesock_connections_total: connections made, or taken over by `wrap`.
    safesock_reconnects_total: those of them with which a `Connector` has come back.
    safesock_losses_total: by `cause`: "fin", "rst", "timeout", "unreachable", "aborted".
    safesock_close_wait_duration_seconds: a histogram: of each connection that was in CLOSE_WAIT,
        from the peer's FIN to our end.
    safesock_unacknowledged_bytes_total: bytes that `send` accepted, and the peer's kernel had not
        acknowledged when the connection was lost, or reset by this side.
    """
    made = Metrics()
    _hub.add(made)
    return made


class _Series:
    """The values of one metric: by that of its attribute, or under None."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._name = _name(metric)
        self._totals: dict[str | None, float] = {} if metric.attribute else {None: 0}
        # How many were in each bucket; the last is for those above all bounds.
        self._buckets = [0] * (len(metric.buckets) + 1)

    def add(self, amount: float, value: str | None) -> None:
        self._totals[value] = self._totals.get(value, 0) + amount
        self._buckets[bisect.bisect_left(self._metric.buckets, amount)] += 1

    def lines(self) -> Iterator[str]:
        kind = "histogram" if self._metric.buckets else "counter"
        yield f"# HELP {self._name} {self._metric.description}"
        yield f"# TYPE {self._name} {kind}"
        if self._metric.buckets:
            yield from self._histogram()
            return
        for value, total in self._totals.items():
            label = "" if value is None else f'{{{self._metric.attribute}="{value}"}}'
            yield f"{self._name}{label} {total!r}"

    def _histogram(self) -> Iterator[str]:
        counts = list(itertools.accumulate(self._buckets))
        for bound, count in zip((*self._metric.buckets, "+Inf"), counts, strict=True):
            yield f'{self._name}_bucket{{le="{bound}"}} {count}'
        yield f"{self._name}_sum {self._totals[None]!r}"
        yield f"{self._name}_count {counts[-1]}"


_UNITS = {"s": "_seconds", "By": "_bytes"}


def _name(metric: Metric) -> str:
    """As OpenTelemetry's own exporter would put it."""
    name = metric.name.replace(".", "_") + _UNITS.get(metric.unit, "")
    return name if metric.buckets else f"{name}_total"
