"""The ways to a governed connection that is not made by hand: `create_connection` and `wrap`."""

from __future__ import annotations

import errno
import socket
import sys
import time

from safesock import _kernel, _options, _watch
from safesock._connection import Connection
from safesock._errors import LocalPortBusyError
from safesock._policy import Policy, policy_or_default
from safesock._resolve import lookup
from safesock._socket import SafeSocket
from safesock._value import said

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any, overload

    from safesock._tls import SafeSSLSocket

# What clients such as http.client pass on for "no timeout was given".
_NOT_GIVEN: Any = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]

# Which refusals of which call mean that the local port is busy. From connect, the second means that
# there is a connection with the same two ends; from bind, that this host has no such address.
_BUSY = frozenset(
    {
        ("bind", errno.EADDRINUSE),
        ("connect", errno.EADDRINUSE),
        ("connect", errno.EADDRNOTAVAIL),
    }
)


_MOMENTS = (0.0, 0.00005, 0.0005)


def create_connection(
    address: tuple[Any, ...],
    timeout: float | None = _NOT_GIVEN,
    source_address: tuple[Any, ...] | None = None,
    *,
    all_errors: bool = False,
    policy: Policy | None = None,
) -> SafeSocket:
    """Connects to *address*, a pair of host and port, and gives a `SafeSocket`.

    As `socket.create_connection`, with a *policy*: every address that the name resolves to is
    tried in turn; *timeout*, in seconds, is for each of them, and becomes the socket's timeout;
    *source_address* is bound first, with SO_REUSEADDR when its port is not 0 (see
    `Policy.reuse_address`). Raises the last OSError, or, with *all_errors*, an ExceptionGroup of
    all of them; where a fixed local port is held, the OSError is a `LocalPortBusyError`. Nothing is
    left open.
    """
    chosen = policy_or_default(policy)
    host, port = address
    errors: list[OSError] = []
    try:
        for made, sockaddr in lookup(host, port):
            try:
                return _connect(made, sockaddr, timeout, source_address, chosen)
            except OSError as error:
                errors.append(error)
        if not errors:
            raise OSError(f"{host!r} resolves to no address")
        if all_errors:
            raise ExceptionGroup("create_connection failed", errors)
        raise errors[-1]
    finally:
        errors.clear()  # Their tracebacks hold this frame: a reference cycle.


def _connect(
    made: tuple[int, int, int],
    sockaddr: Any,
    timeout: float | None,
    source_address: tuple[Any, ...] | None,
    policy: Policy,
) -> SafeSocket:
    sock = SafeSocket(*made, policy=policy)
    try:
        if timeout is not _NOT_GIVEN:
            sock.settimeout(timeout)
        connect_from(sock, source_address, sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_at_last(sock: SafeSocket, sockaddr: Any, fixed: bool) -> None:
    # Over the same fixed port, the connection before may be on its very last way (LAST_ACK), since
    # recv can tell of the end before the peer's kernel answers. To ask who holds it takes longer.
    for pause in _MOMENTS if fixed else ():
        try:
            sock.connect(sockaddr)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            time.sleep(pause)
        else:
            return
    sock.connect(sockaddr)


def connect_from(sock: SafeSocket, local: tuple[Any, ...] | None, sockaddr: Any) -> None:
    """bind(2), where there is a *local* address, and connect(2). For a non-blocking socket the
    latter raises BlockingIOError."""
    call = "bind"
    try:
        if local:
            sock.bind(local)
        call = "connect"
        _connect_at_last(sock, sockaddr, bool(local and local[1]))
    except OSError as error:
        name_the_holder(error, sock, call, local, sockaddr)
        raise


def name_the_holder(
    error: OSError, sock: SafeSocket, call: str, local: tuple[Any, ...] | None, sockaddr: Any
) -> None:
    """Where *call* was refused because the local port is busy: raises what says what holds it."""
    if not local or not local[1] or (call, error.errno) not in _BUSY:
        if call == "bind" and local:
            error.add_note(f"bind to {local[0] or '*'} port {local[1]}")
        return
    # Only now: nobody else pays for it.
    from safesock._holders import holders

    found = holders(sock.family, local, sockaddr if call == "connect" else None)
    # Without any, EADDRNOTAVAIL speaks of other things, such as an IPv6 network that is not there.
    if found or error.errno != errno.EADDRNOTAVAIL:
        raise LocalPortBusyError._of(error, call, local, sockaddr, found) from error


if TYPE_CHECKING:

    @overload
    def wrap(sock: ssl.SSLSocket, policy: Policy | None = None) -> SafeSSLSocket: ...

    @overload
    def wrap(sock: socket.socket, policy: Policy | None = None) -> SafeSocket: ...


def wrap(sock: socket.socket, policy: Policy | None = None) -> SafeSocket:
    """Takes over a TCP socket, and gives a `SafeSocket`, or a `SafeSSLSocket` for an `SSLSocket`.

    The descriptor, the timeout and the TLS session move to the new socket; *sock* is left
    detached, as after `sock.detach()`. A connected socket is governed at once, an unconnected one
    from its `connect` on, one whose connect is under way as soon as it is made. The lifetime of a
    connection counts from here. In a forked child, `wrap` makes the child the connection's owner.
    For a `SafeSocket`, *policy* None keeps its policy.

    Raises TypeError for what is no socket, ValueError for one that is not TCP, listens, is closed,
    or has open `makefile()` files; *sock* is then as it was.
    """
    chosen = policy
    if policy is None and isinstance(sock, SafeSocket):
        chosen = sock.policy
    chosen = policy_or_default(chosen)
    _refuse(sock)
    _kernel.set_linger(sock, None)  # What it had is replaced by the policy's.
    _options.prepare(sock, chosen)
    tls = sys.modules.get("ssl")
    if tls is not None and isinstance(sock, tls.SSLSocket):
        from safesock._tls import take_over

        new: SafeSocket = take_over(sock, chosen)
    else:
        timeout = sock.gettimeout()
        made = (sock.family, sock.type, sock.proto)
        new = SafeSocket.__new__(SafeSocket)
        _kernel.hand_over(sock, new, lambda fd: new.__init__(*made, fd, policy=chosen))  # type: ignore[misc]
        new.settimeout(timeout)
    new._connection = Connection(chosen)
    if _kernel.peer_name(new) is not None or _kernel.was_established(new):
        new._established()
    elif _kernel.tcp_state(new) is _kernel.TcpState.SYN_SENT and chosen.watch:
        _watch.watch(new, connecting=True)
    return new


def _refuse(sock: socket.socket) -> None:
    if not isinstance(sock, socket.socket):
        raise TypeError(f"wrap takes a socket.socket: not {said(sock)}")
    if sock.fileno() < 0:
        raise ValueError("wrap takes an open socket, and this one is closed or detached")
    if not _kernel.is_tcp(sock):
        raise ValueError(f"wrap takes a TCP socket over IPv4 or IPv6: not {said(sock)}")
    if _kernel.is_listening(sock):
        raise ValueError("wrap takes a client's socket, and this one listens")
    if getattr(sock, "_io_refs", 0):
        raise ValueError("close the files that makefile() made of this socket, then wrap it")
