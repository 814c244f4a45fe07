"""The socket options that a policy asks for before there is a connection."""

from __future__ import annotations

import _socket

from safesock import _abortive, _kernel
from safesock._kernel import Raw
from safesock._policy import Abort, CloseMode, Drain, Policy


def prepare(sock: Raw, policy: Policy) -> None:
    """Sets the options that have to be there before the connection is."""
    prepare_mode(sock, policy.close)
    if policy.reuse_address is not None:
        _kernel.set_reuse_address(sock, policy.reuse_address)
    if policy.nodelay is not None:
        Raw.setsockopt(sock, _socket.IPPROTO_TCP, _socket.TCP_NODELAY, int(policy.nodelay))
    if policy.keepalive is not None:
        alive = policy.keepalive
        _kernel.set_keepalive(sock, alive.idle, alive.interval, alive.count)
    if policy.user_timeout is not None:
        _kernel.set_tcp(sock, "TCP_USER_TIMEOUT", round(policy.user_timeout * 1000))


def prepare_mode(sock: Raw, mode: CloseMode) -> None:
    """What a close mode needs as long as the connection lives."""
    if isinstance(mode, (Abort, Drain)):
        # Not at the close: a socket collected at interpreter exit can not import.
        _abortive.load_connect()
    if isinstance(mode, Abort):
        _kernel.set_linger(sock, 0)
