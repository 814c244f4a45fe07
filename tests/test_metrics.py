"""The counts, for Prometheus and for OpenTelemetry: the same, of the same events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from drivers import DRIVERS
from kernel import wait_until
from listening import listening
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    MetricsData,
)
from peer import EOF, Peer
from process import in_child, run_script
from prometheus_client.parser import text_string_to_metric_families

import safesock
import safesock.otel
import safesock.prometheus
from safesock import Abort, Policy, Reconnect
from safesock.events import Closed, Connected

CAUSES = ("fin", "rst", "timeout", "unreachable", "aborted")


class Counts(Protocol):
    """What either of them has counted."""

    def connections(self) -> float: ...
    def reconnects(self) -> float: ...
    def losses(self, cause: str) -> float: ...
    def unacknowledged(self) -> float: ...
    def close_wait(self) -> tuple[int, float, list[tuple[float, int]]]:
        """How many, their sum, and how many up to each bound."""


class OnThePage:
    """Prometheus's own parser reads it."""

    def __init__(self, metrics: safesock.prometheus.Metrics) -> None:
        self._metrics = metrics

    def _samples(self) -> dict[tuple[str, str], float]:
        return {
            (one.name, next(iter(one.labels.values()), "")): one.value
            for family in text_string_to_metric_families(self._metrics.text())
            for one in family.samples
        }

    def connections(self) -> float:
        return self._samples()["safesock_connections_total", ""]

    def reconnects(self) -> float:
        return self._samples()["safesock_reconnects_total", ""]

    def losses(self, cause: str) -> float:
        return self._samples()["safesock_losses_total", cause]

    def unacknowledged(self) -> float:
        return self._samples()["safesock_unacknowledged_bytes_total", ""]

    def close_wait(self) -> tuple[int, float, list[tuple[float, int]]]:
        name, samples = "safesock_close_wait_duration_seconds", self._samples()
        buckets = [
            (float(bound), int(count))
            for (sample, bound), count in samples.items()
            if sample == f"{name}_bucket"
        ]
        return int(samples[f"{name}_count", ""]), samples[f"{name}_sum", ""], buckets


class InTheSdk:
    """What OpenTelemetry's own SDK has got."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def _points(self, name: str) -> Any:
        data = self._reader.get_metrics_data()
        assert data is None or isinstance(data, MetricsData)
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                assert (scope.scope.name, scope.scope.version) == ("safesock", safesock.__version__)
                for metric in scope.metrics:
                    if metric.name == name:
                        return metric.data.data_points
        return ()

    def _total(self, name: str, attributes: dict[str, str] | None = None) -> float:
        points = self._points(name)
        return float(sum(one.value for one in points if one.attributes == (attributes or {})))

    def connections(self) -> float:
        return self._total("safesock.connections")

    def reconnects(self) -> float:
        return self._total("safesock.reconnects")

    def losses(self, cause: str) -> float:
        return self._total("safesock.losses", {"cause": cause})

    def unacknowledged(self) -> float:
        return self._total("safesock.unacknowledged")

    def close_wait(self) -> tuple[int, float, list[tuple[float, int]]]:
        points = self._points("safesock.close_wait.duration")
        if not points:
            return 0, 0.0, []
        (point,) = points
        assert isinstance(point, HistogramDataPoint)
        bounds = [*point.explicit_bounds, float("inf")]
        totals = [sum(point.bucket_counts[: end + 1]) for end in range(len(bounds))]
        return point.count, point.sum, list(zip(bounds, totals, strict=True))


@contextlib.contextmanager
def on_the_page() -> Iterator[Counts]:
    with safesock.prometheus.instrument() as metrics:
        yield OnThePage(metrics)


@contextlib.contextmanager
def in_the_sdk() -> Iterator[Counts]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    try:
        with safesock.otel.instrument(provider):
            yield InTheSdk(reader)
    finally:
        provider.shutdown()


both = pytest.mark.parametrize("counting", [on_the_page, in_the_sdk])


@both
@pytest.mark.parametrize("name", ["create_connection", "enforce", "asyncio streams"])
def test_a_loss_is_counted_by_cause_with_its_time_in_close_wait(
    counting: Any, name: str, peer: Peer
) -> None:
    with DRIVERS[name]() as driver, listening(peer.address) as told, counting() as counts:
        for turn in (1, 2):
            line = driver.connect(peer.address, Policy(grace=30.0))
            end = peer.accept()
            told.wait_for(Connected, turn)
            end.fin()
            line.read()
            line.close()
            told.wait_for(Closed, turn)
        assert (counts.connections(), counts.reconnects()) == (2, 0)
        assert [counts.losses(cause) for cause in CAUSES] == [2, 0, 0, 0, 0]
        count, seconds, buckets = counts.close_wait()
        assert count == 2
        assert 0 <= seconds < 30
        assert (buckets[-2], buckets[-1]) == ((3600.0, 2), (float("inf"), 2))


@both
def test_a_connection_that_is_released_is_counted_once(counting: Any, peer: Peer) -> None:
    with counting() as counts, peer.connected(Policy(grace=0.0)) as (sock, end):
        end.half_close()
        assert end.read_to_end() == (b"", EOF)
        wait_until(lambda: counts.close_wait()[0] == 1)
        sock.close()
        assert counts.close_wait()[0] == 1
        assert counts.losses("fin") == 1


@both
def test_what_was_not_acknowledged_is_counted(counting: Any, peer: Peer) -> None:
    with counting() as counts:
        with peer.connected(Policy(Abort())) as (sock, end):
            end.black_hole()
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(bytes(65536))
            sock.close()
        assert sock.close_report is not None
        assert counts.unacknowledged() == sock.close_report.unacknowledged > 0  # type: ignore[operator]
        assert counts.losses("rst") == 0
        with peer.connected(Policy(Abort())) as (sock, end):
            sock.send(b"read")
            assert end.read(4) == b"read"
            end.rst()
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert counts.losses("rst") == 1


@both
def test_what_a_graceful_close_leaves_on_its_way_is_not_counted(counting: Any, peer: Peer) -> None:
    with counting() as counts, peer.connected() as (sock, end):
        end.black_hole()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(65536))
        sock.close()
        assert sock.close_report is not None
        assert sock.close_report.unacknowledged
        assert counts.unacknowledged() == 0


@both
def test_reconnects_are_counted(counting: Any, peer: Peer) -> None:
    with counting() as counts, safesock.Connector(peer.address, reconnect=Reconnect()) as connector:
        for _ in range(3):
            with connector.connect():
                connector.confirm()
        assert (counts.connections(), counts.reconnects()) == (3, 2)


@both
def test_after_remove_nothing_is_counted(counting: Any, peer: Peer) -> None:
    with counting() as counts:
        safesock.create_connection(peer.address).close()
    safesock.create_connection(peer.address).close()
    assert counts.connections() == 1


# Each of them ------------------------------------------------------------------------------------


def test_the_page_is_as_the_format_says(peer: Peer) -> None:
    with safesock.prometheus.instrument() as metrics:
        safesock.create_connection(peer.address).close()
        text = metrics.text()
    assert text.startswith(
        "# HELP safesock_connections_total Connections that were made\n"
        "# TYPE safesock_connections_total counter\n"
        "safesock_connections_total 1\n"
    )
    assert 'safesock_losses_total{cause="fin"} 0\n' in text
    assert 'safesock_close_wait_duration_seconds_bucket{le="+Inf"} 0\n' in text
    families = list(text_string_to_metric_families(text))
    assert {family.type for family in families} == {"counter", "histogram"}
    assert all(family.documentation for family in families)
    assert "version=0.0.4" in safesock.prometheus.CONTENT_TYPE


def test_a_child_goes_on_with_its_parents_counts(peer: Peer) -> None:
    with safesock.prometheus.instrument() as metrics:
        counts = OnThePage(metrics)
        safesock.create_connection(peer.address).close()

        def child() -> None:
            safesock.create_connection(peer.address).close()
            assert counts.connections() == 2

        in_child(child)
        assert counts.connections() == 1


def test_two_pages_count_each_for_itself(peer: Peer) -> None:
    with safesock.prometheus.instrument() as first:
        safesock.create_connection(peer.address).close()
        with safesock.prometheus.instrument() as second:
            safesock.create_connection(peer.address).close()
            assert [OnThePage(one).connections() for one in (first, second)] == [2, 1]


def test_the_page_takes_no_package() -> None:
    text = """
import sys
sys.modules["opentelemetry"] = sys.modules["prometheus_client"] = None
import safesock.prometheus
print(safesock.prometheus.instrument().text().count("# TYPE"))
"""
    assert run_script(text) == "5\n"


GLOBAL = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
import safesock.otel
from safesock.testing import ScriptedPeer
with ScriptedPeer() as peer:
    safesock.otel.instrument()
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    safesock.create_connection(peer.address).close()
    data = reader.get_metrics_data()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        print(metric.name, metric.data.data_points[0].value)
"""


def test_the_global_meter_provider_is_the_default_also_when_it_comes_later() -> None:
    assert run_script(GLOBAL) == "safesock.connections 1\n"
