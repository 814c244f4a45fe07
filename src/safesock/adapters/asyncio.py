"""A connected socket for clients of asyncio that take one:

    from safesock.adapters.asyncio import connect

    sock = await connect((host, port), policy=policy)
    async with websockets.connect(uri, sock=sock) as connection:
        ...

TLS is asyncio's own, above the socket.
"""

from __future__ import annotations

from safesock.adapters._policies import for_event_loop
from safesock.asyncio._connect import addresses, connect_to_one_of, running_loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._policy import Policy
    from safesock._socket import SafeSocket
    from safesock.asyncio._connect import Local

__all__ = ["connect"]
# RFC 8305 recommends it, between one address and the next.
_DELAY = 0.25


async def connect(
    address: tuple[Any, ...],
    *,
    local_address: tuple[Any, ...] | None = None,
    policy: Policy | None = None,
) -> SafeSocket:
    """A connected, non-blocking socket for a client's parameter `sock`.

    The addresses of the name are tried in a race (RFC 8305), one after the other over a fixed
    port. *local_address* is bound first: a numeric host, or "" for any, and a port, 0 for any.
    There is no timeout but what `asyncio.timeout` sets. *policy* None is
    `Policy(on_loss="release")`.

    Raises OSError as `loop.create_connection`, NotImplementedError on a loop without `add_reader`,
    and ValueError for `Drain`, `Linger` and on_loss="close": the client closes on the event loop.
    """
    chosen = for_event_loop(policy)
    running_loop()
    local: list[Local] = [] if local_address is None else [(None, local_address)]
    found = await addresses(address)
    return await connect_to_one_of(
        found, local, chosen, delay=_DELAY, interleave=None, all_errors=False
    )
