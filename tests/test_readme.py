"""Every Python block of the README runs, in order, against a server that says hello and closes."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peer import Peer

import safesock

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def closing_server(peer: Peer) -> Iterator[tuple[str, int]]:
    """Greets each client, and closes."""

    def serve() -> None:
        while True:
            sock, _ = peer.listener.accept()
            with sock:
                if sock.recv(100, socket.MSG_PEEK) == b"stop":
                    return
                sock.recv(100)
                sock.sendall(b"hello yourself\n")

    thread = threading.Thread(target=serve)
    thread.start()
    yield peer.address
    with socket.create_connection(peer.address) as last:
        last.sendall(b"stop")
        thread.join(20)
    assert not thread.is_alive()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def test_every_line_is_true(closing_server: tuple[str, int], capsys: Any) -> None:
    plain = socket.create_connection(closing_server, 20)
    plain.sendall(b"hello\n")
    names: dict[str, Any] = {
        "plain_socket": plain,
        "address": closing_server,
        "local_port": free_port(),
    }
    for number, block in enumerate(BLOCKS):
        block = block.replace("attempts=8", "attempts=2")  # Or the waits take a minute.
        exec(compile(block, f"README.md, block {number + 1}", "exec"), names)
        if number == 0:
            names["sock"].close()
        if "enforcement" in names:  # It is for a whole process, which this is not.
            names.pop("enforcement").remove()
    printed = capsys.readouterr().out
    assert printed.count("hello yourself") == 7
    assert printed.count("Loss(cause=<Cause.FIN: 'fin'>") == 5
    assert printed.count("after 2 attempts: the limit is 2") == 2
    assert printed.count("was lost by FIN") == 1
    assert printed.count(": connected from ") == 1
    assert printed.count("# TYPE safesock_connections_total counter") == 1
    assert isinstance(names["loss"], safesock.Loss)
    assert plain.fileno() == -1
    client = names["Connection"](*closing_server, timeout=20)
    client.connect()
    assert isinstance(client.sock, safesock.SafeSocket)
    client.close()


def test_the_close_modes_are_named_as_they_are() -> None:
    for mode in ("Graceful()", "Drain(timeout=5.0)", "Linger(seconds=2)", "Abort()"):
        assert f"`{mode}`" in README
        assert eval(f"safesock.{mode}") == type(eval(f"safesock.{mode}"))()


def test_the_commands_are_there() -> None:
    assert "pip install -e . && safesock demo" in README
    assert "pip install -e '.[test]' && pytest" in README
