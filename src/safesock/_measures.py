"""What events come to in numbers: the metrics, and what each event adds to which. `prometheus` and
`otel` do the adding."""

from __future__ import annotations

from typing import Any, NamedTuple

from safesock._loss import Cause
from safesock.events import Closed, Connected, Event, Lost, Released

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Metric(NamedTuple):
    """A counter, or with *buckets* (their upper bounds) a histogram. *unit*: as UCUM writes it."""

    name: str
    description: str
    unit: str
    attribute: str | None = None
    buckets: tuple[float, ...] = ()


class Measure(NamedTuple):
    """*amount* is added to *metric*; *value*: that of its attribute, if it has one."""

    metric: Metric
    amount: float
    value: str | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """As OpenTelemetry takes them."""
        return {} if self.metric.attribute is None else {self.metric.attribute: self.value}


CONNECTIONS = Metric("safesock.connections", "Connections that were made", "{connection}")
RECONNECTS = Metric(
    "safesock.reconnects", "Connections that a Connector has come back with", "{connection}"
)
LOSSES = Metric(
    "safesock.losses",
    "Connections lost before their owner closed them",
    "{connection}",
    attribute="cause",
)
CLOSE_WAIT = Metric(
    "safesock.close_wait.duration",
    "Time in CLOSE_WAIT, from the peer's FIN to our end",
    "s",
    # From a program that reacts at once to one that does not: a minute is keepalive's end.
    buckets=(0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0),
)
UNACKNOWLEDGED = Metric(
    "safesock.unacknowledged",
    "Bytes sent that the peer's kernel had not acknowledged when the connection was lost or reset",
    "By",
)
METRICS = (CONNECTIONS, RECONNECTS, LOSSES, CLOSE_WAIT, UNACKNOWLEDGED)


def measures(event: Event) -> Iterator[Measure]:
    """What it adds."""
    match event:
        case Connected():
            yield Measure(CONNECTIONS, 1)
            if event.previous is not None:
                yield Measure(RECONNECTS, 1)
        case Lost(loss=loss):
            yield Measure(LOSSES, 1, loss.cause.value)
            yield Measure(UNACKNOWLEDGED, loss.unacknowledged or 0)
        case Released(close_wait=float(seconds)):
            yield Measure(CLOSE_WAIT, seconds)
        case Closed(report=report, close_wait=seconds):
            if seconds is not None:
                yield Measure(CLOSE_WAIT, seconds)
            # After a loss they have been counted.
            if report.reset and report.cause is Cause.CLOSED:
                yield Measure(UNACKNOWLEDGED, report.unacknowledged or 0)
