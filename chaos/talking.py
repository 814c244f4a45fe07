"""One exchange on a blocking socket: everything that a program may do with it, drawn by lot."""

from __future__ import annotations

import errno
import random
import socket
import threading
from collections import Counter

from chaos import stream
from chaos.tally import Account, BrokenPromiseError

_SMALL_BUFFER = 4096
# More option memory than a socket may have (net.core.optmem_max).
_TOO_MUCH = bytes(200_000)


def talk(sock: socket.socket, account: Account, rng: random.Random, counts: Counter[str]) -> None:
    """Says what there is to be said, and reads; perhaps not all. The caller closes."""
    if rng.random() < 0.1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALL_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        counts["small buffers"] += 1
    if rng.random() < 0.05 and not account.tls:
        _without_memory(sock, account, counts)
    say(sock, account, rng)
    way = rng.random()
    if way < 0.1:
        return  # What the server sends is not read.
    if way < 0.2:
        read(sock, account, rng, rng.randrange(1 + account.sizes[1]))
        return
    if way < 0.25:
        _close_elsewhere(sock, account, rng, counts)
        return
    read(sock, account, rng, account.sizes[1])
    if way < 0.8:
        read(sock, account, rng, None)


def say(sock: socket.socket, account: Account, rng: random.Random) -> None:
    act = rng.choice((stream.CLOSE, stream.CLOSE, stream.WAIT, stream.HASTE))
    head = stream.header(account.token, account.sizes, act)
    body = stream.up(account.token)[: account.sizes[0]]
    way = rng.randrange(3)
    if way == 0:
        _sendall(sock, account, head)
        _sendall(sock, account, body)
    else:
        rest = memoryview(head + body)
        while rest:
            rest = rest[_send(sock, account, rest, by_message=way == 2 and not account.tls) :]


def _sendall(sock: socket.socket, account: Account, data: bytes | memoryview) -> None:
    account.most += len(data)
    sock.sendall(data)
    account.least += len(data)


def _send(sock: socket.socket, account: Account, data: memoryview, *, by_message: bool) -> int:
    account.most += len(data)
    size = sock.sendmsg([data[:7], data[7:]]) if by_message else sock.send(data)
    account.least += size
    account.most -= len(data) - size
    return size


def _without_memory(sock: socket.socket, account: Account, counts: Counter[str]) -> None:
    """ENOBUFS is the kernel's own; nothing is accepted then, and the connection lives."""
    try:
        size = sock.sendmsg([b"never"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _TOO_MUCH)])
    except OSError as error:
        if error.errno == errno.ENOBUFS:
            counts["ENOBUFS"] += 1
            return
        raise
    raise BrokenPromiseError(
        f"connection {account.token:016x}: {size} bytes were sent without memory"
    )


def read(sock: socket.socket, account: Account, rng: random.Random, upto: int | None) -> None:
    """Until so many have come; None: to the end, which is to be told over and over."""
    into = rng.random() < 0.3
    buffer = bytearray(_SMALL_BUFFER)
    while upto is None or account.got < upto:
        most = 65536 if upto is None else min(65536, upto - account.got)
        if into:
            size = sock.recv_into(buffer, min(most, len(buffer)))
            data = bytes(buffer[:size])
        else:
            data = sock.recv(most)
        if not data:
            break
        account.reads(data)
    else:
        return
    if sock.recv(1) != b"":
        raise BrokenPromiseError(f"connection {account.token:016x}: there is more after the end")


def _close_elsewhere(
    sock: socket.socket, account: Account, rng: random.Random, counts: Counter[str]
) -> None:
    """By another thread, amid a read of this one."""
    counts["closed by another thread"] += 1
    closer = threading.Timer(rng.random() * 0.003, sock.close)
    closer.start()
    try:
        read(sock, account, rng, None)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
    finally:
        closer.join()
