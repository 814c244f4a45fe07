"""Our side of a TLS connection: the ways that it is made, what it calls, and how it is lost."""

from __future__ import annotations

import contextlib
import io
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any

import kernel
import pytest
from peer import TIMEOUT
from tls_peer import NAME, TlsEnd, TlsPeer, done

from safesock import (
    Abort,
    Drain,
    Graceful,
    Linger,
    Loss,
    Policy,
    SafeSocket,
    create_connection,
    secure,
    wrap,
)

QUIET = Policy(watch=False)
MODES: Any = [Graceful(), Drain(0.5), Linger(1), Abort()]


def loss_of(sock: SafeSocket) -> Loss | None:
    """A call, as mypy would take an attribute to stay what it was."""
    return sock.loss


def lost(sock: Any) -> Loss:
    loss = loss_of(sock)
    assert loss is not None
    return loss


def connect(
    tls: TlsPeer, context: ssl.SSLContext, policy: Policy | None = QUIET, **options: Any
) -> tuple[Any, TlsEnd]:
    """A connection after its handshake; *policy* None: an SSLSocket of the standard library."""
    accepted = tls.begin(tls.accept_and_shake)
    if policy is None:
        plain = socket.create_connection(tls.address, TIMEOUT)
    else:
        plain = create_connection(tls.address, TIMEOUT, policy=policy)
        secure(context)
    sock = context.wrap_socket(plain, server_hostname=NAME, **options)
    return sock, done(accepted)


def taken_over(
    tls: TlsPeer, context: ssl.SSLContext, policy: Policy | None = QUIET, **options: Any
) -> tuple[Any, TlsEnd]:
    """As `connect`, by `wrap` of an established SSLSocket."""
    sock, end = connect(tls, context, None, **options)
    return (sock if policy is None else wrap(sock, policy)), end


WAYS: Any = {"secure": connect, "wrap": taken_over}
by_secure_and_wrap = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def wait_for_the_end(sock: Any) -> None:
    """Until the peer's FIN or RST is there."""
    kernel.wait_until(lambda: kernel.state_of(sock) in ("CLOSE_WAIT", "CLOSE"))


def wait_for_the_reset(sock: Any) -> None:
    kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE")


def readable(sock: Any) -> bool:
    return bool(select.select([sock], [], [], TIMEOUT)[0])


# What the peer does, and how the kernel shows that it has arrived.


def notify_and_fin(end: TlsEnd) -> None:
    end.close_notify()
    end.fin()


def fin_only(end: TlsEnd) -> None:
    end.fin()


def rst(end: TlsEnd) -> None:
    end.rst()


def goodbye_and_fin(end: TlsEnd) -> None:
    end.say(b"goodbye")
    end.fin()


def goodbye_notify_and_fin(end: TlsEnd) -> None:
    end.say(b"goodbye")
    notify_and_fin(end)


def half_a_record_and_fin(end: TlsEnd) -> None:
    end.say_in_clear(b"\x17\x03\x03\x00\x50half")
    end.fin()


ENDS = [
    notify_and_fin,
    fin_only,
    rst,
    goodbye_and_fin,
    goodbye_notify_and_fin,
    half_a_record_and_fin,
]
by_end = pytest.mark.parametrize("act", ENDS, ids=lambda act: act.__name__)


def read_file(sock: Any) -> bytes:
    with sock.makefile("rb") as file:
        return bytes(file.read())


def read_line(sock: Any) -> bytes:
    with sock.makefile("rb") as file:
        return bytes(file.readline())


def read_by_iteration(sock: Any) -> list[bytes]:
    with sock.makefile("rb") as file:
        return list(file)


def recv_into(sock: Any) -> tuple[int, bytes]:
    buffer = bytearray(100)
    return sock.recv_into(buffer), bytes(buffer)


def read_into(sock: Any) -> tuple[int, bytes]:
    buffer = bytearray(100)
    return sock.read(100, buffer), bytes(buffer)


READS: list[Callable[[Any], Any]] = [
    lambda sock: sock.recv(100),
    lambda sock: sock.read(100),
    lambda sock: sock.read(),
    recv_into,
    read_into,
    read_file,
    read_line,
    read_by_iteration,
]
READ_NAMES = ["recv", "read", "read()", "recv_into", "read_into", "file", "readline", "iteration"]
WRITES: list[Callable[[Any], Any]] = [
    lambda sock: sock.send(b"data"),
    lambda sock: sock.sendall(b"data"),
    lambda sock: sock.write(b"data"),
    lambda sock: sock.sendfile(io.BytesIO(b"data")),
]
WRITE_NAMES = ["send", "sendall", "write", "sendfile"]


def outcome(call: Callable[[Any], Any], sock: Any) -> object:
    try:
        return call(sock)
    except (OSError, ValueError) as error:
        return type(error), error.args


def read_when_ready(sock: Any) -> bytes:
    """In non-blocking mode; session tickets come before data."""
    for _ in range(100):
        assert readable(sock)
        with contextlib.suppress(ssl.SSLWantReadError):
            return bytes(sock.recv(100))
    raise AssertionError("always readable, and never anything to read")


def read_to_the_end(sock: Any) -> BaseException | None:
    try:
        while sock.recv(100):
            pass
    except OSError as error:
        return error
    return None
