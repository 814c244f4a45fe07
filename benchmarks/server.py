"""A server in a process of its own, so that its work is not counted as a client's.

`echo` answers what it gets; `hold` accepts and keeps, and closes all at the first byte on stdin;
`drop` accepts and closes.
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


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        print(server.getsockname()[1], flush=True)
        {"echo": _echo, "hold": _hold, "drop": _drop}[sys.argv[1]](server)
