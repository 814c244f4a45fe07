"""What clients are given that take a socket, or the maker of one."""

from __future__ import annotations

import socket

from safesock import _open
from safesock._socket import SafeSocket
from safesock.adapters._policies import for_client, for_event_loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from safesock._policy import Policy


def create_connection(
    address: tuple[Any, ...],
    timeout: float | None = None,
    source_address: tuple[Any, ...] | None = None,
    *,
    policy: Policy | None = None,
) -> SafeSocket:
    """A connected socket for a client's parameter `sock`: `safesock.create_connection`, where
    *policy* None is `Policy(on_loss="release")`.

        paramiko.SSHClient().connect(host, port, sock=create_connection((host, port)))

    *timeout*, in seconds, is for each address that the name resolves to, and becomes the socket's;
    None waits for ever. Raises OSError as `socket.create_connection`, and ValueError for
    on_loss="close".
    """
    return _open.create_connection(address, timeout, source_address, policy=for_client(policy))


def socket_factory(policy: Policy | None = None) -> Callable[[tuple[Any, ...]], socket.socket]:
    """What makes a socket of an answer of `getaddrinfo`, for clients of asyncio:

        aiohttp.TCPConnector(socket_factory=socket_factory(policy))

    The sockets are non-blocking. They are closed on the event loop: raises ValueError for `Drain`
    and `Linger`, which would wait there, and for on_loss="close".
    """
    chosen = for_event_loop(policy)

    def make(answer: tuple[Any, ...]) -> socket.socket:
        family, kind, proto = answer[:3]
        sock = SafeSocket(family, kind, proto, policy=chosen)
        sock.setblocking(False)
        return sock

    return make


class SocketModule:
    """What stands for the module `socket` where a client takes one, and makes `SafeSocket` objects:

        pymemcache.Client((host, port), socket_module=SocketModule(policy))

    All but `socket` is the module's own. Raises ValueError for on_loss="close".
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy: Policy = for_client(policy)

    def socket(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> SafeSocket:
        """A `SafeSocket` under the policy."""
        return SafeSocket(family, type, proto, fileno, policy=self.policy)

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.policy!r}>"
