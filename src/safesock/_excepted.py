"""`--except`: the peers that `safesock run` leaves alone, told by their addresses."""

from __future__ import annotations

import ipaddress
import re

from safesock._value import said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
    # None: whatever it is.
    Place: TypeAlias = tuple[Network | None, int | None]

_PORT = re.compile("[0-9]{1,20}")


def all_but(texts: Sequence[str]) -> Callable[[Any], bool]:
    """For `enforce(only)`: whether a peer is none of these. Raises ValueError."""
    places = [_place(text) for text in texts]
    return lambda peer: peer is None or not any(_is_at(peer, *place) for place in places)


def _place(text: str) -> Place:
    host, colon, port = text.partition(":")
    bracketed = text.startswith("[")
    if bracketed:
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        is_whole = bool(bracket) and ":" in host and colon in ("", ":")
    else:
        is_whole = bool(host or colon)
    if not is_whole or bool(colon) != _is_port(port):
        raise ValueError(
            f"--except takes HOST, HOST:PORT or :PORT, and IPv6 as [::1]:80: not {said(text)}"
        )
    return _network(host) if host else None, int(port) if colon else None


def _is_port(text: str) -> bool:
    return bool(_PORT.fullmatch(text)) and 1 <= int(text) <= 65535


def _network(host: str) -> Network:
    try:
        if "%" not in host:  # An interface: peers are compared without.
            return ipaddress.ip_network(host, strict=False)
    except ValueError:
        pass
    raise ValueError(
        f"--except takes the IP address of a host, or a network, and no name: not {said(host)}"
    )


def _is_at(peer: Any, network: Network | None, port: int | None) -> bool:
    if port is not None and port != peer[1]:
        return False
    if network is None:
        return True
    address = ipaddress.ip_address(peer[0])
    return address in network or (getattr(address, "ipv4_mapped", None) or address) in network
