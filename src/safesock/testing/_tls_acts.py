"""The same over TLS, by an engine in memory: so what TLS says (close_notify) and what TCP says
(FIN, RST) are separate acts."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from typing import TypeVar

from safesock.testing._acts import Acts, End, as_bytes
from safesock.testing._wait import Background, Steps

_RECORD = 65536
Result = TypeVar("Result")


class TlsActs(Acts):
    """One connection that speaks TLS, as its server."""

    def __init__(self, acts: Acts, context: ssl.SSLContext) -> None:
        super().__init__(acts.sock)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._in.write(bytes(acts.kept))
        # The slow reader's thread uses the engine too.
        self._lock = threading.Lock()
        self._shaking: Background[None] | None = None
        self._notified = False

    def begin(self) -> None:
        """The handshake, in a thread of its own: the test's can be the client's."""
        self._shaking = Background(lambda thread: thread.run(self.turn(self.tls.do_handshake)))

    def say(self, data: bytes) -> Steps[None]:
        view = as_bytes("data", data)
        self.check()
        yield from self.handshake()
        if view:
            yield from self.turn(self.tls.write, view)

    def handshake(self) -> Steps[None]:
        self.check()
        if self._shaking is not None:
            yield from self._shaking.finished()

    def close_notify(self) -> Steps[None]:
        self.check()
        yield from self.handshake()
        yield from self.turn(self._notify)

    def stop(self) -> None:
        super().stop()
        if self._shaking is not None:
            self._shaking.stop()

    def turn(self, call: Callable[..., Result], *arguments: object) -> Steps[Result]:
        """Does *call* as often as the engine has to read for it; sends what the engine says.

        Raises EOFError at a FIN amid TLS, ConnectionResetError, ssl.SSLError.
        """
        while True:
            result, error = self._try(call, *arguments)
            yield from self._send(memoryview(self._out.read()))  # An alert too.
            if error is None:
                return result  # type: ignore[return-value]  # None with an error only.
            if not isinstance(error, ssl.SSLWantReadError):
                raise error
            data = yield from self._recv(_RECORD)
            if not data:
                raise EOFError("the client sent FIN amid TLS")
            self._in.write(data)

    def _notify(self) -> None:
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # The client's answer may come or not.

    def _receive(self, most: int) -> Steps[bytes | End]:
        yield from self.handshake()
        if self._notified:
            return (yield from super()._receive(most))
        try:
            data = yield from self.turn(self.tls.read, most)
        except EOFError:
            return End.FIN
        except ConnectionResetError:
            return End.RST
        self._notified = not data
        return data or End.CLOSE_NOTIFY

    def _try(
        self, call: Callable[..., Result], *arguments: object
    ) -> tuple[Result | None, ssl.SSLError | None]:
        with self._lock:
            try:
                return call(*arguments), None
            except ssl.SSLError as error:
                return None, error
