"""What the synchronous and the asynchronous peer have in common: all that does not wait."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections import deque
from typing import Generic, TypeVar

from safesock.testing import _refusals
from safesock.testing._acts import Acts, End, check_amount
from safesock.testing._listener import Listener
from safesock.testing._tls_acts import TlsActs
from safesock.testing._wait import TIMEOUT, Background, Steps, Wait, Waits


class BaseEnd:
    """The accepted end of one connection, as far as it acts at once."""

    _waits: type[Waits]
    _waiting: Waits

    def __init__(self, sock: socket.socket, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self._waiting = self._waits()
        self._waiting.prepare(sock, timeout)
        self._acts: Acts = Acts(sock)

    @property
    def sock(self) -> socket.socket:
        """The socket, for what has no method."""
        return self._acts.sock

    @property
    def received(self) -> int:
        """The bytes that have been read in the background, and that no `read` has taken yet."""
        return len(self._acts.kept)

    def start_tls(self, context: ssl.SSLContext) -> None:
        """From here on this end is a TLS server's. The handshake is made in the background, so that
        the test's own thread can be the client."""
        _check_server(context)
        self._acts.check()
        if isinstance(self._acts, TlsActs):
            raise RuntimeError(
                "this end speaks TLS already: with tls=context it does from the start"
            )
        self._acts.stop()
        self._acts = acts = TlsActs(self._acts, context)
        acts.begin()

    def half_close(self) -> None:
        """FIN; this side can still read. (shutdown(2); with TLS, there is no close_notify.)"""
        self._acts.half_close()

    def fin(self) -> None:
        """FIN, and nobody is there any more: what the client sends from now on is answered with
        RST. What it had sent is read first, as the kernel would send RST in place of FIN."""
        self._waiting.give_up()
        self._acts.fin()

    def rst(self) -> None:
        """RST: the client gets ECONNRESET, also where a forked child has this connection too."""
        self._waiting.give_up()
        self._acts.rst()

    def black_hole(self) -> None:
        """Stays open until `fin`, `rst` or `close`, and neither reads nor writes: the client's send
        blocks once the window is full.

        That is when the kernel's buffers are, which takes less with a peer's *receive_buffer*.
        """
        self._waiting.give_up()
        self._acts.black_hole()

    def slow_reader(self, rate: float) -> None:
        """Reads *rate* bytes per second in the background, with a small receive buffer, until the
        next `read` or `read_to_end`, which begins with what has been read.

        The kernel still takes what fits the window that it had offered, on loopback some 64 KiB,
        unless the peer has a small *receive_buffer*. Raises ValueError for a rate of 0 or less.
        """
        self._acts.slow_reader(rate)

    def close(self) -> None:
        """close(2), whatever that sends. May be called again."""
        self._waiting.give_up()
        self._acts.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sock!r}>"


AnyEnd = TypeVar("AnyEnd", bound=BaseEnd)


class BasePeer(Generic[AnyEnd]):
    """A listening socket, and the ends of the connections that it has accepted.

    address: host and port, for the client to connect to.
    ends: those that were accepted, in that order.
    dropped: the number of those that `accept_and_drop` has dropped.
    """

    _end: type[AnyEnd]
    _waits: type[Waits]
    _waiting: Waits

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        timeout: float = TIMEOUT,
        receive_buffer: int | None = None,
    ) -> None:
        check_amount("timeout", "seconds", timeout)
        if tls is not None:
            _check_server(tls)
        self.timeout = timeout
        self.ends: list[AnyEnd] = []
        self.dropped: int = 0
        self._tls = tls
        self._lock = threading.Lock()
        self._is_closed = False
        self._refusing_next = contextlib.ExitStack()
        self._drops: deque[End] = deque()
        self._background: list[Background[None]] = []
        self._acceptor: Background[None] | None = None
        self._listener = Listener(host, port, receive_buffer)
        self._arrived = _Arrivals[AnyEnd]()
        self._waiting = self._waits()
        self._waiting.prepare(self.listener, timeout)
        self.address: tuple[str, int] = self._listener.address
        if tls is not None:
            self._accept_in_background()

    @property
    def listener(self) -> socket.socket:
        """The listening socket, for what has no method."""
        return self._listener.sock

    def refusing(self) -> contextlib.ExitStack:
        """Connects get ECONNREFUSED, from now until the end of the `with` block, or `close()`, of
        what this gives. Connections that nobody has accepted get RST.

        It is a real refusal: the socket keeps the port and does not listen (Linux only: elsewhere
        OSError). Raises RuntimeError when the peer has been closed, as all of its acts do.
        """
        self._check()
        self._listener.refuse()
        stack = contextlib.ExitStack()
        stack.callback(self._listener.listen)
        return stack

    def refuse_next(self, n: int) -> None:
        """The next *n* connects get ECONNREFUSED, as with `refusing`.

        A closed port counts nothing. Python does, and so it listens again just before the connect
        after that is made: by a client in this process that connects by Python's sockets, of
        whatever class, one attempt after the other. A client in C (libpq, uvloop), or in another
        process, is refused too but not counted: for it, take `refusing`. A second call
        begins to count anew. Raises ValueError for fewer than 1.
        """
        left = iter(range(_number(n)))
        refusing = self.refusing()

        def connects() -> None:
            with self._lock:
                if next(left, None) is None:
                    refusing.close()

        with self._lock:
            refusing.callback(_refusals.watch(self.address, connects))
            self._refusing_next.close()
            self._refusing_next = refusing

    def accept_and_drop(self, n: int, how: End = End.FIN) -> None:
        """The next *n* connections, those that wait to be accepted included, are accepted and
        closed at once, in the background: by FIN, or, with End.RST, by RST, which may come before
        connect(2) has returned, and makes that fail. `accept` gives the one that comes after them.

        Raises ValueError for fewer than 1, and for another end.
        """
        if how not in (End.FIN, End.RST):
            raise ValueError(f"a connection is dropped by End.FIN or End.RST: not {how!r}")
        drops = [End(how)] * _number(n)
        self._check()
        with self._lock:
            self._drops.extend(drops)
            running = self._acceptor is not None
        if not running:
            self._accept_in_background()

    def black_hole(self) -> contextlib.ExitStack:
        """Connects get no answer, from now until the end of the `with` block, or `close()`, of what
        this gives. Then a client that is still trying gets one to its next SYN.

        What comes for the listening socket is dropped (Linux only: elsewhere OSError).
        Connections that are made already are not concerned.
        """
        self._check()
        self._listener.hide()
        stack = contextlib.ExitStack()
        stack.callback(self._listener.show)
        return stack

    def close(self) -> None:
        """Closes the listening socket and all ends, and ends what goes on in the background. May be
        called again."""
        self._is_closed = True
        self._waiting.give_up()
        self._refusing_next.close()
        for thread in self._background:
            thread.stop()
        for end in self.ends:
            end.close()
        self._listener.close()
        self._arrived.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address} {len(self.ends)} accepted>"

    def _take(self) -> Steps[AnyEnd]:
        """The next connection's end."""
        self._check()
        if self._tls is not None:
            return (yield from self._arrived.get())
        while (thread := self._acceptor) is not None:
            yield from thread.finished()
        return self._add((yield from self._listener.take()))

    def _check(self) -> None:
        if self._is_closed:
            raise RuntimeError("this peer has been closed: make another")

    def _add(self, sock: socket.socket) -> AnyEnd:
        end = self._end(sock, self.timeout)
        self.ends.append(end)
        if self._tls is not None:
            end.start_tls(self._tls)
        return end

    def _accept_in_background(self) -> None:
        self._acceptor = Background(self._accept_on)
        self._background.append(self._acceptor)

    def _accept_on(self, thread: Background[None]) -> None:
        while self._goes_on():
            try:
                sock = thread.run(self._listener.take())
            except OSError as error:  # No descriptor is free, for instance.
                self._arrived.fail(error)
                raise
            with self._lock:
                how = self._drops.popleft() if self._drops else None
            if how is None:
                self._arrived.put(self._add(sock))
            else:
                self._drop(sock, how)

    def _goes_on(self) -> bool:
        with self._lock:
            if self._tls is not None or self._drops:
                return True
            self._acceptor = None
            return False

    def _drop(self, sock: socket.socket, how: End) -> None:
        self.dropped += 1  # First: a client that sees the end may look.
        acts = Acts(sock)
        if how is End.FIN:
            acts.fin()
        else:
            acts.rst()


class _Arrivals(Generic[AnyEnd]):
    """What a thread has accepted; who waits for it can wait as for any socket."""

    def __init__(self) -> None:
        self._ends: deque[AnyEnd] = deque()
        self._error: OSError | None = None
        self._signals, self._signal = socket.socketpair()
        self._signals.setblocking(False)

    def put(self, end: AnyEnd) -> None:
        self._ends.append(end)
        self._signal.send(b"!")

    def fail(self, error: OSError) -> None:
        """No more will come."""
        self._error = error
        self._signal.shutdown(socket.SHUT_WR)

    def get(self) -> Steps[AnyEnd]:
        while True:
            yield Wait(self._signals)
            with contextlib.suppress(BlockingIOError):  # Somebody else was quicker.
                if not self._signals.recv(1) and self._error is not None:
                    raise self._error
                return self._ends.popleft()

    def close(self) -> None:
        self._signals.close()
        self._signal.close()


def _check_server(context: ssl.SSLContext) -> None:
    if not isinstance(context, ssl.SSLContext):
        raise TypeError("the context is a server's ssl.SSLContext, with its certificate loaded")
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(
            "the context is a client's: a server's is ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), with"
            " its certificate loaded"
        )


def _number(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n is a number of connections: not {n!r}")
    if n < 1:
        raise ValueError(f"n is a number of connections, 1 or more: not {n}")
    return n
