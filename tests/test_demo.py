"""What `safesock demo` shows, and that it is what the kernel says."""

from __future__ import annotations

import html
import io
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import kernel
import pytest
from command import PROGRAM, Ended, in_pipe, in_terminal, with_descriptors

from safesock import _demo, _demo_kernel
from safesock._demo_screen import Screen

DEMO = [*PROGRAM, "demo"]
PICTURE = Path(__file__).parent.parent / "docs" / "demo.svg"
# As `shown` gives it: a line for the moment at which the watcher has ended what the server closed.
IDLE = "#.# s idle # # # #"
LEFT_NOTHING = re.compile(
    r"safesock left nothing: 0 in CLOSE_WAIT, 0 descriptors, port (\d+) used 5 times"
)
# The demo with other clients in place of safesock's, whom it must catch.
IN_PLACE_OF_SAFE = """\
import os, sys
from safesock import Policy, _demo, create_connection

def policy(**choices):
    def connect(address, port):
        source = (address[0], port) if port else None
        return create_connection(address, 5.0, source, policy=Policy(**choices))
    return connect

def duplicated(address, port):
    sock = _demo.safe_connection(address, port)
    os.dup(sock.fileno())
    return sock

sys.exit(_demo.run(sys.stdout, safe=CLIENT, pace=0))
"""
CULPRITS = {
    "_demo.plain_connection": "51 in CLOSE_WAIT, 51 descriptors, port P used 1 of 5 times",
    "policy(on_loss='keep')": "51 in CLOSE_WAIT, 51 descriptors, port P used 1 of 5 times",
    "policy(watch=False)": "50 in CLOSE_WAIT, 0 descriptors, port P used 5 times",
    "policy(on_loss='release')": "0 in CLOSE_WAIT, 55 descriptors, port P used 5 times",
    "duplicated": "0 in CLOSE_WAIT, 55 descriptors, port P used 5 times",
}
TERMINALS: dict[str, tuple[int, dict[str, str]]] = {
    "colours": (80, {"TERM": "xterm"}),
    "NO_COLOR": (80, {"TERM": "xterm", "NO_COLOR": "1"}),
    "dumb": (80, {"TERM": "dumb"}),
    "narrow": (60, {"TERM": "xterm"}),
}


@pytest.fixture(scope="module")
def demos() -> Iterator[Callable[[str], Ended]]:
    """All the runs of whole demos, side by side: they take seconds, and do nothing for most."""

    def show(name: str) -> Ended:
        columns, environment = TERMINALS[name]
        with in_terminal(DEMO, columns, **environment) as terminal:
            return terminal.end()

    commands = {"pipe": DEMO, "few descriptors": with_descriptors(64, DEMO)}
    for name in CULPRITS:
        commands[name] = [sys.executable, "-c", IN_PLACE_OF_SAFE.replace("CLIENT", name)]
    with ThreadPoolExecutor(len(commands) + len(TERMINALS)) as pool:
        running: dict[str, Future[Ended]] = {}
        for name, command in commands.items():
            running[name] = pool.submit(in_pipe, command)
        for name in TERMINALS:
            running[name] = pool.submit(show, name)
        yield lambda name: running[name].result()


def rows(output: str) -> list[tuple[str, list[int]]]:
    """Of the table of act 1: what happened, and the four counts."""
    found = re.findall(r"^ *\d+\.\d s  (.*?) +(\d+) +(\d+) +(\d+) +(\d+)$", output, re.MULTILINE)
    return [(text, [int(count) for count in counts]) for text, *counts in found]


def plain_lines(output: str) -> str:
    """What stays on a terminal's screen, without its colours."""
    lines = [line.split("\r\x1b[K")[-1] for line in output.split("\n")]
    return re.sub(r"\x1b\[\d+m", "", "\n".join(lines))


def check_story(output: str, size: int = 50) -> None:
    """The story that the demo is there to tell, in its output without control characters."""
    assert not re.search(r"[^\n -~]", output)
    assert max(map(len, output.splitlines())) <= 79
    at = dict(rows(output))
    assert at["a request on each"] == [0, size, 0, size]
    assert at["the server closes them"] == [size, size, size, size]
    assert at["still idle"] == [size, size, 0, size]
    assert at['recv() gave b"" on each'] == [size, size, 0, 0]
    assert at["close() on the plain ones"] == [0, 0, 0, 0]
    turns = re.findall(r"^ +(\d)  (.*?)  +(.*)$", output, re.MULTILINE)
    safe = "connected; port free"
    assert turns == [
        ("1", "connected; port in CLOSE_WAIT", safe),
        *((str(turn), "EADDRNOTAVAIL; port in CLOSE_WAIT", safe) for turn in range(2, 6)),
    ]
    assert "\nplain, with SO_REUSEADDR set: [Errno 99] Cannot assign requested address\n" in output
    last = LEFT_NOTHING.fullmatch(output.splitlines()[-1])
    assert last
    assert f"safesock, local port {last[1]}\n" in output


@pytest.mark.campaign
def test_in_a_pipe_it_is_a_log(demos: Callable[[str], Ended]) -> None:
    status, output, errors = demos("pipe")
    assert (status, errors) == (0, "")
    check_story(output)
    assert "ulimit" not in output


@pytest.mark.campaign
def test_with_few_descriptors_it_takes_fewer_connections_and_says_so(
    demos: Callable[[str], Ended],
) -> None:
    status, output, errors = demos("few descriptors")
    assert (status, errors) == (0, "")
    assert "more descriptors may be opened (ulimit -n): a smaller pool." in output
    (size,) = re.findall(r"^1\. (\d+) idle", output, re.MULTILINE)
    assert 10 < int(size) < 32
    check_story(output, int(size))


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("name", "colours", "redraws"),
    [
        ("colours", True, True),
        ("NO_COLOR", False, True),
        ("dumb", False, False),
        ("narrow", True, False),
    ],
)
def test_in_a_terminal_it_tells_the_same(
    demos: Callable[[str], Ended], name: str, colours: bool, redraws: bool
) -> None:
    status, output, _ = demos(name)
    assert status == 0
    assert bool(re.search(r"\x1b\[\d*m", output)) is colours
    clocks = set(re.findall(r"\r\x1b\[K *(\d+\.\d) s  idle", output))
    assert (len(clocks) > 1) is redraws  # It goes on between one line that stays and the next.
    assert ("\r" in output) is redraws
    check_story(plain_lines(output))


@pytest.mark.campaign
@pytest.mark.parametrize("name", CULPRITS)
def test_what_is_left_is_told_and_is_status_1(demos: Callable[[str], Ended], name: str) -> None:
    status, output, errors = demos(name)
    assert (status, errors) == (1, "")
    last = output.splitlines()[-1]
    assert re.sub(r"port \d+", "port P", last) == f"safesock left: {CULPRITS[name]}"
    assert len(last) <= 79


class Checked(io.StringIO):
    """A stream that looks at the sockets themselves whenever the demo writes a row."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: dict[str, list[socket.socket]] = {"plain": [], "safe": []}
        self.checked: list[list[int]] = []
        self.counted: list[int] = []

    def keep(self, side: str, connect: _demo.Connect) -> _demo.Connect:
        def kept(address: tuple[str, int], local_port: int) -> socket.socket:
            sock = connect(address, local_port)
            self.sockets[side].append(sock)
            return sock

        return kept

    def write(self, text: str) -> int:
        for _, shown in rows(text):
            states = {
                side: [kernel.state_of(sock) for sock in sockets if sock.fileno() >= 0]
                for side, sockets in self.sockets.items()
            }
            counted = [n for held in states.values() for n in (held.count("CLOSE_WAIT"), len(held))]
            # A row is of a time between the last look and this one. When the server closed in it,
            # safesock's sockets may have come into CLOSE_WAIT and out of it.
            before = self.counted or counted
            most = [max(pair) for pair in zip(before, counted, strict=True)]
            if before[0] < counted[0]:
                most[2] = counted[3]
            looks = zip(before, shown, counted, most, strict=True)
            assert all(min(a, b) <= n <= top for a, n, b, top in looks), (before, counted)
            self.counted = counted
            self.checked.append(shown)
        return super().write(text)


def test_each_row_is_what_tcp_info_says_of_the_sockets() -> None:
    before = kernel.descriptors()
    stream = Checked()
    status = _demo.run(
        stream,
        stream.keep("plain", _demo.plain_connection),
        stream.keep("safe", _demo.safe_connection),
        pace=0.1,
    )
    assert status == 0
    assert [50, 50, 0, 50] in stream.checked
    assert len(stream.checked) >= 5
    assert kernel.left_open(before) == []


def test_a_demo_may_have_no_output_at_all() -> None:
    assert _demo.run(None, pace=0) == 0


def test_a_client_that_cannot_connect_leaves_nothing() -> None:
    before = kernel.descriptors()
    accepted: list[socket.socket] = []

    def connect(address: tuple[str, int], local_port: int) -> socket.socket:
        if len(accepted) == 7:
            raise OSError("no more")
        accepted.append(_demo.plain_connection(address, local_port))
        return accepted[-1]

    with pytest.raises(OSError, match="no more"):
        _demo.run(io.StringIO(), safe=connect, pace=0)
    assert len(accepted) == 7
    assert kernel.left_open(before) == []


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


class TestKernelCounts:
    def test_a_duplicate_is_a_descriptor_more_and_no_connection_more(self) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname()) as client,
        ):
            listener.accept()[0].close()
            before = set(_demo_kernel.sockets()) - {inode(client)}
            kernel.wait_until(lambda: kernel.state_of(client) == "CLOSE_WAIT")
            with client.dup():
                (count,) = _demo_kernel.counts(set(_demo_kernel.sockets()) - before)
            assert count == (1, 2)
            assert _demo_kernel.counts({inode(client)}, set()) == [(1, 1), (0, 0)]

    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
    def test_the_state_of_a_port(self, family: socket.AddressFamily) -> None:
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        with socket.create_server((host, 0), family=family) as listener:
            address = listener.getsockname()[:2]
            port, _ = _demo._free_ports()
            with socket.create_connection(address, source_address=(host, port)):
                assert _demo_kernel.state_of_port(port) == 1
                listener.accept()[0].close()
                kernel.wait_until(lambda: _demo_kernel.state_of_port(port) == 8)
            kernel.wait_until(lambda: _demo_kernel.state_of_port(port) is None)

    def test_without_ipv6_there_is_one_table_less(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_demo_kernel, "_TABLE6", "/proc/self/net/none")
        assert _demo_kernel.can_tell()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            assert _demo_kernel.state_of_port(listener.getsockname()[1]) == 10


def test_a_process_without_a_stdout_has_a_silent_screen() -> None:
    screen = Screen(None)
    screen.say("nothing")
    screen.draw("nothing")
    screen.erase()


def shown(text: str) -> list[str]:
    """Its lines; the numbers differ, and so do the columns."""
    return [" ".join(re.sub(r"\d+", "#", line).split()) for line in text.splitlines()]


def test_the_picture_in_the_readme_shows_what_the_demo_shows(
    demos: Callable[[str], Ended],
) -> None:
    lines: dict[float, str] = {}
    for at, text in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>([^<]*)</text>', PICTURE.read_text()):
        lines[float(at)] = lines.get(float(at), "") + html.unescape(text).replace("\xa0", " ")
    in_picture = [line for line in shown("\n".join(lines.values())) if line]
    assert in_picture[:2] == ["safesock demo", "$ safesock demo"]
    assert len(in_picture) > 15
    output = demos("pipe").output
    missing = set(in_picture[2:]) - set(shown(output))
    # On a slow machine that moment may come before the server has closed on all.
    was_first = re.search(r"the server closes them +\d+ +\d+ +0 ", output)
    assert missing <= ({IDLE} if was_first else set()), "python -m docs.record_demo"
