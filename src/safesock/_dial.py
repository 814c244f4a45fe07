"""One attempt to connect: the name, each of its addresses in turn, the local port, TLS."""

from __future__ import annotations

import socket
import time

from safesock import _kernel
from safesock._budget import PortWait
from safesock._open import connect_from
from safesock._policy import Policy
from safesock._resolve import resolve
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import Any


class Dialler:
    """Where to connect to, and how."""

    def __init__(
        self,
        address: tuple[Any, ...],
        local_address: tuple[Any, ...] | None,
        policy: Policy,
        timeout: float | None,
        ssl_context: ssl.SSLContext | None,
        server_hostname: str | None,
        sleep: Callable[[float], None],
    ) -> None:
        self.address = address
        self.local_address = local_address
        self.policy = policy
        self._timeout = timeout
        self.ssl_context = ssl_context
        self._server_hostname = server_hostname
        self._sleep = sleep
        self._under_way: SafeSocket | None = None

    def dial(self, until: float) -> SafeSocket:
        """A connection, made before *until*. Raises what the last address gave, with notes of the
        others."""
        failures: list[OSError] = []
        try:
            for made, sockaddr in resolve(self.address, until):
                try:
                    return self._dial_one(made, sockaddr, until)
                except OSError as error:
                    error.add_note(f"at {sockaddr[0]} port {sockaddr[1]}")
                    failures.append(error)
            if not failures:
                raise OSError(f"{self.address[0]!r} resolves to no address")
            for failure in failures[:-1]:
                failures[-1].add_note(f"before, {failure!r} {''.join(failure.__notes__)}")
            raise failures[-1]
        finally:
            failures.clear()  # Their tracebacks hold this frame: a reference cycle.

    def interrupt(self) -> None:
        """From another thread: the connect that is under way fails."""
        sock = self._under_way
        if sock is not None:
            _kernel.shutdown(sock, socket.SHUT_RDWR)

    def seconds_for_one(self, until: float) -> float:
        """What the timeout and *until* leave for the next step. Raises TimeoutError for nothing."""
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return left if self._timeout is None else min(left, self._timeout)

    def _dial_one(self, made: tuple[int, int, int], sockaddr: Any, until: float) -> SafeSocket:
        sock = self._connect(made, sockaddr, until)
        if self.ssl_context is None:
            return sock
        from safesock._tls import start_tls

        try:
            sock.settimeout(self.seconds_for_one(until))
            return start_tls(sock, self.ssl_context, self._server_hostname)
        except BaseException:
            sock.close()
            raise

    def _connect(self, made: tuple[int, int, int], sockaddr: Any, until: float) -> SafeSocket:
        """With the local port, once it is free."""
        wait = PortWait(until, time.monotonic() + self.seconds_for_one(until))
        while True:
            try:
                return self._connect_now(made, sockaddr, until)
            except OSError as error:
                pause = wait.pause(error, time.monotonic())
                if pause is None:
                    raise
            self._sleep(pause)

    def _connect_now(self, made: tuple[int, int, int], sockaddr: Any, until: float) -> SafeSocket:
        sock = SafeSocket(*made, policy=self.policy)
        try:
            self._under_way = sock
            sock.settimeout(self.seconds_for_one(until))
            connect_from(sock, self.local_address, sockaddr)
        except BaseException:
            sock.close()
            raise
        finally:
            self._under_way = None
        return sock
