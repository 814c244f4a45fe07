"""What an accepted end of a connection does on the wire, over plain TCP."""

from __future__ import annotations

import contextlib
import enum
import socket

from safesock import _abortive, _kernel
from safesock.testing._wait import Background, Steps, Wait

_LARGE = 65536
_SMALL_BUFFER = 4096
_PORTIONS_PER_SECOND = 20
_MOST = 10**9


class End(enum.StrEnum):
    """How what the client sends came to its end."""

    FIN = "fin"
    RST = "rst"
    CLOSE_NOTIFY = "close_notify"
    """TLS only: said by the client, in front of what TCP does then."""


class Acts:
    """One connection. What may have to wait is a generator (`Steps`); the rest acts at once."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # Read and not yet given to anybody: a read that is given up loses nothing.
        self.kept = bytearray()
        self._reset = False
        self._is_hole = False
        self._slow: Background[None] | None = None

    # What waits ---------------------------------------------------------------------------------

    def say(self, data: bytes) -> Steps[None]:
        """send(2), until all is accepted by this side's kernel."""
        view = as_bytes("data", data)
        self.check()
        yield from self._send(view)

    def read(self, count: int) -> Steps[bytes]:
        """Exactly *count* bytes."""
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"count is a number of bytes: not {count!r}")
        if count < 0:
            raise ValueError(f"count is a number of bytes, 0 or more: not {count}")
        self.check()
        self._stop_slow_reader()
        while len(self.kept) < count:
            yield from self._keep(count - len(self.kept), f"{count} bytes")
        return self._take(count)

    def read_until(self, separator: bytes) -> Steps[bytes]:
        """All that comes up to *separator*, and it."""
        separator = as_bytes("separator", separator).tobytes()
        if not separator:
            raise ValueError("separator is one byte or more")
        self.check()
        self._stop_slow_reader()
        while (place := self.kept.find(separator)) < 0:
            yield from self._keep(_LARGE, repr(separator))
        return self._take(place + len(separator))

    def read_to_end(self) -> Steps[tuple[bytes, End]]:
        """All that comes, and how it ended."""
        self.check()
        self._stop_slow_reader()
        while not isinstance(part := (yield from self._receive(_LARGE)), End):
            self.kept += part
        data = bytes(self.kept)
        self.kept.clear()
        return data, part

    def handshake(self) -> Steps[None]:
        """Until the TLS handshake is over."""
        raise _no_tls()

    def close_notify(self) -> Steps[None]:
        """TLS's own end: nothing more will be sent."""
        raise _no_tls()

    # What acts at once --------------------------------------------------------------------------

    def half_close(self) -> None:
        """shutdown(2), SHUT_WR."""
        self.check()
        self.sock.shutdown(socket.SHUT_WR)

    def fin(self) -> None:
        """FIN, then close(2) with nothing unread, as that would send RST."""
        self._check_open()
        self.stop()
        with contextlib.suppress(OSError):  # It is over already, or there is no more to read.
            self.sock.shutdown(socket.SHUT_WR)
            self.sock.setblocking(False)
            while self.sock.recv(_LARGE):
                pass
        self.sock.close()

    def rst(self) -> None:
        """connect(2) to AF_UNSPEC where there is that, as close(2) waits for who else has it."""
        self._check_open()
        self.stop()
        _kernel.set_linger(self.sock, 0)
        _abortive.disconnect(self.sock, syn=0, fin_sent=False)
        self.sock.close()

    def black_hole(self) -> None:
        """Neither reads nor writes again; the receive buffer is made small."""
        self.check()
        self.stop()
        self._is_hole = True
        _kernel.set_receive_buffer(self.sock, _SMALL_BUFFER)

    def slow_reader(self, rate: float) -> None:
        """Keeps *rate* bytes per second, in a thread of its own."""
        check_amount("rate", "bytes per second", rate)
        self.check()
        self._stop_slow_reader()
        _kernel.set_receive_buffer(self.sock, _SMALL_BUFFER)
        self._slow = Background(lambda thread: self._read_slowly(thread, rate))

    def stop(self) -> None:
        """Ends what goes on in the background. May be called again."""
        self._stop_slow_reader()

    def close(self) -> None:
        """close(2), whatever that sends. May be called again."""
        self.stop()
        self.sock.close()

    # --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises RuntimeError when there is no more that this end may do."""
        self._check_open()
        if self._is_hole:
            raise RuntimeError("a black hole neither reads nor writes: only fin, rst, close end it")

    def _check_open(self) -> None:
        if self.sock.fileno() < 0:
            raise RuntimeError("this end has been closed: accept the next one")

    def _keep(self, most: int, what: str) -> Steps[None]:
        """Reads on. Raises AssertionError when the end comes in place of *what*."""
        part = yield from self._receive(most)
        if isinstance(part, End):
            raise AssertionError(f"waited for {what}: {part.name} came after {bytes(self.kept)!r}")
        self.kept += part

    def _take(self, count: int) -> bytes:
        data = bytes(self.kept[:count])
        del self.kept[:count]
        return data

    def _stop_slow_reader(self) -> None:
        if self._slow is not None:
            self._slow.stop()
            self._slow = None

    def _read_slowly(self, thread: Background[None], rate: float) -> None:
        portion = max(1, min(int(rate / _PORTIONS_PER_SECOND), _LARGE))
        while not isinstance(part := thread.run(self._receive(portion)), End):
            self.kept += part
            thread.pause(len(part) / rate)

    def _receive(self, most: int) -> Steps[bytes | End]:
        """At most so many bytes, or how it ended."""
        try:
            return (yield from self._recv(most)) or End.FIN
        except ConnectionResetError:
            return End.RST

    def _recv(self, most: int) -> Steps[bytes]:
        # The kernel tells of a reset once only.
        if self._reset:
            raise ConnectionResetError("the client sent RST")
        while True:
            yield Wait(self.sock)
            try:
                return self.sock.recv(most)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                self._reset = True
                raise

    def _send(self, data: memoryview) -> Steps[None]:
        rest = data
        while rest:
            yield Wait(self.sock, write=True)
            with contextlib.suppress(BlockingIOError):
                rest = rest[self.sock.send(rest) :]


def check_amount(name: str, unit: str, value: float) -> None:
    """Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of {unit}: not {value!r}")
    if not 0 < value <= _MOST:
        raise ValueError(f"{name} is in {unit}, more than 0 and at most {_MOST:,}: not {value!r}")


def as_bytes(name: str, data: bytes) -> memoryview:
    """Any buffer, byte by byte. Raises TypeError."""
    try:
        return memoryview(data).cast("B")
    except TypeError:
        raise TypeError(f"{name} is bytes: not {type(data).__name__}") from None


def _no_tls() -> RuntimeError:
    return RuntimeError("this end has no TLS: ScriptedPeer(tls=context), or end.start_tls(context)")
