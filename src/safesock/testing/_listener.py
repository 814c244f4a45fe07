"""A listening socket that can refuse, and fall silent, on one and the same port."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

from safesock import _abortive, _kernel
from safesock.testing._wait import Steps, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_BACKLOG = 128


class Listener:
    """Listens from the beginning. Its port stays its own as long as it is open."""

    def __init__(self, host: str, port: int, receive_buffer: int | None) -> None:
        _check(host, port, receive_buffer)
        self._lock = threading.Lock()
        self._accepting = threading.Lock()
        self._process = os.getpid()
        self._refused = 0
        self._holds = 0
        # Ends what hides SYNs.
        self._show: Callable[[], None] | None = None
        # Who waits for a connection while it refuses waits for this instead.
        self._gate: tuple[socket.socket, socket.socket] | None = None
        with contextlib.ExitStack() as stack:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self.sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            if receive_buffer is not None:  # Before the connection: it decides the window.
                _kernel.set_receive_buffer(self.sock, receive_buffer)
            _bind(self.sock, host, port)
            self.sock.listen(_BACKLOG)
            self._stack = stack.pop_all()

    @property
    def address(self) -> tuple[str, int]:
        """Its host and port."""
        host, port = self.sock.getsockname()[:2]
        return host, port

    def take(self) -> Steps[socket.socket]:
        """accept(2). While it refuses, waits until it does not."""
        while True:
            refused = self._refused
            if self._holds and self._gate is not None:
                yield Wait(self._gate[0])
                continue
            yield Wait(self.sock)
            try:
                # Several threads may wait: none of them in C, where nobody can give it up.
                with self._accepting:
                    if _kernel.ready(self.sock, 0):
                        return self.sock.accept()[0]
            except BlockingIOError:
                continue
            except OSError:
                if self._refused == refused:
                    raise

    def refuse(self) -> None:
        """From now on a connect gets ECONNREFUSED; who has not been accepted gets RST."""
        if not _kernel.LINUX:
            raise OSError("refusals need Linux: elsewhere close the peer, and make one on its port")
        with self._lock:
            if self._gate is None:
                self._gate = socket.socketpair()
                self._gate[0].setblocking(False)
                self._stack.enter_context(self._gate[0])
                self._stack.enter_context(self._gate[1])
            elif self._holds == 0:
                with contextlib.suppress(BlockingIOError):  # A forked child tells nobody.
                    self._gate[0].recv(1)
            self._holds += 1
            if self._holds == 1:
                self._refused += 1
                # Linux takes it back from LISTEN to CLOSE; it keeps the port, as `_bind` chose it.
                self.sock.shutdown(socket.SHUT_RD)

    def listen(self) -> None:
        """Ends one `refuse`; the last one listens again."""
        with self._lock:
            if self._holds == 1 and self._gate is not None and self._is_own():
                self.sock.listen(_BACKLOG)  # Before anybody may accept.
                self._gate[1].send(b"!")
            self._holds -= 1

    def hide(self) -> None:
        """From now on SYNs are dropped. Raises OSError where that cannot be done."""
        self._show = self._show or _abortive.hide_peer(self.sock)
        if self._show is None:
            raise OSError("black_hole needs Linux, and a peer that is open")

    def show(self) -> None:
        """Ends `hide`. May be called again."""
        show, self._show = self._show, None
        if show is not None and self._is_own():
            show()

    def close(self) -> None:
        """close(2), of a socket that listens no more, whoever else has it. May be called again."""
        with self._lock:
            if self._is_own():
                with contextlib.suppress(OSError):  # It does not listen.
                    self.sock.shutdown(socket.SHUT_RD)
            self._stack.close()

    def _is_own(self) -> bool:
        # In a forked child it is open too, and its parent's affair.
        return self.sock.fileno() >= 0 and os.getpid() == self._process


def _check(host: str, port: int, receive_buffer: int | None) -> None:
    if not issubclass(socket.socket, _kernel.Raw):
        raise RuntimeError(
            "socket.socket is no kernel's socket here (has gevent or eventlet replaced it?): run"
            " the peer in a process where it is"
        )
    if not isinstance(host, str):
        raise TypeError(f"host is a name or an address, as str: not {host!r}")
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port is a number: not {port!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port is from 0 (any that is free) to 65535: not {port}")
    if receive_buffer is not None and (
        isinstance(receive_buffer, bool) or not isinstance(receive_buffer, int)
    ):
        raise TypeError(f"receive_buffer is a number of bytes: not {receive_buffer!r}")
    if receive_buffer is not None and not 0 < receive_buffer < 2**30:
        raise ValueError(f"receive_buffer is 1 byte or more, less than 1 GiB: not {receive_buffer}")


def _bind(sock: socket.socket, host: str, port: int) -> None:
    # A port that the kernel chose is given back when the socket no longer listens; one that was
    # asked for is not. Another socket holds the chosen one until it is asked for.
    with socket.socket(sock.family, socket.SOCK_STREAM) as holder:
        _kernel.set_reuse_address(sock, True)
        if port == 0 and _kernel.LINUX:  # Elsewhere it never stops to listen.
            _kernel.set_reuse_address(holder, True)
            holder.bind((host, 0))
            port = holder.getsockname()[1]
        sock.bind((host, port))
