"""Connections, losses, reconnects, time in CLOSE_WAIT and unacknowledged bytes for OpenTelemetry.
It takes the extra `safesock[otel]`, which brings opentelemetry-api.

    safesock.otel.instrument()
"""

from __future__ import annotations

import safesock
from safesock._extras import brought_by
from safesock._measures import METRICS, Metric, measures
from safesock._subscribe import Subscription, subscribe

with brought_by("otel"):
    from opentelemetry import metrics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from safesock.events import Event

__all__ = ["instrument"]


def instrument(meter_provider: metrics.MeterProvider | None = None) -> Subscription:
    """Adds what becomes of all connections of this process from now on to the instruments of a
    meter, "safesock", of *meter_provider* (None: the global one).

    safesock.connections: connections made, or taken over by `wrap`.
    safesock.reconnects: those of them with which a `Connector` has come back.
    safesock.losses: with the attribute `cause`: "fin", "rst", "timeout", "unreachable", "aborted".
    safesock.close_wait.duration: a histogram: of each connection that was in
        CLOSE_WAIT, from the peer's FIN to our end.
    safesock.unacknowledged: bytes that `send` accepted, and the peer's kernel had not
        acknowledged when the connection was lost, or reset by this side.

    Their units are {connection}, s and By. Gives the handle of `safesock.subscribe`: `remove()`,
    and it is a context manager.
    """
    meter = metrics.get_meter("safesock", safesock.__version__, meter_provider)
    instruments = {metric: _instrument(meter, metric) for metric in METRICS}

    def record(event: Event) -> None:
        for measure in measures(event):
            instruments[measure.metric](measure.amount, measure.attributes)

    return subscribe(record)


def _instrument(meter: metrics.Meter, metric: Metric) -> Callable[[float, dict[str, Any]], None]:
    about = {"unit": metric.unit, "description": metric.description}
    if not metric.buckets:
        return meter.create_counter(metric.name, **about).add
    histogram = meter.create_histogram(
        metric.name, **about, explicit_bucket_boundaries_advisory=metric.buckets
    )
    return histogram.record
