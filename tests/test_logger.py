"""Events as records of the logger `safesock`."""

from __future__ import annotations

import logging
import logging.handlers
import socket
import threading
from collections.abc import Iterator

import pytest
import tenacity
from kernel import wait_until
from peer import EOF, Peer
from process import run_script

import safesock
from safesock import Policy, Reconnect, _watch, create_connection

LOGGER = logging.getLogger("safesock")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def about(self) -> list[tuple[str, str]]:
        return [(type(one.args[0]).__name__, one.levelname) for one in self.records if one.args]  # type: ignore[index]


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    LOGGER.addHandler(handler)
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(logging.NOTSET)


def test_at_debug_a_connection_is_logged(peer: Peer, kept: Kept) -> None:
    LOGGER.setLevel("DEBUG")
    with peer.connected() as (sock, end):
        end.fin()
        assert sock.recv(1) == b""
        number = sock.loss.connection if sock.loss else 0
    assert kept.about() == [
        (kind, "DEBUG") for kind in ("Connecting", "Connected", "Lost", "Closed")
    ]
    assert all(one.name == "safesock" for one in kept.records)
    where = f"connection {number} to 127.0.0.1:{peer.address[1]}: "
    assert [one.getMessage().startswith(where) for one in kept.records] == 4 * [True]
    assert "lost by FIN after" in kept.records[2].getMessage()


def test_at_info_only_what_a_connector_does_is_logged(peer: Peer, kept: Kept) -> None:
    LOGGER.setLevel("INFO")
    create_connection(peer.address).close()
    reconnect = Reconnect(attempts=2, wait=tenacity.wait_none())
    connector = safesock.Connector(peer.address, reconnect=reconnect)
    with peer.refusing(), pytest.raises(safesock.ReconnectError):
        connector.connect()
    assert kept.about() == [("Retrying", "INFO"), ("BudgetExhausted", "INFO")]
    assert "by attempt 1: ConnectionRefusedError" in kept.records[0].getMessage()


def test_at_warning_nothing_is_logged_whatever_happens(peer: Peer, kept: Kept) -> None:
    LOGGER.setLevel("WARNING")
    reconnect = Reconnect(attempts=2, wait=tenacity.wait_none())
    with peer.refusing(), pytest.raises(safesock.ReconnectError):
        safesock.Connector(peer.address, reconnect=reconnect).connect()
    enforcement = safesock.enforce(Policy(on_loss="release", grace=0.0))
    with enforcement, socket.create_connection(peer.address):
        end = peer.accept()
        end.half_close()
        assert end.read_to_end() == (b"", EOF)
    assert kept.records == []


def test_a_logger_that_logs_over_tcp_does_not_log_itself(peer: Peer) -> None:
    """Each record would make a connection, and each connection records."""
    LOGGER.setLevel("DEBUG")
    seen = []

    class OverTcp(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)
            create_connection(peer.address).close()

    handler = OverTcp()
    LOGGER.addHandler(handler)
    try:
        create_connection(peer.address).close()
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(logging.NOTSET)
    assert len(seen) == 3


def test_what_the_watcher_notices_is_logged_and_its_thread_stays_unknown(
    peer: Peer, kept: Kept
) -> None:
    LOGGER.setLevel("DEBUG")
    with peer.connected(Policy(grace=0.0)) as (_, end):
        end.half_close()
        wait_until(lambda: ("Released", "DEBUG") in kept.about())
    assert kept.records[3].threadName == "safesock-events"
    assert _watch._watcher is not None
    assert _watch._watcher._thread not in {thread.ident for thread in threading.enumerate()}


def test_logging_is_not_imported_for_it_and_may_come_later() -> None:
    text = """
import sys, safesock, socket
listener = socket.create_server(("127.0.0.1", 0))
safesock.create_connection(listener.getsockname()).close()
assert "logging" not in sys.modules
import logging
logging.basicConfig(level="DEBUG", stream=sys.stdout, format="%(levelname)s %(message)s")
safesock.create_connection(listener.getsockname()).close()
"""
    lines = run_script(text).splitlines()
    assert [line.split()[0] for line in lines] == 3 * ["DEBUG"]
    assert lines[-1].endswith(": closed by Graceful()")
