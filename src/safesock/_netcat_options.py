"""What the options of `safesock connect` mean. Raises ValueError for what cannot be meant."""

from __future__ import annotations

import ssl

from safesock._connector import Connector
from safesock._netcat_news import News
from safesock._netcat_tls import Tls
from safesock._option_values import close_mode, number
from safesock._policy import Policy, seconds_in
from safesock._value import said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

# int() refuses thousands of them.
_MOST_DIGITS = 20


def connector(options: Namespace, news: News) -> tuple[Connector, Tls | None]:
    """A connector that has not connected yet, and the TLS of its connections."""
    address, local_port = _address(options.address), options.local_port
    tls = Tls(ssl.create_default_context(), address[0]) if options.tls else None
    made = Connector(
        address,
        local_address=None if local_port is None else ("", _whole("--local-port", local_port)),
        policy=Policy(close=close_mode(options.close)),
        reconnect=news.reconnect(
            number("--attempts", options.attempts), number("--deadline", options.deadline)
        ),
        timeout=number("--timeout", options.timeout),
        on_connect=None if tls is None else tls.begin,
    )
    return made, tls


def seconds_to_wait(options: Namespace) -> float:
    """For the peer, after the end of input."""
    return seconds_in("--wait", number("--wait", options.wait))


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host == f"[{bare}]"
    is_number = port.isascii() and port.isdigit() and len(port) <= _MOST_DIGITS
    if not colon or not bare or not is_number:
        raise ValueError(f"HOST:PORT takes a host and a port number: not {said(text)}")
    if bracketed != (":" in bare):
        raise ValueError(
            f"HOST:PORT takes an IPv6 address, and no other, as [::1]:80: not {said(text)}"
        )
    return bare, int(port)


def _whole(name: str, text: str) -> int:
    found = number(name, text)
    if not isinstance(found, int):
        raise ValueError(f"{name} takes a whole number: not {said(text)}")
    return found
