"""A server in a process of its own, so that its work is not counted as a client's.

`echo` answers what it gets; `hold` accepts and keeps, and closes all at the first byte on stdin;
`drop` accepts and closes. For one client after the other: `spin` answers what it gets on several
connections, and does not sleep; `lines`, `give` and `take` are told how much, and send so many
lines, or blocks of 64 KiB, or take so many blocks and then say so.
"""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def serving(mode: str) -> Iterator[tuple[str, int]]:
    with started(mode) as (address, _):
        yield address


@contextlib.contextmanager
def started(mode: str) -> Iterator[tuple[tuple[str, int], subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "benchmarks.server", mode]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield ("127.0.0.1", int(process.stdout.readline())), process
        finally:
            process.kill()


def _echo(listener: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    sock, _ = listener.accept()
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(sock, selectors.EVENT_READ)
                    continue
                sock = key.fileobj  # type: ignore[assignment]
                if data := sock.recv(65536):
                    sock.send(data)
                else:
                    selector.unregister(sock)
                    sock.close()


def _hold(listener: socket.socket) -> None:
    held = []
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if listener in ready:
                held.append(listener.accept()[0])
            elif sys.stdin in ready:
                break
    for sock in held:
        sock.close()
    print("closed", flush=True)
    sys.stdin.read()


def _drop(listener: socket.socket) -> None:
    while True:
        sock, _ = listener.accept()
        sock.close()


LINE = b"a line of forty-eight characters, and its ending\n"
BLOCK = bytes(65536)


# The connections that `spin` takes from each client.
AT_ONCE = 8


def _spin(listener: socket.socket) -> None:
    while True:
        socks = [listener.accept()[0] for _ in range(AT_ONCE)]
        for sock in socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
        with contextlib.suppress(ConnectionError):
            while all(map(_answered, socks)):
                pass
        for sock in socks:
            sock.close()


def _answered(sock: socket.socket) -> bool:
    """What there is; False at the end."""
    try:
        data = sock.recv(65536)
    except BlockingIOError:
        return True
    sock.sendall(data)
    return bool(data)


def _bulk(listener: socket.socket, mode: str) -> None:
    room = memoryview(bytearray(4 * len(BLOCK)))
    while True:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(ConnectionError):
            count = int(sock.recv(8, socket.MSG_WAITALL))
            if mode == "take":
                left = count * len(BLOCK)
                while left:
                    left -= sock.recv_into(room[:left])
                sock.sendall(b"!")
            else:
                many = LINE * 1000 if mode == "lines" else BLOCK
                for _ in range(count // 1000 if mode == "lines" else count):
                    sock.sendall(many)
            sock.recv(1)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        print(server.getsockname()[1], flush=True)
        mode = sys.argv[1]
        if mode in ("lines", "give", "take"):
            _bulk(server, mode)
        {"echo": _echo, "hold": _hold, "drop": _drop, "spin": _spin}[mode](server)
