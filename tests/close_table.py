"""What each way of closing does: the tables of docs/close-policy.md, measured on this kernel.

    python tests/close_table.py

prints them, and with --write puts them into the page. They have no times, and are the same each
time: what a close waits for is found out by doing one thing after the other on the other side.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import kernel
from kernel import wait_until
from peer import EOF, TIMEOUT, Peer, PeerEnd
from process import Script

from safesock import Abort, CloseMode, Drain, Graceful, Linger, Policy, create_connection

PAGE = Path(__file__).parent.parent / "docs" / "close-policy.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

# None: the standard library's. Their times are so long that only the peer ends them.
MODES: dict[str, CloseMode | None] = {
    "plain `close()`": None,
    "`Graceful()`": Graceful(),
    "`Drain()`": Drain(TIMEOUT),
    "`Linger()`": Linger(int(TIMEOUT)),
    "`Abort()`": Abort(),
}
_SMALL = 4096
_PASSING = {"FIN_WAIT1", "LAST_ACK", "CLOSING"}
_HELD = {"ESTABLISHED", "CLOSE_WAIT"}
_HAS_FIN = {"CLOSE_WAIT", "TIME_WAIT", "CLOSE"}
_LOOKS = 8  # A thread that sleeps for so many in a row has something to wait for.

Ends: TypeAlias = tuple[object, object]  # The addresses of our side and of the peer.
Before: TypeAlias = Callable[[socket.socket, PeerEnd], contextlib.AbstractContextManager[int]]


class Ending(NamedTuple):
    """What was seen of one close: by the peer, in the kernel's table, by whoever called it."""

    sees: str
    left: str
    waits: str


class Situation(NamedTuple):
    """What is so before the close, and what the peer does as soon as it has begun."""

    before: Before
    during: Callable[[PeerEnd], None] = lambda _: None


# The situations -------------------------------------------------------------------------------


@contextlib.contextmanager
def all_has_arrived(sock: socket.socket, end: PeerEnd) -> Iterator[int]:
    """Their `int` is what send() has accepted, in bytes."""
    sock.sendall(b"hello")
    wait_until(lambda: not kernel.unacknowledged(sock) and kernel.unread(end.sock) == 5)
    yield 5


@contextlib.contextmanager
def on_its_way(sock: socket.socket, _end: PeerEnd) -> Iterator[int]:
    yield fill(sock)


@contextlib.contextmanager
def one_byte_unread(sock: socket.socket, end: PeerEnd) -> Iterator[int]:
    end.say(b"!")
    wait_until(lambda: kernel.unread(sock) == 1)
    yield fill(sock)


@contextlib.contextmanager
def duplicated(sock: socket.socket, end: PeerEnd) -> Iterator[int]:
    other = os.dup(sock.fileno())
    try:
        with all_has_arrived(sock, end) as sent:
            yield sent
    finally:
        os.close(other)


@contextlib.contextmanager
def held_by_a_child(sock: socket.socket, end: PeerEnd) -> Iterator[int]:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[sock.fileno()])
    try:
        with all_has_arrived(sock, end) as sent:
            yield sent
    finally:
        child.communicate()


@contextlib.contextmanager
def peer_has_closed(sock: socket.socket, end: PeerEnd) -> Iterator[int]:
    sock.sendall(b"hello")
    end.half_close()
    wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT")
    yield 5


def fill(sock: socket.socket) -> int:
    """Sends until nothing more is accepted, as the peer does not read."""
    timeout, sent = sock.gettimeout(), 0
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(65536))
    sock.settimeout(timeout)
    return sent


def talks_on(end: PeerEnd) -> None:
    if kernel.state_of(end.sock) != "CLOSE":  # Else it has been reset, and is still to be told.
        end.say(b"!")


SITUATIONS = {
    "all that was sent has arrived": Situation(all_has_arrived),
    "data is on its way, as the peer has not read yet": Situation(on_its_way),
    "the same, and one received byte is unread": Situation(one_byte_unread),
    "data is on its way, and the peer sends more after the close": Situation(on_its_way, talks_on),
    "a duplicate descriptor is open": Situation(duplicated),
    "a child process has inherited it": Situation(held_by_a_child),
    "the peer has closed before (CLOSE_WAIT)": Situation(peer_has_closed),
}
KILLED = "the process is killed, data is on its way"


# Measuring ------------------------------------------------------------------------------------


def measure(situation: Situation, mode: CloseMode | None) -> Ending:
    """One close."""
    with Peer(receive_buffer=_SMALL) as peer, connected(peer, mode) as sock:
        end = peer.accept()
        ends = sock.getsockname(), peer.address
        with situation.before(sock, end) as sent:
            closing = threading.Thread(target=sock.close)
            closing.start()
            waits = "nothing" if returns(closing, ends, end) else ""
            situation.during(end)
            sees, first = what_the_peer_sees(ends, end, sent)
            waits = waits or ("until the peer reads" if returns(closing, ends, end) else "")
            end.close()
            closing.join(TIMEOUT)
            assert not closing.is_alive()
            left = what_is_left(ends, first)
            return Ending(sees, left, waits or "until the peer closes")


@contextlib.contextmanager
def connected(peer: Peer, mode: CloseMode | None) -> Iterator[socket.socket]:
    if mode is None:
        sock = socket.create_connection(peer.address, TIMEOUT)
    else:
        sock = create_connection(peer.address, TIMEOUT, policy=Policy(mode, watch=False))
    with sock:
        yield sock


KILL = """\
import sys
sys.path.insert(0, {tests!r})
import close_table
from safesock import *

peer = type("", (), {{"address": ("127.0.0.1", {port})}})
with close_table.connected(peer, {mode!r}) as sock:
    print(close_table.fill(sock), sock.getsockname()[1], flush=True)
    input()
"""


def kill(mode: CloseMode | None) -> Ending:
    """A process that does not come to close at all."""
    with Peer(receive_buffer=_SMALL) as peer:
        text = KILL.format(tests=str(Path(__file__).parent), port=peer.address[1], mode=mode)
        with Script(text) as program:
            end = peer.accept()
            sent, port = map(int, program.read_line().split())
            ends = ("127.0.0.1", port), peer.address
            os.kill(program.pid, signal.SIGKILL)
            wait_until(lambda: kernel.state(*ends) != "ESTABLISHED", "the kernel closes it")
            sees, first = what_the_peer_sees(ends, end, sent)
            end.close()
            return Ending(sees, what_is_left(ends, first), "-")


def returns(thread: threading.Thread, ends: Ends, end: PeerEnd) -> bool:
    """Whether it ends without anybody's doing; else it waits in a system call."""
    asleep = 0

    def is_clear() -> bool:
        nonlocal asleep
        # The peer's kernel may take its time to acknowledge a FIN that it has.
        on_its_way = kernel.state(*ends) in _PASSING and kernel.state_of(end.sock) in _HAS_FIN
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            asleep = asleep + 1 if kernel.is_asleep(thread) and not on_its_way else 0
        return not thread.is_alive() or asleep == _LOOKS

    wait_until(is_clear, "the close returns, or waits")
    return not thread.is_alive()


def what_the_peer_sees(ends: Ends, end: PeerEnd, sent: int) -> tuple[str, str]:
    """Reading all that there is, and the state of our side after that."""
    if (state := kernel.state(*ends)) in _HELD:
        end.read(sent)
        return "nothing at all", str(state)
    data, how = end.read_to_end()
    # Our own kernel has to hear of it.
    wait_until(lambda: kernel.state(*ends) not in _PASSING, "what is on its way arrives")
    assert len(data) <= sent
    part = "all of it" if len(data) == sent else "a part"
    return f"{part}, {'FIN' if how is EOF else 'RST'}", kernel.state(*ends) or "nothing"


def what_is_left(ends: Ends, first: str) -> str:
    """After what it was *first*, once the peer has closed as well."""
    over = {None, "TIME_WAIT", "CLOSE_WAIT"}
    wait_until(lambda: kernel.state(*ends) in over, "the peer's FIN arrives")
    then = kernel.state(*ends) or "nothing"
    return first if then == first else f"{first}, then {then}"


# The page -------------------------------------------------------------------------------------

TABLES = {
    "sees": "### What the peer sees",
    "left": "### What is left in your kernel's table",
    "waits": "### What `close()` waits for",
}


def measured() -> str:
    """All three tables, as Markdown."""
    rows = {
        name: [measure(situation, mode) for mode in MODES.values()]
        for name, situation in SITUATIONS.items()
    }
    rows[KILLED] = [kill(mode) for mode in MODES.values()]
    return "\n\n".join(f"{head}\n\n{table(rows, kind)}" for kind, head in TABLES.items())


def table(rows: dict[str, list[Ending]], kind: str) -> str:
    lines = [["", *MODES], ["---"] * (len(MODES) + 1)]
    for name, endings in rows.items():
        cells: list[str] = [getattr(ending, kind) for ending in endings]
        if set(cells) != {"-"}:
            lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def on_the_page() -> str:
    """The tables that the page has."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def write(tables: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text[: text.index(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{head}{BEGIN}\n\n{tables}\n\n{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help=f"put them into {PAGE.name}")
    tables = measured()
    if parser.parse_args().write:
        write(tables)
    sys.stdout.write(tables + "\n")


if __name__ == "__main__":
    main()
