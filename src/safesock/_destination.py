"""Where a `Connector` connects to, and how: its arguments, checked alike for every driver."""

from __future__ import annotations

import inspect
import re
import ssl
import time

from safesock._policy import policy_or_default, positive
from safesock._resolve import is_numeric, numeric
from safesock._value import said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._policy import Policy


_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")
# RFC 6335, 5.1, and what systems have beside.
_SERVICE = re.compile(r"[0-9]*[A-Za-z][A-Za-z0-9_.+/*-]*")


class Destination:
    """Raises ValueError and TypeError for what cannot be meant."""

    def __init__(
        self,
        address: tuple[Any, ...],
        local_address: tuple[Any, ...] | None = None,
        policy: Policy | None = None,
        timeout: float | None = None,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> None:
        _check(address, local_address, timeout)
        _check_tls(ssl_context, server_hostname)
        self.address = tuple(address)
        self.local_address = tuple(local_address) if local_address else None
        self.policy = policy_or_default(policy)
        self.ssl_context = ssl_context
        self.server_hostname = server_hostname or address[0]
        # The number of the last connection that was made to it.
        self.previous: int | None = None
        self._timeout = timeout
        # The address, if it needs no resolver.
        self.numeric = numeric(self.address)

    def has_fixed_port(self) -> bool:
        """Whether only one connection to each peer is possible at a time."""
        return bool(self.local_address and self.local_address[1])

    def seconds_for_one(self, until: float) -> float:
        """What the timeout and *until* leave for the next step. Raises TimeoutError for nothing."""
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return left if self._timeout is None else min(left, self._timeout)


def check_on_connect(function: Any, *arguments: str) -> None:
    """Raises TypeError where it cannot be called with these: no attempt would mend that."""
    if function is None:
        return
    wanted = f"on_connect takes a function of {' and '.join(arguments)}: not {said(function)}"
    if not callable(function):
        raise TypeError(wanted)
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # Of a builtin, which does not tell.
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{wanted}, {error}") from None


def _check(address: Any, local_address: Any, timeout: Any) -> None:
    host, port = _pair("address", address, '("example.org", 443)')
    if not host or not _can_be_asked_for(host):
        raise ValueError(f"address takes the host to connect to: not {said(address)}")
    if isinstance(port, str) and not _NUMBER.fullmatch(port):
        _check_service(port)
    else:
        _check_port("address", int(port) if isinstance(port, str) else port, least=1)
    if local_address is not None:
        local_host, local_port = _pair("local_address", local_address, '("", 40000)')
        if local_host and ("\0" in local_host or not is_numeric(local_host)):
            raise ValueError(
                f"local_address takes an IP address of this host: not {said(local_host)}"
            )
        _check_port("local_address", local_port, least=0)
    if timeout is not None:
        positive("timeout", timeout)


def _check_service(name: str) -> None:
    # Of text that begins with a number the system's resolver would take that, modulo 65536.
    if not _SERVICE.fullmatch(name):
        raise ValueError(f"address takes a port number, or a service's name: not {said(name)}")


def _can_be_asked_for(host: str) -> bool:
    """Whether the system's resolver takes it, in Python's encoding (RFC 3490)."""
    try:
        return b"\0" not in host.encode("idna")
    except UnicodeError:
        return False


def _check_tls(ssl_context: Any, server_hostname: Any) -> None:
    if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
        raise TypeError(f"ssl_context takes an ssl.SSLContext or None: not {said(ssl_context)}")
    if ssl_context is not None and ssl_context.protocol is ssl.PROTOCOL_TLS_SERVER:
        raise ValueError("ssl_context takes a client's, such as ssl.create_default_context()")
    if server_hostname is not None and not isinstance(server_hostname, str):
        raise TypeError(f"server_hostname takes a str or None: not {said(server_hostname)}")
    if server_hostname and not _can_be_asked_for(server_hostname):
        raise ValueError(f"server_hostname takes the name of a host: not {said(server_hostname)}")
    if server_hostname is not None and ssl_context is None:
        raise ValueError("server_hostname is for TLS: it takes an ssl_context too")


def _pair(name: str, value: Any, example: str) -> tuple[str, Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not isinstance(value[0], str):
        raise TypeError(
            f"{name} takes a pair of host and port, such as {example}: not {said(value)}"
        )
    return value[0], value[1]


def _check_port(name: str, port: Any, least: int) -> None:
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"{name} takes a port number: not {said(port)}")
    if not least <= port <= 65535:
        raise ValueError(f"{name} takes a port from {least} to 65535: not {said(port)}")
