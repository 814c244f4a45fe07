"""TLS that comes and goes on a governed connection: `unwrap`, and `wrap` of an SSLSocket."""

from __future__ import annotations

import signal
import ssl
import threading
from typing import Any

import pytest
from peer import RESET, TIMEOUT
from tls_client import (
    QUIET,
    by_secure_and_wrap,
    connect,
    fin_only,
    loss_of,
    lost,
    notify_and_fin,
    outcome,
    read_when_ready,
    rst,
    wait_for_the_end,
    wait_for_the_reset,
)
from tls_peer import Certificates, TlsPeer, done

from safesock import Abort, Cause, Policy, SafeSSLSocket, wrap

# unwrap -----------------------------------------------------------------------------------------


@by_secure_and_wrap
@pytest.mark.parametrize("first", ["we", "the peer"])
def test_unwrap_leaves_a_governed_connection_in_clear_text(
    tls: TlsPeer, context23: ssl.SSLContext, way: Any, first: str
) -> None:
    sock, end = way(tls, context23)
    with sock:
        if first == "the peer":
            end.close_notify()
            assert sock.unwrap() is sock
            end.answer_close_notify()
        else:
            answered = tls.begin(end.answer_close_notify)
            assert sock.unwrap() is sock
            done(answered)
        assert loss_of(sock) is None
        assert sock.version() is None
        end.say_in_clear(b"in the clear")
        assert sock.recv(100) == b"in the clear"
        if first == "we":
            sock.sendall(b"me too")
            assert end.sock.recv(6) == b"me too"
        end.fin()
        assert sock.recv(100) == b""
        assert lost(sock).cause is Cause.FIN
        assert sock.fileno() == -1


@pytest.mark.parametrize("written", [False, True], ids=["idle", "after a write"])
@pytest.mark.parametrize("act", [notify_and_fin, fin_only, rst], ids=lambda act: act.__name__)
@by_secure_and_wrap
def test_unwrap_meets_the_end_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, act: Any, written: bool, way: Any
) -> None:
    both = []
    for policy in (None, QUIET):
        sock, end = way(tls, certificates.client(), policy)
        with sock:
            act(end)
            wait_for_the_end(sock)
            if written and act is not rst:
                sock.send(b"data")
                wait_for_the_reset(sock)
            told = outcome(lambda sock: sock.unwrap() is sock, sock)
            both.append(told)
            if policy and told is not True:
                assert lost(sock)
                assert sock.fileno() == -1
    assert both[0] == both[1]


# wrap of an established SSLSocket ---------------------------------------------------------------


def test_wrap_moves_the_session(tls: TlsPeer, context23: ssl.SSLContext) -> None:
    old, end = connect(tls, context23, None)
    facts = (old.version(), old.cipher(), old.getpeercert(), old.server_hostname)
    fd, timeout = old.fileno(), old.gettimeout()
    with wrap(old, QUIET) as sock:
        assert isinstance(sock, SafeSSLSocket)
        assert (sock.fileno(), sock.gettimeout()) == (fd, timeout)
        assert (sock.version(), sock.cipher(), sock.getpeercert(), sock.server_hostname) == facts
        assert sock.context is context23
        assert old.fileno() == -1
        for use in (old.read, old.do_handshake, old.unwrap):
            with pytest.raises((OSError, ValueError)):
                use()
        old.close()
        del old, use
        sock.sendall(b"ping")
        assert end.read(4) == b"ping"


def test_wrap_again(tls: TlsPeer, context: ssl.SSLContext) -> None:
    sock, end = connect(tls, context, Policy(close=Abort(), watch=False))
    for _ in range(3):
        sock = wrap(sock)
    with sock:
        sock.settimeout(TIMEOUT)
        end.say(b"hello")
        assert sock.recv(5) == b"hello"
    assert end.read_to_end()[1] == RESET


def test_decrypted_bytes_move_too(tls: TlsPeer, context23: ssl.SSLContext) -> None:
    old, end = connect(tls, context23, None)
    end.say(b"hello world")
    assert old.recv(5) == b"hello"
    end.fin()
    with wrap(old, QUIET) as sock:
        assert sock.recv(100) == b" world"
        assert sock.recv(100) == b""


@pytest.mark.parametrize("before", [None, 0.0, 5.0])
@pytest.mark.parametrize("after", [None, 0.0, 0.1])
def test_every_mode_works_after_wrap(
    tls: TlsPeer, context23: ssl.SSLContext, before: float | None, after: float | None
) -> None:
    old, end = connect(tls, context23, None)
    old.settimeout(before)
    with wrap(old, QUIET) as sock:
        assert sock.gettimeout() == before
        sock.settimeout(after)
        assert sock.gettimeout() == after
        if after is not None:
            with pytest.raises(ssl.SSLWantReadError if after == 0.0 else TimeoutError) as caught:
                sock.recv(1)
            assert after == 0.0 or str(caught.value) == "The read operation timed out"
        later = threading.Timer(0.05, end.say, [b"late"])
        later.start()
        try:
            if after == 0.1:
                sock.settimeout(TIMEOUT)
            assert (read_when_ready(sock) if after == 0.0 else sock.recv(4)) == b"late"
        finally:
            later.join()
        assert loss_of(sock) is None


@pytest.mark.parametrize("timeout", [None, 0.0, 0.2])
@by_secure_and_wrap
def test_a_peer_that_does_not_read_stops_writes_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, timeout: float | None, way: Any
) -> None:
    """Non-blocking: SSLWantWriteError; timeout: TimeoutError; blocking: until the peer reads."""
    data = bytes(1 << 20)
    for policy in (None, QUIET):
        sock, end = way(tls, certificates.client(), policy)
        with sock:
            sock.settimeout(timeout)
            if timeout is None:
                reading = tls.begin(end.read, 4 * len(data))
                for _ in range(4):
                    sock.sendall(data)
                assert len(done(reading)) == 4 * len(data)
                continue
            with pytest.raises(TimeoutError if timeout else ssl.SSLWantWriteError) as caught:
                sock.sendall(data * 64)
            assert not timeout or str(caught.value) == "The write operation timed out"
            assert policy is None or loss_of(sock) is None


@by_secure_and_wrap
def test_a_signal_in_a_blocking_read_is_not_seen(
    tls: TlsPeer, context: ssl.SSLContext, way: Any
) -> None:
    """EINTR: PEP 475 has the call go on."""
    sock, end = way(tls, context)
    sock.settimeout(None)
    calls = []

    def handler(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            end.say(b"hello")

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with sock:
            signal.setitimer(signal.ITIMER_REAL, 0.1, 0.05)
            assert sock.recv(5) == b"hello"
            assert len(calls) >= 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_wrap_refuses_while_a_makefile_file_is_open(tls: TlsPeer, context: ssl.SSLContext) -> None:
    sock, end = connect(tls, context, None)
    with sock, sock.makefile("rb") as file:
        with pytest.raises(ValueError, match="makefile"):
            wrap(sock)
        end.say(b"line\n")
        assert file.readline() == b"line\n"
