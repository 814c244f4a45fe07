"""TLS: `SafeSSLSocket`, and `secure`, which makes an `SSLContext` give it."""

from __future__ import annotations

import socket
import ssl
import threading

from safesock import _kernel, _options, _watch
from safesock._connection import Connection
from safesock._kernel import Raw
from safesock._policy import DEFAULT, Policy, policy_or_default
from safesock._socket import SafeSocket
from safesock._tls_transfer import GovernedSSLSocket
from safesock._value import said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self


# The socket that is half made, in this thread.
_making = threading.local()


def _lost_before_the_handshake() -> ssl.SSLEOFError:
    return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the connection was lost before the handshake")


def secure(context: ssl.SSLContext, policy: Policy | None = None) -> ssl.SSLContext:
    """Makes `context.wrap_socket` give a `SafeSSLSocket`. Changes *context* and returns it.

    A `SafeSocket` that is wrapped keeps its own policy, any other socket gets *policy*. Server-side
    sockets are left alone. Raises TypeError for what is no SSLContext.
    """
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"secure takes an ssl.SSLContext: not {said(context)}")
    attributes = {"_context_policy": policy_or_default(policy), "__module__": "safesock"}
    context.sslsocket_class = type("SafeSSLSocket", (SafeSSLSocket,), attributes)
    return context


def before_handshake(
    sock: SafeSocket, context: ssl.SSLContext, server_hostname: str | None
) -> SafeSSLSocket:
    """A connected socket goes over to TLS, with a context that `secure` need not have changed. The
    handshake is still to be done."""
    return SafeSSLSocket._create(
        sock, context=context, server_hostname=server_hostname, do_handshake_on_connect=False
    )


class SafeSSLSocket(GovernedSSLSocket, SafeSocket):  # type: ignore[misc]
    """An `ssl.SSLSocket` that is a `SafeSocket`: made by a context that `secure` has changed, or by
    `wrap`.

    A close_notify ends the connection as a FIN does, for it is the end of what can be read. A FIN
    without one is told as in the standard library, and `loss.error` is the SSLEOFError also where
    suppress_ragged_eofs hides it. The peer's close_notify is answered with ours before the
    connection is closed; `close` alone sends none, as in the standard library: `unwrap` does. After
    a loss, `unwrap` does nothing and gives this socket; with on_loss="release" it still answers.
    """

    __module__ = "safesock"

    _context_policy = DEFAULT

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls, *args, **kwargs)
        if getattr(_making, "is_on", False):
            _making.half = self
        return self

    @classmethod
    def _create(
        cls,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | None = None,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> Self:
        connection = sock._connection if isinstance(sock, SafeSocket) else None
        policy = sock.policy if isinstance(sock, SafeSocket) else cls._context_policy
        if connection is not None and connection.loss is not None:
            # The kernel calls it unconnected, and ssl would put off the handshake.
            sock.close()
            raise _lost_before_the_handshake()
        _making.half, _making.is_on = None, True
        try:
            # The handshake waits until the connection is governed, as it may be lost in it.
            self: Self = super()._create(  # type: ignore[misc]
                sock, server_side, False, suppress_ragged_eofs, server_hostname, context, session
            )
        except BaseException:
            half = _making.half
            if half is not None and half.fileno() == sock.fileno():
                Raw.detach(half)  # A KeyboardInterrupt: the descriptor is not to be closed by both.
            elif half is not None and half.fileno() >= 0:
                half.close()  # Not all Pythons do that.
            raise
        finally:
            _making.half, _making.is_on = None, False
        if connection is not None and connection.peer is not None and self._sslobj is None:
            # It has been reset, and ssl took it for one that is yet to be connected.
            self.close()
            raise _lost_before_the_handshake()
        self.do_handshake_on_connect = do_handshake_on_connect
        self._policy = policy
        try:
            if self._sslobj is not None and not server_side:
                self._govern(connection)
            if self._sslobj is not None and do_handshake_on_connect:
                if self.gettimeout() == 0.0:
                    raise ValueError(
                        "do_handshake_on_connect should not be specified for non-blocking sockets"
                    )
                self.do_handshake()
        except BaseException:
            self.close()
            raise
        return self

    def _govern(self, connection: Connection | None) -> None:
        if connection is None:
            _options.prepare(self, self._policy)
        self._connection = connection or Connection(self._policy)
        self._established()
        if self._policy.watch:
            _watch.watch(self)


def take_over(sock: ssl.SSLSocket, policy: Policy) -> SafeSSLSocket:
    """The part of `wrap` that is TLS: the session moves, *sock* is left detached."""
    timeout = sock.gettimeout()
    new = SafeSSLSocket.__new__(SafeSSLSocket)
    prepare_to_move(sock)
    made = (sock.family, sock.type, sock.proto)
    _kernel.hand_over(sock, new, lambda fd: SafeSocket.__init__(new, *made, fd, policy=policy))
    new.settimeout(timeout)
    move_session(sock, new)
    return new


def prepare_to_move(sock: ssl.SSLSocket) -> None:
    """Before *sock* is detached, for its session to go on with another."""
    # The TLS object goes on asking the old socket for its timeout. Non-blocking there means that C
    # never waits; whether the descriptor blocks is up to the new socket.
    sock.settimeout(0)


def move_session(sock: ssl.SSLSocket, new: SafeSSLSocket) -> None:
    """*new*, which has the descriptor already, gets the TLS session of *sock*."""
    old: Any = sock
    for name in _MOVED:
        setattr(new, name, getattr(old, name))
    if new._sslobj is not None:
        new._sslobj.owner = new
        new._engine = old._engine if isinstance(old, SafeSSLSocket) and old._engine else old
        old._sslobj = None


_MOVED = (
    "_context",
    "_session",
    "_sslobj",
    "_connected",
    "server_side",
    "server_hostname",
    "do_handshake_on_connect",
    "suppress_ragged_eofs",
)
