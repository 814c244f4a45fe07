"""The other ends of very many connections, in a process of their own, which closes all at once.

It listens on several addresses, as there are not ports enough to connect from to one, and says
which they are. A line on stdin closes all that it has accepted; it says how many those were.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

Address = tuple[str, int]

# Beside the connections: the program's own descriptors.
SPARE = 100


class Peers(NamedTuple):
    """The process, as another one sees it."""

    addresses: list[Address]
    process: subprocess.Popen[str]

    def close_all(self) -> int:
        """Returns when they are closed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("close\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextlib.contextmanager
def peers(addresses: int) -> Iterator[Peers]:
    command = [sys.executable, "-m", "benchmarks.peers", str(addresses)]
    pipe = subprocess.PIPE
    # In a group of its own: Ctrl-C is for this process, which ends that one.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, process_group=0) as process:
        try:
            assert process.stdout is not None
            found = json.loads(process.stdout.readline())
            yield Peers([(host, port) for host, port in found], process)
        finally:
            process.kill()


def make_room(descriptors: int) -> int:
    """As many descriptors as that, where it is allowed; how many there may be now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < descriptors:
        with contextlib.suppress(ValueError, OSError):  # The hard limit is root's to raise.
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, max(hard, descriptors)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < min(descriptors, hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _accept_until_told(listeners: list[socket.socket]) -> list[int]:
    accepted = []
    with selectors.DefaultSelector() as selector:
        for one in [*listeners, sys.stdin]:
            selector.register(one, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            for listener in ready:
                if isinstance(listener, socket.socket):
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            accepted.append(listener.accept()[0].detach())
            if ready == [sys.stdin]:
                # At the end of stdin nobody is there who would read the answer.
                return accepted if sys.stdin.readline() else []


def _serve(addresses: int) -> None:
    make_room(1 << 20)
    listeners = [
        socket.create_server((f"127.0.1.{number + 1}", 0), backlog=4096)
        for number in range(addresses)
    ]
    for listener in listeners:
        listener.setblocking(False)
    print(json.dumps([listener.getsockname() for listener in listeners]), flush=True)
    while True:
        accepted = _accept_until_told(listeners)
        if not accepted:
            return
        assert accepted[-1] - accepted[0] + 1 == len(accepted)
        os.closerange(accepted[0], accepted[-1] + 1)  # One system call.
        print(len(accepted), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
