"""`SafeTransport`: what all transports of safesock have in common."""

from __future__ import annotations

import asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from safesock._loss import CloseReport, Loss
    from safesock._policy import Policy
    from safesock._socket import SafeSocket


class SafeTransport(asyncio.Transport):
    """An `asyncio.Transport` whose TCP connection ends by a policy, and whose loss is noticed.

    Made by `create_connection`, `open_connection` and `wrap_transport`; with TLS too. All methods
    are those of `asyncio.Transport`. Where it differs from asyncio's own:

    - With on_loss="close", the end of file closes the connection, before `eof_received` is called
      and whatever that returns. What `write` has taken and the kernel has not is dropped then, and
      counted as unacknowledged. on_loss="keep" leaves the connection half-open, as asyncio does;
      "release" ends it, and closes the descriptor only with `close`.
    - `close` ends the connection by its policy, once what was written has been sent. With `Drain`
      and `Linger` that is limited by their time, they wait in a thread, and `connection_lost` comes
      when they are done. The descriptor is closed before `connection_lost` is called.
    - `abort` sends RST; a `Drain` or `Linger` that already waits is not cut short.
    - Where a failure (a protocol that raises, TLS that takes too long to shut down, a loop that is
      closed) leaves unsent what `write` has taken, it is as `abort`: FIN would make it look whole.
    - A FIN or RST is noticed while reading is paused as well: see `Policy.grace`.
    - `loop.sendfile` reads and writes, as over TLS; it does not use sendfile(2).
    - One that is collected without `close` ends by its policy (and gives the same ResourceWarning).
    """

    __module__ = "safesock.asyncio"

    _sock: SafeSocket
    _loop: asyncio.AbstractEventLoop

    @property
    def policy(self) -> Policy:
        """The policy of this connection."""
        return self._sock.policy

    @property
    def loss(self) -> Loss | None:
        """How the connection was lost, or None while it is not known to be."""
        return self._sock.loss

    @property
    def close_report(self) -> CloseReport | None:
        """How the connection was closed, or None while it is open."""
        return self._sock.close_report

    def _end(self) -> None:
        """As `close`, but waits for nothing from the peer that the policy does not wait for."""
        raise NotImplementedError

    async def _wait_ended(self) -> None:
        """Until the descriptor is closed and `connection_lost` has been called."""
        raise NotImplementedError

    def _drop(self) -> None:
        """Nobody has it any more: as `end`, from any thread, as the garbage collector works."""
        try:
            if asyncio._get_running_loop() is self._loop:
                self._end()
            else:
                self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            pass  # The loop has just been closed: the transport ends when it is collected.
