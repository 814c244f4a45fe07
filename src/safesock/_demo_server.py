"""The demo's server: it answers each byte, and closes on all its clients when it is told to.

It runs as a process of its own, so that the descriptors of the demo's process are its clients'.
It is told through its stdin, and ends with it: when the demo is gone, however it went.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

HOST = "127.0.0.1"
_STDIN, _STDOUT = 0, 1
_TIMEOUT = 5.0


class Server:
    """The demo's handle on it."""

    def __init__(self) -> None:
        # By its file and -I, not by its name: it starts the same way wherever safesock was found,
        # and this folder, whose _socket.py would hide the C module, stays off its path. In a
        # process group of its own it sees no Ctrl-C.
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        try:
            self.address = (HOST, self._answer())
        except BaseException:
            self.close()
            raise

    def close_on_all(self) -> int:
        """Closes every connection that it has accepted, and gives their number."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
        except BrokenPipeError:
            pass  # `_answer` says it.
        return self._answer()

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> int:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline() if select.select([stdout], [], [], _TIMEOUT)[0] else b""
        if not line:
            raise OSError("the demo's own server does not answer")
        return int(line)


def _serve() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    clients: list[socket.socket] = []
    with socket.create_server((HOST, 0), backlog=128) as listener, selectors.PollSelector() as wait:
        wait.register(listener, selectors.EVENT_READ)
        wait.register(_STDIN, selectors.EVENT_READ)
        _say(listener.getsockname()[1])
        while True:
            for key, _ in wait.select():
                if key.fileobj is listener:
                    clients.append(listener.accept()[0])
                    wait.register(clients[-1], selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):
                    if not _answer(key.fileobj):
                        wait.unregister(key.fileobj)
                elif not os.read(_STDIN, 1):
                    return
                else:
                    _close(clients, wait)
                    break  # What else had happened may be about a client that is gone.


def _answer(client: socket.socket) -> bool:
    """Whether the client is still there."""
    try:
        data = client.recv(1024)
        client.sendall(data)
    except ConnectionError:
        return False
    return bool(data)


def _close(clients: list[socket.socket], wait: selectors.BaseSelector) -> None:
    for client in clients:
        if client in wait.get_map():
            wait.unregister(client)
        client.close()
    _say(len(clients))
    clients.clear()


def _say(number: int) -> None:
    os.write(_STDOUT, b"%d\n" % number)


if __name__ == "__main__":
    _serve()
