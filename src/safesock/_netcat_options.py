"""What the options of `safesock connect` mean. Raises ValueError for what cannot be meant."""

from __future__ import annotations

import ssl

from safesock._connector import Connector
from safesock._netcat_news import News
from safesock._netcat_tls import Tls
from safesock._policy import Abort, CloseMode, Drain, Graceful, Linger, Policy, seconds_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

_MODES: dict[str, Any] = {
    "graceful": Graceful,
    "drain": Drain,
    "linger": Linger,
    "abort": Abort,
}


def connector(options: Namespace, news: News) -> tuple[Connector, Tls | None]:
    """A connector that has not connected yet, and the TLS of its connections."""
    address, local_port = _address(options.address), options.local_port
    tls = Tls(ssl.create_default_context(), address[0]) if options.tls else None
    made = Connector(
        address,
        local_address=None if local_port is None else ("", _whole("--local-port", local_port)),
        policy=Policy(close=_close_mode(options.close)),
        reconnect=news.reconnect(
            _number("--attempts", options.attempts), _number("--deadline", options.deadline)
        ),
        timeout=_number("--timeout", options.timeout),
        on_connect=None if tls is None else tls.begin,
    )
    return made, tls


def seconds_to_wait(options: Namespace) -> float:
    """For the peer, after the end of input."""
    return seconds_in("--wait", _number("--wait", options.wait))


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host == f"[{bare}]"
    if not colon or not bare or not (port.isascii() and port.isdigit()):
        raise ValueError(f"HOST:PORT takes a host and a port number: not {text!r}")
    if bracketed != (":" in bare):
        raise ValueError(
            f"HOST:PORT takes an IPv6 address, and no other, as [::1]:80: not {text!r}"
        )
    return bare, int(port)


def _close_mode(text: str) -> CloseMode:
    name, equals, seconds = text.partition("=")
    mode = _MODES.get(name)
    if mode is None or (equals and mode not in (Drain, Linger)):
        raise ValueError(
            "--close takes graceful, drain, drain=SECONDS, linger, linger=SECONDS or abort: "
            f"not {text!r}"
        )
    made: CloseMode = mode(_number("--close", seconds)) if equals else mode()
    return made


def _number(name: str, text: str) -> Any:
    """An int or a float, as it is written: the library says which it takes."""
    try:
        return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ValueError(f"{name} takes a number: not {text!r}") from None


def _whole(name: str, text: str) -> int:
    number = _number(name, text)
    if not isinstance(number, int):
        raise ValueError(f"{name} takes a whole number: not {text!r}")
    return number
