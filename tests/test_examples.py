"""The programs in examples/, each in a process of its own, against a server that misbehaves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer import EOF, TIMEOUT, Peer, PeerEnd

EXAMPLES = Path(__file__).parent.parent / "examples"
MOST_LINES = 60
# The default of one outage, in seconds.
DEADLINE = 180


class Program:
    """One of them, while it runs."""

    def __init__(self, name: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """What it prints next."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def interrupt(self) -> None:
        os.kill(self._process.pid, signal.SIGINT)

    def ends(self, seconds: float = TIMEOUT) -> tuple[int, str, str]:
        """Its exit status, and what else it has printed."""
        out, err = self._process.communicate(timeout=seconds)
        return self._process.returncode, out, err

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def running(name: str, *arguments: object) -> Iterator[Program]:
    program = Program(name, *arguments)
    try:
        yield program
    finally:
        program.kill()


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_they_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) < MOST_LINES


def test_the_line_client_comes_back_after_a_fin_and_a_reset(peer: Peer) -> None:
    with running("line_client.py", *peer.address, "--hello", "I am here") as program:
        for number, ending in enumerate((PeerEnd.fin, PeerEnd.rst, PeerEnd.fin)):
            end = peer.accept()
            assert end.read(10) == b"I am here\n"
            end.say(b"first %d\nsecond" % number)
            assert program.line() == f"first {number}"
            if ending is PeerEnd.fin:
                end.say(b" half")
            ending(end)
            if ending is PeerEnd.fin:
                assert program.line() == "second half"
        end = peer.accept()
        end.say(b"last\n")
        assert program.line() == "last"
        program.interrupt()
        assert end.read_to_end() == (b"I am here\n", EOF)
        status, out, err = program.ends()
    assert (status, out) == (130, "")
    assert err.count("ended by FIN, 0 bytes unknown") == 2
    assert err.count("ended by RST") == 1
    assert "Traceback" not in err


def test_the_line_client_gives_up_in_the_end() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with running("line_client.py", *nobody.getsockname(), "--attempts", 1) as program:
            status, out, err = program.ends()
    assert (status, out) == (1, "")
    assert "after 1 attempt" in err
    assert "Traceback" not in err


def test_the_line_client_has_a_test_of_its_own_that_passes() -> None:
    plugins = ("-p", "no:cacheprovider", "-p", "no:asyncio")
    alone = ("-c", os.devnull, "--rootdir", ".", *plugins, "-W", "error")
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *alone, "test_line_client.py"],
        cwd=EXAMPLES,
        check=True,
        timeout=3 * TIMEOUT,
    )


@pytest.mark.parametrize("port", ["0", "70000"])
@pytest.mark.parametrize(("file", "expected"), [("line_client.py", 2), ("modbus_client.py", 1)])
def test_they_refuse_what_is_no_port(file: str, expected: int, port: str) -> None:
    with running(file, "localhost", port) as program:
        status, out, err = program.ends()
    assert (status, out) == (expected, "")
    assert "a port from 1 to 65535" in err
    assert "Traceback" not in err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def request(end: PeerEnd) -> tuple[int, int]:
    """Its number, and the register it asks for."""
    number, protocol, length, unit, function, register, count = struct.unpack(
        ">HHHBBHH", end.read(12)
    )
    assert (protocol, length, unit, function, count) == (0, 6, 1, 3, 1)
    return number, register


def answer(number: int, value: int) -> bytes:
    return struct.pack(">HHHBBBH", number, 0, 5, 1, 3, 2, value)


def test_the_modbus_client_asks_each_time_once_from_the_one_port(peer: Peer) -> None:
    port = free_port()
    options = ("--local-port", port, "--register", 7, "--times", 5)
    with running("modbus_client.py", *peer.address, *options) as program:
        end = peer.accept()
        assert end.sock.getpeername()[1] == port
        assert request(end) == (1, 7)
        end.say(answer(1, 100)[:4])
        end.say(answer(1, 100)[4:])
        assert program.line() == "100"
        assert request(end) == (2, 7)
        end.say(answer(2, 200)[:9])  # Half an answer.
        end.fin()
        end = peer.accept()
        assert end.sock.getpeername()[1] == port
        assert request(end) == (3, 7)
        end.say(answer(2, 666))  # To another question: it closes.
        assert end.read_to_end() == (b"", EOF)
        end.fin()
        end = peer.accept()
        assert request(end) == (4, 7)  # No answer in time: it closes.
        assert end.read_to_end() == (b"", EOF)
        end.fin()
        end = peer.accept()
        assert request(end) == (5, 7)
        end.say(answer(5, 500))
        assert program.line() == "500"
        assert end.read_to_end() == (b"", EOF)
        status, out, err = program.ends()
    assert (status, out) == (0, "")
    assert err.count("modbus_client: ") == 3
    assert "IncompleteReadError" in err
    assert "unexpected answer 2, 3" in err
    assert "TimeoutError" in err
    assert "Traceback" not in err


@pytest.mark.campaign
def test_the_modbus_client_gives_up_in_the_end() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with running("modbus_client.py", *nobody.getsockname(), "--times", 9) as program:
            status, out, err = program.ends(DEADLINE + TIMEOUT)
    assert (status, out) == (1, "")
    assert err.count("modbus_client: ") == 1
    assert "attempts" in err
    assert "Traceback" not in err
