"""Every call that reads or writes, as data: for tests that run one body over all of them."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import kernel
from peer import TIMEOUT, PeerEnd

SIZE = 16
DATA = b"data\n"
ANYWHERE = ("127.0.0.1", 9)  # TCP ignores the address that sendto is given.

Call = Callable[[socket.socket], Any]


# The calls --------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(sock: socket.socket, *mode: Any) -> Iterator[IO[Any]]:
    file: IO[Any] = sock.makefile(*mode)
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # A buffered file tries once more what has failed.
            file.close()


def reader(read: Callable[[IO[Any]], Any], *mode: Any) -> Call:
    def call(sock: socket.socket) -> Any:
        with opened(sock, *mode) as file:
            return read(file)

    return call


def writer(data: bytes | str, *mode: Any) -> Call:
    def call(sock: socket.socket) -> Any:
        with opened(sock, *mode) as file:
            written = file.write(data)
            file.flush()
            return written

    return call


def filled(method: str) -> Call:
    """A call that reads into a buffer: what it gave, and the buffer."""

    def call(sock: socket.socket) -> Any:
        buffer = bytearray(SIZE)
        argument = [buffer] if method == "recvmsg_into" else buffer
        return getattr(sock, method)(argument), bytes(buffer)

    return call


def sendfile(sock: socket.socket) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(DATA)
        file.seek(0)
        return sock.sendfile(file)


EMPTY = bytes(SIZE)


class Read(NamedTuple):
    call: Call
    at_end: Any


READS = {
    "recv": Read(lambda sock: sock.recv(SIZE), b""),
    "recv_into": Read(filled("recv_into"), (0, EMPTY)),
    "recvfrom": Read(lambda sock: sock.recvfrom(SIZE), (b"", None)),
    "recvfrom_into": Read(filled("recvfrom_into"), ((0, None), EMPTY)),
    "recvmsg": Read(lambda sock: sock.recvmsg(SIZE), (b"", [], 0, None)),
    "recvmsg_into": Read(filled("recvmsg_into"), ((0, [], 0, None), EMPTY)),
    "file-rb": Read(reader(lambda file: file.read(), "rb"), b""),
    "file-rb-size": Read(reader(lambda file: file.read(SIZE), "rb"), b""),
    "file-rb-unbuffered": Read(reader(lambda file: file.read(SIZE), "rb", 0), b""),
    "file-rb-readinto": Read(reader(lambda file: file.readinto(bytearray(9)), "rb"), 0),  # type: ignore[attr-defined]
    "file-rb-readline": Read(reader(lambda file: file.readline(), "rb"), b""),
    "file-rb-iteration": Read(reader(list, "rb"), []),
    "file-rwb": Read(reader(lambda file: file.read(SIZE), "rwb"), b""),
    "file-rwb-unbuffered": Read(reader(lambda file: file.read(SIZE), "rwb", 0), b""),
    "file-r": Read(reader(lambda file: file.read(), "r"), ""),
    "file-r-iteration": Read(reader(list, "r"), []),
    "file-rw": Read(reader(lambda file: file.readline(), "rw"), ""),
}
SENDS: dict[str, Call] = {
    "send": lambda sock: sock.send(DATA),
    "sendall": lambda sock: sock.sendall(DATA),
    "sendto": lambda sock: sock.sendto(DATA, ANYWHERE),
    "sendto-flags": lambda sock: sock.sendto(DATA, socket.MSG_NOSIGNAL, ANYWHERE),
    "sendmsg": lambda sock: sock.sendmsg([DATA[:2], DATA[2:]]),
    "file-wb": writer(DATA, "wb"),
    "file-wb-unbuffered": writer(DATA, "wb", 0),
    "file-rwb-write": writer(DATA, "rwb"),
    "file-w": writer(DATA.decode(), "w"),
    "file-rw-write": writer(DATA.decode(), "rw"),
}
WRITES = {**SENDS, "sendfile": sendfile}
CALLS = {**{name: read.call for name, read in READS.items()}, **WRITES}
MODES = {"blocking": None, "timeout": TIMEOUT, "non-blocking": 0.0}


def answer(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or the exception that it raises, as values to compare."""
    try:
        return call(*arguments)
    except Exception as error:
        return type(error), getattr(error, "errno", None), str(error)


def fill(sock: socket.socket, end: PeerEnd) -> int:
    """Sends until neither kernel takes any more; the number of bytes."""
    timeout = sock.gettimeout()
    sock.settimeout(0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    sent = 0

    def at_rest() -> bool:
        return kernel.unacknowledged(sock) + kernel.unread(end.sock) == sent

    # Twice: what was on its way made room when it was acknowledged.
    for _ in range(2):
        with contextlib.suppress(BlockingIOError):
            while sent < 1 << 30:
                sent += sock.send(bytes(4096))
        kernel.wait_until(at_rest, "every byte is acknowledged or has not left")
    sock.settimeout(timeout)
    return sent
