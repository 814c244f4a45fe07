"""What the kernel says, cut off and damaged: a right answer or a documented error, nothing else."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import kernel
import pytest
from fuzzing import LETTERS, damaged, each_length, hold
from hypothesis import strategies as st
from peer import Peer

import safesock
from safesock import _holders, _kernel, _kernel_diag, _proc
from safesock._kernel import TcpState
from safesock._kernel_diag import Row

IPV4, IPV6 = socket.AF_INET, socket.AF_INET6


def answer() -> bytes:
    """A real answer of sock_diag, with at least one connection in it."""
    with Peer() as peer, peer.connected() as (sock, _):
        question = struct.pack("=BBBxI48x", socket.AF_INET, socket.IPPROTO_TCP, 2, 0xFFF)
        header = struct.pack("=IHHII", 16 + len(question), 20, 0x301, 0, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:
            netlink.send(header + question)
            inode = os.fstat(sock.fileno()).st_ino
            while True:
                data = netlink.recv(1 << 17)
                rows, done = _kernel_diag.parse(data)
                if any(row.inode == inode for row in rows):
                    return data
                assert not done


def close_wait() -> tuple[bytes, list[str], list[str]]:
    """TCP_INFO of one in CLOSE_WAIT, and the tables of /proc that have it and a listening one."""
    with (
        Peer() as peer,
        Peer(IPV6) as other,
        other.connected(),
        socket.create_connection(peer.address) as sock,
    ):
        peer.accept().goodbye_then_fin(b"unread")
        kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT", "the FIN arrives")
        ports = [f":{one.address[1]:04X} " for one in (peer, other)]
        tables = [_proc.lines("self", name) for name in _proc.TCP]
        ipv4, ipv6 = ([one for one in table if any(map(one.count, ports))] for table in tables)
        return _kernel.tcp_info(sock), ipv4, ipv6


ANSWER = answer()
INFO, TABLE, TABLE6 = close_wait()


def is_row(row: Row) -> None:
    assert isinstance(row.state, TcpState)
    assert row.inode >= 0
    assert (row.unread or 0) >= 0
    assert (row.unacknowledged or 0) >= 0
    assert row.age is None or row.age >= 0
    for address in (row.local, row.peer):
        assert address is not None
        ipaddress.ip_address(address[0])
        assert 0 <= address[1] <= 65535


# sock_diag --------------------------------------------------------------------------------------


@each_length(60, 400)
@pytest.mark.parametrize("data", [st.binary(max_size=400), damaged(ANSWER)], ids=["any", "damaged"])
def test_an_answer_of_sock_diag_is_right_or_a_clear_error(
    data: st.SearchStrategy[bytes], examples: int
) -> None:
    whole = _kernel_diag.parse(ANSWER)[0]
    assert whole

    def claim(data: bytes) -> None:
        try:
            rows, _ = _kernel_diag.parse(data)
        except (ValueError, OSError):
            return
        for row in rows:
            assert row.inode
            is_row(row)
        if ANSWER.startswith(data):
            assert rows == whole[: len(rows)]

    hold(examples, claim, data)


def test_an_error_of_sock_diag_that_is_none_of_the_systems_is_one_all_the_same() -> None:
    message = struct.pack("=IHHIIi", 20, 2, 0, 0, 0, -(2**31))
    with pytest.raises(OSError, match="Protocol error"):
        _kernel_diag.parse(message)


def test_an_answer_that_cannot_be_read_leaves_the_audit_to_proc(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> tuple[list[Row], bool]:
        raise ValueError("an answer of sock_diag with state 99 of family 2")

    with peer.connected() as (sock, _):
        monkeypatch.setattr(_kernel_diag, "parse", unknown)
        found = {one.fd: one for one in safesock.audit()}
        assert found[sock.fileno()].peer == peer.address


# TCP_INFO ---------------------------------------------------------------------------------------


@each_length(40, 200)
@pytest.mark.parametrize("data", [st.binary(max_size=256), damaged(INFO)], ids=["any", "damaged"])
def test_tcp_info_is_understood_as_far_as_it_goes(
    data: st.SearchStrategy[bytes], examples: int, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer.connected() as (sock, _):
        fd = sock.fileno()

        def claim(info: bytes, queued: int | None) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(_kernel, "tcp_info", lambda _: info)
                patch.setattr(_kernel, "_queue", lambda *_: queued)
                state = _kernel.tcp_state(sock)
                assert state is None or state == info[0]
                assert _kernel.age_of_close_wait(sock) >= 0
                assert _kernel.control_bytes(sock) >= 0
                assert _kernel.was_established(sock) in (False, True)
                assert _kernel.connected_here(sock) in (False, True)
                assert _kernel.fin_was_sent(sock) in (False, True)
                for one in _kernel.counts(sock, syn=1, fin_sent=False):
                    assert one is None or one >= 0
                row = _kernel_diag.look(fd, set())
            assert row is None or (row.state == state and row.inode == os.fstat(fd).st_ino)

        hold(examples, claim, data, st.none() | st.integers(0, 2**31 - 1))


def test_what_tcp_info_says_of_close_wait_is_the_state_and_the_age() -> None:
    assert INFO[0] == TcpState.CLOSE_WAIT
    age = _kernel.age_in(INFO)
    assert age is not None
    assert 0 <= age < 3600
    assert _kernel.age_in(INFO[:59]) is None


@pytest.mark.parametrize("info", [b"", bytes([13]), bytes([255]) * 256])
def test_a_state_of_a_later_kernel_is_not_known(
    info: bytes, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer.connected() as (sock, _), monkeypatch.context() as patch:
        patch.setattr(_kernel, "tcp_info", lambda _: info)
        assert _kernel.tcp_state(sock) is None
        assert _kernel_diag.look(sock.fileno(), set()) is None


# /proc ------------------------------------------------------------------------------------------


def texts(lines: list[str]) -> st.SearchStrategy[str]:
    damage = st.sampled_from(lines).flatmap(lambda line: damaged(line.encode()))
    return damage.map(lambda data: data.decode(errors="replace")) | st.text(LETTERS, max_size=200)


@each_length(60, 250)
@pytest.mark.parametrize(("lines", "family"), [(TABLE, IPV4), (TABLE6, IPV6)], ids=["tcp", "tcp6"])
def test_a_line_of_proc_is_right_or_passed_over(
    lines: list[str], family: int, examples: int
) -> None:
    whole = list(_proc.rows(lines, family))
    assert len(whole) == len(lines) >= 3
    assert TcpState.LISTEN in {row.state for row in whole}

    def claim(line: str) -> None:
        for row in _proc.rows([line, *lines], family):
            is_row(row)
        assert list(_proc.rows([line, *lines], family))[-len(whole) :] == whole
        for port in {row.local[1] for row in whole if row.local is not None}:
            held = list(_holders._rows_in([line, *lines], family, port))
            assert len(held) >= sum(row.local is not None and row.local[1] == port for row in whole)
            for one in held:
                assert one.local[1] == port
                assert one.holder(None, None, None).state in TcpState.__members__
        (found, *_) = [*_proc.rows([line], family), None]
        for known, row in zip(lines, whole, strict=True):
            if known.startswith(line) and found is not None:
                assert found == row

    hold(examples, claim, texts(lines))


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:0],
        lambda line: line[:60],
        lambda line: line.replace(":", "", 2),
        lambda line: line.replace(": 0", ": -", 1),
        lambda line: line.replace("0100007F", "0100007F0100007F"),
        lambda line: line.replace(" 0A ", " 0D "),
        lambda line: line.replace("0100007F", "-100007F"),
    ],
)
def test_a_line_that_is_none_hides_no_other(damage: Callable[[str], str]) -> None:
    lines = [one for one in TABLE if " 0A " in one]
    assert lines
    assert list(_proc.rows([damage(lines[0]), *lines], IPV4)) == list(_proc.rows(lines, IPV4))
    port = next(iter(_proc.rows(lines, IPV4))).local[1]  # type: ignore[index]
    broken = [damage(lines[0]), *lines]
    assert len(list(_holders._rows_in(broken, IPV4, port))) == len(lines)


@each_length(40, 150)
def test_the_tables_of_other_sockets_are_right_or_passed_over(examples: int) -> None:
    lines = [line for line in _proc.lines("self", "unix") if line][:5]
    assert len(_proc.inodes(lines, 6)) >= 1

    def claim(line: str, column: int) -> None:
        assert _proc.inodes([*lines, line], column) >= _proc.inodes(lines, column)
        assert all(inode >= 0 for inode in _proc.inodes([line], column))

    hold(examples, claim, texts([*lines, *TABLE]), st.sampled_from([6, 8, 9]))


@pytest.mark.parametrize("letter", ["\r", "\x0b", "\x1c", "\x85", "\u2028", "\u00b2", "\udcff"])
def test_the_name_of_a_unix_socket_cannot_break_an_audit(letter: str) -> None:
    """The kernel prints it as it is. None of these ends a line, and a digit is one of ten."""
    before = _proc.other_sockets(os.getpid())
    fields = f"{letter}0: 2 0 10000 1 1 "
    with socket.socket(socket.AF_UNIX) as named:
        named.bind("\0" + fields + "4294967295 " + fields + "\u00b2")
        inode = os.fstat(named.fileno()).st_ino
        after = _proc.other_sockets(os.getpid())
        safesock.audit()
    assert inode in after
    assert 4294967295 not in after - before


def test_a_line_that_a_unix_socket_has_for_a_name_is_passed_over() -> None:
    """With a newline it begins a line of its own, in which anything may stand for the inode."""
    with socket.socket(socket.AF_UNIX) as named:
        named.bind("\0\n0: 2 0 10000 1 1 \u00b2 x")
        assert os.fstat(named.fileno()).st_ino in _proc.other_sockets(os.getpid())
        safesock.audit()


def test_a_descriptor_has_a_socket_only_if_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "socket:[1]").touch()
    with open(tmp_path / "socket:[1]") as file, socket.socket() as sock:
        found = dict(_proc.sockets_of(os.getpid()))
        assert file.fileno() not in found
        assert found[sock.fileno()] == os.fstat(sock.fileno()).st_ino
