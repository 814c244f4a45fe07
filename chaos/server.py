"""The server: `python -m chaos.server PORT FOLDER`. It checks what it gets; it may be killed."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import threading
from pathlib import Path

from chaos import stream
from chaos.messages import tell

_PATIENCE = 30.0
_HANDSHAKE = 0x16


class CrossedError(Exception):
    """Bytes that are not those of this connection."""


def serve(sock: socket.socket, context: ssl.SSLContext) -> None:
    try:
        with sock:
            sock.settimeout(_PATIENCE)
            _serve(sock, context)
    except CrossedError as error:
        tell("broken", what=str(error))
    except (OSError, EOFError):
        pass  # That is what the run is for.


def _serve(sock: socket.socket, context: ssl.SSLContext) -> None:
    first = sock.recv(1, socket.MSG_PEEK)
    if first and first[0] == _HANDSHAKE:
        with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=True) as tls:
            _exchange(tls)
    elif first == b"G":
        _answer_requests(sock)
    else:
        _exchange(sock)


def _exchange(sock: socket.socket) -> None:
    magic, act, token, up, down = stream.HEADER.unpack(_exactly(sock, stream.HEADER.size))
    if magic != b"CH":
        raise CrossedError(f"a connection begins with {magic!r}")
    expected, position = stream.up(token), 0
    while position < (up // 2 if act == stream.HASTE else up):
        data = sock.recv(min(65536, up - position))
        if not data:
            return
        if data != expected[position : position + len(data)]:
            raise CrossedError(f"connection {token:016x}: not what its client sends at {position}")
        position += len(data)
    sock.sendall(stream.down(token)[:down])
    if act == stream.WAIT and sock.recv(1):
        raise CrossedError(f"connection {token:016x}: more than its client sends")


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _answer_requests(sock: socket.socket) -> None:
    """HTTP: a few of them, then the connection is closed, as servers do."""
    buffer = b""
    while True:
        while b"\r\n\r\n" not in buffer:
            more = sock.recv(65536)
            if not more:
                return
            buffer += more
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        _, name, number, size = head.split(b" ")[1].split(b"/")
        body = stream.down(int(name, 16) + int(number))[: int(size)]
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        sock.sendall(body)
        if int(name, 16) % 4 == int(number) % 4:
            return


def main(port: int, folder: Path) -> None:
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
        tell("ready", port=listener.getsockname()[1])
        while True:
            with contextlib.suppress(ConnectionError):
                sock, _ = listener.accept()
                threading.Thread(target=serve, args=(sock, context), daemon=True).start()


def _end_with_the_run() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
